"""What to look at: the few sentences that a reader in a hurry should take away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from nextbest.measure.report import words
from nextbest.measure.report.facts import Report, slipped
from nextbest.measure.segments import UNKNOWN

__all__ = ["Finding", "findings"]

Kind = Literal["good", "bad", "look", "note"]
_MOST_SEGMENTS: Final = 3
_GONE: Final = ("at risk", "lapsed")


@dataclass(frozen=True)
class Finding:
    """One sentence, and what it calls for: nothing, care, or a look."""

    kind: Kind
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return the sentence as plain JSON types."""
        return dict(vars(self))


def findings(report: Report) -> tuple[Finding, ...]:
    """Return what to look at: money first, then customers, offers, proof and models."""
    made = [
        *_revenue(report), *_kpis(report), *_segments(report), *_movers(report), *_offers(report),
        *_proof(report), *_models(report),
    ]  # fmt: skip
    return tuple(made)


def _revenue(report: Report) -> Iterator[Finding]:
    if not report.drivers:
        return
    total = next(t for t in report.totals if t.name == "revenue")
    share = total.value / total.before - 1
    parts = sorted(report.drivers, key=lambda d: -abs(d.effect))
    told = [f"{d.name} {words.money(d.effect, sign=True)}" for d in parts[:2]]
    verb = "more" if share >= 0 else "less"
    yield Finding(
        "note",
        f"Revenue was {words.money(total.value)}, {words.percent(abs(share))} {verb} than in the "
        f"baseline. What moved it most: {' and '.join(told)}.",
    )


def _kpis(report: Report) -> Iterator[Finding]:
    flagged = [r for r in report.kpis if r.news]
    for r in flagged:
        kind: Kind = "good" if r.news == "good" else "bad" if r.news == "bad" else "look"
        yield Finding(kind, f"{r.kpi.title} {words.change(r)}: more than noise.")
    judged = [r for r in report.kpis if r.change is not None]
    if judged and not flagged:
        yield Finding("note", "No key figure moved by more than noise.")


def _segments(report: Report) -> Iterator[Finding]:
    flagged = [r for r in report.segments if r.news in ("good", "bad") and r.segment != UNKNOWN]
    flagged.sort(key=lambda r: -abs((r.change and r.change.relative) or 0.0))
    for r in flagged[:_MOST_SEGMENTS]:
        who = f"{r.dimension.replace('_', ' ')} “{r.segment}”"
        kind: Kind = "good" if r.news == "good" else "bad"
        yield Finding(kind, f"Among {who}, {r.kpi.title.lower()} {words.change(r)}.")
    if len(flagged) > _MOST_SEGMENTS:
        more = len(flagged) - _MOST_SEGMENTS
        yield Finding("note", f"{more} more figures moved in single segments; see below.")


def _movers(report: Report) -> Iterator[Finding]:
    came, left = slipped(report)
    n_came, n_left = (sum(m.customers for m in moves) for moves in (came, left))
    days = report.settings.customers.lookback_days
    if n_left:
        lost = sum(m.value_before - m.value_after for m in left)
        yield Finding(
            "look" if n_left > n_came else "note",
            f"{n_left:,} customers slipped out of the top value tier and {n_came:,} came into it. "
            f"Those who slipped were worth {words.money(lost)} less over {days} days than before.",
        )
    gone = [s for s in report.sizes if s.dimension == "lifecycle" and s.segment in _GONE]
    now, before = sum(s.customers for s in gone), sum(s.customers_before for s in gone)
    if now:
        change = f"{now - before:+,}" if now != before else "as many"
        worth = sum(s.value for s in gone)
        yield Finding(
            "look" if now > before else "note",
            f"{now:,} customers are at risk or lapsed ({change} since the start of the period); "
            f"they were worth {words.money(worth)} over the last {days} days.",
        )


def _offers(report: Report) -> Iterator[Finding]:
    for o in report.offers:
        each = o.profit_per_contact
        if each is not None and each.high < 0:
            yield Finding(
                "bad", f"{o.title} cost more than its responses brought in: "
                f"{words.money(o.profit or 0.0)} on {o.closed:,} contacts.",
            )  # fmt: skip
    priced = [o for o in report.offers if o.profit is not None]
    if priced:
        best = max(priced, key=lambda o: o.profit or 0.0)
        yield Finding(
            "note", f"{best.title} brought in most: {words.money(best.profit or 0.0)} on "
            f"{best.closed:,} contacts whose time to answer is over.",
        )  # fmt: skip


def _proof(report: Report) -> Iterator[Finding]:
    found = report.given.experiment
    if found is None:
        yield Finding("look", f"No experiment: {report.given.no_experiment}.")
        return
    if found.blocked:
        yield Finding("bad", f"The experiment has no verdict: the arms are {found.balance.message}")
        return
    for c in found.overall:
        kind: Kind = "good" if c.finding == "higher" else "bad" if c.finding == "lower" else "note"
        yield Finding(kind, c.verdict[:1].upper() + c.verdict[1:])


def _models(report: Report) -> Iterator[Finding]:
    models = report.given.models
    if not models:
        yield Finding("look", "No model is in use.")
        return
    for m in models:
        broken = [c for c in m.checks if not c[3]]
        for what, figure, limit, _within in broken:
            yield Finding("bad", f"Model {m.name}: {what} is {figure:.3g}, beyond {limit:.3g}.")
        if m.drift == "alarm":
            yield Finding("bad", f"Model {m.name}: what it reads has moved since training.")
    if all(m.healthy for m in models):
        names = ", ".join(m.name for m in models)
        yield Finding("good", f"All models in use are within their limits: {names}.")
