"""The comparison as one page: everything inside it, nothing loaded, no script.

It opens from a mail or a file share, on a phone and on paper, and answers in this order: better or
not, by how much, is it chance, for whom, what changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from nextbest.learn import compare_words as words
from nextbest.learn import evidence
from nextbest.learn.compare import Comparison, Pair, SegmentPair
from nextbest.learn.compare_charts import (
    Markup,
    Series,
    bar,
    el,
    interval,
    join,
    lines,
    numbers,
    sample,
)
from nextbest.learn.metrics import Metric
from nextbest.learn.page import save, whole
from nextbest.learn.paired import Difference
from nextbest.learn.records import Version

__all__ = ["MEANINGS", "render", "write"]

#: Each figure in one line.
MEANINGS: Final = {
    "auc": "chance that a positive row ranks above a negative one",
    "average_precision": "precision averaged over every cut-off",
    "brier": "squared error of the probability; less is better",
    "log_loss": "surprise at the outcomes; less is better",
    "lift_at_10": "positives in the best tenth, times the average",
    "ece": "gap between predicted and observed rates; less is better",
    "calibration_slope": "1 is ideal; below it scores are too extreme",
    "calibration_intercept": "0 is ideal; above it scores are too low",
    "precision_at_top_share": "true positives among those ranked on top",
    "value_capture": "share of all future value held by those ranked on top",
    "mae": "mean error per customer, in currency; less is better",
    "rmse": "error per customer that punishes large misses; less is better",
    "pearson_r": "how closely predicted follows actual; 1 is ideal",
    "aggregate_ratio": "predicted total over actual total; 1 is ideal",
    "interval_coverage": "outcomes inside their 90% interval; 0.9 is ideal",
}
_QUESTIONS: Final = {
    "better": "Is it better?",
    "how_much": "By how much?",
    "chance": "Is that chance?",
    "for_whom": "For whom?",
    "baseline": "And the simple rule?",
    "changed": "What changed?",
    "others": "The other versions?",
}
_READING: Final = {
    "better": "▲ better", "worse": "▼ worse", "unclear": "○ may be chance", "same": "= the same",
}  # fmt: skip
_HEADLINES: Final = {
    "better": "Better", "worse": "Worse", "unclear": "No clear difference", "same": "The same",
}  # fmt: skip
_SHOWN_EFFECTS: Final = 10
_REACHED: Final = (0.05, 0.1, 0.2, 0.3, 0.5)


def render(comparison: Comparison) -> str:
    """Return the whole page as text."""
    main = comparison.main
    title = f"{comparison.model}: {_against(main)}" if main else comparison.model
    return whole(
        title,
        _head_line(comparison, title),
        el("main", *_sections(comparison)),
        _footer(comparison),
    )


def write(comparison: Comparison, file: Path | str) -> None:
    """Write the page to a file; ``UsageError`` where that cannot be done."""
    save(render(comparison), file)


def _against(pair: Pair) -> str:
    return f"{words.subject(pair)} against {words.opponent(pair)}"


def _head_line(comparison: Comparison, title: str) -> Markup:
    label = comparison.newest.params.get("label")
    return el(
        "header",
        el("p", "nextbest · model comparison", class_="eyebrow"),
        el("h1", title),
        el("p", f"It predicts: {label}.", class_="lede") if label else None,
    )


def _sections(comparison: Comparison) -> Iterator[Markup]:
    yield _verdict(comparison)
    pairs = comparison.pairs or comparison.baselines[:1]
    if len(comparison.pairs) > 1:
        yield _overview(comparison)
    for pair in pairs:
        several = len(pairs) > 1
        level = 3 if several else 2
        parts = list(_pair_parts(comparison, pair, level))
        if several:
            title = el("h2", _capital(_against(pair)))
            yield el("div", title, *parts, class_="pair", id=f"v{pair.of}-v{pair.to}")
        else:
            yield from parts
    if comparison.pairs and comparison.baselines:
        yield _baselines(comparison)
    yield _runs(comparison)
    yield _how_to_read(comparison)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# ------------------------------------------------------------------ the verdict


def _verdict(comparison: Comparison) -> Markup:
    main = comparison.main
    state = "refused"
    headline = "Cannot be compared"
    if main is not None and main.primary in main.differences:
        state = main.differences[main.primary].better
        headline = _HEADLINES[state]
        if state in ("better", "worse") and words.by_a_hair(main):
            headline += " by a hair"
    found = {k: text for k, text in comparison.answers.items() if text}
    return el(
        "section",
        el("h2", headline, class_="call"),
        el("dl", *(el("div", el("dt", _QUESTIONS[k]), el("dd", t)) for k, t in found.items())),
        class_=f"verdict {state}",
        aria_label="Verdict",
    )


# ------------------------------------------------------------------ one pair


def _pair_parts(comparison: Comparison, pair: Pair, level: int) -> Iterator[Markup]:
    if pair.refused:
        yield el("p", f"Not compared: {pair.refused}.", class_="note")
    else:
        yield _figures(pair, level)
        if pair.segments:
            yield _segments(pair, level)
        yield from _charts(comparison, pair, level)
    if comparison.kind == "probability":
        yield _effects(comparison, pair, level)
    if pair.changes is not None:
        yield _changes(pair, pair.changes, level)


def _names(pair: Pair) -> tuple[str, str]:
    """Short names of both sides, the new one first."""
    return f"v{pair.of}", "baseline" if pair.against_baseline else f"v{pair.to}"


def _section(level: int, title: str, *parts: object) -> Markup:
    return el("section", el(f"h{level}", title), *parts)


def _figures(pair: Pair, level: int) -> Markup:
    ours, theirs = _names(pair)
    rows = f"{pair.n_shared:,} test rows of {pair.n_customers:,} customers"
    if pair.n_positive is not None:
        rows += f", {pair.n_positive:,} of them positive"
    notes = [
        f"Both sides are measured on the same {rows}. Each bar is the 95% interval of the "
        f"difference, on a scale of its own: right of the line {ours} is better, and a bar that "
        "touches the line may be chance. For a figure with an ideal value it shows how much closer "
        "to that value."
    ]
    if pair.n_shared < max(pair.n_of, pair.n_to):
        notes.append(
            f"{ours} was tested on {pair.n_of:,} rows and {theirs} on {pair.n_to:,}; only those "
            "in common are compared."
        )
    if pair.outcomes_changed:
        notes.append(
            f"In {pair.outcomes_changed:,} rows the outcome is another in the older run's data; "
            "the newer one counts."
        )
    body = []
    for name, d in pair.differences.items():
        bound = max(abs(d.gain.low), abs(d.gain.high), abs(d.gain.value))
        meaning = MEANINGS.get(name)
        body.append(
            _row(
                el("span", name, class_="name"),
                el("span", meaning, class_="meaning") if meaning else None,
                decides=name == pair.primary,
                cells=[
                    (theirs, _value(pair.to_figures[name])),
                    (ours, _value(pair.of_figures[name])),
                    ("difference", _difference(d)),
                ],
                picture=_interval(d, bound, name),
                reading=d.better,
            )
        )
    caption = f"Every figure of {ours} and {theirs}, with the difference"
    heads = ("figure", theirs, ours, "difference", "worse ◂ ▸ better", "reading")
    return _section(
        level,
        "By how much, and is it chance?",
        *(el("p", note) for note in notes),
        _stacked(caption, heads, body),
    )


def _segments(pair: Pair, level: int) -> Markup:
    ours, theirs = _names(pair)
    judged = [s for s in pair.segments if pair.primary in s.differences]
    gains = [s.differences[pair.primary].gain for s in judged]
    bound = max((max(abs(g.low), abs(g.high)) for g in gains), default=1.0)
    body = [_segment_row(pair, s, bound) for s in pair.segments]
    heads = ("segment", "rows", theirs, ours, "difference", "worse ◂ ▸ better", "reading")
    text = (
        f"The deciding figure, {pair.primary}, in each segment; all bars share one scale. With "
        f"{len(judged)} segments one of them would stray by chance soon enough, so better and "
        "worse are held to the stricter level that keeps chance to 5% for all together."
    )
    caption = f"{pair.primary} of {ours} and {theirs} in each segment"
    return _section(level, "For whom?", el("p", text), _stacked(caption, heads, body))


def _segment_row(pair: Pair, s: SegmentPair, bound: float) -> Markup:
    ours, theirs = _names(pair)
    rows: list[object] = [el("span", f"{s.n:,}")]
    if s.n_positive is not None:
        rows.append(el("span", f"{s.n_positive:,} positive", class_="range"))
    name, _, bounds = s.name.partition(" (")
    title = (
        el("span", f"{s.dimension}: {name}", class_="name"),
        el("span", bounds.removesuffix(")"), class_="meaning") if bounds else None,
    )
    d = s.differences.get(pair.primary)
    if d is None:
        why = s.too_few or "no such figure"
        blank: list[tuple[str, object]] = [
            (theirs, "–"),
            (ours, "–"),
            ("difference", el("span", why, class_="why")),
        ]
        return _row(*title, cells=[("rows", join(rows)), *blank], picture=None, reading=None)
    cells: list[tuple[str, object]] = [
        ("rows", join(rows)),
        (theirs, _value(s.to[pair.primary])),
        (ours, _value(s.of[pair.primary])),
        ("difference", _difference(d)),
    ]
    return _row(*title, cells=cells, picture=_interval(d, bound, s.label), reading=d.better)


def _value(m: Metric) -> Markup:
    return el(
        "span", words.number(m.value), title=f"{words.number(m.low)} to {words.number(m.high)}"
    )


def _difference(d: Difference) -> Markup:
    m = d.difference
    span = f"{words.signed(m.low)} to {words.signed(m.high)}"
    return join([el("span", words.signed(m.value)), el("span", span, class_="range")])


def _interval(d: Difference, bound: float, name: str) -> Markup:
    g = d.gain
    text = (
        f"{name}: gain {words.signed(g.value)}, 95% interval {words.signed(g.low)} to "
        f"{words.signed(g.high)}"
    )
    return interval(g.value, g.low, g.high, bound, d.better, text)


def _row(
    *title: object,
    cells: Sequence[tuple[str, object]],
    picture: Markup | None,
    reading: str | None,
    decides: bool = False,
) -> Markup:
    mark = el("span", "decides", class_="decides") if decides else None
    return el(
        "tr",
        el("th", *title, mark, scope="row", role="rowheader"),
        *(el("td", value, data_label=label, role="cell", class_="num") for label, value in cells),
        el("td", picture, role="cell", class_="pic"),
        el("td", _READING[reading] if reading else "not judged", role="cell",
           class_=f"reading {reading or 'none'}"),
        role="row",
    )  # fmt: skip


def _stacked(caption: str, heads: Sequence[str], body: Sequence[Markup]) -> Markup:
    """A table whose rows become cards on a narrow screen; the roles keep it a table there."""
    head = el("tr", *(el("th", h, scope="col", role="columnheader") for h in heads), role="row")
    return el(
        "table",
        el("caption", caption),
        el("thead", head, role="rowgroup"),
        el("tbody", *body, role="rowgroup"),
        class_="stack",
        role="table",
    )


# ------------------------------------------------------------------ charts


def _charts(comparison: Comparison, pair: Pair, level: int) -> Iterator[Markup]:
    if pair.rows is None:
        return
    ours, theirs = _names(pair)
    y = pair.rows["label"].to_numpy(np.float64)
    scores = {ours: pair.rows["of"].to_numpy(np.float64)}
    styles = {ours: "of"}
    if not (pair.agreement and pair.agreement["same_scores"]):
        scores[theirs] = pair.rows["to"].to_numpy(np.float64)
        styles[theirs] = "base" if pair.against_baseline else "to"
    if not pair.against_baseline and "baseline" in pair.rows:
        scores["baseline"] = pair.rows["baseline"].to_numpy(np.float64)
        styles["baseline"] = "base"
    curves = evidence.curves(pair.kind, y, scores)
    stem = f"c{pair.of}-{pair.to}"
    draw = _probability_charts if pair.kind == "probability" else _value_charts
    figures = [
        el("figure", el("figcaption", title), chart)
        for title, chart in draw(curves, styles, stem, float(y.mean()))
    ]
    named = {**dict.fromkeys(scores, ""), **({} if theirs in scores else {ours: f" and {theirs}"})}
    legend = el(
        "ul",
        *(el("li", sample(styles[n]), f"{n}{named[n]}") for n in scores),
        el("li", sample("guide"), "no skill, or perfect"),
        class_="legend",
    )
    yield _section(
        level,
        "How do they rank and foretell?",
        legend,
        el("div", *figures, class_="charts"),
        _reached(curves),
        el("p", _agreement(pair)),
    )


def _probability_charts(
    curves: Mapping[str, Any], styles: Mapping[str, str], stem: str, rate: float
) -> Iterator[tuple[str, Markup]]:
    def of(curve: str, x: str, y: str, skip: int = 0) -> list[Series]:
        return [
            Series(name, c[curve][x][skip:], c[curve][y][skip:], styles[name])
            for name, c in curves.items()
        ]

    yield "Gain: share of positives reached", lines(
        "Gain curve", of("gain", "share", "captured"), "share of rows, best first",
        "positives reached", identifier=f"{stem}-gain", diagonal=True,
    )  # fmt: skip
    yield "Lift: times better than random", lines(
        "Lift curve", of("lift", "share", "lift", 5), "share of rows, best first",
        "lift", identifier=f"{stem}-lift", level=1.0, percent=(True, False),
    )  # fmt: skip
    calibrated = [
        Series(
            name, c["reliability"]["mean_score"], c["reliability"]["observed"], styles[name],
            dots=True, low=c["reliability"]["low"], high=c["reliability"]["high"],
        )
        for name, c in curves.items()
        if styles[name] != "base" or len(curves) == 2
    ]  # fmt: skip
    yield "Calibration: foretold and seen", lines(
        "Calibration by tenth, with 95% intervals", calibrated, "predicted probability",
        "observed rate", identifier=f"{stem}-calibration", diagonal=True,
    )  # fmt: skip
    yield "ROC", lines(
        "ROC curve", of("roc", "false_positive_rate", "true_positive_rate"),
        "others reached", "positives reached", identifier=f"{stem}-roc", diagonal=True,
    )  # fmt: skip
    yield "Precision and recall", lines(
        "Precision-recall curve", of("pr", "recall", "precision", 5), "positives reached",
        "positives among picked", identifier=f"{stem}-pr", level=rate, top=1.0,
    )  # fmt: skip


def _value_charts(
    curves: Mapping[str, Any], styles: Mapping[str, str], stem: str, mean: float
) -> Iterator[tuple[str, Markup]]:
    gain = [
        Series(n, c["gain"]["share"], c["gain"]["captured"], styles[n]) for n, c in curves.items()
    ]
    yield "Gain: share of all value held", lines(
        "Gain curve of value", gain, "share of customers, best first", "value held",
        identifier=f"{stem}-gain", diagonal=True,
    )  # fmt: skip
    tenths = [
        Series(n, c["tenths"]["predicted"], c["tenths"]["actual"], styles[n], dots=True)
        for n, c in curves.items()
    ]
    yield "Value by tenth of customers", lines(
        "Predicted against actual value by tenth", tenths, "predicted value", "actual value",
        identifier=f"{stem}-tenths", diagonal=True, percent=(False, False),
    )  # fmt: skip


def _reached(curves: dict[str, dict[str, Any]]) -> Markup:
    body = [
        el(
            "tr",
            el("th", f"{at:.0%}", scope="row"),
            *(
                el("td", f"{numbers(c['gain'], ('share', 'captured'), at):.1%}", class_="num")
                for c in reversed(curves.values())
            ),
        )
        for at in _REACHED
    ]
    heads = ("best share of rows", *reversed(curves))
    return _table("What the best rows reach", heads, body)


def _agreement(pair: Pair) -> str:
    a = pair.agreement
    ours, theirs = _names(pair)
    if a is None:
        return ""
    if a["same_scores"]:
        return f"{ours} and {theirs} give every row the same score."
    rank = a["rank_correlation"]
    text = (
        f"Of the {a['top_rows']:,} rows that {theirs} ranks in its best tenth, {ours} keeps "
        f"{a['top_rows_in_common']:,}."
    )
    return text + (f" Over all rows the two orders agree to {rank:.3f} (Spearman)." if rank else "")


# ------------------------------------------------------------------ effects, changes, runs


def _effects(comparison: Comparison, pair: Pair, level: int) -> Markup:
    ours, theirs = _names(pair)
    sides = [(ours, "of", comparison.effects.get(pair.of, ()))]
    if not pair.against_baseline:
        sides.insert(0, (theirs, "to", comparison.effects.get(int(pair.to), ())))
    title = "What moves the score?"
    silent = [name for name, _style, found in sides if not found]
    if silent:
        text = f"The run of {' and '.join(silent)} keeps no effects of features; train it again."
        return _section(level, title, el("p", text, class_="note"))
    by_side = [(name, style, {str(e["feature"]): e for e in found}) for name, style, found in sides]
    strength: dict[str, float] = {}
    for _name, _style, known in by_side:
        for feature, e in known.items():
            strength[feature] = max(strength.get(feature, 0.0), float(e["mean_effect"]))
    top = sorted(strength, key=lambda f: (-strength[f], f))[:_SHOWN_EFFECTS]
    bound = max(strength[f] for f in top)
    body = []
    for feature in top:
        anywhere = next(known[feature] for _n, _s, known in by_side if feature in known)
        cells = [_effect(known.get(feature), bound, style) for _n, style, known in by_side]
        body.append(
            el(
                "tr",
                el(
                    "th",
                    el("span", feature, class_="name"),
                    el("span", anywhere["meaning"], class_="meaning"),
                    scope="row",
                ),
                *cells,
                el("td", anywhere["direction"]),
            )
        )
    heads = ("feature", *(n for n, _s, _k in by_side), "direction")
    note = "Mean effect on the log-odds of a test row, against the average row."
    return _section(level, title, el("p", note), _table("Strongest features", heads, body))


def _effect(found: Mapping[str, Any] | None, bound: float, style: str) -> Markup:
    if found is None:
        return el("td", "not used")
    strength = float(found["mean_effect"])
    number = el("span", words.number(strength), class_="num")
    return el("td", bar(strength, bound, style), number)


def _changes(pair: Pair, changes: Mapping[str, Any], level: int) -> Markup:
    ours, theirs = _names(pair)
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("parameter", changes["parameters"]),
        ("learned", changes["learned"]),
        ("rows", changes["data"]["counts"]),
        ("library", changes["libraries"]),
    ]
    if changes["data"]["snapshot"]:
        groups.insert(0, ("data snapshot", {"hash": changes["data"]["snapshot"]}))
    if changes["code"]:
        groups.append(("project code", {"commit": changes["code"]}))
    body = [
        el(
            "tr",
            el("td", kind),
            el("th", name, scope="row"),
            *(el("td", _plain(change[side]), class_="wrap") for side in ("before", "after")),
        )
        for kind, found in groups
        for name, change in found.items()
    ]
    parts: list[Markup] = []
    features = changes["features"]
    if not features["known"]:
        parts.append(el("p", "Which features the older run read is not known.", class_="note"))
    for verb in ("added", "removed"):
        if features[verb]:
            items = (el("li", el("code", f)) for f in features[verb])
            n = len(features[verb])
            parts.append(el("p", f"{n} feature{'s' * (n > 1)} {verb}:"))
            parts.append(el("ul", *items, class_=f"chips {verb}"))
    if features["known"] and not features["added"] and not features["removed"]:
        parts.append(el("p", "Both read the same features."))
    if changes["data"]["snapshot"] is None:
        same = "Both learned from the same data snapshot."
        unknown = "Whether both learned from the same data is not known."
        parts.append(el("p", same if changes["data"]["known"] else unknown))
    if body:
        heads = ("what", "name", theirs, ours)
        parts.append(_table(f"Changed from {theirs} to {ours}", heads, body))
    return _section(level, "What changed?", *parts)


def _plain(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _overview(comparison: Comparison) -> Markup:
    found = [p.differences[p.primary] for p in comparison.pairs if p.primary in p.differences]
    bound = max((max(abs(d.gain.low), abs(d.gain.high)) for d in found), default=1.0)
    body = []
    for pair in comparison.pairs:
        d = pair.differences.get(pair.primary)
        link = el("a", words.subject(pair), href=f"#v{pair.of}-v{pair.to}")
        rows = ("rows in common", f"{pair.n_shared:,}")
        if d is None:
            blank: list[tuple[str, object]] = [
                rows,
                ("value", "–"),
                ("difference", el("span", pair.refused, class_="why")),
            ]
            body.append(_row(link, cells=blank, picture=None, reading=None))
            continue
        cells: list[tuple[str, object]] = [
            rows,
            ("value", _value(pair.of_figures[pair.primary])),
            ("difference", _difference(d)),
        ]
        picture = _interval(d, bound, words.subject(pair))
        body.append(_row(link, cells=cells, picture=picture, reading=d.better))
    heads = ("version", "rows in common", "value", "difference", "worse ◂ ▸ better", "reading")
    caption = f"{comparison.primary} against version {comparison.reference}"
    return _section(2, "All versions at a glance", _stacked(caption, heads, body))


def _baselines(comparison: Comparison) -> Markup:
    found = [p.differences[p.primary] for p in comparison.baselines if p.primary in p.differences]
    bound = max((max(abs(d.gain.low), abs(d.gain.high)) for d in found), default=1.0)
    body = []
    for pair in comparison.baselines:
        name = (
            el("span", words.subject(pair), class_="name"),
            el("span", f"against {pair.to_name}", class_="meaning"),
        )
        d = pair.differences.get(pair.primary)
        if d is None:
            blank: list[tuple[str, object]] = [
                ("baseline", "–"), ("version", "–"),
                ("difference", el("span", pair.refused, class_="why")),
            ]  # fmt: skip
            body.append(_row(*name, cells=blank, picture=None, reading=None))
            continue
        cells: list[tuple[str, object]] = [
            ("baseline", _value(pair.to_figures[pair.primary])),
            ("version", _value(pair.of_figures[pair.primary])),
            ("difference", _difference(d)),
        ]
        picture = _interval(d, bound, words.subject(pair))
        body.append(_row(*name, cells=cells, picture=picture, reading=d.better))
    heads = ("version", "baseline", "version", "difference", "worse ◂ ▸ better", "reading")
    text = "The simple rule that a careful analyst would use without a model, on the same rows."
    return _section(
        2, "Against the simple rule", el("p", text),
        _stacked(f"{comparison.primary} against the baseline", heads, body),
    )  # fmt: skip


def _runs(comparison: Comparison) -> Markup:
    body = [_run(v) for v in comparison.versions]
    heads = ("version", "made", "training rows", "test rows", "features", "seed", "data", "commit",
             "run")  # fmt: skip
    return _section(2, "The runs", _table("Where each version comes from", heads, body))


def _run(v: Version) -> Markup:
    aliases = f" ({', '.join(v.aliases)})" if v.aliases else ""
    positive = v.counts.get("n_positive")
    test = _plain(v.counts.get("n_test"))
    test += f" ({positive:,} positive)" if positive is not None else ""
    cells = (
        f"{v.created_at:%Y-%m-%d %H:%M} UTC",
        _plain(v.counts.get("n_train")),
        test,
        _plain(v.counts.get("n_features")),
        v.params.get("seed", "–"),
        v.tags.get("nextbest.data_snapshot", "–")[:12],
        v.tags.get("mlflow.source.git.commit", "–")[:7],
        v.run_id,
    )
    return el("tr", el("th", f"v{v.version}{aliases}", scope="row"), *(el("td", c) for c in cells))


def _table(caption: str, heads: Sequence[str], body: Sequence[Markup]) -> Markup:
    """A plain table in a box that scrolls sideways where the screen is narrow."""
    head = el("tr", *(el("th", h, scope="col") for h in heads))
    table = el("table", el("caption", caption), el("thead", head), el("tbody", *body))
    return el("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _how_to_read(comparison: Comparison) -> Markup:
    main = comparison.main
    times = f"{main.resamples:,}" if main and main.resamples else "many"
    points = [
        f"Interval: the customers of the test rows are redrawn with replacement {times} times, "
        "both sides on the same draws; the middle 95% of the differences is shown. Rows of one "
        "customer stay together.",
        "Better, worse: the interval of the difference leaves out 0. Otherwise it may be chance. "
        "For figures with an ideal value, better means closer to it.",
        f"Only {comparison.primary} decides. Of many other figures some differ by chance.",
        "A segment with too few rows is not judged.",
        "All this is about how well the scores foretell, not about what a contact changes.",
    ]
    return _section(2, "How to read this", el("ul", *(el("li", p) for p in points)))


def _footer(comparison: Comparison) -> Markup:
    numbered = " ".join(str(v.version) for v in comparison.versions)
    command = f"nextbest compare {comparison.model} {numbered} --html FILE"
    return el("footer", el("p", "Made by ", el("code", command)))
