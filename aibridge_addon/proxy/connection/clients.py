"""Bound the connections of clients, before a client has authenticated.

    connected ─▶ waiting ──complete head──▶ asked ──CONNECT──▶ waiting ─▶ …
                    └─ header_timeout ─▶ closed

A connection is idle if it carries no request, no answer and no tunnel. When a new connection is over a limit, an idle
one is closed for it: first those that wait for a head, the oldest first, then those between two requests. If no
connection is idle, the new one is closed.

- Over a client's own limit, one of this client is closed.
- Over the limit of all, or when descriptors are short, one of the client with the most connections is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol

from mitmproxy.connection import Client, Connection
from mitmproxy.proxy.layer import Layer

from aibridge_addon.config.schema import Limits
from aibridge_addon.proxy.connection import descriptors
from aibridge_addon.proxy.connection.addresses import address_of
from aibridge_addon.proxy.connection.once_a_minute import OnceAMinute

logger = logging.getLogger(__name__)

PER_CLIENT = "connections_per_client"
IN_ALL = "connections"
OPEN_FILES = "open_files"
HEADER_TIMEOUT = "header_timeout"

SCANNED = 256
"""Used connections that are looked at for an idle one. Each takes about 2 µs."""


class Handler(Protocol):
    """mitmproxy's `ConnectionHandler`."""

    @property
    def layer(self) -> Layer: ...

    def close_connection(self, connection: Connection, half_close: bool = False) -> None: ...


class _Entry:
    __slots__ = ("client", "group", "timer")

    def __init__(self, client: Client, group: _Group) -> None:
        self.client = client
        self.group = group
        self.timer: asyncio.TimerHandle | None = None


class _Group:
    """The connections of one client's address, in the order of their age."""

    __slots__ = ("asked", "waiting")

    def __init__(self) -> None:
        self.waiting: OrderedDict[str, _Entry] = OrderedDict()
        self.asked: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self.waiting) + len(self.asked)


class ClientConnections:
    """Used on the event loop."""

    def __init__(
        self,
        handlers: Callable[[], Mapping[object, Handler]],
        is_busy: Callable[[Layer], bool],
        report: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        """Count connections from now on.

        Args:
            handlers: Returns mitmproxy's handlers of open connections by the id of their client.
            is_busy: Returns whether a connection's layers carry a request, an answer or a tunnel.
            report: Called with the reason of each connection that is closed.
            clock: Returns seconds, and never goes back.
        """
        self.limits = Limits()
        self._handlers = handlers
        self._is_busy = is_busy
        self._report = report
        self._lines = OnceAMinute(clock)
        self._entries: dict[str, _Entry] = {}
        self._groups: dict[str, _Group] = {}

    def connected(self, client: Client) -> None:
        """Admit a new connection, or set `client.error`, with which mitmproxy closes it."""
        address = address_of(client)
        reason = self._make_room(self._groups.get(address))
        if reason is not None:
            client.error = f"over the limit of {reason}"
            self.count(reason, client)
            return
        group = self._groups.setdefault(address, _Group())
        entry = self._entries[client.id] = _Entry(client, group)
        self._wait(entry)

    def disconnected(self, client: Client) -> None:
        self._forget(client.id)

    def head_complete(self, client: Client) -> None:
        """A request's head has come."""
        entry = self._entries.get(client.id)
        if entry is not None and entry.timer is not None:
            self._asked(entry)

    def head_expected(self, client: Client) -> None:
        """A CONNECT has come. The head of a request, or a tunnel's bytes, are next."""
        if (entry := self._entries.get(client.id)) is not None:
            self._wait(entry)

    def may_dial(self, client: Client) -> bool:
        """Return whether an upstream connection may be opened. If descriptors are short, close an idle client's."""
        if not descriptors.are_short(for_upstream=True) or self.close_idle(OPEN_FILES):
            return True
        self.count(OPEN_FILES, client)
        return False

    def close_idle(self, reason: str) -> bool:
        """Close an idle connection of the client that has the most. Returns whether there was one."""
        group = max(self._groups.values(), key=len, default=None)
        return group is not None and self._close_one(group, reason)

    def count(self, reason: str, client: Client) -> None:
        """Report a connection that was closed, and log it once a minute for each reason."""
        self._report(reason)
        if self._lines.is_due(reason):
            logger.warning("connection closed: reason=%s client=%s", reason, address_of(client) or "-")

    def _make_room(self, group: _Group | None) -> str | None:
        """Return the limit that admits no further connection, if no idle one could be closed."""
        if group is not None and len(group) >= self._per_client() and not self._close_one(group, PER_CLIENT):
            return PER_CLIENT
        if len(self._entries) >= self.limits.connections and not self.close_idle(IN_ALL):
            return IN_ALL
        if descriptors.are_short() and not self.close_idle(OPEN_FILES):
            return OPEN_FILES
        return None

    def _per_client(self) -> int:
        """A client has at most half of the descriptors, so that others are served too."""
        available = descriptors.for_clients()
        limit = self.limits.connections_per_client
        return limit if available is None else min(limit, max(1, available // 2))

    def _close_one(self, group: _Group, reason: str) -> bool:
        while group.waiting:
            entry = next(iter(group.waiting.values()))
            if not self._carries_something(entry):
                self._close(entry, reason)
                return True
            self._asked(entry)
        for id_ in list(group.asked)[:SCANNED]:
            if not self._carries_something(group.asked[id_]):
                self._close(group.asked[id_], reason)
                return True
            group.asked.move_to_end(id_)  # it is looked at last the next time
        return False

    def _carries_something(self, entry: _Entry) -> bool:
        handler = self._handlers().get(entry.client.id)
        return handler is not None and self._is_busy(handler.layer)

    def _wait(self, entry: _Entry) -> None:
        self._stop_timer(entry)
        entry.group.asked.pop(entry.client.id, None)
        entry.group.waiting[entry.client.id] = entry
        loop = asyncio.get_running_loop()
        entry.timer = loop.call_later(self.limits.header_timeout, self._timed_out, entry)

    def _asked(self, entry: _Entry) -> None:
        self._stop_timer(entry)
        entry.group.waiting.pop(entry.client.id, None)
        entry.group.asked[entry.client.id] = entry

    def _timed_out(self, entry: _Entry) -> None:
        entry.timer = None
        if self._carries_something(entry):  # a tunnel
            self._asked(entry)
        else:
            self._close(entry, HEADER_TIMEOUT)

    def _close(self, entry: _Entry, reason: str) -> None:
        self._forget(entry.client.id)
        handler = self._handlers().get(entry.client.id)
        if handler is not None:
            handler.close_connection(entry.client)
        self.count(reason, entry.client)

    def _forget(self, id_: str) -> None:
        entry = self._entries.pop(id_, None)
        if entry is None:
            return
        self._stop_timer(entry)
        entry.group.waiting.pop(id_, None)
        entry.group.asked.pop(id_, None)
        if not entry.group:
            self._groups.pop(address_of(entry.client), None)

    def _stop_timer(self, entry: _Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
