"""Would another policy have earned more on the project's own decision log?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from nextbest.errors import DataError, Fault, UsageError
from nextbest.project import Project
from nextbest.proof.logbook import Logbook, opened, store_of

if TYPE_CHECKING:
    from nextbest.decide.policy import Policy
    from nextbest.learn.gates import GateResult
    from nextbest.measure.ope import Evaluation, LoggedPolicy
    from nextbest.serve.otherwise import Reconsidered

__all__ = ["ASSUMPTIONS", "REWARDS", "PolicyValue", "Question", "Reward", "approve", "value_of"]

Reward = Literal["profit", "response", "revenue"]
REWARDS: Final[Mapping[Reward, str]] = {
    "profit": "margin less incentive of an offer that was answered within its window, less the "
    "cost of the contact, less the margin that would have come anyway (baseline_rate)",
    "response": "1 for an offer that was answered within its window, else 0",
    "revenue": "value of the purchases that were reported for the decision within the window",
}
#: What must be taken on trust, whatever the numbers say.
ASSUMPTIONS: Final = (
    "One decision at a time: contacts, answers, scores and prices before each decision are those "
    "that the logged policy brought about. A policy that contacts more or less would soon meet "
    "other caps and other customers; only an experiment shows that.",
    "One customer's offer changes nobody else's answer.",
    "Every answer was reported, whichever offer it was to.",
)


@dataclass(frozen=True)
class Question:
    """What is asked; see the options of ``nextbest evaluate``.

    Attributes
    ----------
    since, until : naive UTC; None takes the log's own beginning and end.
    every_policy : also decisions of policies before the last one; no gate can then be held.
    """

    policy: Path
    reward: Reward = "profit"
    since: datetime | None = None
    until: datetime | None = None
    window_days: float | None = None
    first_slot: bool = False
    every_policy: bool = False
    at_most: int = 100_000

    def __post_init__(self) -> None:
        faults = []
        if self.reward not in get_args(Reward):
            faults.append(Fault("--reward", "unknown", " or ".join(REWARDS), str(self.reward)))
        if self.at_most < 1:
            faults.append(Fault("--at-most", "nothing is left", "1 or more", str(self.at_most)))
        if self.window_days is not None and not 0 < self.window_days <= 36_500:
            faults.append(Fault("--window-days", "impossible", "above 0, up to 36,500",
                                f"{self.window_days:g}"))  # fmt: skip
        if faults:
            raise UsageError(faults=faults)


@dataclass(frozen=True)
class PolicyValue:
    """What the other policy would have earned on the log, and on which part of it.

    Attributes
    ----------
    policy : the other policy.
    found : estimates, overlap and verdict, per decision.
    decided : the decisions made again, and how many are left out, by reason.
    until : what happened before this moment was known.
    """

    policy: Policy
    question: Question
    found: Evaluation
    decided: Reconsidered
    until: datetime

    def lines(self) -> Iterator[str]:
        """Say what was evaluated, what was left out, and what must be taken on trust."""
        from nextbest.serve.otherwise import LEFT_OUT

        decided, low, high = self.decided, *self.decided.windows
        days = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        yield (
            f"{len(decided):,} logged decisions, as {self.policy.where} would have made them. "
            f"Reward: {REWARDS[self.question.reward]}; {days} days to answer, known until "
            f"{self.until:%Y-%m-%d %H:%M} UTC."
        )
        for reason, count in decided.left_out.items():
            yield f"Left out: {count:,} ({reason}: {LEFT_OUT[reason]})."
        if len(decided.policies) > 1:
            yield (
                f"The log was made by {len(decided.policies)} policies; the difference is to what "
                "they earned together."
            )
        yield "Taken on trust:"
        for assumption in self.assumptions:
            yield f"- {assumption}"

    @property
    def is_same(self) -> bool:
        """Whether the other policy chooses as the logged one did, in every decision."""
        return bool(np.allclose(self.decided.other, self.decided.logged, rtol=0, atol=1e-9))

    def gate(self, max_loss_per_1000_decisions: float) -> GateResult:
        """Hold the policy against what the logged one earned: it may not lose more than so much.

        Raises
        ------
        UsageError: the reward is no money, or several policies made the log.
        """
        from nextbest.learn.gates import GateResult
        from nextbest.measure import ope

        if self.question.reward != "profit" or self.question.every_policy:
            raise UsageError("--policy", "the gate is about profit over that of the live policy",
                             action="Leave out --reward and --every-policy")  # fmt: skip
        if self.is_same:
            said = f"it chooses as the logged policy did in all {len(self.decided):,} decisions"
            return GateResult("policy", True, said)
        held = ope.hold(self.found, max_loss_per_1000_decisions / 1000)
        return GateResult("policy", held.passed, held.message)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What must be taken on trust, of this evaluation."""
        more = []
        if self.question.first_slot:
            more.append(
                "What the first of several offers earns does not depend on those behind it: only "
                "first slots are counted."
            )
        if self.decided.retaining and self.question.reward == "profit":
            more.append(
                "What is not seen within the window is not counted: of offers that keep customers ("
                + ", ".join(self.decided.retaining) + ") that is most of their worth."
            )  # fmt: skip
        return (*ASSUMPTIONS, *more)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            **self.found.to_dict(),
            "policy": self.policy.content_hash, "reward": self.question.reward,
            "until": self.until.isoformat(), "decisions": len(self.decided),
            "left_out": dict(self.decided.left_out), "logged_by": dict(self.decided.policies),
            "assumptions": list(self.assumptions),
        }  # fmt: skip


