"""What operators see: numbers of all workers, drift from outcomes, traces of each stage."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from shop import CUSTOMERS, NOW
from test_runtime import edit, running, value
from test_server import server

from nextbest.serve import tracing
from nextbest.serve.bundle import current_id
from nextbest.serve.runtime import serving_dir
from nextbest.serve.telemetry import SHARED

Serve = Callable[..., TestClient]
QUESTION = {"customer_id": "c01", "channel": "mail"}


def total(page: str, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


# ------------------------------------------------------------------ workers


def test_whichever_worker_answers_counts_for_all(project: Path) -> None:
    """Forty decisions over many connections are forty, whoever is asked, and stay so."""
    before = set(os.environ)
    with server(project, workers=2) as (process, url):

        def ask(number: int) -> int:
            question = {"customer_id": f"stranger {number}", "channel": "mail"}
            return httpx.post(f"{url}/v1/decisions", json=question, timeout=60).status_code

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(40))) == {200}
        pages = [httpx.get(f"{url}/metrics", timeout=60).text for _ in range(8)]
        process.send_signal(signal.SIGTERM)  # killed, it would leave its workers behind
        process.communicate(timeout=60)
    for page in pages:
        assert total(page, "nextbest_decisions_total") == 40
        assert total(page, "nextbest_stage_seconds_count", stage="decide") > 0
        assert total(page, "nextbest_http_request_seconds_count", route="/v1/decisions") == 40
        assert total(page, "nextbest_ready") == 3  # one for each part, not for each worker
        assert total(page, "nextbest_bundle_info", bundle=current_id(serving_dir(project))) == 1
        assert total(page, "nextbest_profile_age_seconds") > 0
    assert set(os.environ) == before


def test_what_a_dead_worker_said_of_the_present_is_forgotten(project: Path, tmp_path: Path) -> None:
    """Its counts stay: a counter that falls would look like a restart."""
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path\n"
        "from nextbest.serve.telemetry import Metrics\n"
        "metrics = Metrics()\n"
        "metrics.outcomes.labels('click', 'stored').inc()\n"
        "metrics.waiting.set(3)\n"
        "metrics.use('a', 'b', 'c'); metrics.use('d', 'e', 'f')\n"
        "metrics.compare([('x', 1, 2.0, 3)]); metrics.compare([('y', 4, 5.0, 6)])\n"
        "print(metrics.page().decode())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), SHARED: str(tmp_path)}
    pages = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment,
            check=True, timeout=120,
        ).stdout
        for _ in range(2)
    ]  # fmt: skip
    for number, page in enumerate(pages, 1):
        assert total(page, "nextbest_outcomes_total") == number
        assert total(page, "nextbest_store_queue") == 3
        assert total(page, "nextbest_bundle_info", bundle="a") == 0
        assert total(page, "nextbest_bundle_info", bundle="d") == 1
        assert total(page, "nextbest_settled_contacts", offer="x") == 0
        assert total(page, "nextbest_settled_contacts", offer="y") == 4


# ------------------------------------------------------------------ drift from outcomes


def test_outcomes_are_held_against_what_the_model_expected(project: Path) -> None:
    """Contacts whose window is over: their propensities added up, and the answers in time."""
    policy = project / "serving" / "policy.toml"
    edit(policy, "at_most = 2", "at_most = 9999")
    early = NOW - timedelta(days=20)
    edit(
        policy, "decide_as_of = 2020-03-02T09:00:00Z", f"decide_as_of = {early:%Y-%m-%dT%H:%M:%SZ}"
    )
    from nextbest.serve.api import create_app

    with TestClient(create_app(project, insecure=True, clock=lambda: NOW)) as client:
        made = []
        for who in CUSTOMERS[:30]:
            asked = client.post("/v1/decisions", json={"customer_id": who, "channel": "mail"})
            made += [(asked.json(), one) for one in asked.json()["offers"]]
        with_a = [(answer, one) for answer, one in made if one["offer_id"] == "a"]
        assert len(with_a) > 10
        for number, (answer, _) in enumerate(with_a[:4]):
            days = 5 if number < 3 else 18  # the fourth answer comes after the window
            client.post(
                "/v1/outcomes",
                json={
                    "outcome_id": f"o{number}", "decision_id": answer["decision_id"],
                    "customer_id": answer["customer_id"], "offer_id": "a",
                    "outcome_type": "response",
                    "occurred_at": (early + timedelta(days=days)).isoformat(),
                },
            )  # fmt: skip
    edit(
        policy, f"decide_as_of = {early:%Y-%m-%dT%H:%M:%SZ}", "decide_as_of = 2020-03-02T09:00:00Z"
    )
    with running(project) as (runtime, metrics):
        runtime.compare()
        expected = sum(one["propensity"] for _, one in with_a)
        assert value(metrics, "nextbest_settled_contacts", offer="a") == len(with_a)
        assert value(metrics, "nextbest_expected_responses", offer="a") == pytest.approx(expected)
        assert value(metrics, "nextbest_observed_responses", offer="a") == 3
        # b states no window, so nobody knows when to count it.
        assert not value(metrics, "nextbest_settled_contacts", offer="b")
    edit(policy, "decide_as_of = 2020-03-02T09:00:00Z", "decide_as_of = 2020-06-02T09:00:00Z")
    with running(project) as (runtime, metrics):
        runtime.compare()  # three months later these contacts say nothing of today's model
        assert value(metrics, "nextbest_settled_contacts", offer="a") is None


def test_ages_and_the_queue_are_measured(project: Path) -> None:
    with running(project) as (runtime, metrics):
        model = runtime.state().bundle.models["churn"]
        model.metadata["cut"] = "2020-02-01T00:00:00"  # type: ignore[index]
        runtime.measure()
        assert value(metrics, "nextbest_model_age_seconds", model="churn") == (30 * 24 + 9) * 3_600
        assert value(metrics, "nextbest_model_age_seconds", model="propensity") is None
        assert value(metrics, "nextbest_store_queue") == 0


# ------------------------------------------------------------------ traces


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)


def test_a_request_is_traced_stage_by_stage_as_part_of_its_callers_trace(
    client: TestClient, spans: InMemorySpanExporter
) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    answer = client.post("/v1/decisions", json=QUESTION, headers=headers).json()
    made = {span.name: span for span in spans.get_finished_spans()}
    request = made["POST /v1/decisions"]
    assert request.parent is not None and request.attributes is not None
    assert f"{request.parent.span_id:016x}" == parent
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["nextbest.decision_id"] == answer["decision_id"]
    for stage in ("decide", "explain", "store"):
        context, above = made[stage].context, made[stage].parent
        assert context is not None and f"{context.trace_id:032x}" == trace
        assert above is not None and request.context is not None
        assert above.span_id == request.context.span_id
        assert request.start_time <= made[stage].start_time < made[stage].end_time


def test_no_span_names_a_person(client: TestClient, spans: InMemorySpanExporter) -> None:
    client.post("/v1/decisions", json={"customer_id": "secret-person", "channel": "mail"})
    client.get("/v1/customers/secret-person")
    client.get("/nothing/secret-person")
    finished = spans.get_finished_spans()
    assert len(finished) >= 5
    assert "secret-person" not in "".join(span.to_json() for span in finished)


def test_nothing_is_traced_unless_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if re.match("OTEL_", name):
            monkeypatch.delenv(name)
    tracing.configure()
    assert tracing._provider is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing.configure()
    assert tracing._provider is None
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "offers")
    tracing.configure()
    provider: Any = tracing._provider
    assert provider is not None and provider.resource.attributes["service.name"] == "offers"
    tracing.stop()
    assert tracing._provider is None


def test_without_the_packages_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import sys

    from nextbest.serve.telemetry import configure_logging

    configure_logging()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    tracing.configure()
    assert tracing._provider is None
    assert "extra otel" in capfd.readouterr().err
