"""Decisions over HTTP: the answer, its record, repeats, caps, strangers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from itertools import count, islice
from operator import and_, or_
from pathlib import Path
from typing import Any
from uuid import RFC_4122, UUID

import pytest
import shop
from fastapi.testclient import TestClient

from nextbest.decide.contact import ContactHistory
from nextbest.serve.batch import situation_for
from nextbest.serve.decisions import decide_for, new_decision_ids
from nextbest.serve.runtime import load_state, open_store
from nextbest.serve.schemas import BatchAnswer, DecisionAnswer, StoredDecisionAnswer
from nextbest.serve.store import Store

Serve = Callable[..., TestClient]


def ask(client: TestClient, customer_id: str = "c00", **more: Any) -> dict[str, Any]:
    question = {"customer_id": customer_id, "channel": "mail", **more}
    response = client.post("/v1/decisions", json=question)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def offers(answer: dict[str, Any]) -> list[str]:
    return [offer["offer_id"] for offer in answer["offers"]]


def test_an_answer_has_the_documented_shape_and_the_models_numbers(
    client: TestClient, project: Path
) -> None:
    answer = ask(client, "c01")
    DecisionAnswer.model_validate(answer)
    state = load_state(project)
    row = state.bundle.profiles.index("c01")
    assert row is not None
    assert answer["decided_at"] == "2020-03-02T09:00:00Z"
    assert (answer["arm"], answer["fallback"], answer["profile_stale"]) == ("policy", False, False)
    at = state.bundle.profiles.columns.index("churn_probability")
    assert answer["scores"]["churn_probability"] == state.bundle.profiles.matrix[row, at]
    assert answer["scores"]["p_alive"] is None
    assert answer["versions"]["models"] == {"propensity": "4", "churn": "2"}
    assert answer["versions"]["bundle"] == state.bundle.id
    best = answer["offers"][0]
    audience = state.shaper.audience(["c01"], ContactHistory.empty())
    place = state.shaper.offer_ids.index(best["offer_id"])
    assert best["propensity"] == audience.propensity[0, place]
    assert "trace" not in answer


def test_a_decision_can_be_read_back_with_its_trace_and_outcomes(client: TestClient) -> None:
    answer = ask(client, "c01", explain=True, context={"weather": "rain"})
    report = {
        "outcome_id": "o1",
        "decision_id": answer["decision_id"],
        "outcome_type": "response",
        "occurred_at": "2020-03-01T12:00:00+02:00",
        "value": 12.5,
    }
    assert client.post("/v1/outcomes", json=report).status_code == 200
    stored = client.get(f"/v1/decisions/{answer['decision_id']}").json()
    StoredDecisionAnswer.model_validate(stored)
    trace = answer.pop("trace")
    assert stored["decision"] == answer
    assert stored["trace"] == trace
    assert stored["request"]["context"] == {"weather": "rain"}
    assert stored["outcomes"] == [
        {
            "outcome_id": "o1",
            "decision_id": answer["decision_id"],
            "customer_id": "c01",
            "offer_id": answer["offers"][0]["offer_id"],
            "outcome_type": "response",
            "occurred_at": "2020-03-01T10:00:00Z",
            "value": 12.5,
        }
    ]


def test_the_trace_says_what_moved_the_model(client: TestClient) -> None:
    trace = ask(client, "c01", explain=True)["trace"]
    (chosen,) = trace["chosen"]
    contributions = trace["contributions"][chosen["offer_id"]]
    known = {"spend_91d", "age_band", "likes_mail", "offer_n_coupons", "offer_type", "offer_spend"}
    assert {one["feature"] for one in contributions} <= known
    sizes = [abs(one["effect"]) for one in contributions]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 0


def test_context_reaches_the_rules(client: TestClient) -> None:
    assert offers(ask(client, "c01", context={"weather": "rain"})) == ["b"]


def test_an_undeclared_context_name_is_reported_as_ignored(client: TestClient) -> None:
    trace = ask(client, "c01", context={"wether": "rain"}, explain=True)["trace"]
    assert trace["situation"]["context_ignored"] == ["wether"]


def test_a_stranger_gets_the_fallback_and_is_marked(client: TestClient) -> None:
    answer = ask(client, "nobody")
    DecisionAnswer.model_validate(answer)
    assert (answer["arm"], answer["fallback"], offers(answer)) == ("fallback", True, ["a"])
    assert answer["offers"][0]["propensity"] is None
    assert set(answer["scores"].values()) == {None}


def test_no_offer_is_an_answer_with_reasons(client: TestClient) -> None:
    """c02 has not said whether mail is liked, so e-mail needs a consent that is not known."""
    answer = ask(client, "c02", channel="email")
    DecisionAnswer.model_validate(answer)
    assert answer["offers"] == []
    assert any("likes_mail" in reason for reason in answer["no_offer_reasons"])


def test_an_offer_that_the_profiles_do_not_know_is_left_out_with_the_reason(
    client: TestClient,
) -> None:
    trace = ask(client, "c01", explain=True)["trace"]
    (fate,) = [offer["fate"] for offer in trace["offers"] if offer["offer_id"] == "new"]
    assert fate == {"step": "value", "reason": "unknown value"}


def test_a_decision_counts_as_a_contact_and_a_cap_holds(client: TestClient) -> None:
    assert len(offers(ask(client, "c01"))) == 1
    assert len(offers(ask(client, "c01"))) == 1
    third = ask(client, "c01")
    assert third["offers"] == []
    assert any("2 of 2 contacts by mail in 7 days" in why for why in third["no_offer_reasons"])
    assert len(offers(ask(client, "c04"))) == 1


def test_a_refusal_keeps_the_offer_back(client: TestClient) -> None:
    first = ask(client, "c01")
    report = {
        "outcome_id": "o1",
        "decision_id": first["decision_id"],
        "outcome_type": "refusal",
        "occurred_at": "2020-03-02T08:00:00Z",
    }
    assert client.post("/v1/outcomes", json=report).status_code == 200
    assert offers(ask(client, "c01")) != offers(first)


def test_simultaneous_requests_cannot_pass_a_cap_together(client: TestClient) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(client, "c01"), range(30)))
    assert sum(len(offers(answer)) for answer in answers) == 2


def test_many_clients_at_once_are_all_answered_and_recorded(client: TestClient) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: ask(client, f"c{n % 60:02d}"), range(120)))
    assert len({answer["decision_id"] for answer in answers}) == 120
    for answer in answers[::10]:
        assert client.get(f"/v1/decisions/{answer['decision_id']}").status_code == 200


def test_limit_gives_several_offers_by_rank(client: TestClient) -> None:
    answer = ask(client, "c01", limit=50)
    assert [offer["rank"] for offer in answer["offers"]] == [1, 2]
    assert answer["offers"][0]["priority"] >= answer["offers"][1]["priority"]


def test_the_same_key_and_question_give_the_same_answer(client: TestClient) -> None:
    first = ask(client, "c01", idempotency_key="k1")
    assert ask(client, "c01", idempotency_key="k1") == first
    assert ask(client, "c01", idempotency_key="k1", limit=1, context={}) == first
    assert ask(client, "c01", idempotency_key="k2")["decision_id"] != first["decision_id"]


def test_a_key_survives_a_restart(project: Path, serve: Serve) -> None:
    first = ask(serve(project), "c01", idempotency_key="k1")
    assert ask(serve(project), "c01", idempotency_key="k1") == first


def test_one_key_asked_at_once_makes_one_decision(client: TestClient) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(client, "c01", idempotency_key="k"), range(30)))
    assert len({answer["decision_id"] for answer in answers}) == 1


def test_a_key_used_for_another_question_is_a_conflict(client: TestClient) -> None:
    ask(client, "c01", idempotency_key="k1")
    again = {"customer_id": "c02", "channel": "mail", "idempotency_key": "k1"}
    response = client.post("/v1/decisions", json=again)
    assert (response.status_code, response.json()["code"]) == (409, "idempotency-conflict")


def test_where_another_server_was_first_its_answer_is_given(
    client: TestClient, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked for the key, found nothing and decided; the store lets one of them in."""
    first = ask(client, "c01", idempotency_key="k")
    monkeypatch.setattr(Store, "decisions_by_keys", lambda *_: {})
    assert ask(client, "c01", idempotency_key="k") == first
    other = {"customer_id": "c04", "channel": "mail", "idempotency_key": "k"}
    response = client.post("/v1/decisions", json=other)
    assert (response.status_code, response.json()["code"]) == (409, "idempotency-conflict")
    store = open_store(project)
    assert store.history(["c04"])[0].at == ()
    store.close()