def value_of(project: Project, question: Question, step: Callable[[str], None]) -> PolicyValue:
    """Say what another policy would have earned on the logged decisions, or refuse with reasons.

    Raises
    ------
    ConfigError: the policy's file is wrong, or reads what the records do not hold.
    DataError: the log cannot answer; each reason with its numbers.
    """
    from nextbest.decide.policy import Policy
    from nextbest.measure import ope
    from nextbest.serve.otherwise import Otherwise, reconsider

    policy = Policy.load(question.policy)
    with opened(project, since=question.since, amounts=False, progress=step) as book:
        until = question.until or book.log.until
        if until is None:
            raise DataError("evaluation", "there are no decisions in the log",
                            expected="1 or more", got=f"none since {question.since}")  # fmt: skip
        last = None if question.every_policy else book.log.last_policy()
        asked = Otherwise(policy, until, question.since, question.window_days,
                          question.first_slot, last, question.at_most)  # fmt: skip
        with store_of(project) as store:
            decided = reconsider(
                project.root, store, asked,
                lambda seen: step(f"decide again by {policy.where}: {seen:,} decisions seen"),
            )  # fmt: skip
        step("fit the reward model and weigh the decisions")
        reward = _rewards(book, decided, question, until)
    logged = _logged(decided, reward)
    _require_chance(logged)
    return PolicyValue(policy, question, ope.evaluate(logged, decided.other), decided, until)


def _logged(decided: Reconsidered, reward: Any) -> LoggedPolicy:
    from nextbest.measure.ope import LoggedPolicy

    rows = np.arange(len(decided))
    # Columns of which nothing is known tell the reward model nothing.
    known = [values for values in decided.context.values() if np.isfinite(values).any()]
    return LoggedPolicy(
        np.array(decided.customer_ids, dtype=object), decided.offer_ids, decided.action, reward,
        decided.logged[rows, decided.action], probabilities=decided.logged,
        context=np.column_stack(known) if known else None,
    )  # fmt: skip


def _require_chance(logged: LoggedPolicy) -> None:
    """Refuse a log in which everything was certain, and say how to let chance in."""
    certain = int((logged.selection_probability >= 1).sum())
    if certain == len(logged):
        raise DataError(
            "evaluation", "nothing was left to chance: every logged choice was certain",
            expected="a selection_probability below 1 in some decisions",
            got=f"1 in all {certain:,}",
            action='Explore: policy = "epsilon", epsilon = 0.05 and a salt under [exploration] of '
            "serving/policy.toml. What is decided from then on can be evaluated",
        )  # fmt: skip


def _rewards(book: Logbook, decided: Reconsidered, question: Question, until: datetime) -> Any:
    """(n,) what each decision earned in its first slot."""
    from nextbest.measure.log import answered, unoffered_sales

    made = answered(book.log, question.window_days)
    first = made.filter((made["rank"] == 1) & (made.answered | (made.sales != 0)))
    told = first.select("decision_id", "answered", "sales").to_pyarrow()
    names = told.column("decision_id").to_pylist()
    ids = decided.decision_ids
    if question.reward == "revenue":
        sales = dict(zip(names, told.column("sales").to_pylist(), strict=True))
        sales |= unoffered_sales(book.log, timedelta(days=decided.windows[1]))
        return np.array([sales.get(name, 0.0) for name in ids])
    answers = dict(zip(names, told.column("answered").to_pylist(), strict=True))
    hit = np.array([bool(answers.get(name)) for name in ids])
    if question.reward == "response":
        return hit.astype(np.float64)
    a = decided.amounts
    earned = np.where(hit, a["margin"] - a["incentive_cost"], 0.0)
    return earned - a["contact_cost"] - a["baseline_rate"] * a["margin"]


def approve(
    project: Project, policy: Policy, passed: bool, said: str, numbers: Mapping[str, Any]
) -> None:
    """Write down what the evaluation of a policy came to, for the server to heed and the audit.

    Raises
    ------
    StoreError: it cannot be written.
    """
    from nextbest.decide.offers import Catalogue
    from nextbest.errors import ArtifactError
    from nextbest.serve.approvals import Approval, keep, note
    from nextbest.serve.audit import local_actor
    from nextbest.serve.bundle import load_bundle
    from nextbest.serve.runtime import open_store, serving_dir

    try:
        table = load_bundle(serving_dir(project.root)).offers
    except ArtifactError:
        table = None  # Nothing is served yet; only a catalogue with a [source] needs its rows.
    catalogue = Catalogue.load(project.root / "serving" / "offers.toml", table)
    approval = Approval("evaluation", policy.content_hash, catalogue.content_hash, passed,
                        said, dict(numbers))  # fmt: skip
    store = open_store(project.root)
    try:
        note(store, approval, local_actor())
    finally:
        store.close()
    keep(project.root, approval)
