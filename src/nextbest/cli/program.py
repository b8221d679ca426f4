"""The program: every command, and how an error leaves it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from nextbest import __version__
from nextbest.cli.bias import bias
from nextbest.cli.evaluate import evaluate
from nextbest.cli.measure import experiment_app
from nextbest.cli.options import HERE, Json, ProjectDir
from nextbest.cli.options import show_json as _show
from nextbest.cli.report import report
from nextbest.cli.simulate import simulate
from nextbest.cli.store import audit_app, customers_app
from nextbest.errors import InternalError, NextbestError, UsageError

app = typer.Typer(
    name="nextbest",
    help="The next best offer for each customer, and proof of what it was worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
keys_app = typer.Typer(help="API keys: create, list, revoke.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app, name="audit")
app.add_typer(customers_app, name="customers")
app.add_typer(experiment_app, name="experiment")

# What typer raises for a misuse: it exports only the children of this class.
_Misuse: type[Exception] = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130


def main() -> None:
    """Run the command line; exit code 0 done, 1 refused or failed, 2 misuse, 130 interrupted."""
    # One thread for linear algebra: the jobs are many small fits, and idle threads that spin for
    # work make them several times slower on few cores.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has seen enough, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run() -> int:
    stopped = False

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        # DuckDB turns the interrupt into an error of its own, so what is raised does not tell.
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        code = app(standalone_mode=False)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, Exception) and not stopped and not isinstance(error, typer.Abort):
            return _failed(error)
        code = _INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    if code == _INTERRUPTED:
        said = "interrupted; what was finished is kept, and nothing half done is used."
        print(f"nextbest: {said}", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _failed(error: BaseException) -> int:
    """Say what went wrong, on standard error and, with --json, as an object; return exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error)
        return 2
    ours = error if isinstance(error, NextbestError) else _as_ours(error)
    if "--json" in sys.argv:
        faults = [{**vars(f), "message": str(f)} for f in ours.faults]
        _show({"error": {"code": ours.code, "faults": faults}})
    for fault in ours.faults:
        print(f"nextbest: {fault}", file=sys.stderr)
    return ours.exit_code


def _as_ours(error: Any) -> NextbestError:
    if isinstance(error, _Misuse):
        command = error.ctx.command_path if error.ctx else "nextbest"  # type: ignore[attr-defined]
        where = command.removeprefix("nextbest").strip() or "command"
        problem = error.format_message()  # type: ignore[attr-defined]
        return UsageError(where, problem, action=f"See `{command} --help`.")
    if os.environ.get("NEXTBEST_DEBUG"):
        raise error
    return InternalError(
        f"unexpected {type(error).__name__}",
        str(error) or "it says no more",
        action="This is a fault of nextbest; NEXTBEST_DEBUG=1 shows the details to report.",
    )


def _version(value: bool) -> None:
    if value:
        print(f"nextbest {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The next best offer for each customer, and proof of what it was worth."""


@app.command()
def init(directory: Annotated[Path, typer.Argument(help="New or empty folder.")]) -> None:
    """Copy the three rooms of the reference project into a folder."""
    from nextbest.project import init as copy

    made = copy(directory)
    print(f"Made {', '.join(str(m) for m in made)}.")
    print(f"Next: map your data in {directory / 'training' / 'sources.py'},")
    print(f"then run `nextbest check --project {directory}`.")


@app.command()
def check(
    project: ProjectDir = HERE,
    json_: Json = False,
    data: Annotated[bool, typer.Option(help="Also read and check the data.")] = True,
) -> None:
    """Report every fault in the project and its data at once."""
    from nextbest import jobs, show
    from nextbest.project import Project

    with show.steps(quiet=json_) as step:
        step("check definitions and data" if data else "check definitions")
        report = jobs.check_project(Project.open(project), data=data)
    if json_:
        _show(report.to_dict())
    else:
        if report.history is not None:
            show.out(show.tables(report.history.reports), "")
        for note in report.notes:
            print(note)
        for fault in report.faults:
            print(f"✗ {fault}")
        count = len(report.faults)
        print(f"{count} fault{'s' if count > 1 else ''}." if count else "No faults.")
    if report.faults:
        raise typer.Exit(1)


@app.command()
def features(project: ProjectDir = HERE, json_: Json = False) -> None:
    """List every feature: name, meaning, unit, source."""
    from nextbest import jobs, show
    from nextbest.project import Project

    opened = Project.open(project)
    with show.steps(quiet=json_) as step:
        step("look at the data's columns")
        found, missing = jobs.features(opened)
    if json_:
        _show({"features": [f.to_dict() for f in found], "unavailable": list(missing)})
        return
    show.out(*show.features(found))
    print(f"{len(found)} features.")
    for group in missing:
        print(f"Not available: {group}.")


@app.command()
def train(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models; all if none is named.")
    ] = None,
    project: ProjectDir = HERE,
    json_: Json = False,
    tune: Annotated[
        int, typer.Option("--tune", min=0, help="Try so many settings of the search space first.")
    ] = 0,
) -> None:
    """Train models beside their baselines; register new versions."""
    from nextbest import jobs, show
    from nextbest.project import Project

    if tune and not models:
        raise UsageError(
            "--tune", "it needs a model's name", expected="nextbest train MODEL --tune N"
        )
    opened = Project.open(project)
    jobs.trainable(opened, models or [])
    with show.steps(quiet=json_) as step:
        step("read and check the data")
        history = opened.history()
        results = jobs.train(opened, models or [], history, opened.registry(), step, tune=tune)
    if json_:
        _show({"trained": [r.to_dict() for r in results]})
        return
    show.out(*show.trained(results))
    for result in results:
        name, refusing = result.model.name, [g for g in result.gates if not g.passed]
        for gate in refusing:
            print(f'{name}: gate "{gate.gate}" will refuse it: {gate.message}.')
        if not refusing:
            print(f"{name} passes its gates. Next: nextbest promote {name}")


