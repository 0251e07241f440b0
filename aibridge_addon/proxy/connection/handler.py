"""Adjust mitmproxy's handler of a client's connection when the client has connected.

    mitmproxy                                              here
    5 connections to a destination, further ones wait      limits.upstream_connections
    the end after `tcp_timeout` looks like the client's    the client's `error` says so
    a lock and two awaits to see that no client is slow    a look at each connection

An HTTP/2 client needs a connection for each answer that an HTTP/1.1 upstream has not ended: with five of them, the
sixth answer waits for the end of another one.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial

from mitmproxy import optmanager
from mitmproxy.connection import Client
from mitmproxy.options import Options
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO

TCP_TIMEOUT = 3600
"""Seconds. Default of mitmproxy's option `tcp_timeout` with the addon. mitmproxy's own, 600, cuts answers of models
that think for longer before the first byte."""
INACTIVE = "closed after tcp_timeout without traffic"
"""`error` of a client's connection that was closed because nothing was sent or received."""


def set_default_timeout(options: Options) -> None:
    """Set `tcp_timeout` unless the operator has set it."""
    if dict(options.items())["tcp_timeout"].value is optmanager.unset:
        options.update(tcp_timeout=TCP_TIMEOUT)


def adjust(handler: ConnectionHandler, upstream_connections: int) -> None:
    """Set the number of connections to one destination, note an end after `tcp_timeout`, and drain what is full."""
    handler.max_conns = defaultdict(lambda: asyncio.Semaphore(upstream_connections))
    handler.timeout_watchdog.callback = partial(_timed_out, handler)
    handler.drain_writers = partial(_drain_writers, handler, handler.drain_writers)  # type: ignore[method-assign]


async def _drain_writers(handler: ConnectionHandler, drain: Callable[[], Awaitable[None]]) -> None:
    """Wait for slow peers as mitmproxy does. Most of the time there are none, and its way to find that out is long."""
    for io in handler.transports.values():
        if io.writer is not None and not _is_drained(io):
            await drain()
            return


def _is_drained(io: ConnectionIO) -> bool:
    """Return whether `drain` would neither wait nor raise."""
    if not (isinstance(io.writer, asyncio.StreamWriter) and isinstance(io.reader, asyncio.StreamReader)):
        return False
    transport = io.writer.transport
    return not (transport.get_write_buffer_size() or transport.is_closing() or io.reader.exception())


async def _timed_out(handler: ConnectionHandler) -> None:
    handler.client.error = INACTIVE
    await handler.on_timeout()


def is_inactive(client: Client) -> bool:
    """Return whether a client's connection was closed because nothing was sent or received."""
    return client.error == INACTIVE
