"""Set the versions of a model side by side: better or not, for whom, by how much, is it chance.

Each version is held against a reference (the champion, else the oldest) and against its baseline,
always on the test rows that both were scored on. Nothing is trained or scored here: every run keeps
its test scores.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from nextbest.errors import RegistryError
from nextbest.learn import compare_words, segments
from nextbest.learn.metrics import LEVEL, TOP_SHARE, Metric
from nextbest.learn.paired import COVERAGE, RESAMPLES, Difference, Rows, figures
from nextbest.learn.records import Version, nested
from nextbest.learn.registry import CHAMPION, Registry
from nextbest.learn.statistics import METRICS, Array

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BASELINE", "Comparison", "Pair", "SegmentPair", "compare", "gather"]

BASELINE: Final = "baseline"
#: The figure that decides for a model, in order of preference: ranking first, then error.
_DECIDING: Final = ("auc", "value_capture", "mae", "rmse")
_TEST: Final = "test"
_KEYS: Final = ("customer_id", "offer_id", "as_of")
#: Parameters that say what is predicted; versions that differ in one answer different questions.
_QUESTION: Final = ("label", "evaluation_days")
#: What a run notes among its parameters although nobody set it.
_LEARNED: Final = "fitted."
_FOUND: Final = frozenset({"calibration_log_loss"})
_TOP: Final = 0.1
#: Figures that are compared in each segment: one of ranking and one of error.
_BY_SEGMENT: Final = {"probability": ("auc", "brier"), "clv": ("mae", "pearson_r")}
Progress = Callable[[str], None]


@dataclass(frozen=True)
class SegmentPair:
    """One segment in which a version is held against another; ``too_few`` says why it is not."""

    dimension: str
    name: str
    n: int
    n_positive: int | None
    mean_outcome: float
    too_few: str = ""
    of: Mapping[str, Metric] = field(default_factory=dict)
    to: Mapping[str, Metric] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Dimension and name in words."""
        return f"{self.dimension} {self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {
            "dimension": self.dimension,
            "name": self.name,
            "n": self.n,
            "n_positive": self.n_positive,
            "mean_outcome": self.mean_outcome,
            "too_few": self.too_few,
            "of": {k: m.to_dict() for k, m in self.of.items()},
            "to": {k: m.to_dict() for k, m in self.to.items()},
            "differences": {k: d.to_dict() for k, d in self.differences.items()},
        }


@dataclass(frozen=True)
class Pair:
    """A version held against another, or against its baseline, on the rows that both scored.

    Attributes
    ----------
    of, to : version numbers; ``to`` is ``"baseline"`` for the version's own baseline.
    to_name : the baseline's name, else empty.
    primary : the figure that decides.
    n_of, n_to : test rows of each side.
    refused : why there is no comparison, else empty.
    outcomes_changed : shared rows whose outcome is another in the older run's data.
    of_figures, to_figures, differences : by metric, on the shared rows.
    agreement : how alike the two scores are.
    changes : what is different in data, features, parameters and code; None for a baseline.
    rows : the shared rows (``label``, ``of``, ``to``), empty where refused.
    """

    of: int
    to: int | Literal["baseline"]
    kind: str
    primary: str
    to_name: str = ""
    of_champion: bool = False
    to_champion: bool = False
    n_of: int = 0
    n_to: int = 0
    n_shared: int = 0
    n_positive: int | None = None
    n_customers: int = 0
    resamples: int = 0
    refused: str = ""
    outcomes_changed: int = 0
    of_figures: Mapping[str, Metric] = field(default_factory=dict)
    to_figures: Mapping[str, Metric] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    segments: tuple[SegmentPair, ...] = ()
    agreement: Mapping[str, Any] | None = None
    changes: Mapping[str, Any] | None = None
    rows: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    @property
    def against_baseline(self) -> bool:
        """Whether the other side is the version's baseline."""
        return self.to == BASELINE

    @property
    def in_common(self) -> str:
        """Words after "test rows", where only those of both sides count."""
        return "" if self.against_baseline else " in common"

    def segments_that(self, better: str) -> list[SegmentPair]:
        """Segments whose deciding figure is ``better``, ``worse``, ``unclear`` or ``same``."""
        return [
            s
            for s in self.segments
            if self.primary in s.differences and s.differences[self.primary].better == better
        ]

    def difference_dict(self) -> dict[str, Any]:
        """Return who is compared on which rows, and every figure, as plain JSON types."""
        return {
            "of": self.of,
            "to": self.to,
            "to_name": self.to_name,
            "rows": {
                "shared": self.n_shared,
                "of": self.n_of,
                "to": self.n_to,
                "positives": self.n_positive,
                "customers": self.n_customers,
                "outcomes_changed": self.outcomes_changed,
            },
            "refused": self.refused,
            "metrics": {
                name: {
                    **d.to_dict(),
                    "of": self.of_figures[name].to_dict(),
                    "to": self.to_figures[name].to_dict(),
                }
                for name, d in self.differences.items()
            },
            "agreement": self.agreement,
        }

    def segment_dict(self) -> dict[str, Any]:
        """Return every segment, and those that win and lose, as plain JSON types."""
        return {
            "of": self.of,
            "to": self.to,
            "metric": self.primary,
            "better_for": [s.label for s in self.segments_that("better")],
            "worse_for": [s.label for s in self.segments_that("worse")],
            "rows": [s.to_dict() for s in self.segments],
        }


