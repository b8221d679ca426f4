"""ONNX graphs of classifiers: checked to be plain arithmetic, and run on one thread.

A graph maps one matrix to probabilities. It may name no files beside it, no operators but the
standard's own, nothing that loops without bound or draws lots. `onnx_convert` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from nextbest.errors import ArtifactError, DataError
from nextbest.learn.components import TOLERANCE, Steps

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = ["INPUT", "MAX_BYTES", "PACKAGES", "SINGLE_TOLERANCE", "Graph", "missing"]

Array = npt.NDArray[np.float64]

#: What the optional extra ``onnx`` installs.
PACKAGES: Final = ("onnx", "onnxruntime", "skl2onnx")
#: How far probabilities from operators in single precision may lie from the estimator's.
SINGLE_TOLERANCE: Final = 1e-5
MAX_BYTES: Final = 256 * 1024**2
#: Name of the one matrix that goes in.
INPUT: Final = "x"
_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml")
_NEVER: Final = frozenset(
    ("Loop", "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike",
     "RandomUniform", "RandomUniformLike")
)  # fmt: skip
#: Rows are run in blocks of this size, filled up with zeros: a matrix product adds up in another
#: order for one row than for many. A multiple of what processors take at once (2 to 12 rows).
_BLOCK: Final = 24
#: Probabilities are kept this far from 0 and 1 where an effect is told in log-odds.
_EDGE: Final = 1e-3
_CELLS_PER_CHUNK: Final = 2_000_000


def missing(packages: tuple[str, ...] = PACKAGES) -> str | None:
    """Return which packages of the extra are not installed and what to do; None if all are."""
    absent = [name for name in packages if find_spec(name) is None]
    if not absent:
        return None
    verb = "is" if len(absent) == 1 else "are"
    return f'{", ".join(absent)} {verb} not installed; run pip install "nextbest[onnx]"'


class Graph:
    """A classifier's ONNX graph as one part of a model.

    Parameters
    ----------
    content : the ONNX file.
    steps : preprocessing before the graph.
    weight : in the model's mean.
    raw_column_of : for each encoded column the raw column it came from.
    tolerance : to which it repeats its estimator.
    takes_unknown : whether the estimator scored rows with unknown (NaN) values; a row of unknown
        values that it would have refused has no score here either.
    background : (b, k) encoded rows of customers that contributions are measured against.

    Raises
    ------
    ArtifactError : onnx or onnxruntime is not installed.
    ValueError : the file is not a graph of plain arithmetic on ``steps``' columns.
    """

    def __init__(
        self,
        content: bytes,
        steps: Steps,
        weight: float,
        raw_column_of: npt.NDArray[np.intp],
        *,
        tolerance: float,
        takes_unknown: bool,
        background: Array,
    ) -> None:
        if absent := missing(("onnx", "onnxruntime")):
            raise ArtifactError("model", f"it is stored as ONNX, and {absent}")
        if tolerance not in (TOLERANCE, SINGLE_TOLERANCE):
            raise ValueError(f"its tolerance is {tolerance!r}")
        self.weight = weight
        self.tolerance = tolerance
        self._steps = steps
        self._raw_column_of = raw_column_of
        self._takes_unknown = takes_unknown
        self._background = background
        self._width = len(steps.origin)
        self._dtype = _check(content, self._width)
        self._session = _session(content)

    scorer_kind = "onnx"

    def over_offers(self, origins: Any) -> None:
        """Return None: the graph reads whole rows."""
        return None

    def predict(self, x: Array) -> Array:
        """Return the (n,) probabilities; NaN where the estimator takes no unknown values."""
        z = self._steps(x)
        known = np.isfinite(z).all(axis=1) | self._takes_unknown
        out = np.full(len(z), np.nan)
        out[known] = self._run(z[known])
        return out

    def _run(self, z: Array) -> Array:
        blocks = -(-len(z) // _BLOCK)
        filled = np.zeros((blocks * _BLOCK, self._width), dtype=self._dtype)
        filled[: len(z)] = z
        out = np.empty(len(filled))
        for start in range(0, len(filled), _BLOCK):
            rows = slice(start, start + _BLOCK)
            try:
                (found,) = self._session.run(None, {INPUT: filled[rows]})
                out[rows] = found[:, 1]
            except Exception as error:  # ONNX Runtime's errors have no base of their own
                raise DataError("scoring", "the ONNX graph fails", got=_first_line(error)) from None
        return np.clip(out[: len(z)], 0.0, 1.0)

    def contributions(self, x: Array) -> Array:
        """Return (n, k): the mean change in log-odds when a raw column alone takes other values.

        The other values are those of the background rows. For a part that adds its columns up this
        is coefficient x (value - average); in general the effects need not add up to the score.
        The effect of a text column stands at the first of its encoded columns.
        """
        out = np.zeros(x.shape)
        firsts = np.flatnonzero(np.diff(self._raw_column_of, prepend=-1))
        share = len(self._background) * x.shape[1] * max(1, len(firsts))
        chunk = max(1, _CELLS_PER_CHUNK // max(1, share))
        for start in range(0, len(x), chunk):
            rows = x[start : start + chunk]
            out[start : start + chunk, firsts] = self._swapped(rows, firsts)
        return out

    def _swapped(self, x: Array, firsts: npt.NDArray[np.intp]) -> Array:
        """What each raw column's own values add to the log-odds of the (n, k) rows."""
        effects = np.zeros((len(x), len(firsts)))
        own = self._log_odds(x)
        variants, places = [], []
        for j, first in enumerate(firsts):
            group = self._raw_column_of == self._raw_column_of[first]
            for other in self._background:
                own_values = x[:, group]
                both_unknown = np.isnan(own_values) & np.isnan(other[group])
                same = ((own_values == other[group]) | both_unknown).all(axis=1)
                changed = np.flatnonzero(~same)
                rows = x[changed]
                rows[:, group] = other[group]
                variants.append(rows)
                places.append(np.column_stack([changed, np.full(len(changed), j)]))
        if variants:
            at = np.vstack(places)
            difference = own[at[:, 0]] - self._log_odds(np.vstack(variants))
            np.add.at(effects, (at[:, 0], at[:, 1]), difference / len(self._background))
        return effects

    def _log_odds(self, x: Array) -> Array:
        return np.asarray(logit(np.clip(self.predict(x), _EDGE, 1 - _EDGE)))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _session(content: bytes) -> onnxruntime.InferenceSession:
    """Open a session that gives the same bits each time: one thread, in order, on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # errors come as exceptions
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ValueError(f"ONNX Runtime: {_first_line(error)}") from None


# ------------------------------------------------------------------ what a file may hold


def _check(content: bytes, width: int) -> type[np.floating[Any]]:
    """Refuse with ``ValueError`` what is not plain arithmetic; return the input's precision."""
    import onnx

    if len(content) > MAX_BYTES:
        raise ValueError(f"an ONNX file of {len(content):,} bytes, above {MAX_BYTES:,}")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own, whichever protobuf that is
        raise ValueError(f"not an ONNX file: {_first_line(error)}") from None
    if model.functions or model.training_info:
        raise ValueError("the ONNX file brings functions of its own")
    domains = {opset.domain for opset in model.opset_import}
    for graph in _graphs(model.graph):
        for node in graph.node:
            domains.add(node.domain)
            if node.op_type in _NEVER:
                raise ValueError(f"the ONNX graph holds the operator {node.op_type}")
        for tensor in _tensors(graph):
            if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
                raise ValueError(f"the ONNX tensor {tensor.name!r} lies in another file")
    if strange := sorted(domains - set(_DOMAINS)):
        raise ValueError(f"the ONNX graph uses operators of {', '.join(strange)}")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"not a valid ONNX graph: {_first_line(error)}") from None
    return _shape(model.graph, width)


def _shape(graph: onnx.GraphProto, width: int) -> type[np.floating[Any]]:
    import onnx

    held = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in held]
    if [value.name for value in inputs] != [INPUT] or len(graph.output) != 1:
        raise ValueError("the ONNX graph does not map one matrix to probabilities")
    given = inputs[0].type.tensor_type
    dims = [dim.dim_value for dim in given.shape.dim]
    if dims != [0, width]:
        raise ValueError(f"the ONNX graph reads a matrix {dims}, not {width} columns")
    kinds: dict[int, type[np.floating[Any]]] = {
        onnx.TensorProto.DOUBLE: np.float64,
        onnx.TensorProto.FLOAT: np.float32,
    }
    if given.elem_type not in kinds:
        raise ValueError("the ONNX graph does not read numbers")
    return kinds[given.elem_type]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant of one graph."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
