"""What a comparison comes to, in plain words: each sentence answers one question."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from nextbest.learn.metrics import Metric
from nextbest.learn.paired import LESS_IS_BETTER

if TYPE_CHECKING:
    from nextbest.learn.compare import Comparison, Pair, SegmentPair

__all__ = ["answers", "by_a_hair", "number", "opponent", "signed", "subject", "verdict"]

_NOTHING: Final = "These versions share no figure on the test rows, so they cannot be compared."
_QUESTIONS: Final = (
    "better", "how_much", "chance", "for_whom", "baseline", "changed", "others",
)  # fmt: skip
#: A difference below this share of what is left to gain is called a hair.
_HAIR: Final = 0.01
_NAMED: Final = 6  # Segments or features listed by name before the rest are only counted.


def number(value: float) -> str:
    """A figure as a person reads it: about four digits, thousands apart, no powers of ten."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 1:
        return f"{value:.{3 - int(math.log10(size))}f}"
    if size >= 0.001 or size < 1e-9:
        return f"{value:.4f}"
    return f"{value:.{1 - math.floor(math.log10(size))}f}"


def signed(value: float) -> str:
    """The same with its sign."""
    return ("+" if value > 0 else "") + number(value) if value else "0"


def verdict(comparison: Comparison) -> str:
    """Return the whole verdict: the answers that a reader needs, one after the other."""
    found = answers(comparison)
    return " ".join(text for text in found.values() if text)


def answers(comparison: Comparison) -> dict[str, str]:
    """Return the verdict by question: ``better``, ``how_much``, ``chance``, ``for_whom``, ...

    Each is a sentence or two, empty where there is nothing to say.
    """
    pair = comparison.main
    empty = dict.fromkeys(_QUESTIONS, "")
    if pair is None:
        return {**empty, "better": _NOTHING}
    out = {**empty, "better": _better(pair), "others": " ".join(_others(comparison))}
    if pair.primary in pair.differences:
        out |= {
            "how_much": " ".join(filter(None, (_how_much(pair), _concrete(pair), _besides(pair)))),
            "chance": _chance(pair),
            "for_whom": _for_whom(pair),
        }
    if not pair.against_baseline:
        own = next((p for p in comparison.baselines if p.of == pair.of), None)
        out["baseline"] = _baseline(own) if own else ""
        out["changed"] = _changed(pair)
    return out


# ------------------------------------------------------------------ who


def subject(pair: Pair) -> str:
    """The version that the sentence is about."""
    return f"version {pair.of}" + (" (the champion)" if pair.of_champion else "")


