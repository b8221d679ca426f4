"""`nextbest experiment plan` and `nextbest experiment read`, from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import Run


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decisions and outcomes of 4,000 customers, two rows each; offers add 3 a customer."""
    rng = np.random.default_rng(1)
    n = 4_000
    treated = rng.random(n) < 0.8
    people = pd.DataFrame({
        "customer_id": np.arange(n), "arm": np.where(treated, "policy", "no_contact"),
        "tier": rng.choice(["gold", "tin"], n), "spend_before": rng.gamma(2, 10, n),
    })  # fmt: skip
    people["spend"] = people["spend_before"] / 2 + rng.gamma(2, 2, n) + 1.5 * treated
    people["responded"] = rng.random(n) < 0.05 + 0.1 * treated
    file = tmp_path_factory.mktemp("log") / "log.csv"
    pd.concat([people, people]).to_csv(file, index=False)
    return file


def test_read_a_file(cli: Run, log: Path) -> None:
    words = ("experiment", "read", "--file", log, "--outcome", "spend", "--outcome", "responded",
             "--before", "spend_before", "--planned", "4000", "--share", "policy=80",
             "--share", "no_contact=20", "--by", "tier")  # fmt: skip
    told, shown = cli(*words, "--json"), cli(*words)
    assert (told.code, shown.code) == (0, 0), told.err
    found = told.json
    assert found["customers"] == 4_000 and not found["blocked"]
    spend, responded = found["overall"]
    assert spend["measured"]["at_any_look"]["low"] < 3 < spend["measured"]["at_any_look"]["high"]
    assert spend["measured"]["variance_reduction"] > 0.5
    assert responded["is_rate"] and responded["finding"] == "higher"
    for comparison in (*found["overall"], *found["segments"]):
        assert comparison["verdict"] in shown.out
    assert "personalisation raised responded by " in shown.out
    assert "of the variance" in shown.out and "80.0%" in shown.out


def test_a_broken_assignment_is_a_refusal(cli: Run, log: Path) -> None:
    ran = cli("experiment", "read", "--file", log, "--outcome", "spend",
              "--share", "policy=0.9", "--share", "no_contact=0.1")  # fmt: skip
    assert ran.code == 1
    assert "no verdict: the arms are not as planned" in ran.out


def test_read_the_projects_tables(cli: Run, fresh: Path) -> None:
    people = pd.read_csv(fresh / "data" / "customers.csv", dtype={"customer_id": "string"})
    rng = np.random.default_rng(1)
    people["arm"] = np.where(rng.random(len(people)) < 0.5, "policy", "no_contact")
    people.to_csv(fresh / "data" / "customers.csv", index=False)
    ran = cli("experiment", "read", "--project", fresh, "--from", "2023-09-01", "--json")
    assert ran.code == 0, ran.err
    conversion, revenue = ran.json["overall"]
    assert (conversion["outcome"], revenue["outcome"]) == ("conversion", "revenue")
    assert ran.json["planned"] == ran.json["customers"] == len(people)
    assert revenue["finding"] == "unclear"  # nobody did anything to them
    lines = pd.read_parquet(fresh / "data" / "transactions.parquet")
    since = lines[lines.ordered_at >= "2023-09-01"].groupby("customer_id").amount.sum()
    policy = people.customer_id[people.arm == "policy"]
    assert revenue["mean"] == pytest.approx(since.reindex(policy).fillna(0).mean())


def test_plan(cli: Run) -> None:
    words = ("experiment", "plan", "--baseline", "0.03", "--effect", "0.006")
    found = cli(*words, "--per-day", "2000", "--window-days", "30", "--json").json
    assert found["customers"] == found["holdout"] + found["treated"]
    assert found["days"] == -(-found["customers"] // 2000) + 30
    said = cli(*words).out
    assert f"{found['customers']:,} customers" in said
    assert f"one look at the end {found['one_look_customers']:,}" in said
    back = cli("experiment", "plan", "--baseline", "0.03", "--customers",
               str(found["customers"]), "--json").json  # fmt: skip
    assert back["detectable_effect"] == pytest.approx(0.006, rel=1e-3)
    amount = cli("experiment", "plan", "--baseline", "9", "--spread", "12.5",
                 "--customers", "100000", "--once").out  # fmt: skip
    # (1.960 + 0.842) × 12.5 / √(0.1 × 0.9 × 100,000)
    assert "find a difference of 0.3691 with 80% power" in amount


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("plan", "--baseline", "0.1"), 2, "either --effect or --customers"),
        (("plan", "--baseline", "2", "--effect", "0.1"), 2, "plan: baseline: not a rate"),
        (("plan", "--baseline", "2", "--customers", "9"), 2, "plan: baseline: not a rate"),
        (("read",), 2, "--from: the start of the experiment is not given"),
        (("read", "--file", "none.csv"), 2, "--outcome: no column is named"),
        (("read", "--file", "none.csv", "--outcome", "x"), 1, "there is no such file"),
        (("read", "--file", "LOG", "--outcome", "spnd"), 1, 'Did you mean "spend"?'),
        (("read", "--file", "LOG", "--outcome", "spend", "--share", "a"), 2, "ARM=NUMBER; got a"),
        (("read", "--file", "LOG", "--outcome", "spend", "--correction", "x"), 2, "holm or bh"),
        (("read", "--file", "LOG", "--outcome", "spend", "--arm", "x"), 1, 'in arm "x"'),
    ],
)
def test_misuse(cli: Run, log: Path, words: tuple[str, ...], code: int, says: str) -> None:
    ran = cli("experiment", *(str(log) if w == "LOG" else w for w in words))
    assert ran.code == code, ran.err
    assert says in ran.err and "Traceback" not in ran.err
