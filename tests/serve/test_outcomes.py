"""Outcomes over HTTP: kept once, durably, and only where they make sense."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import shop
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.serve.outcomes import record
from nextbest.serve.records import DecisionRecord, Stake
from nextbest.serve.runtime import open_store
from nextbest.serve.schemas import OUTCOME_TYPES, OutcomeReport, OutcomesAnswer
from nextbest.serve.store import Store

Serve = Callable[..., TestClient]


def decided(client: TestClient, customer_id: str = "c01", **more: Any) -> dict[str, Any]:
    question = {"customer_id": customer_id, "channel": "mail", **more}
    answer: dict[str, Any] = client.post("/v1/decisions", json=question).json()
    return answer


def outcome(outcome_id: str = "o1", **more: Any) -> dict[str, Any]:
    """A response of c01 to offer a, without a decision; None takes a field away."""
    said = {
        "outcome_id": outcome_id,
        "customer_id": "c01",
        "offer_id": "a",
        "outcome_type": "response",
        "occurred_at": "2020-03-02T08:00:00Z",
        **more,
    }
    return {name: value for name, value in said.items() if value is not None}


def after(answer: dict[str, Any], outcome_id: str = "o1", **more: Any) -> dict[str, Any]:
    """The same after a decision."""
    more = {"decision_id": answer["decision_id"], "customer_id": None, "offer_id": None, **more}
    return outcome(outcome_id, **more)


def send(client: TestClient, said: Any) -> tuple[int, dict[str, Any]]:
    response = client.post("/v1/outcomes", json=said)
    content: dict[str, Any] = response.json()
    if response.status_code < 300:
        OutcomesAnswer.model_validate(content)
    return response.status_code, content


def test_an_outcome_is_kept_once(client: TestClient) -> None:
    kept = {"results": [{"outcome_id": "o1", "status": "stored"}]}
    again = {"results": [{"outcome_id": "o1", "status": "duplicate"}]}
    assert send(client, outcome()) == (200, kept)
    assert send(client, outcome()) == (200, again)
    assert send(client, outcome(occurred_at="2020-03-02T09:00:00+01:00")) == (200, again)


def test_other_content_under_the_same_id_is_a_conflict_and_the_first_stands(
    client: TestClient,
) -> None:
    answer = decided(client)
    assert send(client, after(answer, value=1.0))[0] == 200
    status, problem = send(client, after(answer, value=2.0))
    assert (status, problem["code"]) == (409, "outcome-conflict")
    stored = client.get(f"/v1/decisions/{answer['decision_id']}").json()
    assert [one["value"] for one in stored["outcomes"]] == [1.0]


@pytest.mark.parametrize("outcome_type", OUTCOME_TYPES)
def test_every_documented_type_is_taken(client: TestClient, outcome_type: str) -> None:
    assert send(client, outcome(outcome_type=outcome_type))[0] == 200


def test_an_acknowledged_outcome_is_there_for_another_process(
    client: TestClient, project: Path
) -> None:
    answer = decided(client)
    assert send(client, after(answer))[0] == 200
    program = """
        import sys
        from pathlib import Path
        from nextbest.serve.store import Store
        store = Store.at(Path(sys.argv[1]))
        print([one.outcome_id for one in store.outcomes(decision_id=sys.argv[2])])
    """
    store = str(project / ".nextbest" / "store.db")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), store, answer["decision_id"]],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "['o1']"


def test_an_outcome_of_a_decision_takes_its_customer_and_only_offer(client: TestClient) -> None:
    answer = decided(client)
    assert send(client, after(answer))[0] == 200
    (kept,) = client.get(f"/v1/decisions/{answer['decision_id']}").json()["outcomes"]
    offer_id = answer["offers"][0]["offer_id"]
    assert (kept["customer_id"], kept["offer_id"]) == ("c01", offer_id)


def test_where_several_offers_were_chosen_the_outcome_must_name_one(client: TestClient) -> None:
    answer = decided(client, limit=2)
    status, problem = send(client, after(answer))
    assert (status, problem["code"]) == (422, "offer-not-in-decision")
    assert send(client, after(answer, offer_id="b"))[0] == 200


def test_after_a_decision_without_an_offer_an_outcome_is_about_no_offer(
    client: TestClient,
) -> None:
    answer = decided(client, "c02", channel="email")
    assert answer["offers"] == []
    assert send(client, after(answer, outcome_type="purchase", value=30))[0] == 200
    (kept,) = client.get(f"/v1/decisions/{answer['decision_id']}").json()["outcomes"]
    assert kept["offer_id"] is None


def test_after_a_decision_without_an_offer_no_offer_can_be_named(client: TestClient) -> None:
    answer = decided(client, "c02", channel="email")
    status, problem = send(client, after(answer, offer_id="a"))
    assert (status, problem["code"]) == (422, "offer-not-in-decision")
    assert "no offer" in problem["detail"]


def test_a_customer_without_a_profile_may_have_outcomes(client: TestClient) -> None:
    assert send(client, outcome(customer_id="came yesterday"))[0] == 200


@pytest.mark.parametrize(
    ("change", "code", "field", "says"),
    [
        ({"offer_id": "appels"}, "unknown-offer", "offer_id", 'no offer "appels"'),
        (
            {"decision_id": "none-such", "offer_id": None, "customer_id": None},
            "unknown-decision",
            "decision_id",
            'no decision "none-such"',
        ),
        (
            {"occurred_at": "2020-03-02T09:06:00Z"},
            "outcome-in-future",
            "occurred_at",
            "now is 2020-03-02T09:00:00+00:00",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_and_not_kept(
    client: TestClient, change: dict[str, Any], code: str, field: str, says: str
) -> None:
    status, problem = send(client, outcome(**change))
    assert (status, problem["code"]) == (422, code)
    assert says in problem["detail"]
    assert [error["pointer"] for error in problem["errors"]] == [f"/{field}"]
    assert send(client, outcome())[1]["results"][0]["status"] == "stored"


def test_clocks_may_differ_by_five_minutes(client: TestClient) -> None:
    assert send(client, outcome(occurred_at="2020-03-02T09:05:00Z"))[0] == 200


def test_an_outcome_a_day_before_its_decision_is_another_event(client: TestClient) -> None:
    """The decision is of 2020-03-02 09:00; clocks and time zones of tills are off by hours."""
    answer = decided(client)
    assert send(client, after(answer, "o1", occurred_at="2020-03-01T09:00:00Z"))[0] == 200
    early = after(answer, "o2", occurred_at="2020-03-01T08:59:59Z")
    status, problem = send(client, early)
    assert (status, problem["code"]) == (422, "outcome-before-decision")
    assert [error["pointer"] for error in problem["errors"]] == ["/occurred_at"]
    assert "the decision was made at 2020-03-02T09:00:00+00:00" in problem["detail"]
    # Without a decision there is nothing that it could come before.
    assert send(client, outcome("o2", occurred_at="1970-01-01T00:00:00Z"))[0] == 200


def test_a_late_outcome_is_kept_and_judged_by_when_it_happened(project: Path, serve: Serve) -> None:
    """Offer a has a window of 14 days: in time is what happened in it, whenever it is told."""
    client = serve(project)
    made = [decided(client, who) for who in shop.CUSTOMERS[:12]]
    late = [one for one in made if one["offers"][0]["offer_id"] == "a"][:3]
    store = open_store(project)
    years_later = datetime(2030, 1, 1, tzinfo=UTC)
    for number, (answer, at) in enumerate(
        zip(late, ("2020-03-16T09:00:00Z", "2020-03-16T09:00:01Z", "2029-01-01T00:00:00Z"),
            strict=True)
    ):  # fmt: skip
        said = OutcomeReport.model_validate_json(
            json.dumps(after(answer, f"o{number}", occurred_at=at))
        )
        (result,) = record(store, [said], {"a"}, years_later)
        assert result.status == "stored"
    tally = store.tallies(["response"], years_later)["a"]
    assert (tally.responses, tally.settled_responses) == (3, 1)
    store.close()


@settings(max_examples=4)
@given(st.data())
def test_order_and_repetition_change_nothing(data: Any) -> None:
    """Against the same outcomes, each told once and oldest first."""
    decisions = [
        DecisionRecord(f"d{n}", f"c0{n % 2}", shop.NOW + timedelta(hours=n), "mail", "policy",
                       ("a", "b"), {}, "h", stakes=(Stake(0.2, shop.NOW + timedelta(days=3)),) * 2)
        for n in range(4)
    ]  # fmt: skip
    reports = [
        OutcomeReport.model_validate_json(json.dumps(outcome(
            f"o{n}",
            outcome_type=("click", "response", "refusal", "purchase")[n % 4],
            occurred_at=(shop.NOW + timedelta(hours=13 * n)).isoformat(),
            **({"decision_id": f"d{n % 4}", "customer_id": None} if n % 3 else
               {"customer_id": f"c0{n % 2}"}),
        )))
        for n in range(8)
    ]  # fmt: skip
    told = data.draw(st.permutations([*reports, *data.draw(st.lists(st.sampled_from(reports)))]))

    def state(sent: list[OutcomeReport]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            store = Store.at(Path(folder) / "store.db")
            store.record_decisions(decisions)
            later = shop.NOW + timedelta(days=30)
            results = [record(store, [one], {"a", "b"}, later)[0] for one in sent]
            assert Counter(one.status for one in results) == Counter(
                {"stored": len(reports), "duplicate": len(sent) - len(reports)}
            )
            found = store.history(None), store.tallies(["response"], later)
            store.close()
            return found

    assert state(told) == state(reports)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"customer_id": "c02"}, "customer-mismatch"),
        ({"offer_id": "c"}, "offer-not-in-decision"),
        ({"offer_id": "appels"}, "unknown-offer"),
    ],
)
def test_an_outcome_must_fit_its_decision(
    client: TestClient, change: dict[str, Any], code: str
) -> None:
    status, problem = send(client, after(decided(client), **change))
    assert (status, problem["code"]) == (422, code)


def test_an_offer_that_left_the_catalogue_may_still_be_reported_with_its_decision(
    project: Path, serve: Serve
) -> None:
    answer = decided(serve(project))
    offer_id = answer["offers"][0]["offer_id"]
    offers = project / "serving" / "offers.toml"
    policy = project / "serving" / "policy.toml"
    offers.write_text(offers.read_text().replace(f'id = "{offer_id}"', 'id = "renamed"'))
    policy.write_text(policy.read_text().replace(f'"{offer_id}"', '"renamed"'))
    later = serve(project)
    assert send(later, after(answer, offer_id=offer_id))[0] == 200
    assert send(later, outcome("o2", offer_id=offer_id))[1]["code"] == "unknown-offer"


def test_of_a_list_each_outcome_is_kept_or_refused_by_itself(client: TestClient) -> None:
    said = [outcome("o1"), outcome("o2", offer_id="?"), outcome("o1"), outcome("o1", value=9.0)]
    status, content = send(client, said)
    assert status == 207
    assert [(one["status"], one.get("code")) for one in content["results"]] == [
        ("stored", None),
        ("refused", "unknown-offer"),
        ("duplicate", None),
        ("refused", "outcome-conflict"),
    ]
    assert send(client, [outcome("o1"), outcome("o3")])[0] == 200


def test_a_list_of_which_nothing_is_kept_is_a_problem_with_every_pointer(
    client: TestClient,
) -> None:
    status, problem = send(client, [outcome("o1", offer_id="x"), outcome("o2", offer_id="y")])
    assert (status, problem["code"]) == (422, "unknown-offer")
    assert [error["pointer"] for error in problem["errors"]] == ["/0/offer_id", "/1/offer_id"]


def test_a_list_with_a_fault_in_form_is_refused_whole(client: TestClient) -> None:
    status, problem = send(client, [outcome("o1"), outcome("o2", value="much")])
    assert (status, problem["code"]) == (422, "invalid-request")
    assert [error["pointer"] for error in problem["errors"]] == ["/1/value"]
    assert send(client, outcome("o1"))[1]["results"][0]["status"] == "stored"
