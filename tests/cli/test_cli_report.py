"""``nextbest report`` on a shop that has models, on one that has none, and what it refuses."""

import json
from datetime import timedelta

import pyarrow.parquet as pq
import pytest
from commands import Run, Toy

from nextbest import jobs
from nextbest.errors import ConfigError
from nextbest.measure.kpi.settings import Costs, ReportSettings, read_report_settings, resolve
from nextbest.measure.report.page import render
from nextbest.project import Project
from nextbest.proof.logbook import store_of
from nextbest.proof.reporting import report
from nextbest.serve.records import Outcome


def put(folder, text):
    (folder / "serving" / "report.toml").write_text(text, encoding="utf-8")


def test_a_shop_without_models_gets_its_report(fresh, cli: Run, tmp_path):
    ran = cli("report", "--project", fresh, "--out", tmp_path / "out", "--days", 84)
    assert ran.code == 0, ran.err
    assert "! No model is in use." in ran.out and "report.html" in ran.out
    facts = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert facts["project"] == "toy-shop" and facts["period"]["to"] == "2023-12-31"
    assert facts["baseline"] == {"from": "2023-07-17", "to": "2023-10-08"}
    kpis = {k["kpi"]: k for k in facts["kpis"]}
    assert kpis["campaign_roi"]["why"] == "costs.contact is not stated in serving/report.toml"
    lines = pq.read_table(fresh / "data" / "transactions.parquet").to_pandas()
    inside = lines[(lines["ordered_at"] >= "2023-10-08 22:00")
                   & (lines["ordered_at"] < "2023-12-31 23:00")]  # fmt: skip
    total = next(t for t in facts["totals"] if t["name"] == "revenue")
    assert total["value"] == pytest.approx(inside["amount"].sum(), rel=1e-6)


def test_a_shop_with_models_shows_their_health_and_what_they_expect(toy: Toy, cli: Run, tmp_path):
    ran = cli("report", "--project", toy.root, "--out", tmp_path, "--json")
    assert ran.code == 0, ran.err
    models = {m["name"]: m for m in ran.json["models"]}
    assert set(models) == {"propensity", "churn", "clv"}  # hvc was refused
    churn = models["churn"]
    assert churn["version"] == 2 and churn["baseline_name"] == "recency"
    assert churn["low"] <= churn["value"] <= churn["high"]
    assert {c["what"]: c["limit"] for c in churn["checks"]} == {
        "gain over the simple rule": 0.0, "calibration error": 0.25,
    }  # fmt: skip
    assert churn["drift"] in ("ok", "watch", "alarm")
    clv = next(k for k in ran.json["kpis"] if k["kpi"] == "clv")
    assert clv["value"]["value"] > 0 and clv["before"] is None


def test_what_the_data_cannot_answer_is_refused(fresh, cli: Run):
    ran = cli("report", "--project", fresh, "--days", 3_000)
    assert ran.code == 1 and "do not cover the baseline" in ran.err
    ran = cli("report", "--project", fresh, "--baseline", "soon")
    assert ran.code == 2 and "--baseline: not a baseline" in ran.err


def test_every_fault_of_the_file_is_said_at_once(fresh):
    put(
        fresh,
        """
[period]
dayz = 3
[customers]
at_risk_days = 60
lapsed_days = 60
[segments.x]
"a" = "spend >"
[kpis.revenue_per_customer]
title = "again"
numerator = "amount"
""",
    )
    said = " ".join(str(f) for f in jobs.check_project(Project.open(fresh), data=False).faults)
    assert 'unknown field "dayz"' in said
    put(
        fresh,
        """
[customers]
at_risk_days = 60
lapsed_days = 60
[costs]
contact = "postage"
[segments.x]
"a" = "spend >"
""",
    )
    said = " ".join(str(f) for f in jobs.check_project(Project.open(fresh), data=False).faults)
    assert "lapsed_days is too small" in said and "cannot be read" in said
    put(
        fresh,
        """
[customers]
by = ["regoin"]
[costs]
contact = "postage"
[segments.x]
"a" = "spned > 3"
[kpis.revenue_per_customer]
title = "again"
numerator = "amuont"
""",
    )
    said = " ".join(str(f) for f in jobs.check_project(Project.open(fresh)).faults)
    for part in ('"postage"', '"regoin"', 'Did you mean "spend"', 'Did you mean "amount"',
                 "there is a key figure of that name"):  # fmt: skip
        assert part in said, part


def test_costs_are_numbers_or_expressions_over_assumptions():
    costs = Costs(margin_rate="rate * 0.5", contact=0.25, incentive_share="1 - borne")
    found = resolve(costs, {"rate": 0.4, "borne": 0.75, "text": "no number"})
    assert (found.margin_rate, found.contact, found.incentive_share) == (0.2, 0.25, 0.25)
    assert resolve(Costs(), {}).contact is None
    with pytest.raises(ConfigError, match="margin_rate is wrong"):
        resolve(Costs(margin_rate=1.5), {})
    with pytest.raises(ConfigError, match="contact is wrong"):
        resolve(Costs(contact="1 / (x - x)"), {"x": 1.0})


def test_a_project_without_the_file_gets_the_defaults(tmp_path):
    assert read_report_settings(tmp_path) == ReportSettings()


def test_the_decision_log_says_whom_offers_reached_and_what_holding_out_shows(shop, cli: Run):
    with (shop / "serving" / "policy.toml").open("a") as policy:
        policy.write('\n[holdout]\nsalt = "a salt of the shop\'s own"\nshare = 0.4\n')
    assert cli("decide", "--project", shop, "--channel", "mail", "--record").code == 0
    with store_of(Project.open(shop)) as store:
        (part,) = store.decision_parts(10_000)
        made = [d for d in part if d.contacts]
        at = made[0].decided_at + timedelta(days=2)
        store.record_outcomes([
            Outcome(f"o{i}", d.customer_id, d.contacts[0].offer_id, "conversion", at, 12.5)
            for i, d in enumerate(made) if i % 2
        ])  # fmt: skip
    ran = cli("report", "--project", shop, "--json", "--days", 84)
    assert ran.code == 0, ran.err
    facts = ran.json
    assert facts["contacts_from"] == "log"
    assert sum(o["contacts"] for o in facts["offers"]) == len(made)
    # Decided on 1 December: the 28 days of every contact are over by the end of the data.
    assert all(o["closed"] == o["contacts"] for o in facts["offers"])
    assert sum(o["answered"] for o in facts["offers"]) == len(made) // 2
    assert facts["kpis"] and facts["experiment"] is not None
    assert set(facts["experiment"]["balance"]["counts"]) >= {"policy", "holdout"}
    credited = sum(c["responses"]["linear"] for c in facts["attribution"]["credits"])
    assert credited == pytest.approx(len(made) // 2)
    page = (shop / ".nextbest" / "report" / "report.html").read_text("utf-8")
    assert "From the decision log" in page and "What contacts caused, the experiment says" in page


def test_a_scheduler_makes_it_without_the_command_line(fresh):
    project = Project.open(fresh)
    history = project.history()
    made = report(project, history=history, made_at=history.observed_until, simulated=True)
    facts = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert facts["simulated"] and facts["period"] == {"from": "2023-10-02", "to": "2023-12-31"}
    assert "Simulated outcomes" in render(made)
