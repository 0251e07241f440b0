"""The short way of a streamed answer: from the upstream's packet to the client's, past mitmproxy's layers.

mitmproxy takes each packet of an answer through its HTTP layer twice, once to the stream and once to the client's
connection. It removes the framing of HTTP/1 and builds the same framing again. Most answers are forwarded as they are,
so most of this work has no effect.
"""

# HOW THE WAY BEGINS AND ENDS
#
#   socket ─┬─ arrivals ─────────────────────────── short way ─────────────────────────────────▶ socket (client)
#           └─ DataReceived ─▶ BridgeHttp1Client ─┬─ short way ────────────────────────────────▶ SendData (client)
#                                                 └─ ReceiveHttp ─▶ stream ─▶ SendHttp ─▶ Http1Server ─▶ SendData
#
# The stream opens the way when the head of an answer was sent to the client. These conditions last for the answer:
#
#   - Upstream and client speak HTTP/1.
#   - The answer is read by a tap or a splice, and no other addon gets or changes its pieces.
#   - No layer of ours watches the events in between (dumps, bodies that mitmweb keeps).
#
# For each packet, `is_open` checks the rest: the stream reads this answer and waits for no hook, its client has not
# disconnected, and the upstream's connection has nothing in its buffer. Each body has one of three framings:
#
#                    upstream: the payloads of a packet                      client: what it gets of them
#   chunked          whole chunks: a size without extensions, bytes, CRLF    a chunk of each payload
#   Content-Length   the packet, if more of the body follows it              the payloads
#   until the end    the packet                                              the payloads
#   of a connection
#
# The payloads go to the reader, one by one. The framings differ if the bridge has removed a length from the head, if
# the client speaks HTTP/1.0, which has no chunks, or if a later turn is framed otherwise than the first. Where both are
# the same and the answer is unchanged, the client gets the upstream's bytes with their framing, in one write.
#
# Everything else takes the ordinary way, from the byte on at which it begins:
#
#   - a part of a chunk, an extension, the last chunk, trailers, anything malformed
#   - the rest of the chunks in a packet after the answer's terminal event
#   - a packet that completes a Content-Length, also if it has bytes beyond it
#   - the end of a connection
#
# This is correct at any such byte, since mitmproxy's reader of the body is then as if it had read all bytes before it:
# between two chunks it has no other state, and the missing bytes of a Content-Length are counted here. The next packet
# is on the short way again, unless the ordinary one has ended within a chunk.
#
# An answer's end is not sent here, because the stream sends it when the rows are committed. The stream gets it as an
# event, `AnswerRead`, after the chunks before it were sent. So the order of bytes and hooks is that of the ordinary
# way. An exception of the bridge while a chunk is read goes to the stream as well, which raises it (`ReadingFailed`).
#
# Commands are yielded by the upstream's connection, so layers around it (TLS, an upstream proxy) and around the HTTP
# layer (TLS with the client, a tunnel) handle them as they handle all others. mitmproxy's server waits for slow clients
# after each packet that it has read.
#
# Where there are no such layers, the bytes of the sockets are those of the answer. Most packets then skip mitmproxy's
# server, too (`arrivals`), if the client has taken all bytes so far. An event for the stream goes through it
# nevertheless: see `ShortWay.found`.

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from h11._readers import ChunkedReader, ContentLengthReader, Http10Reader
from mitmproxy.connection import Client, Connection, Server
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Server, TBodyReader

from aibridge_addon.proxy.stream.answer import Output, Spliced, Tapped

SWITCH = "AIBRIDGE_ORDINARY_WAY"
"""Environment variable. `1`: all answers take mitmproxy's ordinary way."""

CRLF = b"\r\n"
DIGITS = 8
"""Maximum number of digits of a chunk's size. Larger chunks take the ordinary way."""
_is_size = re.compile(rb"[0-9A-Fa-f]{1,%d}" % DIGITS).fullmatch  # RFC 9112, section 7.1, without extensions


