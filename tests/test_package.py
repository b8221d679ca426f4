"""The package as users get it: quick to import, whole as a wheel, with one public surface."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_project import ROOT, tree

import nextbest
from nextbest.project import ROOMS

SRC = Path(nextbest.__file__).parents[1]

PUBLIC = [
    "BetaGeoNBD", "Block", "BuysCategory", "CustomerLifetimeValue", "Examples", "Feature",
    "FeatureGroup", "FutureValue", "GammaGamma", "History", "Label", "Live", "Model",
    "ModifiedBetaGeoNBD", "NextbestError", "NoPurchase", "ParetoNBD", "Past", "Response",
    "RunRate", "SignedLog1p", "SingleFeature", "TopShareOfValue", "TypeRateTimesHistory",
    "__version__", "average", "blend", "create_app", "days_between", "deviation",
    "feature_group", "follow", "linear", "select", "summarise", "total",
]  # fmt: skip

HEAVY = (
    "pandas", "numpy", "ibis", "duckdb", "mlflow", "lightgbm", "fastapi", "sklearn", "scipy",
    "pyarrow", "pydantic", "sqlalchemy", "matplotlib", "uvicorn", "sqlglot",
)  # fmt: skip


def python(*arguments: str, path: Path = SRC) -> str:
    """Run a fresh interpreter that sees the package at ``path``, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(code: str) -> set[str]:
    said = python("-c", f"import sys\n{code}\nprint(*sys.modules)")
    return set(said.splitlines()[-1].split())


# ------------------------------------------------------------------ imports


@pytest.mark.parametrize(
    "code",
    [
        "import nextbest",
        "from nextbest.cli import app; import typer; typer.main.get_command(app)",
        "import nextbest.errors",
        "import nextbest.serve",
    ],
)
def test_importing_loads_no_heavy_library(code: str) -> None:
    assert sorted(loaded_by(code) & set(HEAVY)) == []


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from nextbest.cli import main\n"
        "sys.argv = ['nextbest', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main()"
    )
    assert sorted(loaded_by(code) & {*HEAVY, "nextbest.project", "nextbest.jobs"}) == []


def test_the_serving_process_trains_nothing_and_draws_nothing() -> None:
    code = "import nextbest.serve.api, nextbest.serve.server, nextbest.serve.batch"
    kept_out = {"mlflow", "matplotlib", "nextbest.learn.train", "nextbest.learn.registry",
                "nextbest.project", "nextbest.jobs"}  # fmt: skip
    assert sorted(loaded_by(code) & kept_out) == []


# ------------------------------------------------------------------ the public surface


def test_what_a_room_may_import_is_this() -> None:
    assert nextbest.__all__ == PUBLIC
    assert dir(nextbest) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(nextbest, name)
    if name != "__version__":
        assert value.__name__ == name
        assert (value.__doc__ or "").strip()


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Modell'"):
        nextbest.Modell  # noqa: B018 - asking is what is tested


def test_the_rooms_import_public_names_only() -> None:
    import ast

    for path in (p for room in ROOMS for p in (ROOT / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nextbest"):
                assert node.module == "nextbest", path
                assert {a.name for a in node.names} <= set(PUBLIC), path


# ------------------------------------------------------------------ the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed into a folder of its own, away from the checkout."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
               "--disable-pip-version-check", "--target", str(target), str(wheel)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


def test_the_wheel_holds_the_code_and_the_rooms_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    scaffold = {f"nextbest/_scaffold/{name}" for name in tree(ROOT)}
    assert {n for n in names if n.startswith("nextbest/_scaffold/")} == scaffold
    code = {
        f"nextbest/{p.relative_to(SRC / 'nextbest').as_posix()}"
        for p in (SRC / "nextbest").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {n for n in names if n.startswith("nextbest/")} == scaffold | code
    assert "nextbest/py.typed" in names
    rest = {n.partition("/")[2] for n in names if not n.startswith("nextbest/")}
    assert rest == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def test_init_from_the_wheel_and_from_the_checkout_make_the_same_project(
    installed: Path, tmp_path: Path
) -> None:
    for name, path in (("wheel", installed), ("checkout", SRC)):
        where = python("-c", "import nextbest; print(nextbest.__file__)", path=path)
        assert where.startswith(str(path))
        python("-m", "nextbest", "init", str(tmp_path / name), path=path)
        made = {p.relative_to(tmp_path / name).as_posix() for p in (tmp_path / name).rglob("*")}
        assert not [n for n in made if "__pycache__" in n or ".nextbest" in n]
        assert tree(tmp_path / name) == tree(ROOT)
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == sorted(ROOMS)


def test_a_project_from_the_wheel_has_no_fault(installed: Path, tmp_path: Path) -> None:
    python("-m", "nextbest", "init", str(tmp_path / "shop"), path=installed)
    said = python(
        "-m", "nextbest", "check", "--no-data", "--project", str(tmp_path / "shop"), path=installed
    )
    assert said == "No faults.\n"


def test_the_version_is_stated_once(installed: Path) -> None:
    (folder,) = installed.glob("nextbest-*.dist-info")
    assert f"\nVersion: {nextbest.__version__}\n" in (folder / "METADATA").read_text()
    assert python("-m", "nextbest", "--version", path=installed).endswith(
        f"nextbest {nextbest.__version__}\n"
    )
