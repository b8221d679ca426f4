"""Bundles and policies change under load without a dropped request; broken ones never go live."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from shop import CUSTOMERS, sources
from test_runtime import edit, running, value

from nextbest.data.profiles import Profiles
from nextbest.errors import ArtifactError, ConfigError
from nextbest.learn import artifact
from nextbest.serve import lastgood, runtime
from nextbest.serve.bundle import ModelSource, current_id, write_bundle
from nextbest.serve.problems import Problem
from nextbest.serve.runtime import Runtime, load_last_good, load_state, serving_dir
from nextbest.serve.server import check_start
from nextbest.serve.telemetry import configure_logging

Serve = Callable[..., TestClient]


def install(project: Path, artefacts: Path, propensity: str = "propensity-2") -> str:
    """Make another bundle the current one, as `nextbest refresh` does."""
    profiles = Profiles.open(artefacts / "profiles")
    return write_bundle(serving_dir(project), sources(artefacts, propensity), profiles)


# ------------------------------------------------------------------ in flight


def test_no_request_is_dropped_while_bundles_and_policies_change(
    project: Path, artefacts: Path, serve: Serve
) -> None:
    """Every answer fits exactly one of the four states that there were.

    The propensities are computed again from the bundle that the answer names, and the two policies
    weigh bread differently: an answer made of two states would show.
    """
    policy = project / "serving" / "policy.toml"
    plain = policy.read_text().replace("at_most = 2", "at_most = 9999")
    texts = [plain.replace("weather = 'rain'", f"channel = '{on}'") for on in ("mail", "email")]
    client = serve(project)
    app_runtime: Runtime = client.app.state.runtime  # type: ignore[attr-defined]
    known: dict[tuple[str, str], Any] = {}
    done = threading.Event()

    def swap() -> None:
        for number in range(24):
            policy.write_text(texts[number % 2])
            if number % 3 == 0:
                install(project, artefacts, ("propensity", "propensity-2")[number // 3 % 2])
            app_runtime.reload()
            state = app_runtime.state()
            known[state.bundle.id, state.rules.content_hash] = state
        done.set()

    def ask(number: int) -> tuple[int, dict[str, Any]]:
        who = CUSTOMERS[number % len(CUSTOMERS)]
        answer = client.post("/v1/decisions", json={"customer_id": who, "channel": "mail"})
        return answer.status_code, answer.json()

    first = app_runtime.state()
    known[first.bundle.id, first.rules.content_hash] = first
    swapper = threading.Thread(target=swap)
    answers: list[tuple[int, dict[str, Any]]] = []
    with ThreadPoolExecutor(6) as pool:
        swapper.start()
        while not done.is_set() or len(answers) < 200:
            answers += pool.map(ask, range(len(answers), len(answers) + 30))
    swapper.join()
    assert {status for status, _ in answers} == {200}
    used = set()
    for _, answer in answers:
        versions = answer["versions"]
        state = known[versions["bundle"], versions["policy"]]
        used.add((versions["bundle"], versions["policy"]))
        assert versions["models"] == state.bundle.model_versions
        # Bread counts a hundred times where the policy says that this holds on mail.
        on_mail = "channel = 'mail'" in state.rules.tables.context_weights[0].when
        for offer in answer["offers"]:
            weight = 100 if on_mail and offer["offer_id"] == "b" else 1
            assert offer["priority"] == pytest.approx(offer["expected_profit"] * weight)
            at = state.shaper.offer_ids.index(offer["offer_id"])
            row = state.shaper.rows([answer["customer_id"]])
            profiles = state.bundle.profiles
            scorer = state.bundle.offer_scorer
            folded = scorer.fold(profiles.offer_matrix[[at]])
            (expected,) = scorer.propensity(
                np.asarray(profiles.matrix[row]), folded, np.asarray(profiles.pairs[row][:, [at]])
            )
            assert offer["propensity"] == expected[0]
    assert len(used) >= 3


# ------------------------------------------------------------------ every file of a bundle


def files_of(template: Path) -> list[str]:
    folder = serving_dir(template)
    bundle = folder / current_id(folder)
    return sorted(str(f.relative_to(bundle)) for f in bundle.rglob("*") if f.is_file())


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One server for the whole matrix: after each refusal it must be as good as before."""
    project = Path(shutil.copytree(template, tmp_path_factory.mktemp("swap") / "shop"))
    with running(project) as (started, metrics):
        yield project, started, metrics