@app.command()
def compare(
    model: Annotated[str, typer.Argument(help="Model to compare versions of.")],
    versions: Annotated[
        list[str] | None, typer.Argument(help="Numbers or aliases; all if none.")
    ] = None,
    project: ProjectDir = HERE,
    json_: Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one page with charts to this file.")
    ] = None,
) -> None:
    """Is a version better: by how much, for whom, or is it chance."""
    from nextbest import show
    from nextbest.learn import compare as comparing
    from nextbest.learn import compare_table
    from nextbest.project import Project

    opened = Project.open(project)
    opened.model(model)
    with show.steps(quiet=json_) as step:
        found = comparing.gather(opened.registry(), model, versions or None, progress=step)
        if html is not None:
            from nextbest.learn.compare_html import write

            step("draw the page")
            write(found, html)
    facts = found.to_dict()
    if json_:
        _show(facts)
        return
    show.out(show.compared(facts), *compare_table.tables(found), facts["verdict"])
    if html is not None:
        print(f"Written to {html}: the same with charts, in one file.")


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="Model.")],
    version: Annotated[
        str | None, typer.Argument(help="Number or alias; the newest if none.")
    ] = None,
    project: ProjectDir = HERE,
    force: Annotated[
        bool, typer.Option("--force", help="Promote although a gate refuses.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option(help="Kept with the version; required by --force.")
    ] = None,
    json_: Json = False,
) -> None:
    """Make a version champion, if its gates allow."""
    from nextbest import jobs
    from nextbest.project import Project

    if force and not (reason or "").strip():
        raise UsageError("--force", "it needs a reason", expected="--reason TEXT, which is kept")
    opened = Project.open(project)
    promoted, gates = jobs.promote(
        opened, model, opened.registry(), version, force=force, reason=reason
    )
    if json_:
        _show({"model": model, "version": promoted.version, "gates": [g.to_dict() for g in gates]})
        return
    for gate in gates:
        print(f"{'✓' if gate.passed else '✗'} {gate.gate}: {gate.message}")
    print(f"{model} version {promoted.version} is champion. Run `nextbest refresh` to serve it.")


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="Model.")],
    project: ProjectDir = HERE,
    reason: Annotated[str | None, typer.Option(help="Kept with the version.")] = None,
    json_: Json = False,
) -> None:
    """Give the champion's place back to the one before it."""
    from nextbest import jobs
    from nextbest.project import Project

    opened = Project.open(project)
    back = jobs.rollback(opened, model, opened.registry(), reason=reason)
    if json_:
        _show({"model": model, "version": back.version})
        return
    print(f"{model} version {back.version} is champion again. Run `nextbest refresh` to serve it.")


@app.command()
def refresh(project: ProjectDir = HERE, json_: Json = False) -> None:
    """Recompute and score every profile, and serve that from now on."""
    from nextbest import jobs, show
    from nextbest.project import Project

    opened = Project.open(project)
    with show.steps(quiet=json_) as step:
        step("read and check the data")
        result = jobs.refresh(opened, opened.history(), opened.registry(), step)
    if json_:
        _show(result.to_dict())
        return
    models = ", ".join(f"{n} {v}" for n, v in result.models.items())
    print(f"{result.customers:,} profiles as of {result.as_of}, scored with {models}.")
    print(f"Bundle {result.bundle} is served from now on.")
    for note in result.notes:
        print(note)
    show.out(*show.drift(result.drift))
    if result.drift:
        print(f"All figures: {result.drift_file}")
    for name in result.without_champion:
        print(f"{name} has no champion, so its score is unknown: nextbest promote {name}.")