@dataclass(frozen=True)
class _Redraw:
    resamples: int
    seed: int


@dataclass(frozen=True)
class _Run:
    """One version with the files of its run; an older run may lack some."""

    registry: Registry
    version: Version

    @cached_property
    def rows(self) -> pd.DataFrame | None:
        import pandas as pd

        content = self._read("test_scores.parquet")
        return None if content is None else pd.read_parquet(io.BytesIO(content))

    @cached_property
    def features(self) -> list[str] | None:
        stored = self._json("features.json")
        return None if stored is None else [str(f["name"]) for f in stored]

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        return self._json("environment.json") or {}

    @cached_property
    def effects(self) -> list[dict[str, Any]]:
        return self._json("effects.json") or []

    @property
    def figures(self) -> Mapping[str, Metric]:
        return self.version.metrics.get(_TEST, {})

    def _read(self, path: str) -> bytes | None:
        try:
            return self.registry.read_file(self.version.run_id, path)
        except RegistryError:
            return None  # The registry has just been read, so it is this file that is not there.

    def _json(self, path: str) -> Any:
        content = self._read(path)
        return None if content is None else json.loads(content)


@dataclass(frozen=True)
class Comparison:
    """The versions, every pair that was held against each other, and what it comes to.

    Attributes
    ----------
    versions : oldest first, as chosen.
    reference : the version that the others are held against; None if there is only one.
    pairs : version against reference, newest first.
    baselines : version against its own baseline, newest first.
    effects : version -> what its features do, strongest first.
    """

    model: str
    kind: str
    primary: str
    versions: tuple[Version, ...]
    reference: int | None
    pairs: tuple[Pair, ...]
    baselines: tuple[Pair, ...]
    effects: Mapping[int, Sequence[Mapping[str, Any]]]

    @property
    def newest(self) -> Version:
        """The highest version number among those compared."""
        return max(self.versions, key=lambda v: v.version)

    @property
    def main(self) -> Pair | None:
        """The pair that the verdict is about: newest against reference, or against baseline."""
        return next(iter((*self.pairs, *self.baselines)), None)

    @property
    def answers(self) -> dict[str, str]:
        """The verdict by question: better, by how much, chance, for whom, what changed."""
        return compare_words.answers(self)

    @property
    def verdict(self) -> str:
        """The verdict in a few plain sentences."""
        return compare_words.verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types; every figure is ``{"value", "low", "high"}``."""
        newest = self.newest
        both = (*self.pairs, *self.baselines)
        return {
            "model": self.model,
            "versions": [_described(v) for v in self.versions],
            "baseline": newest.baseline
            and {"name": newest.baseline.name, "metrics": nested(newest.baseline.metrics)},
            **newest.counts,
            "primary": self.primary,
            "reference": self.reference,
            "differences": [p.difference_dict() for p in both],
            "segments": [p.segment_dict() for p in both if p.segments],
            "changes": [
                {"of": p.of, "to": p.to, **p.changes} for p in both if p.changes is not None
            ],
            "verdict": self.verdict,
            "answers": self.answers,
            "method": {
                "interval": LEVEL,
                "resamples": self.main.resamples if self.main else 0,
                "redrawn": "customers",
            },
        }


def compare(
    registry: Registry, name: str, versions: Sequence[int | str] | None = None
) -> dict[str, Any]:
    """Return the versions of a model beside each other and their baselines, and a verdict.

    Parameters: ``versions`` numbers or aliases, default all. ``baseline``, ``n_test`` and
    ``n_positive`` are those of the newest version shown; ``differences``, ``segments`` and
    ``changes`` hold one entry for each pair. Raises ``RegistryError`` where there is no such model
    or version.
    """
    return gather(registry, name, versions).to_dict()


def gather(
    registry: Registry,
    name: str,
    versions: Sequence[int | str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress = lambda _step: None,
) -> Comparison:
    """Read the runs of some versions and hold them against each other; see `compare`.

    Parameters: ``resamples`` how often customers are redrawn for the intervals; ``seed`` makes
    them repeatable; ``progress`` is told each step as it begins.
    """
    redraw = _Redraw(resamples, seed)
    progress("read the runs")
    runs = [_Run(registry, v) for v in _chosen(registry, name, versions)]
    kind = "clv" if any("mae" in r.figures for r in runs) else "probability"
    primary = _primary(runs, kind)
    reference = _reference(runs)
    pairs = []
    for run in reversed(runs):
        if reference is not None and run is not reference:
            progress(f"version {run.version.version} against {reference.version.version}")
            pairs.append(_versions_pair(run, reference, kind, primary, redraw))
    baselines = []
    for run in reversed(runs):
        if run.version.baseline is not None:
            progress(f"version {run.version.version} against its baseline")
            alone = reference is None
            baselines.append(_baseline_pair(run, kind, primary, redraw, with_segments=alone))
    return Comparison(
        model=name,
        kind=kind,
        primary=primary,
        versions=tuple(r.version for r in runs),
        reference=None if reference is None else reference.version.version,
        pairs=tuple(pairs),
        baselines=tuple(baselines),
        effects={r.version.version: r.effects for r in runs},
    )


def _chosen(
    registry: Registry, name: str, versions: Sequence[int | str] | None
) -> tuple[Version, ...]:
    if versions is None:
        found = list(registry.versions(name)) or [registry.version(name, "any")]
    else:
        found = [registry.version(name, v) for v in versions]
    if not found:
        raise RegistryError(f'model "{name}"', "no version was named", expected="at least 1")
    by_number = {v.version: v for v in found}
    return tuple(by_number[n] for n in sorted(by_number))


def _primary(runs: Sequence[_Run], kind: str) -> str:
    usual = "mae" if kind == "clv" else "auc"
    return next((m for m in _DECIDING if all(m in r.figures for r in runs)), usual)


def _reference(runs: Sequence[_Run]) -> _Run | None:
    if len(runs) < 2:
        return None
    return next((r for r in runs if CHAMPION in r.version.aliases), runs[0])


def _described(v: Version) -> dict[str, Any]:
    return {
        "version": v.version,
        "aliases": list(v.aliases),
        "run_id": v.run_id,
        "created_at": v.created_at.isoformat(),
        "metrics": nested(v.metrics),
        "params": dict(v.params),
        "counts": dict(v.counts),
        "data_snapshot": v.tags.get("nextbest.data_snapshot"),
        "git_commit": v.tags.get("mlflow.source.git.commit"),
    }


# ------------------------------------------------------------------ one pair


def _versions_pair(run: _Run, reference: _Run, kind: str, primary: str, redraw: _Redraw) -> Pair:
    of, to = run.version, reference.version
    start = Pair(
        of=of.version,
        to=to.version,
        kind=kind,
        primary=primary,
        of_champion=CHAMPION in of.aliases,
        to_champion=CHAMPION in to.aliases,
        n_of=0 if run.rows is None else len(run.rows),
        n_to=0 if reference.rows is None else len(reference.rows),
        changes=_changes(reference, run),
    )
    rows, refused = _shared(run, reference)
    return _held(start, rows, refused, _names(run.figures, reference.figures), redraw)


def _baseline_pair(
    run: _Run, kind: str, primary: str, redraw: _Redraw, *, with_segments: bool
) -> Pair:
    version, base = run.version, run.version.baseline
    assert base is not None
    start = Pair(
        of=version.version,
        to=BASELINE,
        to_name=base.name,
        kind=kind,
        primary=primary,
        of_champion=CHAMPION in version.aliases,
        n_of=0 if run.rows is None else len(run.rows),
        n_to=0 if run.rows is None else len(run.rows),
    )
    rows, refused = None, ""
    if run.rows is None:
        refused = f"the run of version {version.version} keeps no test scores; train it again"
    elif "baseline" not in run.rows:
        refused = f"the run of version {version.version} keeps no scores of its baseline"
    else:
        rows = run.rows.assign(of=run.rows["score"], to=run.rows["baseline"])
        if not with_segments:
            rows = rows[[c for c in rows if not str(c).startswith(segments.PREFIX)]]
    return _held(start, rows, refused, _names(run.figures, base.metrics.get(_TEST, {})), redraw)


def _names(of: Mapping[str, Metric], to: Mapping[str, Metric]) -> list[str]:
    return [n for n in of if n in to and (n in METRICS or n == COVERAGE)]


def _shared(run: _Run, reference: _Run) -> tuple[pd.DataFrame | None, str]:
    """Join two runs' test scores; the outcomes and segments are those of the newer run."""
    newer, older = sorted((run, reference), key=lambda r: -r.version.version)
    for one in (older, newer):
        if one.rows is None:
            return None, f"the run of version {one.version.version} keeps no test scores"
    for name in _QUESTION:
        asked = [r.version.params.get(name) for r in (older, newer)]
        if None not in asked and asked[0] != asked[1]:
            return None, (
                f"they answer different questions: {name} is {asked[0]} in version "
                f"{older.version.version} and {asked[1]} in version {newer.version.version}"
            )
    assert newer.rows is not None and older.rows is not None
    keys = [k for k in _KEYS if k in newer.rows]
    if keys != [k for k in _KEYS if k in older.rows]:
        return None, "their test rows are of different kinds"
    for one, rows in ((newer, newer.rows), (older, older.rows)):
        if rows.duplicated(keys).any():
            return None, f"the test rows of version {one.version.version} are not unique"
    both = newer.rows.merge(older.rows, on=keys, how="inner", suffixes=("", "_older"))
    both = both.drop(columns=[c for c in both if _twice(str(c))])
    here, there = ("", "_older") if run is newer else ("_older", "")
    both = both.assign(of=both[f"score{here}"], to=both[f"score{there}"])
    if {"low", "low_older"} <= set(both.columns):
        both = both.assign(of_inside=_inside(both, here), to_inside=_inside(both, there))
    return both, ""


