"""Models on disk that hold numbers and text, never anything that runs.

A model is a directory: ``manifest.json`` (what it is, its columns, encoder, components with
weights, calibrator, library versions, SHA-256 of every other file and of itself), one JSON file
per component with LightGBM's own text or an ONNX graph beside it where it has one, and
``golden.json`` (rows and the scores they must give). Loading reads each file once, checks it, and
scores the golden rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from nextbest.errors import ArtifactError, NextbestError
from nextbest.learn.calibration import Calibrator, NoCalibration, calibrator_from_dict
from nextbest.learn.components import TOLERANCE, Component, Logistic, Steps, Trees
from nextbest.learn.encoding import FeatureEncoder
from nextbest.learn.onnx import PACKAGES, Graph
from nextbest.learn.scorer import LoadedModel, raw_column_of
from nextbest.learn.strict_json import dump, number, parse

if TYPE_CHECKING:
    import pandas as pd

    from nextbest.learn.export import Part

__all__ = ["FORMAT", "KINDS", "load", "save"]

Array = npt.NDArray[np.float64]

FORMAT: Final = 1
KINDS: Final = ("probability", "value", "clv")
MANIFEST: Final = "manifest.json"
GOLDEN: Final = "golden.json"
#: A plain name with a suffix that cannot be executed or unpickled.
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(json|txt|onnx)")
_LIBRARIES: Final = ("nextbest", "numpy", "scipy", "scikit-learn", "lightgbm", "pandas")
_INTERVAL_LEVEL: Final = 0.9
#: Component type -> the key and the suffix of the file beside its JSON.
_BESIDE: Final = {"lightgbm": ("trees", "txt"), "onnx": ("graph", "onnx")}
#: Customers that the effects of an ONNX graph's columns are measured against.
_BACKGROUND_ROWS: Final = 5


# ------------------------------------------------------------------ hashes


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _self_hash(manifest: Mapping[str, Any]) -> str:
    return _sha256(dump({k: v for k, v in manifest.items() if k != "sha256"}))


# ------------------------------------------------------------------ saving


def save(
    directory: Path | str,
    *,
    name: str,
    kind: str,
    estimator: Any,
    encoder: FeatureEncoder,
    calibrator: Calibrator | None = None,
    golden_rows: pd.DataFrame,
    metadata: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Write a fitted model as numbers and text, and return it as it will be loaded.

    Parameters
    ----------
    directory : where to write; it must not exist, or be empty.
    name : the model's plain name, such as ``churn``.
    kind : ``probability`` (a fitted binary classifier), ``value`` (a fitted regressor) or ``clv``
        (a fitted ``CustomerLifetimeValue``).
    estimator : the fitted model; ``export.exportable`` says beforehand whether it can be stored.
    encoder : fitted on the raw columns; ``estimator`` reads what it gives. A ``clv`` model needs
        one whose columns are those of its RFM table.
    calibrator : from score to probability; none for ``value`` and ``clv``.
    golden_rows : raw input rows, some with unknown values, whose scores are stored beside them.
        One row in which everything is unknown is added where the model can score it.
    metadata : what the maker wants to note; plain JSON types. ``interval_level`` (0-1) sets the
        width of a ``clv`` model's interval.

    Raises
    ------
    ArtifactError : the estimator cannot be stored safely, what was stored does not give the
        estimator's own scores, or the directory is in use.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(str(target), "it is in use", expected="a new or empty directory")
    if kind not in KINDS:
        raise ArtifactError(
            f'model "{name}"', "unknown kind", expected=" or ".join(KINDS), got=kind
        )
    noted = dict(metadata or {})
    if kind == "clv":
        noted.setdefault("interval_level", _INTERVAL_LEVEL)
    calibrator = calibrator or NoCalibration()
    files, components = _component_files(kind, estimator, encoder, golden_rows)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "kind": kind,
        "columns": [{"name": c, "kind": encoder.kinds_[c]} for c in encoder.columns_],
        "encoder": encoder.to_dict(),
        "components": components,
        "calibrator": calibrator.to_dict(),
        "libraries": {lib: found for lib in _libraries(components) if (found := _version(lib))},
        "metadata": noted,
    }
    with _damage_named(f'model "{name}"'):
        model = _build(parse(name, dump(manifest)), files, digest="")
    golden = _golden_frame(model, estimator, golden_rows)
    _compare_with_estimator(model, estimator, golden)
    scores = model.scores(golden)
    if model.tolerance > TOLERANCE:
        # Held apart: a calibrator may turn a difference in the seventh digit into a step.
        scores["uncalibrated"] = model.uncalibrated(model.encode(golden))
    rows = [dict(zip(golden.columns, row, strict=True)) for row in golden.to_numpy(dtype=object)]
    files[GOLDEN] = dump({"rows": rows, "scores": scores})
    manifest["files"] = {file: _sha256(content) for file, content in sorted(files.items())}
    # Through JSON once, so that what is hashed is what a reader will parse.
    manifest = json.loads(dump(manifest))
    manifest["sha256"] = _self_hash(manifest)
    target.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (target / file).write_bytes(content)
    # Last, so that a directory with a manifest is complete.
    (target / MANIFEST).write_bytes(dump(manifest))
    return load(target)


def _libraries(components: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    graphs = any(component["type"] == "onnx" for component in components)
    return (*_LIBRARIES, *PACKAGES) if graphs else _LIBRARIES


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _component_files(
    kind: str, estimator: Any, encoder: FeatureEncoder, golden_rows: pd.DataFrame
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    if kind == "clv":
        content = dump(estimator.to_dict())
        return {"clv.json": content}, [{"type": "clv", "weight": 1.0, "file": "clv.json"}]
    # Serving only loads; taking estimators apart needs scikit-learn.
    from nextbest.learn.export import export

    files: dict[str, bytes] = {}
    components = []
    x = encoder.transform(golden_rows)
    nothing_known = encoder.transform({column: [None] for column in encoder.columns_})
    for i, part in enumerate(export(estimator, np.vstack([x, nothing_known]))):
        if part.output != kind:
            raise ArtifactError(
                "estimator", "it does not fit the model's kind", expected=kind, got=part.output
            )
        file = f"part-{i}.json"
        body: dict[str, Any] = {"type": part.type, "steps": part.steps, **part.body}
        if part.type == "logistic":
            body["reference"] = _average_row(part, x)
        else:
            key, suffix = _BESIDE[part.type]
            body[key] = f"part-{i}.{suffix}"
            files[body[key]] = part.content
        if part.type == "onnx":
            body["background"] = _background(part, x)
        files[file] = dump(body)
        components.append({"type": part.type, "weight": part.weight, "file": file})
    return files, components


def _background(part: Part, x: Array) -> Array:
    """A few stored customers that the graph can score."""
    known = np.isfinite(Steps(part.steps, x.shape[1])(x)).all(axis=1)
    return np.asarray(x[known | part.body["takes_unknown"]][:_BACKGROUND_ROWS])


def _average_row(part: Part, x: Array) -> Array:
    """The average training row after preprocessing, against which contributions are measured."""
    if part.steps and part.steps[-1]["op"] == "standardize" and part.steps[-1]["mean"] is not None:
        return np.zeros(len(part.steps[-1]["mean"]))
    # Nothing in the estimator remembers it; the golden rows are a small sample of the training.
    z = Steps(part.steps, x.shape[1])(x)
    known = np.isfinite(z)
    return np.asarray(np.where(known, z, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def _golden_frame(model: LoadedModel, estimator: Any, given: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    if not len(given):
        raise ArtifactError(f'model "{model.name}"', "no golden rows", expected="at least 1")
    frame = model.frame(given)
    unknown = model.frame(pd.DataFrame([dict.fromkeys(model.columns)]))
    try:
        if model.kind != "clv":
            _estimator_scores(model, estimator, unknown)
    except ValueError:
        return frame  # The estimator itself refuses unknown values.
    return pd.concat([frame, unknown], ignore_index=True)


def _estimator_scores(model: LoadedModel, estimator: Any, frame: pd.DataFrame) -> Array:
    """What the estimator itself says of some rows, before calibration."""
    x = model.encode(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About feature names; the columns are in order here.
        if model.kind == "probability":
            return np.asarray(estimator.predict_proba(x)[:, 1], dtype=np.float64)
        return np.asarray(estimator.predict(x), dtype=np.float64)


def _compare_with_estimator(model: LoadedModel, estimator: Any, golden: pd.DataFrame) -> None:
    if model.kind == "clv":
        return
    _compare(
        f'model "{model.name}"', "the stored form does not repeat the estimator's scores",
        {"score": _estimator_scores(model, estimator, golden)},
        {"score": model.uncalibrated(model.encode(golden))}, model.tolerance,
    )  # fmt: skip


def _compare_with_golden(where: str, model: LoadedModel, golden: Mapping[str, Any]) -> None:
    expected = {
        str(column): np.array([number(v) for v in values])
        for column, values in golden["scores"].items()
    }
    frame = {
        c: [row[c] if c in model.encoder.vocabulary_ else number(row[c]) for row in golden["rows"]]
        for c in model.columns
    }
    problem = "the model does not repeat its golden scores"
    if "uncalibrated" in expected:
        before = expected.pop("uncalibrated")
        found = model.uncalibrated(model.encode(frame))
        _compare(where, problem, {"score": before}, {"score": found}, model.tolerance)
        _compare(where, problem, expected, {"score": model.calibrator.apply(before)})
    else:
        _compare(where, problem, expected, model.scores(frame))


def _compare(
    where: str,
    problem: str,
    expected: Mapping[str, Array],
    got: Mapping[str, Array],
    tolerance: float = TOLERANCE,
) -> None:
    if set(expected) != set(got):
        raise ArtifactError(where, problem, expected=str(sorted(expected)), got=str(sorted(got)))
    for column, known in expected.items():
        found = got[column]
        if len(known) != len(found):
            raise ArtifactError(where, problem, expected=f"{len(known)} rows", got=str(len(found)))
        same = np.isclose(found, known, rtol=tolerance, atol=tolerance, equal_nan=True)
        if not same.all():
            row = int(np.argmin(same))
            raise ArtifactError(
                where,
                f"{problem}: {column} in row {row}",
                expected=repr(float(known[row])),
                got=repr(float(found[row])),
                action="Train the model again.",
            )


# ------------------------------------------------------------------ loading


def load(directory: Path | str) -> LoadedModel:
    """Read a stored model, and check that it is whole, harmless and scores as it did when saved.

    Raises ``ArtifactError``, naming the file, row or value, if anything is missing, damaged,
    unexpected (a pickle for example), written by a newer nextbest, or scores otherwise.
    """
    root = Path(directory)
    manifest_bytes = _read(root, MANIFEST)
    manifest = parse(f"{root}/{MANIFEST}", manifest_bytes)
    with _damage_named(f"{root}/{MANIFEST}"):
        if manifest["format"] != FORMAT:
            raise ArtifactError(
                str(root),
                "this model has another format",
                expected=f"format {FORMAT}",
                got=str(manifest["format"]),
                action="Use the nextbest that wrote it, or train again.",
            )
        if manifest["sha256"] != _self_hash(manifest):
            raise ArtifactError(f"{root}/{MANIFEST}", "it was changed after it was written",
                                action="Restore it, or train the model again.")  # fmt: skip
        files = _verified_files(root, manifest["files"])
        model = _build(manifest, files, digest=_sha256(manifest_bytes))
        golden = parse(f"{root}/{GOLDEN}", files[GOLDEN])
        try:
            _compare_with_golden(f"{root}/{GOLDEN}", model, golden)
        except ArtifactError:
            # Trees that do not come true compiled get a second chance with LightGBM itself.
            if not any([c.fall_back() for c in model.components if isinstance(c, Trees)]):
                raise
            _compare_with_golden(f"{root}/{GOLDEN}", model, golden)
    return model


@contextmanager
def _damage_named(where: str) -> Iterator[None]:
    """Whatever reading strange content raises is damage to the artefact, said in one way."""
    try:
        yield
    except ArtifactError:
        raise
    except (NextbestError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            where,
            "the model cannot be read",
            expected="what nextbest wrote",
            got=f"{type(error).__name__}: {error}",
            action="Restore it, or train the model again.",
        ) from error


def _read(root: Path, file: str) -> bytes:
    path = root / file
    try:
        if path.is_symlink() or not path.is_file():
            raise FileNotFoundError("not a plain file")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            str(path), "it cannot be read", expected="a file of a stored model", got=str(error)
        ) from None


def _verified_files(root: Path, hashes: Mapping[str, str]) -> dict[str, bytes]:
    for file in hashes:
        if not _SAFE_NAME.fullmatch(file):
            raise ArtifactError(
                f"{root}/{MANIFEST}",
                "it names a file that no model holds",
                expected="a plain name ending in .json, .txt or .onnx",
                got=repr(file),
            )
    present = {entry.name for entry in os.scandir(root)}
    extra = sorted(present - set(hashes) - {MANIFEST})
    if extra:
        raise ArtifactError(
            f"{root}/{extra[0]}",
            "this file is not in the manifest",
            expected="only files that the manifest names; pickles are never loaded",
            got=", ".join(extra),
            action="Remove it if you do not know where it came from.",
        )
    files = {file: _read(root, file) for file in hashes}
    for file, content in files.items():
        if _sha256(content) != hashes[file]:
            raise ArtifactError(
                f"{root}/{file}",
                "it was changed after it was written",
                expected=f"SHA-256 {hashes[file][:12]}...",
                got=f"{_sha256(content)[:12]}...",
                action="Restore it, or train the model again.",
            )
    return files


def _build(manifest: Mapping[str, Any], files: Mapping[str, bytes], digest: str) -> LoadedModel:
    encoder = FeatureEncoder.from_dict(manifest["encoder"])
    kind = manifest["kind"]
    if kind not in KINDS:
        raise ValueError(f"its kind is {kind!r}")
    components: list[Component] = []
    value_model: Any = None
    for spec in manifest["components"]:
        body = parse(spec["file"], files[spec["file"]])
        if kind == "clv":
            from nextbest.learn.clv import clv_from_dict

            value_model = clv_from_dict(body)
        else:
            components.append(_component(body, float(spec["weight"]), encoder, files))
    return LoadedModel(
        name=str(manifest["name"]),
        kind=kind,
        digest=digest,
        encoder=encoder,
        components=tuple(components),
        calibrator=calibrator_from_dict(manifest["calibrator"]),
        value_model=value_model,
        metadata=manifest["metadata"],
        libraries=manifest["libraries"],
    )


def _component(
    body: Mapping[str, Any], weight: float, encoder: FeatureEncoder, files: Mapping[str, bytes]
) -> Component:
    width = len(encoder.feature_names_)
    steps = Steps(body["steps"], width)
    match body["type"]:
        case "lightgbm":
            return Trees(files[body["trees"]].decode("utf-8"), steps, weight, width)
        case "logistic":
            return Logistic(body, steps, weight, width)
        case "onnx":
            rows = [[number(v) for v in row] for row in body["background"]]
            return Graph(
                files[body["graph"]], steps, weight, raw_column_of(encoder),
                tolerance=float(body["tolerance"]), takes_unknown=bool(body["takes_unknown"]),
                background=np.array(rows, dtype=np.float64).reshape(-1, width),
            )  # fmt: skip
        case other:
            raise ValueError(f"unknown component {other!r}")


# ------------------------------------------------------------------ MLflow's way in


class _PyFunc:
    """What ``mlflow.pyfunc.load_model`` wraps: the same model, the same numbers, as a frame."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    def predict(
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return one row of scores per input row: ``score``, or a value model's columns."""
        import pandas as pd

        return pd.DataFrame(self.model.scores(model_input))


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> _PyFunc:
    """Load for MLflow, which calls this by name (``loader_module="nextbest.learn.artifact"``)."""
    return _PyFunc(load(path))
