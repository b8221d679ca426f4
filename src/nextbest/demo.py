"""The whole job in one command: from raw customer history to one served best offer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nextbest import jobs
from nextbest.errors import GateRefusal, NextbestError, StoreError
from nextbest.project import Project

_START_SECONDS = 60


def run(project: Project, *, as_json: bool = False) -> None:
    """Check, train, promote, refresh, decide and serve once, and print what came out.

    Parameters
    ----------
    project : whose data and definitions to use.
    as_json : print one JSON object on standard output instead of tables.

    Raises
    ------
    ConfigError, DataError : the project or its data have faults; all of them at once.
    """
    from rich.console import Console

    from nextbest import show

    began = time.monotonic()
    console = Console(highlight=False, quiet=as_json)
    with show.steps(quiet=as_json) as step:
        step("check project and data")
        report = jobs.check_project(project)
        if report.history is None or report.faults:
            raise NextbestError(faults=report.faults)
        console.print(show.tables(report.history.reports))
        registry = project.registry()
        results = jobs.train(project, [], report.history, registry, step)
        step("promote")
        promotions: dict[str, Any] = {}
        for result in results:
            name = result.model.name
            try:
                version, gates = jobs.promote(project, name, registry, result.version)
                promotions[name] = {"champion": version.version, "refused": []}
            except GateRefusal as refusal:
                champion = registry.champion(name)
                promotions[name] = {
                    "champion": champion.version if champion else None,
                    "refused": [str(f) for f in refusal.faults],
                }
        refreshed = jobs.refresh(project, report.history, registry, step)
        step("decide for every customer")
        out = project.state / "decisions" / "decisions.parquet"
        batch = _decide(project, out)
        step("serve one decision over HTTP")
        exchange = _serve_one(project, out)
    console.print(show.trained(results))
    for result in results:
        console.print(f"{result.model.name} {result.verdict}.")
        for words in promotions[result.model.name]["refused"]:
            console.print(f"  {words}")
    console.print(show.batch(batch))
    console.print(f"\nPOST {exchange['url']}/v1/decisions")
    console.print(json.dumps(exchange["request"], indent=1), markup=False)
    console.print(f"{exchange['status']} after {exchange['milliseconds']:.0f} ms", markup=False)
    console.print(json.dumps(exchange["answer"], indent=1), markup=False)
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
        "next": [
            "make serve    the API, with documentation at /docs",
            "make mlflow   runs, metrics, plots and versions in the browser",
            "nextbest decide --customer ID --explain",
            "nextbest init DIR, then map your own data in DIR/training/sources.py",
        ],
    }
    if as_json:
        print(json.dumps(facts, indent=1, default=str, allow_nan=False))
        return
    console.print(f"\nDone in {facts['seconds']:.0f} s.")
    console.print(
        "\n".join(f"{name:>11}: {where}" for name, where in facts["files"].items()), markup=False
    )
    console.print("Next:\n" + "\n".join(f"  {line}" for line in facts["next"]), markup=False)


def _decide(project: Project, out: Path) -> dict[str, Any]:
    from nextbest.serve.batch import decide_batch, situation_for
    from nextbest.serve.runtime import load_state

    state = load_state(project.root)
    # Without the store: the demo shows the first decision for everyone, however often it is run.
    return decide_batch(state, situation_for(state), out).to_dict()


def _serve_one(project: Project, decisions: Path) -> dict[str, Any]:
    """Start the API on a free loopback port, ask for one decision, and stop it."""
    request = {"customer_id": _somebody(decisions), "channel": "mail", "explain": False}
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
    # A store of its own, so that trying things out does not count as contacting customers.
    store = project.state / "demo-store.db"
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
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    if found is None:
        raise StoreError(
            "demo", "the API did not start", got=log.read_text()[-500:].strip() or line
        )
    url = found.group(0)
    deadline = time.monotonic() + _START_SECONDS
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
