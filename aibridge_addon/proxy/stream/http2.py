"""HTTP/2 connections that bound what a client sends, and that go away without breaking off their streams.

    GOAWAY ─▶ streams up to its last id go on; after the last of them, or by the server, the connection is closed
    streams above that id, queued streams ─▶ RequestUnprocessed ─▶ a fresh connection
    REFUSED_STREAM ─▶ RequestUnprocessed ─▶ the same connection; a fresh one after MAX_REFUSED in a row

A server sends GOAWAY before it restarts, or after a number of requests. It has not processed the streams above the last
id, nor refused ones, so these requests may be sent again whatever their method is (RFC 9113, sections 6.8 and 8.7).
After an error, the server closes the connection itself. mitmproxy ends every stream at once, and drops the queued ones
without an error. h2 takes no further frame after GOAWAY, so `_go_gently` replaces its handler of that frame.
"""

from __future__ import annotations

import collections
import copy
import logging
from collections.abc import Callable, Sequence

import h2.connection
import h2.events
from h2.errors import ErrorCodes
from h2.exceptions import DenialOfServiceError, ProtocolError
from h2.utilities import HeaderValidationFlags, validate_headers
from hyperframe.frame import GoAwayFrame
from mitmproxy.connection import Connection
from mitmproxy.net.http import url
from mitmproxy.proxy import commands, context, layer
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Server, StreamState

from aibridge_addon.config.schema import Limits
from aibridge_addon.proxy.flow.state import plain_error
from aibridge_addon.proxy.stream.hooks import HEADER_BYTES, HTTP2_FLOOD, AibridgeConnectionClosedHook, ClosedClient
from aibridge_addon.proxy.stream.http2_frames import BoundedH2Connection, FloodError

logger = logging.getLogger(__name__)

LEFT = "the upstream closed the connection before it processed the request"
REFUSED = "the upstream refused the request before it processed it"
MAX_REFUSED = 2
"""Streams that an upstream refuses in a row, without an answer in between, before its connection takes no more."""


class RequestUnprocessed(http_events.ResponseProtocolError):
    """The upstream ended a request that it has not processed. It may be sent again."""


class GoingAway(h2.events.Event):
    """A GOAWAY frame has arrived. In contrast to h2's own event, frames that follow it are processed."""

    def __init__(self, frame: GoAwayFrame) -> None:
        self.last_stream_id = frame.last_stream_id
        self.error_code = frame.error_code


def _go_gently(connection: h2.connection.H2Connection) -> None:
    """Have GOAWAY reported as `GoingAway`, without an end of the connection."""
    connection._frame_dispatch_table[GoAwayFrame] = lambda frame: ([], [GoingAway(frame)])


class BridgeHttp2Server(Http2Server):
    """The connection of a client, which may be a front proxy that sends the requests of many.

    - A malformed request gets 400 (RFC 9113, section 8.1.1). h2 and mitmproxy would end the whole connection.
    - A client's GOAWAY says that it accepts no pushed streams; it still reads its answers.
    """

    def __init__(self, ctx: context.Context, limits: Limits) -> None:
        super().__init__(ctx)
        self.h2_conn = BoundedH2Connection(self.h2_conf, limits)
        _go_gently(self.h2_conn)
        config = copy.copy(self.h2_conn.config)  # mitmproxy's is shared by all connections
        self._validates, config.validate_inbound_headers = config.validate_inbound_headers, False
        self.h2_conn.config = config

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        match event:
            case h2.events.DataReceived():
                pass
            case h2.events.RequestReceived() if problem := self._problem(event.headers):
                return self._refuse(event.stream_id, problem)
            case h2.events.TrailersReceived() if problem := self._problem(event.headers, trailer=True):
                return self._reset(event.stream_id, problem)
            case GoingAway():
                return self._client_leaves()
            case DenialOfServiceError():
                return self._over_a_limit(event)
        return super().handle_h2_event(event)

    def _problem(self, headers: Sequence[tuple[bytes, bytes]], *, trailer: bool = False) -> str | None:
        try:
            if self._validates:
                flags = HeaderValidationFlags(False, trailer, False, False)
                collections.deque(validate_headers(headers, flags), maxlen=0)
            if not trailer:
                url.parse_authority(dict(headers[:4]).get(b":authority", b"") or b"x", check=True)
        except (ProtocolError, ValueError) as e:
            return str(e) or "the request's authority is not valid"
        return None

    def _refuse(self, stream_id: int, problem: str) -> layer.CommandGenerator[bool]:
        """Answer a request that cannot be parsed. It becomes no flow."""
        peer = self.conn.peername
        logger.warning("request refused: client=%s: %s", peer[0] if peer else "", problem)
        if not self.is_open_for_us(stream_id):
            return False  # the client has reset it in the same packet
        body = plain_error(400, problem).raw_content or b""
        self.h2_conn.send_headers(stream_id, [(b":status", b"400"), (b"content-type", b"application/json")])
        self.h2_conn.send_data(stream_id, body, end_stream=True)
        yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        return False

    def _reset(self, stream_id: int, problem: str) -> layer.CommandGenerator[bool]:
        """Reset a stream whose trailers are malformed."""
        if stream_id in self.streams:
            if not self.is_closed(stream_id):
                self.h2_conn.reset_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
            self.streams.pop(stream_id)
            code = http_events.ErrorCode.GENERIC_CLIENT_ERROR
            yield ReceiveHttp(http_events.RequestProtocolError(stream_id, problem, code))
        return False

    def _over_a_limit(self, error: DenialOfServiceError) -> layer.CommandGenerator[bool]:
        reason = HTTP2_FLOOD if isinstance(error, FloodError) else HEADER_BYTES
        yield from self.protocol_error(f"HTTP/2 protocol error: {error}", ErrorCodes.ENHANCE_YOUR_CALM)
        yield AibridgeConnectionClosedHook(ClosedClient(self.context.client, reason))
        return True

    def _client_leaves(self) -> layer.CommandGenerator[bool]:
        if self.h2_conn.open_inbound_streams:
            return False  # after an error, the client closes the connection itself
        yield from self.close_connection("the client closed the connection")
        return True


