"""Documentation cannot drift: whatever a user can name stands in its manual, with its default."""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import inspect
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from test_readme import MANUALS, ROOT, copy_rooms, parse_nextbest, read, routes, worked

import nextbest
from nextbest.cli import app
from nextbest.data.contract import TABLES
from nextbest.data.features import everything
from nextbest.data.groups import BUILT_IN
from nextbest.decide import offers, policy, sensitive
from nextbest.decide.binding import bind
from nextbest.decide.contact import ContactHistory
from nextbest.decide.engine import Audience, Situation, decide
from nextbest.decide.grammar import LANGUAGE
from nextbest.learn.export import EXPORTERS
from nextbest.learn.model import CALIBRATIONS, Gates, Plan
from nextbest.measure.kpi import settings as report_settings
from nextbest.measure.kpi.definitions import BUILT_IN as KPIS
from nextbest.measure.segments import GRID
from nextbest.project import ROOMS, Project
from nextbest.serve import schemas
from nextbest.serve.auth import SCOPES
from nextbest.serve.problems import CODES
from nextbest.serve.telemetry import Metrics

Row = list[str]


def section(manual: str, heading: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", read(manual), re.MULTILINE)
    assert found, f"{manual} has no heading {heading!r}"
    rest = read(manual)[found.end() :]
    return re.split(rf"^#{{1,{len(found[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(manual: str, heading: str, first: str) -> dict[str, Row]:
    """The table under a heading whose first column is ``first``: its rows by their first cell."""
    lines = iter(section(manual, heading).splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            break
    else:
        raise AssertionError(f"{manual}, {heading}: no table of {first}")
    next(lines)
    rows: dict[str, Row] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        # A bar inside code or escaped is no border.
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line.strip("|"))]
        name = cells[0].strip("`")
        assert name not in rows, f"{manual}, {heading}: {name} stands there twice"
        rows[name] = cells[1:]
    return rows


def shown(default: Any) -> str:
    """A default as the manuals write it."""
    if default is None or default in ((), [], {}):
        return "none"
    if isinstance(default, bool):
        return "`true`" if default else "`false`"
    return f"`{default:g}`" if isinstance(default, int | float) else f'`"{default}"`'


# ------------------------------------------------------------------ commands


def every_command() -> Iterator[tuple[str, Any]]:
    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                yield from walk(f"{path} {name}", inner)
        else:
            yield path, command

    yield from walk("nextbest", typer.main.get_command(app))


def test_every_command_and_option_is_in_the_readme() -> None:
    rows = table("README.md", "Commands", "command")
    written = {re.split(r" [\[A-Z]", name)[0]: row for name, row in rows.items()}
    assert list(written) == [path for path, _ in every_command()]
    for path, command in every_command():
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o[:2] == "--"}
        assert set(re.findall(r"--[\w-]+", written[path][1])) == options - {"--help"}, path


def test_every_environment_variable_is_in_the_readme() -> None:
    source = "".join(f.read_text() for f in (ROOT / "src").rglob("*.py"))
    source += "".join((ROOT / room / "app.py").read_text() for room in ("serving",))
    used = set(re.findall(r"NEXTBEST_[A-Z]+", source)) | {"MLFLOW_TRACKING_URI"}
    assert set(table("README.md", "Commands", "environment variable")) == used
    named = {name for m in MANUALS for name in re.findall(r"\bNEXTBEST_[A-Z]+", read(m))}
    assert named <= used


def test_exit_codes() -> None:
    doc = inspect.getdoc(__import__("nextbest.cli", fromlist=["main"]).main) or ""
    codes = set(re.findall(r"\b(\d+) \w", doc))
    (line,) = re.findall(r"^Exit codes: .*$", read("README.md"), re.MULTILINE)
    assert set(re.findall(r"\b(\d+) \w", line)) == codes


# ------------------------------------------------------------------ models/


def test_every_exported_name_is_in_the_manual_of_the_models() -> None:
    for name in nextbest.__all__:
        assert re.search(rf"`(?:@|past: )?{name}\b", read("models/README.md")), name


