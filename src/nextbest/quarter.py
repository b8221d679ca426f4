"""A simulated quarter on a project's own customers: the whole loop, beside its known truth.

Nothing of it is real but the customers, their scores and the offers: what they answer and buy is
drawn by `nextbest.simulate.answers`. It happens in a folder of its own with a store of its own, so
that the project's store, policy and catalogue are only read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from nextbest.errors import StoreError, UsageError
from nextbest.project import Project

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.decide.engine import Decisions
    from nextbest.proof.policy_value import PolicyValue
    from nextbest.serve.runtime import State
    from nextbest.serve.schemas import OutcomeReport
    from nextbest.serve.store import Store
    from nextbest.simulate import Truth
    from nextbest.simulate.answers import Answers

__all__ = ["FOLDER", "Quarter", "play"]

Step = Callable[[str], None]
FOLDER: Final = "simulated-quarter"
#: Decisions are made in the first weeks; then nobody is asked until every answer is in.
WEEKS: Final = 9
DAYS: Final = 91
SEED: Final = 1
HOLDOUT: Final = 0.25
EPSILON: Final = 0.4
_LESS: Final = 0.05
_CHANGED: Final = "changed-policy.toml"

_HEAD: Final = """
# SIMULATED QUARTER: the project's own policy, copied by `nextbest demo --loop`, without a fixed
# moment of decision and with the sections at the end. No real customer is decided for by it.
"""
_HEAD_OFFERS: Final = """
# SIMULATED QUARTER: the project's own catalogue, copied by `nextbest demo --loop`, without the days
# on which offers end and without their own times to answer.
"""
_HOLDOUT: Final = """
# Added by `nextbest demo --loop`: who gets no offer, so that the effect of offers can be measured.
[holdout]
salt = "simulated quarter @seed@: holdout"
share = @holdout@
"""
_CHANCE: Final = """
# Added by `nextbest demo --loop`: one decision in so many tries another offer, so that other
# policies can be judged on the log.
[exploration]
salt = "simulated quarter @seed@: exploration"
policy = "epsilon"
epsilon = @epsilon@

[[contact.caps]]
name = "simulated quarter: not before the last answer to the same offer is in"
at_most = 1
days = 28
per = "offer"
"""


@dataclass(frozen=True)
class Figure:
    """A figure that was measured, beside the simulator's truth."""

    name: str
    title: str
    truth: float
    value: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the interval holds the truth."""
        return self.low <= self.truth <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as plain JSON types."""
        return {**vars(self), "inside": self.inside}


@dataclass(frozen=True)
class Quarter:
    """What happened in the simulated quarter, what was measured of it, and what was true."""

    folder: Path
    seed: int
    start: datetime
    customers: int
    arms: dict[str, int]
    decisions: int
    offers: dict[str, int]
    outcomes: dict[str, int]
    figures: tuple[Figure, ...]
    changed: str
    verdict: str
    call: str
    report: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        from nextbest.simulate.answers import MARGIN_SHARE, WINDOW_DAYS

        return {
            "simulated": True, "seed": self.seed, "weeks": WEEKS, "days": DAYS,
            "window_days": WINDOW_DAYS, "margin_share": MARGIN_SHARE,
            "from": self.start.isoformat() + "Z", "customers": self.customers,
            "arms": self.arms, "decisions": self.decisions, "offers": self.offers,
            "outcomes": self.outcomes, "figures": [f.to_dict() for f in self.figures],
            "changed_policy": self.changed, "call": self.call, "verdict": self.verdict,
            "files": {
                "folder": str(self.folder), "store": str(self.folder / ".nextbest" / "store.db"),
                "policy": str(self.folder / "serving" / "policy.toml"),
                "changed_policy": str(self.folder / "serving" / _CHANGED),
                "report": str(self.report),
            },
            "seconds": round(self.seconds, 1),
        }  # fmt: skip


def play(project: Project, history: History, step: Step, seed: int = SEED) -> Quarter:
    """Decide, log, hear, measure, judge another policy and report, over a simulated quarter.

    Parameters
    ----------
    project : whose bundle, catalogue and policy are used; its store is never opened.
    history : its checked data, for the report.
    seed : of everything that is drawn, arms included; another gives another quarter.

    Raises
    ------
    ArtifactError : nothing is served yet.
    DataError : the log cannot answer; each reason with its numbers.
    """
    began = time.monotonic()
    step("simulated quarter: a copy of the rooms, with a store of its own")
    folder = _copy(project, seed)
    made = Project.open(folder)
    with _own_store(folder):
        played = _Played.everybody(made, seed, _first(project), step)
        true = _true_effects(played)
        step("simulated quarter: measure the lift")
        lift = _lift(made, played, true)
        step("simulated quarter: judge another policy on the log")
        value, gain = _other(made, played)
        step("simulated quarter: report")
        page = _report(made, played, history)
    found = Quarter(
        folder, seed, played.start.replace(tzinfo=None), len(played.answers.truth.customer_ids),
        played.arms, played.decisions, played.offers, played.outcomes, (*lift, gain),
        f"explore in {_LESS:.0%} of decisions instead of {EPSILON:.0%}", str(value.found.verdict),
        value.found.verdict.call, page, time.monotonic() - began,
    )  # fmt: skip
    (folder / "simulated.json").write_text(json.dumps(found.to_dict(), indent=1), encoding="utf-8")
    return found


