"""Spans for OpenTelemetry, where it is installed and the standard variables ask for it.

Nothing is traced unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``
names a collector. Service name, sampling and headers follow from the standard variables, too. No
span holds personal data.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

__all__ = ["configure", "request", "span", "stop", "use"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
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
        logging.getLogger("nextbest.serve").warning(
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


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[Span | None]:
    """Trace what happens inside as one span; does nothing where nobody traces."""
    if _provider is None:
        yield None
        return
    tracer = _provider.get_tracer("nextbest.serve")
    with tracer.start_as_current_span(name, attributes=attributes) as current:
        yield current


@contextmanager
def request(headers: Mapping[str, str]) -> Iterator[Span | None]:
    """Trace a request as part of its caller's trace, if ``traceparent`` names one."""
    if _provider is None:
        yield None
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract(dict(headers))
    tracer = _provider.get_tracer("nextbest.serve")
    with tracer.start_as_current_span("request", context, SpanKind.SERVER) as current:
        yield current
