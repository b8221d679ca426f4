"""What the rule language allows: size limits, the list of constructs, and the split into clauses.

Rules are written by people, and may arrive by mistake or malice as anything at all. So the text is
bounded before it is parsed, and the tree is held against a list before anything is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlglot
from sqlglot import Token, TokenType, exp
from sqlglot.errors import ParseError

from nextbest.errors import Fault

__all__ = ["ParsedClause", "Refusal", "check_form", "children", "column_name", "parse", "shown"]

MAX_CHARS = 4000
MAX_TOKENS = 500
MAX_OPEN = 25
MAX_TREE_DEPTH = 40

LANGUAGE = (
    "made of columns, numbers, 'text', TRUE, FALSE, TIMESTAMP '...', + - * /, comparisons, "
    "AND, OR, NOT, IN (...), BETWEEN, IS NULL, CASE WHEN and the functions "
    "abs, coalesce, exp, greatest, least, ln, lower, round, upper"
)


@dataclass(frozen=True)
class ParsedClause:
    """One of the conditions that a top-level AND joins: as written, and as sqlglot's tree."""

    text: str
    tree: exp.Expr


class Refusal(Exception):
    """What is wrong inside an expression, before we know which file and offer it stands in."""

    def __init__(self, problem: str, expected: str = "", got: str = "", action: str = "") -> None:
        super().__init__(problem)
        self.fault = Fault("", problem, expected, got, action)


_OF_TWO = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.EQ, exp.NEQ, exp.And, exp.Or, exp.Is)
_ORDERS = (exp.LT, exp.LTE, exp.GT, exp.GTE)
_OF_ONE = (exp.Neg, exp.Not, exp.Paren, exp.Abs, exp.Exp, exp.Ln, exp.Lower, exp.Upper)
_OF_MANY = (exp.In, exp.Coalesce, exp.Least, exp.Greatest)
# The only parts of a node that may hold further expressions; anything else found there (a subquery
# in IN, a window, a second argument) is refused rather than ignored.
_PARTS: Mapping[type[exp.Expr], frozenset[str]] = {
    **dict.fromkeys((*_OF_TWO, *_ORDERS), frozenset({"this", "expression"})),
    **dict.fromkeys(_OF_ONE, frozenset({"this"})),
    **dict.fromkeys(_OF_MANY, frozenset({"this", "expressions"})),
    exp.Between: frozenset({"this", "low", "high"}),
    exp.Case: frozenset({"this", "ifs", "default"}),
    exp.Round: frozenset({"this", "decimals"}),
    exp.Column: frozenset({"this"}),
    exp.Cast: frozenset({"this", "to"}),
    exp.Literal: frozenset(),
    exp.Boolean: frozenset(),
    exp.Null: frozenset(),
}


def shown(node: exp.Expr) -> str:
    text = node.sql(dialect="duckdb")
    return text if len(text) <= 60 else text[:57] + "..."


def _not_allowed(node: exp.Expr) -> Refusal:
    kind = "function " if isinstance(node, exp.Func) else ""
    return Refusal(f'uses {kind}"{shown(node)}", which the rule language does not have', LANGUAGE)


def children(node: exp.Expr) -> list[exp.Expr]:
    """Return the expressions inside a node; refuse a node or a part that is not on the list."""
    allowed = _PARTS.get(type(node))
    if allowed is None:
        raise _not_allowed(node)
    # The parser is lenient: it lets "@" stand for abs() of nothing.
    if any(node.arg_types.get(name) and not node.args.get(name) for name in allowed):
        raise Refusal(f'has the incomplete "{shown(node)}"')
    found: list[exp.Expr] = []
    for name, part in node.args.items():
        for child in part if isinstance(part, list) else [part]:
            if not isinstance(child, exp.Expr) or isinstance(child, exp.DataType | exp.Identifier):
                continue
            if name not in allowed:
                raise _not_allowed(child)
            if isinstance(node, exp.Case) and isinstance(child, exp.If):
                branch = [part for part in child.args.values() if isinstance(part, exp.Expr)]
                if len(branch) != 2:
                    raise Refusal(f'has the incomplete "{shown(node)}"')
                found += branch
            else:
                found.append(child)
    return found


