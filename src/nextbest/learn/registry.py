"""Runs, versions and the champion, kept in MLflow: the only module that knows MLflow.

Everything goes through ``MlflowClient`` with an explicit address: no global state, no active run.
Order is chosen so that an interrupt leaves no half truth: files and figures first, then the
version, the alias last.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nextbest.errors import RegistryError
from nextbest.learn import artifact, moved, records
from nextbest.learn.reach import require_reachable, without_password
from nextbest.learn.records import Baseline, Dataset, Metrics, Trial, Version
from nextbest.learn.scorer import CLV_COLUMNS, LoadedModel

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

__all__ = ["CHALLENGER", "CHAMPION", "Baseline", "Dataset", "Registry", "Version"]

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
_HISTORY: Final = "nextbest.champion_history"
_SUMMARY: Final = "metrics.json"
_MODEL: Final = "model"
_DATA: Final = "data/artifact"  # MLflow copies the folder it is given into "data".


class Registry:
    """Logs runs, registers versions, and moves the champion.

    Parameters
    ----------
    tracking_uri : MLflow's address; default ``$MLFLOW_TRACKING_URI``, else an SQLite file
        ``<root>/mlflow.db`` with artefacts in ``<root>/mlartifacts``.
    root : folder of the project's state; made when first needed.
    """

    def __init__(self, tracking_uri: str | None, root: Path | str) -> None:
        self.root = Path(root).resolve()
        self._own = self.root / "mlflow.db"
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self._own}"
        self._client: MlflowClient | None = None

    # -------------------------------------------------------------- runs

    def log_run(
        self,
        model_name: str,
        *,
        artifact_dir: Path | str,
        params: Mapping[str, Any],
        metrics: Metrics,
        baseline: Baseline | None = None,
        counts: Mapping[str, int] | None = None,
        tags: Mapping[str, str] | None = None,
        files: Mapping[str, Path | bytes | str] | None = None,
        dataset: Dataset | None = None,
        input_example: pd.DataFrame | None = None,
        trials: Sequence[Trial] = (),
    ) -> str:
        """Log one finished training as an MLflow run with its model, and return the run's id.

        Parameters
        ----------
        model_name : also the name of the experiment.
        artifact_dir : written by ``artifact.save``; it is verified and logged as a pyfunc model.
        params : settings; values become text.
        metrics : split -> metric -> figure; flat in MLflow (``test.auc``, ``test.auc_low``,
            ``test.auc_high``, ``baseline.test.auc``) and nested in ``metrics.json``.
        baseline : the rule to beat, on the same rows.
        counts : for example ``{"n_test": 1653, "n_positive": 266}``.
        tags : further tags; the git commit of the project is added.
        files : path within the run -> a file to copy, text, or bytes.
        dataset : what it learned from.
        input_example : a few raw rows, shown to whoever serves the model.
        trials : candidates of the search before it, each a nested run.

        Raises
        ------
        RegistryError : the store cannot be reached or refuses.
        ArtifactError : the stored model is damaged.
        """
        model = artifact.load(artifact_dir)
        with self._reaching("log a run") as client:
            noted = {"nextbest.model_digest": model.digest, **records.git_tags(self.root)}
            run_id = self._start_run(client, model_name, {**noted, **(tags or {})})
            try:
                self._log_figures(client, run_id, params, metrics, baseline, counts or {})
                if dataset is not None:
                    _log_dataset(client, run_id, dataset)
                with _scratch() as folder:
                    records.stage(files or {}, folder)
                    client.log_artifacts(run_id, str(folder))
                for trial in trials:
                    _log_trial(client, run_id, trial)
                self._log_model(client, run_id, model, Path(artifact_dir), input_example)
                client.set_terminated(run_id, "FINISHED")
            except BaseException as error:
                _end(client, run_id, error)
                raise
        return run_id

    def read_file(self, run_id: str, path: str) -> bytes:
        """Return the content of a file that was logged with a run (``files`` of ``log_run``)."""
        with self._reaching(f"read {path} of run {run_id}") as client, _scratch() as folder:
            return Path(client.download_artifacts(run_id, path, str(folder))).read_bytes()

    def _start_run(self, client: MlflowClient, model_name: str, tags: Mapping[str, str]) -> str:
        given = os.environ.pop("MLFLOW_RUN_ID", None)
        if given:  # `mlflow run` has made the run already and waits for its figures.
            for key, value in tags.items():
                client.set_tag(given, key, value)
            return given
        found = client.get_experiment_by_name(model_name)
        if found is None:
            place = None
            if not self.uri.startswith(("http://", "https://", "databricks")):
                # Without this MLflow would write to ./mlruns of whatever folder one stands in.
                place = (self.root / moved.FOLDER / model_name).as_uri()
            experiment_id = client.create_experiment(model_name, artifact_location=place)
        else:
            experiment_id = found.experiment_id
        run = client.create_run(experiment_id, tags=dict(tags), run_name=model_name)
        return str(run.info.run_id)

    def _log_figures(
        self,
        client: MlflowClient,
        run_id: str,
        params: Mapping[str, Any],
        metrics: Metrics,
        baseline: Baseline | None,
        counts: Mapping[str, int],
    ) -> None:
        from mlflow.entities import Metric as Figure
        from mlflow.entities import Param

        named = {
            **records.flat("", metrics),
            **records.flat("baseline.", baseline.metrics if baseline else {}),
        }
        named |= {name: float(count) for name, count in counts.items()}
        now = int(time.time() * 1000)
        measured = [Figure(name, value, now, 0) for name, value in named.items()]
        settings = [Param(name, str(value)) for name, value in params.items()]
        for i in range(0, len(settings), 100):  # MLflow's limit per call
            client.log_batch(run_id, params=settings[i : i + 100])
        for i in range(0, len(measured), 1000):
            client.log_batch(run_id, metrics=measured[i : i + 1000])
        summary = {
            "metrics": records.nested(metrics),
            "baseline": baseline
            and {"name": baseline.name, "metrics": records.nested(baseline.metrics)},
            "counts": dict(counts),
        }
        client.log_text(run_id, json.dumps(summary, allow_nan=False, indent=1), _SUMMARY)

    def _log_model(
        self,
        client: MlflowClient,
        run_id: str,
        model: LoadedModel,
        artifact_dir: Path,
        input_example: pd.DataFrame | None,
    ) -> None:
        import mlflow.pyfunc
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        experiment_id = client.get_run(run_id).info.experiment_id
        logged = client.create_logged_model(experiment_id, name=_MODEL, source_run_id=run_id)
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        with _scratch() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's own deprecations; no example is no fault.
            target, source = folder / _MODEL, folder / Path(_DATA).name
            shutil.copytree(artifact_dir, source)
            mlflow.pyfunc.save_model(
                path=str(target),
                loader_module=artifact.__name__,
                data_path=str(source),
                signature=_signature(model),
                input_example=None if input_example is None else model.frame(input_example),
                # Given, so that MLflow does not start a process to guess them.
                pip_requirements=[f"{lib}=={v}" for lib, v in model.libraries.items()],
                mlflow_model=Model(
                    artifact_path=logged.artifact_location,
                    model_uuid=logged.model_id,
                    run_id=run_id,
                    model_id=logged.model_id,
                ),
            )
            client.log_model_artifacts(logged.model_id, str(target))
        client.finalize_logged_model(logged.model_id, "READY")

    # -------------------------------------------------------------- versions

    def register(self, name: str, run_id: str, tags: Mapping[str, str] | None = None) -> int:
        """Make the model of a finished run the next version of ``name``; return its number."""
        with self._reaching(f'register "{name}"') as client:
            run = client.get_run(run_id)
            outputs = run.outputs.model_outputs if run.outputs else []
            if run.info.status != "FINISHED" or not outputs:
                raise RegistryError(
                    f"run {run_id}",
                    "it has no complete model",
                    expected="a finished run with a logged model",
                    got=f"status {run.info.status}, {len(outputs)} models",
                    action="Train again.",
                )
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            model_id = outputs[-1].model_id
            # The place itself, not "models:/<id>": MLflow would look that up in its global store.
            place = client.get_logged_model(model_id).artifact_location
            made = client.create_model_version(
                name, place, run_id, tags=dict(tags or {}), model_id=model_id
            )
            return int(made.version)

    def models(self) -> tuple[str, ...]:
        """Names of all registered models."""
        with self._reaching("list models") as client:
            return tuple(sorted(model.name for model in client.search_registered_models()))

    def versions(self, name: str) -> tuple[Version, ...]:
        """All versions of a model, oldest first; empty if it was never registered."""
        with self._reaching(f'list versions of "{name}"') as client:
            return tuple(self._version(client, *row) for row in _rows(client, name))

    def version(self, name: str, version_or_alias: int | str) -> Version:
        """One version by number or alias; ``RegistryError`` if there is none."""
        wanted = str(version_or_alias)
        with self._reaching(f'read version {wanted} of "{name}"') as client:
            rows = _rows(client, name)
            for found, aliases in rows:
                if wanted == str(found.version) or wanted in aliases:
                    return self._version(client, found, aliases)
        names = [str(found.version) for found, _ in rows] + [a for _, own in rows for a in own]
        raise records.no_such_version(name, wanted, names, () if rows else self.models())

    def champion(self, name: str) -> Version | None:
        """The version in use, or None."""
        with self._reaching(f'read the champion of "{name}"') as client:
            row = next((row for row in _rows(client, name) if CHAMPION in row[1]), None)
            return row and self._version(client, *row)

    def _version(self, client: MlflowClient, found: Any, aliases: tuple[str, ...]) -> Version:
        run = client.get_run(found.run_id)
        summary = json.loads(self.read_file(found.run_id, _SUMMARY))
        base = summary["baseline"]
        return Version(
            model=found.name,
            version=int(found.version),
            run_id=found.run_id,
            aliases=aliases,
            created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
            tags={**run.data.tags, **found.tags},
            params=dict(run.data.params),
            metrics=records.figures(summary["metrics"]),
            baseline=Baseline(base["name"], records.figures(base["metrics"])) if base else None,
            counts=summary["counts"],
        )

    # -------------------------------------------------------------- aliases

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Let ``alias`` name this version (``champion`` moves through ``promote``)."""
        if alias == CHAMPION:
            raise RegistryError(f'model "{name}"', "only promote and rollback move the champion")
        self.version(name, version)
        with self._reaching(f'set alias "{alias}" of "{name}"') as client:
            client.set_registered_model_alias(name, alias, str(version))

    def promote(
        self, name: str, version: int, *, reason: str | None = None, forced: bool = False
    ) -> Version:
        """Make a version the champion, and remember the one before it for ``rollback``.

        Parameters: ``reason`` is kept as a tag on the version; ``forced`` says that a gate had
        refused. Raises ``RegistryError`` if there is no such version.
        """
        chosen = self.version(name, version)
        before = self.champion(name)
        with self._reaching(f'promote "{name}"') as client:
            notes = {"nextbest.promoted_at": _now(), "nextbest.forced": str(forced).lower()}
            if reason:
                notes["nextbest.promotion_reason"] = reason
            for key, value in notes.items():
                client.set_model_version_tag(name, str(version), key, value)
            if before is not None and before.version != version:
                self._remember(client, name, [*self._history(client, name), before.version])
            client.set_registered_model_alias(name, CHAMPION, str(version))
            if CHALLENGER in chosen.aliases:
                client.delete_registered_model_alias(name, CHALLENGER)
        return self.version(name, version)

    def rollback(self, name: str, *, reason: str | None = None) -> Version:
        """Give the champion's place back to the version that held it before.

        Raises ``RegistryError`` where there is nothing to go back to.
        """
        current = self.champion(name)
        with self._reaching(f'roll back "{name}"') as client:
            history = self._history(client, name) if current else []
            # An interrupted move may have left the current champion on top of its own history.
            while history and current and history[-1] == current.version:
                history.pop()
            if not history or current is None:
                raise RegistryError(
                    f'model "{name}"',
                    "there is nothing to roll back to",
                    expected="a champion with one before it",
                    got="no champion" if current is None else "no earlier champion",
                )
            previous = history.pop()
            client.set_registered_model_alias(name, CHAMPION, str(previous))
            self._remember(client, name, history)
            note = _now() + (f": {reason}" if reason else "")
            client.set_model_version_tag(
                name, str(current.version), "nextbest.rolled_back_at", note
            )
        return self.version(name, previous)

    def _history(self, client: MlflowClient, name: str) -> list[int]:
        tags = client.get_registered_model(name).tags
        return [int(v) for v in json.loads(tags.get(_HISTORY, "[]"))]

    def _remember(self, client: MlflowClient, name: str, history: Sequence[int]) -> None:
        client.set_registered_model_tag(name, _HISTORY, json.dumps(history[-100:]))

    # -------------------------------------------------------------- files

    def fetch(self, name: str, version_or_alias: int | str, destination: Path | str) -> Path:
        """Download a version's model directory to ``destination``, verify it, and return it.

        Raises ``RegistryError`` if there is no such version or ``destination`` is in use, and
        ``ArtifactError`` if what was downloaded is damaged.
        """
        chosen = self.version(name, version_or_alias)
        target = Path(destination)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RegistryError(str(target), "it is in use", expected="a new or empty directory")
        doing = f'fetch "{name}" version {chosen.version}'
        with self._reaching(doing) as client, _scratch() as folder:
            import mlflow.artifacts

            # The place itself again: "models:/<name>" would be looked up in the global store.
            place = client.get_model_version_download_uri(name, str(chosen.version))
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=place, dst_path=str(folder), tracking_uri=self.uri
            )
            artifact.load(Path(found) / _DATA)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(Path(found) / _DATA, target, dirs_exist_ok=True)
        return target

    # -------------------------------------------------------------- reaching MLflow

    @contextmanager
    def _reaching(self, doing: str) -> Iterator[MlflowClient]:
        """Yield the client; whatever the store or the network raises becomes a RegistryError."""
        try:
            if self._client is None:
                require_reachable(self.uri)
                if self._is_own:
                    moved.follow(self._own, self.root)
                self._client = _mlflow_client(self.uri)
            yield self._client
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _FOREIGN and not isinstance(
                error, OSError
            ):
                raise
            raise RegistryError(
                f"registry {without_password(self.uri)}",
                f"could not {doing}",
                got=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
                action=self._advice(),
            ) from error

    @property
    def _is_own(self) -> bool:
        """Whether this is the project's own file, and not a server or a file of somebody else."""
        return self.uri == f"sqlite:///{self._own}"

    def _advice(self) -> str:
        lost = moved.lost(self._own) if self._is_own else None
        if lost is None:
            return "Check MLFLOW_TRACKING_URI, and that the store is up and writable."
        return (
            f"The files of its runs were in {lost}, which is not there. Put that folder into"
            f" {self.root / moved.FOLDER}; if it is lost, remove {self._own} and train again."
        )


