"""mitmproxy's handler of a client's connection waits for slow peers as before."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import ConnectionIO, SimpleConnectionHandler
from mitmproxy.test import tflow

from aibridge_addon.proxy.connection.handler import adjust

MUCH = b"x" * 2**24


@dataclass
class Connected:
    handler: SimpleConnectionHandler
    peer: socket.socket
    """The client's end."""

    @property
    def writer(self) -> asyncio.StreamWriter:
        writer = self.handler.transports[self.handler.client].writer
        assert isinstance(writer, asyncio.StreamWriter)
        return writer


@pytest.fixture
async def connected() -> AsyncIterator[Connected]:
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours)
    options = Options()
    options.add_option("tcp_timeout", int, 600, "")
    handler = SimpleConnectionHandler(reader, writer, options, ProxyMode.parse("regular"), {})
    adjust(handler, upstream_connections=5)
    yield Connected(handler, peer)
    writer.transport.abort()
    peer.close()


async def test_draining_waits_until_a_slow_client_has_read(connected: Connected) -> None:
    connected.writer.write(MUCH)
    draining = asyncio.ensure_future(connected.handler.drain_writers())
    await asyncio.sleep(0)
    assert not draining.done()
    received = 0
    while received < len(MUCH):
        received += len(await asyncio.get_running_loop().sock_recv(connected.peer, 2**20))
    await draining


async def test_draining_does_nothing_for_a_client_that_has_read_all(connected: Connected) -> None:
    connected.writer.write(b"x")
    async with connected.handler._drain_lock:  # mitmproxy's own way takes it
        await connected.handler.drain_writers()


async def test_draining_takes_mitmproxys_way_for_a_client_that_is_closing(connected: Connected) -> None:
    connected.writer.close()
    assert await takes_the_lock(connected.handler)


async def test_draining_takes_mitmproxys_way_for_streams_that_are_not_asyncios(connected: Connected) -> None:
    """In local mode and WireGuard's, they are mitmproxy_rs's."""

    class Stream:
        async def drain(self) -> None: ...

    connected.handler.transports[tflow.tserver_conn()] = ConnectionIO(writer=cast(Any, Stream()))
    assert await takes_the_lock(connected.handler)


async def takes_the_lock(handler: SimpleConnectionHandler) -> bool:
    async with handler._drain_lock:
        draining = asyncio.ensure_future(handler.drain_writers())
        await asyncio.sleep(0)
        waits = not draining.done()
    await draining
    return waits


async def test_draining_ends_the_handler_of_a_client_that_is_gone(connected: Connected) -> None:
    waiting = asyncio.ensure_future(asyncio.Event().wait())
    io = connected.handler.transports[connected.handler.client]
    io.handler = waiting
    assert isinstance(io.reader, asyncio.StreamReader)
    io.reader.set_exception(ConnectionResetError("reset"))
    await connected.handler.drain_writers()
    with pytest.raises(asyncio.CancelledError):
        await waiting