def _twice(column: str) -> bool:
    return column.startswith(segments.PREFIX) and column.endswith("_older")


def _inside(rows: pd.DataFrame, suffix: str) -> pd.Series[float]:
    low, high = rows[f"low{suffix}"], rows[f"high{suffix}"]
    inside: pd.Series[float] = ((rows["label"] >= low) & (rows["label"] <= high)).astype(float)
    return inside


def _held(
    start: Pair, rows: pd.DataFrame | None, refused: str, names: Sequence[str], redraw: _Redraw
) -> Pair:
    if rows is None:
        return replace(start, refused=refused)
    y = rows["label"].to_numpy(dtype=np.float64)
    counted = replace(
        start,
        n_shared=len(rows),
        n_positive=int(y.sum()) if start.kind == "probability" else None,
        n_customers=int(rows["customer_id"].nunique()),
        outcomes_changed=int((rows["label"] != rows["label_older"]).sum())
        if "label_older" in rows
        else 0,
    )
    few = segments.too_few(start.kind, y)
    if few:
        return replace(counted, refused=f"too few test rows{start.in_common}: {few}")
    sheet = _sheet(rows, y, start.kind, redraw)
    of, to = _scores(rows)
    found: dict[str, Difference] = {}
    for name in names:
        difference = _difference(sheet, name, rows, of, to)
        if difference is not None:
            found[name] = difference
    return replace(
        counted,
        resamples=sheet.resamples,
        differences=found,
        of_figures=_figures(sheet, found, rows, "of"),
        to_figures=_figures(sheet, found, rows, "to"),
        segments=_segments(start, rows, redraw),
        agreement=_agreement(of, to),
        rows=rows,
    )