def test_the_fields_of_a_model() -> None:
    rows = table("models/README.md", "The fields of a model", "field of `Model`")
    fields = {f.name: f for f in dataclasses.fields(nextbest.Model)}
    assert list(rows) == list(fields)
    for name, (_, default) in rows.items():
        needed = fields[name].default is dataclasses.MISSING
        assert (default == "needed") == needed, name
    assert rows["calibration"][1] == f"`{fields['calibration'].default}`"
    assert set(CALIBRATIONS) <= set(re.findall(r"`(\w+)`", rows["calibration"][0]))


LABELS = ("Response", "NoPurchase", "BuysCategory", "TopShareOfValue", "FutureValue")
BASELINES = ("SingleFeature", "TypeRateTimesHistory", "RunRate")


@pytest.mark.parametrize(("heading", "names"), [("Labels", LABELS), ("Baselines", BASELINES)])
def test_labels_and_baselines_with_their_parameters(heading: str, names: tuple[str, ...]) -> None:
    rows = table("models/README.md", heading, heading.lower().rstrip("s"))
    assert tuple(rows) == names
    for name, row in rows.items():
        fields = [f for f in dataclasses.fields(getattr(nextbest, name)) if f.name != "entity"]
        assert re.findall(r"`(\w+)`(?: \([\d.]+\)|[,:]|$)", row[-1]) == [f.name for f in fields], (
            name
        )
        for field in fields:
            if found := re.search(rf"`{field.name}` \(([\d.]+)\)", row[-1]):
                assert float(found[1]) == field.default, (name, field.name)


def test_every_label_and_baseline_that_is_exported_is_listed() -> None:
    values = {name: getattr(nextbest, name) for name in nextbest.__all__}
    classes = {n: v for n, v in values.items() if inspect.isclass(v)}
    # `Label` itself is the form that a label has.
    labels = {n for n, v in classes.items() if hasattr(v, "population")} - {"Label"}
    baselines = {n for n, v in classes.items() if hasattr(v, "needs")}
    assert (labels, baselines) == (set(LABELS), set(BASELINES))


def test_every_estimator_with_a_form_of_its_own() -> None:
    said = section("models/README.md", "Estimators")
    names = {name.partition(".")[2] for name in EXPORTERS} - {
        "LGBMRegressor"
    }  # it is no classifier
    assert not [name for name in names if f"`{name}`" not in said]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "onnx" in extras["optional-dependencies"]


def test_every_feature_group() -> None:
    rows = table("models/README.md", "Features", "group")
    documented = {}
    for name, (entity, source, needs, _) in rows.items():
        requires = tuple(re.findall(r"`([\w.]+)`", needs))
        documented[name.partition("`")[0]] = (entity, source, requires, "live" in name)
    live = {f.group for f in everything(BUILT_IN) if f.live}
    assert documented == {
        g.name: (g.entity, g.source, g.requires, g.name in live) for g in BUILT_IN
    }
    assert f"{len(BUILT_IN)} built-in groups" in read("CHANGELOG.md")


def test_every_model_of_the_project() -> None:
    rows = table("models/README.md", "models/: what we predict", "file")
    assert set(rows) == {f"{name}.py" for name in Project.open(ROOT).models}


# ------------------------------------------------------------------ training/


@pytest.mark.parametrize("name", TABLES)
def test_every_table_of_the_data_contract(name: str) -> None:
    rows = table("training/README.md", name, "column")
    documented = {c: (dtype, must == "yes") for c, (dtype, must, _) in rows.items()}
    spec = {c.name: (c.dtype, c.required) for c in TABLES[name].columns}
    extra = {"anything else", "consent_<channel>"} if name == "customers" else set()
    assert {c: v for c, v in documented.items() if c not in extra} == spec
    assert (
        section("training/README.md", name).strip().startswith("Needed.") == TABLES[name].required
    )


