"""HTTP/1 connections: heads have limits, unsafe ones are refused, and interim answers are not an upstream's answer.

mitmproxy buffers a head of any length, and whatever a client sends while its request is answered. It takes an interim
answer (100, 102, 103) for the final one, and waits for the request after it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from h11._receivebuffer import ReceiveBuffer
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Server, make_body_reader

from aibridge_addon.config.schema import Limits
from aibridge_addon.proxy.flow.state import plain_error
from aibridge_addon.proxy.stream.heads import problem_of_lines
from aibridge_addon.proxy.stream.hooks import HEADER_BYTES, HEADER_TIMEOUT, AibridgeConnectionClosedHook, ClosedClient
from aibridge_addon.proxy.stream.parsed_heads import request_of, response_of
from aibridge_addon.proxy.stream.short_way import ShortHttp1Client

logger = logging.getLogger(__name__)

MAX_INTERIM = 100
"""Interim answers to one request. More are an error of the upstream."""


BLANK_LINE = re.compile(rb"\n\r?\n")


@dataclass
class UnsafeHeaders(http_events.RequestHeaders):
    """The head of a request that has to be refused. Nothing of the connection is read after it."""

    problem: str = ""


class BridgeHttp1Server(Http1Server):
    """The connection of a client. A head has a limit of bytes, and one of seconds from its first byte on."""

    def __init__(self, ctx: context.Context, limits: Limits) -> None:
        super().__init__(ctx)
        self._limits = limits
        self._wakeup: commands.RequestWakeup | None = None
        """Ends the time for the head that is incomplete."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Wakeup):
            return self._timed_out(event)
        return super()._handle_event(event)

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.DataReceived):
            yield from super().read_headers(event)
            return
        if is_head_too_long(self.buf, self._limits.header_bytes):
            message = f"The head of the request is larger than {self._limits.header_bytes} bytes."
            yield from self._close(431, message, HEADER_BYTES)
            return
        while (head := self.buf.maybe_extract_lines()) == []:
            pass  # blank lines before a request are ignored (RFC 9112, section 2.2)
        if head is None:
            if self.buf and self._wakeup is None:
                self._wakeup = commands.RequestWakeup(self._limits.header_timeout)
                yield self._wakeup
            return
        self._wakeup = None
        lines = [bytes(line) for line in head]
        problem = problem_of_lines(lines)
        size: int | None = 0
        self.request = None
        try:
            self.request = request_of(lines)
            size = http1.expected_http_body_size(self.request)
        except ValueError as e:
            problem = problem or str(e)
        if problem is not None:
            yield from self._refuse(problem)
            return
        assert self.request is not None
        yield ReceiveHttp(http_events.RequestHeaders(self.stream_id, self.request, size == 0))
        self.body_reader = make_body_reader(size)
        self.state = self.read_body
        yield from self.state(event)

    def _refuse(self, problem: str) -> layer.CommandGenerator[None]:
        """Have the stream refuse a request. Without a readable one, refuse it here. Then close the connection."""
        if self.request is None:
            peer = self.conn.peername
            logger.warning("request refused: client=%s: %s", peer[0] if peer else "", problem)
            yield from self._answer(400, problem)
            return
        self.request_done = True  # the connection is closed when the answer is complete
        self.state = self.wait
        yield ReceiveHttp(UnsafeHeaders(self.stream_id, self.request, True, problem=problem))

    def wait(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from super().wait(event)
        if isinstance(event, events.DataReceived) and len(self.buf) > self._limits.header_bytes:
            yield commands.CloseConnection(self.conn)
            code = http_events.ErrorCode.CLIENT_DISCONNECTED
            message = "the client sent more before its request was answered"
            yield ReceiveHttp(http_events.RequestProtocolError(self.stream_id, message, code))
            yield AibridgeConnectionClosedHook(ClosedClient(self.context.client, HEADER_BYTES))
            self.state = self.done

    def _timed_out(self, event: events.Wakeup) -> layer.CommandGenerator[None]:
        if event.command is self._wakeup and self.state == self.read_headers:
            message = f"The head of the request was not complete after {self._limits.header_timeout:g} seconds."
            yield from self._close(408, message, HEADER_TIMEOUT)

    def _close(self, status: int, message: str, reason: str) -> layer.CommandGenerator[None]:
        yield from self._answer(status, message)
        yield AibridgeConnectionClosedHook(ClosedClient(self.context.client, reason))

    def _answer(self, status: int, message: str) -> layer.CommandGenerator[None]:
        """Answer what is no request, and close the connection."""
        answer = plain_error(status, message, headers={"connection": "close"})
        yield commands.SendData(self.conn, http1.assemble_response(answer))
        yield commands.CloseConnection(self.conn)
        self.state = self.done


def is_head_too_long(buffer: ReceiveBuffer, limit: int) -> bool:
    """Return whether no head of at most `limit` bytes is at the beginning of a buffer, and none will be."""
    if len(buffer) <= limit:
        return False
    return BLANK_LINE.search(bytes(buffer)[:limit].lstrip(b"\r\n")) is None


class BridgeHttp1Client(ShortHttp1Client):
    """A connection to an upstream. Interim answers are dropped, as mitmproxy does over HTTP/2.

    The bridge needs none of them: mitmproxy itself answers `Expect: 100-continue`, and the others are hints.
    """

    _interim: tuple[int | None, int] = (None, 0)
    """The stream of the current request, and its interim answers so far."""

    def __init__(self, ctx: context.Context, limits: Limits) -> None:
        super().__init__(ctx)
        self._limits = limits

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.DataReceived) or self.stream_id is None or self.request is None:
            yield from super().read_headers(event)
            return
        if is_head_too_long(self.buf, self._limits.header_bytes):
            yield from self._fail(f"the head of the answer is larger than {self._limits.header_bytes} bytes")
            return
        while is_interim(bytes(self.buf)):
            if self.buf.maybe_extract_lines() is None:
                return
            counted, number = self._interim
            number = number + 1 if counted == self.stream_id else 1
            self._interim = self.stream_id, number
            if number > MAX_INTERIM:
                yield from self._fail(f"the upstream sent more than {MAX_INTERIM} interim answers")
                return
        if not (head := self.buf.maybe_extract_lines()):
            return
        try:
            self.response = response_of([bytes(line) for line in head])
            size = http1.expected_http_body_size(self.request, self.response)
        except ValueError as e:
            yield from self._fail(f"Cannot parse HTTP response: {e}")
            return
        yield ReceiveHttp(http_events.ResponseHeaders(self.stream_id, self.response, size == 0))
        self.body_reader = make_body_reader(size)
        self.state = self.read_body
        yield from self.state(event)

    def _fail(self, message: str) -> layer.CommandGenerator[None]:
        """Close the connection, and end the request with an error of the upstream."""
        assert self.stream_id is not None
        yield commands.CloseConnection(self.conn)
        code = http_events.ErrorCode.GENERIC_SERVER_ERROR
        yield ReceiveHttp(http_events.ResponseProtocolError(self.stream_id, message, code))


def is_interim(head: bytes) -> bool:
    """Return whether the beginning of an answer has an interim status (RFC 9110, section 15.2).

    101 is final: another protocol follows it.
    """
    words = head[:32].split(None, 2)
    return len(words) > 1 and words[1][:1] == b"1" and words[1][:3] != b"101"
