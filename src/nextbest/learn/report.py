"""What a run shows a reader: pictures of the test slice and a model card in plain words."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nextbest.data.labels import TopShareOfValue
from nextbest.learn.metrics import Metric, is_and_becoming
from nextbest.learn.segments import Segment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nextbest.learn.evidence import Effect, Evidence
    from nextbest.learn.train import TrainResult

_SHOWN_EFFECTS: Final = 15
_Column = Mapping[str, Sequence[float]]
#: curve -> its two columns, the words on the axes, and the line of no skill.
_LINES: Final = {
    "roc": (
        ("false_positive_rate", "true_positive_rate"),
        ("share of the others reached", "share of positives reached"),
    ),
    "pr": (("recall", "precision"), ("share of positives reached", "positives among those picked")),
    "gain": (("share", "captured"), ("share of rows, best first", "share reached or held")),
    "lift": (("share", "lift"), ("share of rows, best first", "times better than random")),
}
_TITLES: Final = {
    "roc": "ROC", "pr": "Precision and recall", "gain": "Gain", "lift": "Lift",
}  # fmt: skip


def pictures(kept: Evidence) -> dict[str, bytes]:
    """Return PNG pictures of everything that a run keeps as curves or effects, by file name."""
    made = {
        f"plots/{name}.png": _lines(name, kept.curves)
        for name in _LINES
        if name in kept.curves["model"]
    }
    if kept.kind == "probability":
        made["plots/calibration.png"] = _calibration(kept.curves["model"]["reliability"])
    else:
        made["plots/value.png"] = _tenths(kept.curves)
    if kept.effects:
        made["plots/effects.png"] = _effects(kept.effects)
    return made


def _lines(name: str, curves: Mapping[str, Mapping[str, Any]]) -> bytes:
    (across, up), words = _LINES[name]
    figure, axes = _figure()
    for who, dash in (("model", "-"), ("baseline", "--")):
        axes.plot(curves[who][name][across], curves[who][name][up], dash, label=who)
    if name == "roc":
        axes.plot([0, 1], [0, 1], ":", color="grey", label="chance")
    axes.set(xlabel=words[0], ylabel=words[1])
    return _png(figure, axes, f"{_TITLES[name]} on the test slice")


def _calibration(r: _Column) -> bytes:
    figure, axes = _figure()
    error = [
        np.subtract(r["observed"], r["low"]).clip(0),
        np.subtract(r["high"], r["observed"]).clip(0),
    ]
    axes.errorbar(r["mean_score"], r["observed"], yerr=error, fmt="o", capsize=3, label="model")
    top = max(*r["mean_score"], *r["observed"])
    axes.plot([0, top], [0, top], "--", color="grey", label="perfect")
    axes.set(xlabel="predicted probability", ylabel="observed rate (95% interval)")
    return _png(figure, axes, "Calibration on the test slice")


def _tenths(curves: Mapping[str, Mapping[str, Any]]) -> bytes:
    figure, axes = _figure()
    top = 0.0
    for who, style in (("model", "o-"), ("baseline", "s--")):
        tenths = curves[who]["tenths"]
        axes.plot(tenths["predicted"], tenths["actual"], style, label=who)
        top = max(top, *tenths["predicted"], *tenths["actual"])
    axes.plot([0, top], [0, top], ":", color="grey", label="perfect")
    axes.set(xlabel="predicted value", ylabel="actual value")
    return _png(figure, axes, "Value by tenth of customers, test span")


def _effects(effects: Sequence[Effect]) -> bytes:
    """One dot per row and feature: how far it moved the score, dark where the feature is high."""
    shown = list(effects[:_SHOWN_EFFECTS])[::-1]
    figure, axes = _figure(height=1.2 + 0.32 * len(shown))
    rng = np.random.default_rng(0)
    for place, e in enumerate(shown):
        level = np.full(len(e.effects), 0.5)
        if e.values is not None:
            known = np.isfinite(e.values)
            ranks = np.argsort(np.argsort(e.values[known], kind="stable"), kind="stable")
            level[known] = ranks / max(1, known.sum() - 1)
        height = place + rng.uniform(-0.3, 0.3, len(e.effects))
        axes.scatter(e.effects, height, c=level, cmap="viridis_r", vmin=0, vmax=1, s=4)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="effect on the log-odds; light: low value, dark: high value")
    axes.set_yticks(range(len(shown)), [e.feature for e in shown], fontsize=7)
    return _png(figure, axes, "What moves the score, row by row", legend=False)


def _figure(height: float = 4.0) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, height), layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: Figure, axes: Any, title: str, *, legend: bool = True) -> bytes:
    axes.set_title(title)
    if legend:
        axes.legend()
    axes.grid(alpha=0.3)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


# ------------------------------------------------------------------ the model card


def model_card(result: TrainResult, kept: Evidence) -> str:
    """Return the model card in Markdown: what, on which data, how good, for whom worse, limits.

    Parameters
    ----------
    result : the finished training.
    kept : what its run keeps.
    """
    lines = [
        f"# {result.model.name}",
        "",
        f"**What it predicts.** {result.model.label.meaning}.",
        "",
        f"**In words.** The model {result.verdict}.",
        "",
        f"**Data.** {_rows_in_words(result)}. "
        f"Test slice from {result.plan.cut:%Y-%m-%d %H:%M} UTC; "
        "nothing whose label was still open then was trained on "
        f"({result.counts['n_in_gap']:,} rows fell into that gap).",
        "",
        *(f"- left out: {n:,} {why}" for why, n in result.left_out.items()),
        *(f"- feature group not available: {u}" for u in result.unavailable),
        "",
        "## How good",
        "",
        f"| metric (test slice) | model | 95% interval | baseline: {_cell(result.baseline_name)} |",
        "|---|---|---|---|",
        *_rows(result.metrics, result.baseline_metrics),
        "",
        "**Gates.**",
        "",
        *(f"- {'passed' if g.passed else 'FAILED'} {g.gate}: {g.message}" for g in result.gates),
        "",
        *(["**Notes.**", "", *(f"- {n}" for n in result.notes), ""] if result.notes else []),
        *_is_and_becoming(result, kept),
        *_tuned(result),
        *_moved(result),
        *_chosen(result),
        *_for_whom(kept.segments, result.primary),
        *_movers(kept.effects),
        *_learned(kept.learned),
        "## Limits",
        "",
        *(f"- {limit}" for limit in _limits(result, kept)),
        "",
    ]
    return "\n".join(lines)


def _tuned(result: TrainResult) -> list[str]:
    return (
        ["**Tuned**, on the training side alone.", "", f"- {result.tuning}", ""]
        if (result.tuning)
        else []
    )


def _moved(result: TrainResult) -> list[str]:
    """What differs between training rows and test slice: it had moved, and the model still held."""
    if not result.moved:
        return []
    lines = [f"- {_cell(str(d))}" for d in result.moved[:10]]
    more = len(result.moved) - len(lines)
    return [
        "**Moved between training and test**, so the figures hold in spite of it.",
        "",
        *lines,
        *([f"- and {more} more"] if more > 0 else []),
        "",
    ]


def _chosen(result: TrainResult) -> list[str]:
    if result.choice is None:
        return []
    rows = []
    for row in result.choice.to_dict()["scores"]:
        numbers = [row[n] for n in ("log_likelihood", "behind", "behind_se", "expected", "actual")]
        cells = " | ".join("–" if n is None else f"{n:,.1f}" for n in numbers)
        rows.append(f"| {row['model']} | {cells} | {_cell(row['refusal'] or '–')} |")
    return [
        "## Which purchase model",
        "",
        "Each was fitted on the earlier part of the history before the cut, and judged by the "
        "likelihood that it gave to the rest.",
        "",
        "| model | log-likelihood | behind | standard error | purchases expected | actual "
        "| refused |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _rows_in_words(result: TrainResult) -> str:
    counts = result.counts
    positive = f" ({counts['n_positive']:,} positive)" if "n_positive" in counts else ""
    return f"{counts['n_train']:,} training rows, {counts['n_test']:,} test rows{positive}"


def _rows(model: Mapping[str, Metric], baseline: Mapping[str, Metric]) -> list[str]:
    return [
        f"| {n} | {m.value:.4f} | {m.low:.4f} to {m.high:.4f} | "
        + (f"{baseline[n].value:.4f} |" if n in baseline else "– |")
        for n, m in model.items()
    ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


_STANDING: Final = {
    "is": "is: on top by the score and by",
    "becoming": "becoming: on top by the score, not yet by",
    "slipping": "slipping: not on top by the score, still by",
}


def _is_and_becoming(result: TrainResult, kept: Evidence) -> list[str]:
    """For a model of high value: who is on top already, who is getting there, how often right."""
    label, past = result.model.label, _cell(result.baseline_name)
    if not isinstance(label, TopShareOfValue):
        return []
    rows = kept.rows
    found = is_and_becoming(rows["label"], rows["score"], rows["baseline"], share=label.share)
    lines = [
        "## Who is high-value, and who is becoming so",
        "",
        f"| standing in the top {label.share:.0%} | customers | truly so later | 95% interval |",
        "|---|---|---|---|",
    ]
    for name, (n, right) in found.items():
        told = f"{right.value:.1%} | {right.low:.1%} to {right.high:.1%}" if right else "– | –"
        lines.append(f"| {_STANDING[name]} {past} | {n:,} | {told} |")
    return [*lines, ""]


def _for_whom(found: Sequence[Segment], primary: str) -> list[str]:
    if not found:
        return []
    lines = [
        "## For whom",
        "",
        f"| segment | rows | outcome | {primary} | 95% interval | baseline | against it |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in found:
        rows = f"{s.n:,}" if s.n_positive is None else f"{s.n:,} ({s.n_positive:,} positive)"
        start = f"| {_cell(s.label)} | {rows} | {s.mean_outcome:.4g} | "
        if s.too_few or primary not in s.model:
            lines.append(f"{start}– | {s.too_few or 'no such figure'} | – | – |")
            continue
        m = s.model[primary]
        base = f"{s.baseline[primary].value:.4f}" if primary in s.baseline else "–"
        judged = s.difference.better if s.difference else "–"
        lines.append(f"{start}{m.value:.4f} | {m.low:.4f} to {m.high:.4f} | {base} | {judged} |")
    worse = [s.label for s in found if s.difference and s.difference.better == "worse"]
    unclear = [s.label for s in found if s.difference and s.difference.better == "unclear"]
    return [
        *lines,
        "",
        f"- Worse than the baseline for: {', '.join(worse) or 'no segment'}.",
        f"- Not clearly better than the baseline for: {', '.join(unclear) or 'no segment'}.",
        "",
    ]


def _movers(effects: Sequence[Effect]) -> list[str]:
    if not effects:
        return []
    return [
        "## What moves the score most",
        "",
        "| feature | meaning | mean effect (log-odds) | direction |",
        "|---|---|---|---|",
        *(
            f"| `{e.feature}` | {_cell(e.meaning)} | {e.mean:.3f} | {_cell(e.direction)} |"
            for e in effects[:10]
        ),
        "",
    ]


def _learned(learned: Mapping[str, float]) -> list[str]:
    if not learned:
        return []
    rows = [f"| {name} | {value:.5g} |" for name, value in learned.items()]
    return ["## What it learned", "", "| parameter | value |", "|---|---|", *rows, ""]


def _limits(result: TrainResult, kept: Evidence) -> Iterator[str]:
    yield (
        "The scores say who will respond, leave or spend, not what a contact changes: that takes "
        "an experiment."
    )
    first, last = kept.rows["as_of"].min(), kept.rows["as_of"].max()
    when = f"{first:%Y-%m-%d}" if first == last else f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
    yield f"The figures hold for customers like those of the test slice, as of {when}."
    counts = result.counts
    if counts.get("n_train_positive") and counts.get("n_positive"):
        before = counts["n_train_positive"] / counts["n_train"]
        after = counts["n_positive"] / counts["n_test"]
        if not 0.8 <= after / before <= 1.25:
            yield (
                f"The outcome was {'rarer' if after < before else 'more common'} in the test slice "
                f"({after:.1%}) than in training ({before:.1%}): watch the calibration."
            )
    untold = [s for s in kept.segments if s.too_few]
    if untold:
        names = ", ".join(f"{s.label} ({s.too_few})" for s in untold)
        yield f"Too few rows to say how good it is for: {names}."
    if not kept.segments:
        yield "The data hold no column to part customers by, so nothing is known per segment."
