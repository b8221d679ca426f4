"""The declared set of key figures: what each is, in which unit, and what it needs.

A figure is a sum over customers divided by another. Its input may be absent; then it says so, and
nothing stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import ibis

from nextbest.decide.rules import Column, ColumnType, compile_formula
from nextbest.errors import ConfigError, Fault, RuleError
from nextbest.measure.kpi.rows import Shop
from nextbest.measure.kpi.settings import FILE, OwnKpi, ReportSettings

__all__ = ["BUILT_IN", "HVC", "Kpi", "declared", "own_sums", "own_terms", "typed"]

#: The value tier whose customers count as high-value.
HVC: Final = "high"
Unit = Literal["share", "currency", "count", "ratio"]
Timing = Literal["leading", "lagging"]
Better = Literal["higher", "lower", "either"]
OverTime = Literal["mean", "sum", "none"]
Term = Callable[[ibis.Table], Any]
Needs = Callable[[Shop], str]


@dataclass(frozen=True)
class Kpi:
    """A key figure.

    Attributes
    ----------
    name, title, meaning : its key, what people call it, and its definition in one line.
    unit : a ``share`` (0-1), ``currency``, a ``count``, or a ``ratio`` of money to money.
    timing : ``leading`` figures move before the money does; ``lagging`` ones are the money.
    better : which way is good news.
    top, bottom : numerator and denominator of a customer's row (`Shop.rows`).
    needs : says what is missing for it in a shop, or nothing.
    over_time : a period's figure is the ``mean`` or the ``sum`` of its steps' figures, or neither.
    today_only : it describes customers as models see them now; there is no baseline.
    who : which customers have a part in it, for messages.
    """

    name: str
    title: str
    meaning: str
    unit: Unit
    timing: Timing
    better: Better
    top: Term
    bottom: Term
    needs: Needs = lambda _shop: ""
    over_time: OverTime = "none"
    today_only: bool = False
    who: str = ""


def _one(t: ibis.Table) -> Any:
    return ibis.literal(1.0)


def _flag(name: str) -> Term:
    return lambda t: t[name].cast("float64")


def _number(name: str) -> Term:
    return lambda t: t[name]


def _both(first: str, second: str) -> Term:
    return lambda t: (t[first] & t[second]).cast("float64")


def _lost(t: ibis.Table) -> Any:
    return (t.was_active & ~t.is_active).cast("float64")


def _needs_contacts(shop: Shop) -> str:
    return "" if shop.contacts is not None else "the data hold no contacts"


def _needs_answers(shop: Shop) -> str:
    if reason := _needs_contacts(shop):
        return reason
    return "" if shop.responses is not None else "the data hold no responses"


def _needs_clicks(shop: Shop) -> str:
    if reason := _needs_contacts(shop):
        return reason
    return "" if shop.click_source else "no response or event in the data is a click"


def _needs_cost(shop: Shop) -> str:
    unknown = shop.log is None and shop.rates.contact is None
    return _needs_contacts(shop) or (f"costs.contact is not stated in {FILE}" if unknown else "")


def _needs_profit(shop: Shop) -> str:
    if reason := _needs_answers(shop) or shop.unpriced:
        return reason
    has_value = shop.log is not None or "value" in shop.tables["responses"].columns
    return "" if has_value else "responses have no value"


def _needs_events(shop: Shop) -> str:
    if "events" not in shop.tables:
        return "the data hold no events, such as opens, visits and clicks"
    kinds = shop.tables["events"].event_type
    known = bool(kinds.isin(list(shop.settings.engagement)).any().to_pyarrow().as_py())
    return "" if known else "no event in the data has a weight in [engagement]"


def _needs_clv(shop: Shop) -> str:
    has = shop.scores is not None and "clv" in shop.scores.columns
    return "" if has else "no lifetime-value model is in use; nextbest promote clv, then refresh"


BUILT_IN: Final[tuple[Kpi, ...]] = (
    Kpi("revenue_per_customer", "Revenue per customer",
        "sales, net of returns, per customer known by the end of the period",
        "currency", "lagging", "higher", _number("revenue"), _one, over_time="sum"),
    Kpi("conversion_rate", "Conversion rate",
        "share of known customers who bought in the period",
        "share", "lagging", "higher", _flag("bought"), _one),
    Kpi("average_order_value", "Average order value",
        "sales, net of returns, per order",
        "currency", "lagging", "higher", _number("revenue"), _number("orders"), over_time="mean"),
    Kpi("purchase_frequency", "Purchase frequency",
        "orders per customer who bought",
        "count", "lagging", "higher", _number("orders"), _flag("bought")),
    Kpi("repeat_rate", "Repeat rate",
        "share of buyers who bought more than once in the period",
        "share", "lagging", "higher", _flag("again"), _flag("bought")),
    Kpi("retention_rate", "Retention rate",
        "share of those who bought in the days before, as many as the period has, who bought again",
        "share", "lagging", "higher", _both("bought_before", "bought"), _flag("bought_before")),
    Kpi("churn_rate", "Churn rate",
        "share of customers active at the start who no longer are at the end",
        "share", "leading", "lower", _lost, _flag("was_active")),
    Kpi("new_customer_share", "New customers among buyers",
        "share of buyers whose first purchase is in the period; the others are returning",
        "share", "leading", "either", _flag("is_new"), _flag("bought"), over_time="none"),
    Kpi("hvc_value_share", "Value from high-value customers",
        "share of the period's value from customers who were in the top value tier at its start",
        "share", "lagging", "either", lambda t: (t.value_tier == HVC).ifelse(t.worth, 0.0),
        _number("worth"), over_time="mean"),
    Kpi("clv", "Customer lifetime value",
        "mean value expected of a customer, by the lifetime-value model in use",
        "currency", "leading", "higher", _number("clv"), lambda t: t.clv.notnull().cast("float64"),
        _needs_clv, today_only=True),
    Kpi("response_rate", "Response rate",
        "share of contacts answered in time, of those whose time is over",
        "share", "leading", "higher", _number("answered"), _number("closed"), _needs_answers,
        over_time="mean", who="contacted in time for an answer"),
    Kpi("click_through_rate", "Click-through",
        "clicks per contact",
        "share", "leading", "higher", _number("clicks"), _number("contacts"), _needs_clicks,
        over_time="mean", who="contacted"),
    Kpi("engagement_score", "Engagement score",
        "weighted opens, visits, clicks and cart adds per known customer",
        "count", "leading", "higher", _number("points"), _one, _needs_events, over_time="sum"),
    Kpi("campaign_roi", "Return on campaign cost",
        "margin of responses less incentives and contacts, per unit of these costs; not what the "
        "campaigns caused",
        "ratio", "lagging", "higher", _number("campaign_profit"), _number("campaign_cost"),
        _needs_profit, over_time="mean", who="contacted in time for an answer"),
    Kpi("cost_per_acquisition", "Cost per acquisition",
        "cost of contacts to people who had never bought, per one of them who then bought in time",
        "currency", "lagging", "lower", _number("prospect_cost"), _number("acquired"),
        _needs_cost, over_time="mean", who="contacted before ever buying"),
)  # fmt: skip


def declared(settings: ReportSettings) -> tuple[Kpi, ...]:
    """Return the built-in key figures and the project's own."""
    own = tuple(
        Kpi(name, k.title, _spelled(k), k.unit, k.timing, k.better, _number(_column(name, "top")),
            _one if k.denominator is None else _number(_column(name, "bottom")),
            _has_table(k.table), "sum" if k.denominator is None else "mean")
        for name, k in settings.kpis.items()
    )  # fmt: skip
    return (*BUILT_IN, *own)


