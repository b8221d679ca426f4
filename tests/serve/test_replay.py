"""A recorded decision is made again bit for bit; what differs or is missing is named."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from collections.abc import Callable
from copy import deepcopy
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import shop
from commands import Ran, Run
from fastapi.testclient import TestClient

from nextbest.data.profiles import Profiles
from nextbest.decide.packed import Shared
from nextbest.serve.archive import folder
from nextbest.serve.batch import decide_batch, situation_for
from nextbest.serve.bundle import write_bundle
from nextbest.serve.records import Kept
from nextbest.serve.replay import Replay, replay
from nextbest.serve.runtime import load_state, open_store
from nextbest.serve.schemas import StoredDecisionAnswer

Serve = Callable[..., TestClient]
SALT = "a salt of the shop's own"
DRAWN = f"""
[exploration]
salt = "{SALT}"
policy = "epsilon"
epsilon = 0.5
"""


def edit(project: Path, name: str, old: str, new: str) -> None:
    file = project / "serving" / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def ask(client: TestClient, customer_id: str = "c01", **more: Any) -> dict[str, Any]:
    question = {"customer_id": customer_id, "channel": "mail", **more}
    response = client.post("/v1/decisions", json=question)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def read(client: TestClient, answer: dict[str, Any]) -> dict[str, Any]:
    response = client.get(f"/v1/decisions/{answer['decision_id']}")
    assert response.status_code == 200, response.text
    StoredDecisionAnswer.model_validate(response.json())
    found: dict[str, Any] = response.json()
    return found


def again(project: Path, decision_id: str) -> Replay:
    store = open_store(project)
    try:
        return replay(project, store, decision_id)
    finally:
        store.close()


def tamper(project: Path, decision_id: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the stored record as somebody with access to the database would."""
    with sqlite3.connect(project / ".nextbest" / "store.db") as database:
        query = (
            "select record, numbers, shared, content from decisions "
            "left join shared_inputs on hash = shared where decision_id = ?"
        )
        text, numbers, *shared = database.execute(query, [decision_id]).fetchone()
        record = deepcopy(dict(Kept(text, numbers, Shared(*shared) if shared[0] else None).read()))
        change(record)
        update = "update decisions set record = ?, numbers = null, shared = null"
        database.execute(f"{update} where decision_id = ?", [json.dumps(record), decision_id])


@pytest.fixture(autouse=True)
def fixed_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn depends on the decision's id, so the ids are the same in every run."""
    ids = map("d{}".format, count())
    monkeypatch.setattr("nextbest.serve.decisions.new_decision_ids", lambda n: list(islice(ids, n)))


@pytest.fixture
def recorded(project: Path, serve: Serve) -> dict[str, Any]:
    """An answer that was drawn by chance, after a contact."""
    with (project / "serving" / "policy.toml").open("a") as policy:
        policy.write(DRAWN)
    client = serve(project)
    assert ask(client)["offers"]
    answer = ask(client, limit=2, context={"weather": "rain"})
    assert 0 < answer["offers"][0]["selection_probability"] < 1
    return answer


def test_every_recorded_decision_is_made_again_bit_for_bit(project: Path, serve: Serve) -> None:
    (project / "serving" / "policy.toml").open("a").write(
        DRAWN + f'[holdout]\nsalt = "{SALT}"\nshare = 0.2\n[arms]\nsalt = "{SALT}"\n'
        "no_contact = 0.1\nrandom_eligible = 0.2\npropensity_only = 0.2\nno_levers = 0.2\n"
    )
    client = serve(project)
    batch = {"customer_ids": [*shop.CUSTOMERS[:30], "nobody"], "channel": "mail", "limit": 2}
    answers = client.post("/v1/decisions/batch", json=batch).json()["decisions"]
    answers += [ask(client, customer_id, channel="email") for customer_id in shop.CUSTOMERS[:5]]
    assert len({answer["arm"] for answer in answers}) >= 5
    for answer in answers:
        found = again(project, answer["decision_id"])
        assert (found.verdict, found.differences) == ("identical", ())
        assert found.scores.startswith("features and propensities were read and scored again")
        assert found.trace is not None
        assert found.trace["chosen"] == answer["offers"]