#: Packages whose exceptions must not leak out of here.
_FOREIGN: Final = ("mlflow", "sqlalchemy", "requests", "urllib3", "alembic", "sqlite3")


def _mlflow_client(uri: str) -> MlflowClient:
    # Read when MLflow is first imported. A library does not phone home, draw bars or wait minutes.
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


# ------------------------------------------------------------------ pieces of a run


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nextbest-") as folder:
        yield Path(folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _rows(client: MlflowClient, name: str) -> list[tuple[Any, tuple[str, ...]]]:
    """MLflow's own versions of a model, oldest first, each with its aliases."""
    registered = client.search_registered_models(f"name = '{name}'")
    if not registered:
        return []
    aliases: dict[int, list[str]] = {}
    for alias, number in sorted(registered[0].aliases.items()):
        aliases.setdefault(int(number), []).append(alias)
    found = client.search_model_versions(f"name = '{name}'")
    return [
        (v, tuple(aliases.get(int(v.version), ())))
        for v in sorted(found, key=lambda v: int(v.version))
    ]


def _end(client: MlflowClient, run_id: str, error: BaseException) -> None:
    """Mark a run as stopped: killed where somebody interrupted it, failed otherwise."""
    status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    client.set_terminated(run_id, status)


def _log_trial(client: MlflowClient, parent: str, trial: Trial) -> None:
    """Log one candidate of a search as a run nested in the run that it led to."""
    from mlflow.entities import Param

    tags = {"mlflow.parentRunId": parent}
    if trial.error:
        tags["nextbest.error"] = trial.error[:5_000]
    name = "as defined" if trial.number == 0 else f"trial {trial.number}"
    experiment_id = client.get_run(parent).info.experiment_id
    run_id = str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
    try:
        client.log_batch(run_id, params=[Param(n, str(v)) for n, v in trial.params.items()])
        if trial.value is not None:
            client.log_metric(run_id, f"validation.{trial.metric}", trial.value)
        client.set_terminated(run_id, "FAILED" if trial.value is None else "FINISHED")
    except BaseException as error:
        _end(client, run_id, error)
        raise


def _log_dataset(client: MlflowClient, run_id: str, dataset: Dataset) -> None:
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    entity = Entity(
        name=dataset.name,
        digest=dataset.digest[:36],  # MLflow's column is no wider.
        source_type="nextbest",
        source=json.dumps({"snapshot": dataset.digest}),
        profile=json.dumps({"num_rows": dataset.rows}),
    )
    tag = InputTag("mlflow.data.context", "training")
    client.log_inputs(run_id, [DatasetInput(entity, [tag])])
    client.set_tag(run_id, "nextbest.data_snapshot", dataset.digest)


def _signature(model: LoadedModel) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    # MLflow refuses int64 and booleans where "double" is declared, and a count is one or the other
    # as rows with unknown values come and go. The encoder checks that these are numbers.
    number, text = AnyType(), model.encoder.vocabulary_
    outputs = CLV_COLUMNS if model.kind == "clv" else ("score",)
    return ModelSignature(
        # Optional in MLflow's sense: it may hold unknown values.
        inputs=Schema(
            [ColSpec("string" if c in text else number, c, required=False) for c in model.columns]
        ),
        outputs=Schema([ColSpec("double", c) for c in outputs]),
    )
