"""One WebSocket that carries OpenAI's Responses API (API guide, "WebSocket mode"). Messages in, records out.

    client ─▶ {"type":"response.create", …}                                an interception begins
    client ◀─ {"type":"response.created"} … {"type":"response.completed"}  its answer: a stream's events, unframed

A client may send its next request before the last answer has ended. Requests and answers name a *lane* (`stream_id`,
empty by default). In each lane, requests are answered in order. An answer without a known request follows a
`response.steer`. It is an interception as well; its prompt is the steering input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects import RESPONSES
from aibridge_addon.dialects.base import NOTHING, UNREAD, RequestReading
from aibridge_addon.dialects.context import OUR_TOOLS
from aibridge_addon.dialects.errors import error_in
from aibridge_addon.dialects.history import RequestHistory
from aibridge_addon.dialects.limits import RATE_LIMITS
from aibridge_addon.dialects.responses.reader import TERMINAL
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.spliced_messages import EVENT_STREAM, SplicedMessages
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode_tolerantly, encode
from aibridge_addon.wire.json_structure import has_more_values
from aibridge_addon.wire.json_values import as_count, as_dict, as_text

CREATE, STEER, CREATED, ERROR = "response.create", "response.steer", "response.created", "error"
ERRORS = (ERROR, "response.error")
INTERRUPTS = ("response.interrupt", "response.cancel")
"""Messages with which a client stops the answer in a lane."""
STATUSES = ("status", "status_code", "code")
"""Members of an error, or of the message around it, that may contain the HTTP status."""
MAX_OPEN = 64
"""Maximum number of interceptions read at once. A request beyond it is not read, only its answer is."""
MAX_STEERED = 16
"""Maximum number of steering inputs kept until their answers begin."""

OnLimits = Callable[[Any], None]
"""Takes the decoded event about the limits of the plan."""
Begin = Callable[[RequestReading, bool], Exchange]
"""Begins an interception. The second argument says whether its request has tools."""
Defers = Callable[[Exchange, JSONObject], bool]
"""Takes a request before its interception is started. Returns whether the caller prepares it and calls `start`."""
InPlace = Callable[[Exchange, Sequence[bytes]], None]
"""Takes the messages that the client gets in place of the server's, which may be none."""
Succeeds = Callable[[Exchange, str, str], ToolExchange | None]
"""Returns the tools of an answer that follows a steering input: from its lane, and the id of the answer before it."""
Accepts = Callable[[Exchange], None]
"""Takes an interception before the answer of a turn is opened, which is no error."""
Repeats = Callable[[Exchange, int, Any], bool]
"""Takes an error in place of a turn's answer: its status, or 0, and the decoded message. Returns whether the request is
sent again, so that the client does not get the error."""


def never(_exchange: Exchange, _body: JSONObject) -> bool:
    return False


def nothing(_exchange: Exchange, _messages: Sequence[bytes]) -> None:
    """Show nothing: no answer is spliced."""


def ignore(_exchange: Exchange) -> None:
    """Note nothing about a request that was accepted."""


def never_again(_exchange: Exchange, _status: int, _message: Any) -> bool:
    return False


def without_tools(_exchange: Exchange, _lane: str, _before: str) -> None:
    return None


# Nearly every message of OpenAI begins with its type, so that most messages need no decoding.
_type = re.compile(rb'\s{0,8}\{\s{0,8}"type"\s{0,8}:\s{0,8}"([a-z_.]{1,80})"').match


@dataclass(slots=True)
class _Open:
    lane: str
    exchange: Exchange
    requested: bool
    """It began with a request. Else it follows a steering input, and its time to the first byte is not known."""
    spliced: SplicedMessages | None = None
    """Set if tools were injected."""
    drains: bool = False
    """It has ended before the server's answer. The client gets nothing more of that."""

    @property
    def is_open(self) -> bool:
        """Whether the answer of the current turn has begun."""
        return self.exchange.turns > 0 if self.spliced is None else self.spliced.is_open

    def open_answer(self, status: int, content_type: str) -> None:
        if self.requested and not self.exchange.turns:
            self.exchange.first_byte_came()
        opened = self.spliced or self.exchange
        if isinstance(opened, SplicedMessages):
            opened.open_answer(status, content_type)
        else:
            opened.open_answer(status, content_type, "")


