"""The whole job in one command: from raw customer history to one served best offer."""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextbest import jobs
from nextbest.errors import Fault, GateRefusal, NextbestError, StoreError
from nextbest.project import Project

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.learn.registry import Registry
    from nextbest.learn.train import TrainResult

_START_SECONDS = 60


Say = Callable[..., None]


def run(project: Project, *, as_json: bool = False, loop: bool = False) -> None:
    """Check, train, promote, refresh, decide and serve once, and print what came out.

    Parameters
    ----------
    project : whose data and definitions to use.
    as_json : print one JSON object on standard output instead of tables.
    loop : go on with a simulated quarter; where something is served already, begin with it.

    Raises
    ------
    NextbestError : the project or its data have faults; all of them at once.
    GateRefusal : no propensity model may be used, so that nothing can be served.
    """
    from nextbest import show

    def say(*parts: Any) -> None:
        if not as_json:
            show.out(*parts)

    facts: dict[str, Any] = {}
    history = None
    if not loop or not (project.serving_state / "current.json").is_file():
        facts, history = _job(project, say, as_json)
    if loop:
        facts["simulated_quarter"] = _loop(project, history, say, as_json)
    if as_json:
        print(json.dumps(facts, indent=1, default=str, allow_nan=False))


def _loop(project: Project, history: History | None, say: Say, as_json: bool) -> dict[str, Any]:
    """Play a simulated quarter on what is served, and say what was measured of it."""
    from nextbest import quarter, show

    with show.steps(quiet=as_json) as step:
        if history is None:
            step("read and check the data")
            history = project.history()
        found = quarter.play(project, history, step).to_dict()
    say(*show.quarter(found))
    return found


def _job(project: Project, say: Say, as_json: bool) -> tuple[dict[str, Any], History]:
    from nextbest import show

    began = time.monotonic()
    with show.steps(quiet=as_json) as step:
        step("check project and data")
        report = jobs.check_project(project)
        if report.history is None or report.faults:
            raise NextbestError(faults=report.faults)
    say(show.tables(report.history.reports), "")
    registry = project.registry()
    with show.steps(quiet=as_json) as step:
        results = jobs.train(project, [], report.history, registry, step)
    say(*show.trained(results))
    promotions = _promote(project, registry, results)
    say(*_promoted(promotions), "")
    with show.steps(quiet=as_json) as step:
        refreshed = jobs.refresh(project, report.history, registry, step)
        step("decide for every customer")
        out = project.state / "decisions" / "decisions.parquet"
        batch = _decide(project, out)
    say(*show.batch(batch), "")
    with show.steps(quiet=as_json) as step:
        step("serve one decision over HTTP")
        exchange = _serve_one(project, out, batch["channel"])
    say(
        f"POST {exchange['url']}/v1/decisions",
        json.dumps(exchange["request"], indent=1),
        f"{exchange['status']} after {exchange['milliseconds']:.0f} ms",
        json.dumps(exchange["answer"], indent=1, ensure_ascii=False),
    )
    facts: dict[str, Any] = {
        "project": project.settings.name,
        "as_of": project.settings.as_of.isoformat() + "Z",
        "seconds": round(time.monotonic() - began, 1),
        "tables": [r.to_dict() for r in report.history.reports],
        "models": [{**r.to_dict(), **promotions[r.model.name]} for r in results],
        "refresh": refreshed.to_dict(),
        "decisions": batch,
        "served": exchange,
        "files": {
            "decisions": str(out),
            "quarantine": str(project.state / "quarantine"),
            "registry": registry.uri,
            "bundle": str(project.serving_state / refreshed.bundle),
        },
        "next": [f"{command}: {what}" for command, what in _next(project, registry).items()],
    }
    say(*_summary(facts, results, _next(project, registry)))
    return facts, report.history


def _promote(
    project: Project, registry: Registry, results: Sequence[TrainResult]
) -> dict[str, dict[str, Any]]:
    """Promote what the gates let through; where they refuse, the last champion stays."""
    from nextbest.serve.bundle import PROPENSITY

    found: dict[str, dict[str, Any]] = {}
    for result in results:
        name = result.model.name
        try:
            jobs.promote(project, name, registry, result.version)
            found[name] = {"champion": result.version, "refused": []}
        except GateRefusal as refusal:
            champion = registry.champion(name)
            kept = champion.version if champion else None
            found[name] = {"champion": kept, "refused": [str(f) for f in refusal.faults]}
            if name == PROPENSITY and champion is None:
                stop = Fault(
                    "demo",
                    "without a champion for propensity there is nothing to serve, so it stops",
                )
                raise GateRefusal(faults=[*refusal.faults, stop]) from None
    return found


