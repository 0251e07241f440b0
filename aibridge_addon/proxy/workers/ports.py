"""The supervisor's side of the ports: listen, accept, and hand each connection to the worker that has the fewest."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from tornado.netutil import bind_sockets

from aibridge_addon.proxy.connection import channel
from aibridge_addon.proxy.connection.descriptors import OUT_OF_FILES

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that the kernel holds for each socket until one is accepted."""
UNTAKEN = 16
"""Connections that were handed to a worker and not yet taken by it. A worker that takes none gets no more."""
AT_ONCE = 64
"""Connections that are accepted in one turn of the event loop."""
PAUSE = 0.5
"""Seconds without accepting after descriptors ran out."""
ALL = ("", "::")
"""Names of all addresses."""


class Member:
    """One worker at one port."""

    def __init__(self, worker: int, hand_over: socket.socket) -> None:
        self.worker = worker
        self.hand_over = hand_over
        self.untaken: deque[socket.socket] = deque()
        """Handed over. They are kept until the worker has them: if it ends before, another one gets them."""
        self.connections = 0
        self.chosen = 0
        """The number of the last connection that it got: among equals, the one that waits longest is next."""


class Port:
    """What listens at one address of mitmproxy's options, for all workers."""

    def __init__(self, host: str, port: int) -> None:
        """Raises OSError: the address cannot be listened on."""
        self.sockets: Sequence[socket.socket] = bind_sockets(port, None if host in ALL else host, backlog=BACKLOG)
        self._members: list[Member] = []
        self._accepted = 0
        self._homeless: deque[socket.socket] = deque()
        """Accepted for a worker that has ended before it took them."""
        self._is_accepting = False
        self._paused: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> dict[int, int]:
        """Return the number of open connections of each worker."""
        return {member.worker: member.connections for member in self._members}

    def join(self, worker: int) -> socket.socket:
        """Hand connections to a worker, too. Returns its end of the hand-over."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        member = Member(worker, ours)
        self._members.append(member)
        asyncio.get_running_loop().add_reader(ours, self._said, member)
        self._follow()
        return theirs

    def close(self) -> None:
        """Listen no more. Workers keep what they have."""
        loop = asyncio.get_running_loop()
        if self._paused is not None:
            self._paused.cancel()
        for opened in self.sockets:
            loop.remove_reader(opened)
            opened.close()
        self.sockets, self._is_accepting = (), False
        for member in list(self._members):
            self._leave(member)
        for connection in self._homeless:
            connection.close()

    # --- accepting ----------------------------------------------------------------------------------------------------

    def _next(self) -> Member | None:
        free = [member for member in self._members if len(member.untaken) < UNTAKEN]
        return min(free, key=lambda member: (member.connections, member.chosen), default=None)

    def _follow(self) -> None:
        """Accept as long as there is a worker that takes connections."""
        while self._homeless and self._next() is not None:
            self._hand(self._homeless.popleft())
        accepts = bool(self.sockets) and self._next() is not None and self._paused is None
        if accepts == self._is_accepting:
            return
        self._is_accepting = accepts
        loop = asyncio.get_running_loop()
        for opened in self.sockets:
            if accepts:
                loop.add_reader(opened, self._accept, opened)
            else:
                loop.remove_reader(opened)

    def _accept(self, opened: socket.socket) -> None:
        for _ in range(AT_ONCE):
            if not self._is_accepting:
                return
            try:
                connection, _ = opened.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:
                if e.errno not in OUT_OF_FILES:
                    raise
                logger.error("no connection can be accepted: %s", e.strerror)
                self._paused = asyncio.get_running_loop().call_later(PAUSE, self._go_on)
                self._follow()
                return
            self._hand(connection)
            self._follow()

    def _go_on(self) -> None:
        self._paused = None
        self._follow()

    def _hand(self, connection: socket.socket) -> None:
        while (member := self._next()) is not None:
            try:
                socket.send_fds(member.hand_over, [channel.HANDED], [connection.fileno()])
            except OSError:  # it has ended
                self._leave(member)
                continue
            self._accepted += 1
            member.chosen = self._accepted
            member.untaken.append(connection)
            member.connections += 1
            return
        self._homeless.append(connection)

    # --- what workers say ---------------------------------------------------------------------------------------------

    def _said(self, member: Member) -> None:
        try:
            said = member.hand_over.recv(4096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            said = b""
        if not said:
            self._leave(member)
            return
        for _ in range(said.count(channel.TAKEN)):
            member.untaken.popleft().close()
        member.connections -= said.count(channel.ENDED)
        self._follow()

    def _leave(self, member: Member) -> None:
        if member in self._members:
            self._members.remove(member)
            asyncio.get_running_loop().remove_reader(member.hand_over)
            member.hand_over.close()
            self._homeless += member.untaken
            self._follow()


class Ports:
    """All ports that workers have asked for. They stay open: a worker that is started again asks again."""

    def __init__(self) -> None:
        self._ports: dict[tuple[str, int], Port] = {}

    def answer(self, worker: int, control: socket.socket, host: str, port: int) -> None:
        """Answer a worker that listens. Raises OSError: it has ended."""
        try:
            found = self._ports.get((host, port)) or Port(host, port)
        except OSError as e:
            channel.send(control, {"errno": e.errno or 0, "error": e.strerror or os.strerror(e.errno or 0)})
            return
        self._ports[host, port] = found
        theirs = found.join(worker)
        with theirs:
            descriptors = [theirs.fileno(), *(opened.fileno() for opened in found.sockets)]
            channel.send(control, {"sockets": len(found.sockets)}, descriptors)

    def connections(self, worker: int) -> int:
        """Return how many connections a worker has."""
        return sum(port.connections.get(worker, 0) for port in self._ports.values())

    def close(self) -> None:
        with suppress(OSError):
            for port in self._ports.values():
                port.close()
        self._ports.clear()
