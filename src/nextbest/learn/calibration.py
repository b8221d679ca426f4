"""Turn scores into probabilities that come true as often as they say.

Four calibrators, all monotone, all plain numbers: none, Platt (1999), isotonic (Zadrozny & Elkan
2002) and beta (Kull, Silva Filho & Flach 2017). ``choose`` takes the one that
does best on later rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log1p, logit, xlogy

from nextbest.errors import ArtifactError, DataError
from nextbest.learn.statistics import Array, binary, fit_logistic, pair, probability

__all__ = [
    "Beta",
    "Calibrator",
    "Choice",
    "Isotonic",
    "NoCalibration",
    "Platt",
    "calibrator_from_dict",
    "choose",
    "fit",
]

#: Scores are kept this far from 0 and 1, so that one overconfident row cannot rule the fit.
_EDGE: Final = 1e-7


class Calibrator(Protocol):
    """A monotone map from score to probability, stored as JSON."""

    kind: ClassVar[str]

    def apply(self, scores: npt.ArrayLike) -> Array:
        """Return the probabilities (n,) of the scores (n,)."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; ``calibrator_from_dict`` gives back the same bits."""


def _scores(scores: npt.ArrayLike) -> Array:
    # The functions below go element by element through C, so that a row has the same bits alone
    # as in a batch. numpy's own log and exp do not promise that.
    return np.ascontiguousarray(scores, dtype=np.float64)


def _clipped(scores: npt.ArrayLike) -> Array:
    return np.clip(_scores(scores), _EDGE, 1 - _EDGE)


@dataclass(frozen=True)
class NoCalibration:
    """The score is the probability already."""

    kind: ClassVar[str] = "none"

    def apply(self, scores: npt.ArrayLike) -> Array:
        """Return the scores as they are."""
        return _scores(scores)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"kind": self.kind}


@dataclass(frozen=True)
class Platt:
    """Stretch and shift the score's log-odds: ``p = sigmoid(slope * logit(s) + intercept)``."""

    slope: float
    intercept: float
    kind: ClassVar[str] = "platt"

    def apply(self, scores: npt.ArrayLike) -> Array:
        """Return the probabilities (n,) of the scores (n,)."""
        return np.asarray(expit(self.slope * logit(_clipped(scores)) + self.intercept))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"kind": self.kind, "slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True)
class Beta:
    """Beta calibration: ``p = sigmoid(a ln(s) - b ln(1 - s) + c)`` with a, b >= 0.

    Source: Kull, Silva Filho & Flach (2017), "Beta calibration", AISTATS, section 3.
    """

    a: float
    b: float
    c: float
    kind: ClassVar[str] = "beta"

    def apply(self, scores: npt.ArrayLike) -> Array:
        """Return the probabilities (n,) of the scores (n,)."""
        s = _clipped(scores)
        return np.asarray(expit(self.a * xlogy(1.0, s) - self.b * log1p(-s) + self.c))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"kind": self.kind, "a": self.a, "b": self.b, "c": self.c}


