"""Segments against brute force; nobody moves by what others do; who moved where."""

from datetime import timedelta
from functools import lru_cache

import kpi_shop as toy
import numpy as np
import pandas as pd
import pytest
from kpi_shop import SETTINGS, UNTIL

from nextbest.errors import ConfigError, DataError
from nextbest.measure.segments import (
    GRID,
    RFM_ORDER,
    assign,
    cut_offs,
    dimensions,
    migration,
    rfm_name,
)

T0, T1 = UNTIL - timedelta(days=56), UNTIL - timedelta(days=28)
RULES = {"basket": {"large": "spend / orders >= 40", "it's small": "spend / orders < 15"}}


def buyers(seed=0, n=300, extra=()):
    draw = np.random.default_rng(seed)
    orders = []
    for i in range(n):
        for day in draw.uniform(60, 168, draw.poisson(5)):
            orders.append((f"c{i:03}", float(np.floor(day)), float(draw.gamma(2, 15)) + 1))
    people = {f"c{i:03}": {"region": "ab"[i % 2]} for i in range(n)}
    return people, orders + list(extra)


@lru_cache(maxsize=4)
def assigned(seed=0, extra=()):
    settings = SETTINGS.model_copy(update={"segments": RULES})
    shop = toy.shop(toy.history(*buyers(seed, extra=extra)), settings)
    cuts = cut_offs(shop, T0)
    return assign(shop, cuts, (T0, T1, UNTIL)).to_pandas(), cuts, shop


def features(seed, moment):
    """Recency, frequency and money of the look-back days, by pandas."""
    _, orders = buyers(seed)
    t = pd.DataFrame(orders, columns=["c", "day", "amount"])
    t["at"] = [toy.at(d) for d in t["day"]]
    t = t[(t["at"] < moment) & (t["at"] >= moment - timedelta(days=42))]
    g = t.groupby("c")
    age = (moment - g["at"].max()).dt.total_seconds() / 86_400
    return pd.DataFrame({"r": age, "f": g.size(), "m": g["amount"].sum()})


def test_every_pair_of_scores_has_one_name():
    names = {name for row in GRID.values() for name in row}
    assert set(GRID) == {1, 2, 3, 4, 5} and all(len(row) == 5 for row in GRID.values())
    assert names | {"lost", "never bought"} == set(RFM_ORDER)
    assert rfm_name(5, 5, 5) == "champions" and rfm_name(1, 5, 5) == "cannot lose"
    assert rfm_name(1, 1, 1) == "hibernating" and rfm_name(5, 1, 1) == "new"
    assert rfm_name(4, 4, 5) == "loyal" and rfm_name(2, 2, 4) == "at risk"
    assert rfm_name(5, 3, 4) == "champions"  # the mean of the two rounds up


@pytest.mark.parametrize("moment", [T0, T1, UNTIL])
def test_scores_and_segments_are_those_of_brute_force(moment):
    table, _, _ = assigned()
    then, now = features(0, T0), features(0, moment)
    cuts = {k: np.quantile(then[k], [0.2, 0.4, 0.6, 0.8]) for k in "rfm"}
    score = {k: 1 + np.searchsorted(cuts[k], now[k], side="left") for k in "fm"}
    score["r"] = 5 - np.searchsorted(cuts["r"], now["r"], side="left")
    wanted = [rfm_name(*s) for s in zip(score["r"], score["f"], score["m"], strict=True)]
    ours = table[table["moment"] == moment].set_index("customer_id")
    assert list(ours.loc[now.index, "rfm_segment"]) == wanted
    assert list(ours.loc[now.index, "r_score"]) == list(score["r"])
    rest = ours.drop(now.index)
    assert set(rest["rfm_segment"]) <= {"lost", "never bought"}
    high = now["m"] / 2 > np.quantile(then["m"] / 2, 0.6)
    assert list(ours.loc[now.index, "value_tier"] == "high") == list(high)


def test_fifths_are_fifths_at_the_baseline():
    table, cuts, _ = assigned()
    scored = table[(table["moment"] == T0) & table["r_score"].notna()]
    assert len(scored) == cuts.customers
    assert scored["m_score"].value_counts(normalize=True).between(0.19, 0.21).all()