@pytest.mark.parametrize("spoil", [truncate, flip, Path.unlink], ids=["cut", "flipped", "gone"])
def test_each_damaged_file_of_a_new_bundle_is_refused_and_mended(
    server: Any, artefacts: Path, template: Path, spoil: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    project, started, metrics = server
    names = files_of(template)
    assert len(names) > 12 and {"manifest.json", "profiles/matrix.npy"} <= set(names)
    configure_logging()
    for name in names:
        install(project, artefacts, "propensity")
        started.reload()
        before = started.state()
        failures = value(metrics, "nextbest_reload_failures_total", part="bundle") or 0
        capfd.readouterr()
        new = install(project, artefacts)
        spoil(serving_dir(project) / new / name)
        started.reload()
        assert started.state() is before, name
        ready, detail = started.parts()["bundle"]
        assert ready and "the last good one stays" in detail, name
        assert value(metrics, "nextbest_refused", part="bundle") == 1
        assert value(metrics, "nextbest_reload_failures_total", part="bundle") == failures + 1
        (line,) = [json.loads(text) for text in capfd.readouterr().err.splitlines()]
        assert (line["event"], line["part"]) == ("reload refused", "bundle")
        assert line["error"] in detail
        install(project, artefacts)  # the same content, whole
        started.reload()
        assert started.state().bundle.id == new, name
        assert value(metrics, "nextbest_refused", part="bundle") == 0


def test_a_model_that_scores_otherwise_than_when_it_was_made_is_refused(
    project: Path, artefacts: Path, tmp_path: Path
) -> None:
    """All hashes are right; only the golden predictions tell."""
    folder = tmp_path / "propensity"
    shutil.copytree(artefacts / "propensity-2", folder)
    golden = json.loads((folder / "golden.json").read_text())
    golden["scores"]["score"][0] += 1e-6
    (folder / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["golden.json"] = artifact._sha256((folder / "golden.json").read_bytes())
    manifest["sha256"] = artifact._self_hash(manifest)
    (folder / "manifest.json").write_bytes(artifact.dump(manifest))
    with pytest.raises(ArtifactError, match="golden"):
        write_bundle(
            serving_dir(project), {"propensity": ModelSource(folder)},
            Profiles.open(artefacts / "profiles"),
        )  # fmt: skip
    with running(project) as (started, metrics):
        before = started.state()
        new = install(project, artefacts)
        # As if whoever wrote the bundle had not looked: hashes all the way up are mended.
        bundle = serving_dir(project) / new
        shutil.rmtree(bundle / "models" / "propensity")
        shutil.copytree(folder, bundle / "models" / "propensity")
        rename(serving_dir(project), bundle)
        started.reload()
        assert started.state() is before
        assert "golden" in started.parts()["bundle"][1]
        labels = {"part": "bundle", "reason": "artifact-invalid"}
        assert value(metrics, "nextbest_reload_failures_total", **labels) == 1


def rename(folder: Path, bundle: Path) -> None:
    """Give an edited bundle the manifest and the name that fit it."""
    from nextbest.serve import bundle as bundles

    manifest = json.loads((bundle / "manifest.json").read_text())
    created = manifest.pop("created_at")
    path = bundle / "models" / "propensity" / "manifest.json"
    manifest["models"]["propensity"]["manifest_sha256"] = bundles._sha256(path)
    new = bundles._id(manifest)
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "created_at": created}))
    bundle.rename(folder / new)
    (folder / "current.json").write_text(json.dumps({"format": 1, "bundle": new}))


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "bundle": "nowhere"}', None])
def test_a_damaged_pointer_is_refused(project: Path, text: str | None) -> None:
    with running(project) as (started, _):
        before = started.state()
        pointer = serving_dir(project) / "current.json"
        good = pointer.read_text()
        pointer.unlink() if text is None else pointer.write_text(text)
        started.reload()
        assert started.state() is before
        assert "the last good one stays" in started.parts()["bundle"][1]
        pointer.write_text(good)
        started.reload()
        assert "stays" not in started.parts()["bundle"][1]


