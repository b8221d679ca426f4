"""Off-policy evaluation against what we did not write: enumeration, known truth, algebra."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logged_world import World, explorer, tabular, uniform
from scipy import stats
from sklearn.linear_model import LinearRegression, LogisticRegression

from nextbest.errors import ConfigError, DataError, FitError
from nextbest.learn.metrics import Metric
from nextbest.measure import ope
from nextbest.measure.ope.estimators import (
    MEANINGS,
    Estimate,
    clip_level,
    estimate,
    row_values,
    switch_threshold,
)
from nextbest.measure.ope.intervals import interval, largest_share
from nextbest.measure.ope.log import LoggedPolicy
from nextbest.measure.ope.overlap import effective
from nextbest.measure.ope.reward import folds, predict
from nextbest.measure.ope.verdict import judge

N = 2_000
REPLICATIONS = 1_000


# ------------------------------------------------------------------ known truth


def test_the_expectation_over_every_possible_log_is_the_truth():
    """Two decisions, three actions: all 9 logs, weighted by their probability, by brute force."""
    logging = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    target = np.array([[0.2, 0.8, 0.0], [0.6, 0.0, 0.4]])
    reward = np.array([[3.0, -1.0, 2.0], [0.5, 4.0, 1.0]])
    q = np.array([[9.0, -7.0, 1.0], [2.0, 2.0, -3.0]])  # A wrong model: dr must not mind.
    rows = np.arange(2)
    expected: dict[str, float] = defaultdict(float)
    for actions in itertools.product(range(3), repeat=2):
        a = np.array(actions)
        p = logging[rows, a]
        log = LoggedPolicy(rows, ("x", "y"), a, reward[rows, a], p, probabilities=logging)
        for name in ("ips", "dr"):
            expected[name] += float(p.prod() * row_values(log, target, q)[name].mean())
    truth = float((target * reward).sum(axis=1).mean())
    assert expected["ips"] == pytest.approx(truth, rel=1e-12)
    assert expected["dr"] == pytest.approx(truth, rel=1e-12)


@pytest.fixture(scope="module", params=["explorer", "uniform, four decisions each"])
def replicated(request: pytest.FixtureRequest) -> tuple[World, dict[str, list[Estimate]]]:
    world = explorer() if request.param == "explorer" else uniform(per_customer=4)
    fold = folds(np.arange(N) // world.per_customer)
    found: dict[str, list[Estimate]] = {name: [] for name in MEANINGS}
    for seed in range(REPLICATIONS):
        log, target, kind = world.draw(seed, N)
        for name, e in estimate(log, target, tabular(log, kind, fold)).items():
            found[name].append(e)
    return world, found


@pytest.mark.parametrize("name", MEANINGS)
def test_unbiased_over_replications(replicated, name):
    world, found = replicated
    values = np.array([e.value.value for e in found[name]])
    gaps = np.array([e.difference.value for e in found[name]])
    assert abs(stats.ttest_1samp(values, world.truth).statistic) < 3
    assert abs(stats.ttest_1samp(gaps, world.truth - world.logged_truth).statistic) < 3


@pytest.mark.parametrize("name", MEANINGS)
def test_the_interval_holds_the_truth_in_93_to_97_of_100_replications(replicated, name):
    world, found = replicated
    inside = [e.value.low <= world.truth <= e.value.high for e in found[name]]
    gap = world.truth - world.logged_truth
    inside_gap = [e.difference.low <= gap <= e.difference.high for e in found[name]]
    assert 0.93 <= np.mean(inside) <= 0.97
    assert 0.93 <= np.mean(inside_gap) <= 0.97


def test_the_interval_of_a_skewed_mean_errs_equally_often_on_both_sides():
    """Lognormal amounts: plain t misses above five times as often as below."""
    rng = np.random.default_rng(0)
    clusters, truth = np.arange(300), float(np.exp(0.5))
    ours, plain = np.zeros(2), np.zeros(2)
    for _ in range(1_500):
        rows = rng.lognormal(size=300)
        m = interval(rows, clusters)
        ours += truth < m.low, truth > m.high
        low, high = stats.t.interval(0.95, 299, rows.mean(), stats.sem(rows))
        plain += truth < low, truth > high
    assert plain[1] > 3 * plain[0]
    assert ours[1] < 2 * ours[0]
    assert 0.93 <= 1 - ours.sum() / 1_500 <= 0.97


def test_the_interval_of_a_symmetric_mean_is_students():
    rows = np.tile([-2.0, -1.0, 0.0, 1.0, 2.0], 400)
    m = interval(rows, np.arange(rows.size))
    low, high = stats.t.interval(0.95, rows.size - 1, 0.0, stats.sem(rows))
    assert (m.low, m.high) == pytest.approx((low, high), rel=1e-9)


def test_rows_of_one_customer_count_once():
    rows = np.random.default_rng(1).normal(size=200)
    alone = interval(rows, np.arange(200))
    five_times = interval(np.repeat(rows, 5), np.repeat(np.arange(200), 5))
    assert (five_times.low, five_times.high) == pytest.approx((alone.low, alone.high), rel=1e-9)


def test_one_customer_says_nothing_about_chance():
    m = interval(np.array([1.0, 2.0]), np.zeros(2, dtype=np.intp))
    assert (m.low, m.high) == (-np.inf, np.inf)
    same = interval(np.ones(4), np.arange(4))
    assert (same.low, same.high) == (1, 1)


# ------------------------------------------------------------------ the estimators' algebra


def small_log(seed: int, n: int = 60, m: int = 3) -> tuple[LoggedPolicy, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logging = rng.dirichlet(np.ones(m + 1), n) * 0.8 + 0.2 / (m + 1)
    action = np.array([rng.choice(m + 1, p=p) for p in logging])
    log = LoggedPolicy(
        rng.integers(0, n // 3, n),
        tuple(f"o{j}" for j in range(m)),
        action,
        rng.gamma(1.0, 3.0, n) * (rng.random(n) < 0.5),
        logging[np.arange(n), action],
        probabilities=logging,
    )
    return log, rng.dirichlet(np.ones(m + 1), n), rng.normal(2, 1, (n, m + 1))


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_the_logging_policy_itself_is_worth_what_it_earned(seed):
    log, _, q = small_log(seed)
    assert log.probabilities is not None
    found = estimate(log, log.probabilities, q)
    for name in ("ips", "snips", "clipped_ips"):
        assert found[name].value.value == pytest.approx(log.reward.mean(), rel=1e-9, abs=1e-12)
        d = found[name].difference
        assert (d.value, d.low, d.high) == pytest.approx((0, 0, 0), abs=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.1, 1_000))
def test_another_currency_scales_everything(seed, rate):
    log, target, q = small_log(seed)
    plain = estimate(log, target, q)
    paid = dataclasses.replace(log, reward=log.reward * rate)
    for name, e in estimate(paid, target, q * rate).items():
        for a, b in ((e.value, plain[name].value), (e.difference, plain[name].difference)):
            scaled = [rate * v for v in (b.value, b.low, b.high)]
            assert [a.value, a.low, a.high] == pytest.approx(scaled, rel=1e-6, abs=1e-9 * rate)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.05, 1))
def test_weights_scaled_alike_leave_snips_and_scale_ips(seed, factor):
    """A log whose probabilities are all too large by one factor."""
    log, target, q = small_log(seed)
    low = dataclasses.replace(
        log, selection_probability=log.selection_probability * factor, probabilities=None
    )
    plain, scaled = row_values(log, target, q), row_values(low, target, q)
    assert scaled["snips"].mean() == pytest.approx(plain["snips"].mean(), rel=1e-9)
    assert scaled["ips"].mean() == pytest.approx(plain["ips"].mean() / factor, rel=1e-9)
    assert effective(low.weights(target)) == pytest.approx(effective(log.weights(target)))


def shuffled(log: LoggedPolicy, order: np.ndarray) -> LoggedPolicy:
    arrays = {
        f.name: v[order]
        for f in dataclasses.fields(log)
        if isinstance(v := getattr(log, f.name), np.ndarray)
    }
    return dataclasses.replace(log, **arrays)


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_the_order_of_rows_does_not_matter(seed):
    log, target, _ = small_log(seed)
    order = np.random.default_rng(seed).permutation(len(log))
    model = LinearRegression()
    first = estimate(log, target, predict(log, model))
    other = shuffled(log, order)
    second = estimate(other, target[order], predict(other, model))
    for name, e in first.items():
        a, b = e.value, second[name].value
        assert [a.value, a.low, a.high] == pytest.approx([b.value, b.low, b.high], rel=1e-6)


@settings(max_examples=4)
@given(st.integers(0, 10_000))
def test_an_offer_that_nobody_chooses_changes_nothing(seed):
    log, target, _ = small_log(seed, n=300)
    assert log.probabilities is not None

    def widened(matrix: np.ndarray) -> np.ndarray:
        return np.insert(matrix, len(log.offer_ids), 0.0, axis=1)

    more = dataclasses.replace(
        log,
        offer_ids=(*log.offer_ids, "never"),
        action=np.where(log.action == 3, 4, log.action),
        probabilities=widened(log.probabilities),
    )
    one = ope.evaluate(log, target, limits=LOOSE).to_dict()
    two = ope.evaluate(more, widened(target), limits=LOOSE).to_dict()
    assert one["estimates"] == two["estimates"]
    assert one["verdict"] == two["verdict"]


LOOSE = ope.Limits(
    customers=1,
    effective_sample_size=1,
    effective_per_offer=0,
    unsupported_share=1,
    thin_share=1,
    weight_errors=1e9,
)


def test_a_perfect_model_leaves_nothing_to_correct():
    log, target, q = small_log(5)
    exact = dataclasses.replace(log, reward=q[np.arange(len(log)), log.action])
    found = row_values(exact, target, q)
    direct = (target * q).sum(axis=1)
    for name in ("dr", "dm", "switch_dr"):
        assert found[name] == pytest.approx(direct)


def test_weights_are_cut_at_the_root_of_n_and_the_interval_allows_for_it():
    log, target, q = small_log(2)
    rare = dataclasses.replace(
        log,
        selection_probability=np.where(np.arange(len(log)) == 0, 1e-4, log.selection_probability),
        probabilities=None,
    )
    target = np.full_like(target, 0.25)
    w = rare.weights(target)
    cut = clip_level(len(log))
    assert cut == pytest.approx(np.sqrt(60))
    rows = row_values(rare, target, q)["clipped_ips"]
    assert rows == pytest.approx(np.minimum(w, cut) * rare.reward)
    lost = (w - np.minimum(w, cut)).mean()
    plain = interval(rows, rare.clusters)
    found = estimate(rare, target, q)["clipped_ips"].value
    assert found.low == pytest.approx(plain.low)
    assert found.high == pytest.approx(plain.high + lost * rare.reward.max())


@pytest.mark.parametrize("full", [True, False])
def test_the_switch_threshold_has_the_least_risk_of_the_papers_rule(full):
    """Formula of section 3.2 written anew, row by row."""
    log, target, q = small_log(8, n=200)
    chosen = np.arange(len(log)), log.action
    w = target[chosen] / log.selection_probability
    if not full:
        log = dataclasses.replace(log, probabilities=None)

    def risk(threshold: float) -> float:
        y, above = [], []
        for i in range(len(log)):
            kept = w[i] * (log.reward[i] - q[i, log.action[i]]) if w[i] <= threshold else 0.0
            y.append(target[i] @ q[i] + kept)
            if full:
                ratio = target[i] / log.probabilities[i]
                above.append(target[i][ratio > threshold].sum())
            else:
                above.append(w[i] if w[i] > threshold else 0.0)
        return np.var(y) / len(y) + (np.abs(log.reward).max() * np.mean(above)) ** 2

    low, high = np.quantile(w, [0.05, 0.95])
    grid = [*np.exp(np.linspace(np.log(low), np.log(high), 21)), w.max()]
    chosen_at = switch_threshold(log, target, q)
    assert min(abs(chosen_at - g) for g in grid) < 1e-9
    assert risk(chosen_at) == pytest.approx(min(risk(g) for g in grid), rel=1e-9)


def test_switching_helps_where_a_few_weights_are_enormous():
    """Rare logged choices and a good model: switch_dr has a fraction of dr's error."""
    logging, wanted = np.array([[0.9996, 0.0004]]), np.array([[0.98, 0.02]])
    world = World(np.full((1, 2), 0.5), np.ones((1, 2)), logging, wanted, np.ones(1))
    errors = defaultdict(list)
    for seed in range(400):
        log, target, _ = world.draw(seed, 200)
        for name, rows in row_values(log, target, np.full((200, 2), 0.5)).items():
            errors[name].append((rows.mean() - world.truth) ** 2)
    assert np.mean(errors["switch_dr"]) < 0.75 * np.mean(errors["dr"])