def test_every_setting_of_training_toml(tmp_path: Path) -> None:
    """What the loader says it knows, when it meets what it does not, is what the manual lists."""
    project = copy_rooms(tmp_path)
    file = project / "training" / "training.toml"
    text = file.read_text(encoding="utf-8")
    for heading in ("[project]", "[data]", "[jobs]", "[gates]", "[leakage]", "[drift]",
                    "[models.churn]"):  # fmt: skip
        assert f"\n{heading}\n" in text
        text = text.replace(f"\n{heading}\n", f"\n{heading}\nnonsense = 1\n")
    file.write_text("nonsense = 1\n" + text, encoding="utf-8")
    found = [f for f in Project.open(project).faults() if '"nonsense"' in f.problem]
    known = {f.problem.partition("has no")[0].strip(): f.expected for f in found}
    assert len(known) == 8
    headings = {
        "[project]": "[project]", "[data]": "[data]", "[jobs]": "[jobs]",
        "[gates]": "[gates], and [models.NAME.gates] for one model",
        "[leakage]": "[leakage]", "[drift]": "[drift]",
        "[models.churn]": "[models.NAME]",
    }  # fmt: skip
    assert {*known[""].removeprefix("one of ").split(", ")} == {
        h.strip("[]").partition(".")[0] for h in headings
    }
    for at, heading in headings.items():
        rows = table("training/README.md", heading, "setting")
        assert list(rows) == known[at].removeprefix("one of ").split(", "), at


def test_the_defaults_of_training_toml(tmp_path: Path) -> None:
    project = copy_rooms(tmp_path)
    day = "cut = 2020-01-01\ntrain_from = 2019-01-01\n"
    names = list(Project.open(ROOT).models)
    tables = "\n".join(f"[models.{name}]\n{day}" for name in names)
    (project / "training" / "training.toml").write_text(tables, encoding="utf-8")
    opened = Project.open(project)
    settings, plan = opened.settings, opened.plan(opened.model("churn"))

    def default(heading: str, name: str) -> str:
        return table("training/README.md", heading, "setting")[name][1]

    for name in ("name", "seed"):
        assert default("[project]", name) == shown(getattr(settings, name)), name
    assert default("[project]", "timezone") == '`"UTC"`'
    assert default("[data]", "error_limit") == shown(settings.error_limit)
    assert settings.order == () and default("[jobs]", "order").startswith("`[]`")
    assert list(opened.models) == sorted(opened.models)
    gates = "[gates], and [models.NAME.gates] for one model"
    for field in dataclasses.fields(Gates):
        assert default(gates, field.name) == shown(getattr(plan.gates, field.name)), field.name
    for limits, heading in ((plan.leakage, "[leakage]"), (plan.drift, "[drift]")):
        for field in dataclasses.fields(limits):
            assert default(heading, field.name) == shown(getattr(limits, field.name)), field.name
    assert default("[drift]", "gate") == shown(plan.drift_gate)
    for name in ("evaluation_days", "folds"):
        assert default("[models.NAME]", name) == shown(getattr(plan, name)), name
        assert getattr(plan, name) == {f.name: f.default for f in dataclasses.fields(Plan)}[name]
    step = plan.train_as_of[1] - plan.train_as_of[0]
    assert default("[models.NAME]", "every_days") == shown(step.days)
    assert plan.test_as_of == (plan.cut,) and default("[models.NAME]", "test") == "`[cut]`"


def test_common_errors_are_in_the_words_of_the_code() -> None:
    source = "".join(f.read_text(encoding="utf-8") for f in (ROOT / "src").rglob("*.py"))
    rows = table("training/README.md", "Common errors", "message")
    assert len(rows) > 10
    for message in rows:
        # Names, numbers and places are filled in by the code.
        parts = re.split(r'"[^"]*"|[\d.,]+%?|training/\S+ table|: ', message)
        fixed = max((part.strip() for part in parts), key=len)
        assert fixed in source, message


def test_every_gate_is_explained() -> None:
    rows = table("training/README.md", "Gates, and who moves the champion", "gate")
    source = (ROOT / "src/nextbest/learn/gates.py").read_text()
    source += (ROOT / "src/nextbest/jobs/promotion.py").read_text()
    source += (ROOT / "src/nextbest/learn/train.py").read_text()
    for name in rows:
        assert f'"{name}"' in source, name


def test_the_drawing_of_the_cut_has_the_dates_of_churn() -> None:
    project = Project.open(ROOT)
    churn = project.model("churn")
    plan = project.plan(churn)
    label = section("training/README.md", "The cut, the gap and maturity")
    days = (plan.train_as_of[-1], plan.cut)
    for moment in days:
        assert f"{moment.day} {moment:%b}" in label
    assert f"{churn.label.horizon_days} days" in label


# ------------------------------------------------------------------ serving/report.toml

