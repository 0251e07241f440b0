"""Turn an upstream answer into the client's answer. Sans-io.

    Tapped   the bytes are forwarded as they arrive, and a copy is read
    Spliced  several turns become one answer; injected tools run in between

Both take the bytes of the body and return the bytes to send at once. They return the answer's end separately: it is
sent when the answer's rows are committed.
"""

from __future__ import annotations

from dataclasses import dataclass

from mitmproxy import http

from aibridge_addon.dialects.base import AnswerError
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.proxy.flow.http1 import content_length
from aibridge_addon.proxy.flow.state import RETRY_BODY_LIMIT, Bridged
from aibridge_addon.proxy.stream.body import Pipe, outgoing


@dataclass(frozen=True, slots=True)
class Output:
    """The bytes for the client that result from bytes of the upstream, or from their end."""

    now: bytes
    """Bytes to send at once."""
    end: bytes | None = None
    """The answer's end, to send when the rows are committed. It may be empty. None: not reached yet."""
    unreadable: str | None = None
    """Why the answer cannot be continued. None: it can."""
    error: AnswerError | None = None
    """The error with which the answer ends, although its terminal event was not sent."""
    cancels: bool = False
    """Whether the rest of the upstream's answer is not read, because of `error`."""


class Tapped:
    limit = RETRY_BODY_LIMIT
    """Bytes. A buffered answer that is longer is streamed instead."""

    def __init__(self, exchange: Exchange, outgoing: Pipe, unread: int | None) -> None:
        """`unread`: bytes of the body that are still missing, from its Content-Length. None: there is none."""
        self.exchange = exchange
        self._outgoing = outgoing
        self.unread = unread
        self.is_verbatim = not outgoing
        """Whether the bytes are forwarded unchanged."""

    @property
    def can_append(self) -> bool:
        """Whether an error event can be appended: the stream is between two events and has no fixed length."""
        tap = self.exchange.tap
        return tap is not None and self.unread is None and tap.at_event_boundary

    @property
    def is_stream(self) -> bool:
        """Whether the client gets a stream of events."""
        return self.exchange.streaming

    def on_data(self, data: bytes) -> Output:
        made = self.convert(data)
        return Output(made) if isinstance(made, bytes) else made

    def convert(self, data: bytes) -> bytes | Output:
        """As `on_data`. Returns the bytes alone if there is nothing else to do."""
        last = False
        if self.unread is not None:
            self.unread -= len(data)
            last = self.unread <= 0
        end = self.exchange.feed(data, last)
        if not self.is_verbatim:
            data, end = self._outgoing.feed(data), None if end is None else 0
        return data if end is None else Output(data[:end], data[end:])

    def on_end(self) -> Output:
        rest = self._outgoing.finish()
        if self.exchange.streaming and not self.exchange.ended:
            self.exchange.answer_ended()
            return Output(rest, b"")
        return Output(rest)


class Spliced:
    """The merged answer of all turns of an interception."""

    def __init__(self, tools: ToolExchange, outgoing: Pipe, limit: int) -> None:
        self.exchange = tools.exchange
        self.limit = limit
        """Bytes. A buffered answer that is longer ends the interception."""
        self.end_sent = False
        self._tools = tools
        self._outgoing = outgoing
        self._turn_ended = False
        """The body of a turn has been read to its end."""
        self._silent = True
        """Whether nothing was sent to the client since the last call of `due_keepalive`."""

    def begin(self) -> None:
        """Note that the client's answer begins, as a stream."""
        self._tools.streamed = True

    @property
    def can_append(self) -> bool:
        """As `Tapped.can_append`. Only a large event is shown in pieces; otherwise the stream is between two events."""
        return self._tools.streamed and not self._tools.within_event

    @property
    def is_stream(self) -> bool:
        """Whether the client gets a stream of events."""
        return self._tools.streamed

    @property
    def content_type(self) -> str:
        """The content type of a stream that is made of a body."""
        return self._tools.loop.splice.framing.content_type

    @property
    def waiting(self) -> bool:
        """Whether a turn has called injected tools, and their results are not complete."""
        return self._tools.waiting

    def on_data(self, data: bytes) -> Output:
        shown = self._shown(self._tools.feed(data))
        if (error := self._tools.error) is not None:
            return Output(shown, error=error, cancels=True)
        reason = self._tools.unreadable
        return Output(shown, None if reason else self._maybe_end(), reason)

    def convert(self, data: bytes) -> bytes | Output:
        """As `on_data`. Returns the bytes alone if there is nothing else to do."""
        output = self.on_data(data)
        is_plain = output.end is None and output.error is None and output.unreadable is None and not self.waiting
        return output.now if is_plain else output

    def on_end(self) -> Output:
        self._turn_ended = True
        return self._ended(self._shown(self._tools.stream_ended()))

    def on_body(self, content: bytes) -> Output | None:
        """Read a whole body. Returns None if the client does not get it as a part of a stream."""
        self._turn_ended = True
        shown = self._tools.take_body(content)
        return None if shown is None else self._ended(self._shown(shown))

    def _ended(self, shown: bytes) -> Output:
        if self.end_sent:
            return Output(shown + self._outgoing.finish())
        if self._tools.error is not None:
            return Output(shown + self._outgoing.finish(), error=self._tools.error)
        return Output(shown, self._maybe_end())

    def _maybe_end(self) -> bytes | None:
        return self.end() if self.exchange.ended and not self.end_sent else None

    def end(self) -> bytes:
        """Return the held end of the answer."""
        self.end_sent = True
        ending = self._shown(self._tools.ending())
        return ending + self._outgoing.finish() if self._turn_ended else ending

    def _shown(self, data: bytes) -> bytes:
        if data and (data := self._outgoing.feed(data)):
            self._silent = False
        return data

    @property
    def is_refused(self) -> bool:
        """Whether a later turn was refused, and it is not decided yet whether it is asked again."""
        return self._tools.is_refused

    def failed_turn(self, body: bytes) -> AnswerError:
        """Read the error with which the upstream answered a later turn. It ends the answer."""
        self._tools.take_error(body)
        error = self._tools.error or AnswerError("", "")
        return AnswerError(error.type, error.message or "the upstream answered with an error", error.details)

    def keepalive(self) -> bytes:
        """Return keep-alive bytes for a waiting client."""
        return self._tools.keepalive()

    def due_keepalive(self) -> bytes:
        """Return keep-alive bytes if nothing was sent to the client since the last call."""
        silent, self._silent = self._silent, True
        return self.keepalive() if silent and not self._tools.within_event else b""


def answer_for(state: Bridged, exchange: Exchange, response: http.Response) -> Tapped | Spliced:
    """Choose how an answer whose head has arrived is turned into the client's answer."""
    if (tools := state.splicing) is not None:
        return Spliced(tools.exchange, outgoing(state), state.head.bridge.settings.limits.decoded_body)
    unread = content_length(response) if "content-length" in response.headers else None
    return Tapped(exchange, outgoing(state), unread)