# ------------------------------------------------------------------ the reward model


def test_a_customer_has_one_fold_and_folds_are_even():
    ids = np.array([f"c{i % 97}" for i in range(970)])
    fold = folds(ids)
    assert all(len(set(fold[ids == c])) == 1 for c in set(ids))
    sizes = np.bincount(fold[:97])
    assert sizes.max() - sizes.min() <= 1
    order = np.random.default_rng(0).permutation(970)
    assert (folds(ids[order]) == fold[order]).all()


def test_nobodys_own_reward_is_in_their_prediction():
    log, _, _ = small_log(3, n=300)
    before = predict(log)
    mine = log.customer_ids == log.customer_ids[0]
    spoilt = dataclasses.replace(log, reward=np.where(mine, 1e6, log.reward))
    after = predict(spoilt)
    assert after[mine] == pytest.approx(before[mine])
    assert not np.allclose(after[~mine], before[~mine])


@pytest.mark.parametrize("binary", [True, False])
def test_the_model_in_closed_form(binary):
    """Without context a linear model is the mean reward of each action in the other folds."""
    log, _, kind = explorer().draw(0, 1_000)
    reward = (log.reward > 0).astype(float) if binary else log.reward
    log = dataclasses.replace(log, reward=reward, context=None)
    model = LogisticRegression(C=1e6, max_iter=1_000) if binary else LinearRegression()
    expected = tabular(log, np.zeros_like(kind), folds(log.customer_ids))
    assert predict(log, model) == pytest.approx(expected, abs=2e-3)