class BridgeHttp2Client(Http2Client):
    """A connection to an upstream."""

    def __init__(self, ctx: context.Context, retire: Callable[[Connection], None]) -> None:
        """`retire` is called when the connection takes no further requests."""
        super().__init__(ctx)
        _go_gently(self.h2_conn)
        self._retire = retire
        self._leaving = False
        self._refused = 0
        """Streams that were refused since the last answer began."""
        self._error = ""

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if self._leaving or type(event) in _HANDLED:
            return self._handle_end(event)
        return super().handle_h2_event(event)  # most events: a generator less for each chunk

    def _handle_end(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        match event:
            case GoingAway():
                if event.error_code != ErrorCodes.NO_ERROR:
                    self._error = f" after GOAWAY with error {event.error_code}"
                yield from self._leave(event.last_stream_id)
            case h2.events.StreamReset(error_code=ErrorCodes.REFUSED_STREAM, stream_id=stream_id) if (
                self.streams.get(stream_id) is StreamState.EXPECTING_HEADERS
            ):
                self._refused += 1
                if self._refused >= MAX_REFUSED:
                    self._take_no_more()
                yield from self._unprocessed(stream_id, REFUSED)
            case _:
                if type(event) is h2.events.ResponseReceived:
                    self._refused = 0
                if (yield from super().handle_h2_event(event)):
                    return True
        if self._leaving and not self.streams and not self.stream_queue:
            yield from self.close_connection(LEFT)
            return True
        return False

    def _leave(self, last_stream_id: int) -> layer.CommandGenerator[None]:
        self._take_no_more()
        expecting = [id_ for id_, state in self.streams.items() if state is StreamState.EXPECTING_HEADERS]
        for stream_id in expecting:
            if stream_id > last_stream_id:
                yield from self._unprocessed(stream_id, LEFT)
        yield from self._empty_queue()

    def _take_no_more(self) -> None:
        self._leaving = True
        self._retire(self.conn)

    def _unprocessed(self, stream_id: int, message: str) -> layer.CommandGenerator[None]:
        self.streams.pop(stream_id, None)
        yield ReceiveHttp(RequestUnprocessed(stream_id, message, self.ReceiveProtocolError.code))

    def _empty_queue(self) -> layer.CommandGenerator[None]:
        """End the requests that wait for the upstream's limit of concurrent streams."""
        queued, self.stream_queue = list(self.stream_queue), type(self.stream_queue)(list)
        for number, theirs in enumerate(queued, 1):
            self.their_stream_id[-number] = theirs  # these have no stream id of the upstream's connection
            yield from self._unprocessed(-number, LEFT)

    def close_connection(self, msg: str) -> layer.CommandGenerator[None]:
        yield from self._empty_queue()
        yield from super().close_connection(msg + self._error)


_HANDLED = frozenset({GoingAway, h2.events.StreamReset, h2.events.ResponseReceived})
