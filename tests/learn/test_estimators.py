"""The pieces models are made of: numbers pass, text spreads out, the unknown stays unknown."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from nextbest.errors import DataError
from nextbest.learn.estimators import (
    MAX_CATEGORIES,
    FeatureEncoder,
    SignedLog1p,
    blend,
    linear,
)

UNKNOWN = [None, np.nan, pd.NA, float("nan")]


# --- long tails -----------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e12, 1e12), min_size=1))
def test_long_tails_are_compressed_on_both_sides(values: list[float]) -> None:
    x = np.array(values)[:, None]
    found = SignedLog1p().fit(x).transform(x)
    back = np.sign(found) * np.expm1(np.abs(found))
    np.testing.assert_allclose(back, x, rtol=1e-9, atol=1e-300)
    np.testing.assert_array_equal(SignedLog1p().fit(x).transform(-x), -found)
    order = np.argsort(x[:, 0], kind="stable")
    assert (np.diff(found[order, 0]) >= 0).all()


def test_the_unknown_and_the_small_are_left_alone() -> None:
    found = SignedLog1p().fit_transform([[np.nan, 0.0, 1e-9], [np.e - 1, 1 - np.e, -1e-9]])
    np.testing.assert_allclose(found, [[np.nan, 0.0, 1e-9], [1.0, -1.0, -1e-9]], rtol=1e-8)


# --- encoding -------------------------------------------------------------------------------------


def training() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "spend": [1.5, np.nan, 3.0, 4.0, 0.0],
            "visits": [1, 2, 3, 4, 5],
            "member": [True, False, True, True, False],
            "trial": pd.Series([True, None, False, np.nan, True], dtype=object),
            "price": pd.Series([Decimal("1.5"), None, Decimal(2), None, None], dtype=object),
            "tier": ["gold", None, "silvér", "gold", np.nan],
            "nothing": pd.Series([None] * 5, dtype=object),
        }
    )


def test_what_each_column_becomes() -> None:
    encoder = FeatureEncoder().fit(training())
    assert encoder.columns_ == list(training().columns)
    assert {c for c, kind in encoder.kinds_.items() if kind == "category"} == {"tier", "nothing"}
    assert encoder.vocabulary_ == {"tier": ["gold", "silvér"], "nothing": []}
    assert encoder.feature_names_ == [
        "spend", "visits", "member", "trial", "price", "tier=gold", "tier=silvér",
    ]  # fmt: skip
    nan = np.nan
    np.testing.assert_array_equal(
        encoder.transform(training()),
        [
            [1.5, 1, 1, 1, 1.5, 1, 0],
            [nan, 2, 0, nan, nan, 0, 0],
            [3.0, 3, 1, 0, 2.0, 0, 1],
            [4.0, 4, 1, nan, nan, 1, 0],
            [0.0, 5, 0, 1, nan, 0, 0],
        ],
    )


@pytest.mark.parametrize("unknown", UNKNOWN, ids=repr)
def test_the_unknown_is_nan_or_no_category(unknown: Any) -> None:
    encoder = FeatureEncoder().fit(training())
    row = {c: [unknown] for c in encoder.columns_}
    found = encoder.transform(pd.DataFrame(row, dtype=object))
    np.testing.assert_array_equal(found, [[np.nan] * 5 + [0.0, 0.0]])


@pytest.mark.parametrize("value", ["bronze", "Gold", "gold ", "", "nan", "None", 3])
def test_a_value_not_seen_in_training_is_no_category(value: Any) -> None:
    encoder = FeatureEncoder().fit(training()[["tier"]])
    np.testing.assert_array_equal(encoder.transform({"tier": [value]}), [[0.0, 0.0]])


@pytest.mark.parametrize("kind", [object, "string", "str", "category"])
def test_text_of_every_kind_is_the_same_text(kind: Any) -> None:
    texts = ["b", None, "a", "b"]
    encoder = FeatureEncoder().fit(pd.DataFrame({"t": pd.Series(texts, dtype=kind)}))
    assert encoder.vocabulary_ == {"t": ["a", "b"]}
    expected = [[0, 1], [0, 0], [1, 0], [0, 1]]
    for other in (object, "string", "str", "category"):
        asked = pd.DataFrame({"t": pd.Series(texts, dtype=other)})
        np.testing.assert_array_equal(encoder.transform(asked), expected)
    np.testing.assert_array_equal(encoder.transform({"t": texts}), expected)


def test_codes_that_mix_text_and_numbers_are_text() -> None:
    frame = pd.DataFrame({"store": pd.Series(["12", 12, 7, "x", None], dtype=object)})
    encoder = FeatureEncoder().fit(frame)
    assert encoder.vocabulary_ == {"store": ["12", "7", "x"]}
    assert encoder.transform(frame).sum(axis=0).tolist() == [2, 1, 1]


def test_only_the_commonest_values_have_a_column_and_ties_go_by_name() -> None:
    often = [f"v{i:02}" for i in range(MAX_CATEGORIES - 1)]
    values = [v for v in often for _ in range(3)] + ["tie b", "tie a"]
    encoder = FeatureEncoder().fit(pd.DataFrame({"t": values}))
    assert encoder.vocabulary_["t"] == sorted([*often, "tie a"])
    reverse = FeatureEncoder().fit(pd.DataFrame({"t": values[::-1]}))
    assert reverse.vocabulary_ == encoder.vocabulary_


def test_the_order_of_columns_and_more_of_them_do_not_matter() -> None:
    encoder, frame = FeatureEncoder().fit(training()), training()
    shuffled = frame[frame.columns[::-1]].assign(more="x")
    np.testing.assert_array_equal(encoder.transform(shuffled), encoder.transform(frame))
    mapping = {c: list(frame[c]) for c in frame}
    np.testing.assert_array_equal(encoder.transform(mapping), encoder.transform(frame))


def test_a_row_alone_is_the_row_in_the_batch() -> None:
    encoder, frame = FeatureEncoder().fit(training()), training()
    together = encoder.transform(frame)
    for i in range(len(frame)):
        alone = encoder.transform(frame.iloc[[i]])
        assert alone.tobytes() == together[i : i + 1].tobytes()


def test_json_gives_back_the_same_encoder() -> None:
    encoder = FeatureEncoder().fit(training())
    again = FeatureEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert vars(again) == vars(encoder)
    assert again.transform(training()).tobytes() == encoder.transform(training()).tobytes()


def test_missing_columns_are_named() -> None:
    encoder = FeatureEncoder().fit(training())
    with pytest.raises(DataError, match=r"lacks 2 of the model's columns.*no spend, tier\."):
        encoder.transform(training().drop(columns=["tier", "spend"]))
    with pytest.raises(DataError, match=r"lacks 7 of .*no spend, visits, member, trial, price\."):
        encoder.transform({})


@pytest.mark.parametrize("value", ["much", "1,5", object()])
def test_what_is_no_number_is_refused_by_name(value: Any) -> None:
    encoder = FeatureEncoder().fit(training()[["spend"]])
    with pytest.raises(DataError, match='column "spend" is not numeric'):
        encoder.transform({"spend": [1.0, value]})


# --- estimators -----------------------------------------------------------------------------------


def two_classes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.lognormal(1, 1, (300, 3))
    y = (rng.random(300) < 1 / (1 + np.exp(2 - np.log1p(x[:, 0]) * 2))).astype(int)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, y


def test_linear_is_a_logistic_regression_on_log_amounts() -> None:
    x, y = two_classes()
    logs = np.log1p(x)
    logs = np.where(np.isnan(logs), np.nanmedian(logs, axis=0), logs)
    logs = (logs - logs.mean(axis=0)) / logs.std(axis=0)
    expected = LogisticRegression(C=0.5, max_iter=2_000).fit(logs, y).predict_proba(logs)
    np.testing.assert_allclose(linear(C=0.5).fit(x, y).predict_proba(x), expected, atol=1e-6)


def test_a_column_that_nobody_knows_does_not_stop_a_linear_model() -> None:
    x, y = two_classes()
    more = np.column_stack([x, np.full(len(x), np.nan)])
    found = linear().fit(more, y).predict_proba(more)
    np.testing.assert_allclose(found, linear().fit(x, y).predict_proba(x), atol=1e-6)


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_a_blend_is_the_weighted_mean_of_its_members(weights: list[float] | None) -> None:
    x, y = two_classes()
    members = {"weak": linear(C=1e-4), "strong": linear(C=10.0)}
    found = blend(members, weights).fit(x, y).predict_proba(x)[:, 1]
    alone = [clone(m).fit(x, y).predict_proba(x)[:, 1] for m in members.values()]
    np.testing.assert_allclose(found, np.average(alone, axis=0, weights=weights), rtol=1e-12)
    assert np.abs(alone[0] - alone[1]).max() > 0.1
