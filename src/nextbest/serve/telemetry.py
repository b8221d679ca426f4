"""What operators see: Prometheus metrics and JSON logs, neither with personal data.

No metric label and no log field holds a customer id, a request body or a path with an id in it;
decision ids and error ids lead from a log line to the record in the store.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["METRICS_MEDIA_TYPE", "Metrics", "configure_logging", "log"]

METRICS_MEDIA_TYPE = CONTENT_TYPE_LATEST

_LOGGER = logging.getLogger("nextbest.serve")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The metrics of one app, in a registry of its own so that apps in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.decisions = Counter(
            "nextbest_decisions",
            "Decisions made; offer is the first one chosen, or none.",
            ("arm", "channel", "offer"),
            registry=registry,
        )
        self.outcomes = Counter(
            "nextbest_outcomes",
            "Outcomes reported, by type and by what became of them.",
            ("outcome_type", "status"),
            registry=registry,
        )
        self.errors = Counter(
            "nextbest_errors",
            "Problem answers, by their stable code.",
            ("code",),
            registry=registry,
        )
        self.requests = Counter(
            "nextbest_http_requests",
            "HTTP requests answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "nextbest_http_request_seconds",
            "Time from the first byte of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "nextbest_stage_seconds",
            "Time of a decision request spent in each stage.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.ready = Gauge(
            "nextbest_ready", "1 where a part is ready, 0 where not.", ("part",), registry=registry
        )
        self.bundle = Gauge(
            "nextbest_bundle_info",
            "1 for the bundle, catalogue and policy in use.",
            ("bundle", "catalogue", "policy"),
            registry=registry,
        )
        self.scorer = Gauge(
            "nextbest_scorer_info",
            "1 for what computes a model's scores; lightgbm in place of bitmask is slow.",
            ("model", "kind"),
            registry=registry,
        )
        self.bundle_age = Gauge(
            "nextbest_bundle_age_seconds", "Time since the bundle was made.", registry=registry
        )
        self.profile_age = Gauge(
            "nextbest_profile_age_seconds",
            "Time from the profiles' as-of moment to the decisions' clock.",
            registry=registry,
        )
        self.reload_failures = Counter(
            "nextbest_reload_failures",
            "New bundles, catalogues or policies refused; the last good ones stayed.",
            ("part", "reason"),
            registry=registry,
        )

    def use(self, bundle: str, catalogue: str, policy: str) -> None:
        """Say which bundle, catalogue and policy are in use from now on."""
        self.bundle.clear()
        self.bundle.labels(bundle, catalogue, policy).set(1)

    def score_with(self, kinds: Mapping[str, str]) -> None:
        """Say what computes the scores of each model from now on."""
        self.scorer.clear()
        for model, kind in kinds.items():
            self.scorer.labels(model, kind).set(1)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of a decision."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds.labels(name).observe(time.perf_counter() - start)

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _StandardError(logging.Handler):
    """Writes to whatever standard error is at the moment, not to what it was at the start."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def configure_logging(level: int = logging.INFO) -> None:
    """Send the API's log to standard error, one JSON object a line; doing it twice is harmless."""
    if not any(isinstance(handler, _StandardError) for handler in _LOGGER.handlers):
        handler = _StandardError()
        handler.setFormatter(_JsonFormatter())
        _LOGGER.addHandler(handler)
    _LOGGER.propagate = False
    _LOGGER.setLevel(level)


def log(event: str, *, level: int = logging.INFO, exc_info: bool = False, **fields: Any) -> None:
    """Log ``event`` with fields; never pass personal data."""
    _LOGGER.log(level, event, exc_info=exc_info, extra={"fields": fields})
