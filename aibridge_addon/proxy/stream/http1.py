"""HTTP/1 connections: interim answers of an upstream are not its answer.

mitmproxy takes an interim answer (100, 102, 103) for the final one, and waits for the request after it.
"""

from __future__ import annotations

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Client

MAX_INTERIM = 100
"""Interim answers to one request. More are an error of the upstream."""


class BridgeHttp1Client(Http1Client):
    """A connection to an upstream. Interim answers are dropped, as mitmproxy does over HTTP/2.

    The bridge needs none of them: mitmproxy itself answers `Expect: 100-continue`, and the others are hints.
    """

    _interim = 0

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        while isinstance(event, events.DataReceived) and self.stream_id is not None and is_interim(bytes(self.buf)):
            if self.buf.maybe_extract_lines() is None:
                return
            self._interim += 1
            if self._interim > MAX_INTERIM:
                yield commands.CloseConnection(self.conn)
                message = f"the upstream sent more than {MAX_INTERIM} interim answers"
                code = http_events.ErrorCode.GENERIC_SERVER_ERROR
                yield ReceiveHttp(http_events.ResponseProtocolError(self.stream_id, message, code))
                return
        yield from super().read_headers(event)
        if self.state != self.read_headers:
            self._interim = 0


def is_interim(head: bytes) -> bool:
    """Return whether the beginning of an answer has an interim status (RFC 9110, section 15.2).

    101 is final: another protocol follows it.
    """
    words = head[:32].split(None, 2)
    return len(words) > 1 and words[1][:1] == b"1" and words[1][:3] != b"101"
