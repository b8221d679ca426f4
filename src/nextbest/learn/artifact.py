"""Models on disk that hold numbers and text, never anything that runs.

A model is a directory: ``manifest.json`` (what it is, its columns, encoder, components with
weights, calibrator, library versions, SHA-256 of every other file and of itself), one JSON file
per component with LightGBM's own text beside it where it has trees, and ``golden.json`` (rows and
the scores they must give). Loading reads each file once, checks it, and scores the golden rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from nextbest.errors import ArtifactError, NextbestError
from nextbest.learn.calibration import Calibrator, NoCalibration, calibrator_from_dict
from nextbest.learn.estimators import FeatureEncoder
from nextbest.learn.export import Part, export
from nextbest.learn.scorer import Component, LoadedModel, Logistic, Steps, Trees

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMAT", "KINDS", "load", "save"]

Array = npt.NDArray[np.float64]

FORMAT: Final = 1
KINDS: Final = ("probability", "value", "clv")
MANIFEST: Final = "manifest.json"
GOLDEN: Final = "golden.json"
#: Golden scores may differ by this much: another processor rounds logarithms differently.
TOLERANCE: Final = 1e-9
#: A plain name with a suffix that cannot be executed or unpickled.
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(json|txt)")
_LIBRARIES: Final = ("nextbest", "numpy", "scipy", "scikit-learn", "lightgbm", "pandas")
_INTERVAL_LEVEL: Final = 0.9


# ------------------------------------------------------------------ strict JSON


def _jsonable(value: Any) -> Any:
    """Strict JSON: NaN is null, infinities are the strings "Infinity" and "-Infinity"."""
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_jsonable(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value


def _dump(value: Any) -> bytes:
    text = json.dumps(_jsonable(value), allow_nan=False, ensure_ascii=False, indent=1)
    return (text + "\n").encode()


def _parse(where: str, content: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            where, "it is not JSON", expected="strict JSON in UTF-8", got=str(error)
        ) from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _self_hash(manifest: Mapping[str, Any]) -> str:
    return _sha256(_dump({k: v for k, v in manifest.items() if k != "sha256"}))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


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
        "libraries": {lib: found for lib in _LIBRARIES if (found := _version(lib))},
        "metadata": noted,
    }
    with _damage_named(f'model "{name}"'):
        model = _build(_parse(name, _dump(manifest)), files, digest="")
    golden = _golden_frame(model, estimator, golden_rows)
    scores = model.scores(golden)
    _compare_with_estimator(model, estimator, golden, scores)
    rows = [dict(zip(golden.columns, row, strict=True)) for row in golden.to_numpy(dtype=object)]
    files[GOLDEN] = _dump({"rows": rows, "scores": scores})
    manifest["files"] = {file: _sha256(content) for file, content in sorted(files.items())}
    # Through JSON once, so that what is hashed is what a reader will parse.
    manifest = json.loads(_dump(manifest))
    manifest["sha256"] = _self_hash(manifest)
    target.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (target / file).write_bytes(content)
    # Last, so that a directory with a manifest is complete.
    (target / MANIFEST).write_bytes(_dump(manifest))
    return load(target)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _component_files(
    kind: str, estimator: Any, encoder: FeatureEncoder, golden_rows: pd.DataFrame
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    if kind == "clv":
        content = _dump(estimator.to_dict())
        return {"clv.json": content}, [{"type": "clv", "weight": 1.0, "file": "clv.json"}]
    files: dict[str, bytes] = {}
    components = []
    x = encoder.transform(golden_rows)
    for i, part in enumerate(export(estimator)):
        if part.output != kind:
            raise ArtifactError(
                "estimator", "it does not fit the model's kind", expected=kind, got=part.output
            )
        file = f"part-{i}.json"
        body: dict[str, Any] = {"type": part.type, "steps": part.steps}
        if isinstance(part.body, str):
            body["trees"] = f"part-{i}.txt"
            files[body["trees"]] = part.body.encode()
        else:
            body |= part.body
            body["reference"] = _average_row(part, x)
        files[file] = _dump(body)
        components.append({"type": part.type, "weight": part.weight, "file": file})
    return files, components


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
    x = model.encode(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About feature names; the columns are in order here.
        if model.kind == "probability":
            return model.calibrator.apply(estimator.predict_proba(x)[:, 1])
        return np.asarray(estimator.predict(x), dtype=np.float64)


def _compare_with_estimator(
    model: LoadedModel, estimator: Any, golden: pd.DataFrame, scores: Mapping[str, Array]
) -> None:
    if model.kind == "clv":
        return
    ours = _estimator_scores(model, estimator, golden)
    _compare(f'model "{model.name}"', "the stored form does not repeat the estimator's scores",
             {"score": ours}, scores)  # fmt: skip


def _compare(
    where: str, problem: str, expected: Mapping[str, Array], got: Mapping[str, Array]
) -> None:
    if set(expected) != set(got):
        raise ArtifactError(where, problem, expected=str(sorted(expected)), got=str(sorted(got)))
    for column, known in expected.items():
        found = got[column]
        if len(known) != len(found):
            raise ArtifactError(where, problem, expected=f"{len(known)} rows", got=str(len(found)))
        same = np.isclose(found, known, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
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
    import pandas as pd

    root = Path(directory)
    manifest_bytes = _read(root, MANIFEST)
    manifest = _parse(f"{root}/{MANIFEST}", manifest_bytes)
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
        golden = _parse(f"{root}/{GOLDEN}", files[GOLDEN])
        expected = {
            str(c): np.array([_number(v) for v in values]) for c, values in golden["scores"].items()
        }
        scores = model.scores(model.frame(pd.DataFrame(golden["rows"], dtype=object)))
    _compare(f"{root}/{GOLDEN}", "the model does not repeat its golden scores", expected, scores)
    return model


@contextmanager
def _damage_named(where: str) -> Iterator[None]:
    """Whatever reading strange content raises is damage to the artefact, said in one way."""
    import lightgbm

    try:
        yield
    except ArtifactError:
        raise
    except (
        NextbestError, lightgbm.basic.LightGBMError,
        AttributeError, IndexError, KeyError, TypeError, ValueError,
    ) as error:  # fmt: skip
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
                expected="a plain name ending in .json or .txt",
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
        body = _parse(spec["file"], files[spec["file"]])
        if kind == "clv":
            from nextbest.learn.clv import clv_from_dict

            value_model = clv_from_dict(body)
            continue
        weight = float(spec["weight"])
        width = len(encoder.feature_names_)
        steps = Steps(body["steps"], width)
        if body["type"] == "lightgbm":
            text = files[body["trees"]].decode("utf-8")
            components.append(Trees(text, steps, weight, width))
        elif body["type"] == "logistic":
            components.append(Logistic(body, steps, weight, width))
        else:
            raise ValueError(f"unknown component {body['type']!r}")
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
