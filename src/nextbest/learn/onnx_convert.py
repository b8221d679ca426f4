"""From a scikit-learn classifier to an ONNX graph that repeats its probabilities.

What skl2onnx makes is believed only where it gives the estimator's own probabilities on real rows:
to 1e-9 in double precision, to 1e-5 where an operator exists in single precision only. Trees
(`onnx_trees`) and imputing have converters of our own.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from nextbest.errors import DataError
from nextbest.learn.components import TOLERANCE, Steps
from nextbest.learn.onnx import INPUT, SINGLE_TOLERANCE, Graph, missing
from nextbest.learn.onnx_trees import TREES, grow

__all__ = ["CannotConvert", "Converted", "convert", "refusal", "type_name"]

Array = npt.NDArray[np.float64]

_OPSET: Final = 17
_OPSET_ML: Final = 3  # skl2onnx's own
_OPSET_ML_TREES: Final = 5  # the first that knows TreeEnsemble


class CannotConvert(ValueError):
    """Why an estimator has no graph that can be trusted, in words for its author."""


def type_name(estimator: Any) -> str:
    """``package.Class``: stable where a library moves its private modules about."""
    kind = type(estimator)
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


# ------------------------------------------------------------------ before training

#: How many rows are also scored one by one.
_ALONE: Final = 24
#: What a trial on a few rows might not show; measured with skl2onnx 1.20.
_DENIED: Final[Mapping[str, str]] = {
    "sklearn.ClassifierChain": "it predicts several outcomes at once",
    "sklearn.MultiOutputClassifier": "it predicts several outcomes at once",
    "sklearn.RadiusNeighborsClassifier": "its ONNX form fails on a customer without near "
    "neighbours; use KNeighborsClassifier",
}
#: Ours, and what `_converters` knows beyond scikit-learn.
_OWN: Final = ("nextbest.SignedLog1p",)


def refusal(estimator: Any) -> str | None:
    """Return why this estimator, fitted or not, cannot become a graph; None if it can.

    A copy is fitted to a few made-up rows and converted, so that what the converter cannot do
    shows before any training. If the made-up rows do not suit it, training will tell.
    """
    return _refused_by_definition(estimator) or _refused_by_trial(estimator)


def _refused_by_definition(estimator: Any) -> str | None:
    from sklearn.base import is_classifier

    name = type_name(estimator)
    if not name.startswith("sklearn."):
        return f"{name} has no safe format; use a classifier of scikit-learn or LightGBM"
    if name in _DENIED:
        return f"{name}: {_DENIED[name]}"
    for key, value in estimator.get_params(deep=True).items():
        if not hasattr(value, "get_params"):
            if callable(value) and not isinstance(value, type):
                return f"the parameter {key} of {name} is Python code ({value!r})"
            continue
        part = type_name(value)
        if part.startswith("lightgbm."):
            return (
                f"{name} around {part} has no safe format; LightGBM goes to its own text, "
                "so mix it in with nextbest.blend, and calibrate with Model(calibration=...)"
            )
        if not part.startswith("sklearn.") and part not in _OWN:
            return f"its part {key} is a {part}, which has no safe format"
        if part in _DENIED:
            return f"its part {key} is a {part}: {_DENIED[part]}"
    try:
        known = is_classifier(estimator)
    except AttributeError:  # an estimator around nothing
        known = False
    if not known:
        return f"{name} is not a classifier"
    absent = missing()
    return f"{name} goes to ONNX, and {absent}" if absent else None


def _refused_by_trial(estimator: Any) -> str | None:
    from sklearn.base import clone

    rng = np.random.default_rng(0)
    x = np.round(rng.lognormal(1.0, 1.0, (80, 8)), 2)
    y = (x[:, 0] + rng.normal(size=80) > np.median(x[:, 0])).astype(np.int64)
    holes = np.where(rng.random(x.shape) < 0.1, np.nan, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = clone(estimator)
        small.set_params(**_smaller(small))
        for rows in (holes, x):
            try:
                small.fit(rows, y)
            except Exception:  # whatever it says of made-up rows is no verdict
                continue
            try:
                convert(small, np.vstack([holes, x]))
            except CannotConvert as error:
                return str(error)
            return None
    return None


def _smaller(estimator: Any) -> dict[str, Any]:
    """Settings for a quick trial: few trees, and a seed where one was left open."""
    settings: dict[str, Any] = {}
    for key, value in estimator.get_params(deep=True).items():
        last = key.rpartition("__")[2]
        if last == "n_estimators" and isinstance(value, int):
            settings[key] = min(value, 3)
        elif last == "random_state" and value is None:
            settings[key] = 0
    return settings


# ------------------------------------------------------------------ converting


@dataclass(frozen=True)
class Converted:
    """A graph that repeats its estimator.

    Attributes
    ----------
    graph : the ONNX file.
    tolerance : to which it repeats the estimator's probabilities.
    takes_unknown : the estimator scores rows with unknown (NaN) values.
    """

    graph: bytes
    tolerance: float
    takes_unknown: bool


def convert(estimator: Any, rows: Array) -> Converted:
    """Convert a fitted binary classifier, and hold its graph against it.

    Parameters
    ----------
    rows : (n, k) rows as the estimator reads them, some with unknown values; values shuffled
        between the rows are tried beside them.

    Raises
    ------
    CannotConvert : there is no converter, the graph is not plain arithmetic, or it gives other
        probabilities; the message says which.
    NotFittedError : it is not fitted.
    """
    if reason := _refused_by_definition(estimator):
        raise CannotConvert(reason)
    check_is_fitted(estimator)
    name = type_name(estimator)
    if not hasattr(estimator, "predict_proba"):
        raise CannotConvert(
            f"{name} gives no probability (predict_proba); wrap it in CalibratedClassifierCV"
        )
    if list(estimator.classes_) != [0, 1]:
        raise CannotConvert(f"its classes are {list(estimator.classes_)}, not 0 and 1")
    rows = _shuffled(np.asarray(rows, dtype=np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about feature names; the columns are in order here
        takes_unknown = _takes_unknown(estimator, rows.shape[1])
        if not takes_unknown:
            rows = rows[np.isfinite(rows).all(axis=1)]
        if not len(rows):
            raise CannotConvert(f"no row without unknown values is there to try {name} on")
        expected = np.asarray(estimator.predict_proba(rows)[:, 1], dtype=np.float64)
        problems = []
        for single in (False, True):
            try:
                content = _converted(estimator, rows.shape[1], single)
                error = _largest_error(content, rows, expected, takes_unknown)
            except CannotConvert as problem:
                problems.append(str(problem))
                continue
            if error <= TOLERANCE:
                return Converted(content, TOLERANCE, takes_unknown)
            if error <= SINGLE_TOLERANCE:
                return Converted(content, SINGLE_TOLERANCE, takes_unknown)
            problems.append(_mismatch(name, content, rows, expected, takes_unknown, error))
    raise CannotConvert(problems[0])


def _shuffled(rows: Array) -> Array:
    """The rows, and the same values dealt to other rows: more leaves and corners are reached."""
    rng = np.random.default_rng(0)
    dealt = [rng.permuted(rows, axis=0) for _ in range(math.ceil(256 / max(1, len(rows))))]
    return np.vstack([rows, *dealt])


def _takes_unknown(estimator: Any, width: int) -> bool:
    try:
        estimator.predict_proba(np.full((1, width), np.nan))
    except ValueError:
        return False
    return True


def _largest_error(content: bytes, rows: Array, expected: Array, takes_unknown: bool) -> float:
    width = rows.shape[1]
    try:
        graph = Graph(
            content, Steps((), width), 1.0, np.arange(width), tolerance=TOLERANCE,
            takes_unknown=takes_unknown, background=rows[:0],
        )  # fmt: skip
    except ValueError as error:
        raise CannotConvert(f"its ONNX form is refused: {error}") from None
    try:
        found = graph.predict(rows)
        turned = graph.predict(rows[::-1])[::-1]
        alone = np.concatenate([graph.predict(rows[i : i + 1]) for i in range(_ALONE)])
    except DataError as error:
        raise CannotConvert(f"its graph fails on the training rows: {error}") from None
    if not (np.array_equal(found, turned) and np.array_equal(found[:_ALONE], alone)):
        raise CannotConvert("its graph gives a row other bits alone than beside other rows")
    return float(np.abs(found - expected).max(initial=0.0))


def _mismatch(
    name: str, content: bytes, rows: Array, expected: Array, takes_unknown: bool, error: float
) -> str:
    known = np.isfinite(rows).all(axis=1)
    if takes_unknown and known.any() and not known.all():
        without = _largest_error(content, rows[known], expected[known], takes_unknown)
        if without <= SINGLE_TOLERANCE:
            return (
                f"the ONNX form of {name} treats unknown values otherwise; put a SimpleImputer "
                "before it"
            )
    hint = " (of equally near neighbours it takes others)" if "Neighbors" in name else ""
    return f"the ONNX form of {name} gives other probabilities, by up to {error:.2g}{hint}"


def _converted(estimator: Any, width: int, single: bool) -> bytes:
    """Convert with skl2onnx, but for the trees; keep the probabilities only."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    converters, shapes = _converters()
    tensor = FloatTensorType if single else DoubleTensorType
    try:
        model = convert_sklearn(
            estimator,
            name="nextbest",  # by default a random one, and the same model would differ
            initial_types=[(INPUT, tensor([None, width]))],
            target_opset={"": _OPSET, "ai.onnx.ml": _OPSET_ML},
            options={"zipmap": False},
            custom_conversion_functions=converters,
            custom_shape_calculators=shapes,
        )
    except CannotConvert:
        raise
    except Exception as error:  # skl2onnx raises what its converters happen to raise
        raise CannotConvert(_why(type_name(estimator), error)) from error
    _keep_probabilities(model.graph)
    if any(node.op_type == "TreeEnsemble" for node in model.graph.node):
        for opset in model.opset_import:
            if opset.domain == "ai.onnx.ml":
                opset.version = _OPSET_ML_TREES
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _why(name: str, error: Exception) -> str:
    message = (str(error).strip().splitlines() or [""])[0]
    if type(error).__name__ in ("MissingShapeCalculator", "MissingConverter"):
        found = re.search(r"<class '(\w+)\.(?:\S*\.)?(\w+)'>", message)
        return f"there is no ONNX converter for {'.'.join(found.groups()) if found else name}"
    return f"skl2onnx cannot convert {name} ({type(error).__name__}: {message[:200]})"


