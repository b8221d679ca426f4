"""`nextbest check` names who reads a sensitive attribute; the commands keep to approvals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import Run

from nextbest import jobs
from nextbest.project import Project, init

ROOT = Path(__file__).resolve().parents[1]


def declare(root: Path, *lines: str) -> None:
    path = root / "serving" / "policy.toml"
    path.write_text("\n".join([path.read_text(), "[sensitive]", *lines]))


def said(root: Path) -> list[str]:
    return [str(fault) for fault in jobs.check_project(Project.open(root)).faults]


def test_check_names_each_model_that_would_read_one(shop: Path, tmp_path: Path) -> None:
    project = Project.open(shop)
    assert said(shop) == []
    declare(shop, 'attributes = ["region"]')
    found = said(shop)
    readers = [
        name for name, model in project.models.items()
        if model.kind != "clv" and "demographics" in {g.name for g in model.groups(project.groups)}
    ]  # fmt: skip
    assert readers and len(found) == len(readers)
    for line, name in zip(found, readers, strict=True):
        assert line.startswith(f'models/{name}.py: model "{name}" reads the sensitive attribute')
    for name in readers:  # leaving it out of the models mends it
        path = shop / "models" / f"{name}.py"
        text = path.read_text()
        if "exclude=(" in text:
            text = text.replace("exclude=(", 'exclude=("region", ')
        else:
            text = text.replace("label=", 'exclude=("region",), label=', 1)
        path.write_text(text)
    # Elsewhere: in one process a module is read once.
    assert said(Path(shutil.copytree(shop, tmp_path / "mended"))) == []


def test_check_names_rule_and_offer(shop: Path) -> None:
    offers = shop / "serving" / "offers.toml"
    text = offers.read_text()
    offers.write_text(text.replace("orders_182d >= 1", "region = 'north'"))
    declare(shop, 'attributes = ["region"]', 'allow_in_features = ["region"]')
    (line,) = said(shop)
    assert line.startswith('serving/offers.toml: offer "coupons-now": suitability')
    assert '"region"' in line


def test_check_names_an_attribute_that_is_no_column(shop: Path) -> None:
    declare(shop, 'attributes = ["regoin"]')
    (line,) = said(shop)
    assert line.endswith('Did you mean "region"?')


def test_what_is_written_for_customers_needs_the_approval(
    shop: Path, cli: Run, tmp_path: Path
) -> None:
    root = shop
    declare(root, 'attributes = ["region"]', 'allow_in_features = ["region"]')
    out = tmp_path / "decisions.csv"
    command = ("decide", "--project", root, "--channel", "mail", "--out", out)
    refused = cli(*command)
    assert refused.code == 1 and "Run `nextbest bias`" in refused.err and not out.exists()
    assert cli(*command[:-2]).code == 0  # looking is free
    # North and south are every other customer, and the toy shop treats them alike.
    found = cli("bias", "--project", root, "--json")
    assert (found.code, found.json["passed"]) == (0, True)
    trail = cli("audit", "list", "--project", root, "--json")
    judged = [one for one in trail.json["entries"] if one["action"] == "judge"]
    assert [one["subject"] for one in judged] == [f"policy {found.json['policy']}"]
    assert judged[0]["detail"]["kind"] == "bias" and judged[0]["detail"]["passed"] is True
    assert cli(*command).code == 0 and out.exists()
    shown = cli("bias", "--project", root)
    assert "This policy may go live" in shown.out and "north" in shown.out


@pytest.mark.parametrize("name", ["alerts.yaml", "dashboard.json", "prometheus.yaml"])
def test_a_new_project_has_the_alarms(tmp_path: Path, name: str) -> None:
    init(tmp_path / "new")
    copied = tmp_path / "new" / "serving" / "monitoring" / name
    assert copied.read_text() == (ROOT / "serving" / "monitoring" / name).read_text()
