"""Records that only traces need: the trace that a request continues, and the times of turns and other work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class TraceContinued:
    """A bridged request has arrived. Emitted before its `InterceptionStarted`, and only if traces are on."""

    interception_id: str
    received_at: datetime
    path: str
    """The request's path without its query, which may contain keys."""
    traceparent: str | None = None
    """The client's header of this name (W3C Trace Context), as it came."""
    tracestate: str | None = None


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """An upstream turn is over, and its other records have been emitted. Its injected calls run after it."""

    interception_id: str
    turn: int
    """From 1."""
    started_at: datetime
    """When its request was ready. Retries of the turn are part of it."""
    ended_at: datetime
    provider_response_id: str
    model: str
    """The model that answered; empty if the answer does not name it."""
    http_status: int | None
    answered_at: datetime | None = None
    """When the head of its answer arrived. None: there was no answer."""
    first_chunk_at: datetime | None = None
    """When the first bytes of a streamed answer's body arrived. None: it was no stream, or it was empty."""
    stop_reason: str | None = None
    error_type: str | None = None
    """Why its answer is not a whole one: the provider's word, or the interception's `error_type`."""


@dataclass(frozen=True, slots=True)
class PassthroughTimes:
    """What a trace shows of a request that is not bridged."""

    started_at: datetime
    ended_at: datetime
    path: str
    """The path that the client asked for, without its query."""
    upstream_url: str
    """Without its query."""
    http_status: int | None
    traceparent: str | None = None
    tracestate: str | None = None


@dataclass(frozen=True, slots=True)
class ToolServerConnected:
    """An MCP server was connected and its tools were listed, or that has failed. Emitted only if traces are on."""

    server_name: str
    server_url: str | None
    """Without its query; None for a program."""
    started_at: datetime
    ended_at: datetime
    listed_from: datetime | None = None
    """When the handshake was complete. None: it was not."""
    tools: int = 0
    """Number of tools that the server lists and that can be offered."""
    error: str | None = None