def test_the_default_model_finds_what_the_context_says():
    log, _, kind = uniform().draw(1, 6_000)
    q = predict(log)
    means = np.array([q[kind == k].mean(axis=0) for k in range(3)])
    assert np.corrcoef(means.ravel(), uniform().mean.ravel())[0, 1] > 0.9
    assert not np.isnan(predict(dataclasses.replace(log, context=log.context * np.nan))).any()


def test_a_model_that_cannot_be_fitted_is_said_so():
    log, target, _ = uniform().draw(0, 500)
    with pytest.raises(FitError, match="reward model: LogisticRegression could not"):
        ope.evaluate(dataclasses.replace(log, reward=log.reward + 0.5), target,
                     model=LogisticRegression())  # fmt: skip


# ------------------------------------------------------------------ refusals


def faults_of(log: LoggedPolicy, target: np.ndarray, **limits: float) -> str:
    with pytest.raises(DataError) as caught:
        ope.evaluate(log, target, limits=ope.Limits(**limits))
    return str(caught.value)


def test_a_log_without_exploration_is_refused():
    log, target, _ = explorer().draw(0, 500)
    sure = dataclasses.replace(
        log, selection_probability=np.ones(500), probabilities=np.eye(5)[log.action]
    )
    said = faults_of(sure, target)
    assert "no exploration: every choice was certain" in said
    assert "got 1 in all 500" in said