def _has_table(name: str) -> Needs:
    return lambda shop: "" if name in shop.tables else f"the data hold no {name}"


def _spelled(kpi: OwnKpi) -> str:
    below = kpi.denominator or "known customers"
    return f"sum of {kpi.numerator} over {below}, rows of {kpi.table}"


def _column(name: str, part: str) -> str:
    return f"own_{part}_{name}"


# ------------------------------------------------------------------ the project's own


def own_terms(
    tables: Mapping[str, ibis.Table], settings: ReportSettings
) -> dict[str, tuple[str, dict[str, str]]]:
    """Return each own key figure's table, and its columns as SQL of the rule language.

    Raises
    ------
    ConfigError : an expression names no column of its table, or is no number; all at once.
    """
    found: dict[str, tuple[str, dict[str, str]]] = {}
    faults: list[Fault] = []
    taken = {k.name for k in BUILT_IN}
    for name, kpi in settings.kpis.items():
        where = f"{FILE}: [kpis.{name}]"
        if name in taken:
            faults.append(Fault(where, "there is a key figure of that name", "another name"))
        if kpi.table not in tables:
            continue
        columns = typed(tables[kpi.table])
        terms = {}
        for part, text in (("top", kpi.numerator), ("bottom", kpi.denominator)):
            if text is None:
                continue
            called = "numerator" if part == "top" else "denominator"
            try:
                formula = compile_formula(text, columns, where=where, name=called)
                terms[_column(name, part)] = formula.to_sql()
            except RuleError as wrong:
                faults += wrong.faults
        found[name] = (kpi.table, terms)
    if faults:
        raise ConfigError(faults=faults)
    return found


def own_sums(shop: Shop, when: ibis.Table) -> list[ibis.Table]:
    """Return the project's own sums, one table of (period, customer) for each key figure.

    A row where either expression is unknown counts in neither.
    """
    times = {"transactions": "ordered_at", "events": "event_at", "contacts": "contacted_at",
             "responses": "responded_at"}  # fmt: skip
    made = []
    for table, terms in own_terms(shop.tables, shop.settings).values():
        source, at = shop.tables[table], times[table]
        sums = {column: f"CAST({sql} AS DOUBLE)" for column, sql in terms.items()}
        lines = shop.computed(source, sums)
        for column in terms:
            lines = lines.filter(lines[column].notnull())
        inside = [lines[at] >= when.starts_at, lines[at] < when.ends_at]
        t = when.inner_join(lines.select("customer_id", at, *terms), inside)
        made.append(t.group_by("period", "customer_id").aggregate(**{c: t[c].sum() for c in terms}))
    return made


def typed(table: ibis.Table) -> Mapping[str, Column]:
    """Return a table's columns as the rule language knows them; others cannot be named."""
    kinds: dict[str, ColumnType] = {}
    for name, kind in table.schema().items():
        if kind.is_boolean():
            kinds[name] = "boolean"
        elif kind.is_numeric():
            kinds[name] = "number"
        elif kind.is_string():
            kinds[name] = "string"
        elif kind.is_timestamp():
            kinds[name] = "timestamp"
    return {name: Column(kind) for name, kind in kinds.items()}