# ------------------------------------------------------------------ the folder and the policies


def _serve_alike(served: Path, copy: Path) -> None:
    """Write the bundle that is served once more, without the ids of the runs that made it.

    Draws follow the bundle's id: models trained again to the same numbers give the same quarter.
    """
    from nextbest.serve.bundle import ModelSource, load_bundle, write_bundle

    bundle = load_bundle(served)
    models = {
        name: ModelSource(served / bundle.id / "models" / name, model.version)
        for name, model in bundle.models.items()
    }
    write_bundle(
        copy, models, bundle.profiles,
        offers=bundle.offers, contacts=bundle.contacts, recent=bundle.recent,
    )  # fmt: skip


def _copy(project: Project, seed: int) -> Path:
    """Copy the rooms and what is served, beside a policy with holdout and chance."""
    folder = project.state / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    for room in ("models", "training", "serving"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project.root / room, folder / room, ignore=ignore)
    _serve_alike(project.serving_state, folder / ".nextbest" / "serving")
    if (project.state / "mlflow.db").is_file():  # what the report says of the models
        shutil.copy(project.state / "mlflow.db", folder / ".nextbest" / "mlflow.db")
    serving = folder / "serving"
    offers = (serving / "offers.toml").read_text(encoding="utf-8")
    # Every offer runs through the quarter, and is answered within one window.
    offers = re.sub(r"(?m)^\s*(ends_at|response_window_days)\s*=.*\n", "", offers)
    (serving / "offers.toml").write_text(_HEAD_OFFERS.lstrip() + offers, encoding="utf-8")
    own = (project.root / "serving" / "policy.toml").read_text(encoding="utf-8")
    for name, text in _policies(own, seed).items():
        (serving / name).write_text(text, encoding="utf-8")
    return folder


def _policies(own: str, seed: int) -> dict[str, str]:
    """Return the policy that decides and the one that is judged on its log, by file name."""
    import tomllib

    taken = [name for name in ("holdout", "exploration") if name in tomllib.loads(own)]
    if taken:
        raise UsageError(
            "demo --loop", "the policy has a holdout or exploration of its own",
            expected="a policy without them: the simulated quarter brings its own",
            got=", ".join(f"[{name}]" for name in taken),
            action="Read your own log instead: `nextbest experiment read`, `nextbest evaluate`",
        )  # fmt: skip
    base = _HEAD.lstrip() + re.sub(r"(?m)^\s*decide_as_of\s*=.*\n", "", own)
    held = _HOLDOUT.replace("@holdout@", f"{HOLDOUT}").replace("@seed@", f"{seed}")

    def chance(epsilon: float) -> str:
        return _CHANCE.replace("@epsilon@", f"{epsilon}").replace("@seed@", f"{seed}")

    return {
        "policy.toml": base + held + chance(EPSILON),
        _CHANGED: base + held + chance(_LESS),
        "no-holdout.toml": base + chance(EPSILON),
    }


@contextmanager
def _own_store(folder: Path) -> Iterator[None]:
    """Have everything that asks for a store get the one of this folder, whatever is set outside."""
    before = os.environ.get("NEXTBEST_STORE")
    os.environ["NEXTBEST_STORE"] = f"sqlite:///{folder / '.nextbest' / 'store.db'}"
    try:
        yield
    finally:
        if before is None:
            del os.environ["NEXTBEST_STORE"]
        else:
            os.environ["NEXTBEST_STORE"] = before


def _first(project: Project) -> datetime:
    """The moment of the first decision: the policy's own, or that of the profiles (aware UTC)."""
    from nextbest.decide.policy import Policy

    rules = Policy.load(project.root / "serving" / "policy.toml")
    return rules.decide_as_of or project.settings.as_of.replace(tzinfo=UTC)


# ------------------------------------------------------------------ the weeks