REPORT_TABLES = {
    "[period]": report_settings.PeriodSettings,
    "[customers]": report_settings.CustomerSettings,
    "[costs]": report_settings.Costs,
    "[attribution]": report_settings.AttributionSettings,
    "[kpis.NAME]": report_settings.OwnKpi,
}


@pytest.mark.parametrize("heading", REPORT_TABLES)
def test_every_field_of_report_toml(heading: str) -> None:
    rows = table("serving/README.md", heading, "field")
    fields = REPORT_TABLES[heading].model_fields
    assert list(rows) == list(fields)
    for name, field in fields.items():
        said = rows[name][-1]
        if field.is_required():
            assert said == "needed", name
        elif heading == "[costs]":
            default = report_settings.Rates.model_fields[name].default
            assert said == ("not stated" if default is None else shown(default)), name
        else:
            assert said == ("`[]`" if field.default == () else shown(field.default)), name


def test_every_table_of_report_toml_and_the_engagement_points() -> None:
    # A comment in a block of TOML looks like a heading.
    text = read("serving/README.md").partition("\n### report.toml\n")[2].partition("\n### ")[0]
    found = {h.strip("[]").partition(".")[0] for h in re.findall(r"^#### (\[.*\])$", text, re.M)}
    assert found == set(report_settings.ReportSettings.model_fields)
    said = section("serving/README.md", "[engagement]")
    points = report_settings.ReportSettings().engagement
    assert ", ".join(f"`{name}` {value:g}" for name, value in points.items()) in said


def test_every_key_figure_and_every_segment() -> None:
    rows = table("serving/README.md", "Key figures", "figure")
    assert {name: row[1] for name, row in rows.items()} == {k.name: k.unit for k in KPIS}
    grid = table("serving/README.md", "Segments", "recency")
    assert {int(name[0]): tuple(cells) for name, cells in grid.items()} == dict(GRID)


# ------------------------------------------------------------------ serving/


def fields_of(model: type[BaseModel]) -> dict[str, str]:
    """Field names of a table with their defaults as the manual writes them."""
    found = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            default = None
        found[name] = "needed" if default is PydanticUndefined else shown(default)
    return found


SERVING_TABLES: Mapping[str, type[BaseModel]] = {
    "[[offers]]": offers.Offer,
    "[clock]": policy.Clock,
    "[profiles]": policy.ProfilePolicy,
    "[channels.NAME]": policy.Channel,
    "[contact]": policy.ContactPolicy,
    "[[contact.caps]]": policy.Cap,
    "[[contact.cool_offs]]": policy.CoolOff,
    "[[contact.exclusions]]": policy.Exclusion,
    "[[contact.quiet_hours]]": policy.Quiet,
    "[arbitration]": policy.Arbitration,
    "[[levers]]": policy.Lever,
    "[[context_weights]]": policy.ContextWeight,
    "[fallback]": policy.Fallback,
    "[holdout]": policy.Holdout,
    "[arms]": policy.Arms,
    "[exploration]": policy.Exploration,
    "[budgets]": policy.Budgets,
    "[gates]": policy.Gates,
    "[sensitive]": sensitive.Sensitive,
    "[sensitive.limits]": sensitive.BiasLimits,
    "Ask for a decision": schemas.DecisionRequest,
    "Report what happened": schemas.OutcomeReport,
    "Report what customers do": schemas.EventReport,
}
# Where the manual's word for a default is better than the value's.
IN_WORDS = {
    ("[clock]", "decide_as_of"): "none: now",
    ("[channels.NAME]", "consent_column"): "`consent_NAME`",
    ("[[offers]]", "description"): '`""`',
    **{
        (f"[[contact.{t}]]", "channels"): "all"
        for t in ("caps", "cool_offs", "exclusions", "quiet_hours")
    },
    ("[[contact.quiet_hours]]", "weekdays"): "all",
}


@pytest.mark.parametrize("heading", SERVING_TABLES)
def test_every_field_of_the_marketers_files_and_of_requests(heading: str) -> None:
    rows = table("serving/README.md", heading, "field")
    fields = fields_of(SERVING_TABLES[heading])
    assert set(rows) == set(fields)
    for name, (_, default) in rows.items():
        assert default == IN_WORDS.get((heading, name), fields[name]), name


