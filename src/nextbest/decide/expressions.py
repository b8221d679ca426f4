"""Turn one parsed SQL expression into a numpy closure and the same thing as DuckDB SQL.

Nothing is ever handed to ``eval``: each node of sqlglot's tree that is on the list below becomes a
small closure over numpy arrays, and everything else is refused when the file is loaded. Values have
the form that `nextbest.decide.nullable` describes and broadcast against each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

import numpy as np
from sqlglot import exp

from nextbest.decide import nullable as nl
from nextbest.decide.grammar import Refusal, children, column_name, shown

__all__ = [
    "Column",
    "ColumnType",
    "Compiler",
    "Lookup",
    "Source",
    "Term",
    "join",
]

ColumnType = Literal["number", "boolean", "string", "timestamp"]
Source = Literal["customer", "pair", "offer", "context", "assumption"]
Lookup = Callable[[str], Any]

MAX_NUMBER_CHARS = 40
MAX_STRING_CHARS = 200
MAX_DECIMALS = 9
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """A column that rules may name: its type, where it comes from, and its value if constant.

    No rule may read one that is ``forbidden``: a sensitive attribute that the policy keeps back.
    """

    type: ColumnType
    source: Source = "customer"
    value: float | str | bool | None = None
    forbidden: bool = False


@dataclass(frozen=True)
class Term:
    """A typed piece of an expression: how to compute it over arrays, and how to say it in SQL.

    ``where_true`` computes the first mask of a condition alone, where that is less work; ``fixed``
    terms are constants.
    """

    type: ColumnType | Literal["null"]
    run: Callable[[Lookup], Any]
    sql: str
    where_true: Callable[[Lookup], Any] | None = None
    fixed: bool = False

    def holds(self, get: Lookup) -> Any:
        """Where a condition is TRUE: not false and not unknown."""
        return self.run(get)[0] if self.where_true is None else self.where_true(get)


_ORDER: Mapping[type[exp.Expr], tuple[str, Any, Any]] = {
    exp.LT: ("<", np.less, np.greater_equal),
    exp.LTE: ("<=", np.less_equal, np.greater),
    exp.GT: (">", np.greater, np.less_equal),
    exp.GTE: (">=", np.greater_equal, np.less),
}
_ARITHMETIC: Mapping[type[exp.Expr], tuple[str, Any]] = {
    exp.Add: ("+", np.add),
    exp.Sub: ("-", np.subtract),
    exp.Mul: ("*", np.multiply),
}
_OF_ONE: Mapping[type[exp.Expr], tuple[str, Any]] = {
    exp.Neg: ("(-{})", np.negative),
    exp.Abs: ("abs({})", np.abs),
    exp.Exp: ("exp({})", nl.exponential),
    # DuckDB's ln(0) is -inf and ln(-1) an error; to us both are unknown.
    exp.Ln: ("ln(nullif(greatest({}, 0), 0))", nl.logarithm),
}
_OF_MANY: Mapping[type[exp.Expr], tuple[str, Any]] = {
    exp.Least: ("least", np.fmin),
    exp.Greatest: ("greatest", np.fmax),
}


def _quote(name: str, mark: str) -> str:
    return mark + name.replace(mark, mark * 2) + mark


def constant(value: float | str | bool | datetime) -> Term:
    """A term that never changes."""
    if isinstance(value, bool):
        pair = (np.bool_(value), np.bool_(not value))
        return Term("boolean", lambda _: pair, "TRUE" if value else "FALSE", fixed=True)
    if isinstance(value, str):
        text = np.array(value, dtype=object)
        return Term("string", lambda _: text, _quote(value, "'"), fixed=True)
    if isinstance(value, datetime):
        stamp = np.datetime64(value, "us")
        return Term(
            "timestamp", lambda _: stamp, f"TIMESTAMP '{value.isoformat(sep=' ')}'", fixed=True
        )
    number = np.float64(value)
    return Term("number", lambda _: number, f"CAST({float(value)!r} AS DOUBLE)", fixed=True)


def _literal(node: exp.Literal) -> Term:
    text = str(node.this)
    if node.is_string:
        if len(text) > MAX_STRING_CHARS:
            raise Refusal("holds a long text", f"at most {MAX_STRING_CHARS} characters")
        return constant(text)
    plain = len(text) <= MAX_NUMBER_CHARS and _NUMBER.fullmatch(text)
    number = float(text) if plain else math.inf
    if not math.isfinite(number):
        raise Refusal(f'holds the number "{text[:20]}"', "a finite number in plain notation")
    return constant(number)


_TIMES = (exp.DType.TIMESTAMP, exp.DType.TIMESTAMPNTZ, exp.DType.TIMESTAMPTZ, exp.DType.DATE)


def _timestamp(node: exp.Cast) -> Term:
    literal = node.this
    if not isinstance(literal, exp.Literal) or not literal.is_string:
        raise Refusal(f'converts "{shown(literal)}"', "TIMESTAMP '...' or DATE '...'")
    if node.to.this not in _TIMES:
        raise Refusal(f'converts to "{shown(node.to)}"', "TIMESTAMP '...' or DATE '...'")
    try:
        moment = datetime.fromisoformat(str(literal.this))
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise Refusal(
            f'holds the time "{str(literal.this)[:30]}"', "like '2017-12-10 05:00:00', in UTC"
        ) from None
    return constant(moment.replace(tzinfo=None))


def _decimals(node: exp.Expr | None) -> int:
    sign, literal = (-1, node.this) if isinstance(node, exp.Neg) else (1, node)
    text = "0" if literal is None else str(literal.this)
    if not text.isdecimal() or len(text) > 2 or int(text) > MAX_DECIMALS:
        raise Refusal("rounds to an unusual number of decimals", "a whole number from -9 to 9")
    return sign * int(text)


def _not_nan(sql: str) -> str:
    """SQL for a step that can give NaN (inf - inf), which is null to us."""
    return f"nullif({sql}, CAST('nan' AS DOUBLE))"


def _same_type(a: Term, b: Term) -> None:
    if "null" in (a.type, b.type):
        raise Refusal("compares with NULL", "IS NULL or IS NOT NULL", "a comparison")
    if a.type != b.type:
        action = "Write TIMESTAMP '...' for a time." if "timestamp" in (a.type, b.type) else ""
        raise Refusal(
            f"compares a {a.type} with a {b.type}", "two values of one type", action=action
        )


def _common_type(terms: list[Term], what: str) -> ColumnType:
    kinds = sorted({t.type for t in terms} - {"null"})
    if len(kinds) != 1:
        raise Refusal(f"{what} mixes types", "values of one type", " and ".join(kinds) or "NULL")
    return cast(ColumnType, kinds[0])


def _value(term: Term, kind: str, get: Lookup) -> Any:
    return nl.null_of(kind) if term.type == "null" else term.run(get)


def _operation(terms: list[Term], ufunc: Callable[..., Any], sql: str) -> Term:
    def run(get: Lookup) -> Any:
        if len(terms) == 1:
            return ufunc(terms[0].run(get))
        result = terms[0].run(get)
        for term in terms[1:]:
            result = ufunc(result, term.run(get))
        return result

    return Term("number", run, sql)


def join(terms: list[Term], every: bool) -> Term:
    """AND (``every``) or OR of boolean terms, in three-valued logic."""
    if len(terms) == 1:
        return terms[0]

    def run(get: Lookup) -> nl.Pair:
        true, false = terms[0].run(get)
        for term in terms[1:]:
            t, f = term.run(get)
            true, false = (true & t, false | f) if every else (true | t, false & f)
        return true, false

    def where_true(get: Lookup) -> Any:
        true = terms[0].holds(get)
        for term in terms[1:]:
            true = true & term.holds(get) if every else true | term.holds(get)
        return true

    sql = "(" + (" AND " if every else " OR ").join(t.sql for t in terms) + ")"
    return Term("boolean", run, sql, where_true)


def _equals(a: Term, b: Term, negate: bool) -> Term:
    _same_type(a, b)

    def run(get: Lookup) -> nl.Pair:
        pair = nl.equal(a.type, a.run(get), b.run(get))
        return pair[::-1] if negate else pair

    # An unknown number or time equals nothing; an unknown text equals only another one.
    simple = a.type in ("number", "timestamp") or (a.type == "string" and (a.fixed or b.fixed))

    def where_true(get: Lookup) -> Any:
        return np.equal(a.run(get), b.run(get))

    sql = f"({a.sql} {'<>' if negate else '='} {b.sql})"
    return Term("boolean", run, sql, where_true if simple and not negate else None)


def _ordered(kind: type[exp.Expr], a: Term, b: Term) -> Term:
    symbol, holds, fails = _ORDER[kind]
    _same_type(a, b)
    if a.type not in ("number", "timestamp"):
        raise Refusal(f"orders two {a.type}s with {symbol}", "numbers or timestamps")

    def run(get: Lookup) -> nl.Pair:
        x, y = a.run(get), b.run(get)
        return holds(x, y), fails(x, y)

    def where_true(get: Lookup) -> Any:
        return holds(a.run(get), b.run(get))

    return Term("boolean", run, f"({a.sql} {symbol} {b.sql})", where_true)


class Compiler:
    """Type-check expressions against known columns and build their closures.

    Every column that the expression names must be known: call `check_form` and look first.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns
        self._by_kind: Mapping[type[exp.Expr], Callable[[Any], Term]] = {
            **dict.fromkeys(_ORDER, self._order),
            **dict.fromkeys((*_ARITHMETIC, exp.Div, *_OF_ONE, *_OF_MANY), self._number),
            **dict.fromkeys((exp.EQ, exp.NEQ), self._equality),
            **dict.fromkeys((exp.And, exp.Or), self._logic),
            **dict.fromkeys((exp.Lower, exp.Upper), self._change_case),
            exp.Paren: lambda node: self.term(node.this),
            exp.Boolean: lambda node: constant(bool(node.this)),
            exp.Null: lambda _: Term("null", lambda _: None, "NULL"),
            exp.Literal: _literal,
            exp.Cast: _timestamp,
            exp.Column: self._column,
            exp.Not: self._not,
            exp.Is: self._is,
            exp.Between: self._between,
            exp.In: self._in,
            exp.Case: self._case,
            exp.Coalesce: self._coalesce,
            exp.Round: self._round,
        }

    def name(self, node: exp.Column) -> str:
        """The column's name: as written, else in lower case unless it is quoted, as in SQL."""
        name = column_name(node)
        quoted = node.this.args.get("quoted")
        return name.lower() if name not in self._columns and not quoted else name

    def term(self, node: exp.Expr) -> Term:
        """Compile one node and all below it; the whole must have passed `check_form`."""
        return self._by_kind[type(node)](node)

    def _typed(self, node: exp.Expr, kind: ColumnType) -> Term:
        term = self.term(node)
        if term.type != kind:
            raise Refusal(f'uses "{shown(node)}" as a {kind}', f"a {kind}", f"a {term.type}")
        return term

    def _column(self, node: exp.Column) -> Term:
        name = self.name(node)
        column = self._columns[name]
        if column.value is not None:
            return constant(column.value)
        kind = column.type
        sql = _quote(name, '"')
        if kind == "number":
            sql = _not_nan(f"CAST({sql} AS DOUBLE)")
        return Term(kind, lambda get: nl.as_column(kind, get(name)), sql)

    def _logic(self, node: exp.And | exp.Or) -> Term:
        terms, pending = [], [node.expression, node.this]
        while pending:
            part = pending.pop()
            if type(part) is type(node):
                pending += [part.expression, part.this]
            else:
                terms.append(self._typed(part, "boolean"))
        return join(terms, every=isinstance(node, exp.And))

    def _not(self, node: exp.Not) -> Term:
        inner = self._typed(node.this, "boolean")
        return Term("boolean", lambda get: inner.run(get)[::-1], f"(NOT {inner.sql})")

    def _is(self, node: exp.Is) -> Term:
        term = self.term(node.this)
        kind = term.type
        if isinstance(node.expression, exp.Null):

            def is_null(get: Lookup) -> nl.Pair:
                null = np.True_ if kind == "null" else nl.is_null(kind, term.run(get))
                return null, ~null

            return Term("boolean", is_null, f"({term.sql} IS NULL)")
        if not isinstance(node.expression, exp.Boolean) or kind != "boolean":
            raise Refusal(f'compares "{shown(node)}"', "IS NULL, or IS TRUE of a boolean")
        wanted = bool(node.expression.this)

        def is_wanted(get: Lookup) -> nl.Pair:
            mask = term.run(get)[0 if wanted else 1]
            return mask, ~mask

        return Term("boolean", is_wanted, f"({term.sql} IS {'TRUE' if wanted else 'FALSE'})")

    def _equality(self, node: exp.EQ | exp.NEQ) -> Term:
        return _equals(self.term(node.this), self.term(node.expression), isinstance(node, exp.NEQ))

    def _order(self, node: exp.Expr) -> Term:
        return _ordered(type(node), self.term(node.this), self.term(node.args["expression"]))

    def _between(self, node: exp.Between) -> Term:
        value = self.term(node.this)
        low = _ordered(exp.GTE, value, self.term(node.args["low"]))
        high = _ordered(exp.LTE, value, self.term(node.args["high"]))
        return join([low, high], every=True)

    def _in(self, node: exp.In) -> Term:
        term = self.term(node.this)
        if term.type not in ("number", "string"):
            raise Refusal(f"looks for a {term.type} with IN", "a number or a text")
        items, listed = set(), []
        for item in node.expressions:
            if not isinstance(item.this if isinstance(item, exp.Neg) else item, exp.Literal):
                raise Refusal(f'has "{shown(item)}" in an IN list', "plain numbers or texts")
            found = self.term(item)
            _same_type(term, found)
            items.add(found.run(lambda _: None).item())
            listed.append(found.sql)
        if not items:
            raise Refusal("has an empty IN list", "at least one value")

        def run(get: Lookup) -> nl.Pair:
            value = np.asarray(term.run(get))
            known = ~nl.is_null(term.type, value)
            if term.type == "number":
                found = np.isin(value, sorted(items))
            else:
                found = np.array([v in items for v in value.ravel()], bool).reshape(value.shape)
            return known & found, known & ~found

        return Term("boolean", run, f"({term.sql} IN ({', '.join(listed)}))")

    def _case(self, node: exp.Case) -> Term:
        operand = node.args.get("this")
        conditions, values = [], []
        for branch in node.args["ifs"]:
            if operand is None:
                conditions.append(self._typed(branch.this, "boolean"))
            else:
                conditions.append(_equals(self.term(operand), self.term(branch.this), False))
            values.append(self.term(branch.args["true"]))
        default = self.term(node.args.get("default") or exp.Null())
        kind = _common_type([*values, default], "CASE")

        def run(get: Lookup) -> Any:
            result = _value(default, kind, get)
            for condition, value in zip(conditions[::-1], values[::-1], strict=True):
                result = nl.choose(kind, condition.run(get)[0], _value(value, kind, get), result)
            return result

        pairs = zip(conditions, values, strict=True)
        branches = " ".join(f"WHEN {c.sql} THEN {v.sql}" for c, v in pairs)
        return Term(kind, run, f"(CASE {branches} ELSE {default.sql} END)")

    def _coalesce(self, node: exp.Coalesce) -> Term:
        terms = [self.term(n) for n in (node.this, *node.expressions)]
        kind = _common_type(terms, "coalesce")

        def run(get: Lookup) -> Any:
            result = _value(terms[-1], kind, get)
            for term in terms[-2::-1]:
                value = _value(term, kind, get)
                result = nl.choose(kind, nl.is_null(kind, value), result, value)
            return result

        return Term(kind, run, f"coalesce({', '.join(t.sql for t in terms)})")

    def _number(self, node: exp.Expr) -> Term:
        kind = type(node)
        terms = [self._typed(child, "number") for child in children(node)]
        sql = [term.sql for term in terms]
        if kind in _OF_ONE:
            form, ufunc = _OF_ONE[kind]
            return _operation(terms, ufunc, form.format(sql[0]))
        if kind in _OF_MANY:
            name, ufunc = _OF_MANY[kind]
            return _operation(terms, ufunc, f"{name}({', '.join(sql)})")
        if kind is exp.Div:
            return _operation(terms, nl.divide, _not_nan(f"({sql[0]} / nullif({sql[1]}, 0))"))
        symbol, ufunc = _ARITHMETIC[kind]
        return _operation(terms, ufunc, _not_nan(f"({sql[0]} {symbol} {sql[1]})"))

    def _round(self, node: exp.Round) -> Term:
        inner = self._typed(node.this, "number")
        decimals = _decimals(node.args.get("decimals"))

        def run(value: Any) -> Any:
            return nl.round_half_away(value, decimals)

        return _operation([inner], run, f"round({inner.sql}, {decimals})")

    def _change_case(self, node: exp.Lower | exp.Upper) -> Term:
        inner = self._typed(node.this, "string")
        upper = isinstance(node, exp.Upper)
        name = "upper" if upper else "lower"
        return Term(
            "string", lambda get: nl.change_case(inner.run(get), upper), f"{name}({inner.sql})"
        )
