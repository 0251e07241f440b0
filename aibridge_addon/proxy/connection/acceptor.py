"""Accept connections a few at a time, so that each can be refused before the next ones take descriptors.

asyncio accepts up to a hundred at once. When descriptors run out it logs an error for each of these attempts, and tries
again more and more often, until it does nothing else.

Only asyncio's own event loop on Unix is taken over. Other loops accept on their own. Ports of a supervisor
(`proxy/workers/`) are accepted from on every loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy.mode_servers import AsyncioServerInstance

from aibridge_addon.proxy.connection.descriptors import OUT_OF_FILES
from aibridge_addon.proxy.connection.handed import HandedPort, HandedServer

logger = logging.getLogger(__name__)

AT_ONCE = 16
"""Connections that are accepted and not yet admitted."""
PAUSE = 0.5
"""Seconds without accepting after descriptors ran out all the same."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]
Listening = socket.socket | HandedPort


class Acceptor:
    def __init__(self, server: Proxyserver, make_room: Callable[[], object]) -> None:
        """`make_room` is called when no connection can be accepted for lack of descriptors."""
        self._server = server
        self._make_room = make_room
        self._pending = 0
        self._paused = False
        self._tasks: set[asyncio.Task[None]] = set()
        server.servers.changed.connect(self._changed)

    def take_over(self) -> None:
        """Accept what arrives at mitmproxy's ports, in place of asyncio. May be called again."""
        if self._paused:
            return
        loop = asyncio.get_running_loop()
        for listening, serve in self._listening():
            loop.add_reader(listening, self._accept, listening, serve)

    async def _changed(self) -> None:
        self.take_over()

    def _listening(self) -> Iterator[tuple[Listening, Serve]]:
        is_asyncio = isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
        for instance in self._server.servers:
            for opened in instance._servers if isinstance(instance, AsyncioServerInstance) else ():
                if isinstance(opened, HandedServer):
                    yield opened.port, instance.handle_stream
                elif isinstance(opened, asyncio.Server) and is_asyncio:
                    for wrapped in opened.sockets:
                        yield wrapped._sock, instance.handle_stream  # type: ignore[attr-defined]

    def _accept(self, listening: Listening, serve: Serve) -> None:
        while self._pending < AT_ONCE:
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:
                if e.errno not in OUT_OF_FILES:
                    raise
                logger.error("aibridge: no connection can be accepted: %s", e.strerror)
                self._make_room()
                self._pause()
                asyncio.get_running_loop().call_later(PAUSE, self._go_on)
                return
            connection.setblocking(False)
            self._pending += 1
            ended = listening.ended if isinstance(listening, HandedPort) else _nothing
            task = asyncio.get_running_loop().create_task(self._begin(connection, serve, ended))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._pause()

    async def _begin(self, connection: socket.socket, serve: Serve, ended: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        begun = False

        async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal begun
            begun = True
            self._admitted()
            try:
                if (
                    writer.get_extra_info("peername") is None
                ):  # the client has reset it, and mitmproxy reads its address
                    writer.close()
                else:
                    await serve(reader, writer)  # type: ignore[misc]
            finally:
                ended()

        try:
            protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), begin, loop)
            await loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # it was closed meanwhile
            connection.close()
            if not begun:
                self._admitted()
                ended()

    def _admitted(self) -> None:
        self._pending -= 1
        if self._paused:
            self._go_on()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            for listening, _ in self._listening():
                asyncio.get_running_loop().remove_reader(listening)

    def _go_on(self) -> None:
        self._paused = False
        self.take_over()


def _nothing() -> None:
    pass