@app.command()
def decide(
    project: ProjectDir = HERE,
    customer: Annotated[str | None, typer.Option(help="One customer; all if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="A .parquet or .csv file to write.")] = None,
    channel: Annotated[
        str | None, typer.Option(help="Channel; the policy's only one if not given.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=50, help="Offers per customer.")] = 1,
    policy: Annotated[Path | None, typer.Option(help="Another policy.toml to decide with.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what became of every offer.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the decisions, so that they count as contacts.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Say what --policy would shift for all customers.")
    ] = False,
    by: Annotated[
        str | None, typer.Option(help="With --compare: column to divide customers by; clv if none.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="With --compare: write one page to this file.")
    ] = None,
    json_: Json = False,
) -> None:
    """Decide for one customer or for all; --record keeps it."""
    from nextbest import show
    from nextbest.project import Project
    from nextbest.serve import batch, decisions, recording, runtime
    from nextbest.serve.audit import local_actor

    if explain and customer is None:
        raise UsageError("--explain", "it explains one decision", expected="--customer ID with it")
    if record and (customer is not None or policy is not None):
        raise UsageError(
            "--record",
            "it is for a whole batch by the project's own policy",
            action="Leave out --customer and --policy, or --record",
        )
    if out is not None and customer is not None:
        raise UsageError(
            "--out", "the file is for all customers", action="Leave out --customer, or --out."
        )
    _check_compare(
        compare, policy, {"--customer": customer, "--out": out, "--explain": explain or None,
                          "--record": record or None}, {"--by": by, "--html": html},
    )  # fmt: skip
    opened = Project.open(project)
    if compare and policy is not None:
        _compare_policies(opened.root, policy, channel, limit, by, html, json_=json_)
        return
    # What leaves the house by the project's own policy goes live, as in the API.
    goes_live = policy is None and (out is not None or record)
    state = (runtime.load_approved(opened.root) if goes_live
             else runtime.load_state(opened.root, policy_file=policy))  # fmt: skip
    situation = batch.situation_for(state, channel, limit=limit)
    store = runtime.open_store(opened.root)
    try:
        if customer is not None:
            made = decisions.decide_for(
                state, store, [customer], situation, [f"explain-{customer}"],
                prices=state.prices_for(situation),
            )  # fmt: skip
            names, fault = state.bundle.score_names, state.ignored_prices(made)
            answer, trace = recording.answer_of(made, 0, names, fault), None
            if explain:
                news = made.audience.live.get(customer)
                moved = recording.contributions_of(state.shaper, answer, news)
                trace = recording.explained(made, 0, moved)
            if json_:
                _show({**answer, "trace": trace} if explain else answer)
            else:
                show.out(*show.decision(answer, trace))
            return
        if policy is None:
            runtime.note_configuration(store, state, local_actor())
        with show.steps(quiet=json_) as step:
            step("decide for every customer")
            summary = batch.decide_batch(
                state, situation, out, store=store, record=record,
                prices_dir=runtime.serving_dir(opened.root) if policy is None else None,
            )  # fmt: skip
    finally:
        store.close()
    if json_:
        _show(summary.to_dict())
        return
    show.out(*show.batch(summary.to_dict()))
    if out is None and not record:
        print("Nothing was written; name a file with --out.")


def _check_compare(
    compare: bool, policy: Path | None, against: dict[str, Any], only: dict[str, Any]
) -> None:
    """Refuse what --compare cannot do, and what only it can."""
    if compare and policy is None:
        raise UsageError("--compare", "with which policy?", expected="--policy FILE with it")
    for options, wrong in ((against, compare), (only, not compare)):
        for name, value in options.items():
            if wrong and value is not None:
                expected = "left out" if compare else "--compare with it"
                where = "with --compare" if compare else "without --compare"
                raise UsageError(name, f"it says nothing {where}", expected=expected)


def _compare_policies(
    root: Path, policy: Path, channel: str | None, limit: int, by: str | None, html: Path | None,
    *, json_: bool,
) -> None:  # fmt: skip
    """Show what another policy would shift; nothing is recorded."""
    from nextbest import show
    from nextbest.serve import batch, runtime
    from nextbest.serve.whatif import what_if

    own, other = runtime.load_state(root), runtime.load_state(root, policy_file=policy)
    situation = batch.situation_for(own, channel, limit=limit)
    store = runtime.open_store(root)
    try:
        with show.steps(quiet=json_) as step:
            step("decide for every customer under both policies")
            facts = what_if(own, other, situation, store, by)
    finally:
        store.close()
    if html is not None:
        from nextbest.measure.whatif_page import write

        write(facts, html)
    if json_:
        _show(facts)
        return
    show.out(*show.shifted(facts))
    if html is not None:
        print(f"Written to {html}: the same with charts, in one file.")


@app.command("replay")
def replay_(
    decision_id: Annotated[str, typer.Argument(help="Id of a recorded decision.")],
    project: ProjectDir = HERE,
    json_: Json = False,
) -> None:
    """Make a recorded decision again, and say what differs."""
    from nextbest import show
    from nextbest.project import Project
    from nextbest.serve import runtime
    from nextbest.serve.replay import replay

    opened = Project.open(project)
    store = runtime.open_store(opened.root)
    try:
        found = replay(opened.root, store, decision_id).to_dict()
    finally:
        store.close()
    if json_:
        _show(found)
    else:
        show.out(*show.replayed(found))
    if found["verdict"] != "identical":
        raise typer.Exit(1)


@app.command()
def serve(
    project: ProjectDir = HERE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one on each core by default.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No API keys; loopback only.")
    ] = False,
) -> None:
    """Start the API (documentation at /docs)."""
    from nextbest.project import Project
    from nextbest.serve.server import run_server

    run_server(
        Project.open(project).root, host, port, workers, insecure,
        announce=lambda url: print(f"Serving at {url} (documentation: {url}/docs)", flush=True),
    )  # fmt: skip


@app.command()
def demo(
    project: ProjectDir = HERE,
    loop: Annotated[
        bool, typer.Option("--loop", help="Then measure what it earns, in a simulated quarter.")
    ] = False,
    json_: Json = False,
) -> None:
    """Run the whole job, from raw history to one served decision."""
    from nextbest.demo import run
    from nextbest.project import Project

    run(Project.open(project), as_json=json_, loop=loop)


app.command()(bias)
app.command()(evaluate)
app.command()(report)
app.command()(simulate)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Option(help="What the key is for, such as web.")],
    scope: Annotated[list[str], typer.Option(help="decide, outcomes, read or admin; repeatable.")],
    project: ProjectDir = HERE,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="How often it may be used; no limit if not given.")
    ] = None,
    json_: Json = False,
) -> None:
    """Make an API key; its secret is shown once and kept nowhere."""
    from nextbest.project import Project
    from nextbest.serve import auth, runtime

    store = runtime.open_store(Project.open(project).root)
    try:
        key, token = auth.create_key(store, name, scope, requests_per_minute)
    finally:
        store.close()
    if json_:
        _show({
            "key_id": key.key_id, "name": key.name, "scopes": list(key.scopes),
            "requests_per_minute": key.requests_per_minute, "token": token,
        })  # fmt: skip
        return
    print(f"{token}\nThis is shown once. Send it as `Authorization: Bearer …` or `X-API-Key: …`.")