def test_choices_that_were_never_made_are_refused_with_their_names():
    log, target, _ = explorer().draw(0, 2_000)
    never = log.action != 2
    cut = shuffled(log, np.flatnonzero(never))
    logging = cut.probabilities.copy()
    logging[:, 2] = 0
    logging /= logging.sum(axis=1, keepdims=True)
    cut = dataclasses.replace(
        cut,
        probabilities=logging,
        selection_probability=logging[np.arange(len(cut)), cut.action],
    )
    share = target[never][:, 2].mean()
    said = faults_of(cut, target[never])
    assert f"offer-2 ({share:.1%}, logged 0 times)" in said
    assert f"got {share:.1%}" in said
    # Without the vectors the counts say the same, and so does the list of eligible offers.
    blind = dataclasses.replace(cut, probabilities=None)
    assert f"offer-2 ({share:.1%}, logged 0 times)" in faults_of(blind, target[never])
    listed = dataclasses.replace(blind, eligible=logging > 0)
    assert ope.measure_overlap(listed, target[never]) == ope.measure_overlap(cut, target[never])


def test_offers_that_were_made_rarely_are_refused():
    log, target, _ = explorer().draw(0, 300)
    said = faults_of(log, target, effective_sample_size=1)
    assert "the target leans on offers that the log rarely chose" in said
    assert "10% of the target's choices on offers worth fewer than 20 decisions" in said


