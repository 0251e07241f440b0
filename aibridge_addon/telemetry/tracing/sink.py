"""The sink that turns records into spans and metrics of OpenTelemetry. `docs/tracing.md` explains it.

The library is optional (extra `otel`), and it is imported only if traces are on.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.schema import Settings, Tracing
from aibridge_addon.records import Ask, Readiness, Record, Sink, utc_now
from aibridge_addon.wire.trace_context import TraceContext

if TYPE_CHECKING:
    from aibridge_addon.telemetry.tracing.export import Exporting

logger = logging.getLogger(__name__)

INSTALL = "pip install 'aibridge-mitmproxy[otel]'"
NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
OTLP = "OTEL_EXPORTER_OTLP_"
KEY = "tracing.enabled"

Contexts = Callable[[str, str | None, str | None], TraceContext]
"""Returns an interception's place in a trace, from its id and its request's `traceparent` and `tracestate`."""


def tracing_sink(settings: Settings, _whole: Ask) -> Sink | None:
    """None: traces are off. Raises ConfigError: they are on, and something is missing."""
    if not is_on(settings.tracing, os.environ):
        return None
    from aibridge_addon.telemetry.tracing.otlp import exporting

    return TracingSink(exporting, texts=settings.tracing.content)


def trace_contexts(settings: Settings) -> Contexts | None:
    """Return what decides the trace of each interception by the sampler of the environment. None: traces are off."""
    if not is_on(settings.tracing, os.environ, quiet=True):
        return None
    from aibridge_addon.telemetry.tracing.sampling import Sampled

    return Sampled()


def is_on(tracing: Tracing, environ: Mapping[str, str], *, quiet: bool = False) -> bool:
    """Return whether traces are wanted and possible.

    Raises ConfigError: `enabled: true`, and they are not possible. With `auto`, a warning is logged unless `quiet`.
    """
    wanted = tracing.enabled
    if wanted == "auto":
        wanted = any(name.startswith(OTLP) and value for name, value in environ.items())
    if not wanted or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if (missing := _missing(environ)) is None:
        return True
    if tracing.enabled is True:
        raise ConfigError([Problem(KEY, *missing)])
    if not quiet:
        logger.warning("aibridge: OTEL_EXPORTER_OTLP_* is set, but there are no traces: %s; expected %s", *missing)
    return False


def _missing(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return what prevents traces, and what is expected instead."""
    if not all(map(_installed, NEEDED)):
        return "true, but the extra `otel` is not installed", f"what it needs: {INSTALL}"
    protocol = environ.get(f"{OTLP}TRACES_PROTOCOL") or environ.get(f"{OTLP}PROTOCOL") or "http/protobuf"
    if protocol != "http/protobuf":
        return f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}", "http/protobuf, which collectors take on port 4318"
    return None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class TracingSink(Sink):
    def __init__(self, exporting: Callable[[], Exporting], *, texts: bool) -> None:
        """`exporting` opens the way to the collector. `texts`: whether spans show what people and models wrote."""
        self._make = exporting
        self._texts = texts
        self._exporting: Exporting | None = None

    def open(self) -> None:
        from aibridge_addon.telemetry.tracing.measurements import Measurements
        from aibridge_addon.telemetry.tracing.spans import Spans
        from aibridge_addon.telemetry.tracing.writer import SpanWriter

        way = self._exporting = self._make()
        writer = SpanWriter(way.tracer, way.ids)
        self._spans = Spans(writer, Measurements(way.meter), texts=self._texts, now=utc_now)
        self._has_failed = False

    def emit(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                self._spans.take(record)
            except Exception:
                if not self._has_failed:  # log once: the next records may fail the same way
                    self._has_failed = True
                    logger.exception("aibridge: a %s cannot be traced", type(record).__name__)

    def readiness(self) -> Readiness:
        way = self._exporting
        return Readiness() if way is None else Readiness(lost_spans=way.counted.lost + self._spans.left_out)

    def close(self, timeout: float | None) -> None:
        if self._exporting is not None:
            self._exporting.close(timeout)

    @property
    def ended(self) -> bool:
        return self._exporting is None or self._exporting.ended
