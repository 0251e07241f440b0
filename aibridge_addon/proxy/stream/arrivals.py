"""Forward packets of the short way when they arrive, before mitmproxy's server reads them.

    upstream's socket ─▶ Arrivals ─┬─ short way ───────────────────────────────▶ client's socket
                                   └─ StreamReader ─▶ mitmproxy's server ─▶ layers ─▶ client's socket

mitmproxy's server has a task for each connection, which waits for a packet, takes a lock, passes the packet through its
layers, and then waits for slow clients. That costs as much as reading and forwarding the packet.

A packet is forwarded here only if that task waits for it, and nothing of the connection is left to be read or written.
So packets stay in their order, and a slow client slows down the upstream as before. All that is not forwarded goes to
the task as it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mitmproxy.connection import Server
from mitmproxy.proxy.server import ConnectionHandler

from aibridge_addon.proxy.stream.short_way import PlainServer, ShortWay


class Arrivals:
    """Takes what arrives on an upstream's connection."""

    def __init__(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, register_activity: Callable[[], object]
    ) -> None:
        """`reader` is what mitmproxy's server reads, and `client` what it writes to."""
        self.way: ShortWay | None = None
        """The way of the current answer, or of one before it."""
        self._reader = reader
        self._read_later = reader.feed_data
        self._client = client
        self._register_activity = register_activity

    def take(self, data: bytes) -> None:
        """Forward a packet, or leave it, or a part of it, to mitmproxy's server."""
        way = self.way
        if way is None or not self._is_idle or not way.is_open(len(data)):
            self._read_later(data)
            return
        self._register_activity()
        sent, end, found = way.forward(data)
        if sent:
            self._client.write(sent)
        if found is not None:
            way.found = found
            end -= 1
        if end < len(data):
            self._read_later(data[end:])

    @property
    def _is_idle(self) -> bool:
        """Whether the server waits for a packet, and the client has got all bytes so far."""
        waiter = self._reader._waiter  # type: ignore[attr-defined]
        client = self._client.transport
        return (
            waiter is not None and not waiter.done() and not client.is_closing() and client.get_write_buffer_size() == 0
        )


def forward_on_arrival(handler: ConnectionHandler, server: Server) -> None:
    """Take the packets of an upstream's connection, which is open now."""
    io, client = handler.transports.get(server), handler.transports.get(handler.client)
    if (
        isinstance(server, PlainServer)
        and io is not None
        and client is not None
        and isinstance(io.reader, asyncio.StreamReader)
        and isinstance(client.writer, asyncio.StreamWriter)
    ):
        server.arrivals = Arrivals(io.reader, client.writer, handler.timeout_watchdog.register_activity)
        io.reader.feed_data = server.arrivals.take  # type: ignore[method-assign,assignment]


def forget_arrivals(server: Server) -> None:
    """Forget what took the packets of a connection that has ended. Flows that mitmproxy keeps have the connection."""
    if isinstance(server, PlainServer):
        server.arrivals = None
