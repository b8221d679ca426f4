"""``serving/report.toml``: what the report measures, and over which days; read and checked whole.

It lies beside offers and policy because the same people answer for it: it may name the
assumptions of ``offers.toml``, so that a margin or a cost is written down once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from nextbest.decide.offers import Identifier
from nextbest.decide.rules import Column, compile_formula, text_faults
from nextbest.decide.tomlfile import Table, check_table, place, read_toml
from nextbest.errors import ConfigError, Fault, RuleError

__all__ = [
    "FILE",
    "AttributionSettings",
    "Costs",
    "CustomerSettings",
    "OwnKpi",
    "PeriodSettings",
    "Rates",
    "ReportSettings",
    "read_report_settings",
    "resolve",
]

FILE: Final = "serving/report.toml"

Days = Annotated[int, Field(ge=1, le=3_660)]
Expression = str | float | int
Dimensions = Annotated[tuple[Identifier, ...], Field(strict=False, max_length=20)]


class PeriodSettings(Table):
    """Which days are reported, and against which."""

    days: Annotated[int, Field(ge=7, le=3_660)] = 91
    baseline: Literal["before", "year before"] | date = "before"
    every: Literal["day", "week", "month"] = "week"
    response_days: Days = 28
    contacts: Literal["auto", "data", "log"] = "auto"


class CustomerSettings(Table):
    """From which days customers are parted, and where the parts end."""

    lookback_days: Days = 182
    hvc_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    churn_days: Days = 60
    at_risk_days: Days = 60
    lapsed_days: Days = 120
    by: Dimensions = ()


class Costs(Table):
    """What things cost and earn, as numbers or as expressions over offers.toml's assumptions."""

    margin_rate: Expression | None = None
    contact: Expression | None = None
    incentive_share: Expression | None = None
    incremental_share: Expression | None = None


class AttributionSettings(Table):
    """Which contacts may have a share in a response, and what a contact is called."""

    window_days: Days = 28
    half_life_days: Annotated[float, Field(gt=0, le=3_660)] = 7.0
    by: Literal["offer", "offer_type", "channel"] = "offer"


class OwnKpi(Table):
    """A key figure of the project's own: sums over rows of one table, one over the other."""

    title: str
    numerator: str
    denominator: str | None = None
    table: Literal["transactions", "events", "contacts", "responses"] = "transactions"
    unit: Literal["share", "currency", "count"] = "share"
    better: Literal["higher", "lower", "either"] = "higher"
    timing: Literal["leading", "lagging"] = "lagging"


class ReportSettings(Table):
    """Everything that ``report.toml`` says; without the file, the defaults."""

    period: PeriodSettings = PeriodSettings()
    customers: CustomerSettings = CustomerSettings()
    costs: Costs = Costs()
    engagement: Mapping[str, Annotated[float, Field(ge=0, le=1_000)]] = Field(
        default={"open": 1.0, "visit": 1.0, "click": 2.0, "cart_add": 3.0}
    )
    attribution: AttributionSettings = AttributionSettings()
    segments: Mapping[str, Mapping[str, str]] = Field(default={})
    kpis: Mapping[str, OwnKpi] = Field(default={})


class Rates(Table):
    """The costs as numbers; None where nobody stated one."""

    margin_rate: float | None = None
    contact: float | None = None
    incentive_share: float = 1.0
    incremental_share: float = 1.0


def read_report_settings(directory: Path) -> ReportSettings:
    """Read ``report.toml`` of the serving room; a project without one gets the defaults.

    Raises
    ------
    ConfigError : anything in it is wrong; every fault at once.
    """
    path = directory / Path(FILE).name
    if not path.exists():
        return ReportSettings()
    where = place(path)
    settings, faults = check_table(ReportSettings, read_toml(path), lambda _field: where)
    if settings is not None:
        faults += _faults(settings, where)
    if faults or settings is None:
        raise ConfigError(faults=faults)
    return settings


def _faults(settings: ReportSettings, where: str) -> list[Fault]:
    found = []
    people = settings.customers
    if people.lapsed_days <= people.at_risk_days:
        found.append(
            Fault(f"{where}: [customers]", "lapsed_days is too small",
                  f"more than at_risk_days, {people.at_risk_days}", str(people.lapsed_days))
        )  # fmt: skip
    for name, rules in settings.segments.items():
        if not rules:
            found.append(Fault(f"{where}: [segments.{name}]", "it has no rule",
                               'at least one, such as "gold" = "spend > 500"'))  # fmt: skip
        for part, text in rules.items():
            found += text_faults(text, f"{where}: [segments.{name}]", f'rule "{part}"')
    for name, kpi in settings.kpis.items():
        for part in ("numerator", "denominator"):
            found += text_faults(getattr(kpi, part), f"{where}: [kpis.{name}]", part)
    return found


def resolve(costs: Costs, assumptions: Mapping[str, Any]) -> Rates:
    """Return the costs as numbers.

    Parameters
    ----------
    assumptions : the named numbers of ``offers.toml``, which an expression may name.

    Raises
    ------
    ConfigError : an expression cannot be read, or gives no usable number; all at once.
    """
    columns = {
        name: Column("number", "assumption", value)
        for name, value in assumptions.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    limits = {"margin_rate": 1.0, "contact": 1e9, "incentive_share": 1.0, "incremental_share": 1.0}
    found: dict[str, float] = {}
    faults: list[Fault] = []
    for name, limit in limits.items():
        given = getattr(costs, name)
        if given is None:
            continue
        where = f"{FILE}: [costs]"
        try:
            formula = compile_formula(str(given), columns, where=where, name=name)
        except RuleError as wrong:
            faults += wrong.faults
            continue
        value = float(formula.evaluate(lambda n: columns[n].value))
        if 0 <= value <= limit:
            found[name] = value
        else:
            faults.append(Fault(where, f"{name} is wrong", f"from 0 to {limit:g}", f"{value:g}"))
    if faults:
        raise ConfigError(faults=faults)
    return Rates(**found)
