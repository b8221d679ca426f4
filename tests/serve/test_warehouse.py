"""Contacts of the warehouse count beside those of the decision log, each of them once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shop
from fastapi.testclient import TestClient

from nextbest.data.profiles import Profiles
from nextbest.data.recent import COLUMNS
from nextbest.errors import ArtifactError, ConfigError
from nextbest.serve.audience import past_of
from nextbest.serve.bundle import load_bundle, write_bundle
from nextbest.serve.runtime import load_state, open_store
from nextbest.serve.warehouse import PastContacts

Serve = Callable[..., TestClient]
NOW = shop.NOW.replace(tzinfo=None)
COUNTING = "[contact]\ncount_history = true\n\n[[contact.caps]]"


def table(*events: tuple[Any, ...]) -> pd.DataFrame:
    """Events as customer, offer, channel, type, days ago, decision."""
    rows = [(c, o, ch, t, NOW - timedelta(days=ago), d) for c, o, ch, t, ago, d in events]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def publish(project: Path, artefacts: Path, *events: tuple[Any, ...], days: float = 30.0) -> str:
    profiles = Profiles.open(artefacts / "profiles")
    past = PastContacts.of(profiles, table(*events), days)
    folder = project / ".nextbest" / "serving"
    return write_bundle(folder, shop.sources(artefacts), profiles, contacts=past)


@pytest.fixture
def counting(project: Path) -> Path:
    policy = shop.POLICY.replace("[[contact.caps]]", COUNTING, 1)
    (project / "serving" / "policy.toml").write_text(policy)
    return project


def reasons(client: TestClient, customer_id: str = "c02") -> dict[str, str]:
    """What became of each offer, for a customer who may be asked by mail."""
    question = {"customer_id": customer_id, "channel": "mail", "explain": True}
    trace = client.post("/v1/decisions", json=question).json()["trace"]
    return {o["offer_id"]: o["fate"]["reason"] for o in trace["offers"]}


def test_letters_of_the_warehouse_fill_the_cap(
    counting: Path, artefacts: Path, serve: Serve
) -> None:
    publish(
        counting, artefacts,
        ("c02", "a", "mail", "contact", 1, None),
        ("c02", "gone", "mail", "contact", 6.9, None),  # no longer in the catalogue
        ("c02", "b", "mail", "contact", 7.1, None),  # before the week
        ("c02", "b", "email", "contact", 1, None),  # on another channel
        ("c05", "a", "mail", "contact", 1, None),
    )  # fmt: skip
    client = serve(counting)
    assert reasons(client)["a"] == "two letters a week"
    assert reasons(client, "c05")["a"] != "two letters a week"  # one letter, and one is left
    assert reasons(client, "c05")["a"] == "two letters a week"


def test_a_refusal_is_one_and_a_click_is_none(
    counting: Path, artefacts: Path, serve: Serve
) -> None:
    publish(
        counting, artefacts,
        ("c02", "a", None, "refusal", 29, None),
        ("c02", "b", None, "click", 1, None),
        ("c02", "b", None, "redemption", 1, None),
    )  # fmt: skip
    found = reasons(serve(counting))
    assert found["a"] == "pause after a refusal" != found["b"]
    answers = load_state(counting).shaper.warehouse(["c02"]).outcomes
    # A type that only the warehouse knows is a response, as the contract calls the table.
    assert sorted(answers.types) == ["click", "refusal", "response"]


def test_without_the_switch_they_do_not_count(project: Path, artefacts: Path, serve: Serve) -> None:
    letters = [("c02", "a", "mail", "contact", day, None) for day in (1, 2, 3)]
    publish(project, artefacts, *letters)
    assert reasons(serve(project))["a"] != "two letters a week"


def test_what_both_know_counts_once(counting: Path, artefacts: Path, serve: Serve) -> None:
    """One letter of this engine, loaded back from the warehouse: one more is left, not none."""
    publish(counting, artefacts)
    client = serve(counting)
    question = {"customer_id": "c02", "channel": "mail"}
    first = client.post("/v1/decisions", json=question).json()
    (offer,) = first["offers"]
    report = {
        "outcome_id": "o1", "decision_id": first["decision_id"],
        "outcome_type": "refusal", "occurred_at": shop.NOW.isoformat(),
    }  # fmt: skip
    assert client.post("/v1/outcomes", json=report).status_code == 200
    known = (("c02", offer["offer_id"], "mail", "contact", 0, first["decision_id"]),
             ("c02", offer["offer_id"], None, "refusal", 0, first["decision_id"]))  # fmt: skip
    publish(counting, artefacts, *known)
    state = load_state(counting)
    store = open_store(counting)
    log = past_of(store, ["c02"])
    store.close()
    assert log.joined(state.shaper.warehouse(["c02"])) == log
    # What only the warehouse knows is added, whether or not it names a decision.
    for other in (None, "elsewhere"):
        one = ("c02", "a", "mail", "contact", 1, other)
        publish(counting, artefacts, *known, one)
        told = load_state(counting).shaper.warehouse(["c02"])
        assert len(log.joined(told).contacts.at) == 2


def test_strangers_have_no_past(counting: Path, artefacts: Path) -> None:
    publish(counting, artefacts, ("c00", "a", "mail", "contact", 1, None))
    shaper = load_state(counting).shaper
    assert shaper.warehouse(["nobody", "c01"]).contacts.at == ()
    found = shaper.warehouse(["c01", "nobody", "c00"]).contacts
    assert (found.customer_ids, found.at) == (("c00",), (NOW - timedelta(days=1),))


def test_the_bundle_must_reach_as_far_back_as_the_limits(
    counting: Path, artefacts: Path, serve: Serve
) -> None:
    with pytest.raises(ConfigError, match=r"\[contact\].*last 30 days; got none.*refresh"):
        load_state(counting)
    publish(counting, artefacts, days=29.0)
    with pytest.raises(ConfigError, match=r"last 30 days; got those of the last 29 days"):
        load_state(counting)
    publish(counting, artefacts, days=30.0)
    assert load_state(counting).rules.tables.history_days() == 30.0


def test_the_same_events_make_the_same_bundle_and_damage_is_seen(
    counting: Path, artefacts: Path
) -> None:
    events = [("c02", "a", "mail", "contact", 1, None), ("c01", "b", None, "refusal", 2, "d")]
    first = publish(counting, artefacts, *events)
    assert publish(counting, artefacts, *events) == first
    assert publish(counting, artefacts, *events[:1]) != first
    folder = counting / ".nextbest" / "serving"
    file = next(folder.glob("*/contacts.npz"))
    again = file.with_name("again.npz")
    PastContacts.open(file).save(again)
    assert again.read_bytes() == file.read_bytes()
    current = folder / load_bundle(folder).id / "contacts.npz"
    content = bytearray(current.read_bytes())
    content[len(content) // 2] ^= 1
    current.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"contacts\.npz is not the file that was written"):
        load_bundle(folder)


def test_told_as_brute_force_finds_it(artefacts: Path) -> None:
    profiles = Profiles.open(artefacts / "profiles")
    random = np.random.default_rng(3)
    events = [
        (shop.CUSTOMERS[random.integers(60)], random.choice(["a", "b", "gone"]),
         random.choice(["mail", "email"]), "contact", float(random.integers(30)), None)
        for _ in range(200)
    ]  # fmt: skip
    past = PastContacts.of(profiles, table(*events), 30.0)
    asked = [shop.CUSTOMERS[i] for i in random.permutation(60)[:20]]
    rows = np.array([profiles.index(c) for c in asked])
    contacts, outcomes = past.told(asked, rows)
    found = zip(contacts.customer_ids, contacts.offer_ids, contacts.channels, contacts.at,
                strict=True)  # fmt: skip
    expected = [(c, o, ch, NOW - timedelta(days=ago)) for c, o, ch, _, ago, _ in events
                if c in asked]  # fmt: skip
    assert sorted(found) == sorted(expected) and outcomes.at == ()
    assert all(isinstance(at, datetime) for at in contacts.at)
