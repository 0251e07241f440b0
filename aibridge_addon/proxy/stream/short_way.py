"""The short way of a streamed answer: from the upstream's packet to the client's, past mitmproxy's layers.

mitmproxy takes each packet of an answer through its HTTP layer twice, once to the stream and once to the client's
connection. It removes the chunks of HTTP/1.1 and builds the same chunks again. Most answers are forwarded as they are,
so most of this work has no effect.
"""

# HOW THE WAY BEGINS AND ENDS
#
#   DataReceived ─▶ BridgeHttp1Client ─┬─ short way ──────────────────────────────────────────▶ SendData (client)
#                                      └─ ReceiveHttp ─▶ stream ─▶ SendHttp ─▶ Http1Server ──▶ SendData (client)
#
# The stream opens the way when the head of an answer was sent to the client. These conditions last for the answer:
#
#   - Upstream and client speak HTTP/1.1, and both bodies are chunked.
#   - The answer is read by a tap or a splice, and no other addon gets or changes its pieces.
#   - No layer of ours watches the events in between (dumps, bodies that mitmweb keeps).
#
# For each packet, `is_open` checks the rest: the stream reads this answer and waits for no hook, its client has not
# disconnected, and the upstream's connection is between two chunks, with nothing of a chunk in its buffer.
#
# A packet on the short way is a sequence of *whole chunks*: a size without extensions, as many bytes, and CRLF. The
# payload goes to the reader, chunk by chunk. Where the answer is unchanged, the client gets the chunks with the bytes
# of their framing, in one write. Otherwise it gets a chunk of what the reader returns.
#
# Everything else takes the ordinary way, from the byte on at which it begins: a part of a chunk, an extension, the last
# chunk, trailers, anything malformed, and the rest of a packet after the answer's terminal event. This is correct at
# any such byte, since mitmproxy's reader of chunks is then in the same state as before the packet. The next packet is
# on the short way again if the ordinary one has reached the end of a chunk.
#
# An answer's end is not sent here, because the stream sends it when the rows are committed. The stream gets it as an
# event, `AnswerRead`, after the chunks before it were sent. So the order of bytes and hooks is that of the ordinary
# way. An exception of the bridge while a chunk is read goes to the stream as well, which raises it (`ReadingFailed`).
#
# Commands are yielded by the upstream's connection, so layers around it (TLS, an upstream proxy) and around the HTTP
# layer (TLS with the client, a tunnel) handle them as they handle all others. mitmproxy's server waits for slow clients
# after each packet, whichever way it has taken.

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from h11._readers import ChunkedReader
from mitmproxy.connection import Client, Connection
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Server

from aibridge_addon.proxy.stream.answer import Output, Spliced, Tapped

SWITCH = "AIBRIDGE_ORDINARY_WAY"
"""Environment variable. `1`: all answers take mitmproxy's ordinary way."""

CRLF = b"\r\n"
# RFC 9112, section 7.1, without extensions. Larger chunks than 8 digits can say take the ordinary way.
_chunk_head = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n").match


def is_switched_on() -> bool:
    return os.environ.get(SWITCH, "0") in ("", "0")


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


class ShortWay:
    """The short way of one turn's answer."""

    def __init__(self, stream: ShortStream, turn_id: int, upstream: Http1Client, answer: Tapped | Spliced) -> None:
        """Open the way for `stream`, which is in the state that reads this answer."""
        self._stream = stream
        self._turn_id = turn_id
        self._upstream = upstream
        self._client: Client = stream.context.client
        self._read = answer.exchange.feed if isinstance(answer, Tapped) and answer.is_verbatim else None
        """Reads a payload that is forwarded unchanged. It returns the offset of the answer's end, None before it."""
        self._convert = answer.convert
        """Reads all other payloads, and returns what the client gets."""
        self._states = stream.client_state, stream.server_state

    def is_open(self) -> bool:
        """Return whether the next packet may take the short way."""
        reader, stream = self._upstream.body_reader, self._stream
        client_state, server_state = self._states
        return (
            not self._upstream.buf
            and stream._paused is None
            and stream.server_state is server_state
            and stream.client_state is client_state
            and type(reader) is ChunkedReader
            and not (reader._bytes_in_chunk or reader._bytes_to_discard or reader._reading_trailer)
        )

    def take(self, event: events.DataReceived) -> layer.CommandGenerator[None]:
        """Handle a packet of the upstream."""
        data, done, end = event.data, 0, 0
        read = self._read
        found: http_events.HttpEvent | None = None
        converted: list[bytes] = []
        try:
            while (head := _chunk_head(data, done)) is not None:
                start = head.end()
                end = start + int(head[1], 16)
                if end == start or data[end : end + 2] != CRLF:
                    break  # the last chunk, a part of a chunk, or a malformed one
                payload = data[start:end]
                if read is not None:
                    if (at := read(payload)) is not None:
                        found = AnswerRead(self._turn_id, Output(payload[:at], payload[at:]))
                        break
                elif isinstance(shown := self._convert(payload), bytes):
                    converted.append(shown)
                else:
                    found = AnswerRead(self._turn_id, shown)
                    break
                done = end + 2
        except Exception as e:  # noqa: BLE001 (the stream raises it)
            found = ReadingFailed(self._turn_id, e)
        if read is None:
            # An empty chunk would be the last one.
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(shown), shown) for shown in converted if shown)
        else:
            chunks = data[:done]
        if chunks:
            yield commands.SendData(self._client, chunks)
        if found is not None:
            done = end + 2
            yield ReceiveHttp(found)
        if done < len(data):
            rest = events.DataReceived(event.connection, data[done:])
            yield from Http1Client._handle_event(self._upstream, rest)


class ShortHttp1Client(Http1Client):
    """A connection to an upstream, with a short way for answers."""

    short_way: ShortWay | None = None
    """The way of the current answer, or of one before it."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        way = self.short_way
        if way is not None and type(event) is events.DataReceived and way.is_open():
            return way.take(event)
        return super()._handle_event(event)


def open_short_way(
    stream: ShortStream, turn_id: int, answer: Tapped | Spliced, connections: Mapping[Connection, layer.Layer]
) -> None:
    """Let the answer that `stream` has begun to read take the short way, if its connections allow it."""
    client, upstream = (connections.get(c) for c in (stream.context.client, stream.context.server))
    upstream = upstream.context.layers[-1] if upstream is not None else None  # inside of TLS and upstream proxies
    if (
        stream.client_state == stream.state_done
        and isinstance(upstream, ShortHttp1Client)
        and isinstance(client, Http1Server)
        and client.request is not None
        and client.request.http_version == "HTTP/1.1"
        and client.response is not None
        and "chunked" in client.response.headers.get("transfer-encoding", "").lower()
    ):
        upstream.short_way = ShortWay(stream, turn_id, upstream, answer)
