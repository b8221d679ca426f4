"""What operators see: Prometheus metrics and JSON logs, neither with personal data.

No metric label and no log field holds a customer id, a request body or a path with an id in it;
decision ids and error ids lead from a log line to the record in the store.

With several worker processes, whichever answers ``/metrics`` answers for all of them: each keeps
its numbers in files of the folder that ``PROMETHEUS_MULTIPROC_DIR`` names, and they are added up.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from nextbest.serve import tracing

__all__ = [
    "METRICS_MEDIA_TYPE",
    "SHARED",
    "Metrics",
    "Series",
    "configure_logging",
    "log",
    "log_all",
]

METRICS_MEDIA_TYPE = CONTENT_TYPE_LATEST
# The folder in which worker processes keep their numbers for each other.
SHARED = "PROMETHEUS_MULTIPROC_DIR"

_LOGGER = logging.getLogger("nextbest.serve")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

M = TypeVar("M", bound=MetricWrapperBase)


class Series(dict[tuple[str | int, ...], M]):
    """The series of one metric, by the values of its labels.

    To ask the metric itself takes longer than to count: it makes texts of the values, and locks.
    """

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, values: tuple[str | int, ...]) -> M:
        one = self[values] = self._metric.labels(*values)
        return one


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
        # Types are the callers' own words, too many for a label.
        self.events = Counter(
            "nextbest_events",
            "Customer events reported, by what became of them.",
            ("status",),
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
        self._stages = Series(self.stage_seconds)
        # How one number is made of those of several workers stands last in each.
        self.ready = self._gauge(
            "nextbest_ready", "1 where a part is ready, 0 where not.", ("part",), "livemin"
        )
        self.refused = self._gauge(
            "nextbest_refused",
            "1 while a part's newest is refused and the last good one stays, 0 otherwise.",
            ("part",),
            "livemax",
        )
        self.bundle = self._gauge(
            "nextbest_bundle_info",
            "1 for the bundle, catalogue and policy in use, 0 for those no longer in use.",
            ("bundle", "catalogue", "policy"),
            "livemax",
        )
        self.scorer = self._gauge(
            "nextbest_scorer_info",
            "1 for what computes a model's scores; lightgbm in place of bitmask is slow.",
            ("model", "kind"),
            "livemax",
        )
        self.bundle_age = self._gauge(
            "nextbest_bundle_age_seconds", "Time since the bundle was made."
        )
        self.profile_age = self._gauge(
            "nextbest_profile_age_seconds",
            "Time from the profiles' as-of moment to the decisions' clock.",
        )
        self.model_age = self._gauge(
            "nextbest_model_age_seconds",
            "Time from the end of what a model has learnt from to the decisions' clock.",
            ("model",),
        )
        self.waiting = self._gauge(
            "nextbest_store_queue", "Writes that wait for the store.", (), "livesum"
        )
        self.settled = self._gauge(
            "nextbest_settled_contacts",
            "Contacts of the last 90 days whose response window has ended.",
            ("offer",),
        )
        self.expected = self._gauge(
            "nextbest_expected_responses",
            "How many of the settled contacts the model expected to be answered.",
            ("offer",),
        )
        self.observed = self._gauge(
            "nextbest_observed_responses",
            "How many of the settled contacts were answered within their window.",
            ("offer",),
        )
        self.decisions_lost = self._gauge(
            "nextbest_decisions_lost",
            "Decisions that were answered and then not kept; 0 unless durability is queued.",
            (),
            "sum",
        )
        self.reload_failures = Counter(
            "nextbest_reload_failures",
            "New bundles, catalogues or policies refused; the last good ones stayed.",
            ("part", "reason"),
            registry=registry,
        )

    def _gauge(
        self, name: str, meaning: str, labels: Sequence[str] = (), workers: Any = "livemostrecent"
    ) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry, multiprocess_mode=workers)

    def use(self, bundle: str, catalogue: str, policy: str) -> None:
        """Say which bundle, catalogue and policy are in use from now on."""
        self._only(self.bundle, {(bundle, catalogue, policy): 1})

    def score_with(self, kinds: Mapping[str, str]) -> None:
        """Say what computes the scores of each model from now on."""
        self._only(self.scorer, {(model, kind): 1 for model, kind in kinds.items()})

    def compare(self, offers: Iterable[tuple[str, int, float, int]]) -> None:
        """Say how offers do: id, settled contacts, expected and observed responses of each."""
        told = list(offers)
        for at, gauge in enumerate((self.settled, self.expected, self.observed), 1):
            self._only(gauge, {(str(one[0]),): float(one[at]) for one in told})

    def _only(self, gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
        """Set these values, and take away what else the gauge said."""
        if SHARED in os.environ:  # there nothing can be taken away, but it can be 0
            for family in gauge.collect():
                for sample in family.samples:
                    labels = tuple(sample.labels[name] for name in gauge._labelnames)
                    if labels not in values:
                        gauge.labels(*labels).set(0)
        else:
            gauge.clear()
        for labels, value in values.items():
            gauge.labels(*labels).set(value)

    @contextmanager
    def stage(self, name: str, traces: Iterable[Any] = ()) -> Iterator[None]:
        """Time a stage of decisions, also in the traces of those who asked for them."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.staged(name, start, traces)

    def staged(self, name: str, start: float, traces: Iterable[Any] = ()) -> None:
        """Note a stage that began at ``start`` by the performance counter and has just ended."""
        seconds = time.perf_counter() - start
        self._stages[name,].observe(seconds)
        tracing.add(name, seconds, traces)

    def page(self) -> bytes:
        """Return the metrics of all workers in Prometheus' text format."""
        shared = os.environ.get(SHARED)
        if shared is None:
            return generate_latest(self.registry)
        _forget_the_dead(Path(shared))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_the_dead(shared: Path) -> None:
    """Drop what worker processes that are gone said of the present; their counts stay counted."""
    for pid in {path.stem.rpartition("_")[2] for path in shared.glob("gauge_live*_*.db")}:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            mark_process_dead(int(pid))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue  # somebody else's, and alive


