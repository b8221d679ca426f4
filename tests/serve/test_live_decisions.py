"""What happens after a refresh changes the next decision, as the next refresh would."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import live_shop
import numpy as np
import pytest
from fastapi.testclient import TestClient
from live_shop import AS_OF, CUSTOMERS

from nextbest import show
from nextbest.data import snapshots
from nextbest.decide.contact import ContactHistory
from nextbest.serve.api import create_app
from nextbest.serve.audience import Past, Shaper
from nextbest.serve.batch import decide_batch, situation_for
from nextbest.serve.bundle import load_bundle
from nextbest.serve.decisions import decide_for
from nextbest.serve.records import Contacts, Events
from nextbest.serve.replay import replay
from nextbest.serve.runtime import load_state, open_store
from nextbest.serve.schemas import CustomerAnswer

MANUAL = Path(__file__).parents[2] / "serving" / "README.md"
HOUR = timedelta(hours=1)
# A decision comes at any microsecond.
NOON = AS_OF.replace(tzinfo=UTC) + timedelta(hours=36, microseconds=123_457)


class Server:
    """A running app with a clock that we set."""

    def __init__(self, project: Path, now: datetime) -> None:
        self.project, self.now = project, now
        self.client = TestClient(create_app(project, insecure=True, clock=lambda: self.now))
        self._sent = 0

    def post(self, customer_id: str, kind: str, at: datetime) -> None:
        """An event that reaches us as it happens; the clock goes on."""
        self.now = max(self.now, at)
        self._sent += 1
        said = {"event_id": f"e{self._sent}", "customer_id": customer_id, "event_type": kind,
                "event_at": at.isoformat()}  # fmt: skip
        response = self.client.post("/v1/events", json=said)
        assert response.json()["results"][0]["status"] == "stored", response.text

    def answer(self, decision: dict[str, Any], at: datetime, kind: str = "response") -> None:
        """What the customer said to a decision's offer."""
        self.now = max(self.now, at)
        said = {"outcome_id": f"o-{decision['decision_id']}-{kind}", "outcome_type": kind,
                "decision_id": decision["decision_id"], "occurred_at": at.isoformat()}  # fmt: skip
        response = self.client.post("/v1/outcomes", json=said)
        assert response.json()["results"][0]["status"] == "stored", response.text

    def ask(self, customer_id: str = "c01", at: datetime = NOON, **more: Any) -> dict[str, Any]:
        self.now = at
        question = {"customer_id": customer_id, "channel": "web", **more}
        response = self.client.post("/v1/decisions", json=question)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def customer(self, customer_id: str) -> dict[str, Any]:
        response = self.client.get(f"/v1/customers/{customer_id}")
        CustomerAnswer.model_validate(response.json())
        answer: dict[str, Any] = response.json()
        return answer

    def inputs(self, answer: dict[str, Any]) -> dict[str, Any]:
        """What a decision was made from, as the store keeps it."""
        with closing(open_store(self.project)) as store:
            found = store.decision(answer["decision_id"])
        assert found is not None
        profile: dict[str, Any] = found.record["inputs"]["profile"]
        return profile


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "models"
    live_shop.save_models(folder)
    return folder


@pytest.fixture(scope="session")
def template(models: Path) -> Path:
    return live_shop.write(models.parent / "shop", models)


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "shop"))


@pytest.fixture
def server(project: Path) -> Iterator[Server]:
    made = Server(project, NOON - 12 * HOUR)
    with made.client:
        yield made


def offers(answer: dict[str, Any]) -> list[str]:
    return [offer["offer_id"] for offer in answer["offers"]]


# --- from one end to the other -------------------------------------------------------------------


