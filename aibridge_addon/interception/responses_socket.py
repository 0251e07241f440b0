"""One WebSocket on which OpenAI's Responses API is spoken (API guide, "WebSocket mode"). Messages in, records out.

    client ─▶ {"type":"response.create", …}                                an interception begins
    client ◀─ {"type":"response.created"} … {"type":"response.completed"}  its answer: a stream's events, unframed

A client may send its next request before the last answer has ended. Requests and answers name a *lane* (`stream_id`,
none by default); in each lane, requests are answered in their order. An answer without a known request
follows a `response.steer`: it is an interception as well, with the steering input for a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects import RESPONSES
from aibridge_addon.dialects.base import UNREAD, RequestReading
from aibridge_addon.dialects.responses.reader import TERMINAL
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable
from aibridge_addon.wire.json_values import as_count, as_dict, as_text

CREATE, STEER, CREATED, ERROR = "response.create", "response.steer", "response.created", "error"
EVENT_STREAM = "text/event-stream"
"""What the same answer is over HTTP."""
MAX_OPEN = 64
"""Interceptions that are read at once. An answer beyond them is recorded without its request."""
MAX_STEERED = 16
"""Steering inputs that are kept until their answer begins."""

Begin = Callable[[RequestReading, bool], Exchange]
"""Begin an interception; the second argument says whether its request brings tools."""

# Every message of OpenAI's begins with its type: enough to know what it is without decoding it.
_type = re.compile(rb'\s{0,8}\{\s{0,8}"type"\s{0,8}:\s{0,8}"([a-z_.]{1,80})"').match


@dataclass(frozen=True, slots=True)
class _Open:
    lane: str
    exchange: Exchange


class ResponsesSocket:
    def __init__(self, begin: Begin, limits: Limits) -> None:
        self._begin = begin
        self._limits = limits
        self._open: list[_Open] = []
        self._has_lanes = False
        """A lane has been named: from here on, every answer has to be asked for its own."""
        self._steered: dict[str, RequestReading] = {}
        """What was said to steer a response, by the response's id."""

    @property
    def idle(self) -> bool:
        """Whether every answer has ended."""
        return not self._open

    def from_client(self, data: bytes) -> Exchange | None:
        """Read a text message; returns the interception that has begun with it."""
        body: JSONObject | None = None
        kind = _kind(data)
        reading = UNREAD
        if len(data) <= self._limits.request_body:
            try:
                body = JSONObject(data)
                kind = body.text("type") or ""
                if kind in (CREATE, STEER):
                    reading = RESPONSES.read_request(body)
            except NotJSON:
                return None
            except Unreadable:
                pass
        if kind == STEER and body is not None:
            self._steer(body.text("previous_response_id") or "", reading)
        if kind != CREATE or len(self._open) >= MAX_OPEN:
            return None
        lane = (body.text("stream_id") if body is not None else None) or ""
        return self._start(lane, reading, has_tools=body is not None and "tools" in body)

    def from_server(self, data: bytes) -> Exchange | None:
        """Read a text message; returns the interception that has ended with it, whose records have been emitted."""
        kind = _kind(data)
        if not self._open and kind != CREATED:
            return None
        entry = self._entry(data, kind)
        if entry is None:
            return None
        exchange = entry.exchange
        if not exchange.turns and kind == ERROR and (status := _status(data, self._limits.sse_event)):
            exchange.open_answer(status, "application/json", "")
            exchange.feed(data, last=True)  # the same body as over HTTP, with its status inside
        elif kind and kind != ERROR and not kind.startswith("response."):
            pass  # about the connection or the account (`codex.rate_limits`), not of the answer
        else:
            if not exchange.turns:
                exchange.open_answer(200, EVENT_STREAM, "")
            exchange.feed_event(data, terminal=kind in TERMINAL or kind == ERROR)
        if not exchange.ended:
            return None
        self._open.remove(entry)
        return exchange

    def cut(self, error_type: str, message: str) -> list[Exchange]:
        """The connection has ended; returns the interceptions that ended with it."""
        left = [entry.exchange for entry in self._open]
        self._open.clear()
        for exchange in left:
            exchange.end(error_type, message)
        return left

    def withdraw(self, exchange: Exchange) -> None:
        """The request that has begun this interception is not passed on."""
        self._open = [entry for entry in self._open if entry.exchange is not exchange]

    def _start(self, lane: str, reading: RequestReading, *, has_tools: bool) -> Exchange:
        exchange = self._begin(replace(reading, streaming=True), has_tools)
        exchange.start()
        self._open.append(_Open(lane, exchange))
        self._has_lanes = self._has_lanes or lane != ""
        return exchange

    def _steer(self, response_id: str, reading: RequestReading) -> None:
        self._steered.pop(response_id, None)
        self._steered[response_id] = reading
        if len(self._steered) > MAX_STEERED:
            del self._steered[next(iter(self._steered))]

    def _entry(self, data: bytes, kind: str) -> _Open | None:
        """The interception that a message of the server's belongs to."""
        body = self._members(data) if self._has_lanes or not self._open else None
        lane = (body.text("stream_id") if body else None) or ""
        entry = next((entry for entry in self._open if entry.lane == lane), None)
        if entry is None and kind == CREATED and len(self._open) < MAX_OPEN:
            response = as_dict(body.get("response")) if body else {}
            reading = self._steered.pop(as_text(response.get("previous_response_id")), UNREAD)
            self._start(lane, replace(reading, model=as_text(response.get("model"))), has_tools=False)
            entry = self._open[-1]
        return entry

    def _members(self, data: bytes) -> JSONObject | None:
        if len(data) > self._limits.sse_event:
            return None
        try:
            return JSONObject(data)
        except (NotJSON, Unreadable):
            return None


def _kind(data: bytes) -> str:
    """A message's type, as far as it can be seen at its beginning; else empty."""
    match = _type(data)
    return match[1].decode() if match else ""


def _status(data: bytes, limit: int) -> int:
    """The HTTP status that an error message carries; 0 where it carries none."""
    try:
        status = as_count(JSONObject(data).get("status")) if len(data) <= limit else 0
    except (NotJSON, Unreadable):
        return 0
    return status if 400 <= status <= 599 else 0