class ResponsesSocket:
    def __init__(
        self,
        begin: Begin,
        limits: Limits,
        on_limits: OnLimits,
        *,
        defers: Defers = never,
        in_place: InPlace = nothing,
        succeeds: Succeeds = without_tools,
        accepts: Accepts = ignore,
        repeats: Repeats = never_again,
    ) -> None:
        self._begin = begin
        self._defers = defers
        self._in_place = in_place
        self._succeeds = succeeds
        self._accepts = accepts
        self._repeats = repeats
        self._on_limits = on_limits
        self._limits = limits
        self._open: list[_Open] = []
        self._has_lanes = False
        """A message has named a lane. From then on, the lane of every answer is read."""
        self._steered: dict[str, RequestReading] = {}
        """Steering inputs by the id of the response that they steer."""

    @property
    def idle(self) -> bool:
        """Whether every answer has ended."""
        return not self._open

    def from_client(self, data: bytes) -> Exchange | None:
        """Read a text message of the client. Return the interception that begins with it, if any."""
        body: JSONObject | None = None
        kind = _leading_type(data)
        reading = UNREAD
        if len(data) <= self._limits.request_body:
            try:
                if has_more_values(data, self._limits.json_values):
                    raise Unreadable("too many values")
                body = JSONObject(data)
                kind = body.text("type") or ""
                if kind in (CREATE, STEER):
                    reading = RESPONSES.read(body)
            except NotJSON:
                return None
            except Unreadable:
                pass
        if kind == STEER and body is not None:
            self._steer(body.text("previous_response_id") or "", reading)
        if kind != CREATE or len(self._open) >= MAX_OPEN:
            return None
        lane = (body.text("stream_id") if body is not None else None) or ""
        has_tools = body is not None and RESPONSES.has_tools(body)
        return self._start(lane, reading, body, has_tools=has_tools, requested=True)

    def from_server(self, data: bytes) -> Exchange | None:
        """Read a text message of the server. Return the interception that ends with it, if any.

        Its records have been emitted by then.
        """
        kind = self._kind(data)
        if kind == RATE_LIMITS:
            self._on_limits(self._decoded(data))
            return None
        if not self._open and kind != CREATED:
            return None
        entry = self._entry(data, kind)
        if entry is None:
            return None
        exchange, is_over = entry.exchange, kind in TERMINAL or kind == ERROR
        if entry.drains:
            self._drain(entry, kind, is_over=is_over)
            return None
        if kind == ERROR and not (entry.spliced is not None and entry.is_open):
            value = self._decoded(data)
            if self._is_sent_again(entry, value):
                self._in_place(exchange, ())
            else:
                self._fail(entry, data, value)
        elif kind and kind != ERROR and not kind.startswith("response."):
            pass  # about the connection or the account, not part of the answer
        elif entry.spliced is not None:
            self._splice(entry, entry.spliced, data, kind)
        else:
            if not exchange.turns:
                self._open_accepted(entry)
            exchange.feed_event(data, terminal=kind in TERMINAL)
        if not exchange.ended:
            return None
        if entry.spliced is not None and not is_over:
            entry.drains = True
        else:
            self._open.remove(entry)
        return exchange

    def _splice(self, entry: _Open, spliced: SplicedMessages, data: bytes, kind: str) -> None:
        """Read a part of an answer with injected tools."""
        if spliced.waiting:  # its turn has ended: this is about input that waits for the results of tools
            self._in_place(entry.exchange, ())
            return
        if not spliced.is_open:
            self._open_accepted(entry)
        if (shown := spliced.take(data)) is not None:
            self._in_place(entry.exchange, shown)

    def _drain(self, entry: _Open, kind: str, *, is_over: bool) -> None:
        """Drop the rest of an answer that has ended for the client."""
        if not kind or is_over or kind.startswith("response."):
            self._in_place(entry.exchange, ())
        if is_over:
            self._open.remove(entry)

    def fail_waiting(self, data: bytes, stop: Callable[[Exchange], None]) -> None:
        """End the interception whose tools run if a message of the server ends it with an error.

        `stop` is called before its last records are emitted.
        """
        kind = self._kind(data)
        entry = self._entry(data, kind) if kind == ERROR else None
        if entry is None or entry.spliced is None or not entry.spliced.waiting:
            return
        error = error_in(self._decoded(data), default_type="server_error")
        stop(entry.exchange)
        entry.exchange.end(error.type if error is not None else "server_error", error.message if error else "")

    def _kind(self, data: bytes) -> str:
        """Return the type of a message of the server. An empty string: it has none, or cannot be read.

        An error without a type, such as the body that an error has over HTTP, is of the type `error`, too.
        """
        if not (kind := _leading_type(data)):
            value = self._decoded(data)
            kind = as_text(as_dict(value).get("type"))
            if not kind and error_in(value, default_type=ERROR) is not None:
                return ERROR
        return ERROR if kind in ERRORS else kind

    def _open_accepted(self, entry: _Open) -> None:
        self._accepts(entry.exchange)
        entry.open_answer(200, EVENT_STREAM)

    def _is_sent_again(self, entry: _Open, value: Any) -> bool:
        """Decide about an error in place of a turn's answer. Returns whether its request is sent again."""
        if entry.is_open or entry.exchange.ended or as_text(as_dict(value).get("stream_id")) != entry.lane:
            return False  # without its lane, the error is about the connection
        return self._repeats(entry.exchange, _status(value), value)

    def _fail(self, entry: _Open, data: bytes, value: Any) -> None:
        """End an interception with the error in a message."""
        exchange = entry.exchange
        if exchange.ended:
            return
        if not entry.is_open and (status := _status(value)):
            entry.open_answer(status, "application/json")
            exchange.feed(data, last=True)  # the same body as over HTTP, with its status inside
            return
        if not entry.is_open:
            entry.open_answer(200, EVENT_STREAM)
        if as_dict(value).get("type") != ERROR and (error := error_in(value, default_type="server_error")):
            data = encode({"type": ERROR, "error": {"type": error.type, "message": error.message}})
        exchange.feed_event(data, terminal=True)

    def _decoded(self, data: bytes) -> Any:
        try:
            return decode_tolerantly(data) if len(data) <= self._limits.sse_event else None
        except (NotJSON, Unreadable):
            return None

    def cut(self, error_type: str, message: str) -> list[Exchange]:
        """End all open interceptions, because the connection has ended. Return them."""
        left = [entry.exchange for entry in self._open]
        self._open.clear()
        for exchange in left:
            exchange.end(error_type, message)
        return left

    def withdraw(self, exchange: Exchange) -> None:
        """Forget an interception that gets no further message of the server."""
        self._open = [entry for entry in self._open if entry.exchange is not exchange]

    def lane_of(self, exchange: Exchange) -> str:
        """Return the lane of an open interception; an empty text if it is not open."""
        return next((entry.lane for entry in self._open if entry.exchange is exchange), "")

    def splice(self, exchange: Exchange, tools: ToolExchange) -> str:
        """Merge the turns of an open interception's answer. Call this before the answer begins. Return the lane."""
        entry = next(entry for entry in self._open if entry.exchange is exchange)
        entry.spliced = SplicedMessages(tools, entry.lane)
        return entry.lane

    def ending(self, exchange: Exchange) -> Sequence[bytes]:
        """Return the held end of an answer that ends after its tools have run."""
        found = (entry.spliced for entry in self._open if entry.exchange is exchange and entry.spliced is not None)
        return next((spliced.ending() for spliced in found), ())

    def interrupted(self, data: bytes) -> Exchange | None:
        """Return the interception whose tools run, and that a text message of the client interrupts."""
        if _leading_type(data) not in INTERRUPTS:
            return None
        members = self._members(data)
        lane = (members.text("stream_id") if members else None) or ""
        waiting = (entry.exchange for entry in self._open if entry.spliced is not None and entry.spliced.waiting)
        return next((exchange for exchange in waiting if self.lane_of(exchange) == lane), None)

    def start(
        self,
        exchange: Exchange,
        body: JSONObject | None,
        history: RequestHistory | None = None,
        schemas: Mapping[str, int] = NOTHING,
    ) -> None:
        """Start an interception.

        `history` is that in `body`, if it was read. `schemas`: bytes of the injected tools' definitions, by server.
        """
        if body is not None and exchange.needs_history and exchange.history is not None:
            exchange.trace(body, history or exchange.history.read(body, whole=True))
        if body is not None:
            context = RESPONSES.context_bytes(body, sum(schemas.values()))
            injected = schemas if OUR_TOOLS in context else NOTHING
            exchange.note(context_bytes=context, **({"schema_bytes": injected} if injected else {}))
        exchange.start()

    def _start(
        self, lane: str, reading: RequestReading, body: JSONObject | None, *, has_tools: bool, requested: bool
    ) -> Exchange:
        exchange = self._begin(replace(reading, streaming=True), has_tools)
        if body is None or not requested or not self._defers(exchange, body):
            self.start(exchange, body)
        self._open.append(_Open(lane, exchange, requested))
        self._has_lanes = self._has_lanes or lane != ""
        return exchange

    def _steer(self, response_id: str, reading: RequestReading) -> None:
        self._steered.pop(response_id, None)
        self._steered[response_id] = reading
        if len(self._steered) > MAX_STEERED:
            del self._steered[next(iter(self._steered))]

    def _entry(self, data: bytes, kind: str) -> _Open | None:
        """Return the interception that a message of the server belongs to."""
        body = self._members(data) if self._has_lanes or not self._open else None
        lane = (body.text("stream_id") if body else None) or ""
        entry = next((entry for entry in self._open if entry.lane == lane), None)
        if entry is None and kind == ERROR and not lane and self._open:
            return self._open[0]  # about the connection: it ends the answers one after the other
        if entry is None and kind == CREATED and len(self._open) < MAX_OPEN:
            response = as_dict(body.get("response")) if body else {}
            reading = self._steered.pop(as_text(response.get("previous_response_id")), UNREAD)
            reading = replace(reading, model=as_text(response.get("model")))
            exchange = self._start(lane, reading, None, has_tools=False, requested=False)
            entry = self._open[-1]
            before = as_text(response.get("previous_response_id"))
            if (tools := self._succeeds(exchange, lane, before)) is not None:
                self.splice(exchange, tools)
        return entry

    def _members(self, data: bytes) -> JSONObject | None:
        if len(data) > self._limits.sse_event:
            return None
        try:
            return JSONObject(data)
        except (NotJSON, Unreadable):
            return None


def _leading_type(data: bytes) -> str:
    """Return a message's type if the message begins with it; else an empty string."""
    match = _type(data)
    return match[1].decode() if match else ""


def _status(value: object) -> int:
    """Return the HTTP status in an error message; 0 if it has none."""
    for members in (as_dict(value), as_dict(as_dict(value).get("error"))):
        for name in STATUSES:
            if 400 <= (status := as_count(members.get(name))) <= 599:
                return status
    return 0