@pytest.mark.parametrize("file", ["offers.toml", "policy.toml"])
@pytest.mark.parametrize(
    "spoil",
    [truncate, Path.unlink, lambda path: path.write_bytes(b"\xff\xfe\x00"),
     lambda path: path.write_text(path.read_text() + "\nnonsense = 1\n")],
    ids=["cut", "gone", "not text", "unknown"],
)  # fmt: skip
def test_each_file_of_the_marketers_is_refused_where_check_refuses_it(
    project: Path, file: str, spoil: Callable[[Path], Any]
) -> None:
    with running(project) as (started, metrics):
        before, path = started.state(), project / "serving" / file
        good = path.read_text()
        spoil(path)
        with pytest.raises(ConfigError) as refused:
            load_state(project)
        started.reload()
        assert started.state() is before
        ready, detail = started.parts()["configuration"]
        assert ready and str(refused.value) in detail
        assert value(metrics, "nextbest_refused", part="configuration") == 1
        path.write_text(good)
        started.reload()
        assert value(metrics, "nextbest_refused", part="configuration") == 0


def test_a_fault_of_the_machine_is_tried_again(
    project: Path, artefacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file changes, and yet the next look finds the new bundle sound."""
    with running(project) as (started, metrics):
        new = install(project, artefacts)

        def out_of_memory(*_: Any) -> None:
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(runtime, "load_bundle", out_of_memory)
            started.reload()
            assert "MemoryError" in started.parts()["configuration"][1]
            monkeypatch.setattr(runtime, "RETRY_SECONDS", 0.0)
            started._retry_at = 0.0
            started.reload()  # once more in vain: the same fault is counted once
        assert value(metrics, "nextbest_reload_failures_total", reason="internal") == 1
        started.reload()
        assert started.state().bundle.id == new


# ------------------------------------------------------------------ starting again


def test_a_start_goes_on_with_what_was_last_in_use(project: Path, artefacts: Path) -> None:
    with running(project) as (started, _):
        used = started.state().identity
    profiles = Profiles.open(artefacts / "profiles")
    for version in ("2", "3"):  # two bundles later the first is still there
        later = replace(profiles, version=version)
        broken = write_bundle(serving_dir(project), sources(artefacts), later)
        (serving_dir(project) / broken / "manifest.json").write_text("{")
    edit(project / "serving" / "policy.toml", "[clock]", "[clock")
    with pytest.raises(ArtifactError):
        load_state(project)
    check_start(project, "127.0.0.1", 1, insecure=True)
    with running(project) as (started, metrics):
        assert started.state().identity == used
        ready, detail = started.parts()["bundle"]
        assert ready and "the last good one stays" in detail
        assert value(metrics, "nextbest_refused", part="bundle") == 1


def test_without_any_last_good_a_start_says_what_is_wrong(project: Path) -> None:
    edit(project / "serving" / "policy.toml", "[clock]", "[clock")
    with pytest.raises(ConfigError, match="not TOML"):
        check_start(project, "127.0.0.1", 1, insecure=True)
    with running(project) as (started, _), pytest.raises(Problem):
        started.state()


@pytest.mark.parametrize("note", ["{", "[]", '{"bundle": "../x", "catalogue": "a", "policy": "b"}'])
def test_a_damaged_note_is_no_last_good(project: Path, note: str) -> None:
    (serving_dir(project) / lastgood.FILE).write_text(note)
    assert load_last_good(project) is None


def test_last_good_is_gone_with_its_archive(project: Path) -> None:
    with running(project):
        pass
    assert load_last_good(project) is not None
    shutil.rmtree(project / ".nextbest" / "archive")
    assert load_last_good(project) is None


# ------------------------------------------------------------------ the registry


def test_serving_asks_no_registry(
    project: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither at the start nor while it runs: every connection but those to the disk is refused."""
    import socket

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    asked: list[Any] = []

    def refuse(_socket: Any, address: Any) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    client = serve(project)
    question = {"customer_id": "c01", "channel": "mail", "explain": True}
    assert client.post("/v1/decisions", json=question).status_code == 200
    assert client.get("/readyz").json()["ready"] is True
    edit(project / "serving" / "policy.toml", "at_most = 2", "at_most = 3")
    app_runtime: Runtime = client.app.state.runtime  # type: ignore[attr-defined]
    before = app_runtime.state()
    app_runtime.reload()
    assert app_runtime.state() is not before
    assert asked == []
