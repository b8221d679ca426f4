"""Limits of a batch on a real shop: shared out, said, recorded, and heeded online."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from nextbest.cli import app
from nextbest.decide.assign import Price, Prices
from nextbest.errors import DataError, StoreError
from nextbest.serve.batch import BatchSummary, decide_batch, situation_for
from nextbest.serve.runtime import Runtime, State, load_state, open_store, serving_dir
from nextbest.serve.scarcity import FILE, StoredPrices, read_prices, write_prices
from nextbest.serve.schemas import DecisionAnswer
from nextbest.serve.telemetry import Metrics

Serve = Callable[..., TestClient]


def limited(project: Path, budgets: str = "", **offer_limits: str) -> State:
    """The shop with some limits in its files."""
    offers, policy = (project / "serving" / f"{name}.toml" for name in ("offers", "policy"))
    text = offers.read_text()
    for offer_id, line in offer_limits.items():
        text = text.replace(f'id = "{offer_id}"\n', f'id = "{offer_id}"\n{line}\n')
    offers.write_text(text)
    policy.write_text(policy.read_text() + budgets)
    return load_state(project)


def run(state: State, out: Path | None = None, **more: Any) -> BatchSummary:
    return decide_batch(state, situation_for(state, "mail"), out, **more)


def test_a_capacity_goes_to_those_for_whom_it_is_worth_most(project: Path, tmp_path: Path) -> None:
    free = tmp_path / "free.parquet"
    before = run(load_state(project), free)
    assert before.offers["a"] > 20 and before.limits == {}
    out = tmp_path / "out.parquet"
    summary = run(limited(project, a="max_contacts_per_batch = 10"), out)
    assert summary.offers["a"] == 10
    assert summary.funnel["a"]["lost"]["limits"] == {"scarcity: worth more to others":
        before.offers["a"] - 10}  # fmt: skip
    rows = pq.read_table(out).to_pylist()
    assert "limits: scarcity: worth more to others" in {row["no_offer_because"] for row in rows}
    limits = summary.limits
    assert limits["binding"] == ['capacity of offer "a"']
    assert limits["value"] == pytest.approx(sum(row["priority"] or 0 for row in rows))
    assert 0 <= limits["gap"] < 1e-6
    json.dumps(summary.to_dict(), allow_nan=False)


def test_a_limit_that_keeps_nobody_from_anything_changes_no_byte(
    project: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "wide.parquet", tmp_path / "as_without.parquet"]
    state = limited(project, "\n[budgets]\ntotal = 1000000\n[budgets.channels]\nmail = 60\n")
    summary = run(state, files[0])
    assert summary.limits["binding"] == [] and summary.limits["gap"] < 1e-6
    none = "nextbest.decide.ration.constraints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(none, lambda *_: ())
        run(state, files[1])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_limits_do_not_depend_on_how_the_batch_is_cut(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = '\n[exploration]\nsalt = "a salt of our own"\npolicy = "softmax"\n'
    state = limited(project, chance, a="max_contacts_per_batch = 10")
    one = run(state, tmp_path / "1.parquet")
    monkeypatch.setattr("nextbest.serve.batch.CHUNK", 7)
    other = run(state, tmp_path / "2.parquet")
    tables = [pq.read_table(tmp_path / f"{i}.parquet") for i in (1, 2)]
    assert tables[0].equals(tables[1]) and one.offers == other.offers


def test_contacts_in_the_log_count_for_a_capacity_in_all(project: Path, serve: Serve) -> None:
    state = limited(project, a="max_contacts = 10")
    store = open_store(project)
    client = serve(project)
    made = 0
    for customer_id in ("c01", "c04", "c07"):
        question = {"customer_id": customer_id, "channel": "mail"}
        answer = client.post("/v1/decisions", json=question).json()
        made += answer["offers"][0]["offer_id"] == "a"
    assert made > 0
    first = run(state, store=store, record=True)
    assert first.offers["a"] == 10 - made
    # What a batch recorded itself is its own: it can be run again, and has used up nothing.
    again = run(state, store=store, record=True)
    assert (again.batch_id, again.offers, again.recorded) == (first.batch_id, first.offers, 0)
    later = replace(situation_for(state, "mail"), decided_at=datetime(2020, 3, 3, tzinfo=UTC))
    third = decide_batch(state, later, store=store)
    assert third.offers["a"] == 0 and third.limits["prices"][0]["limit"] == 0
    store.close()


def test_a_limited_batch_that_broke_off_goes_on_as_it_began(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextbest.serve.batch.CHUNK", 25)
    state = limited(project, a="max_contacts = 10")
    store = open_store(project)

    def breaks_off(done: int, _: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(state, store=store, record=True, progress=breaks_off)
    summary = run(state, store=store, record=True)
    assert (summary.recorded, summary.recorded_before) == (35, 25)
    assert Counter(store.history(None)[0].offer_ids)["a"] == summary.offers["a"] == 10
    store.close()


def test_prices_of_a_batch_are_heeded_online_and_named(project: Path, serve: Serve) -> None:
    state = limited(project, a="max_contacts_per_batch = 10")
    summary = run(state, prices_dir=serving_dir(project))
    price = summary.limits["prices"][0]["price"]
    assert price > 0
    client, state = serve(project), load_state(project)
    stored = state.prices["mail"]
    got = []
    for customer_id in [f"c{i:02d}" for i in range(60)]:
        question = {"customer_id": customer_id, "channel": "mail", "explain": True}
        answer = client.post("/v1/decisions", json=question).json()
        DecisionAnswer.model_validate(answer)
        assert answer["versions"]["prices"] == stored.prices.content_hash
        assert "prices_ignored" not in answer
        (a,) = (one for one in answer["trace"]["offers"] if one["offer_id"] == "a")
        assert a["numbers"]["scarcity_price"] == price
        got += [one["offer_id"] for one in answer["offers"]]
    assert 9 <= got.count("a") <= 11  # by themselves, customers leave it to those who need it
    email = client.post("/v1/decisions", json={"customer_id": "c01", "channel": "email"}).json()
    assert "prices" not in email["versions"] and "prices_ignored" not in email


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("age", r"they are 8\.0 days old; they hold for 7"),
        ("policy", "they were found with another catalogue or policy"),
        ("damage", "the stored prices cannot be read"),
        ("off", None),
    ],
)
def test_prices_that_do_not_hold_are_ignored_and_that_is_said(
    project: Path, serve: Serve, change: str, says: str | None
) -> None:
    off = "\n[budgets]\nonline = false\n" if change == "off" else ""
    state = limited(project, off, a="max_contacts_per_batch = 10")
    folder = serving_dir(project)
    run(state, prices_dir=folder)
    if change == "age":
        stored = read_prices(folder)["mail"]
        old = replace(stored, decided_at=stored.decided_at - timedelta(days=8))
        write_prices(folder, "mail", old)
    elif change == "policy":
        limited(project, '\n[applicability]\nall = "TRUE"\n')
    elif change == "damage":
        (folder / FILE).write_text('{"mail": {"catalogue": 1}}')
    question = {"customer_id": "c01", "channel": "mail", "explain": True}
    answer = serve(project).post("/v1/decisions", json=question).json()
    DecisionAnswer.model_validate(answer)
    assert "prices" not in answer["versions"]
    assert "scarcity_price" not in answer["trace"]["offers"][0]["numbers"]
    if says is None:
        assert "prices_ignored" not in answer
    else:
        assert re.search(says, answer["prices_ignored"])


def test_a_running_server_takes_up_new_prices(project: Path) -> None:
    state = limited(project, a="max_contacts_per_batch = 10")
    runtime = Runtime(project, Metrics(), None)
    runtime.reload()
    assert runtime.state().prices == {}
    run(state, prices_dir=serving_dir(project))
    runtime.reload()
    assert list(runtime.state().prices) == ["mail"]


def test_the_command_says_what_more_would_be_worth(project: Path) -> None:
    limited(project, "\n[budgets]\ntotal = 1000000\n", a="max_contacts_per_batch = 10")
    for room in ("models", "training"):
        (project / room).mkdir()
    (project / "training" / "training.toml").write_text("")
    command = ["decide", "--project", str(project), "--channel", "mail"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert 'capacity of offer "a": 10 of 10 used; one more contact is worth ' in said
    assert "of 1,000,000.00 used; more of it is worth nothing." in said and "(gap 0.000%)" in said
    done = CliRunner().invoke(app, [*command, "--json"])
    facts = json.loads(done.stdout)["limits"]
    assert facts["binding"] == ['capacity of offer "a"']
    assert (
        read_prices(serving_dir(project))["mail"].prices.each[0].price
        == (facts["prices"][0]["price"])
    )
    # A policy that is only tried out leaves the prices of the project's own alone.
    (project / "other.toml").write_text((project / "serving" / "policy.toml").read_text() + "\n")
    before = (serving_dir(project) / FILE).read_bytes()
    CliRunner().invoke(app, [*command, "--policy", str(project / "other.toml")])
    assert (serving_dir(project) / FILE).read_bytes() == before


def test_prices_of_one_channel_leave_those_of_another(tmp_path: Path) -> None:
    price = Price("total", "currency", ("a",), 10.0, 10.0, 0.5)
    one = StoredPrices("c", "p", datetime(2020, 3, 2, tzinfo=UTC), Prices(("a",), (price,)))
    write_prices(tmp_path, "mail", one)
    write_prices(tmp_path, "email", replace(one, policy="q"))
    assert read_prices(tmp_path) == {"mail": one, "email": replace(one, policy="q")}
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(DataError, match=r"prices\.json: the stored prices cannot be read"):
        read_prices(tmp_path)
    write_prices(tmp_path, "mail", one)
    assert read_prices(tmp_path) == {"mail": one}
    with pytest.raises(StoreError, match="the prices cannot be written"):
        write_prices(tmp_path / FILE, "mail", one)