def test_no_table_of_the_policy_is_left_out() -> None:
    rows = re.findall(
        r"^\| `(\w+)`",
        section("serving/README.md", "policy.toml").partition("### [clock]")[0],
        re.M,
    )
    assert set(rows) == set(policy.PolicyTables.model_fields)
    known = set(SERVING_TABLES.values()) | {
        policy.PolicyTables,
        policy.Target,
    }
    tables = [
        v for v in vars(policy).values() if inspect.isclass(v) and issubclass(v, policy.Table)
    ]
    assert {t for t in tables if t is not policy.Table} <= known
    assert {f"[[contact.{name}]]" for name in policy.ContactPolicy.model_fields} - {
        "[[contact.count_history]]"
    } <= set(SERVING_TABLES)


def test_the_top_of_the_catalogue() -> None:
    part = section("serving/README.md", "offers.toml").partition("### [[offers]]")[0]
    rows = set(re.findall(r"^\| `(\w+)`", part, re.MULTILINE))
    with pytest.raises(nextbest.NextbestError) as refused:
        offers.Catalogue.from_dict({"nonsense": 1})
    expected = next(f.expected for f in refused.value.faults if "nonsense" in f.problem)
    assert rows == set(expected.removeprefix("one of ").split(", "))


def test_every_error_code_with_its_statuses() -> None:
    rows = table("serving/README.md", "Errors", "code")
    documented = {code: tuple(int(s) for s in row[0].split(", ")) for code, row in rows.items()}
    assert documented == {name: code.statuses for name, code in CODES.items()}


def test_every_call_of_the_api() -> None:
    rows = table("serving/README.md", "The HTTP API", "call")
    assert set(rows) == {f"{method} {path}" for method, path, _ in routes()}
    scopes = {row[0].strip("`") for row in rows.values()} - {"none"}
    assert {*scopes, "admin"} == set(SCOPES)
    assert "`admin` includes the other three" in read("serving/README.md")