def test_a_small_effective_sample_is_refused_with_its_size():
    log, target, _ = explorer().draw(0, 2_000)
    w = log.weights(target)
    worth = w.sum() ** 2 / (w**2).sum()
    said = faults_of(log, target, effective_sample_size=500)
    assert f"got {worth:.1f} of 2,000" in said


@pytest.mark.parametrize("earned", [0.0, 2.5])
def test_a_reward_that_never_varies_is_refused(earned):
    log, target, _ = explorer().draw(0, 400)
    same = dataclasses.replace(log, reward=np.full(400, earned))
    with pytest.raises(DataError, match=f"the reward does not vary.*got {earned:g} in all 400"):
        ope.evaluate(same, target)


def test_too_few_customers_are_refused():
    log, target, _ = explorer(per_customer=100).draw(0, 2_000)
    assert "too few customers. Must be 50 or more; got 20" in faults_of(log, target)


def test_probabilities_that_are_not_those_of_the_choices_are_refused():
    """Budgets took offers away after the vector was logged: the mean weight gives it away."""
    log, target, _ = uniform().draw(0, 2_000)
    wrong = np.full((2_000, 5), 0.05)
    wrong[:, 4] = 0.8
    off = dataclasses.replace(
        log, probabilities=wrong, selection_probability=wrong[np.arange(2_000), log.action]
    )
    said = faults_of(off, target)
    assert "not those with which the choices were made. Must be a mean weight near 1.000" in said
    # The true vectors pass: that the same log is accepted is what makes the refusal mean something.
    assert ope.evaluate(log, target).verdict.call == "ship"


def test_every_fault_of_a_log_at_once():
    with pytest.raises(DataError) as caught:
        LoggedPolicy(
            np.arange(3),
            ("a",),
            np.array([0, 1, 2]),
            np.array([1.0, np.nan, 0.0]),
            np.array([0.5, 0.0, 1.0]),
            probabilities=np.array([[0.5, 0.4], [1.0, 0.0], [1.2, -0.2]]),
        )
    said = str(caught.value)
    for part in (
        "reward is missing or infinite",
        "the choice is not one of the columns. Must be 0 to 1; got 1 of 3 rows",
        "selection_probability is missing or no probability",
        "a probability is missing or below 0",
        "do not sum to 1",
        "selection_probability is not what the logged vector gives the choice",
    ):
        assert part in said, part


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"reward": np.zeros(2)}, r"reward has the wrong shape. Must be \(3,\); got \(2,\)"),
        ({"context": np.zeros(3)}, r"context has the wrong shape"),
        ({"probabilities": np.ones((3, 1))}, r"probabilities has the wrong shape"),
    ],
)
def test_wrong_shapes_are_said_so(change, problem):
    plain = {
        "customer_ids": np.arange(3),
        "offer_ids": ("a",),
        "action": np.zeros(3, dtype=np.int64),
        "reward": np.zeros(3),
        "selection_probability": np.full(3, 0.5),
    }
    with pytest.raises(DataError, match=problem):
        LoggedPolicy(**{**plain, **change})