def test_a_moment_can_be_told(client: TestClient) -> None:
    ask(client, context={"last_visit": "2020-03-01T10:00:00+01:00", "basket_value": 3})


def test_a_batch_gives_what_single_requests_give(project: Path, serve: Serve) -> None:
    ids = [f"c{number:02d}" for number in range(60)] + ["nobody"]
    client = serve(project)
    question = {"customer_ids": ids, "channel": "mail", "limit": 2, "context": {"weather": "rain"}}
    response = client.post("/v1/decisions/batch", json=question)
    assert response.status_code == 200
    BatchAnswer.model_validate(response.json())
    together = response.json()["decisions"]
    assert [answer["customer_id"] for answer in together] == ids
    (project / ".nextbest" / "store.db").rename(project / "elsewhere.db")
    alone = serve(project)  # a store of its own, so that the batch's contacts do not count
    for answer in together:
        single = ask(alone, answer["customer_id"], limit=2, context={"weather": "rain"})
        assert {**single, "decision_id": None} == {**answer, "decision_id": None}


def test_a_batch_repeats_under_its_key_and_conflicts_otherwise(client: TestClient) -> None:
    question = {"customer_ids": ["c01", "c04"], "channel": "mail", "idempotency_key": "k"}
    first = client.post("/v1/decisions/batch", json=question)
    again = client.post("/v1/decisions/batch", json=question)
    assert first.json() == again.json()
    for changed in ({"customer_ids": ["c01"]}, {"customer_ids": ["c01", "c04", "c05"]}):
        other = client.post("/v1/decisions/batch", json={**question, **changed})
        assert (other.status_code, other.json()["code"]) == (409, "idempotency-conflict")


