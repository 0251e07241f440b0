"""Take the trace that a client's request belongs to, and hand it to tool servers. Nothing of it goes to a provider."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from mitmproxy import http

from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.turn_times import TurnTimes
from aibridge_addon.proxy.flow.state import Head
from aibridge_addon.records import PassthroughTimes, TraceContinued
from aibridge_addon.wire.trace_context import MAX_TRACEPARENT, MAX_TRACESTATE, TraceContext, parse, span_id_for

MAX_URL = 2048
"""Characters. Longer paths and URLs are cut."""


def continue_trace(head: Head, exchange: Exchange, received_at: datetime, path: str) -> None:
    """Record which trace an interception belongs to, and measure its turns, if traces are on. Before its start."""
    if head.bridge.traces is None:
        return
    exchange.times = TurnTimes(exchange.now)
    traceparent, tracestate = _headers(head)
    exchange.emit(TraceContinued(exchange.id, received_at, _without_query(path), traceparent, tracestate))


def call_contexts(head: Head, exchange: Exchange, count: int) -> Sequence[TraceContext]:
    """Return the trace contexts for a turn's invocations, in their order. Empty: there is no trace.

    If traces are off, servers get the client's own context, as from any proxy that does not take part in a trace.
    """
    if head.bridge.traces is None:
        clients = parse(*_headers(head))
        return [clients] * count if clients is not None else ()
    context = head.bridge.traces(exchange.id, *_headers(head))
    return [context.at(span_id_for(exchange.id, exchange.turns, "call", number)) for number in range(count)]


def passthrough_times(flow: http.HTTPFlow, head: Head) -> PassthroughTimes:
    """Return what a trace shows of a request that is not bridged and has ended."""
    response, request = flow.response, flow.request
    ended = response.timestamp_end or response.timestamp_start if response is not None else None
    traceparent, tracestate = _headers(head)
    return PassthroughTimes(
        started_at=at(request.timestamp_start),
        ended_at=at(max(ended or request.timestamp_start, request.timestamp_start)),
        path=_without_query(request.path),
        upstream_url=_without_query(request.url),
        http_status=response.status_code if response is not None else None,
        traceparent=traceparent,
        tracestate=tracestate,
    )


def at(timestamp: float) -> datetime:
    """Return a time of mitmproxy's in UTC."""
    return datetime.fromtimestamp(timestamp, UTC)


def _headers(head: Head) -> tuple[str | None, str | None]:
    """Return the request's `traceparent` and `tracestate`. What is too long to be valid is left out."""
    parent, state = head.headers.get(b"traceparent"), head.headers.get(b"tracestate")
    return (
        parent.decode("latin-1") if parent is not None and len(parent) <= MAX_TRACEPARENT else None,
        state.decode("latin-1") if state is not None and len(state) <= MAX_TRACESTATE else None,
    )


def _without_query(url: str) -> str:
    return url.partition("?")[0][:MAX_URL]
