"""What the policy earned, read from the project's own decision log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from nextbest.errors import DataError, NotFoundError
from nextbest.project import Project
from nextbest.proof.logbook import Logbook, opened

if TYPE_CHECKING:
    from nextbest.measure.entrants import Entered, Purchases
    from nextbest.measure.experiment import Design, Reading

__all__ = ["Asked", "FromLog", "planned_shares", "read_log"]

Step = Callable[[str], None]
DEFAULT_DAYS = 28.0


@dataclass(frozen=True)
class Asked:
    """What is asked of the log; see the options of ``nextbest experiment read``.

    Attributes
    ----------
    since, until : naive UTC; None takes the log's own beginning and end.
    """

    outcomes: Sequence[str]
    by: Sequence[str] = ()
    before: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    days: float = DEFAULT_DAYS
    retained_days: float = 14.0
    purchases: Purchases = "log"
    margin_share: float | None = None


@dataclass(frozen=True)
class FromLog:
    """A reading with what of the log is not in it."""

    reading: Reading
    asked: Asked
    until: datetime
    strangers: int
    unfinished: int
    notes: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Say what of the log is in the reading, and what is not."""
        yield (
            f"\nFrom the decision log until {self.until:%Y-%m-%d %H:%M} UTC; each customer is "
            f"watched for {self.asked.days:g} days from their first decision."
        )
        if self.unfinished:
            yield f"{self.unfinished:,} customers entered too late for that: left out."
        if self.strangers:
            yield f"{self.strangers:,} customers were unknown at every decision: left out."
        yield from self.notes

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            **self.reading.to_dict(), "source": "decision log", "days": self.asked.days,
            "until": self.until.isoformat(), "purchases": self.asked.purchases,
            "strangers": self.strangers, "unfinished": self.unfinished, "notes": list(self.notes),
        }  # fmt: skip


def read_log(project: Project, asked: Asked, design: Design, step: Step) -> FromLog:
    """Compare the arms of the decision log.

    Parameters
    ----------
    design : where it has no shares, those that the policies of the log planned are tested.

    Raises
    ------
    DataError : the log cannot answer; see `nextbest.measure.entrants.enter`.
    """
    from nextbest.decide.holdout import HELD_OUT, NO_CONTACT, POLICY
    from nextbest.measure.collect import collect, outcome_of
    from nextbest.measure.entrants import BEFORE, OFFER
    from nextbest.measure.experiment import read

    money = bool({"margin", "clv"} & set(asked.outcomes))
    wanted = dict.fromkeys([*asked.by, *([asked.before] if asked.before else [])])
    logged = [name for name in wanted if name not in ("offer", "channel", "placement")]
    with opened(project, since=asked.since, profile=logged, amounts=money, progress=step) as book:
        if money and book.written.without_amounts:
            raise DataError(
                "experiment", "what offers earned and cost is not known of every decision",
                expected="their catalogue in the archive, and their records whole",
                got=f"{book.written.without_amounts:,} decisions without",
                action=book.written.because,
            )  # fmt: skip
        until = asked.until or book.log.until
        if until is None:
            raise DataError("experiment", "there are no decisions in the log",
                            expected="1 or more", got=f"none since {asked.since}")  # fmt: skip
        step("watch every customer for the same number of days")
        entered = _entered(project, asked, book, until)
        before = BEFORE if BEFORE in entered.table.columns else None
        outcomes = [outcome_of(name, before) for name in asked.outcomes]
        step("compare the arms")
        cells = collect(entered.table, outcomes, asked.by, where="decision log")
        plan, why = (design.shares, "") if design.shares else _plan(project, book)
        arms = {cell.arm for cell in cells}
        if plan is not None and not design.shares and set(plan) != arms:
            why = (
                f"not tested: the policy plans {_listed(plan)}, the log holds {_listed(arms)}; "
                "say what was planned with --share"
            )
            plan = None
        # What somebody in another arm would have got was chosen in another way.
        drawn_alike = {OFFER: (POLICY, HELD_OUT, NO_CONTACT)}
        found = read(cells, outcomes, replace(design, shares=plan), asked.by, only=drawn_alike)
        if why and plan is None:
            found = replace(found, balance=replace(found.balance, message=why))
    return FromLog(found, asked, until, entered.strangers, entered.unfinished, entered.notes)


def _listed(arms: Any) -> str:
    return ", ".join(sorted(arms))


