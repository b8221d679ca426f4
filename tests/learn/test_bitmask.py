"""The compiled trees against LightGBM itself, bit for bit, on rows made to hit every edge."""

from __future__ import annotations

import re

import lightgbm
import numpy as np
import pytest
import small_models as small
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.errors import ArtifactError
from nextbest.learn import artifact, bitmask
from nextbest.learn.components import Steps, Trees
from nextbest.learn.forest import Unsupported, read_forest

COLUMNS = 7
CATEGORY = (1, 4)  # columns that LightGBM splits by category where it is told to
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-35, -1e-35, 1e-36, 1e300, -1.0, -0.5, 2.0**31)


def trained(seed, rows=300, **settings_):
    """A small booster on data with holes, zeros and categories."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, COLUMNS)).round(2)
    x[:, 0] = np.where(rng.random(rows) < 0.5, 0.0, x[:, 0])
    for column in CATEGORY:
        x[:, column] = rng.integers(0, 40, rows)
    x[rng.random(x.shape) < 0.1] = np.nan
    effect = np.nansum(x[:, [0, 2, 3]], axis=1) + np.isin(x[:, 1], range(0, 40, 3)) * 2.0
    effect += np.isnan(x[:, 5]) * 1.0
    y = (effect + rng.normal(size=rows) > 0.5).astype(float)
    given = {
        "objective": "binary", "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 2,
        "min_data_per_group": 2, "cat_smooth": 1, "seed": seed,
    } | settings_  # fmt: skip
    trees = given.pop("trees", 8)
    named = list(CATEGORY) if given.pop("categories", False) else []
    return lightgbm.train(given, lightgbm.Dataset(x, y, categorical_feature=named), trees)


def rows_at_the_edges(booster, n, seed):
    """Rows of thresholds, their neighbours, categories and everything strange."""
    rng = np.random.default_rng(seed)
    forest = read_forest(booster.model_to_string())
    at = forest.nodes.threshold if len(forest.nodes.threshold) else np.zeros(1)
    values = np.concatenate([at, np.nextafter(at, np.inf), np.nextafter(at, -np.inf), SPECIAL])
    x = rng.choice(values, (n, COLUMNS))
    for column in CATEGORY:
        x[:, column] = np.where(rng.random(n) < 0.6, rng.integers(-2, 70, n) + 0.0, x[:, column])
    return x


boosters = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "num_leaves": st.sampled_from([2, 7, 31, 64]),
        "zero_as_missing": st.booleans(),
        "use_missing": st.booleans(),
        "categories": st.booleans(),
        "sigmoid": st.sampled_from([1.0, 0.3]),
        "kind": st.sampled_from(
            [
                {},
                {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
                {"boosting": "dart"},
                {"objective": "regression"},
                {"objective": "regression_l1"},
            ]
        ),
    }
)


@settings(max_examples=40)
@given(boosters, st.integers(0, 1_000), st.permutations([0, 1, 2, 0, 1, 2, 0]))
def test_every_prediction_has_the_bits_of_lightgbm(chosen, seed, source):
    chosen = dict(chosen)
    booster = trained(**chosen.pop("kind"), **chosen)
    forest = read_forest(booster.model_to_string())
    n, m = 9, 17
    rows = rows_at_the_edges(booster, n * m, seed)
    expected = booster.predict(rows, num_threads=1)
    assert bitmask.RowScorer(forest).predict(rows).tobytes() == expected.tobytes()

    # The same columns, some from the customer, some from the offer, some from the pair.
    source = np.array(source)
    joined = rows.reshape(n, m, COLUMNS).copy()
    joined[..., source == 0] = joined[:, :1, source == 0]
    joined[..., source == 1] = joined[:1, :, source == 1]
    positions = [np.where(source == s, np.cumsum(source == s) - 1, -1) for s in range(3)]
    scorer = bitmask.TreeScorer(forest, *(p.astype(np.int32) for p in positions))
    found = scorer.predict(
        joined[:, 0, source == 0],
        scorer.fold(joined[0][:, source == 1]),
        joined[..., source == 2],
    )
    expected = booster.predict(joined.reshape(-1, COLUMNS), num_threads=1)
    assert found.tobytes() == expected.tobytes()


def test_the_property_has_met_every_kind_of_split():
    """Or it would say little: categories, zero as missing, both sides for the unknown."""
    flags = [
        set(read_forest(trained(1, **s).model_to_string()).nodes.meta[:, 2].tolist())
        for s in ({"categories": True}, {"zero_as_missing": True}, {"use_missing": False})
    ]
    assert flags[0] == {0, 1, 4}
    assert flags[1] == {2, 3}
    assert flags[2] == {0, 1}


def test_the_logistic_end_has_the_bits_of_lightgbm_everywhere():
    forest = read_forest(trained(0, trees=1, num_leaves=2).model_to_string())
    text = trained(0, trees=1, num_leaves=2).model_to_string()
    for value in np.random.default_rng(0).normal(0, 12, 300):
        changed = re.sub(r"leaf_value=\S+", f"leaf_value={value!r}".replace("np.float64", ""), text)
        changed = changed.replace(f"({value})", f"{value}")
        booster = lightgbm.Booster(model_str=changed)
        rows = np.zeros((1, COLUMNS))
        expected = booster.predict(rows, num_threads=1)
        found = bitmask.RowScorer(read_forest(changed)).predict(rows)
        assert found.tobytes() == expected.tobytes()
    assert len(forest) == 1


@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 15, 16, 127, 128, 129, 136, 250, 300, 1_000])
def test_sums_of_terms_have_the_bits_of_numpy(k):
    rng = np.random.default_rng(k)
    n, m = 3, 4
    source = rng.integers(0, 3, k)
    places = tuple(np.flatnonzero(source == s).astype(np.int32) for s in range(3))
    joined = rng.normal(size=(n, m, k)) * np.exp(rng.normal(size=(n, m, k)) * 8)
    joined[..., places[0]] = joined[:, :1, places[0]]
    joined[..., places[1]] = joined[:1, :, places[1]]
    found = bitmask.sum_terms(
        joined[:, 0, places[0]], joined[0][:, places[1]], joined[..., places[2]], places
    )
    expected = np.ascontiguousarray(joined.reshape(-1, k)).sum(axis=1)
    assert found.tobytes() == expected.tobytes()


# ------------------------------------------------------------------ what only LightGBM can score


@pytest.mark.parametrize(
    ("settings_", "why"),
    [
        ({"num_leaves": 65}, "has 65 leaves"),
        ({"linear_tree": True}, "linear leaves"),
        ({"objective": "multiclass", "num_class": 3}, "3 outputs"),
        ({"objective": "poisson"}, "objective is 'poisson'"),
        ({"objective": "regression", "reg_sqrt": True}, "objective is 'regression sqrt'"),
    ],
)
def test_other_trees_are_left_to_lightgbm(settings_, why):
    booster = trained(3, rows=900, **settings_)
    with pytest.raises(Unsupported, match=why):
        read_forest(booster.model_to_string())


def test_large_trees_score_as_lightgbm_scores_them():
    booster = trained(3, rows=900, num_leaves=65)
    trees = Trees(booster.model_to_string(), Steps([], COLUMNS), 1.0, COLUMNS)
    rows = np.random.default_rng(0).normal(size=(50, COLUMNS))
    assert trees.scorer_kind == "lightgbm"
    assert trees.over_offers(([0], [1], [2])) is None
    assert trees.predict(rows).tobytes() == booster.predict(rows, num_threads=1).tobytes()


def test_without_numba_lightgbm_gives_the_same_bits(tmp_path, monkeypatch):
    compiled = small.save_blend(tmp_path / "m")
    assert compiled.scorer_kind == "bitmask+linear"
    monkeypatch.setattr(bitmask, "available", lambda: False)
    plain = artifact.load(tmp_path / "m")
    assert plain.scorer_kind == "lightgbm+linear"
    assert plain.score(small.raw()).tobytes() == compiled.score(small.raw()).tobytes()


def test_a_compiled_model_that_misses_its_golden_scores_goes_to_lightgbm(tmp_path, monkeypatch):
    expected = small.save_blend(tmp_path / "m").score(small.raw())
    right = bitmask.RowScorer.predict
    monkeypatch.setattr(bitmask.RowScorer, "predict", lambda self, x: right(self, x) + 1e-3)
    model = artifact.load(tmp_path / "m")
    assert model.scorer_kind == "lightgbm+linear"
    assert model.score(small.raw()).tobytes() == expected.tobytes()


# ------------------------------------------------------------------ damaged text


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"^tree\n", "shrub\n"),
        (r"\nend of trees", ""),
        (r"Tree=1\n", "Tree=7\n"),
        (r"num_leaves=7", "num_leaves=6"),
        (r"num_leaves=7", "num_leaves=x"),
        (r"num_leaves=7", "num_leaves=0"),
        (r"num_cat=0", "num_cat=1"),
        (r"max_feature_idx=6", "max_feature_idx=0"),
        (r"split_feature=\d+", "split_feature=99"),
        (r"split_feature=\d+", "split_feature=-1"),
        (r"split_feature=\d+", "split_feature=1.5"),
        (r"threshold=\S+", "threshold=nan"),
        (r"threshold=\S+", "threshold=__import__('os')"),
        (r"threshold=\S+", "threshold=1_0"),
        (r"decision_type=\d+", "decision_type=77"),
        (r"left_child=\S+", "left_child=0"),
        (r"left_child=\S+", "left_child=-99"),
        (r"left_child=.*\n", ""),
        (r"leaf_value=\S+", "leaf_value=inf"),
        (r"(leaf_value=.*\n)", r"\1\1"),
    ],
)
def test_damaged_text_is_refused(pattern, replacement):
    text = trained(5, num_leaves=7).model_to_string()
    damaged = re.sub(pattern, replacement, text, count=1)
    assert damaged != text
    with pytest.raises(ValueError):
        read_forest(damaged)
    with pytest.raises(ArtifactError, match="cannot be read"), artifact._damage_named("model"):
        Trees(damaged, Steps([], COLUMNS), 1.0, COLUMNS)


@pytest.mark.parametrize("pattern", [r"cat_threshold=\d+", r"cat_boundaries=0 \d+"])
def test_damaged_sets_of_categories_are_refused(pattern):
    text = trained(1, categories=True).model_to_string()
    damaged = re.sub(pattern, lambda found: found[0].split("=")[0] + "=99999999999", text, count=1)
    assert damaged != text
    with pytest.raises(ValueError):
        read_forest(damaged)
