"""Which contacts stood before a response: credit by several rules, side by side.

Every rule describes who was there. None says what would have happened without a contact: only
customers who were held out at random can. Where there is an experiment, it is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ibis
import numpy as np

from nextbest.errors import DataError
from nextbest.measure.kpi.rows import CUSTOMER, NOT_ANSWERS, Period, Shop

__all__ = ["RULES", "Attribution", "Credit", "attribute", "credits", "removal_effects", "touches"]

#: The rules by name, with what each says in one line.
RULES: Final[Mapping[str, str]] = {
    "last_touch": "all to the last contact before the response",
    "linear": "the same to every contact",
    "time_decay": "half as much for every half-life before the response",
    "position": "40% to the first, 40% to the last, the rest to those between",
    "shapley": "each offer's mean contribution over all orders in which offers could join",
    "markov": "by how many responses would be lost if the offer led nowhere",
}
_JOURNEY: Final = "journey"
_START, _RESPONSE, _NOTHING = "start of a journey", "response", "no response"
_ENDS: Final = 0.4


@dataclass(frozen=True)
class Credit:
    """What one offer or channel is credited with.

    Attributes
    ----------
    touches : how often it was a contact on a journey that ended in a response.
    responses, value : credit by rule; over all names they add up to what there was.
    removal_effect : share of responses lost without it, in the chain of contacts.
    """

    name: str
    touches: int
    responses: Mapping[str, float]
    value: Mapping[str, float]
    removal_effect: float

    def to_dict(self) -> dict[str, Any]:
        """Return the credit as plain JSON types."""
        return {**vars(self), "responses": dict(self.responses), "value": dict(self.value)}


@dataclass(frozen=True)
class Attribution:
    """The credits of a period's responses.

    Attributes
    ----------
    by : what a contact is called by: ``offer``, ``offer_type`` or ``channel``.
    responses : those with a contact in the days before them; ``without`` had none.
    several : of these, how many had contacts of more than one name; only there rules can differ.
    journeys : responses, and customers contacted without one.
    """

    by: str
    window_days: int
    responses: int
    without: int
    several: int
    journeys: int
    credits: tuple[Credit, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the credits as plain JSON types."""
        return {**vars(self), "rules": dict(RULES),
                "credits": [c.to_dict() for c in self.credits]}  # fmt: skip


def attribute(shop: Shop, period: Period) -> Attribution:
    """Return the credit of every contact's offer, type or channel for a period's responses.

    Raises
    ------
    DataError : the data hold no contacts, no responses, or none of them belong together.
    """
    settings = shop.settings.attribution
    table, found, without = touches(shop, period)
    if not found:
        raise DataError(
            "attribution", "no response has a contact before it",
            expected=f"contacts in the {settings.window_days} days before a response",
            got=f"{without} responses without",
        )  # fmt: skip
    kept = shop.keep(table)
    made, several, journeys = credits(kept, half_life_days=settings.half_life_days)
    return Attribution(settings.by, settings.window_days, found, without, several, journeys, made)