def test_an_abandoned_cart_changes_the_next_decision_and_the_trace_says_why(
    server: Server,
) -> None:
    rule_of_the_manual = 'eligibility = "abandoned_cart = 1 and days_since_last_cart_add < 1"'
    assert rule_of_the_manual in MANUAL.read_text()
    assert rule_of_the_manual in live_shop.CATALOGUE
    before = server.ask("c01", NOON - 3 * HOUR, explain=True)
    assert offers(before) == ["news"]
    assert "live" not in before["trace"]
    server.post("c01", "cart_add", NOON - 2 * HOUR)
    after = server.ask("c01", NOON, explain=True)
    assert offers(after) == ["cart"]
    live = after["trace"]["live"]
    assert live["heard"] == {"events": 1, "contacts": 1}
    assert live["features"]["abandoned_cart"] == [0.0, 1.0]
    assert live["features"]["cart_adds_7d"] == [0.0, 1.0]
    fates = {offer["offer_id"]: offer for offer in after["trace"]["offers"]}
    (rule,) = next(s for s in fates["cart"]["steps"] if s["step"] == "eligibility")["rules"]
    assert [(clause["values"], clause["outcome"]) for clause in rule["clauses"]] == [
        ({"abandoned_cart": 1.0}, "true"), ({"days_since_last_cart_add": 2 / 24}, "true"),
    ]  # fmt: skip
    # It moved the propensity, not only the rule, and the explanation knows.
    moved = {one["feature"]: one["value"] for one in after["trace"]["contributions"]["cart"]}
    assert moved["abandoned_cart"] == 1.0
    said = [line for line in show.decision(after, after["trace"]) if isinstance(line, str)]
    assert any("abandoned_cart 0.0000 → 1.0000" in line for line in said)
    # Bought: the basket is not left behind any more. A day later it would be too old anyway.
    server.post("c01", "purchase", NOON + HOUR)
    assert offers(server.ask("c01", NOON + 2 * HOUR)) == ["news"]


def test_it_is_too_old_a_day_later(server: Server) -> None:
    server.post("c01", "cart_add", NOON)
    assert offers(server.ask("c01", NOON + 23 * HOUR)) == ["cart"]
    assert offers(server.ask("c01", NOON + 24 * HOUR)) == ["news"]


def test_events_before_the_refresh_at_the_decision_or_of_others_change_nothing(
    server: Server,
) -> None:
    quiet = server.ask("c02", NOON)
    server.post("c01", "cart_add", NOON - HOUR)
    server.post("c02", "cart_add", AS_OF.replace(tzinfo=UTC) - timedelta(microseconds=1))
    server.post("c02", "cart_add", NOON)
    again = server.ask("c02", NOON)
    assert server.inputs(again) == server.inputs(quiet)
    assert "live" not in server.inputs(again)
    # The moment of the refresh is after it; what came at a decision counts in the next one.
    server.post("c02", "cart_add", AS_OF.replace(tzinfo=UTC))
    later = server.ask("c02", NOON + timedelta(microseconds=1))
    assert server.inputs(later)["live"]["heard"]["events"] == 2


def test_a_stranger_stays_a_stranger_and_what_was_said_is_kept(server: Server) -> None:
    server.post("nobody", "cart_add", NOON - HOUR)
    answer = server.ask("nobody")
    assert (answer["fallback"], offers(answer)) == (True, ["news"])
    with closing(open_store(server.project)) as store:
        assert store.past(["nobody"], AS_OF)[2].types == ("cart_add",)


def test_a_customer_is_shown_with_live_values_and_their_moment(server: Server) -> None:
    before = server.customer("c04")
    assert before["live"] is None
    for hours in (1, 2, 3):
        server.post("c04", "visit", NOON - hours * HOUR)
    server.now = NOON
    after = server.customer("c04")
    assert after["live"]["at"] == NOON.isoformat().replace("+00:00", "Z")
    assert after["as_of"] == before["as_of"]
    changed = {n for n, value in after["features"].items() if value != before["features"][n]}
    assert changed == set(after["live"]["features"])
    was, now = after["live"]["features"]["visits_28d"]
    assert (was, now) == (before["features"]["visits_28d"], after["features"]["visits_28d"])
    assert after["scores"]["churn_probability"] != before["scores"]["churn_probability"]
    assert after["live"]["scores"] == {
        "churn_probability": [
            before["scores"]["churn_probability"], after["scores"]["churn_probability"],
        ]
    }  # fmt: skip


# --- the same as the batch expression ------------------------------------------------------------


def happening(server: Server) -> dict[str, list[dict[str, Any]]]:
    """Events, contacts and responses of a month for all but c00 and c01; as the warehouse has them.

    c02 is only contacted, c03 only does things.
    """
    random = np.random.default_rng(3)
    told: dict[str, list[dict[str, Any]]] = {"events": [], "contacts": [], "responses": []}
    start = AS_OF.replace(tzinfo=UTC)
    hours = np.sort(random.uniform(0, 30 * 24, 60))
    for i, hour in enumerate(hours.tolist()):
        at = start + timedelta(microseconds=round(hour * 3.6e9))
        customer = CUSTOMERS[2 + i % 10]
        if customer == "c02" or (customer != "c03" and random.random() < 0.3):
            answer = server.ask(customer, at)
            for offer_id in offers(answer):
                naive = at.replace(tzinfo=None)
                told["contacts"].append(live_shop.contact(customer, naive, offer_id))
                if customer != "c02" and i % 2:
                    later = naive + timedelta(minutes=i, microseconds=i)
                    server.answer(answer, later.replace(tzinfo=UTC))
                    told["responses"].append(live_shop.response(customer, offer_id, later))
        else:
            kind = str(random.choice(["open", "click", "visit", "cart_add", "purchase", "other"]))
            server.post(customer, kind, at)
            naive = at.replace(tzinfo=None)
            told["events"].append(live_shop.event(customer, kind, naive, naive))
    return told


