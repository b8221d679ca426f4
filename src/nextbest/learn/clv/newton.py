"""Fit positive parameters by maximum likelihood, and say how far the fit may be trusted.

Newton's method in the logarithms of the parameters, from several starts, with analytic gradients.
In logarithms a change of time unit only moves the start, so that "other units" and "other starts"
are one list. A fit that does not reach a stationary maximum is an error; one that reaches it on a
nearly flat ridge is returned with `identified=False`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from nextbest.errors import FitError
from nextbest.learn.clv.histories import Array, Index

#: Largest gradient of the mean log-likelihood, per unit of log-parameter, at a fit.
TOLERANCE: Final = 1e-8
#: Half the weight of the squared log-parameters (times counted in the longest, money in the mean)
#: in the mean log-likelihood. It moves an identified fit by less than a thousandth of a standard
#: error; where the likelihood rises for ever, as without any dropout, it ends the climb where about
#: a millionth per customer is left to gain, before rounding takes over.
ANCHOR: Final = 1e-7
#: |log parameter| that no fit may leave.
EDGE: Final = 16.0
#: A standard error of a log-parameter above this (a factor e either way) is barely identified.
LOOSE: Final = 1.0
#: Widest standard deviation of a log-parameter that intervals carry, where the data set no limit.
WIDEST: Final = 3.0
_SAMPLE: Final = 8000
_SAME: Final = 1e-9
_MAX_ITERATIONS: Final = 120
_MAX_STEP: Final = 2.0

Objective = Callable[[Array], tuple[float, Array]]


@dataclass(frozen=True)
class FitDiagnostics:
    """Whether the optimum was reached, from where, and whether the data pin the parameters down.

    `gradient_norm`: largest absolute gradient of the mean penalised log-likelihood with respect to
    log-parameters. `unit`: time unit (or currency unit) of the winning start, in the units of the
    data. `identified`: every log-parameter has a standard error below 1 from the data alone and
    none lies at the edge. `cells`: sufficient rows after equal customers were collapsed.
    """

    converged: bool
    identified: bool
    n_starts: int
    iterations: int
    gradient_norm: float
    unit: str
    cells: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        return cls(**{**d, "notes": tuple(d["notes"])})


class Problem(Protocol):
    """A likelihood in log-parameters, per customer on average."""

    @property
    def size(self) -> int:
        """Number of sufficient rows."""

    @property
    def weight(self) -> Array:
        """Number of customers in each row."""

    def loss(self, theta: Array) -> tuple[float, Array]:
        """Mean negative log-likelihood and its gradient."""

    def take(self, rows: Index, weight: Array) -> Problem:
        """The same problem on some of the rows with other weights."""


@dataclass(frozen=True)
class Start:
    """Where to begin, and the unit that the guess was made in (for the record)."""

    theta: Array
    unit: str


@dataclass(frozen=True)
class Fit:
    """Log-parameters with their covariance; `loss` is the mean negative log-likelihood."""

    theta: Array
    covariance: Array
    loss: float
    diagnostics: FitDiagnostics


@dataclass(frozen=True)
class Optimum:
    """Where one descent ended."""

    theta: Array
    value: float
    gradient_norm: float
    iterations: int
    converged: bool
    curvature: Array


def fit_log_parameters(
    problem: Problem,
    starts: Sequence[Start],
    *,
    names: Sequence[str],
    customers: float,
    penalizer: float,
    where: str,
) -> Fit:
    """Maximise the likelihood minus `penalizer` times the sum of squared parameters.

    Starts run on a sample of 8,000 customers where there are many more, until two end at the same
    value; the best goes on to all rows, the others follow only if it fails. Raises `FitError` with
    advice if none converges.
    """

    def penalised(part: Problem) -> Objective:
        def objective(theta: Array) -> tuple[float, Array]:
            value, gradient = part.loss(theta)
            squares = penalizer * np.exp(2.0 * theta) + 0.5 * ANCHOR * theta**2
            slopes = 2.0 * penalizer * np.exp(2.0 * theta) + ANCHOR * theta
            return value + float(squares.sum()), gradient + slopes

        return objective

    subset = problem if problem.size <= 2 * _SAMPLE else _sample(problem)
    first: list[tuple[Optimum, Start]] = []
    for start in starts:
        first.append((minimise(penalised(subset), start.theta), start))
        ends = sorted(end.value for end, _ in first if end.converged)
        if len(ends) > 1 and ends[1] - ends[0] <= _SAME * (1.0 + abs(ends[0])):
            break
    first.sort(key=lambda pair: (not pair[0].converged, pair[0].value))

    objective = penalised(problem)
    best, unit = first[0][0], first[0][1].unit
    for warm, start in first:
        best = warm if subset is problem else minimise(objective, warm.theta, warm.curvature)
        unit = start.unit
        if best.converged:
            break
    if not best.converged:
        raise _no_convergence(where, best, len(first), penalizer, names)
    squares = np.exp(2.0 * best.theta)
    return _assess(
        best,
        problem.loss(best.theta)[0],
        4.0 * penalizer * squares + ANCHOR,
        names=names,
        customers=customers,
        unit=unit,
        n_starts=len(first),
        cells=problem.size,
    )


def _sample(problem: Problem) -> Problem:
    # A fixed seed: the same data always give the same fit, bit for bit.
    ends = np.cumsum(problem.weight)
    drawn = np.random.default_rng(0).random(_SAMPLE) * ends[-1]
    rows, counts = np.unique(np.searchsorted(ends, drawn, side="right"), return_counts=True)
    return problem.take(np.minimum(rows, problem.size - 1), counts.astype(np.float64))


def minimise(objective: Objective, start: Array, known: Array | None = None) -> Optimum:
    """Damped Newton inside a box, with the Hessian from differences of the analytic gradient.

    A Hessian (at first `known`, if given) serves again while each step cuts the gradient to a
    fifth or less: one evaluation then does the work of five.
    """
    theta = np.clip(start, -EDGE, EDGE)
    value, gradient = objective(theta)
    nothing = np.zeros((len(theta), len(theta)))
    previous = np.inf
    for iteration in range(_MAX_ITERATIONS):
        free = ~_pinned(theta, gradient)
        norm = _norm(theta, gradient)
        if not np.isfinite(value) or not np.isfinite(norm):
            return Optimum(theta, value, np.inf, iteration, False, nothing)
        if norm <= TOLERANCE:
            return _at_rest(objective, theta, value, norm, free, iteration)
        if known is None or norm > previous / 5.0:
            known = hessian(objective, theta, gradient)
        previous = norm
        eigenvalues, vectors = np.linalg.eigh(known[np.ix_(free, free)])
        floor = max(1e-10 * float(np.abs(eigenvalues).max()), 1e-12)
        step = np.zeros_like(theta)
        step[free] = -vectors @ ((vectors.T @ gradient[free]) / np.fmax(abs(eigenvalues), floor))
        # Stop at the box, in the direction of the step: along a ridge a bent step leads nowhere.
        room = np.where(step > 0, EDGE - theta, EDGE + theta)
        longest = float(np.max(np.abs(step) / np.fmin(_MAX_STEP, room + 1e-12)))
        step /= max(1.0, longest)
        moved = _line_search(objective, theta, value, gradient, step)
        if moved is None:
            if norm <= 10 * TOLERANCE:
                return _at_rest(objective, theta, value, norm, free, iteration)
            return Optimum(theta, value, norm, iteration, False, nothing)
        theta, value, gradient = moved
    return Optimum(theta, value, norm, _MAX_ITERATIONS, False, nothing)


def _at_rest(
    objective: Objective,
    theta: Array,
    value: float,
    norm: float,
    free: npt.NDArray[np.bool_],
    iteration: int,
) -> Optimum:
    """A stationary point; converged unless the likelihood rises along some direction."""
    curvature = hessian(objective, theta)
    eigenvalues = np.linalg.eigvalsh(curvature[np.ix_(free, free)])
    top = float(np.abs(eigenvalues).max(initial=1e-3))
    convex = bool(eigenvalues.min(initial=0.0) >= -1e-5 * top)
    return Optimum(theta, value, norm, iteration, convex, curvature)


def _line_search(
    objective: Objective, theta: Array, value: float, gradient: Array, step: Array
) -> tuple[Array, float, Array] | None:
    # Near the optimum the gain sinks below rounding, which grows with log-gammas of the parameters;
    # there the gradient decides.
    noise = 1e-13 * (1.0 + abs(value)) + 1e-14 * float(np.exp(theta.max()))
    slope = float(gradient @ step)
    size = 1.0
    for _ in range(40):
        there = np.clip(theta + size * step, -EDGE, EDGE)
        value_there, gradient_there = objective(there)
        if np.isfinite(value_there) and np.isfinite(gradient_there).all():
            if value_there <= value + 1e-4 * size * min(slope, 0.0):
                return there, value_there, gradient_there
            smaller = _norm(there, gradient_there) < 0.9 * _norm(theta, gradient)
            if value_there <= value + noise and smaller:
                return there, value_there, gradient_there
        size /= 2.0
    return None


def _pinned(theta: Array, gradient: Array) -> npt.NDArray[np.bool_]:
    """Parameters at the edge whose likelihood still rises outwards."""
    edge = EDGE - 1e-6
    return ((theta <= -edge) & (gradient > 0)) | ((theta >= edge) & (gradient < 0))


def _norm(theta: Array, gradient: Array) -> float:
    return float(np.abs(gradient[~_pinned(theta, gradient)]).max(initial=0.0))


def hessian(objective: Objective, theta: Array, gradient: Array | None = None) -> Array:
    """Forward differences if the gradient at theta is given, else central ones."""
    h = 1e-4
    columns = []
    for i in range(len(theta)):
        move = np.zeros_like(theta)
        move[i] = h
        ahead = objective(theta + move)[1]
        columns.append(
            (ahead - gradient) / h
            if gradient is not None
            else (ahead - objective(theta - move)[1]) / (2.0 * h)
        )
    matrix = np.array(columns)
    return (matrix + matrix.T) / 2.0


def _assess(
    best: Optimum,
    loss: float,
    penalty_curvature: Array,
    *,
    names: Sequence[str],
    customers: float,
    unit: str,
    n_starts: int,
    cells: int,
) -> Fit:
    theta = best.theta
    penalised = customers * best.curvature
    from_data = penalised - customers * np.diag(penalty_curvature)
    at_edge = np.abs(theta) >= EDGE - 1e-6
    loose = at_edge | ~(_standard_errors(from_data) < LOOSE)
    notes = []
    if loose.any():
        which = " and ".join(name for name, bad in zip(names, loose, strict=True) if bad)
        notes.append(
            f"{which}: barely identified; other values explain the data almost as well. "
            "Forecasts inside the observed time span stay usable, these parameters must not be "
            "interpreted. More history, another purchase model or a penalizer above 0 helps."
        )
    if at_edge.any():
        which = " and ".join(name for name, bad in zip(names, at_edge, strict=True) if bad)
        notes.append(f"{which}: at the edge of the search; the likelihood still rises beyond it.")

    # The floor gives an unidentified direction a standard deviation of 3, not infinity.
    eigenvalues, vectors = np.linalg.eigh(penalised)
    covariance = (vectors / np.fmax(eigenvalues, 1.0 / WIDEST**2)) @ vectors.T
    return Fit(
        theta,
        (covariance + covariance.T) / 2.0,
        loss,
        FitDiagnostics(
            converged=True,
            identified=not bool(loose.any()),
            n_starts=n_starts,
            iterations=best.iterations,
            gradient_norm=best.gradient_norm,
            unit=unit,
            cells=cells,
            notes=tuple(notes),
        ),
    )


def _standard_errors(information: Array) -> Array:
    """Square roots of the inverse's diagonal; infinite where the information is not positive."""
    if np.linalg.eigvalsh(information).min() <= 0:
        return np.full(len(information), np.inf)
    return np.sqrt(np.diag(np.linalg.inv(information)))


def _no_convergence(
    where: str, best: Optimum, starts: int, penalizer: float, names: Sequence[str]
) -> FitError:
    ends = ", ".join(f"{name} {v:.3g}" for name, v in zip(names, np.exp(best.theta), strict=True))
    return FitError(
        where,
        f"no maximum of the likelihood found from {starts} starts",
        expected=f"a gradient below {TOLERANCE:g} with falling likelihood on all sides",
        got=f"{best.gradient_norm:.2g} at {ends} (penalizer {penalizer:g})",
        action="Try a penalizer such as 0.001 to 0.1, another purchase model, or longer histories",
    )