def _sheet(rows: pd.DataFrame, y: Array, kind: str, redraw: _Redraw) -> Rows:
    value = rows["future_value"].to_numpy(np.float64) if "future_value" in rows else None
    share = float(y.mean()) if kind == "probability" else TOP_SHARE  # as in training
    customers = rows["customer_id"].to_numpy()
    return Rows(
        y, customers, value=value, share=share, resamples=redraw.resamples, seed=redraw.seed
    )


def _scores(rows: pd.DataFrame) -> tuple[Array, Array]:
    return rows["of"].to_numpy(np.float64), rows["to"].to_numpy(np.float64)


def _difference(
    sheet: Rows, name: str, rows: pd.DataFrame, of: Array, to: Array
) -> Difference | None:
    if name == COVERAGE:
        if "of_inside" not in rows:
            return None
        of, to = rows["of_inside"].to_numpy(), rows["to_inside"].to_numpy()
    if name == "value_capture" and "future_value" not in rows:
        return None
    return sheet.difference(name, of, to)


def _figures(
    sheet: Rows, names: Mapping[str, Difference], rows: pd.DataFrame, side: str
) -> dict[str, Metric]:
    plain = [n for n in names if n != COVERAGE]
    found = figures(plain, sheet, rows[side].to_numpy(np.float64))
    if COVERAGE in names:
        found |= figures([COVERAGE], sheet, rows[f"{side}_inside"].to_numpy())
    return {n: found[n] for n in names}


