"""Make spans with given ids and times, after the fact.

The id of a span is known before the span exists: a tool server has got it already.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from aibridge_addon.telemetry.tracing.attributes import MAX_NAME, Value, clean, nanoseconds, text
from aibridge_addon.wire.trace_context import TraceContext


class Ids(IdGenerator):
    """Returns the ids that were set for the next span. Used on one thread."""

    def __init__(self) -> None:
        self.trace_id = 0
        self.span_id = 0
        self._random = RandomIdGenerator()

    def generate_trace_id(self) -> int:
        return self.trace_id or self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        return self.span_id or self._random.generate_span_id()


class SpanWriter:
    """Used on one thread."""

    def __init__(self, tracer: Tracer, ids: Ids) -> None:
        self._tracer = tracer
        self._ids = ids

    def write(
        self,
        name: str,
        parent: TraceContext | None,
        times: tuple[datetime, datetime],
        attributes: Mapping[str, Value | None],
        *,
        trace_id: int = 0,
        span_id: int = 0,
        kind: SpanKind = SpanKind.INTERNAL,
        error: str | None = None,
    ) -> TraceContext:
        """Write a span and return its context. `trace_id` counts without a parent. An id of 0 is drawn.

        `error` is the description of a status of error. None: the status is not set.
        """
        self._ids.trace_id, self._ids.span_id = trace_id, span_id
        context = set_span_in_context(NonRecordingSpan(span_context(parent))) if parent is not None else None
        start, end = map(nanoseconds, times)
        span = self._tracer.start_span(
            text(name, MAX_NAME), context, kind, clean(attributes), start_time=start, record_exception=False
        )
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, text(error)))
        span.end(max(start, end))
        made = span.get_span_context()
        return TraceContext(made.trace_id, made.span_id, made.trace_flags.sampled, made.trace_state.to_header())


def span_context(context: TraceContext) -> SpanContext:
    """Return a context as OpenTelemetry has it. It comes from elsewhere, as far as samplers know."""
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=flags, trace_state=state)
