"""What the data can feed: features, consents and offers, and what models and policy lack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from nextbest.errors import Fault, did_you_mean
from nextbest.project import Project

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.data.features import Feature
    from nextbest.decide.offertable import OfferTable
    from nextbest.decide.policy import Policy
    from nextbest.learn.model import Model

__all__ = ["consents_of", "features", "offer_table", "readable", "uncountable", "unfed"]

_RESPONSE_TABLES = ("contacts", "responses", "offers")


def features(project: Project) -> tuple[tuple[Feature, ...], tuple[str, ...]]:
    """Return every feature that the data can feed, and the groups that they cannot; reads no row.

    Raises
    ------
    ConfigError, DataError : sources or feature groups are wrong.
    """
    from nextbest.data.features import available, describe

    usable, missing = available(project.groups, project.shapes)
    found = project.guard("", lambda: describe(usable, project.shapes))
    consents = consents_of(project.shapes["customers"].columns)
    return (*found, *consents), tuple(str(m) for m in missing)


def consents_of(columns: Iterable[str]) -> tuple[Feature, ...]:
    """Return the columns that say who may be contacted: policy and rules read them, no model does.

    They are taken as they stand, not as of a moment: what counts is what people say now.
    """
    from nextbest.data.features import Feature

    return tuple(
        Feature(name, f"may be contacted by {name.removeprefix('consent_')}", "yes or no",
                "customers", "consent", "customer", "boolean")
        for name in columns if name.startswith("consent_")
    )  # fmt: skip


def unfed(project: Project, model: Model, found: Iterable[Feature]) -> Iterator[Fault]:
    """Yield what a model asks for that no feature of the data gives."""
    where = f"models/{model.name}.py"
    lacking = [t for t in _RESPONSE_TABLES if t not in project.shapes]
    if model.label.entity == "pair" and lacking:
        for table in lacking:
            problem, expected = f'its label needs the table "{table}"', "returned by tables()"
            yield Fault(where, problem, expected, action="Return it from training/sources.py.")
        return
    names = readable(project, model, found)
    for need in model.baseline.needs:
        if need not in names:
            problem = f'the baseline needs the feature "{need}"'
            expected = "a feature that the data can feed"
            yield Fault(where, problem, expected, action=did_you_mean(need, names))
    known = [*names, *(g.name for g in project.groups)]
    for name in model.exclude:
        if name not in known:
            problem, expected = f'exclude names "{name}"', "a feature group or a feature"
            yield Fault(where, problem, expected, action=did_you_mean(name, known))


def readable(project: Project, model: Model, found: Iterable[Feature]) -> list[str]:
    """Return the features of a model's groups that its rows have."""
    groups = project.groups if model.kind == "clv" else model.groups(project.groups)
    entities = ("customer",) if model.label.entity == "customer" else ("customer", "offer", "pair")
    used = {g.name for g in groups}
    return [f.name for f in found if f.group in used and f.entity in entities]


def offer_table(project: Project, history: History) -> OfferTable | None:
    """Return the offers of the data's own table; None where the data hold none."""
    from nextbest.data.sources import TABLES
    from nextbest.decide.offers import AMOUNTS, Offer
    from nextbest.decide.offertable import TABLE, OfferTable

    if TABLE not in history.tables:
        return None
    rows = history.tables[TABLE].to_pyarrow().to_pylist()
    in_contract = [column.name for column in TABLES[TABLE].columns]
    return OfferTable.of(rows, Offer.model_fields, AMOUNTS, project.settings.as_of, in_contract)


def uncountable(policy: Policy, history: History) -> Iterator[Fault]:
    """Yield what a policy counts that the data do not hold."""
    if policy.tables.contact.count_history and "contacts" not in history.tables:
        problem = 'count_history needs the table "contacts"'
        expected, got = "returned by tables() of training/sources.py", ", ".join(history.tables)
        yield Fault(f"{policy.where}: [contact]", problem, expected, got)