def test_decision_ids_sort_by_time_and_are_uuid_7(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1_700_000_000_000_000_000, 1_700_000_000_001_000_000])
    monkeypatch.setattr("nextbest.serve.decisions.time.time_ns", lambda: next(moments))
    first, later = new_decision_ids(500), new_decision_ids(2)
    early = [UUID(one) for one in first]
    assert {(one.version, one.variant, one.int >> 80) for one in early} == {
        (7, RFC_4122, 1_700_000_000_000)
    }
    assert first == [str(one) for one in early]
    assert max(first) < min(later)
    # Every other bit is left to chance, for each id by itself.
    assert len(set(first)) == 500
    always, ever = (reduce(join, (one.int for one in early)) for join in (and_, or_))
    assert (always ^ ever).bit_count() == 74


SALT = "a salt of the shop's own"
IDS = [f"d{i}" for i in range(60)]


def add_to_policy(project: Path, text: str) -> None:
    file = project / "serving" / "policy.toml"
    file.write_text(file.read_text() + text)


def test_who_is_held_out_is_logged_and_not_contacted(project: Path, serve: Serve) -> None:
    free = offers(ask(serve(project), "c01"))
    held = project.parent / "held"
    shutil.copytree(project, held, ignore=shutil.ignore_patterns("store.db*"))
    add_to_policy(held, f'[holdout]\nsalt = "{SALT}"\nshare = 1\n')
    client = serve(held)
    for _ in range(3):  # a contact would use up the cap of two letters a week
        answer = ask(client, "c01")
        assert (answer["arm"], answer["offers"]) == ("holdout", [])
        assert answer["no_offer_reasons"][0].startswith("offer a: arm: the customer is held out")
    stored = client.get(f"/v1/decisions/{answer['decision_id']}").json()
    assert stored["trace"]["selection"]["would_choose"] == free == ["a"]
    assert stored["trace"]["selection"]["no_offer"] == 1.0
    assert offers(ask(client, "nobody")) == []


def test_the_probability_of_the_pick_is_stored_with_the_vector(
    project: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The draw is keyed by the decision's id: with fixed ids the same picks are drawn every time.
    ids = map("d{}".format, count())
    monkeypatch.setattr("nextbest.serve.decisions.new_decision_ids", lambda n: list(islice(ids, n)))
    add_to_policy(project, f'[exploration]\nsalt = "{SALT}"\npolicy = "epsilon"\nepsilon = 0.5\n')
    client = serve(project)
    drawn = set()
    for customer_id in shop.CUSTOMERS[:20]:
        answer = ask(client, customer_id, explain=True)
        selection = answer["trace"]["selection"]
        vector = {**selection["probabilities"], None: selection["no_offer"]}
        assert math.isclose(sum(vector.values()), 1)
        assert set(selection["probabilities"]) == set(selection["eligible"])
        (made,) = answer["offers"] or [None]
        drawn.add(made and made["offer_id"])
        if made:
            assert made["selection_probability"] == vector[made["offer_id"]]
    assert drawn == {"a", "b", None}


def test_a_new_offer_reaches_more_customers_once_responses_are_reported(
    project: Path, serve: Serve
) -> None:
    add_to_policy(
        project,
        f'[exploration]\nsalt = "{SALT}"\nnew_offer_reach = 0.2\nfull_reach_responses = 2\n',
    )

    def reached() -> int:
        state = load_state(project)
        store = open_store(project)
        try:
            made = decide_for(state, store, shop.CUSTOMERS, situation_for(state, "mail"), IDS)
        finally:
            store.close()
        at = state.shaper.offer_ids.index("a")
        return int(made.eligible[:, at].sum())

    assert 0 < reached() < 30
    client = serve(project)
    told = 0
    for customer_id in shop.CUSTOMERS:
        answer = ask(client, customer_id)
        if offers(answer) == ["a"] and told < 2:
            told += 1
            report = {
                "outcome_id": f"r{told}",
                "decision_id": answer["decision_id"],
                "outcome_type": "response",
                "occurred_at": "2020-03-02T09:00:00Z",
            }
            assert client.post("/v1/outcomes", json=report).status_code == 200
    assert told == 2
    assert reached() == 60


def test_many_customers_are_found_as_each_is_alone(project: Path) -> None:
    shaper = load_state(project).shaper
    last = shop.CUSTOMERS[-1]
    asked = ["c00", last, "c0", "c000", f"{last}x", last * 9, "", "a", "zz", "zürich", "c01", "c01"]
    alone = [shaper.rows([customer_id])[0] for customer_id in asked]
    assert shaper.rows(asked).tolist() == alone
    assert [row >= 0 for row in alone] == [customer_id in shop.CUSTOMERS for customer_id in asked]
    assert shaper.rows([]).tolist() == []