def is_switched_on() -> bool:
    return os.environ.get(SWITCH, "0") in ("", "0")


def takes(reader: TBodyReader, size: int) -> bool:
    """Return whether a packet of `size` bytes may be read without `reader`, the upstream's reader of the body."""
    if type(reader) is ContentLengthReader:
        return size < reader._remaining
    if type(reader) is ChunkedReader:
        return not (reader._bytes_in_chunk or reader._bytes_to_discard or reader._reading_trailer)
    return type(reader) is Http10Reader


def whole_chunks(data: bytes) -> list[tuple[bytes, int]]:
    """Return the payload and the end of each whole chunk at the beginning of a packet."""
    found, end = [], 0
    while end < len(data):
        line_end = data.find(CRLF, end, end + DIGITS + 2)
        size = _size(data[end:line_end]) if line_end > 0 else 0
        start = line_end + 2
        stop = start + size
        end = stop + 2
        if not size or data[stop:end] != CRLF:
            break  # the last chunk, a part of a chunk, or a malformed one
        found.append((data[start:stop], end))
    return found


@lru_cache(maxsize=1024)
def _size(line: bytes) -> int:
    """Return the size in the first line of a chunk, or 0 if it has none. The chunks of an answer have similar sizes."""
    return int(line, 16) if _is_size(line) else 0


@dataclass
class AnswerRead(http_events.HttpEvent):
    """A piece of an answer was read, and its result is more than bytes to send."""

    output: Output


@dataclass
class ReadingFailed(http_events.HttpEvent):
    """Reading a piece of an answer has raised an exception."""

    error: Exception


class ShortStream(Protocol):
    """The part of `BridgeHttpStream` that the short way uses."""

    context: context.Context
    client_state: Callable[[Any], layer.CommandGenerator[None]]
    server_state: Callable[[Any], layer.CommandGenerator[None]]
    _paused: layer.Paused | None

    def state_done(self, _: Any) -> layer.CommandGenerator[None]: ...


class HasWay(Protocol):
    """`Arrivals` of an upstream's connection."""

    way: ShortWay | None


