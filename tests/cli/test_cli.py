"""The command line, command by command, on the toy shop: exit codes, words, and JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import toyshop
import typer
from commands import Run, Toy
from test_project import ROOT, edit

import nextbest
from nextbest.cli import app
from nextbest.learn.registry import Registry

ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "NEXTBEST_"))},
    "PYTHONPATH": str(Path(nextbest.__file__).parents[1]),
    "PYTHONUNBUFFERED": "1",
}


def process(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start the command line as a process of its own."""
    command = [sys.executable, "-m", "nextbest", *map(str, arguments)]
    environment = ENVIRONMENT | options.pop("env", {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **(pipes | options))


def commands() -> dict[str, Any]:
    found = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            found |= {f"{name} {n}": c for n, c in command.commands.items()}
        else:
            found[name] = command
    return found


def error(ran: Any) -> dict[str, Any]:
    """The error of a refused command, as it stands in the JSON; standard error says the same."""
    found: dict[str, Any] = ran.json["error"]
    assert ran.err.count("nextbest: ") == len(found["faults"])
    assert all(f"nextbest: {fault['message']}" in ran.err for fault in found["faults"])
    assert "Traceback" not in ran.err
    return found


# ------------------------------------------------------------------ the whole


def test_the_commands_are_these(cli: Run) -> None:
    assert sorted(commands()) == [
        "audit list", "audit verify", "bias", "check", "compare", "customers erase",
        "customers export", "decide", "demo", "evaluate", "experiment plan", "experiment read",
        "features", "init", "keys create", "keys list", "keys revoke", "promote", "refresh",
        "replay", "report", "rollback", "serve", "simulate", "train",
    ]  # fmt: skip
    ran = cli("--help")
    assert ran.code == 0
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    assert "..." not in ran.out.partition("Commands:")[2]  # no help is cut off


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_is_explained(name: str) -> None:
    command = commands()[name]
    assert command.help and command.help.endswith(".")
    for option in command.params:
        assert getattr(option, "help", None) or option.name == "help", option.name


def test_every_command_takes_a_project() -> None:
    without = {n for n, c in commands().items() if "project" not in {p.name for p in c.params}}
    assert without == {"init", "experiment plan", "simulate"}  # they need none


def test_json_is_everywhere_an_analyst_would_pipe() -> None:
    without = {n for n, c in commands().items() if "json_" not in {p.name for p in c.params}}
    assert without == {"init", "serve", "customers export"}  # the last gives nothing but JSON


def test_version_and_no_arguments(cli: Run) -> None:
    assert cli("--version").out == f"nextbest {nextbest.__version__}\n"
    nothing = cli()
    assert nothing.code == 2 and nothing.out.startswith("Usage: nextbest")


# ------------------------------------------------------------------ misuse


MISUSE = [
    (["trian"], "No such command 'trian'"),
    (["train", "--quick"], "No such option: --quick"),
    (["decide", "--limit", "many"], "'--limit'"),
    (["decide", "--limit", "0"], "'--limit'"),
    (["decide", "--limit"], "--limit"),
    (["promote"], "Missing argument"),
    (["keys", "create"], "Missing option"),
    (["serve", "--port", "70000"], "'--port'"),
    (["serve", "--workers", "0"], "'--workers'"),
    (["promote", "churn", "--force"], "--force: it needs a reason"),
    (["promote", "churn", "--force", "--reason", " "], "--force: it needs a reason"),
    (["decide", "--explain"], "--explain: it explains one decision"),
    (["decide", "--customer", "c001", "--out", "x.csv"], "--out: the file is for all customers"),
    (["decide", "--customer", "c001", "--record"], "--record: it is for a whole batch"),
]


@pytest.mark.parametrize(("arguments", "said"), MISUSE)
def test_misuse_exits_with_two_and_says_how(
    cli: Run, fresh: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(fresh)
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("nextbest: ") and said in ran.err
    assert "Traceback" not in ran.err and len(ran.err.splitlines()) == 1
    if arguments[0] != "serve":
        found = cli(*arguments, "--json")
        assert found.code == 2
        assert found.json["error"]["code"] == "usage"


READING = [
    ["check"], ["features"], ["train"], ["compare", "churn"], ["promote", "churn"],
    ["rollback", "churn"], ["refresh"], ["decide"], ["demo"], ["keys", "list"],
    ["keys", "create", "--name", "x", "--scope", "read"], ["keys", "revoke", "x"],
    ["audit", "list"], ["audit", "verify"], ["customers", "erase", "x"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_no_project_is_refused_by_every_command(
    cli: Run, tmp_path: Path, arguments: list[str]
) -> None:
    ran = cli(*arguments, "--project", tmp_path, "--json")
    assert ran.code == 1
    assert "is not a nextbest project" in error(ran)["faults"][0]["message"]
    assert list(tmp_path.iterdir()) == []


BROKEN = [
    ("models/churn.py", "model = = 1", ["train"], "models/churn.py, line 1: SyntaxError"),
    ("models/churn.py", "model = = 1", ["compare", "hvc"], "models/churn.py, line 1"),
    ("training/sources.py", "1 / 0", ["train"], "training/sources.py, line 1: ZeroDivisionError"),
    ("training/sources.py", "1 / 0", ["features"], "training/sources.py, line 1"),
    ("training/training.toml", "a = = b", ["train"], "training/training.toml, line 1, column 5"),
    ("training/training.toml", "a = = b", ["refresh"], "training/training.toml, line 1, column 5"),
    ("serving/policy.toml", "a = = b", ["demo"], "serving/policy.toml, line 1, column 5"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "text", "arguments", "said"), BROKEN)
def test_a_broken_file_is_named_and_nothing_is_written(
    cli: Run, fresh: Path, file: str, text: str, arguments: list[str], said: str
) -> None:
    (fresh / file).write_text(text)
    ran = cli(*arguments, "--project", fresh, "--json")
    assert ran.code == 1
    assert error(ran)["faults"][0]["message"].startswith(said)
    assert not (fresh / ".nextbest" / "mlflow.db").exists()


def test_an_unforeseen_error_is_one_line_and_asks_for_a_report(
    cli: Run, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextbest.jobs.features", lambda project: [][1])
    ran = cli("features", "--project", fresh, "--json")
    assert ran.code == 1
    found = error(ran)
    assert found["code"] == "internal"
    assert "unexpected IndexError: list index out of range" in ran.err
    assert "NEXTBEST_DEBUG=1" in ran.err
    monkeypatch.setenv("NEXTBEST_DEBUG", "1")
    with pytest.raises(IndexError):
        cli("features", "--project", fresh)


# ------------------------------------------------------------------ check, features


def test_check_of_a_sound_project(cli: Run, fresh: Path) -> None:
    ran = cli("check", "--project", fresh)
    assert ran.code == 0
    assert ran.out.endswith("No faults.\n")
    assert re.search(r"transactions +│ +[\d,]+ │ +[\d,]+ │ +0 │ –", ran.out)
    found = cli("check", "--project", fresh, "--json")
    assert found.json["ok"] is True
    assert {t["table"]: t["rows_in"] for t in found.json["tables"]}["customers"] == 300


def test_check_with_faults_exits_with_one_and_lists_all(cli: Run, fresh: Path) -> None:
    edit(fresh, "training/training.toml", "seed = 7", "sed = 7")
    edit(fresh, "serving/offers.toml", 'goal = "retain"', 'goal = "keep"')
    ran = cli("check", "--project", fresh, "--no-data")
    assert ran.code == 1
    assert ran.out.count("✗ ") == 2 and ran.out.endswith("2 faults.\n")
    found = cli("check", "--project", fresh, "--no-data", "--json")
    assert found.code == 1 and found.json["ok"] is False
    for fault in found.json["faults"]:
        assert set(fault) == {"where", "problem", "expected", "got", "action", "message"}
        assert f"✗ {fault['message']}" in ran.out


def test_features_lists_name_unit_and_meaning(cli: Run, fresh: Path) -> None:
    ran = cli("features", "--project", fresh)
    assert ran.code == 0
    assert "wine: of each customer, from transactions" in ran.out
    assert re.search(r"wine_lines +│ lines +│ lines of wine", ran.out)
    assert "Not available: " in ran.out and "events" in ran.out
    assert max(len(line) for line in ran.out.splitlines() if "│" in line) <= 80
    assert re.search(r"contacts_28d +│ contacts +│ contacts in the last 28 days \(live\)", ran.out)
    found = cli("features", "--project", fresh, "--json").json
    live = {f["name"]: f["live"] for f in found["features"]}
    assert live["wine_lines"] is None
    assert live["contacts_28d"] == {"measure": "count", "of": None, "days": 28, "until": None}
    names = [f["name"] for f in found["features"]]
    assert len(names) == len(set(names)) and "wine_lines" in names
    for feature in found["features"]:
        assert feature["meaning"] and feature["unit"] and feature["source"]
    assert all(name in ran.out for name in names)  # no name is broken by the width


# ------------------------------------------------------------------ train, compare


def test_training_reports_every_model_beside_its_baseline(toy: Toy) -> None:
    trained = toy.said["train"].json["trained"]
    assert [m["model"] for m in trained] == ["propensity", "churn", "hvc", "clv"]
    for m in trained:
        assert m["version"] == 1 and m["run_id"] and m["verdict"] and m["gates"]
        ours, theirs = m["metrics"]["test"], m["baseline"]["metrics"]["test"]
        for figures in (ours, theirs):
            primary = figures["mae" if m["model"] == "clv" else "auc"]
            assert primary["low"] <= primary["value"] <= primary["high"]
        assert m["n_test"] > 100 and m["n_train"] > 100


def test_progress_goes_to_standard_error_only(cli: Run, fresh: Path) -> None:
    ran = cli("features", "--project", fresh)
    assert ran.err == "… look at the data's columns\n"
    assert cli("features", "--project", fresh, "--json").err == ""


def test_compare_has_the_shape_that_the_analysts_asked_for(cli: Run, toy: Toy) -> None:
    found = cli("compare", "churn", "--project", toy.root, "--json").json
    assert [v["version"] for v in found["versions"]] == [1, 2]
    assert [v["aliases"] for v in found["versions"]] == [[], ["champion"]]
    for side in (*found["versions"], found["baseline"]):
        for metric in ("auc", "average_precision", "brier", "lift_at_10"):
            figure = side["metrics"]["test"][metric]
            assert set(figure) == {"value", "low", "high"}
            assert figure["low"] <= figure["value"] <= figure["high"]
    trained = {m["model"]: m for m in toy.said["train"].json["trained"]}["churn"]
    assert found["versions"][0]["metrics"]["test"] == trained["metrics"]["test"]
    assert (found["n_test"], found["n_positive"]) == (trained["n_test"], trained["n_positive"])
    assert found["verdict"].startswith("Version ")


def test_compare_shows_versions_side_by_side_in_eighty_columns(cli: Run, toy: Toy) -> None:
    ran = cli("compare", "churn", "1", "champion", "--project", toy.root)
    assert ran.code == 0
    rows = [line for line in ran.out.splitlines() if "│" in line]
    assert max(map(len, rows)) <= 80
    auc = next(i for i, row in enumerate(rows) if row.strip().startswith("auc "))
    assert [row.rpartition("│")[2].strip() for row in rows[auc : auc + 3]] == [
        "version 1", "version 2, champion", "baseline: recency",
    ]  # fmt: skip
    assert ran.out.count("Version ") == 1  # the verdict, once


def test_compare_refuses_what_is_not_there(cli: Run, toy: Toy) -> None:
    ran = cli("compare", "churn", "9", "--project", toy.root, "--json")
    assert ran.code == 1 and error(ran)["code"] == "registry"
    assert "Must be one of 1, 2, champion" in ran.err
    ran = cli("compare", "chrun", "--project", toy.root, "--json")
    assert error(ran)["code"] == "not-found" and 'Did you mean "churn"?' in ran.err


def test_compare_of_a_model_that_was_never_trained(cli: Run, trainable: Path) -> None:
    ran = cli("compare", "churn", "--project", trainable, "--json")
    assert ran.code == 1 and "nextbest train churn" in error(ran)["faults"][0]["message"]


# ------------------------------------------------------------------ promote, rollback


def test_promotion_says_which_gates_passed(toy: Toy) -> None:
    said = toy.said["promote churn"].json
    assert (said["model"], said["version"]) == ("churn", 1)
    assert {"baseline", "min_positives", "calibration"} <= {g["gate"] for g in said["gates"]}
    assert all(g["passed"] and re.search(r"\d", g["message"]) for g in said["gates"])
    again = toy.said["promote churn again"].json
    assert again["version"] == 2 and "champion" in [g["gate"] for g in again["gates"]]


def test_a_refused_promotion_exits_with_one_and_names_the_gate(toy: Toy) -> None:
    refused = toy.said["promote hvc"]
    assert refused.code == 1
    found = error(refused)
    assert found["code"] == "gate-refused"
    assert 'gate "min_positives" refuses promotion' in found["faults"][0]["message"]
    assert "10,000" in found["faults"][0]["message"]


def test_force_promote_and_roll_back(cli: Run, shop: Path) -> None:
    forced = cli("promote", "hvc", "--force", "--reason", "board", "--project", shop)
    assert forced.code == 0
    assert "✗ min_positives: " in forced.out and "hvc version 1 is champion." in forced.out
    nothing = cli("rollback", "hvc", "--project", shop, "--json")
    assert nothing.code == 1 and "nothing to roll back to" in nothing.err
    back = cli("rollback", "churn", "--reason", "complaints", "--project", shop, "--json")
    assert back.json == {"model": "churn", "version": 1}
    versions = cli("compare", "churn", "--project", shop, "--json").json["versions"]
    assert [v["aliases"] for v in versions] == [["champion"], []]
    tags = Registry(None, shop / ".nextbest").version("churn", 2).tags
    assert tags["nextbest.rolled_back_at"].endswith(": complaints")
    assert tags["nextbest.promotion_reason"] == "the second of two"


# ------------------------------------------------------------------ decide


def test_deciding_for_all_writes_the_file_that_was_asked_for(cli: Run, toy: Toy) -> None:
    said = toy.said["decide"].json
    table = pd.read_parquet(said["file"])
    assert len(table) == said["rows"] == said["customers"] == toyshop.CUSTOMERS
    assert list(table["customer_id"]) == toyshop.customer_ids()
    chosen = table[table["rank"] > 0]
    offers = ("coupons-now", "catalogue-now", "stay", "over")
    assert said["offers"] == {o: int((chosen["offer_id"] == o).sum()) for o in offers}
    assert said["offers"]["coupons-now"] > 20 and said["offers"]["stay"] > 5
    assert said["offers"]["over"] == 0
    assert said["no_offer"] == int((table["rank"] == 0).sum()) > 10
    assert said["expected_profit"] == pytest.approx(chosen["expected_profit"].sum())
    assert (chosen["expected_profit"] > 0).all()


def test_csv_and_parquet_hold_the_same(cli: Run, toy: Toy, tmp_path: Path) -> None:
    ran = cli("decide", "--channel", "mail", "--out", tmp_path / "new" / "out.csv",
              "--project", toy.root)  # fmt: skip
    assert ran.code == 0, ran.err
    assert f"Written to {tmp_path / 'new' / 'out.csv'}: 300 rows." in ran.out
    assert max(len(line) for line in ran.out.splitlines() if "│" in line) <= 80
    table = pd.read_csv(tmp_path / "new" / "out.csv")
    same = pd.read_parquet(toy.said["decide"].json["file"])
    assert list(table.columns) == list(same.columns)
    for name in ("customer_id", "offer_id", "rank"):
        assert table[name].fillna("").tolist() == same[name].fillna("").tolist()
    for name in ("propensity", "expected_profit", "priority"):
        pd.testing.assert_series_equal(table[name], same[name], check_exact=True)


def test_deciding_again_gives_the_same_file(cli: Run, toy: Toy, tmp_path: Path) -> None:
    out = tmp_path / "again.parquet"
    again = cli("decide", "--channel", "mail", "--out", out, "--project", toy.root, "--json").json
    first = toy.said["decide"].json
    assert {**again, "file": ""} == {**first, "file": ""}
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(first["file"]))


def test_one_decision_is_explained_offer_by_offer(cli: Run, toy: Toy) -> None:
    table = pd.read_parquet(toy.said["decide"].json["file"]).set_index("customer_id")
    customer = table[table["offer_id"] == "stay"].index[0]
    ran = cli("decide", "--channel", "mail", "--customer", customer, "--explain",
              "--project", toy.root)  # fmt: skip
    assert ran.code == 0
    assert "1. offer stay (We miss you), expected profit" in ran.out
    assert re.search(r"stay +│ +0\.\d{4} │ +\d+\.\d{4} │ chosen", ran.out)
    assert re.search(r"over +│ .* │ candidate +│ ended", ran.out)
    found = cli("decide", "--channel", "mail", "--customer", customer, "--explain",
                "--project", toy.root, "--json").json  # fmt: skip
    (offer,) = found["offers"]
    assert offer["expected_profit"] == table.loc[customer, "expected_profit"]
    assert {o["offer_id"] for o in found["trace"]["offers"]} == {
        "coupons-now", "catalogue-now", "stay", "over",
    }  # fmt: skip
    brief = cli("decide", "--channel", "mail", "--customer", customer,
                "--project", toy.root, "--json").json  # fmt: skip
    assert brief == {k: v for k, v in found.items() if k != "trace"}


def test_no_offer_is_a_decision_with_reasons(cli: Run, toy: Toy) -> None:
    table = pd.read_parquet(toy.said["decide"].json["file"]).set_index("customer_id")
    customer = table[table["rank"] == 0].index[0]
    ran = cli("decide", "--channel", "mail", "--customer", customer, "--project", toy.root)
    assert ran.code == 0
    assert "No offer.\n   - " in ran.out


def test_an_unknown_customer_gets_the_fallback(cli: Run, toy: Toy) -> None:
    ran = cli("decide", "--channel", "mail", "--customer", "nobody", "--project", toy.root)
    assert ran.code == 0
    assert "Nothing is known of this customer: the fallback list of the policy decides." in ran.out
    assert "1. offer coupons-now (Coupons for December)\n" in ran.out
    found = cli("decide", "--channel", "mail", "--customer", "nobody", "--project", toy.root,
                "--json").json  # fmt: skip
    assert found["fallback"] is True and found["arm"] == "fallback"
    assert [o["offer_id"] for o in found["offers"]] == ["coupons-now"]


def test_consent_decides_on_the_channel_that_needs_it(cli: Run, toy: Toy, tmp_path: Path) -> None:
    out = tmp_path / "email.parquet"
    ran = cli("decide", "--channel", "email", "--out", out, "--project", toy.root, "--json")
    table = pd.read_parquet(out)
    got = set(table[table["rank"] > 0]["customer_id"])
    consented = {f"c{n:03d}" for n in range(toyshop.CUSTOMERS) if n % 3}
    assert got < consented and len(got) > 50
    assert ran.json["funnel"]["coupons-now"]["lost"]["contact_policy"]["consent"] > 20


def test_another_policy_can_be_tried_without_putting_it_into_use(
    cli: Run, toy: Toy, tmp_path: Path
) -> None:
    own = toy.root / "serving" / "policy.toml"
    before = own.read_text()
    trial = tmp_path / "trial.toml"
    trial.write_text(before.replace('"orders_182d >= 1"', '"orders_182d >= 1000"'))
    found = cli("decide", "--channel", "mail", "--policy", trial, "--project", toy.root, "--json")
    assert found.json["no_offer"] == found.json["customers"] == 300
    assert own.read_text() == before
    trial.write_text("[channels\n")
    broken = cli("decide", "--policy", trial, "--project", toy.root, "--json")
    assert (
        broken.code == 1 and "trial.toml, line 1, column" in error(broken)["faults"][0]["message"]
    )
    missing = cli("decide", "--policy", tmp_path / "no.toml", "--project", toy.root, "--json")
    assert missing.code == 1 and "no.toml: the file cannot be read" in missing.err


REFUSED = [
    (["--out", "decisions.xlsx"], 2, "Must be a name that ends in .parquet or .csv"),
    (["--out", "."], 2, "--out: "),
    (["--out", "/proc/none/decisions.csv"], 1, "the file cannot be written"),
    (["--channel", "fax"], 2, '--channel: there is no channel "fax". Must be one of mail, email'),
    (["--channel", "emial"], 2, 'Did you mean "email"?'),
]


@pytest.mark.parametrize(("options", "code", "said"), REFUSED)
def test_what_decide_refuses(cli: Run, toy: Toy, options: list[str], code: int, said: str) -> None:
    channel = [] if "--channel" in options else ["--channel", "mail"]
    ran = cli("decide", *channel, *options, "--project", toy.root, "--json")
    assert ran.code == code
    error(ran)
    assert said in ran.err


def test_with_several_channels_one_must_be_named(cli: Run, toy: Toy) -> None:
    ran = cli("decide", "--project", toy.root, "--json")
    assert ran.code == 2
    assert error(ran)["faults"][0]["message"].startswith("--channel: which channel? Must be one of")


def test_without_a_bundle_decide_and_serve_say_what_to_run(cli: Run, fresh: Path) -> None:
    for command in (["decide", "--json"], ["serve", "--insecure"]):
        ran = cli(*command, "--project", fresh)
        assert ran.code == 1
        assert "there is nothing to serve yet" in ran.err and "nextbest refresh" in ran.err


# ------------------------------------------------------------------ keys, serve


def test_keys_are_made_listed_and_revoked(cli: Run, shop: Path) -> None:
    assert cli("keys", "list", "--project", shop, "--json").json == {"keys": []}
    assert "nextbest keys create" in cli("keys", "list", "--project", shop).out
    made = cli("keys", "create", "--name", "web", "--scope", "read", "--scope", "decide",
               "--project", shop, "--json").json  # fmt: skip
    assert made["scopes"] == ["decide", "read"]
    token = made.pop("token")
    assert token.startswith(f"nb_{made['key_id']}_")
    (listed,) = cli("keys", "list", "--project", shop, "--json").json["keys"]
    assert made.items() <= listed.items() and listed["revoked_at"] is None
    secret = token.rpartition("_")[2]
    assert secret not in str(listed)
    for file in (shop / ".nextbest").glob("store.db*"):
        assert secret.encode() not in file.read_bytes()
    gone = cli("keys", "revoke", made["key_id"], "--project", shop, "--json")
    assert gone.json == {"key_id": made["key_id"], "revoked": True}
    assert "revoked 20" in cli("keys", "list", "--project", shop).out
    again = cli("keys", "revoke", made["key_id"], "--project", shop, "--json")
    assert again.code == 1 and error(again)["code"] == "not-found"


def test_a_key_with_an_unknown_scope_is_a_misuse(cli: Run, shop: Path) -> None:
    ran = cli("keys", "create", "--name", "x", "--scope", "decode", "--project", shop, "--json")
    assert ran.code == 2
    assert 'Did you mean "decide"?' in error(ran)["faults"][0]["message"]
    assert cli("keys", "list", "--project", shop, "--json").json == {"keys": []}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "there is no API key, so nobody could use the server"),
        (["--host", "0.0.0.0", "--insecure"], "--insecure: without API keys everybody"),
        (["--host", "203.0.113.7", "--insecure"], "--insecure: without API keys everybody"),
    ],
)
def test_serve_refuses_to_let_strangers_in(
    cli: Run, shop: Path, options: list[str], said: str
) -> None:
    ran = cli("serve", *options, "--project", shop)
    assert ran.code == 2 and said in ran.err and ran.out == ""


@contextmanager
def serving(project: Path, store: Path, *options: str) -> Iterator[tuple[Any, str]]:
    """A real server process on a free loopback port, with a store of its own."""
    server = process(
        "serve", "--port", "0", *options, "--project", project,
        env={"NEXTBEST_STORE": f"sqlite:///{store}"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, f"the server said {line!r}"
        yield server, found.group(0)
    finally:
        server.kill()
        server.wait()


def post(url: str, body: dict[str, Any], token: str = "") -> tuple[int, Any]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def test_online_is_batch_for_every_customer(cli: Run, toy: Toy, tmp_path: Path) -> None:
    table = pd.read_parquet(toy.said["decide"].json["file"])
    with serving(toy.root, tmp_path / "store.db", "--insecure") as (server, url):
        for row in table.itertuples():
            status, answer = post(
                f"{url}/v1/decisions", {"customer_id": row.customer_id, "channel": "mail"}
            )
            assert status == 200
            assert (answer["customer_id"], answer["arm"]) == (row.customer_id, row.arm)
            if row.rank == 0:
                assert answer["offers"] == [] and answer["no_offer_reasons"]
                continue
            (offer,) = answer["offers"]
            assert (offer["offer_id"], offer["rank"]) == (row.offer_id, 1)
            for name in ("propensity", "expected_profit", "priority", "selection_probability"):
                assert offer[name] == getattr(row, name)  # bit for bit, through JSON and Parquet
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0


def test_the_server_lets_in_who_has_a_key(
    cli: Run, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store.db"
    monkeypatch.setenv("NEXTBEST_STORE", f"sqlite:///{store}")
    token = cli("keys", "create", "--name", "web", "--scope", "decide", "--project", toy.root,
                "--json").json["token"]  # fmt: skip
    question = {"customer_id": "c001", "channel": "mail"}
    with serving(toy.root, store) as (_, url):
        assert post(f"{url}/v1/decisions", question)[0] == 401
        status, answer = post(f"{url}/v1/decisions", question, token)
        assert status == 200 and answer["customer_id"] == "c001"
        assert post(f"{url}/v1/outcomes", {}, token)[0] == 403


# ------------------------------------------------------------------ being interrupted


@pytest.mark.parametrize(
    "moment", ["read and check the data", "churn: features and labels", "churn: log and register"]
)
def test_ctrl_c_says_one_line_and_leaves_the_registry_consistent(
    trainable: Path, moment: str
) -> None:
    job = process("train", "churn", "--project", trainable)
    assert job.stderr is not None and job.stdout is not None
    for line in job.stderr:
        if line.strip() == f"… {moment}":
            break
    time.sleep(0.15)
    job.send_signal(signal.SIGINT)
    err = job.stderr.read()
    # Exit code 130, or death by the signal itself, which a shell shows as 130 too.
    assert job.wait(timeout=60) in (130, -signal.SIGINT), err
    said = [line for line in err.splitlines() if not line.startswith("… ")]
    assert said == [
        "nextbest: interrupted; what was finished is kept, and nothing half done is used."
    ]
    assert job.stdout.read() == ""
    # Every version there is can be read in full, and no run is left as if it still went on.
    registry = Registry(None, trainable / ".nextbest")
    for version in registry.versions("churn"):
        registry.fetch("churn", version.version, trainable / f"fetched-{version.version}")
    with sqlite3.connect(trainable / ".nextbest" / "mlflow.db") as database:
        states = {state for (state,) in database.execute("select status from runs")}
    assert "RUNNING" not in states


def test_ctrl_c_waits_until_a_compiled_library_has_started(
    cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB's would end the process with a core dump."""
    done = []

    class Starting(ExtensionFileLoader):
        def exec_module(self, _module: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            done.append("started")

    def job(**_: Any) -> None:
        Starting("library", "library.so").exec_module(None)
        time.sleep(30)
        done.append("went on")

    monkeypatch.setattr("nextbest.cli.program.app", job)
    ran = cli("train")
    assert (ran.code, done) == (130, ["started"])
    assert ran.err.startswith("nextbest: interrupted; ")


def test_a_reader_that_goes_away_is_no_error(fresh: Path) -> None:
    for arguments in (["features"], ["compare", "nothing", "--json"]):
        job = process(*arguments, "--project", fresh)
        assert job.stdout is not None and job.stderr is not None
        job.stdout.close()  # as `| head -0` does
        err = job.stderr.read()
        assert job.wait(timeout=120) == 1
        assert "Traceback" not in err and "BrokenPipe" not in err


# ------------------------------------------------------------------ init


def test_init_makes_a_project_that_check_accepts(cli: Run, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    made = cli("init", shop)
    assert made.code == 0
    assert f"nextbest check --project {shop}" in made.out
    assert cli("check", "--no-data", "--project", shop, "--json").json["faults"] == []
    again = cli("init", shop)
    assert again.code == 1 and "there is something already" in again.err
    assert (ROOT / "models" / "churn.py").read_bytes() == (shop / "models/churn.py").read_bytes()