def test_a_record_that_an_earlier_version_kept_as_text_is_replayed(
    project: Path, serve: Serve, recorded: dict[str, Any]
) -> None:
    before = again(project, recorded["decision_id"])
    tamper(project, recorded["decision_id"], lambda record: None)
    assert again(project, recorded["decision_id"]) == before
    assert before.verdict == "identical"
    assert read(serve(project), recorded)["decision"] == recorded


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("decisions set numbers = substr(numbers, 1, 40)", "ValueError"),
        ("decisions set numbers = cast(numbers || x'00' as blob)", "bytes instead of"),
        ("decisions set numbers = null", "ValueError"),
        ("decisions set record = replace(record, 'made_from', 'made')", "KeyError: 'made_from'"),
        ("decisions set record = substr(record, 1, 99)", "JSONDecodeError"),
        ("shared_inputs set content = replace(content, '\"a\"', '\"b\"')", "has the hash"),
    ],
)
def test_what_was_packed_and_is_damaged_is_named(
    project: Path, recorded: dict[str, Any], change: str, said: str
) -> None:
    with sqlite3.connect(project / ".nextbest" / "store.db") as database:
        assert database.execute(f"update {change}").rowcount
    found = again(project, recorded["decision_id"])
    assert found.verdict == "cannot be replayed"
    (fault,) = found.missing
    assert fault.startswith("the record: ") and "damaged" in fault and said in fault
    store = open_store(project)
    logged = [one.record for part in store.decision_parts(10) for one in part]
    store.close()
    assert logged and not any(logged)


def test_a_number_that_was_changed_shows(project: Path, recorded: dict[str, Any]) -> None:
    with sqlite3.connect(project / ".nextbest" / "store.db") as database:
        query = "select numbers from decisions where decision_id = ?"
        ((numbers,),) = database.execute(query, [recorded["decision_id"]])
        nudged = struct.pack("<d", struct.unpack("<d", numbers[:8])[0] * 1.5)  # a propensity
        change = "update decisions set numbers = ? where decision_id = ?"
        database.execute(change, [nudged + numbers[8:], recorded["decision_id"]])
    found = again(project, recorded["decision_id"])
    assert found.verdict == "differs"
    assert "profile.propensity.0" in {difference.where for difference in found.differences}


def test_batches_are_replayed_too(project: Path) -> None:
    state, store = load_state(project), open_store(project)
    try:
        decide_batch(state, situation_for(state, "mail"), store=store, record=True)
        with sqlite3.connect(project / ".nextbest" / "store.db") as database:
            ids = [row[0] for row in database.execute("select decision_id from decisions")]
        assert len(ids) == 60
        assert {replay(project, store, one).verdict for one in ids[::6]} == {"identical"}
    finally:
        store.close()


def test_the_record_is_lean_and_its_trace_is_made_again(client: TestClient, project: Path) -> None:
    plain, told = ask(client, "c01"), ask(client, "c04", explain=True)
    trace = told.pop("trace")
    assert read(client, told) | {"outcomes": []} == {
        "request": read(client, told)["request"],
        "decision": told,
        "trace": trace,
        "missing": None,
        "outcomes": [],
    }
    store = open_store(project)
    kept = {key: store.decision(a["decision_id"]) for key, a in (("p", plain), ("t", told))}
    store.close()
    assert all(one is not None for one in kept.values())
    assert kept["p"].record.keys() == {"request", "answer", "selection", "inputs"}  # type: ignore[union-attr]
    assert "contributions" in kept["t"].record  # type: ignore[union-attr]
    (offer,) = told["offers"]
    because, numbers = trace["because"][offer["offer_id"]], trace["contributions"]
    strongest = numbers[offer["offer_id"]][0]
    assert because.startswith(f"because {strongest['feature']} ")
    assert f"({strongest['effect']:+.2f})" in because


def test_a_repeated_request_gets_its_trace_again(client: TestClient, project: Path) -> None:
    first = ask(client, explain=True, idempotency_key="k")
    assert ask(client, explain=True, idempotency_key="k") == first


def test_identical_after_the_files_were_edited(
    project: Path, serve: Serve, recorded: dict[str, Any]
) -> None:
    edit(project, "policy.toml", "multiplier = 100", "multiplier = 0.001")
    edit(project, "policy.toml", "at_most = 2", "at_most = 1")
    edit(project, "offers.toml", "margin_rate = 0.3", "margin_rate = 0.9")
    client = serve(project)
    assert ask(client, context={"weather": "rain"})["versions"] != recorded["versions"]
    assert again(project, recorded["decision_id"]).verdict == "identical"
    assert read(client, recorded)["trace"]["policy_hash"] == recorded["versions"]["policy"]
    archived = {path.name.partition("-")[0] for path in folder(project).iterdir()}
    assert (len(list(folder(project).iterdir())), archived) == (4, {"policy", "offers"})


