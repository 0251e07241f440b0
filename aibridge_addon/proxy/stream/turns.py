"""The upstream streams of one client stream: one for each turn and attempt.

An HTTP/2 connection cannot reuse a stream id, so each further request has an id of its own. A cancelled request may
still cause events; `is_stale` recognises them by their id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import DropStream, HttpStream
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.config.schema import Limits
from aibridge_addon.interception.buffers import Buffers
from aibridge_addon.proxy.stream.answer import Spliced, Tapped
from aibridge_addon.proxy.stream.counted_bodies import CountedBodies
from aibridge_addon.proxy.stream.short_way import ShortWay, open_short_way

_Answer = (
    http_events.ResponseHeaders,
    http_events.ResponseData,
    http_events.ResponseTrailers,
    http_events.ResponseEndOfMessage,
    http_events.ResponseProtocolError,
)


class TurnIds(Protocol):
    """The part of `BridgeHttpLayer` that its streams use."""

    turn_ids: Iterator[int]
    streams: dict[int, HttpStream]
    connections: dict[Connection, layer.Layer]
    has_short_way: bool
    """Whether answers may take the short way."""
    limits: Limits
    buffers: Buffers | None
    over: list[HttpStream]
    """Streams that were dropped while the current event was handled."""
    handling: HttpStream | None
    """The stream that handles an event or whose commands are carried out."""


class UpstreamTurns:
    def __init__(self, stream: HttpStream, parent: TurnIds, buffers: CountedBodies) -> None:
        self.id = stream.stream_id
        """The stream id of the current turn. The first turn has the client's id."""
        self.reused = False
        """Whether a later turn was sent over the connection of the turn or attempt before it."""
        self._way: ShortWay | None = None
        """The short way of the current answer."""
        self._stream = stream
        self._parent = parent
        self._buffers = buffers

    @property
    def is_first(self) -> bool:
        return self.id == self._stream.stream_id

    def begin(self) -> None:
        """Start the next turn: register a new id, so that its events come to this stream."""
        if not self.is_first:
            self._parent.streams.pop(self.id, None)
        self.id = next(self._parent.turn_ids)
        self._parent.streams[self.id] = self._stream

    def handling(self, begins: bool) -> None:
        """Note that the stream begins or has ended to handle an event, and in the end, whether it is over."""
        self._parent.handling = self._stream if begins else None
        if not begins and self._stream.stream_id not in self._parent.streams and self._stream.child_layer is None:
            if self._way is not None:
                self._way.end()
            self._parent.over.append(self._stream)

    def shorten(self, answer: Tapped | Spliced) -> None:
        """Let the current turn's answer take the short way, if that is possible."""
        if self._parent.has_short_way:
            if self._way is not None:
                self._way.end()
            self._way = open_short_way(self._stream, self.id, answer, self._parent.connections)

    def is_stale(self, event: events.Event) -> bool:
        """Return whether an event belongs to an answer that was cancelled."""
        return isinstance(event, _Answer) and event.stream_id != self.id

    def request(self, request: http.Request) -> Iterator[http_events.HttpEvent]:
        """Yield the events of a complete request, with the id of the current turn."""
        content = request.raw_content
        yield http_events.RequestHeaders(self.id, request, not content)
        if content:
            yield http_events.RequestData(self.id, content)
        yield http_events.RequestEndOfMessage(self.id)

    def cancelled(self, reason: str) -> http_events.RequestProtocolError:
        """Return the event that cancels the current turn's answer."""
        return http_events.RequestProtocolError(self.id, reason, http_events.ErrorCode.CANCEL)

    def drop(self) -> Iterator[DropStream]:
        """Drop the current turn's stream, because the flow is over. mitmproxy drops the client's own one."""
        self._buffers.end()
        if not self.is_first:
            yield DropStream(self.id)
