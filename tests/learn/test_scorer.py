import numpy as np
import pandas as pd
import pytest
import small_models as small
from scipy.special import logit
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nextbest.errors import ArtifactError, DataError
from nextbest.learn import artifact, bitmask, scorer
from nextbest.learn.estimators import FeatureEncoder, SignedLog1p, blend, linear
from nextbest.learn.scorer import OfferScorer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.save_blend(tmp_path_factory.mktemp("blend") / "m")


def save(tmp_path, estimator, x=None, encoder=None, raw=None):
    return artifact.save(
        tmp_path / "m",
        name="churn",
        kind="probability",
        estimator=estimator.fit(small.encoded() if x is None else x, small.outcome()),
        encoder=encoder or small.encoder(),
        golden_rows=(small.raw() if raw is None else raw).head(30),
    )


def test_a_row_has_the_same_bits_alone_as_in_any_batch(model):
    x = np.tile(model.encode(small.raw()), (4, 1))
    whole = model.score_matrix(x)
    for size in (1, 2, 3, 7, 64, 1_000):
        for start in range(0, min(len(x), 400 * size), size):
            part = model.score_matrix(x[start : start + size])
            assert part.tobytes() == whole[start : start + size].tobytes()


def test_the_layout_in_memory_does_not_change_the_bits(model):
    x = model.encode(small.raw())
    for other in (
        np.asfortranarray(x),
        np.tile(x, (1, 2))[:, : x.shape[1]],
        np.repeat(x, 2, 0)[::2],
    ):
        assert model.score_matrix(other).tobytes() == model.score_matrix(x).tobytes()


def test_many_columns_have_the_same_bits_too(tmp_path):
    # Past 8 and past 128 columns numpy sums in other blocks.
    rng = np.random.default_rng(0)
    for k in (5, 40, 300):
        raw = pd.DataFrame(rng.lognormal(size=(400, k)), columns=[f"c{i}" for i in range(k)])
        encoder = FeatureEncoder().fit(raw)
        x = encoder.transform(raw)
        loaded = save(tmp_path / str(k), linear(), x, encoder, raw)
        whole = loaded.score_matrix(x)
        alone = np.array([loaded.score_matrix(x[i : i + 1])[0] for i in range(400)])
        assert alone.tobytes() == whole.tobytes()


def test_frames_columns_and_single_rows_are_read_alike(model):
    raw = small.raw().head(5)
    expected = model.score(raw)
    shuffled = raw[raw.columns[::-1]].assign(extra=1)
    assert np.array_equal(model.score(shuffled), expected)
    assert np.array_equal(model.score({c: raw[c].to_numpy() for c in raw}), expected)
    rows = [model.score(raw.iloc[i].to_dict())[0] for i in range(5)]
    assert rows == list(expected)
    assert model.scores(raw)["score"].tolist() == list(expected)


def test_an_unknown_and_an_unseen_category_are_both_no_category(model):
    row = small.raw().iloc[0].to_dict()
    unseen, unknown = ({**row, "tier": tier} for tier in ("platinum", None))
    assert model.score(unseen) == model.score(unknown)
    assert model.score({**row, "tier": "gold"}) != model.score({**row, "tier": "basic"})


def test_no_rows_give_no_scores(model):
    assert model.score(small.raw().head(0)).shape == (0,)


def test_a_missing_column_and_a_word_for_a_number_are_named(model):
    with pytest.raises(DataError, match="no age"):
        model.score(small.raw().drop(columns="age"))
    with pytest.raises(DataError, match='"age" is not numeric'):
        model.score(small.raw().assign(age="old"))


def test_a_row_that_cannot_be_scored_is_said_so_and_not_nan(tmp_path):
    raw = small.raw()[["age"]]
    encoder = FeatureEncoder().fit(raw)
    loaded = save(tmp_path, LogisticRegression(), encoder.transform(raw), encoder, raw)
    with pytest.raises(DataError, match="1 of 2 rows have no score, the first is row 1"):
        loaded.score({"age": [30.0, np.nan]})


# ------------------------------------------------------------------ contributions


def test_linear_contributions_add_up_to_the_log_odds(tmp_path):
    loaded = save(tmp_path, linear())
    x = loaded.encode(small.raw())
    sums = loaded.effects(x).sum(axis=1)
    from_average = logit(loaded.score_matrix(x)) - sums
    assert np.ptp(from_average) < 1e-9
    # Standardised on these very rows, so that the effects average to nothing.
    assert np.abs(loaded.effects(x).mean(axis=0)).max() < 1e-9


def test_tree_contributions_add_up_to_the_log_odds(tmp_path):
    loaded = save(tmp_path, small.trees())
    x = loaded.encode(small.raw())
    from_average = logit(loaded.score_matrix(x)) - loaded.effects(x).sum(axis=1)
    assert np.ptp(from_average) < 1e-9


def test_the_true_driver_comes_first_with_the_right_sign(model):
    row = small.raw().iloc[0].to_dict()
    rich, poor = (model.contributions({**row, "spend": s}, top=1)[0] for s in (900.0, 1.0))
    assert rich.feature == poor.feature == "spend"
    assert poor.effect < 0 < rich.effect
    assert rich.value == 900.0


def test_contributions_are_by_raw_column_and_sorted(model):
    found = model.contributions({"spend": None, "age": 30, "tier": "gold", "member": True}, top=9)
    assert {c.feature for c in found} <= set(model.columns)
    assert len({c.feature for c in found}) == len(found)
    strengths = [abs(c.effect) for c in found]
    assert strengths == sorted(strengths, reverse=True)
    assert {c.feature: c.value for c in found}["spend"] is None
    assert len(model.contributions(small.raw().iloc[0].to_dict(), top=2)) == 2


# ------------------------------------------------------------------ customers x offers