def _traceback(error: BaseException) -> str:
    """Where an error came from, and of what type; its message may name a customer."""
    if os.environ.get("NEXTBEST_DEBUG"):
        return "".join(traceback.format_exception(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    chain = "" if before is None else _traceback(before) + "\n"
    return chain + "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__


_ENCODER = msgspec.json.Encoder(enc_hook=str)


@lru_cache(maxsize=1)  # most lines are of the same second as the last
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _line(
    moment: float,
    level: int,
    event: str,
    fields: Mapping[str, Any],
    error: BaseException | None,
) -> str:
    """Return a line of the log; ``moment`` in seconds since 1970."""
    second, microsecond = divmod(round(moment * 1e6), 1_000_000)
    line: dict[str, Any] = {
        "time": f"{_second(second)}.{microsecond // 1_000:03d}+00:00",
        "level": logging.getLevelName(level).lower(),
        "event": event,
        **fields,
    }
    if error is not None:
        line["traceback"] = _traceback(error)
    return _ENCODER.encode(line).decode()


class _StandardError(logging.Handler):
    """Writes to whatever standard error is at the moment, not to what it was at the start."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        fields = getattr(record, "fields", {})
        self.write(_line(record.created, record.levelno, record.getMessage(), fields, error))

    def write(self, line: str) -> None:
        """Write one line or more, and no other thread's into them."""
        self.acquire()
        try:
            print(line, file=sys.stderr, flush=True)
        finally:
            self.release()


_OURS = _StandardError()


def configure_logging(level: int = logging.INFO) -> None:
    """Send the API's log to standard error, one JSON object a line; doing it twice is harmless."""
    _LOGGER.addHandler(_OURS)
    _LOGGER.propagate = False
    _LOGGER.setLevel(level)


def log(event: str, *, level: int = logging.INFO, exc_info: bool = False, **fields: Any) -> None:
    """Log ``event`` with fields; never pass personal data."""
    if not _LOGGER.isEnabledFor(level):
        return
    error = sys.exc_info() if exc_info else None
    if _is_ours_alone():
        _OURS.write(_line(time.time(), level, event, fields, error and error[1]))
        return
    # Who called need not be known: looking that up takes longer than writing the line.
    record = logging.LogRecord(_LOGGER.name, level, "", 0, event, None, error)
    record.fields = fields
    _LOGGER.handle(record)


def log_all(event: str, many: Sequence[Mapping[str, Any]]) -> None:
    """Log one event for each of many sets of fields; never pass personal data."""
    if len(many) > 1 and _LOGGER.isEnabledFor(logging.INFO) and _is_ours_alone():
        now = time.time()
        lines = [_line(now, logging.INFO, event, fields, None) for fields in many]
        # One write for all: each would let go of the interpreter, and somebody else may take it.
        _OURS.write("\n".join(lines))
        return
    for fields in many:
        log(event, **fields)


def _is_ours_alone() -> bool:
    """Whether nobody else is told: to make a record for `logging` takes longer than the line."""
    others = _LOGGER.propagate or _LOGGER.filters or _OURS.filters
    return not others and _LOGGER.handlers == [_OURS]