def _promoted(promotions: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, found in promotions.items():
        yield from found["refused"]
        if not found["refused"]:
            yield f"{name} version {found['champion']} passed its gates and is champion."
        elif found["champion"] is not None:
            yield f"{name} goes on with its last champion, version {found['champion']}."
        else:
            yield f"{name} has no champion, so its score stays unknown."


def _next(project: Project, registry: Registry) -> dict[str, str]:
    """Commands to run next, and what each is for."""
    if (project.root / "Makefile").exists():
        serve, mlflow = "make serve", "make mlflow"
    else:
        serve = "nextbest serve --insecure"
        mlflow = f"mlflow ui --backend-store-uri {registry.uri}"
    return {
        "nextbest decide --customer ID --explain": "one customer's decision, and why",
        "nextbest init DIR": "a project for your own data",
        serve: "the API on this machine, documentation at /docs",
        mlflow: "runs, figures and plots of the models",
    }


def _summary(
    facts: Mapping[str, Any], results: Sequence[TrainResult], following: Mapping[str, str]
) -> Iterator[str]:
    rows = sum(t["rows_in"] for t in facts["tables"])
    bad = sum(sum(t["quarantined"].values()) for t in facts["tables"])
    made = facts["decisions"]
    offers = ", ".join(f"{o} to {n:,}" for o, n in made["offers"].items() if n)
    lines = {"rows": f"{rows:,} read, {bad:,} quarantined"}
    for r in results:
        metric, base = r.metrics[r.primary], r.baseline_metrics[r.primary]
        lines[r.model.name] = (
            f"{r.primary} {metric.value:,.4g}; its baseline, {r.baseline_name}, {base.value:,.4g}"
        )
    lines["offers"] = f"{offers or 'none'}; no offer to {made['no_offer']:,}"
    yield f"\nDone in {facts['seconds']:.0f} s."
    for name, what in (lines | facts["files"]).items():
        yield f"  {name:<12}{what}"
    yield "Next:"
    for command, what in following.items():
        yield f"  {command:<41}{what}"


def _decide(project: Project, out: Path) -> dict[str, Any]:
    from nextbest.serve.batch import decide_batch, situation_for
    from nextbest.serve.runtime import load_state

    state = load_state(project.root)
    channel = next(iter(state.rules.tables.channels))
    # Without the store: the demo shows the first decision for everyone, however often it is run.
    return decide_batch(state, situation_for(state, channel), out).to_dict()


def _serve_one(project: Project, decisions: Path, channel: str) -> dict[str, Any]:
    """Start the API on a free loopback port, ask for one decision, and stop it."""
    request = {"customer_id": _somebody(decisions), "channel": channel, "explain": False}
    with _server(project) as url:
        began = time.monotonic()
        status, answer = _post(f"{url}/v1/decisions", request)
        took = (time.monotonic() - began) * 1_000
    return {
        "url": url, "request": request, "status": status, "milliseconds": took, "answer": answer,
    }  # fmt: skip


def _somebody(decisions: Path) -> str:
    """The customer with the largest expected profit: a decision worth looking at."""
    import pyarrow.parquet as pq

    table = pq.read_table(decisions, columns=["customer_id", "expected_profit"]).to_pandas()
    best = table.sort_values(["expected_profit", "customer_id"], ascending=[False, True])
    return str(best["customer_id"].iloc[0])


@contextmanager
def _server(project: Project) -> Iterator[str]:
    command = [sys.executable, "-m", "nextbest", "serve", "--project", str(project.root),
               "--port", "0", "--insecure"]  # fmt: skip
    # A store of its own, and a new one, so that trying things out counts as contacting nobody.
    store = project.state / "demo-store.db"
    for old in project.state.glob(f"{store.name}*"):
        old.unlink()
    environment = {**os.environ, "NEXTBEST_STORE": f"sqlite:///{store}", "PYTHONUNBUFFERED": "1"}
    log = project.state / "demo-server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + _START_SECONDS
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if waiting.select(_START_SECONDS) else ""
    found = re.search(r"http://\S+", line)
    if found is None:
        raise StoreError(
            "demo", "the API did not start", got=log.read_text()[-500:].strip() or line or "silence"
        )
    url = found.group(0)
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2):
                return url
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise StoreError("demo", "the API did not become ready", got=log.read_text()[-500:].strip())


def _post(url: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