def _entered(project: Project, asked: Asked, book: Logbook, until: datetime) -> Entered:
    from nextbest.measure.entrants import Entry, enter

    entry = Entry(asked.days, until, asked.since, asked.retained_days, asked.purchases,
                  asked.margin_share)  # fmt: skip
    log, sales, people = book.log, None, None
    of_people = _not_logged(asked, book)
    history = project.history() if asked.purchases == "data" or of_people else None
    if history is not None and asked.purchases == "data":
        sales = _sales(book, history, asked, until)
    if of_people or "clv" in asked.outcomes:
        people = _people(project, history, asked, of_people, book, until)
    if of_people:
        rest = log.decisions.drop(*(f"profile_{name}" for name in of_people))
        log = replace(log, decisions=rest)
    return enter(log, entry, asked.outcomes, asked.by, before=asked.before, sales=sales,
                 people=people)  # fmt: skip


def _not_logged(asked: Asked, book: Logbook) -> list[str]:
    """Segments of which no decision's record says anything: the customers' table may know."""
    rows = book.log.decisions
    names = [n for n in asked.by if f"profile_{n}" in rows.columns]
    if not names:
        return []
    counts = rows.aggregate(**{n: rows[f"profile_{n}"].count() for n in names})
    told = counts.to_pyarrow().to_pylist()[0]
    return [name for name in names if not told[name]]


def _sales(book: Logbook, history: Any, asked: Asked, until: datetime) -> Any:
    if until > history.observed_until:
        raise DataError(
            "experiment", "the window runs past the transactions",
            expected=f"--until {history.observed_until} or earlier", got=f"{until}",
            action="Take reported purchases instead (--purchases log)",
        )  # fmt: skip
    lines = history.tables["transactions"]
    start = book.log.decisions.decided_at.min().to_pyarrow().as_py()
    first = start - timedelta(days=asked.days)
    columns = ["customer_id", "ordered_at", "amount"]
    columns += ["margin"] if "margin" in lines.columns else []
    return book.beside("sales", lines.filter(lines.ordered_at >= first).select(*columns))


def _people(
    project: Project, history: Any, asked: Asked, by: Sequence[str], book: Logbook, until: datetime
) -> Any:
    from nextbest.measure.tables import REMAINDER

    if history is not None:
        people = history.tables["customers"]
        wanted = [c for c in (*by, REMAINDER) if c in people.columns]
        if wanted and (REMAINDER in wanted or "clv" not in asked.outcomes):
            return book.beside("people", people.select("customer_id", *dict.fromkeys(wanted)))
    if "clv" not in asked.outcomes:
        return None
    return _scored(project, book, until)


def _scored(project: Project, book: Logbook, until: datetime) -> Any:
    """What customers are worth after the window, by profiles that were computed after it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from nextbest.serve.bundle import load_bundle
    from nextbest.serve.records import naive_utc
    from nextbest.serve.runtime import serving_dir

    profiles = load_bundle(serving_dir(project.root)).profiles
    if "clv" not in profiles.columns or naive_utc(profiles.as_of) < until:
        return None
    values = profiles.matrix[:, profiles.columns.index("clv")]
    ids = [name.decode() for name in profiles.customer_ids.tolist()]
    table = pa.table({"customer_id": ids, "clv_remainder": pa.array(values, pa.float64())})
    path = book.folder / "people.parquet"
    pq.write_table(table, path)
    return book.log.decisions.get_backend().read_parquet(path, table_name="people")


def _plan(project: Project, book: Logbook) -> tuple[Mapping[str, float] | None, str]:
    """The shares that the log's policies planned, where all of them planned the same."""
    from nextbest.serve.archive import archived_policy

    rows = book.log.decisions
    hashes = rows.select("policy").distinct().to_pyarrow().column("policy").to_pylist()
    plans: list[dict[str, float]] = []
    for content_hash in hashes:
        try:
            tables = archived_policy(project.root, str(content_hash)).tables
        except NotFoundError:
            return None, (
                "not tested: a policy of the log is not in the archive; say what was planned with "
                "--share"
            )
        plan = planned_shares(tables.holdout, tables.arms)
        if plan not in plans:
            plans.append(plan)
    if len(plans) > 1:
        return None, (
            "not tested: shares changed on the way; read from after that (--from), or say what was "
            "planned with --share"
        )
    return (plans[0] if plans else None), "not tested: no policy is named in the log"


def planned_shares(holdout: Any, arms: Any) -> dict[str, float]:
    """Return the share of known customers that a policy plans for each arm."""
    from nextbest.decide.holdout import HELD_OUT, POLICY

    rest = 1 - holdout.share
    shares = {name: rest * share for name, share in arms.shares().items()}
    every = {POLICY: rest - sum(shares.values()), HELD_OUT: holdout.share, **shares}
    return {name: share for name, share in every.items() if share > 0}
