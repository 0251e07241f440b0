"""Any bytes of a client or an upstream: the HTTP layers answer, wait or close, and buffer no more than their limits."""

from __future__ import annotations

from itertools import pairwise

import h2.config
from h2.exceptions import ProtocolError
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._http2 import CATCH_HYPER_H2_ERRORS
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from aibridge_addon.config.schema import Limits
from aibridge_addon.proxy.stream.connections import client_connection, upstream_connection
from aibridge_addon.proxy.stream.http2_frames import BoundedH2Connection
from tests.support.playbook import make_context
from tests.support.soak import FUZZ, FUZZ_TIMEOUT

LIMITS = Limits(header_bytes=200)
FRAGMENTS = (
    *(b"GET / HTTP/1.1\r\n", b"POST /v1/messages HTTP/1.1\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n", b"\r\n"),
    *(b"\n", b"\r", b"host: x\r\n", b"content-length: 3\r\n", b"content-length: NaN\r\n", b"content-length: 0x4e\r\n"),
    *(b"transfer-encoding: chunked\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"x:", b" folded\r\n"),
    *(b"connection: upgrade\r\n", b"expect: 100-continue\r\n", b"a" * 150, b"\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=8), max_size=20).map(b"".join)
CONTEXT = make_context()


def in_pieces(data: st.DataObject, whole: bytes) -> list[bytes]:
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=6).map(sorted))
    return [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)]) if end > start]


def given_to(layer: Layer, event: events.Event) -> list[commands.Command]:
    return list(layer.handle_event(event))


@FUZZ_TIMEOUT
@FUZZ
@given(data=st.data(), whole=TEXTS)
def test_any_bytes_of_an_http_1_client(data: st.DataObject, whole: bytes) -> None:
    connection = client_connection(CONTEXT.fork(), LIMITS)
    given_to(connection, events.Start())
    for piece in in_pieces(data, whole):
        yielded = given_to(connection, events.DataReceived(CONTEXT.client, piece))
        if any(isinstance(command, commands.CloseConnection) for command in yielded):
            return
        buffered: int = len(connection.buf)  # type: ignore[attr-defined]
        assert buffered <= LIMITS.header_bytes + len(piece)
    given_to(connection, events.ConnectionClosed(CONTEXT.client))


@FUZZ_TIMEOUT
@FUZZ
@given(data=st.data(), whole=TEXTS)
def test_any_bytes_of_an_http_1_upstream(data: st.DataObject, whole: bytes) -> None:
    context = CONTEXT.fork()
    context.server = Server(address=("x", 80))
    context.server.state = ConnectionState.OPEN
    connection = upstream_connection(context, lambda _: None, LIMITS)
    given_to(connection, events.Start())
    request = http.Request.make("GET", "http://x/")
    given_to(connection, http_events.RequestHeaders(1, request, end_stream=True))
    given_to(connection, http_events.RequestEndOfMessage(1))
    for piece in in_pieces(data, whole):
        yielded = given_to(connection, events.DataReceived(context.server, piece))
        if any(isinstance(command, commands.CloseConnection) for command in yielded):
            return
    given_to(connection, events.ConnectionClosed(context.server))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


BLOCK = b"\x83\x84\x87\x41\x01x"
FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0xFF]),
    st.sampled_from([0, 1, 3, 5, 2**31 - 1]),
    st.sampled_from([b"", BLOCK, b"\0" * 4, b"\0" * 5, b"\0" * 8, b"\0\1\0\0\xff\xff", b"\xff" * 9])
    | st.binary(max_size=60),
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")


def server_connection() -> BufferedH2Connection:
    config = h2.config.H2Configuration(client_side=False, header_encoding=False)
    return BoundedH2Connection(config, LIMITS)


@FUZZ_TIMEOUT
@FUZZ
@given(data=st.data(), sent=st.lists(FRAMES, max_size=12).map(b"".join))
def test_any_frames_of_an_http_2_client(data: st.DataObject, sent: bytes) -> None:
    """As mitmproxy does, which takes these errors for the end of the connection."""
    connection = server_connection()
    connection.initiate_connection()
    try:
        for piece in in_pieces(data, PREFACE + sent):
            connection.receive_data(piece)
            connection.data_to_send()
    except (ProtocolError, *CATCH_HYPER_H2_ERRORS):
        return
    assert sum(len(each.data) for each in connection.incoming_buffer._headers_buffer) <= LIMITS.header_bytes