def touches(shop: Shop, period: Period) -> tuple[ibis.Table, int, int]:
    """Return the contacts of every journey, and how many responses have one, and have none.

    A response's journey is every contact with that customer in the days before it. Customers
    contacted without a response in time have a journey that led nowhere.

    Raises
    ------
    DataError : the data hold no contacts or no responses.
    """
    settings = shop.settings.attribution
    if shop.contacts is None or shop.responses is None:
        missing = "contacts" if shop.contacts is None else "responses"
        raise DataError("attribution", f"the data hold no {missing}", expected="both tables")
    c = _named(shop, shop.contacts, settings.by)
    r = shop.responses
    start, end = (ibis.literal(m, type="timestamp") for m in (period.starts_at, period.ends_at))
    days = ibis.interval(days=settings.window_days)
    answers = r.filter(~r.response_type.isin(NOT_ANSWERS))
    order = [CUSTOMER, "responded_at", "offer_id"]
    answers = answers.select(
        CUSTOMER, "responded_at", "value", answer=ibis.row_number().over(order_by=order)
    )
    inside = answers.filter((answers.responded_at >= start) & (answers.responded_at < end))
    before = inside.inner_join(
        c,
        [inside[CUSTOMER] == c[CUSTOMER], c.contacted_at <= inside.responded_at,
         c.contacted_at > inside.responded_at - days],
    )  # fmt: skip
    led = before.select(
        journey="r" + before.answer.cast("string"), at=before.contacted_at, name=before.name,
        contact=before.contact, value=before.value, responded=ibis.literal(True),
        age_days=(before.responded_at.epoch_seconds() - before.contacted_at.epoch_seconds())
        / 86_400.0,
    )  # fmt: skip
    closed = c.filter((c.contacted_at >= start - days) & (c.contacted_at < end - days))
    led_by = closed.inner_join(
        answers,
        [closed[CUSTOMER] == answers[CUSTOMER], answers.responded_at >= closed.contacted_at,
         answers.responded_at < closed.contacted_at + days],
    )  # fmt: skip
    nowhere = closed.anti_join(led_by.select("contact").distinct(), "contact")
    lost = nowhere.select(
        journey="c" + nowhere[CUSTOMER], at=nowhere.contacted_at, name=nowhere.name,
        contact=nowhere.contact, value=ibis.literal(0.0), responded=ibis.literal(False),
        age_days=ibis.literal(0.0),
    )  # fmt: skip
    number = int(inside.count().to_pyarrow().as_py())
    having = int(led.journey.nunique().to_pyarrow().as_py())
    return led.union(lost), having, number - having


def _named(shop: Shop, contacts: ibis.Table, by: str) -> ibis.Table:
    if by == "channel":
        return contacts.mutate(name=contacts.channel)
    if by == "offer":
        return contacts.mutate(name=contacts.offer_id)
    offers = shop.tables.get("offers")
    if offers is None or "offer_type" not in offers.columns:
        raise DataError("attribution", "the data's offers have no offer_type",
                        expected='attribution.by = "offer" or "channel"')  # fmt: skip
    t = contacts.left_join(offers.select("offer_id", "offer_type"), "offer_id")
    return t.drop("offer_id_right").mutate(name=t.offer_type.fill_null("unknown"))


