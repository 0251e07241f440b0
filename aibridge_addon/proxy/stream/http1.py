"""HTTP/1 connections: unsafe heads of clients are refused, and interim answers of upstreams are not their answer.

mitmproxy takes an interim answer (100, 102, 103) for the final one, and waits for the request after it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Server, make_body_reader

from aibridge_addon.proxy.flow.state import json_response
from aibridge_addon.proxy.stream.heads import problem_of_lines

logger = logging.getLogger(__name__)

MAX_REQUEST_HEAD = 64 * 1024
"""Bytes of a request's head, as many as over HTTP/2 (h2's default)."""
MAX_ANSWER_HEAD = 256 * 1024
"""Bytes of an answer's head."""
MAX_INTERIM = 100
"""Interim answers to one request. More are an error of the upstream."""


@dataclass
class UnsafeHeaders(http_events.RequestHeaders):
    """The head of a request that has to be refused. Nothing of the connection is read after it."""

    problem: str = ""


class BridgeHttp1Server(Http1Server):
    """The connection of a client."""

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.DataReceived):
            yield from super().read_headers(event)
            return
        while (head := self.buf.maybe_extract_lines()) == []:
            pass  # blank lines before a request are ignored (RFC 9112, section 2.2)
        if head is None:
            if len(self.buf) > MAX_REQUEST_HEAD:
                self.request = None
                yield from self._refuse(f"the request's head is larger than {MAX_REQUEST_HEAD} bytes", 431)
            return
        lines = [bytes(line) for line in head]
        problem = problem_of_lines(lines)
        size: int | None = 0
        self.request = None
        try:
            self.request = http1.read_request_head(lines)
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

    def _refuse(self, problem: str, status: int = 400) -> layer.CommandGenerator[None]:
        """Have the stream refuse a request. Without a readable one, refuse it here. Then close the connection."""
        if self.request is None:
            peer = self.conn.peername
            logger.warning("request refused: client=%s: %s", peer[0] if peer else "", problem)
            body = json.dumps({"error": {"type": "invalid_request_error", "message": problem}}).encode()
            answer = json_response(status, body, {"connection": "close"})
            yield commands.SendData(self.conn, http1.assemble_response(answer))
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            return
        self.request_done = True  # the connection is closed when the answer is complete
        self.state = self.wait
        yield ReceiveHttp(UnsafeHeaders(self.stream_id, self.request, True, problem=problem))


class BridgeHttp1Client(Http1Client):
    """A connection to an upstream. Interim answers are dropped, as mitmproxy does over HTTP/2.

    The bridge needs none of them: mitmproxy itself answers `Expect: 100-continue`, and the others are hints.
    """

    _interim: tuple[int | None, int] = (None, 0)
    """The stream of the current request, and its interim answers so far."""

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        while isinstance(event, events.DataReceived) and self.stream_id is not None and is_interim(bytes(self.buf)):
            if self.buf.maybe_extract_lines() is None:
                return
            counted, number = self._interim
            number = number + 1 if counted == self.stream_id else 1
            self._interim = self.stream_id, number
            if number > MAX_INTERIM:
                yield from self._end(f"the upstream sent more than {MAX_INTERIM} interim answers")
                return
        yield from super().read_headers(event)
        if self.response is None and len(self.buf) > MAX_ANSWER_HEAD and self.state == self.read_headers:
            yield from self._end(f"the head of the upstream's answer is larger than {MAX_ANSWER_HEAD} bytes")

    def _end(self, message: str) -> layer.CommandGenerator[None]:
        """Close the connection, and end the current request."""
        assert self.stream_id is not None
        self.state = self.done
        yield commands.CloseConnection(self.conn)
        code = http_events.ErrorCode.GENERIC_SERVER_ERROR
        yield ReceiveHttp(http_events.ResponseProtocolError(self.stream_id, message, code))


def is_interim(head: bytes) -> bool:
    """Return whether the beginning of an answer has an interim status (RFC 9110, section 15.2).

    101 is final: another protocol follows it.
    """
    words = head[:32].split(None, 2)
    return len(words) > 1 and words[1][:1] == b"1" and words[1][:3] != b"101"