class ShortWay:
    """The short way of one turn's answer."""

    def __init__(
        self,
        stream: ShortStream,
        turn_id: int,
        upstream: Http1Client,
        answer: Tapped | Spliced,
        *,
        to_chunks: bool,
    ) -> None:
        """Open the way for `stream`, which is in the state that reads this answer. `to_chunks`: for the client."""
        self._stream = stream
        self._turn_id = turn_id
        self._upstream = upstream
        self._client: Client = stream.context.client
        self._convert: Callable[[bytes], bytes | Output] = answer.convert
        """Reads a payload, and returns what the client gets."""
        self._is_verbatim = isinstance(answer, Tapped) and answer.is_verbatim
        self._to_chunks = to_chunks
        self._states: tuple[object, object] = (stream.client_state, stream.server_state)
        self.found: http_events.HttpEvent | None = None
        """What the stream gets before the next packet of mitmproxy's server. That one begins with the last byte before
        it, because an empty packet would be none."""

    def is_open(self, size: int) -> bool:
        """Return whether the next packet, of `size` bytes, may take the short way."""
        upstream = self._upstream
        return (
            not upstream.buf and self._stream._paused is None and self._is_read() and takes(upstream.body_reader, size)
        )

    def end(self) -> None:
        """Close the way for good, and forget the answer: the upstream's connection has the way until the next one."""
        self._states = (None, None)
        self._convert = _nothing

    def _is_read(self) -> bool:
        """Return whether the stream still reads this answer, for a client that is there."""
        client_state, server_state = self._states
        return self._stream.server_state is server_state and self._stream.client_state is client_state

    def forward(self, data: bytes) -> tuple[bytes, int, http_events.HttpEvent | None]:
        """Read a packet of the upstream.

        Returns the bytes for the client, the number of bytes that were read, and what the stream gets after them. The
        rest of the packet takes the ordinary way.
        """
        reader = self._upstream.body_reader
        from_chunks = type(reader) is ChunkedReader
        if type(reader) is ContentLengthReader:
            reader._remaining -= len(data)
        found: http_events.HttpEvent | None = None
        shown: list[bytes] = []
        done = end = 0
        try:
            for payload, end in whole_chunks(data) if from_chunks else ((data, len(data)),):
                made = self._convert(payload)
                if not isinstance(made, bytes):
                    found = AnswerRead(self._turn_id, made)
                    break
                shown.append(made)
                done = end
        except Exception as e:  # noqa: BLE001 (the stream raises it)
            found = ReadingFailed(self._turn_id, e)
        if self._is_verbatim and from_chunks is self._to_chunks:
            sent = data[:done]
        elif self._to_chunks:
            # An empty chunk would be the last one.
            sent = b"".join(b"%x\r\n%s\r\n" % (len(made), made) for made in shown if made)
        else:
            sent = b"".join(shown)
        return sent, done if found is None else end, found

    def take(self, event: events.DataReceived) -> layer.CommandGenerator[None]:
        """Handle a packet of the upstream."""
        sent, end, found = self.forward(event.data)
        if sent:
            yield commands.SendData(self._client, sent)
        if found is not None:
            yield ReceiveHttp(found)
        if end < len(event.data):
            rest = events.DataReceived(event.connection, event.data[end:])
            yield from Http1Client._handle_event(self._upstream, rest)

    def go_on(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Pass on what was `found`, unless the client has left, and then the rest of its packet or the end."""
        assert self.found is not None
        found, self.found = self.found, None
        if self._is_read():
            yield ReceiveHttp(found)
        if isinstance(event, events.DataReceived):
            event = events.DataReceived(event.connection, event.data[1:])
            if not event.data:
                return
        yield from Http1Client._handle_event(self._upstream, event)


class ShortHttp1Client(Http1Client):
    """A connection to an upstream, with a short way for answers."""

    short_way: ShortWay | None = None
    """The way of the current answer, or of one before it."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        way = self.short_way
        if way is not None and isinstance(event, events.ConnectionEvent):
            if way.found is not None:
                return way.go_on(event)
            if type(event) is events.DataReceived and way.is_open(len(event.data)):
                return way.take(event)
        return super()._handle_event(event)


class PlainServer(Server):
    """mitmproxy's data of a connection to an upstream, if its bytes and those of its client are HTTP: without TLS and
    without a tunnel."""

    arrivals: HasWay | None = None
    """Takes what arrives on it, while it is open."""


def open_short_way(
    stream: ShortStream, turn_id: int, answer: Tapped | Spliced, connections: Mapping[Connection, layer.Layer]
) -> ShortWay | None:
    """Let the answer that `stream` has begun to read take the short way, if its connections allow it. Returns it."""
    outermost = connections.get(stream.context.server)
    upstream = outermost.context.layers[-1] if outermost is not None else None  # inside of TLS and upstream proxies
    if not isinstance(upstream, ShortHttp1Client):
        return None
    if isinstance(answer, Tapped) and answer.unread is not None and answer.unread <= len(upstream.buf):
        return None  # it came with its head
    client = connections.get(stream.context.client)
    if stream.client_state != stream.state_done or not isinstance(client, Http1Server) or client.response is None:
        return None
    # The same as in `Http1Server.send`.
    to_chunks = "chunked" in client.response.headers.get("transfer-encoding", "").lower()
    way = upstream.short_way = ShortWay(stream, turn_id, upstream, answer, to_chunks=to_chunks)
    if isinstance(server := stream.context.server, PlainServer) and server.arrivals is not None:
        server.arrivals.way = way
    return way


def _nothing(_data: bytes) -> bytes:
    return b""
