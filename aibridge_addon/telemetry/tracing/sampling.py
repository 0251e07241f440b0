"""Decide at the time of a request whether its trace is sampled, so that tool servers get the same decision."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanKind, set_span_in_context

from aibridge_addon.telemetry.tracing.spans import ROOT
from aibridge_addon.telemetry.tracing.writer import span_context
from aibridge_addon.wire.trace_context import TraceContext, parse, span_id_for, trace_id_for


class Sampled:
    """Asks the sampler of `OTEL_TRACES_SAMPLER`. The spans that are made later ask the same one."""

    def __init__(self) -> None:
        self._sampler = TracerProvider(shutdown_on_exit=False).sampler

    def __call__(self, interception_id: str, traceparent: str | None, tracestate: str | None) -> TraceContext:
        """Return the context of an interception's first span."""
        parent = parse(traceparent, tracestate)
        trace_id = parent.trace_id if parent is not None else trace_id_for(interception_id)
        context = set_span_in_context(NonRecordingSpan(span_context(parent))) if parent is not None else None
        result = self._sampler.should_sample(context, trace_id, ROOT, SpanKind.SERVER)
        state = parent.state if parent is not None else ""
        root = span_id_for(interception_id, "intercept")
        return TraceContext(trace_id, root, result.decision is Decision.RECORD_AND_SAMPLE, state)