def test_a_target_of_another_shape_or_sum_is_refused():
    log, target, _ = uniform().draw(0, 100)
    with pytest.raises(DataError, match=r"target policy: wrong shape.*got \(100, 4\)"):
        ope.evaluate(log, target[:, :4])
    with pytest.raises(DataError, match="target policy: the probabilities of a decision do not"):
        ope.evaluate(log, target * 0.5)


# ------------------------------------------------------------------ verdict and gate


def metric(low: float, high: float) -> Metric:
    return Metric((low + high) / 2, low, high)


def judged(dr: Metric, snips: Metric | None = None, largest: float = 0.01) -> str:
    found = {n: Estimate(n, m, m) for n, m in (("dr", dr), ("snips", snips or dr))}
    return str(judge(found, metric(2.0, 3.0), largest))


def test_the_verdict_in_words():
    assert judged(metric(0.1, 0.3)) == (
        "Ship: per decision the target earns +0.2000 (95% interval +0.1000 to +0.3000) against "
        "2.500 logged."
    )
    assert judged(metric(-0.3, -0.1)).startswith("Do not ship: ")
    assert judged(metric(-0.1, 0.3)).startswith("Test further: ")
    assert judged(metric(0.1, 0.3), metric(0.5, 0.7)).startswith(
        "Cannot say: the estimators contradict each other"
    )
    assert judged(metric(0.1, 0.3), largest=0.4).startswith(
        "Cannot say: one customer alone makes up 40% of the uncertainty"
    )


def test_the_verdicts_of_known_worlds():
    log, target, _ = uniform().draw(0, 3_000)
    better = ope.evaluate(log, target)
    assert better.verdict.call == "ship"
    assert better.primary.difference.low > 0
    reverse = dataclasses.replace(uniform(), target=uniform().logging, logging=explorer().logging)
    log, worse, _ = reverse.draw(1, 5_000)
    assert reverse.truth < reverse.logged_truth
    assert ope.evaluate(log, worse).verdict.call == "do not ship"
    assert ope.evaluate(log, log.probabilities).verdict.call == "test further"


def test_the_gate_lets_a_policy_lose_no_more_than_the_margin():
    log, target, _ = uniform().draw(0, 3_000)
    found = ope.evaluate(log, target)
    low = found.primary.difference.low
    assert ope.hold(found, 0).passed
    worse = ope.evaluate(log, log.probabilities)
    low = worse.primary.difference.low
    assert low < 0
    assert not ope.hold(worse, -low * 0.99).passed
    passed = ope.hold(worse, -low * 1.01)
    assert passed.passed
    assert "gain per decision over the logged policy" in passed.message
    unsure = dataclasses.replace(found, verdict=dataclasses.replace(found.verdict,
                                                                    call="cannot say"))  # fmt: skip
    assert not ope.hold(unsure, 0).passed
    with pytest.raises(ConfigError, match="Must be a number, 0 or more; got -1"):
        ope.hold(found, -1)


def test_the_share_of_one_customer():
    rows = np.zeros(100)
    rows[3] = 50
    assert largest_share(rows, np.arange(100)) > 0.9
    assert largest_share(np.zeros(10), np.arange(10)) == 0


def test_the_direct_method_is_never_alone():
    import nextbest.measure.ope.estimators as module

    assert not [name for name in module.__all__ if "direct" in name or name == "dm"]
    log, target, q = small_log(0)
    assert set(estimate(log, target, q)) == set(MEANINGS)