def column_name(node: exp.Column) -> str:
    """Return the column's plain name; a qualified name (``t.a``) is refused."""
    identifier = node.this
    if node.args.get("table") or not isinstance(identifier, exp.Identifier):
        raise Refusal(f'names "{shown(node)}"', "a plain column name, without a table")
    return str(identifier.this)


def check_form(root: exp.Expr) -> list[exp.Column]:
    """Refuse whatever is not on the list, or nested too deeply; return the columns it names.

    Walks with its own stack, so that no input can exhaust Python's.
    """
    columns = []
    pending = [(root, 1)]
    while pending:
        node, depth = pending.pop()
        if depth > MAX_TREE_DEPTH:
            raise Refusal(
                "is nested too deeply",
                f"at most {MAX_TREE_DEPTH} levels deep",
                action="Split it into several named rules.",
            )
        if isinstance(node, exp.Column):
            column_name(node)
            columns.append(node)
        for child in children(node):
            # A chain of ANDs is one level to the reader, whatever the tree looks like.
            chain = isinstance(child, exp.And | exp.Or) and type(child) is type(node)
            pending.append((child, depth if chain else depth + 1))
    return columns


_OPENS = frozenset({TokenType.L_PAREN, TokenType.CASE, TokenType.L_BRACKET, TokenType.L_BRACE})
_CLOSES = frozenset({TokenType.R_PAREN, TokenType.END, TokenType.R_BRACKET, TokenType.R_BRACE})


def _unreadable() -> Refusal:
    # A parser that we do not own meets text that anyone may write: whatever it raises
    # (RecursionError, KeyError, ...), the one true statement is that this is not an expression.
    return Refusal("cannot be read", "a SQL expression")


def _tokens(text: str) -> list[Token]:
    if len(text) > MAX_CHARS:
        raise Refusal("is too long", f"at most {MAX_CHARS} characters", str(len(text)))
    try:
        tokens = sqlglot.Dialect.get_or_raise("duckdb").tokenize(text)
    except Exception:
        raise _unreadable() from None
    if not tokens:
        raise Refusal("is empty", "a SQL expression")
    if len(tokens) > MAX_TOKENS:
        raise Refusal("is too long", f"at most {MAX_TOKENS} words and signs", str(len(tokens)))
    if any(token.comments for token in tokens):
        raise Refusal("holds a SQL comment", action="Write comments in TOML, after a #.")
    depth = 0
    for token in tokens:
        depth += (token.token_type in _OPENS) - (token.token_type in _CLOSES)
        if depth > MAX_OPEN:
            raise Refusal("is nested too deeply", f"at most {MAX_OPEN} brackets deep")
    return tokens


def _clause_texts(text: str, tokens: list[Token]) -> list[str]:
    """Split at each AND that is outside brackets and CASE and does not belong to a BETWEEN."""
    depth, betweens = 0, 0
    starts, ends = [tokens[0].start], []
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        kind = token.token_type
        depth += (before.token_type in _OPENS) - (before.token_type in _CLOSES)
        if depth or kind not in (TokenType.AND, TokenType.BETWEEN, TokenType.OR):
            continue
        if kind is TokenType.OR:
            return [text]
        if kind is TokenType.BETWEEN:
            betweens += 1
        elif betweens:
            betweens -= 1
        else:
            ends.append(before.end + 1)
            starts.append(after.start)
    return [text[a:b] for a, b in zip(starts, [*ends, tokens[-1].end + 1], strict=True)]


def _tree(text: str) -> exp.Expr:
    try:
        return sqlglot.parse_one(text, dialect="duckdb", into=exp.Condition)
    except ParseError as fault:
        first = fault.errors[0] if fault.errors else {}
        place = f" at line {first['line']}, column {first['col']}" if first.get("line") else ""
        near = f'"{first["highlight"]}"' if first.get("highlight") else "this"
        raise Refusal(f"cannot be read{place}", "a SQL expression", near) from None
    except Exception:
        raise _unreadable() from None


def parse(text: str) -> tuple[ParsedClause, ...]:
    """Parse one expression into its clauses (one, unless a top-level AND joins several).

    Raises
    ------
    Refusal: it is not one expression, or larger than the limits.
    """
    texts = _clause_texts(text, _tokens(text))
    _tree(text)
    return tuple(ParsedClause(" ".join(part.split()), _tree(part)) for part in texts)