def credits(
    table: ibis.Table, *, half_life_days: float = 7.0
) -> tuple[tuple[Credit, ...], int, int]:
    """Return every name's credit, the journeys that rules may differ on, and all journeys.

    Parameters
    ----------
    table : one row per contact of a journey: ``journey``, ``at``, ``contact`` (breaks ties of
        time), ``name``, ``age_days`` before the response, ``value`` and ``responded``.

    Shapley is that of the game in which offers S win the journeys whose contacts are all in S
    (Zhao, Mahboobi & Bagheri 2018): each journey is shared equally among its distinct names. The
    chain is of first order (Anderl et al. 2016).
    """
    in_journey = ibis.window(group_by=_JOURNEY)
    ordered = ibis.window(group_by=_JOURNEY, order_by=["at", "contact"])
    t = table.mutate(
        n=table.count().over(in_journey).cast("float64"),
        position=ibis.row_number().over(ordered).cast("float64"),
        previous=table.name.lag().over(ordered),
        following=table.name.lead().over(ordered),
        fading=2.0 ** (-table.age_days / half_life_days),
    )
    first, last = t.position == 0, t.position == t.n - 1
    t = t.mutate(
        last_touch=last.cast("float64"),
        linear=1.0 / t.n,
        time_decay=t.fading / t.fading.sum().over(in_journey),
        position_based=ibis.cases(
            (t.n == 1, 1.0), (t.n == 2, 0.5), (first | last, _ENDS),
            else_=(1 - 2 * _ENDS) / (t.n - 2),
        ),
    )  # fmt: skip
    led = t.filter(t.responded)
    rules = {"last_touch": "last_touch", "linear": "linear", "time_decay": "time_decay",
             "position": "position_based"}  # fmt: skip
    sums: dict[str, Any] = {"touches": led.count()}
    for rule, column in rules.items():
        sums |= {rule: led[column].sum(), f"{rule}_value": (led[column] * led.value).sum()}
    each = {r["name"]: r for r in led.group_by("name").aggregate(**sums).to_pyarrow().to_pylist()}
    sets = led.group_by(_JOURNEY, "name").aggregate(value=led.value.max())
    sets = sets.mutate(share=1.0 / sets.count().over(ibis.window(group_by=_JOURNEY)))
    shapley = sets.group_by("name").aggregate(
        responses=sets.share.sum(), value=(sets.share * sets.value).sum()
    )
    for r in shapley.to_pyarrow().to_pylist():
        each[r["name"]] |= {"shapley": r["responses"], "shapley_value": r["value"]}
    split = sets.filter(sets.share < 1)[_JOURNEY].nunique().to_pyarrow().as_py()
    total = t.group_by("responded").aggregate(n=t[_JOURNEY].nunique()).to_pyarrow().to_pylist()
    effects = removal_effects(_transitions(t))
    whole = sum(r["linear"] for r in each.values())
    worth = sum(r["linear_value"] for r in each.values())
    effect_sum = sum(effects.get(name, 0.0) for name in each)
    for name, row in each.items():
        share = effects[name] / effect_sum if effect_sum else 0.0
        row |= {"markov": share * whole, "markov_value": share * worth}
    made = [
        Credit(
            str(name), int(row["touches"]), {rule: float(row[rule]) for rule in RULES},
            {rule: float(row[f"{rule}_value"]) for rule in RULES}, effects[name],
        )
        for name, row in each.items()
    ]  # fmt: skip
    made.sort(key=lambda c: (-c.responses["linear"], c.name))
    return tuple(made), int(split), sum(int(r["n"]) for r in total)


def _transitions(t: ibis.Table) -> dict[tuple[str, str], float]:
    """Count the steps of all journeys: from one name, or the start, to the next, or an end."""
    end = t.responded.ifelse(_RESPONSE, _NOTHING)
    steps = t.select(before=t.name, after=t.following.fill_null(end))
    first = t.filter(t.position == 0)
    steps = steps.union(first.select(before=ibis.literal(_START), after=first.name))
    counts = steps.group_by("before", "after").aggregate(n=steps.count())
    return {(r["before"], r["after"]): float(r["n"]) for r in counts.to_pyarrow().to_pylist()}


def removal_effects(
    transitions: Mapping[tuple[str, str], float],
    start: str = _START,
    response: str = _RESPONSE,
) -> dict[str, float]:
    """Return the share of responses that a chain loses when one of its states leads nowhere.

    Parameters
    ----------
    transitions : (from, to) -> how often; states that nothing follows are ends.

    1 − P(response without the state) / P(response), the chance from ``start`` (Anderl, Becker, von
    Wangenheim & Schumann 2016).
    """
    states = sorted({a for a, _ in transitions})
    at = {name: i for i, name in enumerate(states)}
    among, wins = np.zeros((len(states), len(states))), np.zeros(len(states))
    for (a, b), count in transitions.items():
        if b in at:
            among[at[a], at[b]] += count
        elif b == response:
            wins[at[a]] += count
    totals = np.zeros(len(states))
    for (a, _), count in transitions.items():
        totals[at[a]] += count
    among, wins = among / totals[:, None], wins / totals

    def chance(gone: int | None) -> float:
        keep = [i for i in range(len(states)) if i != gone]
        inner = among[np.ix_(keep, keep)]
        solved = np.linalg.solve(np.eye(len(keep)) - inner, wins[keep])
        return float(solved[keep.index(at[start])])

    whole = chance(None)
    found = {}
    for name in states:
        if name != start:
            found[name] = 1 - chance(at[name]) / whole if whole > 0 else 0.0
    return found