TIERS = ("basic", "platinum", "gold", "silvér")  # Another order than in training, and one unseen.


def matrices(n, m, seed=0):
    """Customers hold age and tier, offers spend, pairs member; some of each are unknown."""
    rng = np.random.default_rng(seed)

    def holes(values):
        return np.where(rng.random(values.shape) < 0.15, np.nan, values)

    customers = np.column_stack(
        [rng.normal(size=n), holes(rng.uniform(18, 90, n)), holes(rng.integers(0, 4, n) * 1.0)]
    )
    return customers, holes(rng.lognormal(3, 1, (m, 1))), holes(rng.integers(0, 2, (n, m, 1)) * 1.0)


@pytest.fixture(scope="module")
def offers(model):
    return OfferScorer(model, ["unused", "age", "tier"], ["spend"], ["member"], {"tier": TIERS})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Trees and a regression behind every kind of preprocessing, and trees without any."""
    steps = [SimpleImputer(add_indicator=True), StandardScaler()]
    estimator = blend(
        {
            "plain": small.trees(),
            "trees": make_pipeline(*steps, SignedLog1p(), small.trees()),
            "linear": make_pipeline(SignedLog1p(), *steps, LogisticRegression()),
        },
        [1.0, 2.0, 3.0],
    )
    return save(tmp_path_factory.mktemp("prepared"), estimator)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["model", "prepared"])
def test_propensities_equal_the_scores_of_joined_rows(name, compiled, request, monkeypatch):
    model = request.getfixturevalue(name)
    if not compiled:
        monkeypatch.setattr(bitmask, "available", lambda: False)
    offers = OfferScorer(model, ["unused", "age", "tier"], ["spend"], ["member"], {"tier": TIERS})
    n, m = 37, 6
    customers, offer_rows, pairs = matrices(n, m)
    found = offers.propensity(customers, offer_rows, pairs)
    tier = [None if np.isnan(c) else TIERS[int(c)] for c in customers[:, 2]]
    joined = pd.DataFrame(
        {
            "age": np.repeat(customers[:, 1], m),
            "tier": np.repeat(np.array(tier, dtype=object), m),
            "spend": np.tile(offer_rows[:, 0], n),
            "member": pairs[:, :, 0].ravel(),
        }
    )
    assert found.tobytes() == model.score(joined).reshape(n, m).tobytes()


def test_a_folded_catalogue_gives_the_bits_of_its_offers(offers):
    customers, offer_rows, pairs = matrices(5, 6)
    folded = offers.fold(offer_rows)
    expected = offers.propensity(customers, offer_rows, pairs)
    assert offers.propensity(customers, folded, pairs).tobytes() == expected.tobytes()
    with pytest.raises(DataError, match="matrices do not fit"):
        offers.propensity(customers, folded, pairs[:, :3])
    with pytest.raises(DataError, match="matrices do not fit"):
        offers.fold(offer_rows[:, :0])


def test_one_customer_alone_has_the_bits_of_the_batch(offers):
    customers, offer_rows, pairs = matrices(50, 6)
    together = offers.propensity(customers, offer_rows, pairs)
    for i in range(50):
        alone = offers.propensity(customers[i : i + 1], offer_rows, pairs[i : i + 1])
        assert alone[0].tobytes() == together[i].tobytes()


def test_memory_is_bounded_by_chunks_that_change_nothing(offers, monkeypatch):
    customers, offer_rows, pairs = matrices(50, 6)
    together = offers.propensity(customers, offer_rows, pairs)
    sizes = []
    inner = OfferScorer._uncalibrated
    monkeypatch.setattr(scorer, "_CELLS_PER_CHUNK", 300)
    monkeypatch.setattr(
        OfferScorer,
        "_uncalibrated",
        lambda self, c, o, p: sizes.append(len(c) * len(o) * 6) or inner(self, c, o, p),
    )
    assert offers.propensity(customers, offer_rows, pairs).tobytes() == together.tobytes()
    assert max(sizes) <= 300
    assert sum(sizes) == 50 * 6 * 6


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_nobody_or_nothing_to_offer(offers, n, m):
    assert offers.propensity(*matrices(n, m)).shape == (n, m)


def test_contributions_of_one_pair_equal_those_of_the_joined_row(model, offers):
    customers, offer_rows, pairs = matrices(5, 3, seed=2)
    c, o, p = customers[1], offer_rows[2], pairs[1, 2]
    tier = None if np.isnan(c[2]) else TIERS[int(c[2])]
    row = {"age": c[1], "tier": tier, "spend": o[0], "member": p[0]}
    assert offers.contributions(c, o, p, top=4) == model.contributions(row, top=4)


def test_matrices_of_another_shape_are_refused(offers):
    customers, offer_rows, pairs = matrices(4, 3)
    for bad in [(customers[:, :2], offer_rows, pairs), (customers, offer_rows, pairs[:3])]:
        with pytest.raises(DataError, match="matrices do not fit"):
            offers.propensity(*bad)


@pytest.mark.parametrize(
    ("columns", "categories", "words"),
    [
        ((["age", "tier"], ["spent"], ["member"]), {"tier": TIERS}, 'Did you mean "spent"'),
        ((["age", "tier", "spend"], ["spend"], ["member"]), {"tier": TIERS}, "is in 2 of"),
        ((["age", "tier"], ["spend"], ["member"]), {}, '"tier" is text on one side'),
        (
            (["age", "tier"], ["spend"], ["member"]),
            {"tier": TIERS, "age": ("a",)},
            '"age" is text on one side',
        ),
    ],
)
def test_profiles_that_do_not_fit_the_model_are_refused(model, columns, categories, words):
    with pytest.raises(ArtifactError, match=words):
        OfferScorer(model, *columns, categories)