@dataclass
class _Played:
    """The quarter as it was decided and answered."""

    root: Path
    answers: Answers
    start: datetime
    state: State
    contacts: npt.NDArray[np.int64]
    held: tuple[str, ...]
    arms: dict[str, int]
    decisions: int
    offers: dict[str, int]
    outcomes: dict[str, int]

    @property
    def until(self) -> datetime:
        """The first instant after the quarter (aware UTC)."""
        return self.start + timedelta(days=DAYS)

    @classmethod
    def everybody(cls, project: Project, seed: int, start: datetime, step: Step) -> _Played:
        from nextbest.decide.holdout import HELD_OUT
        from nextbest.proof.logbook import store_of
        from nextbest.serve.runtime import load_state
        from nextbest.simulate.answers import Answers, truth_of

        state = load_state(project.root)
        first = _decisions(state, start, None, None)
        truth = truth_of(first, seed)
        answers = Answers(truth, start, DAYS, seed)
        with store_of(project) as store:
            contacts, outcomes = _weeks(state, store, answers, truth.customer_ids, step)
        arm_of = [str(arm) for part in first for arm in part.arm]
        held = [c for c, arm in zip(truth.customer_ids, arm_of, strict=True) if arm == HELD_OUT]
        offers = {o: int(k) for o, k in zip(truth.offer_ids, contacts.sum(axis=0), strict=True)}
        return cls(
            project.root, answers, start, state, contacts, tuple(held), dict(Counter(arm_of)),
            WEEKS * len(truth.customer_ids), offers, outcomes,
        )  # fmt: skip


def _decisions(
    state: State, moment: datetime, store: Store | None, customer_ids: Sequence[str] | None
) -> list[Decisions]:
    """Decide for customers at a moment, by the batch, and record it where there is a store."""
    from nextbest.serve.batch import decide_batch, situation_for

    channel = next(iter(state.rules.tables.channels))
    parts: list[Decisions] = []
    decide_batch(
        state, situation_for(state, channel, now=moment), customer_ids=customer_ids, store=store,
        record=store is not None, each=parts.append,
    )  # fmt: skip
    return parts


def _weeks(
    state: State, store: Store, answers: Answers, customer_ids: Sequence[str], step: Step
) -> tuple[npt.NDArray[np.int64], dict[str, int]]:
    """Play the weeks; return how often each customer got each offer, and outcomes by type."""
    contacts = np.zeros(answers.truth.contacted.shape, dtype=np.int64)
    counts: Counter[str] = Counter()
    for week in range(WEEKS):
        step(f"simulated quarter: week {week + 1} of {WEEKS}")
        now = answers.start + timedelta(days=7 * week)
        counts += _tell(store, answers.until(now, customer_ids), answers.truth, now)
        contacts += answers.contact(_decisions(state, now, store, customer_ids), week)
    end = answers.start + timedelta(days=DAYS)
    counts += _tell(store, answers.until(end, customer_ids), answers.truth, end)
    return contacts, dict(sorted(counts.items()))


def _tell(store: Store, news: Sequence[OutcomeReport], truth: Truth, now: datetime) -> Counter[str]:
    """Report outcomes as the API does; a refusal would be a fault of the simulator."""
    from nextbest.serve.outcomes import record

    results = record(store, news, truth.offer_ids, now) if news else []
    for result in results:
        if result.status != "stored":
            raise StoreError("demo --loop", "a simulated outcome was not kept", expected="stored",
                             got=f"{result.status} {result.detail or ''}".strip())  # fmt: skip
    return Counter(one.outcome_type for one in news)


# ------------------------------------------------------------------ what is measured, what is true


def _true_effects(played: _Played) -> dict[str, float]:
    """What offers really add per customer: the same quarter, in which those held out get them too.

    What the others got is known; the held out are decided for once more, without the holdout.
    """
    from tempfile import TemporaryDirectory

    from nextbest.serve.runtime import load_state
    from nextbest.serve.store import Store
    from nextbest.simulate.answers import Answers

    state = load_state(played.root, policy_file=played.root / "serving" / "no-holdout.toml")
    a = played.answers
    again = Answers(a.truth, a.start, a.days, a.seed)
    with TemporaryDirectory(prefix="nextbest-quarter-") as name:
        store = Store.at(Path(name) / "store.db")
        try:
            held = _weeks(state, store, again, played.held, lambda _: None)[0]
        finally:
            store.close()
    return dict(a.effects(played.contacts + held))


_TITLES: Final = {
    "revenue": "sales per customer that offers add in the quarter",
    "margin": "their margin, less incentives and contacts, per customer",
}


def _lift(project: Project, played: _Played, true: dict[str, float]) -> list[Figure]:
    """Treated against held out, as `nextbest experiment read` compares them."""
    from nextbest.errors import DataError
    from nextbest.measure.experiment import Design
    from nextbest.proof.experiments import Asked, read_log
    from nextbest.simulate.answers import MARGIN_SHARE

    asked = Asked(tuple(true), days=DAYS, until=played.until.replace(tzinfo=None),
                  margin_share=MARGIN_SHARE)  # fmt: skip
    # One look, at the end that was planned.
    design = Design(looks="once", planned=sum(played.arms.values()))
    reading = read_log(project, asked, design, lambda _: None).reading
    if reading.blocked:
        raise DataError("demo --loop", f"the arms are {reading.balance.message}")
    found = []
    for comparison in reading.overall:
        measured, name = comparison.measured, comparison.question.outcome
        if measured is None:
            raise DataError("demo --loop", f"{name} was not measured", got=comparison.cannot_say)
        found.append(Figure(name, _TITLES[name], true[name], **vars(measured.difference)))
    return found


