"""One WebSocket that carries OpenAI's Responses API (API guide, "WebSocket mode"). Messages in, records out.

    client ─▶ {"type":"response.create", …}                                an interception begins
    client ◀─ {"type":"response.created"} … {"type":"response.completed"}  its answer: a stream's events, unframed

A client may send its next request before the last answer has ended. Requests and answers name a *lane* (`stream_id`,
empty by default). In each lane, requests are answered in order. An answer without a known request follows a
`response.steer`. It is an interception as well; its prompt is the steering input.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects import RESPONSES
from aibridge_addon.dialects.base import UNREAD, RequestReading
from aibridge_addon.dialects.errors import error_in
from aibridge_addon.dialects.limits import RATE_LIMITS
from aibridge_addon.dialects.responses.reader import TERMINAL
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode_tolerantly, encode
from aibridge_addon.wire.json_structure import has_more_values
from aibridge_addon.wire.json_values import as_count, as_dict, as_text

CREATE, STEER, CREATED, ERROR = "response.create", "response.steer", "response.created", "error"
ERRORS = (ERROR, "response.error")
STATUSES = ("status", "status_code", "code")
"""Members of an error, or of the message around it, that may contain the HTTP status."""
EVENT_STREAM = "text/event-stream"
"""The content type of the same answer over HTTP."""
MAX_OPEN = 64
"""Maximum number of interceptions read at once. A request beyond it is not read, only its answer is."""
MAX_STEERED = 16
"""Maximum number of steering inputs kept until their answers begin."""

OnLimits = Callable[[Any], None]
"""Takes the decoded event about the limits of the plan."""
Begin = Callable[[RequestReading, bool], Exchange]
"""Begins an interception. The second argument says whether its request has tools."""

# Nearly every message of OpenAI begins with its type, so that most messages need no decoding.
_type = re.compile(rb'\s{0,8}\{\s{0,8}"type"\s{0,8}:\s{0,8}"([a-z_.]{1,80})"').match


@dataclass(frozen=True, slots=True)
class _Open:
    lane: str
    exchange: Exchange
    requested: bool
    """It began with a request. Else it follows a steering input, and its time to the first byte is not known."""

    def open_answer(self, status: int, content_type: str) -> None:
        if self.requested:
            self.exchange.first_byte_came()
        self.exchange.open_answer(status, content_type, "")


class ResponsesSocket:
    def __init__(self, begin: Begin, limits: Limits, on_limits: OnLimits) -> None:
        self._begin = begin
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
        exchange = entry.exchange
        if kind == ERROR:
            self._fail(entry, data)
        elif kind and not kind.startswith("response."):
            pass  # about the connection or the account, not part of the answer
        else:
            if not exchange.turns:
                entry.open_answer(200, EVENT_STREAM)
            exchange.feed_event(data, terminal=kind in TERMINAL)
        if not exchange.ended:
            return None
        self._open.remove(entry)
        return exchange

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

    def _fail(self, entry: _Open, data: bytes) -> None:
        """End an interception with the error in a message."""
        exchange, value = entry.exchange, self._decoded(data)
        if not exchange.turns and (status := _status(value)):
            entry.open_answer(status, "application/json")
            exchange.feed(data, last=True)  # the same body as over HTTP, with its status inside
            return
        if not exchange.turns:
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
        """Forget an interception whose request is not sent on."""
        self._open = [entry for entry in self._open if entry.exchange is not exchange]

    def _start(
        self, lane: str, reading: RequestReading, body: JSONObject | None, *, has_tools: bool, requested: bool
    ) -> Exchange:
        exchange = self._begin(replace(reading, streaming=True), has_tools)
        if body is not None and exchange.needs_history and exchange.history is not None:
            exchange.trace(body, exchange.history.read(body, whole=True))
        if body is not None:
            exchange.note(context_bytes=RESPONSES.context_bytes(body))
        exchange.start()
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
            self._start(lane, reading, None, has_tools=False, requested=False)
            entry = self._open[-1]
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