def test_nobody_moves_by_what_others_do():
    """All others buy a great deal after the baseline's start; an idle customer stays."""
    extra = tuple((f"c{i:03}", 115.0 + i % 20, 500.0) for i in range(100, 300))
    plain, other = (assigned(extra=e)[0].set_index(["moment", "customer_id"]) for e in ((), extra))
    idle = [f"c{i:03}" for i in range(100)]
    columns = ["rfm_segment", "value_tier", "lifecycle", "basket"]
    for moment in (T0, T1, UNTIL):
        both = [t.loc[moment].loc[t.loc[moment].index.isin(idle), columns] for t in (plain, other)]
        pd.testing.assert_frame_equal(*(b.sort_index() for b in both))
    assert not plain.loc[UNTIL, "value_tier"].equals(other.loc[UNTIL, "value_tier"])


def test_lifecycle_by_hand():
    """At day 168 with 20 days to at risk and 40 to lapsed."""
    lives = {
        "new": [150, 160], "active": [60, 100, 130, 160], "won back": [60, 155],
        "long back": [60, 130, 160], "at risk": [60, 100, 140], "lapsed": [60, 120],
    }  # fmt: skip
    people, orders = buyers()
    for name, days in lives.items():
        people[name] = {"region": "a"}
        orders += [(name, float(d), 10.0) for d in days]
    people["never"] = {"region": "a"}
    shop = toy.shop(toy.history(people, orders, [("never", "book", 150.0)]))
    table = assign(shop, cut_offs(shop, T0), [UNTIL]).to_pandas().set_index("customer_id")
    found = {name: table.loc[name, "lifecycle"] for name in (*lives, "never")}
    assert found == {
        "new": "new", "active": "active", "won back": "won back", "long back": "active",
        "at risk": "at risk", "lapsed": "lapsed", "never": "never bought",
    }  # fmt: skip


def test_rules_and_columns_part_customers_too():
    table, _, shop = assigned()
    assert dimensions(shop) == ("value_tier", "rfm_segment", "lifecycle", "region", "basket")
    last = table[table["moment"] == UNTIL].set_index("customer_id")
    now = features(0, UNTIL)
    per_order = now["m"] / now["f"]
    large = set(per_order[per_order >= 40].index)
    assert set(last.index[last["basket"] == "large"]) == large
    small = set(per_order[per_order < 15].index)
    assert set(last.index[last["basket"] == "it's small"]) == small
    assert set(last["region"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"segments": {"x": {"a": "spned > 1"}}}, 'Did you mean "spend"'),
        ({"segments": {"x": {"a": "spend"}}}, "a boolean"),
        ({"segments": {"region": {"a": "spend > 1"}}}, "two ways"),
        ({"customers": SETTINGS.customers.model_copy(update={"by": ("regio",)})}, "region"),
    ],
)
def test_what_cannot_part_customers_is_refused(update, said):
    shop = toy.shop(assigned()[2].history, SETTINGS.model_copy(update=update))
    with pytest.raises(ConfigError, match=said):
        assign(shop, cut_offs(shop, T0), [T0])


def test_data_that_begin_too_late_are_refused():
    with pytest.raises(DataError, match="begin too late"):
        cut_offs(assigned()[2], UNTIL - timedelta(days=80))


def test_migration_against_a_merge():
    table, _, shop = assigned()
    kept = shop.keep(assign(shop, assigned()[1], (T1, UNTIL)))
    found = migration(kept, "value_tier", T1, UNTIL)
    a, b = (table[table["moment"] == m].set_index("customer_id") for m in (T1, UNTIL))
    both = b.join(a, lsuffix="_after", rsuffix="_before")
    both["value_tier_before"] = both["value_tier_before"].fillna("not yet known")
    wanted = both.groupby(["value_tier_before", "value_tier_after"]).agg(
        n=("value_after", "size"), before=("value_before", "sum"), after=("value_after", "sum")
    )
    assert {(m.before, m.after): m.customers for m in found} == wanted["n"].to_dict()
    for m in found:
        row = wanted.loc[(m.before, m.after)]
        assert (m.value_before, m.value_after) == pytest.approx((row["before"], row["after"]))
    assert sum(m.customers for m in found) == len(b)
