"""What a run shows a reader: pictures of the test slice and a model card in plain words."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nextbest.learn.metrics import Metric, curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nextbest.learn.train import TrainResult

Array = NDArray[np.float64]


def probability_plots(y: Array, score: Array, baseline: Array) -> dict[str, bytes]:
    """Return PNG pictures of calibration, gain and lift on the test slice, by file name."""
    ours, theirs = curves(y, score), curves(y, baseline)
    figure, axes = _figure()
    r = ours["reliability"]
    error = [
        np.subtract(r["observed"], r["low"]).clip(0),
        np.subtract(r["high"], r["observed"]).clip(0),
    ]
    axes.errorbar(r["mean_score"], r["observed"], yerr=error, fmt="o", capsize=3, label="model")
    top = max(*r["mean_score"], *r["observed"])
    axes.plot([0, top], [0, top], "--", color="grey", label="perfect")
    axes.set(xlabel="predicted probability", ylabel="observed rate (95% interval)")
    plots = {"plots/calibration.png": _png(figure, axes, "Calibration on the test slice")}
    for curve, columns, unit in (
        ("gain", ("share", "captured"), "share of responders reached"),
        ("lift", ("share", "lift"), "times better than random"),
    ):
        figure, axes = _figure()
        for data, name in ((ours, "model"), (theirs, "baseline")):
            axes.plot(data[curve][columns[0]], data[curve][columns[1]], label=name)
        axes.set(xlabel="share of rows, best first", ylabel=unit)
        plots[f"plots/{curve}.png"] = _png(figure, axes, f"{curve.title()} on the test slice")
    return plots


def value_plots(actual: Array, predicted: Array) -> dict[str, bytes]:
    """Return a PNG picture of predicted against actual value by tenth of customers."""
    order = np.argsort(predicted, kind="stable")
    tenths = [t for t in np.array_split(order, 10) if len(t)]
    figure, axes = _figure()
    axes.plot(
        [predicted[t].mean() for t in tenths],
        [actual[t].mean() for t in tenths],
        "o-",
        label="tenths",
    )
    top = float(max(predicted[tenths[-1]].mean(), actual[tenths[-1]].mean()))
    axes.plot([0, top], [0, top], "--", color="grey", label="perfect")
    axes.set(xlabel="predicted value", ylabel="actual value")
    return {"plots/value.png": _png(figure, axes, "Value by tenth of customers, test span")}


def importance_plot(importance: Sequence[tuple[str, float]]) -> dict[str, bytes]:
    """Return a PNG picture of the strongest features (mean absolute effect on the log-odds)."""
    strongest = list(importance[:20])[::-1]
    figure, axes = _figure(height=6.0)
    axes.barh([n for n, _v in strongest], [v for _n, v in strongest], label="mean |effect|")
    axes.set(xlabel="mean absolute effect on the log-odds")
    return {"plots/importance.png": _png(figure, axes, "What moves the score most")}


def _figure(height: float = 4.0) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, height), layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: Figure, axes: Any, title: str) -> bytes:
    axes.set_title(title)
    axes.legend()
    axes.grid(alpha=0.3)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def model_card(result: TrainResult, features: Mapping[str, str]) -> str:
    """Return the model card in Markdown: what, on which data, how good, limits.

    Parameters
    ----------
    result : the finished training.
    features : feature name to its one-line meaning.
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
        "| metric (test slice) | model | 95% interval | baseline: " + result.baseline_name + " |",
        "|---|---|---|---|",
        *_rows(result.metrics, result.baseline_metrics),
        "",
        "**Gates.**",
        "",
        *(f"- {'passed' if g.passed else 'FAILED'} {g.gate}: {g.message}" for g in result.gates),
        "",
        *(["**Notes.**", "", *(f"- {n}" for n in result.notes), ""] if result.notes else []),
        "**What moves the score most.**",
        "",
        *(f"- `{n}`: {features.get(n, '')} ({v:.3f})" for n, v in result.importance[:10]),
        "",
        "**Limits.** The figures hold for customers like those of the test slice. The scores say "
        "who will respond, leave or spend, not what a contact changes: that takes an experiment.",
        "",
    ]
    return "\n".join(lines)


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