def test_every_metric() -> None:
    rows = table("serving/README.md", "For operators", "metric")
    families = Metrics().registry.collect()
    names = {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    assert set(rows) == names


def test_words_that_callers_may_use() -> None:
    outcome = table("serving/README.md", "Report what happened", "field")["outcome_type"][0]
    assert tuple(re.findall(r"`(\w+)`", outcome)) == schemas.OUTCOME_TYPES
    functions = LANGUAGE.rpartition("functions ")[2].split(", ")
    rows = table("serving/README.md", "The rule language", "may be used")
    assert re.findall(r"`(\w+)`", rows["functions"][0]) == functions
    said = section("serving/README.md", "The rule language")
    for name in (*offers.OWN_COLUMNS, *policy.SITUATION_COLUMNS):
        assert f"`{name}`" in said, name


def test_every_column_of_a_batch_file() -> None:
    numbers = worked()
    raw = tomllib.loads((ROOT / "serving/offers.toml").read_text(encoding="utf-8"))
    for offer in raw["offers"]:
        offer |= {"margin": 1.0, "incentive_cost": 0.0, "contact_cost": 0.0, "suitability": {}}
    people = Audience(
        customer_ids=["1"], known=np.array([True]), columns={"orders_182d": np.array([1.0])},
        pair_columns={}, propensity=np.full((1, len(numbers)), 0.5), offer_columns={},
        contacts=ContactHistory.empty(),
    )  # fmt: skip
    rules = policy.Policy.load(ROOT / "serving/policy.toml")
    bound = bind(offers.Catalogue.from_dict(raw), rules, people.known_columns())
    made = decide(
        people, *bound, Situation(channel="mail", decided_at=datetime(2017, 12, 10)), ["d"]
    )
    assert list(table("serving/README.md", "Columns", "column")) == list(made.table())


def test_every_step_of_a_decision() -> None:
    rows = section("serving/README.md", "What happens to an offer, step by step")
    steps = ("candidate", *policy.STEPS, "contact_policy", "value", "holdout", "reach")
    for step in (*steps, "limits", "arbitration", "arm"):
        assert f"`{step}`" in rows, step


# ------------------------------------------------------------------ files that deploy


def test_mlproject_trains_by_the_command_line() -> None:
    project = yaml.safe_load((ROOT / "training/MLproject").read_text())
    environment = yaml.safe_load((ROOT / "training" / project["python_env"]).read_text())
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert required == f">={environment['python']}"
    (entry,) = project["entry_points"].values()
    default = entry["parameters"]["model"]["default"]
    words = entry["command"].format(model=default).split()
    assert words[0] == "nextbest" and parse_nextbest(words[1:]) == ["train"]


def test_the_image_copies_what_there_is_and_starts_what_exists() -> None:
    lines = (ROOT / "serving/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    for name, rest in steps:
        if name == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest
    copied = " ".join(rest for name, rest in steps if name == "COPY")
    assert all(f"{room}/ {room}/" in copied for room in ROOMS)
    last = dict(steps)
    assert last["USER"] not in ("root", "0")
    assert ast.literal_eval(last["ENTRYPOINT"]) == ["nextbest"]
    assert parse_nextbest(ast.literal_eval(last["CMD"])) == ["serve"]
    assert "/healthz" in last["HEALTHCHECK"] and ("GET", "/healthz", "/healthz") in routes()


def test_the_image_is_built_from_what_it_copies_and_nothing_else() -> None:
    rules = [
        (line.startswith("!"), line.strip("!/"))
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]

    def sent(file: str) -> bool:
        """The last rule that names the file, or a folder it lies in, decides."""
        path = PurePosixPath(file)
        kept = True
        for keep, pattern in rules:
            anywhere = pattern.startswith("**/")
            names = path.parts if anywhere else [str(p) for p in (path, *path.parents)]
            if any(fnmatch.fnmatchcase(n, pattern.removeprefix("**/")) for n in names):
                kept = keep
        return kept

    copies = re.findall(
        r"^COPY (?!--from)(.+) \S+$", (ROOT / "serving/Dockerfile").read_text(), re.M
    )
    for source in " ".join(copies).split():
        assert sent(source.rstrip("/")) and (not source.endswith("/") or sent(f"{source}a.py"))
    for file in (".nextbest/store.db", "serving/.nextbest/store.db", ".venv/bin/python",
                 ".git/config", "tests/test_docs.py", "data/customers.csv", "models/.env",
                 "src/nextbest/__pycache__/cli.pyc", "training/mlruns/0/meta.yaml"):  # fmt: skip
        assert not sent(file), file


def test_compose_starts_what_exists() -> None:
    compose = yaml.safe_load((ROOT / "serving/compose.yaml").read_text())
    api, jobs = compose["services"]["api"], compose["services"]["jobs"]
    assert parse_nextbest(api["command"]) == ["serve"]
    assert (ROOT / "serving" / api["build"]["context"] / api["build"]["dockerfile"]).is_file()
    assert set(jobs["environment"]) == {"MLFLOW_TRACKING_URI", "NEXTBEST_STORE"}
    for service in compose["services"].values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")  # nothing is open to the network by default


# ------------------------------------------------------------------ the manuals themselves


@pytest.mark.parametrize("manual", MANUALS)
def test_links_lead_somewhere(manual: str, tmp_path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", read(manual)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / manual).parent / path if path else ROOT / manual
        assert file.is_file(), target
        if manual.partition("/")[0] in ROOMS:  # the rooms are copied without the rest
            assert file.resolve().relative_to(ROOT).parts[0] in ROOMS, target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in slugs, target


@pytest.mark.parametrize("manual", MANUALS)
def test_no_paths_of_somebodys_machine(manual: str) -> None:
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home|Users)/", read(manual))
    assert "@@" not in read(manual)


def test_the_changelog_knows_this_version() -> None:
    assert nextbest.__version__ in read("CHANGELOG.md")
    assert nextbest.__version__ in read("README.md")


def test_the_glossary_has_every_word_of_the_design() -> None:
    words = table("README.md", "Words", "term")
    terms = {term for name in words for term in name.split(", ")}
    assert {
        "propensity", "selection_probability", "uplift", "lift", "eligibility", "contact policy",
        "arbitration", "lever", "holdout", "exploration", "champion", "challenger", "frequency",
        "recency", "T", "monetary_value", "CLV", "HVC", "as_of", "gap", "label window", "maturity",
    } <= terms  # fmt: skip