def _segments(start: Pair, rows: pd.DataFrame, redraw: _Redraw) -> tuple[SegmentPair, ...]:
    names = _BY_SEGMENT[start.kind]
    parts = [(d, n, rows[mask]) for d, n, mask in segments.each(rows)]
    outcomes = [p["label"].to_numpy(np.float64) for _d, _n, p in parts]
    reasons = [segments.too_few(start.kind, y) for y in outcomes]
    judged = reasons.count("")
    made = []
    for (dimension, name, part), y, reason in zip(parts, outcomes, reasons, strict=True):
        positives = int(y.sum()) if start.kind == "probability" else None
        facts = (dimension, name, len(part), positives, float(y.mean()))
        if reason:
            made.append(SegmentPair(*facts, too_few=reason))
            continue
        sheet = _sheet(part, y, start.kind, redraw)
        of, to = _scores(part)
        differences = {n: sheet.difference(n, of, to, among=judged) for n in names}
        known = {n: d for n, d in differences.items() if d is not None}
        made.append(
            SegmentPair(
                *facts,
                of=figures(list(known), sheet, of),
                to=figures(list(known), sheet, to),
                differences=known,
            )
        )
    return tuple(made)


def _agreement(of: Array, to: Array) -> dict[str, Any]:
    """How alike two scores are: rank correlation, and how much of the best tenth they share."""
    from scipy.stats import spearmanr

    varied = np.ptp(of) > 0 and np.ptp(to) > 0
    n_top = int(np.ceil(_TOP * of.size))
    tops = [set(np.argsort(-s, kind="stable")[:n_top].tolist()) for s in (of, to)]
    return {
        "same_scores": bool(np.array_equal(of, to)),
        "rank_correlation": float(spearmanr(of, to).statistic) if varied else None,
        "top_rows": n_top,
        "top_rows_in_common": len(tops[0] & tops[1]),
        "mean_of": float(of.mean()),
        "mean_to": float(to.mean()),
    }


# ------------------------------------------------------------------ what changed


def _changes(before: _Run, after: _Run) -> dict[str, Any]:
    """What is different from one run to the other; ``None`` stands for not known or not there."""
    a, b = before.version, after.version
    commits = [v.tags.get("mlflow.source.git.commit") for v in (a, b)]
    snapshots = [v.tags.get("nextbest.data_snapshot") for v in (a, b)]
    old, new = before.features, after.features
    libraries = _libraries(before), _libraries(after)
    return {
        "data": {
            "known": None not in snapshots,
            "snapshot": _change(snapshots[0], snapshots[1]),
            "counts": _changed(dict(a.counts), dict(b.counts)),
        },
        "features": {
            "known": old is not None and new is not None,
            "added": [f for f in new or [] if f not in (old or [])] if old is not None else [],
            "removed": [f for f in old or [] if f not in (new or [])] if new is not None else [],
        },
        "parameters": _changed(_settings(a), _settings(b)),
        "learned": _changed(_learned(a), _learned(b)),
        "libraries": _changed(*libraries) if all(libraries) else {},
        "code": _change(commits[0], commits[1]),
    }


def _change(before: Any, after: Any) -> dict[str, Any] | None:
    """A change of something that both runs note; what one does not note is not known."""
    if before is None or after is None or before == after:
        return None
    return {"before": before, "after": after}


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {"before": before.get(name), "after": after.get(name)}
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    }


def _settings(v: Version) -> dict[str, str]:
    return {k: p for k, p in v.params.items() if not k.startswith(_LEARNED) and k not in _FOUND}


def _learned(v: Version) -> dict[str, str]:
    return {k.removeprefix(_LEARNED): p for k, p in v.params.items() if k.startswith(_LEARNED)}


def _libraries(run: _Run) -> dict[str, str]:
    known = dict(run.environment.get("libraries", {}))
    if "python" in run.environment:
        known["python"] = run.environment["python"]
    return known