def opponent(pair: Pair) -> str:
    """What it is held against."""
    if pair.against_baseline:
        return f'its baseline "{pair.to_name}"'
    return f"version {pair.to}" + (" (the champion)" if pair.to_champion else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# ------------------------------------------------------------------ is it better


def _better(pair: Pair) -> str:
    who, other = _capital(subject(pair)), opponent(pair)
    if pair.refused:
        return f"{who} cannot be compared with {other}: {pair.refused}."
    found = pair.differences.get(pair.primary)
    if found is None:
        return f"{who} and {other} share no figure that decides, so they cannot be compared."
    match found.better:
        case "better":
            return f"{who} is better than {other} by {pair.primary}{_hair(pair)}."
        case "worse":
            return f"{who} is worse than {other} by {pair.primary}{_hair(pair)}."
        case "same":
            if pair.agreement and pair.agreement["same_scores"]:
                return f"{who} gives every row the same score as {other}."
            return f"{who} has the same {pair.primary} as {other}, though not the same scores."
        case _:
            return f"{who} is not clearly better or worse than {other} by {pair.primary}."


def by_a_hair(pair: Pair) -> bool:
    """Whether the difference that decides is too small to be felt, chance or not."""
    gain = abs(pair.differences[pair.primary].gain.value)
    of_all = pair.to_figures[pair.primary].value
    return gain < _HAIR * (of_all if pair.primary in LESS_IS_BETTER else 1 - of_all)


def _hair(pair: Pair) -> str:
    if not by_a_hair(pair):
        return ""
    errors = pair.primary in LESS_IS_BETTER
    return f", though by less than {_HAIR:.0%} of {'it' if errors else 'what is left to gain'}"


def _others(comparison: Comparison) -> list[str]:
    """The other versions against the reference, one short sentence each."""
    said = []
    for pair in comparison.pairs[1:]:
        text = _better(pair)
        found = pair.differences.get(pair.primary)
        if found is not None and found.better != "same":
            text = f"{text.removesuffix('.')} ({_span(found.difference)})."
        said.append(text)
    return said


# ------------------------------------------------------------------ by how much, is it chance


def _span(m: Metric) -> str:
    return f"{signed(m.value)}, 95% interval {signed(m.low)} to {signed(m.high)}"


def _how_much(pair: Pair) -> str:
    d = pair.differences[pair.primary]
    of, to = pair.of_figures[pair.primary].value, pair.to_figures[pair.primary].value
    rows = f"on the same {pair.n_shared:,} test rows"
    left_out = max(pair.n_of, pair.n_to) - pair.n_shared
    if left_out:
        rows = f"on the {pair.n_shared:,} test rows in common (of {pair.n_of:,} and {pair.n_to:,})"
    if d.better == "same":
        return f"Its {pair.primary} is {number(of)} {rows}."
    return f"Its {pair.primary} is {number(of)} against {number(to)} {rows}: {_span(d.difference)}."


def _concrete(pair: Pair) -> str:
    """The difference in rows: responders found among the best tenth."""
    if pair.n_positive is None or "lift_at_10" not in pair.differences:
        return ""
    hits = [
        round(0.1 * pair.n_positive * figures["lift_at_10"].value)
        for figures in (pair.of_figures, pair.to_figures)
    ]
    if hits[0] == hits[1]:
        return f"Both find {hits[0]:,} of the {pair.n_positive:,} positives among their best tenth."
    return (
        f"Among its best tenth of rows it finds {hits[0]:,} of the {pair.n_positive:,} positives, "
        f"the other {hits[1]:,}."
    )


def _besides(pair: Pair) -> str:
    said = []
    for better in ("better", "worse"):
        names = [n for n, d in pair.differences.items() if n != pair.primary and d.better == better]
        if names:
            said.append(f"{_capital(better)} too by {', '.join(names)}.")
    main = pair.differences[pair.primary].better
    if len(said) == 2 or main in ("unclear", "same"):
        said = [text.replace(" too by", " by") for text in said]
    elif said and not said[0].startswith(_capital(main)):
        said = [said[0].replace(" too by", ", though, by")]
    return " ".join(said)


def _chance(pair: Pair) -> str:
    d = pair.differences[pair.primary]
    if d.better == "same":
        return ""
    behind = d.better == "worse"
    times = round((1 - d.ahead_in if behind else d.ahead_in) * pair.resamples)
    if behind or d.better == "better":
        return (
            f"Hardly chance: with the customers redrawn {pair.resamples:,} times its "
            f"{pair.primary} came out {'behind' if behind else 'ahead'} {times:,} times."
        )
    return (
        f"It may be chance: with the customers redrawn {pair.resamples:,} times its {pair.primary} "
        f"came out ahead {times:,} times."
    )


# ------------------------------------------------------------------ for whom


def _for_whom(pair: Pair) -> str:
    if not pair.segments or pair.differences[pair.primary].better == "same":
        return ""
    better, worse = pair.segments_that("better"), pair.segments_that("worse")
    judged = [s for s in pair.segments if pair.primary in s.differences]
    untold = len(pair.segments) - len(judged)
    if not judged:
        text = "No segment has enough rows to say for whom."
    elif not better and not worse:
        text = f"No segment gains or loses beyond chance ({len(judged)} judged together)."
    else:
        text = f"Better for {_listed(better, pair.primary) or 'no segment beyond chance'}; "
        text += f"worse for {_listed(worse, pair.primary) or 'no segment beyond chance'}."
    if untold and judged:
        rows = "1 segment has" if untold == 1 else f"{untold} segments have"
        text += f" {rows} too few rows to say."
    return text


def _listed(found: Sequence[SegmentPair], metric: str) -> str:
    return _some(
        [f"{s.label} by {number(abs(s.differences[metric].difference.value))}" for s in found]
    )


def _some(names: Sequence[str]) -> str:
    if len(names) <= _NAMED:
        return ", ".join(names)
    return ", ".join(names[:_NAMED]) + f" and {len(names) - _NAMED} more"


# ------------------------------------------------------------------ the baseline, what changed


def _baseline(pair: Pair) -> str:
    if pair.refused:
        return f"It cannot be compared with {opponent(pair)}: {pair.refused}."
    d = pair.differences.get(pair.primary)
    if d is None:
        return ""
    how = {
        "better": "beats",
        "worse": "is worse than",
        "same": "is no better than",
    }.get(d.better, "does not clearly beat")
    return f"It {how} {opponent(pair)} ({pair.primary} {_span(d.difference)})."


def _changed(pair: Pair) -> str:
    if pair.changes is None:
        return ""
    said = list(changed_things(pair.changes))
    since = f"Changed since {opponent(pair)}: "
    if not said and pair.changes["features"]["known"]:
        return "Nothing changed in data, features, parameters, libraries or code."
    if not said:
        return "No change is on record; which features the older run read is not known."
    return since + "; ".join(said) + "."


def changed_things(changes: Mapping[str, Any]) -> list[str]:
    """Everything that changed between two runs, as short phrases."""
    said = []
    data = changes["data"]
    if data["snapshot"]:
        said.append("the data" + _rows_changed(data["counts"]))
    elif any(name in data["counts"] for name in ("n_train", "n_test")):
        said.append("the rows drawn from the same data" + _rows_changed(data["counts"]))
    features = changes["features"]
    for verb in ("added", "removed"):
        names = features[verb]
        if names:
            said.append(f"{len(names)} feature{'s'[: len(names) > 1]} {verb} ({_some(names)})")
    if changes["parameters"]:
        said.append("parameters " + _some(list(_settings(changes["parameters"]))))
    if changes["libraries"]:
        said.append(_some([f"{n} {_old_new(c)}" for n, c in changes["libraries"].items()]))
    if changes["code"]:
        commits = {k: c and c[:7] for k, c in changes["code"].items()}
        said.append(f"the project's code {_old_new(commits)}")
    return said


def _settings(changed: Mapping[str, Any]) -> Iterator[str]:
    another = "estimator" in changed
    for name, change in changed.items():
        # Another estimator has other settings altogether; to list them says nothing.
        if not (another and name.startswith("estimator.")):
            yield f"{name} {_old_new(change)}"


def _rows_changed(counts: Mapping[str, Any]) -> str:
    if "n_train" not in counts:
        return ""
    before, after = counts["n_train"]["before"], counts["n_train"]["after"]
    if before is None or after is None:
        return ""
    return f" ({before:,} training rows before, {after:,} now)"


def _old_new(change: Mapping[str, Any]) -> str:
    before, after = (change[k] for k in ("before", "after"))
    if before is None:
        return f"now {after}"
    return f"no longer {before}" if after is None else f"{before} to {after}"
