"""Spans for OpenTelemetry, where it is installed and the standard variables ask for it.

Nothing is traced unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``
names a collector. Service name, sampling and headers follow from the standard variables, too. No
span holds personal data.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

__all__ = ["add", "configure", "here", "is_on", "request", "stop", "use"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NAME = "nextbest.serve"
# Shared, so that a request that nobody traces pays for no object.
_NOTHING: AbstractContextManager[None] = nullcontext()
_provider: TracerProvider | None = None


def configure() -> None:
    """Start tracing if the environment asks for it; without the packages the log says so."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logging.getLogger(_NAME).warning(
            "no traces: install nextbest with its extra otel, or unset OTEL_EXPORTER_OTLP_ENDPOINT"
        )
        return
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def use(provider: TracerProvider | None) -> None:
    """Give all spans from now on to this provider; None ends tracing."""
    global _provider
    _provider = provider


def stop() -> None:
    """Send what waits, and end tracing."""
    if _provider is not None:
        _provider.shutdown()
        use(None)


def is_on() -> bool:
    """Tell whether anybody traces."""
    return _provider is not None


def here() -> Context | None:
    """Return the trace that this code works for; None where nobody traces."""
    if _provider is None:
        return None
    from opentelemetry.context import get_current

    return get_current()


def add(name: str, seconds: float, traces: Iterable[Context | None]) -> None:
    """Add to each trace, once, a span of something that took so long and has just ended."""
    if _provider is None:
        return
    tracer, end = _provider.get_tracer(_NAME), time.time_ns()
    for trace in {id(one): one for one in traces if one is not None}.values():
        tracer.start_span(name, trace, start_time=end - int(seconds * 1e9)).end(end)


def request(headers: Iterable[tuple[bytes, bytes]]) -> AbstractContextManager[Span | None]:
    """Trace a request as part of its caller's trace, if ``traceparent`` names one."""
    if _provider is None:
        return _NOTHING
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    told = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    context = TraceContextTextMapPropagator().extract(told)
    tracer = _provider.get_tracer(_NAME)
    return tracer.start_as_current_span("request", context, SpanKind.SERVER)