def test_a_decision_reads_what_a_refresh_at_its_moment_would_have_computed(
    server: Server, models: Path
) -> None:
    told = happening(server)
    now = AS_OF + timedelta(days=31, microseconds=7)
    past = live_shop.history(told, now)
    expected = snapshots.profile(past, live_shop.GROUPS, now).customers.set_index("customer_id")
    scored = live_shop.profiles(models, past, now)
    server.now = now.replace(tzinfo=UTC)
    touched = {source: {row["customer_id"] for row in rows} for source, rows in told.items()}
    assert touched["events"] != touched["contacts"] != touched["responses"] != set()
    for customer in CUSTOMERS:
        found = server.customer(customer)
        for feature in scored.features:
            if feature.live is None or customer not in touched[feature.source]:
                continue
            value = expected.loc[customer, feature.name]
            assert found["features"][feature.name] == (None if np.isnan(value) else value)
        # Where all that churn reads was touched, churn is that of a refresh, too.
        if customer in touched["events"] & touched["contacts"]:
            row = scored.index(customer)
            churn = scored.matrix[row, scored.columns.index("churn_probability")]
            assert found["scores"]["churn_probability"] == (None if np.isnan(churn) else churn)
    assert server.customer("c03")["scores"]["churn_probability"] is None  # nobody asked
    untouched = server.customer("c00")
    assert untouched["live"] is None


def test_after_a_refresh_that_has_read_them_events_do_not_count_twice(
    server: Server, models: Path, project: Path
) -> None:
    told = happening(server)
    second = AS_OF + timedelta(days=20)
    live_shop.refresh(project, models, live_shop.history(told, second), second)
    now = AS_OF + timedelta(days=31, microseconds=7)
    expected = snapshots.profile(live_shop.history(told, now), live_shop.GROUPS, now).customers
    expected = expected.set_index("customer_id")
    with Server(project, now.replace(tzinfo=UTC)).client as client:
        times = [(row["customer_id"], row["event_at"]) for row in told["events"]]
        since = {customer for customer, at in times if at >= second}
        assert since & {customer for customer, at in times if at < second}
        for customer in since:
            found = client.get(f"/v1/customers/{customer}").json()["features"]
            for name in ("cart_adds_28d", "visits_28d", "opens_28d", "days_since_last_visit"):
                value = expected.loc[customer, name]
                assert found[name] == (None if np.isnan(value) else value)


# --- batch, replay, other ways -------------------------------------------------------------------


def test_a_batch_decides_with_the_same_news(server: Server, project: Path) -> None:
    happening(server)
    now = AS_OF.replace(tzinfo=UTC) + timedelta(days=30, hours=5, microseconds=7)
    server.post("c05", "cart_add", now - HOUR)
    state = load_state(project)
    with closing(open_store(project)) as store:
        rows: dict[str, dict[str, Any]] = {}

        def each(decisions: Any) -> None:
            for i, customer in enumerate(decisions.audience.customer_ids):
                rows[customer] = {**decisions.answer(i), "live": decisions.audience.live}

        situation = situation_for(state, "web", now=now)
        first = decide_batch(state, situation, store=store, each=each)
    lives = 0
    for customer in CUSTOMERS:
        online = server.ask(customer, now)
        assert online["offers"] == rows[customer]["offers"]
        live = server.inputs(online).get("live")
        assert live == json.loads(json.dumps(rows[customer]["live"].get(customer)))
        lives += live is not None
    assert lives == 10
    assert offers(rows["c05"]) == ["cart"]
    # The batch's name stands for all that had happened before it, also for what was not bought.
    server.post("c06", "visit", now - HOUR)
    with closing(open_store(project)) as store:
        second = decide_batch(state, situation, store=store)
    assert second.batch_id != first.batch_id


def test_a_decision_with_live_features_is_replayed_bit_for_bit(
    server: Server, project: Path
) -> None:
    server.post("c04", "cart_add", NOON - HOUR)
    server.ask("c04", NOON - HOUR / 2)
    answer = server.ask("c04", NOON, explain=True)
    assert server.inputs(answer)["live"]["heard"] == {"events": 1, "contacts": 1}
    server.post("c04", "purchase", NOON + HOUR)  # what comes later changes nothing
    with closing(open_store(project)) as store:
        found = replay(project, store, answer["decision_id"])
    assert found.verdict == "identical", found
    assert "scored again" in found.scores
    assert found.trace == answer["trace"]
    stored = server.client.get(f"/v1/decisions/{answer['decision_id']}").json()
    assert stored["trace"] == answer["trace"]