def test_identical_after_later_contacts_and_answers(
    project: Path, serve: Serve, recorded: dict[str, Any]
) -> None:
    client = serve(project)
    report = {
        "outcome_id": "o1",
        "decision_id": recorded["decision_id"],
        "outcome_type": "refusal",
        "occurred_at": "2020-03-02T09:00:00Z",
    }
    for offer in recorded["offers"]:
        said = {**report, "outcome_id": offer["offer_id"], "offer_id": offer["offer_id"]}
        assert client.post("/v1/outcomes", json=said).status_code == 200
    ask(client)
    assert again(project, recorded["decision_id"]).verdict == "identical"


def test_a_bundle_that_was_replaced_is_still_read_until_it_is_gone(
    project: Path, artefacts: Path, recorded: dict[str, Any]
) -> None:
    serving = project / ".nextbest" / "serving"
    profiles = Profiles.open(artefacts / "profiles")
    write_bundle(serving, shop.sources(artefacts, "propensity-2"), profiles)
    found = again(project, recorded["decision_id"])
    assert found.verdict == "identical"
    assert found.scores.startswith("features and propensities were read and scored again")
    shutil.rmtree(serving / recorded["versions"]["bundle"])
    found = again(project, recorded["decision_id"])
    assert found.verdict == "identical"
    assert found.scores == (
        f"bundle {recorded['versions']['bundle']} was replaced and is gone; features and "
        "propensities were taken from the record"
    )


def test_a_damaged_bundle_is_named(project: Path, recorded: dict[str, Any]) -> None:
    manifest = project / ".nextbest" / "serving" / recorded["versions"]["bundle"] / "manifest.json"
    manifest.write_text(manifest.read_text().replace("run-4", "run-5"))
    found = again(project, recorded["decision_id"])
    assert found.verdict == "identical"
    assert "manifest is not the one that was written" in found.scores


def first_offer(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["answer"]["offers"][0]
    return found


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda r: first_offer(r).update(offer_id="z"), "answer.offers.0.offer_id"),
        (
            lambda r: first_offer(r).update(selection_probability=0.123),
            "answer.offers.0.selection_probability",
        ),
        (lambda r: r["selection"].update(no_offer=0.5), "selection.no_offer"),
        (lambda r: r["selection"]["eligible"].append("c"), "selection.eligible"),
        (lambda r: r["answer"].update(arm="holdout"), "answer.arm"),
        (lambda r: r["inputs"].update(customer_id="c04"), "record.customer_id"),
        (lambda r: r["inputs"].update(decision_id="d"), "record.decision_id"),
        (lambda r: r["inputs"]["situation"].update(limit=1), "request.limit"),
        # Bread cannot tell that this was changed, only the models and profiles can.
        (lambda r: r["inputs"]["profile"]["columns"].update(clv=1.5), "profile.columns.clv"),
    ],
)
def test_a_tampered_record_is_detected(
    project: Path,
    recorded: dict[str, Any],
    change: Callable[[dict[str, Any]], Any],
    where: str,
) -> None:
    tamper(project, recorded["decision_id"], change)
    found = again(project, recorded["decision_id"])
    assert found.verdict == "differs"
    assert where in {difference.where for difference in found.differences}


def test_a_contact_that_was_taken_out_of_the_log_is_detected(
    project: Path, recorded: dict[str, Any]
) -> None:
    with sqlite3.connect(project / ".nextbest" / "store.db") as database:
        where = "where decision_id = ? and rank = 1"
        database.execute(f"delete from contacts {where}", [recorded["decision_id"]])
    (difference,) = again(project, recorded["decision_id"]).differences
    made = [offer["offer_id"] for offer in recorded["offers"]]
    assert (difference.stored, difference.rebuilt) == (made[1:], made)
    assert difference.where == "record.contacts"


def test_the_last_bit_of_a_number_counts(project: Path, recorded: dict[str, Any]) -> None:
    before = recorded["offers"][0]["priority"]
    nudged = before * (1 + 2**-52)

    def nudge(record: dict[str, Any]) -> None:
        assert first_offer(record)["priority"] == before != nudged
        first_offer(record)["priority"] = nudged

    tamper(project, recorded["decision_id"], nudge)
    (difference,) = again(project, recorded["decision_id"]).differences
    assert (difference.stored, difference.rebuilt) == (nudged, before)


