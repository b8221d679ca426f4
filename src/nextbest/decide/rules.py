"""The rule language: SQL expressions over known columns, checked, compiled and explained.

A rule is satisfied only where it is TRUE: null is unknown, and unknown is not eligible. The same
text gives numpy closures for the engine and DuckDB SQL for a warehouse, with equal results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from nextbest.decide.expressions import Column, ColumnType, Compiler, Lookup, Term, join
from nextbest.decide.grammar import Refusal, check_form, parse
from nextbest.errors import Fault, RuleError, did_you_mean

__all__ = [
    "STEPS",
    "Clause",
    "Column",
    "ColumnType",
    "Formula",
    "Lookup",
    "NamedRule",
    "Positions",
    "Rule",
    "Step",
    "check_text",
    "compile_formula",
    "compile_rule",
    "named_rules",
    "rule_faults",
    "rule_title",
    "text_faults",
]

Step = Literal["eligibility", "applicability", "suitability"]
STEPS: tuple[Step, ...] = get_args(Step)

# All offers, or the positions of some; a slice lets numpy work on a view.
Positions = slice | npt.NDArray[np.intp]


@dataclass(frozen=True)
class Clause:
    """One of the conditions that a rule's top-level ANDs join."""

    text: str
    term: Term
    columns: tuple[str, ...]

    def explain(self, get: Lookup, show: Callable[[str], Any]) -> dict[str, Any]:
        """Say how the clause came out for one customer and one offer.

        Parameters
        ----------
        get: column name to its value, as one number or an array of one element.
        show: column name to the value as it should be shown (JSON-able).
        """
        true, false = (bool(np.asarray(mask).item()) for mask in self.term.run(get))
        outcome = "true" if true else "false" if false else "unknown"
        return {
            "clause": self.text,
            "outcome": outcome,
            "values": {name: show(name) for name in self.columns},
        }


@dataclass(frozen=True)
class Rule:
    """A compiled condition."""

    text: str
    clauses: tuple[Clause, ...]

    @property
    def columns(self) -> frozenset[str]:
        """Names of all columns that the rule reads."""
        return frozenset(name for clause in self.clauses for name in clause.columns)

    def satisfied(self, get: Lookup) -> Any:
        """Boolean mask: TRUE, not false and not unknown. Broadcasts over what ``get`` returns."""
        with np.errstate(all="ignore"):
            return self.holds(get)

    def holds(self, get: Lookup) -> Any:
        """Return the mask of `satisfied`, for callers that have told NumPy not to warn."""
        true = self.clauses[0].term.holds(get)
        for clause in self.clauses[1:]:
            true = true & clause.term.holds(get)
        return true

    def explain(self, get: Lookup, show: Callable[[str], Any]) -> list[dict[str, Any]]:
        """Outcome of each clause (true, false, unknown) with the values it saw."""
        with np.errstate(all="ignore"):
            return [clause.explain(get, show) for clause in self.clauses]

    def to_sql(self) -> str:
        """The whole rule as a DuckDB expression over columns of the same names."""
        return join([clause.term for clause in self.clauses], every=True).sql


@dataclass(frozen=True)
class Formula:
    """A compiled numeric expression, such as a margin; NaN where it is unknown."""

    text: str
    term: Term
    columns: frozenset[str]

    def evaluate(self, get: Lookup) -> Any:
        """Numbers that broadcast over what ``get`` returns."""
        with np.errstate(all="ignore"):
            return self.term.run(get)

    def to_sql(self) -> str:
        """The formula as a DuckDB expression over columns of the same names."""
        return self.term.sql


@dataclass(frozen=True)
class NamedRule:
    """A rule with its step, its name, and the offers (positions in the catalogue) it is for."""

    step: Step
    name: str
    rule: Rule
    offers: Positions


def named_rules(raw: Any, step: str) -> Any:
    """A single expression is a rule named after its step; a table holds rules by name."""
    return {step: raw} if isinstance(raw, str) else raw


def rule_title(step: str, name: str) -> str:
    """Return how messages call a rule."""
    return step if name == step else f'{step} rule "{name}"'


