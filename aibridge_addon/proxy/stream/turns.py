"""The upstream streams of one client stream: one for each turn and attempt.

A stream id cannot be used twice on an HTTP/2 connection, so each further request goes upstream under an id of its own.
What has been given up may still send something: its events are not those of the turn under way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mitmproxy import http
from mitmproxy.proxy import events
from mitmproxy.proxy.layers.http import DropStream, HttpStream
from mitmproxy.proxy.layers.http import _events as http_events

_Answer = (
    http_events.ResponseHeaders,
    http_events.ResponseData,
    http_events.ResponseTrailers,
    http_events.ResponseEndOfMessage,
    http_events.ResponseProtocolError,
)


class TurnIds(Protocol):
    """What turns need of the layer that their stream is in."""

    turn_ids: Iterator[int]
    streams: dict[int, HttpStream]


class UpstreamTurns:
    def __init__(self, stream: HttpStream, parent: TurnIds) -> None:
        self.id = stream.stream_id
        """The stream id of the turn that is under way; the first has the client's."""
        self._stream = stream
        self._parent = parent

    @property
    def is_first(self) -> bool:
        return self.id == self._stream.stream_id

    def begin(self) -> None:
        """The next turn: from here on, what comes for its id comes to the stream."""
        if not self.is_first:
            self._parent.streams.pop(self.id, None)
        self.id = next(self._parent.turn_ids)
        self._parent.streams[self.id] = self._stream

    def is_stale(self, event: events.Event) -> bool:
        """Whether an event is of an answer that has been given up."""
        return isinstance(event, _Answer) and event.stream_id != self.id

    def request(self, request: http.Request) -> Iterator[http_events.HttpEvent]:
        """A whole request, for the turn under way."""
        content = request.raw_content
        yield http_events.RequestHeaders(self.id, request, not content)
        if content:
            yield http_events.RequestData(self.id, content)
        yield http_events.RequestEndOfMessage(self.id)

    def cancelled(self, reason: str) -> http_events.RequestProtocolError:
        """The rest of the upstream's answer is not wanted."""
        return http_events.RequestProtocolError(self.id, reason, http_events.ErrorCode.CANCEL)

    def drop(self) -> Iterator[DropStream]:
        """Forget the turn under way; mitmproxy drops the client's own stream."""
        if not self.is_first:
            yield DropStream(self.id)
