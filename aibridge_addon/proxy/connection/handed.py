"""A worker's side of the ports: listen where the supervisor does, and take what it has accepted."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import Any

from aibridge_addon.proxy.connection import channel

ANSWERED_WITHIN = 60.0
"""Seconds in which the supervisor opens a port."""


class HandedPort:
    """Looks like a listening socket: it can be watched for connections, and gives one after the other."""

    def __init__(self, hand_over: socket.socket) -> None:
        self._hand_over = hand_over
        hand_over.setblocking(False)

    def fileno(self) -> int:
        return self._hand_over.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection and its peer. Raises BlockingIOError: there is none. Raises OSError: no descriptors."""
        os.close(os.dup(self._hand_over.fileno()))  # the kernel would drop a descriptor that has no room here
        data, descriptors, *_ = socket.recv_fds(self._hand_over, 1, 1)
        if not data:  # the supervisor hands nothing over any more, or has ended
            asyncio.get_running_loop().remove_reader(self._hand_over)
            raise BlockingIOError
        self._say(channel.TAKEN)
        if not descriptors:
            self.ended()
            raise ConnectionAbortedError
        connection = socket.socket(fileno=descriptors[0])
        try:
            return connection, connection.getpeername()
        except OSError:  # the client has gone
            connection.close()
            self.ended()
            raise ConnectionAbortedError from None

    def ended(self) -> None:
        """A connection that was accepted here is over. May be called after `close`."""
        self._say(channel.ENDED)

    def close(self) -> None:
        self._hand_over.close()

    def _say(self, byte: int) -> None:
        with suppress(OSError):  # closed, or the supervisor has ended
            self._hand_over.send(bytes((byte,)))


class HandedServer:
    """In place of the server that an event loop would create, with what mitmproxy uses of it.

    `Acceptor` accepts its connections.
    """

    def __init__(self, port: HandedPort, sockets: tuple[socket.socket, ...], loop: asyncio.AbstractEventLoop) -> None:
        self.port = port
        self.sockets = sockets
        self._loop = loop
        self._is_serving = True

    def close(self) -> None:
        if self._is_serving:
            self._is_serving = False
            self._loop.remove_reader(self.port)
            self.port.close()
            for opened in self.sockets:
                opened.close()
            self.sockets = ()


def listen(control: socket.socket, host: str, port: int, loop: asyncio.AbstractEventLoop) -> HandedServer:
    """Have the supervisor open a port. Blocks until it has. Raises OSError: it cannot."""
    control.settimeout(ANSWERED_WITHIN)
    channel.send(control, {"listen": [host, port]})
    lines, descriptors = channel.Lines(), list[int]()
    while True:
        data, received, *_ = socket.recv_fds(control, channel.MAX_LINE, channel.MAX_SOCKETS)
        descriptors += received
        if not data:
            raise OSError("the supervisor has ended")
        for answer in lines.feed(data):
            if "error" in answer:
                raise OSError(answer["errno"], answer["error"])
            hand_over, *sockets = (socket.socket(fileno=each) for each in descriptors)
            return HandedServer(HandedPort(hand_over), tuple(sockets), loop)