def text_faults(text: Any, where: str, name: str) -> list[Fault]:
    """Faults in the form of one expression; what is not a text is the type check's business."""
    if not isinstance(text, str):
        return []
    try:
        check_text(text, where=where, name=name)
    except RuleError as wrong:
        return list(wrong.faults)
    return []


def rule_faults(raw: Mapping[str, Any], where: Callable[[str], str]) -> list[Fault]:
    """Faults in the form of every rule of a table, whatever else is wrong with it."""
    faults: list[Fault] = []
    for step in STEPS:
        rules = raw.get(step)
        for name, text in rules.items() if isinstance(rules, dict) else ():
            faults += text_faults(text, where(step), rule_title(step, name))
    return faults


def _placed(refusal: Refusal, where: str, name: str) -> Fault:
    return replace(refusal.fault, where=where, problem=f"{name} {refusal.fault.problem}")


def check_text(text: str, *, where: str, name: str) -> None:
    """Refuse a text that is no expression of the rule language, before any column is known.

    Raises
    ------
    RuleError: it cannot be read, is too large, or uses what the language does not have.
    """
    try:
        for clause in parse(text):
            check_form(clause.tree)
    except Refusal as refusal:
        raise RuleError(faults=[_placed(refusal, where, name)]) from None


def _compile(
    text: str, columns: Mapping[str, Column], kind: str, where: str, name: str
) -> tuple[Clause, ...]:
    try:
        compiler = Compiler(columns)
        parsed = parse(text)
        used = [
            tuple(dict.fromkeys(compiler.name(node) for node in check_form(part.tree)))
            for part in parsed
        ]
        unknown = dict.fromkeys(n for names in used for n in names if n not in columns)
        if unknown:
            raise RuleError(faults=[_unknown(n, columns, where, name) for n in unknown])
        forbidden = dict.fromkeys(n for names in used for n in names if columns[n].forbidden)
        if forbidden:
            raise RuleError(faults=[_forbidden(n, where, name) for n in forbidden])
        clauses = tuple(
            Clause(part.text, compiler.term(part.tree), names)
            for part, names in zip(parsed, used, strict=True)
        )
        # Several clauses are joined by AND, so each must be a condition, and so is the whole.
        for clause in clauses:
            expected = "boolean" if len(clauses) > 1 else kind
            if clause.term.type != expected:
                raise Refusal(f'has "{clause.text}"', f"a {expected}", f"a {clause.term.type}")
        if len(clauses) > 1 and kind != "boolean":
            raise Refusal("is a condition", f"a {kind}", "a boolean")
    except Refusal as refusal:
        raise RuleError(faults=[_placed(refusal, where, name)]) from None
    return clauses


def _unknown(column: str, columns: Mapping[str, Column], where: str, name: str) -> Fault:
    hint = did_you_mean(column, columns)
    problem = f'{name} names column "{column}"'
    return Fault(where, problem, "a known column", "none of that name", hint)


def _forbidden(column: str, where: str, name: str) -> Fault:
    problem = f'{name} reads the sensitive attribute "{column}"'
    action = "Leave it out, or name it under allow_in_rules of the policy's [sensitive]."
    return Fault(where, problem, "a rule about something else", action=action)


def compile_rule(text: str, columns: Mapping[str, Column], *, where: str, name: str) -> Rule:
    """Compile a condition, for example ``churn_probability > 0.6 and orders_91d >= 3``.

    Parameters
    ----------
    text: the SQL expression.
    columns: every column that it may name.
    where, name: file and offer, and the rule's name, for messages.

    Raises
    ------
    RuleError: unreadable, not allowed, an unknown column, or not a condition.
    """
    clauses = _compile(text, columns, "boolean", where, name)
    return Rule(" ".join(text.split()), clauses)


def compile_formula(text: str, columns: Mapping[str, Column], *, where: str, name: str) -> Formula:
    """Compile a numeric expression, for example ``margin_rate * spend_91d``.

    Parameters and errors as in `compile_rule`, but the result must be a number.
    """
    (clause,) = _compile(text, columns, "number", where, name)
    return Formula(" ".join(text.split()), clause.term, frozenset(clause.columns))