def test_everything_that_is_missing_is_named_at_once(
    project: Path, serve: Serve, recorded: dict[str, Any]
) -> None:
    versions = recorded["versions"]
    for path in folder(project).iterdir():
        path.unlink()
    found = again(project, recorded["decision_id"])
    assert found.verdict == "cannot be replayed"
    assert [fault.partition(". ")[0] for fault in found.missing] == [
        f"catalogue {versions['catalogue'][:16]}: it is not in the archive",
        f"policy {versions['policy'][:16]}: it is not in the archive",
    ]
    edit(project, "policy.toml", "multiplier = 100", "multiplier = 2")
    stored = read(serve(project), recorded)  # the catalogue is archived again, the policy gone
    assert stored["trace"] is None
    assert stored["missing"].startswith(f"policy {versions['policy'][:16]}: it is not")
    assert stored["decision"] == recorded


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("multiplier = 7", "its archived file was changed"),
        ("multiplier = ", "its archived file cannot be read"),
    ],
)
def test_an_archived_file_is_verified(
    project: Path, recorded: dict[str, Any], text: str, said: str
) -> None:
    path = folder(project) / f"policy-{recorded['versions']['policy']}.toml"
    path.write_text(path.read_text().replace('multiplier" = 100.0', text.replace(" =", '" =')))
    (fault,) = again(project, recorded["decision_id"]).missing
    assert said in fault
    load_state(project)  # a server that starts with this policy mends its file
    assert again(project, recorded["decision_id"]).verdict == "identical"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("inputs"), 'it holds no "inputs"'),
        (lambda r: r.update(answer=None), 'it holds no "answer"'),
        (lambda r: r["inputs"].pop("contacts"), "KeyError: 'contacts'"),
        (lambda r: r["inputs"].update(profile=None), "TypeError"),
        (lambda r: r["inputs"]["profile"]["columns"].pop("age_band"), 'column "age_band"'),
        (lambda r: r["inputs"]["profile"].update(propensity=[2, 2, 2, 2]), "not a probability"),
        (lambda r: r["inputs"].update(policy_hash="../policy"), "it is not in the archive"),
    ],
)
def test_erased_and_damaged_pieces_are_named(
    project: Path,
    serve: Serve,
    recorded: dict[str, Any],
    change: Callable[[dict[str, Any]], Any],
    said: str,
) -> None:
    tamper(project, recorded["decision_id"], change)
    found = again(project, recorded["decision_id"])
    assert found.verdict == "cannot be replayed"
    assert any(said in fault for fault in found.missing), found.missing


def test_an_archive_that_cannot_be_written_stops_no_decision(
    project: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    folder(project).write_text("a file where the folder should be")
    answer = ask(serve(project))
    assert "archive not written" in caplog.text
    found = again(project, answer["decision_id"])
    assert all("it is not in the archive" in fault for fault in found.missing)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(project: Path, cli: Run) -> Callable[..., Ran]:
    for room in ("models", "training"):
        (project / room).mkdir()
    return lambda *words: cli("replay", *words, "--project", project)


def test_the_command_says_identical(command: Callable[..., Ran], recorded: dict[str, Any]) -> None:
    ran = command(recorded["decision_id"])
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Decision {recorded['decision_id']}: identical.\nScores: ")
    found = command(recorded["decision_id"], "--json").json
    assert (found["verdict"], found["differences"], found["missing"]) == ("identical", [], [])
    assert found["trace"]["decision_id"] == recorded["decision_id"]


def test_the_command_shows_what_differs(
    command: Callable[..., Ran], project: Path, recorded: dict[str, Any]
) -> None:
    tamper(project, recorded["decision_id"], lambda r: first_offer(r).update(rank=9))
    ran = command(recorded["decision_id"])
    assert ran.code == 1
    assert "differs." in ran.out
    row = next(line for line in ran.out.splitlines() if "answer.offers.0.rank" in line)
    assert [cell.strip() for cell in row.split("│")] == ["answer.offers.0.rank", "9", "1"]
    (difference,) = command(recorded["decision_id"], "--json").json["differences"]
    assert difference == {"where": "answer.offers.0.rank", "stored": 9, "rebuilt": 1}


def test_the_command_says_what_is_missing(
    command: Callable[..., Ran], project: Path, recorded: dict[str, Any]
) -> None:
    shutil.rmtree(folder(project))
    ran = command(recorded["decision_id"])
    assert ran.code == 1
    assert "cannot be replayed." in ran.out
    assert f"policy {recorded['versions']['policy'][:16]}: it is not in the archive" in ran.out
    ran = command("no-such-decision")
    assert ran.code == 1
    assert 'decision "no-such-decision": the store does not hold it.' in ran.err
