"""Snapshots: a training row is what the profile job would have made that day; splits keep time."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from histories import (
    CUSTOMERS,
    DAY,
    OFFERS,
    START,
    World,
    bits,
    past_of,
    random_world,
)
from histories import history as as_history
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nextbest.data.features import KEYS
from nextbest.data.groups import BUILT_IN, demographics, offer, rfm, windows
from nextbest.data.labels import IMMATURE, NoPurchase, Response
from nextbest.data.snapshots import (
    NOT_FEATURES,
    Snapshot,
    build,
    profile,
    rolling_folds,
    time_split,
)
from nextbest.errors import DataError

MOMENTS = [START + d * DAY for d in (30, 121, 200, 290)]


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(31, edges=MOMENTS)


@pytest.fixture(scope="module")
def churn(world: World) -> Snapshot:
    # The moments come unordered, one of them twice.
    moments = [MOMENTS[2], MOMENTS[0], MOMENTS[3], MOMENTS[1], MOMENTS[0]]
    return build(as_history(world), NoPurchase(5, 60), BUILT_IN, moments)


@pytest.fixture(scope="module")
def response(world: World) -> Snapshot:
    return build(as_history(world), Response(20), BUILT_IN)


# --- the same row, whether learned from or served -------------------------------------------------


def rows_of_that_day(world: World, as_of: datetime) -> dict[str, pd.DataFrame]:
    """What the profile job makes of the rows known before a day: nothing else exists yet."""
    then = past_of(world, as_of)
    # Everybody is asked about, also those whose own row came later.
    then["customers"] = [
        r if r in then["customers"] else {"customer_id": r["customer_id"], "known_at": None}
        for r in world["customers"]
    ]
    found = profile(as_history(then), BUILT_IN, as_of, OFFERS)
    return {"customer": found.customers, "offer": found.offers, "pair": found.pairs}


def check_same(snapshot: Snapshot, as_of: datetime, day: dict[str, pd.DataFrame]) -> int:
    rows = snapshot.frame[snapshot.frame.as_of == as_of]
    for entity, frame in day.items():
        names = [f.name for f in snapshot.features if f.entity == entity]
        if not names:
            continue
        keys = list(KEYS[entity])
        expected = rows[keys].merge(frame, on=keys, how="left", validate="many_to_one")
        assert len(expected) == len(rows)
        assert set(expected.columns) == {*keys, *names}
        for name in names:
            assert bits(rows[name]) == bits(expected[name]), (name, as_of)
    return len(rows)


@pytest.mark.parametrize("as_of", MOMENTS)
def test_a_training_row_is_the_profile_of_that_day(
    world: World, churn: Snapshot, as_of: datetime
) -> None:
    assert check_same(churn, as_of, rows_of_that_day(world, as_of)) >= 4
    assert {f.entity for f in churn.features} == {"customer"}


@pytest.mark.parametrize("nth", [3, 9, 15])
def test_a_contacts_row_is_the_profile_of_that_instant(
    world: World, response: Snapshot, nth: int
) -> None:
    as_of = response.frame.as_of.sort_values().unique()[nth].to_pydatetime()
    assert check_same(response, as_of, rows_of_that_day(world, as_of)) >= 1
    assert {f.entity for f in response.features} == {"customer", "offer", "pair"}


# --- what a snapshot holds ------------------------------------------------------------------------


def test_rows_are_sorted_and_stand_once(churn: Snapshot, response: Snapshot) -> None:
    for snapshot, keys in ((churn, ["as_of", "customer_id"]),
                           (response, ["as_of", "customer_id", "offer_id"])):  # fmt: skip
        found = snapshot.frame[keys]
        assert len(found) == len(found.drop_duplicates()) > 10
        assert found.equals(found.sort_values(keys).reset_index(drop=True))


def test_features_stand_apart_from_keys_and_label(churn: Snapshot, response: Snapshot) -> None:
    for snapshot in (churn, response):
        names = [f.name for f in snapshot.features]
        assert list(snapshot.X.columns) == names
        assert not set(names) & set(NOT_FEATURES)
        assert set(snapshot.frame.columns) - set(names) <= set(NOT_FEATURES)
        assert snapshot.frame.label.isin([0.0, 1.0]).all()
        text = {f.name for f in snapshot.features if f.dtype == "string"}
        for name in names:
            column = snapshot.X[name]
            if name in text:
                assert {type(v) for v in column} <= {str, type(None)}
            else:
                assert column.dtype == "float64"
    assert "offer_type" in response.X
    assert set(churn.X.member.dropna()) == {0.0, 1.0}


def test_what_was_left_out_and_what_cannot_be_built_is_told(world: World) -> None:
    less = {n: t for n, t in world.items() if n not in ("events", "offers")}
    history = as_history(less, observed_until=MOMENTS[2])
    found = build(history, NoPurchase(5, 60), [*BUILT_IN[:1], offer], MOMENTS[1:])
    assert [(u.group, u.missing) for u in found.unavailable] == [("offer", ("offers",))]
    assert set(found.left_out) == {IMMATURE}
    assert set(found.frame.as_of) == {MOMENTS[1]}


def test_no_labelled_row_is_an_error_that_says_why(world: World) -> None:
    history = as_history(world, observed_until=MOMENTS[0])
    with pytest.raises(DataError, match=r"no labelled rows.*\d immature.*training.toml"):
        build(history, NoPurchase(5, 60), [rfm], MOMENTS)
    with pytest.raises(DataError, match="no labelled rows"):
        build(history, NoPurchase(5, 60), [rfm], [])


# --- profiles -------------------------------------------------------------------------------------


def test_profiles_hold_everybody_and_every_pair_in_order(world: World) -> None:
    asked = ("o3", "unheard of", "o1")
    found = profile(as_history(world), [rfm, demographics, offer], MOMENTS[1], asked)
    assert list(found.customers.customer_id) == sorted(CUSTOMERS)
    assert tuple(found.offers.offer_id) == asked
    assert list(zip(found.pairs.customer_id, found.pairs.offer_id, strict=True)) == [
        (c, o) for c in sorted(CUSTOMERS) for o in asked
    ]
    unheard = found.offers.set_index("offer_id").loc["unheard of"]
    assert unheard.offer_type is None
    assert np.isnan(unheard.offer_days_left)
    assert not found.offers.set_index("offer_id").loc["o1"].isna().any()
    fay = found.customers.set_index("customer_id").loc["fay"]  # who never bought
    assert np.isnan(fay.days_since_last_purchase)


def test_profiles_without_offers(world: World) -> None:
    found = profile(as_history(world), [windows, offer], MOMENTS[1])
    assert len(found.customers) == len(CUSTOMERS)
    assert (len(found.offers), len(found.pairs)) == (0, 0)
    assert {f.entity for f in found.features} == {"customer"}


# --- splits in time -------------------------------------------------------------------------------


@st.composite
def labelled(draw: st.DrawFn) -> pd.DataFrame:
    """Rows at a few moments; windows of one length, or each with an end of its own."""
    n = draw(st.integers(1, 40))
    days = draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
    same = draw(st.booleans())
    lengths = [10] * n if same else draw(st.lists(st.integers(1, 25), min_size=n, max_size=n))
    frame = pd.DataFrame(
        {
            "as_of": [START + d * DAY for d in days],
            "label_end": [START + (d + k) * DAY for d, k in zip(days, lengths, strict=True)],
            "label": draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n)),
        }
    )
    for name in ("as_of", "label_end"):
        frame[name] = frame[name].astype("datetime64[us]")
    return frame.sort_values("as_of", kind="stable").reset_index(drop=True)


@settings(max_examples=100, deadline=None)
@given(frame=labelled(), day=st.integers(-1, 70))
def test_no_training_label_is_open_at_the_cut(frame: pd.DataFrame, day: int) -> None:
    cut = START + day * DAY
    split = time_split(frame, cut)
    sides = [
        "train" if end <= cut else "test" if at >= cut else "gap"
        for at, end in zip(frame.as_of, frame.label_end, strict=True)
    ]
    assert split.train.tolist() == [s == "train" for s in sides]
    assert split.test.tolist() == [s == "test" for s in sides]
    assert split.in_gap == sides.count("gap")


@settings(max_examples=80, deadline=None)
@given(
    frame=labelled(),
    n_folds=st.integers(1, 5),
    min_share=st.sampled_from([0.0, 0.2, 0.5]),
    min_class=st.integers(0, 6),
)
def test_folds_never_validate_before_their_labels_are_closed(
    frame: pd.DataFrame, n_folds: int, min_share: float, min_class: int
) -> None:
    folds = rolling_folds(frame, n_folds, min_share=min_share, min_class=min_class)
    at, end, y = (frame[c].to_numpy() for c in ("as_of", "label_end", "label"))

    def enough(fit: Any) -> bool:
        rare = min((y[fit] > 0).sum(), (y[fit] == 0).sum())
        return bool(fit.sum() >= min_share * len(frame) and rare >= min_class)

    assert len(folds) <= n_folds
    seen = np.zeros(len(frame), dtype=bool)
    for fit, validate in folds:
        assert validate.any()
        assert enough(fit)
        # All that was closed when the block begins is learned from, and nothing else.
        assert fit.tolist() == (end <= at[validate].min()).tolist()
        # Blocks follow one another and share no moment.
        assert not seen.any() or at[validate].min() > at[seen].max()
        seen |= validate
    assert seen.tolist() == [enough(end <= t) for t in at]


@given(frame=labelled())
def test_folds_are_as_many_as_asked_where_there_are_moments_enough(frame: pd.DataFrame) -> None:
    moments = frame.as_of.nunique()
    assume(moments >= 3)
    assert len(rolling_folds(frame, 3, min_share=0.0, min_class=0)) == 3
    assert rolling_folds(frame, 3, min_share=0.0, min_class=len(frame)) == []