def _keep_probabilities(graph: Any) -> None:
    """Drop the predicted class, and what leads to nothing else."""
    output = graph.output[1]
    needed, nodes = {output.name}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_read_by(node))
    held = [tensor for tensor in graph.initializer if tensor.name in needed]
    for field, kept in (("node", nodes[::-1]), ("initializer", held), ("output", [output])):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(kept)
    del graph.value_info[:]


def _read_by(node: Any) -> set[str]:
    """Names that a node, or a graph inside it, reads."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for part in inner.node:
                names |= _read_by(part)
    return names


def _converters() -> tuple[dict[type, Any], dict[type, Any]]:
    """Converters of our own, by type: trees and imputing in double precision, and SignedLog1p."""
    import sklearn.ensemble
    import sklearn.tree
    from skl2onnx.common.data_types import Int64TensorType
    from sklearn.impute import SimpleImputer

    from nextbest.learn.estimators import SignedLog1p

    def class_shapes(operator: Any) -> None:
        rows = operator.inputs[0].get_first_dimension()
        operator.outputs[0].type = Int64TensorType([rows])
        operator.outputs[1].type = type(operator.inputs[0].type)([rows, 2])

    def same_shape(operator: Any) -> None:
        operator.outputs[0].type = operator.inputs[0].type

    kinds = {
        getattr(module, kind)
        for module in (sklearn.ensemble, sklearn.tree)
        for kind in (name.partition(".")[2] for name in TREES)
        if hasattr(module, kind)
    }
    converters: dict[type, Any] = dict.fromkeys(kinds, _add_trees)
    converters[SimpleImputer] = _add_imputer
    shapes: dict[type, Any] = dict.fromkeys(kinds, class_shapes)
    return converters | {SignedLog1p: _add_signed_log}, shapes | {SignedLog1p: same_shape}


class _Drawing:
    """Adds nodes for one operator to what skl2onnx is building, under names of their own."""

    def __init__(self, scope: Any, operator: Any, container: Any) -> None:
        from skl2onnx.common.data_types import guess_proto_type

        self._scope, self._container = scope, container
        self.input = operator.inputs[0].full_name
        self.outputs = [output.full_name for output in operator.outputs]
        self.kind = guess_proto_type(operator.inputs[0].type)

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node; return the name of what it gives."""
        output = output or self._scope.get_unique_variable_name("nb")
        name = self._scope.get_unique_operator_name(op)
        self._container.add_node(op, list(inputs), [output], name=name, **attributes)
        return output

    def number(self, kind: int, value: float) -> str:
        """Add a constant; return its name."""
        return self._constant(kind, [], [value])

    def row(self, kind: int, values: Sequence[float]) -> str:
        """Add a constant row; return its name."""
        return self._constant(kind, [len(values)], list(values))

    def _constant(self, kind: int, shape: list[int], values: list[float]) -> str:
        name: str = self._scope.get_unique_variable_name("nb")
        self._container.add_initializer(name, kind, shape, values)
        return name


