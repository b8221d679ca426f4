"""The commands of the audit trail and of people, and what others leave in the trail."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import Run, Toy

from nextbest import jobs
from nextbest.errors import RegistryError
from nextbest.project import Project
from nextbest.serve.runtime import open_store


@pytest.fixture
def project(toy: Toy, tmp_path: Path) -> Path:
    """The toy shop as it served; nothing in it is trained or promoted here."""
    return Path(shutil.copytree(toy.root, tmp_path / "shop"))


def trail(root: Path) -> list[dict[str, Any]]:
    store = open_store(root)
    found = [entry.to_dict() for entry in store.audit_entries()]
    store.close()
    return found


def test_promotions_are_in_the_trail_with_versions_and_reasons(toy: Toy) -> None:
    found = [e for e in trail(toy.root) if e["action"] == "promote"]
    assert [e["subject"] for e in found] == [
        f"model {name}" for name in ("propensity", "churn", "clv", "churn")
    ]  # that of hvc was refused
    assert found[-1]["detail"] == {
        "version": 2, "before": 1, "forced": False, "refusing": [],
        "reason": "the second of two",
    }  # fmt: skip
    assert all(e["actor"].startswith("user ") for e in found)


class Shelf:
    """A registry of two versions, of which the first is champion."""

    def __init__(self, *, refusing: bool = False) -> None:
        gate = {"gate": "baseline", "passed": not refusing, "message": "m"}
        tags = {"nextbest.gates": json.dumps([gate])}
        self.kept = [SimpleNamespace(version=1, tags=tags)]
        self.done: list[str] = []

    def versions(self, _: str) -> Any:
        return self.kept

    def champion(self, _: str) -> Any:
        return self.kept[0]

    def promote(self, *_: Any, **how: Any) -> Any:
        self.done.append("promote")
        return self.kept[0]

    def rollback(self, *_: Any, **how: Any) -> Any:
        self.done.append("rollback")
        return SimpleNamespace(version=7)


def test_a_forced_promotion_and_a_rollback_say_what_was_overruled(project: Path) -> None:
    opened, before = Project.open(project), len(trail(project))
    shelf: Any = Shelf(refusing=True)
    jobs.promote(opened, "churn", shelf, force=True, reason="the fair is tomorrow")
    jobs.rollback(opened, "churn", shelf, reason="the fair is over")
    forced, back = trail(project)[before:]
    assert forced["detail"] == {
        "version": 1, "before": 1, "forced": True, "refusing": ["baseline"],
        "reason": "the fair is tomorrow",
    }  # fmt: skip
    assert (back["action"], back["subject"]) == ("rollback", "model churn")
    assert back["detail"] == {"before": 1, "version": 7, "reason": "the fair is over"}


def test_what_cannot_be_noted_is_not_done_and_what_fails_is_not_noted(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, before, shelf = Project.open(project), trail(project), Shelf()
    registry: Any = shelf
    monkeypatch.setattr("nextbest.serve.store.BUSY_TIMEOUT_MS", 50)
    blocker = sqlite3.connect(project / ".nextbest" / "store.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(Exception, match="cannot be"):
        jobs.promote(opened, "churn", registry)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert shelf.done == []

    def refuse(*_: Any, **__: Any) -> None:
        raise RegistryError("registry", "it is down")

    monkeypatch.setattr(shelf, "promote", refuse)
    with pytest.raises(RegistryError):
        jobs.promote(opened, "churn", registry)
    assert trail(project) == before


def test_audit_list_and_verify(project: Path, cli: Run) -> None:
    listed = json.loads(cli("audit", "list", "--project", project, "--json").out)["entries"]
    assert listed == trail(project)
    said = cli("audit", "list", "--project", project).out
    assert "promote  model churn  version 2, before 1" not in said  # sorted by name
    assert len(said.splitlines()) == len(listed) and "reason the second of two" in said
    good = cli("audit", "verify", "--project", project)
    assert good.code == 0 and f"Head: {len(listed)} {listed[-1]['hash']}" in good.out
    head = ("--head", listed[-1]["hash"])
    assert cli("audit", "verify", "--project", project, *head).code == 0
    with sqlite3.connect(project / ".nextbest" / "store.db") as connection:
        connection.execute(f"DELETE FROM audit WHERE number = {len(listed)}")
    assert cli("audit", "verify", "--project", project).code == 0
    cut = cli("audit", "verify", "--project", project, *head)
    assert cut.code == 1 and "cut short" in cut.out
    with sqlite3.connect(project / ".nextbest" / "store.db") as connection:
        connection.execute("UPDATE audit SET actor = 'user nobody' WHERE number = 2")
    bad = cli("audit", "verify", "--project", project, "--json")
    assert bad.code == 1
    verdict = json.loads(bad.out)
    assert (verdict["ok"], verdict["number"]) == (False, 1)
    assert verdict["problem"].startswith("entry 2 was changed")


def test_a_person_is_exported_and_erased_by_command(project: Path, cli: Run) -> None:
    people = ("--project", project)
    cli("decide", *people, "--channel", "mail", "--record")
    who = json.loads(
        cli("decide", *people, "--channel", "mail", "--customer", "c001", "--json").out
    )
    customer_id = who["customer_id"]
    found = json.loads(cli("customers", "export", customer_id, *people).out)
    assert found["customer_id"] == customer_id and len(found["decisions"]) == 1
    done = json.loads(cli("customers", "erase", customer_id, *people, "--json").out)
    assert done["removed"]["decisions"] == 1 and done["overwritten"] is True
    again = cli("customers", "erase", customer_id, *people)
    assert again.code == 0 and "0 decisions" in again.out and "nextbest refresh" in again.out
    gone = cli("customers", "export", customer_id, *people)
    assert gone.code == 1 and "nothing is known of this customer" in gone.err
    after = json.loads(
        cli("decide", *people, "--channel", "mail", "--customer", customer_id, "--json").out
    )
    assert after["fallback"] is True
    assert [e["action"] for e in trail(project)[-3:]] == ["export", "erase", "erase"]
    assert customer_id not in json.dumps(trail(project))


def test_keys_show_their_limit_and_last_use(project: Path, cli: Run) -> None:
    here = ("--project", project)
    made = cli("keys", "create", *here, "--name", "web", "--scope", "decide",
               "--requests-per-minute", "90", "--json")  # fmt: skip
    key_id = json.loads(made.out)["key_id"]
    row = next(
        k for k in json.loads(cli("keys", "list", *here, "--json").out)["keys"]
        if k["key_id"] == key_id
    )  # fmt: skip
    assert (row["requests_per_minute"], row["last_used_at"]) == (90, None)
    assert "90 a minute  valid  never used" in cli("keys", "list", *here).out
    refused = cli("keys", "create", *here, "--name", "x", "--scope", "read",
                  "--requests-per-minute", "0")  # fmt: skip
    assert refused.code == 2 and "--requests-per-minute" in refused.err
