"""Alarms, dashboard and runbook speak of the metrics that there are, and of no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nextbest.serve.telemetry import Metrics

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "serving" / "monitoring"
RULES = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
# What Prometheus adds to every series, and what a histogram's buckets have.
ADDED = {"instance", "job", "le"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((rule["alert"], rule["expr"]) for rule in RULES)
    for panel in DASHBOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def series() -> dict[str, tuple[str, set[str]]]:
    """Every series by name, with its kind and its labels."""
    found = {}
    for metric in vars(Metrics()).values():
        kind = getattr(metric, "_type", None)
        if kind is not None:
            labels = set(metric._labelnames) | ADDED
            found |= {metric._name + suffix: (kind, labels) for suffix in SUFFIXES[kind]}
    return found


@pytest.mark.parametrize(("where", "text"), list(expressions()))
def test_expressions_name_metrics_and_labels_that_exist(where: str, text: str) -> None:
    known = series()
    names = set(re.findall(r"\bnextbest_\w+", text))
    assert names <= set(known), where
    if not names:
        assert text == 'up{job="nextbest"} == 0'
    for name, selector in re.findall(r"\b(nextbest_\w+)\{([^}]*)\}", text):
        used = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', selector))
        assert used <= known[name][1], (where, name)
    grouped = {
        label for group in re.findall(r"by \(([^)]*)\)", text) for label in group.split(", ")
    }
    assert grouped <= set().union(ADDED, *(known[name][1] for name in names)), where
    for rated in re.findall(r"(?:rate|increase)\((nextbest_\w+)", text):
        assert known[rated][0] in ("counter", "histogram"), f"{where}: a gauge has no rate"
    assert text.count("(") == text.count(")") and text.count("{") == text.count("}"), where


def test_a_wrong_name_or_label_would_be_found() -> None:
    known = series()
    assert "nextbest_decisions" not in known
    assert known["nextbest_decisions_total"] == ("counter", {"arm", "channel", "offer", *ADDED})


def test_the_dashboard_shows_every_metric() -> None:
    shown = " ".join(text for _, text in expressions())
    bases = {re.sub("_(bucket|sum|count|total)$", "", name) for name in series()}
    assert {base for base in bases if base not in shown} == set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(places) == len(set(places))


def test_each_alarm_has_its_row_in_the_runbook() -> None:
    manual = (ROOT / "serving" / "README.md").read_text()
    runbook = manual.partition("\n## Runbook\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", runbook, re.MULTILINE)
    assert [name for name, *_ in rows] == [rule["alert"] for rule in RULES]
    assert all(all(cells) for cells in rows)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".")
        placeholders = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
        if "by (" in rule["expr"]:
            assert placeholders <= {label for group in grouped for label in group.split(", ")}


# ------------------------------------------------------------------ containers


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "serving" / "compose.yaml").read_text()))


def test_prometheus_scrapes_the_api_with_these_rules() -> None:
    found = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    assert all((MONITORING / name).is_file() for name in found["rule_files"])
    (job,) = found["scrape_configs"]
    assert job["job_name"] == "nextbest"  # as the alarm of a dead server names it
    (target,) = job["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert service in compose()["services"]
    assert port in compose()["services"][service]["command"]


def test_services_run_without_rights_on_a_file_system_that_they_cannot_write() -> None:
    services = compose()["services"]
    assert {"api", "jobs", "postgres", "mlflow"} <= set(services)
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert any(str(one).startswith("/tmp") for one in service["tmpfs"]), name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
    for name in ("api", "mlflow", "postgres"):
        assert services[name]["restart"] == "unless-stopped"
    assert services["postgres"]["user"] and services["postgres"]["healthcheck"]
    dockerfile = (ROOT / "serving" / "Dockerfile").read_text()
    assert dockerfile.index("\nUSER nextbest") < dockerfile.index("\nENTRYPOINT")
    assert "HEALTHCHECK" in dockerfile


def test_no_password_stands_in_the_compose_file() -> None:
    """It comes from the environment, and without it compose refuses to start."""
    text = (ROOT / "serving" / "compose.yaml").read_text()
    assert text.count("${POSTGRES_PASSWORD:?") == 2 and "PASSWORD: " not in text
    assert compose()["secrets"]["postgres_password"] == {"environment": "POSTGRES_PASSWORD"}
    services = compose()["services"]
    for name in ("api", "jobs"):
        url = services[name]["environment"]["NEXTBEST_STORE"]
        assert re.fullmatch(
            r"postgresql://nextbest:\$\{POSTGRES_PASSWORD:\?.*\}@postgres/nextbest", url
        )
        assert services[name]["depends_on"]["postgres"] == {"condition": "service_healthy"}


def test_every_volume_and_dependency_is_declared() -> None:
    found = compose()
    for name, service in found["services"].items():
        for volume in service.get("volumes", ()):
            source, _, target = volume.partition(":")
            assert source in found["volumes"] or source.startswith("./"), name
            assert target.startswith("/"), name
        assert set(service.get("depends_on", ())) <= set(found["services"]), name