def _other(project: Project, played: _Played) -> tuple[PolicyValue, Figure]:
    """Another policy on the log, as `nextbest evaluate --policy` judges it, and its true gain."""
    from nextbest.proof.policy_value import Question, value_of
    from nextbest.simulate.answers import WINDOW_DAYS

    question = Question(
        project.root / "serving" / _CHANGED, until=played.until.replace(tzinfo=None),
        window_days=WINDOW_DAYS,
    )  # fmt: skip
    value = value_of(project, question, lambda _: None)
    decided, t = value.decided, played.answers.truth
    place = {customer: i for i, customer in enumerate(t.customer_ids)}
    rows = np.array([place[customer] for customer in decided.customer_ids])[:, None]
    columns = [t.offer_ids.index(offer) for offer in decided.offer_ids]
    # The reward of an answer, as evaluate counts it: one that would have come anyway is one too.
    reward = t.contacted * (t.margin - t.incentive_cost) - t.contact_cost
    shift = (decided.other - decided.logged)[:, :-1]
    true = float((shift * reward[rows, columns]).sum() / len(decided))
    gain = value.found.primary.difference
    title = "profit per decision that the changed policy adds"
    return value, Figure("changed policy", title, true, gain.value, gain.low, gain.high)


# ------------------------------------------------------------------ the report


def _report(project: Project, played: _Played, history: History) -> Path:
    from nextbest.measure.report.files import write_all
    from nextbest.proof.reporting import report, settings_of

    settings = settings_of(project)
    period = settings.period.model_copy(update={"days": DAYS, "baseline": "before"})
    settings = settings.model_copy(update={"period": period})
    until = played.until.replace(tzinfo=None)
    found = report(
        project, history=_history(project, played, history), settings=settings, until=until,
        simulated=True, made_at=until,
    )  # fmt: skip
    return write_all(found, project.state / "report")["page"]


def _history(project: Project, played: _Played, history: History) -> History:
    """The history until the first decision, and a quarter in which an earlier one is repeated.

    Simulated purchases come on top. Not the last quarter is repeated but the one before it, where
    the data hold it: else everybody who bought would buy again, and nobody could be seen to leave.
    """
    start, until = (moment.replace(tzinfo=None) for moment in (played.start, played.until))
    tables = dict(history.tables)
    back = timedelta(
        days=2 * DAYS if history.data_start <= start - timedelta(days=2 * DAYS) else DAYS
    )
    times = {"transactions": "ordered_at", "events": "event_at",
             "contacts": "contacted_at", "responses": "responded_at"}  # fmt: skip
    for name, at in times.items():
        if name in tables:
            before = tables[name].filter(tables[name][at] < start)
            tables[name] = before
            if name in ("transactions", "events"):
                tables[name] = before.union(_repeated(before, at, start - back, back))
    sales = _purchases(project, tables["transactions"])
    tables["transactions"] = tables["transactions"].union(sales)
    return replace(history, tables=tables, observed_until=until)


def _repeated(table: Any, at: str, since: datetime, back: timedelta) -> Any:
    last = table.filter((table[at] >= since) & (table[at] < since + timedelta(days=DAYS)))
    moved = {name: last[name] + back for name in (at, "known_at")}
    if "order_id" in last.columns:
        moved["order_id"] = last.order_id + " again"
    return last.mutate(**moved)


def _purchases(project: Project, lines: Any) -> Any:
    """The simulated purchases of the store, as rows of the transactions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from nextbest.proof.logbook import store_of

    with store_of(project) as store:
        told = [one for part in store.outcome_parts(5_000) for one in part]
    moments = [one.occurred_at.replace(tzinfo=None) for one in told]
    given = {
        "customer_id": [one.customer_id for one in told],
        "order_id": [one.outcome_id for one in told],
        "ordered_at": moments, "known_at": moments, "amount": [one.value for one in told],
    }  # fmt: skip
    schema = lines.schema().to_pyarrow()
    rows = pa.table(
        {f.name: pa.array(given.get(f.name, [None] * len(told)), f.type) for f in schema}
    )
    path = project.state / "simulated-purchases.parquet"
    pq.write_table(rows, path)
    own = lines.get_backend().read_parquet(path, table_name="simulated_purchases")
    return own.cast(lines.schema()).select(*lines.columns)