@dataclass(frozen=True)
class Isotonic:
    """A rising piecewise linear map through the points (``scores``, ``probabilities``)."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    kind: ClassVar[str] = "isotonic"

    def apply(self, scores: npt.ArrayLike) -> Array:
        """Return the probabilities (n,) of the scores (n,); flat beyond the outer points."""
        known = np.asarray(self.scores), np.asarray(self.probabilities)
        at = np.clip(_scores(scores), known[0][0], known[0][-1])
        if len(self.scores) == 1:
            return np.full(at.shape, self.probabilities[0])
        # Not np.interp: it changes its arithmetic with the number of rows it is given.
        right = np.clip(np.searchsorted(known[0], at, side="left"), 1, len(self.scores) - 1)
        x0, x1 = known[0][right - 1], known[0][right]
        y0, y1 = known[1][right - 1], known[1][right]
        return np.asarray(np.minimum(y0 + (y1 - y0) * ((at - x0) / (x1 - x0)), y1))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "kind": self.kind,
            "scores": list(self.scores),
            "probabilities": list(self.probabilities),
        }


# ------------------------------------------------------------------ fitting


def _fit_none(y: Array, score: Array) -> Calibrator:
    return NoCalibration()


def _coefficients(columns: Sequence[Array], target: Array) -> list[float]:
    """Fit log-odds on columns whose coefficients must not fall below 0; the last is the constant.

    A column whose coefficient comes out negative, or has no finite fit, is held at 0 and the rest
    fitted again, as Kull et al. do.
    """
    kept = list(range(len(columns)))
    while True:
        design = np.column_stack([*(columns[i] for i in kept), np.ones_like(target)])
        coef = fit_logistic(design, target)
        if coef is not None and (not kept or coef[:-1].min() >= 0):
            break
        kept.pop(int(np.argmin(coef[:-1])) if coef is not None else -1)
    out = [0.0] * len(columns)
    for i, value in zip(kept, coef, strict=False):
        out[i] = float(value)
    return [*out, float(coef[-1])]


def _softened(y: Array) -> Array:
    """Platt's targets: as if each class had been seen once more, so that no fit is infinite."""
    positives, negatives = y.sum(), y.size - y.sum()
    return np.asarray(np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2)))


def _fit_platt(y: Array, score: Array) -> Calibrator:
    slope, intercept = _coefficients([logit(_clipped(score))], _softened(y))
    return Platt(slope, intercept)


def _fit_beta(y: Array, score: Array) -> Calibrator:
    s = _clipped(score)
    return Beta(*_coefficients([np.log(s), -np.log1p(-s)], _softened(y)))


def _fit_isotonic(y: Array, score: Array) -> Calibrator:
    # Serving applies calibrators and never fits one.
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(out_of_bounds="clip").fit(score, y)
    # A block without a positive says "rare", not "impossible": log loss would be infinite.
    edge = 1 / (y.size + 2)
    return Isotonic(
        tuple(float(v) for v in fitted.X_thresholds_),
        tuple(float(v) for v in np.clip(fitted.y_thresholds_, edge, 1 - edge)),
    )


# From simple to flexible: on a tie the simpler one is chosen.
_FITTERS: Final[Mapping[str, Callable[[Array, Array], Calibrator]]] = {
    "none": _fit_none,
    "platt": _fit_platt,
    "beta": _fit_beta,
    "isotonic": _fit_isotonic,
}


def fit(kind: str, y: npt.ArrayLike, score: npt.ArrayLike) -> Calibrator:
    """Fit one calibrator to outcomes and scores.

    Parameters: ``kind`` none, platt, isotonic or beta; ``y`` (n,) 0 or 1; ``score`` (n,) in 0-1.
    Raises ``DataError`` on an unknown kind, on empty or one-class input.
    """
    if kind not in _FITTERS:
        raise DataError("calibration", "unknown kind", expected=" or ".join(_FITTERS), got=kind)
    outcome, s = pair(y, score)
    return _FITTERS[kind](binary(outcome), probability(s))


@dataclass(frozen=True)
class Choice:
    """The calibrator that was chosen, and the log loss of each candidate on later rows."""

    calibrator: Calibrator
    log_loss: Mapping[str, float]
    rows: int
    positives: int

    def to_dict(self) -> dict[str, Any]:
        """Return what was chosen and why, as plain JSON types."""
        return {
            "chosen": self.calibrator.kind,
            "log_loss": dict(self.log_loss),
            "rows": self.rows,
            "positives": self.positives,
        }


def _to_base_rate(y: Array, score: Array) -> Array:
    """Shift scores on the log-odds scale until their mean is the outcome rate."""
    s = _clipped(score)
    logit = np.log(s) - np.log1p(-s)
    low, high = -30.0, 30.0
    for _step in range(60):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(-(logit + middle)))).mean() < y.mean():
            low = middle
        else:
            high = middle
    return np.asarray(1 / (1 + np.exp(-(logit + low))), dtype=np.float64)