@keys_app.command("list")
def keys_list(project: ProjectDir = HERE, json_: Json = False) -> None:
    """List API keys, without their secrets."""
    from nextbest.project import Project
    from nextbest.serve import auth, runtime

    store = runtime.open_store(Project.open(project).root)
    try:
        keys = auth.list_keys(store)
    finally:
        store.close()
    rows: list[dict[str, Any]] = [
        {
            "key_id": k.key_id, "name": k.name, "scopes": list(k.scopes),
            "created_at": k.created_at.isoformat(),
            "revoked_at": k.revoked_at.isoformat() if k.revoked_at else None,
            "last_used_at": k.last_used_at.isoformat() if k.last_used_at else None,
            "requests_per_minute": k.requests_per_minute,
        }
        for k in keys
    ]  # fmt: skip
    if json_:
        _show({"keys": rows})
        return
    for row in rows:
        state = f"revoked {row['revoked_at']}" if row["revoked_at"] else "valid"
        used = f"last used {row['last_used_at']}" if row["last_used_at"] else "never used"
        limit = row["requests_per_minute"]
        often = f"{limit} a minute" if limit else "no limit"
        scopes = ",".join(row["scopes"])
        print(f"{row['key_id']}  {row['name']}  {scopes}  {often}  {state}  {used}")
    if not rows:
        print("No keys yet. Make one with `nextbest keys create --scope decide --name web`.")


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key.")],
    project: ProjectDir = HERE,
    json_: Json = False,
) -> None:
    """Make a key useless from now on."""
    from nextbest.project import Project
    from nextbest.serve import auth, runtime

    store = runtime.open_store(Project.open(project).root)
    try:
        auth.revoke_key(store, key_id)
    finally:
        store.close()
    if json_:
        _show({"key_id": key_id, "revoked": True})
        return
    print(f"Key {key_id} is revoked.")