@pytest.mark.parametrize("name", ["abandoned_cart", "contacts_28d"])
def test_a_live_feature_that_was_changed_in_the_record_shows(
    server: Server, project: Path, name: str
) -> None:
    server.post("c04", "cart_add", NOON - HOUR)
    server.ask("c04", NOON - HOUR / 2)
    answer = server.ask("c04", NOON)
    file = project / ".nextbest" / "store.db"
    with closing(sqlite3.connect(file)) as raw, raw:
        where = (answer["decision_id"],)
        query = "SELECT record FROM decisions WHERE decision_id = ?"
        record = json.loads(raw.execute(query, where).fetchone()[0])
        record["made_from"]["live"]["features"][name][1] += 7.0
        change = "UPDATE decisions SET record = ? WHERE decision_id = ?"
        raw.execute(change, (json.dumps(record), *where))
    with closing(open_store(project)) as store:
        assert replay(project, store, answer["decision_id"]).verdict == "differs"


def test_a_score_that_only_a_refresh_can_compute_is_kept_and_named(project: Path) -> None:
    bundle = load_bundle(project / ".nextbest" / "serving")
    for change in (
        {"kind": "clv"},
        {"encoder": replace_columns(bundle.models["churn"].encoder)},
    ):
        churn = replace(bundle.models["churn"], **change)
        other = replace(bundle, models={**bundle.models, "churn": churn})
        shaper = Shaper(other, live_shop.OFFERS)
        at = AS_OF + HOUR
        past = Past(events=Events(("c04",), ("visit",), (at,), ("e",)))
        news = shaper.news(["c04"], past, at + HOUR)
        before = shaper.audience(["c04"], ContactHistory.empty())
        after = shaper.audience(["c04"], ContactHistory.empty(), news)
        assert after.live["c04"]["kept"] == ["churn_probability"]
        assert after.live["c04"]["scores"] == {}
        assert after.columns["churn_probability"] == before.columns["churn_probability"]


def replace_columns(encoder: Any) -> Any:
    """An encoder that reads a column which no profile has."""
    said = encoder.to_dict()
    return type(encoder).from_dict({**said, "columns": [*said["columns"], "spend_91d"]})


def test_nobody_with_news_is_asked_nothing(project: Path) -> None:
    state = load_state(project)
    situation = situation_for(state, "web", now=NOON)
    old = (AS_OF - HOUR,)
    nothing = [
        Past(),
        Past(Contacts(("c04",), ("news",), ("web",), old, ("d",))),
        Past(events=Events(("c04",), ("visit",), (AS_OF + timedelta(days=9),), ("e",))),
        Past(events=Events(("nobody",), ("visit",), (AS_OF + HOUR,), ("e",))),
    ]
    for past in nothing:
        assert state.shaper.news(["c04", "nobody"], past, NOON) is None
        assert decide_for(state, None, ["c04"], situation, ["d"], past).audience.live == {}


def test_a_response_is_a_yes_to_an_offer_that_was_made(server: Server) -> None:
    def responses() -> float:
        value = server.customer("c00")["features"]["response_actions"]
        return float(value)

    first = server.ask("c00", NOON)
    for kind in ("open", "refusal", "purchase"):
        server.answer(first, NOON + HOUR, kind)
    server.now = NOON + 9 * HOUR
    assert responses() == 0
    server.answer(first, NOON + HOUR)
    server.answer(first, NOON - HOUR, "conversion")  # before it was made
    lone = {"outcome_id": "x", "customer_id": "c00", "offer_id": "cart",
            "outcome_type": "response", "occurred_at": (NOON + HOUR).isoformat()}  # fmt: skip
    assert server.client.post("/v1/outcomes", json=lone).status_code == 200
    assert responses() == 1
    assert server.client.post(
        "/v1/outcomes", json={**lone, "outcome_id": "y", "offer_id": "news"}
    ).status_code == 200  # fmt: skip
    assert responses() == 2
    live = server.customer("c00")["live"]
    assert live["heard"] == {"contacts": 1, "responses": 2}
    assert live["features"]["responses_total"] == [0.0, 1.0]


def test_a_bundle_whose_rows_are_damaged_is_refused(project: Path) -> None:
    folder = project / ".nextbest" / "serving"
    (file,) = folder.glob("*/recent/events/at.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(Exception, match="not the file that was written"):
        load_bundle(folder)
