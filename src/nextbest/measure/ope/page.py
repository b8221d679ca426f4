"""The evaluation as one page: everything inside it, nothing loaded, no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nextbest.learn.compare_charts import Markup, bar, el, interval, join
from nextbest.learn.compare_words import number, signed
from nextbest.learn.page import save, whole
from nextbest.measure.ope.estimators import MEANINGS, PRIMARY, Estimate
from nextbest.measure.ope.evaluation import Evaluation
from nextbest.measure.ope.overlap import OfferSupport
from nextbest.measure.ope.text import figures, shown_offers

__all__ = ["render", "write"]

#: How the shared style sheet colours each answer.
_STYLE: Final = {
    "ship": "better", "do not ship": "worse", "test further": "unclear", "cannot say": "refused",
}  # fmt: skip
_READING: Final = (
    "Each bar is the 95% interval of the difference to the logged policy on the same decisions; "
    "right of the line the target earns more. The intervals count a customer's decisions as one.",
    "The reward model alone is shown only beside the others: it flatters a policy that was "
    "picked by a model, and its interval holds only if the model is right.",
    "Weights correct for what the log chose; the effective sample is what is left of it.",
)


def render(evaluation: Evaluation, notes: Sequence[str] = ()) -> str:
    """Return the whole page as text; ``notes`` say what was evaluated and on what trust."""
    title = "Another policy on the logged decisions"
    return whole(
        title,
        el("header", el("p", "nextbest · off-policy evaluation", class_="eyebrow"),
           el("h1", title)),
        el("main", _verdict(evaluation), _estimates(evaluation), _overlap(evaluation),
           _offers(evaluation), _notes(notes)),
    )  # fmt: skip


def write(evaluation: Evaluation, file: Path | str, notes: Sequence[str] = ()) -> None:
    """Write the page to a file; ``UsageError`` where that cannot be done."""
    save(render(evaluation, notes), file)


def _notes(notes: Sequence[str]) -> Markup | None:
    if not notes:
        return None
    return el("section", el("h2", "What was evaluated"), *(el("p", note) for note in notes))


def _verdict(evaluation: Evaluation) -> Markup:
    verdict = evaluation.verdict
    because = verdict.because[:1].upper() + verdict.because[1:]
    return el(
        "section", el("h2", verdict.call.capitalize(), class_="call"), el("p", because),
        class_=f"verdict {_STYLE[verdict.call]}", aria_label="Verdict",
    )  # fmt: skip


def _estimates(evaluation: Evaluation) -> Markup:
    ends = [abs(v) for e in evaluation.estimates.values()
            for v in (e.difference.low, e.difference.high)]  # fmt: skip
    rows = [_estimate(e, max(ends)) for e in evaluation.estimates.values()]
    m = evaluation.logged
    said = f"The logged policy earned {number(m.value)} per decision ({number(m.low)} to "
    return el(
        "section",
        el("h2", "By how much?"),
        el("p", said + f"{number(m.high)})."),
        *(el("p", text) for text in _READING),
        _table("What the target earns by each estimator", rows,
               "estimator", "value", "difference", "less ◂ ▸ more"),
    )  # fmt: skip


def _estimate(e: Estimate, bound: float) -> Markup:
    d = e.difference
    better = "better" if d.low > 0 else "worse" if d.high < 0 else "unclear"
    span = f"{signed(d.low)} to {signed(d.high)}"
    words = f"{e.name}: difference {signed(d.value)}, 95% interval {span}"
    return _row(
        join([
            el("span", e.name, class_="name"),
            el("span", MEANINGS[e.name], class_="meaning"),
            el("span", "decides", class_="decides") if e.name == PRIMARY else Markup(""),
        ]),
        ("value", number(e.value.value)),
        ("difference", join([el("span", signed(d.value)), el("span", span, class_="range")])),
        picture=interval(d.value, d.low, d.high, bound, better, words),
    )  # fmt: skip


def _overlap(evaluation: Evaluation) -> Markup:
    found = figures(evaluation.overlap)
    pairs = (el("div", el("dt", name), el("dd", value)) for name, value in found)
    return el("section", el("h2", "How well does the log cover it?"), el("dl", *pairs))


def _offers(evaluation: Evaluation) -> Markup:
    shown, more = shown_offers(evaluation.overlap)
    bound = max((o.target_share for o in shown), default=1.0)
    return el(
        "section",
        el("h2", "Offer by offer, the least known first"),
        _table("What the target wants and what the log knows", [_offer(o, bound) for o in shown],
               "offer", "target", "logged", "worth", "log", "target's share"),
        el("p", f"And {more} more.") if more else None,
    )  # fmt: skip


def _offer(o: OfferSupport, bound: float) -> Markup:
    return _row(
        el("span", o.offer, class_="name"),
        ("target", f"{o.target_share:.1%}"),
        ("logged", f"{o.logged:,}"),
        ("worth", f"{o.effective:,.0f}"),
        ("log", o.support),
        picture=bar(o.target_share, bound, "of"),
    )


def _row(title: Markup, *cells: tuple[str, object], picture: Markup) -> Markup:
    return el(
        "tr",
        el("th", title, scope="row", role="rowheader"),
        *(el("td", value, data_label=label, role="cell", class_="num") for label, value in cells),
        el("td", picture, role="cell", class_="pic"),
        role="row",
    )


def _table(caption: str, body: list[Markup], *heads: str) -> Markup:
    head = el("tr", *(el("th", h, scope="col", role="columnheader") for h in heads), role="row")
    return el(
        "table", el("caption", caption), el("thead", head, role="rowgroup"),
        el("tbody", *body, role="rowgroup"), class_="stack", role="table",
    )  # fmt: skip