def _add_signed_log(scope: Any, operator: Any, container: Any) -> None:
    draw = _Drawing(scope, operator, container)
    size = draw.add("Add", draw.add("Abs", draw.input), draw.number(draw.kind, 1.0))
    sign, log = draw.add("Sign", draw.input), draw.add("Log", size)
    draw.add("Mul", sign, log, output=draw.outputs[0])


def _add_imputer(scope: Any, operator: Any, container: Any) -> None:
    from onnx import TensorProto

    step = operator.raw_operator
    if step.add_indicator or not (isinstance(step.missing_values, float)):
        raise CannotConvert("a SimpleImputer inside it adds indicators, or fills more than NaN")
    statistics = np.asarray(step.statistics_, dtype=np.float64)
    kept = np.flatnonzero(~np.isnan(statistics))
    draw = _Drawing(scope, operator, container)
    x = draw.add("Gather", draw.input, draw.row(TensorProto.INT64, kept.tolist()), axis=1)
    fill = draw.row(draw.kind, statistics[kept].tolist())
    draw.add("Where", draw.add("IsNaN", x), fill, x, output=draw.outputs[0])


def _add_trees(scope: Any, operator: Any, container: Any) -> None:
    from onnx import TensorProto, numpy_helper

    single, double = TensorProto.FLOAT, TensorProto.DOUBLE
    try:
        forest = grow(type_name(operator.raw_operator), operator.raw_operator)
    except ValueError as error:
        raise CannotConvert(f"{type_name(operator.raw_operator)}: {error}") from None
    draw = _Drawing(scope, operator, container)
    x = draw.add("Cast", draw.input, to=single) if forest.single_input else draw.input
    x = draw.add("Cast", x, to=double)
    attributes = {
        name: numpy_helper.from_array(values)
        if name in ("nodes_splits", "leaf_weights", "nodes_modes")
        else values.tolist()
        for name, values in forest.attributes.items()
    }
    total = draw.add(
        "TreeEnsemble", x, op_domain="ai.onnx.ml", op_version=_OPSET_ML,
        n_targets=1, aggregate_function=1, post_transform=0, **attributes,
    )  # fmt: skip
    if forest.sigmoid_scale is not None:
        total = draw.add("Add", total, draw.number(double, forest.offset))
        total = draw.add("Mul", total, draw.number(double, forest.sigmoid_scale))
        total = draw.add("Sigmoid", total)
    both = draw.add("Concat", draw.add("Sub", draw.number(double, 1.0), total), total, axis=1)
    draw.add("ArgMax", both, axis=1, keepdims=0, output=draw.outputs[0])
    draw.add("Cast", both, to=draw.kind, output=draw.outputs[1])