def choose(
    blocks: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    kind: str = "auto",
    *,
    level_learned: bool = False,
) -> Choice:
    """Choose a calibrator by how it does on *later* rows than those it was fitted to.

    Each block is the validation rows of one time fold, earliest first: ``(y (n,), score (n,))``.
    Every kind is fitted on the blocks before and judged on the next. None is kept unless another
    kind's gain in log loss exceeds its standard error. The chosen kind is fitted to all blocks.

    Parameters: ``kind`` auto, or a kind to fit without choosing; ``level_learned`` says that the
    model's mean score on its own training rows is their rate. Then a block's level is off only by
    drift since its fold was fitted, which the final model, fitted to later rows, has seen for
    itself: each block's scores are first shifted, on the log-odds scale, to the block's own rate,
    and only the shape is learned. Raises ``DataError`` as `fit`.
    """
    pairs = [pair(y, s) for y, s in blocks]
    level = _to_base_rate if level_learned else lambda _y, s: s
    usable = [(y, level(y, s)) for y, s in pairs if 0 < y.sum() < y.size]
    if not usable:
        return Choice(NoCalibration(), {}, sum(y.size for y, _s in pairs), 0)
    all_y, all_s = (np.concatenate(side) for side in zip(*usable, strict=True))
    if kind != "auto":
        return Choice(fit(kind, all_y, all_s), {}, all_y.size, int(all_y.sum()))
    losses: dict[str, list[Array]] = {name: [] for name in _FITTERS}
    for at in range(1, len(usable)):
        past_y, past_s = (np.concatenate(side) for side in zip(*usable[:at], strict=True))
        y, s = usable[at]
        for name, fitter in _FITTERS.items():
            p = np.clip(fitter(past_y, past_s).apply(s), _EDGE, 1 - _EDGE)
            losses[name].append(-np.where(y == 1, np.log(p), np.log1p(-p)))
    if len(usable) < 2:
        return Choice(NoCalibration(), {}, all_y.size, int(all_y.sum()))
    each = {name: np.concatenate(parts) for name, parts in losses.items()}
    mean = {name: float(loss.mean()) for name, loss in each.items()}
    best = min(mean, key=lambda name: mean[name])
    gain = each["none"] - each[best]
    if gain.mean() <= gain.std() / np.sqrt(gain.size):
        best = "none"
    return Choice(_FITTERS[best](all_y, all_s), mean, all_y.size, int(all_y.sum()))


def calibrator_from_dict(d: Mapping[str, Any]) -> Calibrator:
    """Rebuild a calibrator from ``to_dict``, bit for bit; ``ArtifactError`` if it is damaged."""
    try:
        match d["kind"]:
            case "none":
                return NoCalibration()
            case "platt":
                found: Calibrator = Platt(_finite(d["slope"], 0), _finite(d["intercept"]))
            case "beta":
                found = Beta(_finite(d["a"], 0), _finite(d["b"], 0), _finite(d["c"]))
            case "isotonic":
                x = tuple(_finite(v) for v in d["scores"])
                p = tuple(_finite(v, 0) for v in d["probabilities"])
                if len(x) != len(p) or not x or any(np.diff(x) <= 0) or any(np.diff(p) < 0):
                    raise ValueError("its points do not rise")
                found = Isotonic(x, p)
            case other:
                raise ValueError(f"its kind is {other!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            "calibrator",
            "it cannot be read",
            expected="none, platt, beta or isotonic with its numbers",
            got=f"{type(error).__name__}: {error}",
            action="Train the model again.",
        ) from None
    return found


def _finite(value: Any, lowest: float = -np.inf) -> float:
    number = float(value)
    if not np.isfinite(number) or number < lowest:
        raise ValueError(f"{value!r} is out of range")
    return number
