"""All configured MCP servers: their tools as one catalogue, and calls to them."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from aibridge_addon.records import ServerState, ToolServerConnected
from aibridge_addon.tools import CallError, catalog
from aibridge_addon.tools.catalog import Catalog, Tool
from aibridge_addon.tools.connection import (
    CONNECTED_WITHIN,
    LISTED_EVERY,
    REFRESHED_EVERY,
    WITHDRAWN_AFTER,
    Backoff,
    Connection,
    NotConnected,
    SessionExpired,
    Settings,
)
from aibridge_addon.tools.transports import GRACE

logger = logging.getLogger(__name__)

LIBRARY_LOGGERS = ("mcp", "client", "httpx2", "httpcore2")
"""Silenced below critical: their lines contain URLs with keys, messages and tracebacks."""


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row: 1 to 60, with jitter."""
    return min(60.0, 2.0 ** min(failures - 1, 6) * random.uniform(1.0, 1.5))  # noqa: S311 (no secret)


class Servers:
    """All configured servers, and the catalogue of their tools."""

    def __init__(
        self,
        settings: Mapping[str, Settings],
        *,
        on_change: Callable[[Catalog], None] | None = None,
        on_connected: Callable[[ToolServerConnected], None] | None = None,
        backoff: Backoff = backoff,
        clock: Callable[[], float] = time.monotonic,
        connected_within: float = CONNECTED_WITHIN,
        refreshed_every: float = REFRESHED_EVERY,
        listed_every: float = LISTED_EVERY,
        withdrawn_after: float = WITHDRAWN_AFTER,
    ) -> None:
        self._catalog = Catalog()
        self._on_change = on_change
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: dict[str, Connection] = {}
        for name, entry in settings.items():
            server = Connection(
                name, entry, publish=self._publish, backoff=backoff, clock=clock, on_connected=on_connected
            )
            server.connected_within, server.refreshed_every = connected_within, refreshed_every
            server.listed_every, server.withdrawn_after = listed_every, withdrawn_after
            self._servers[name] = server

    @property
    def catalog(self) -> Catalog:
        """The current catalogue. A request keeps the one that it began with."""
        return self._catalog

    def states(self) -> tuple[ServerState, ...]:
        """Return the state of each server. May be called on any thread."""
        offered = Counter(tool.server_name for tool in self._catalog.tools)
        return tuple(
            ServerState(name, server.is_up, offered[name], server.left_out) for name, server in self._servers.items()
        )

    def start(self) -> None:
        """Connect in the background, on the running loop."""
        for name in LIBRARY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        loop = asyncio.get_running_loop()
        self._tasks += [loop.create_task(server.run()) for server in self._servers.values()]

    async def call(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        timeout: float,
        meta: Mapping[str, Any] | None = None,
        total: float | None = None,
    ) -> Any:
        """Call a tool. Cancelling this also cancels the server's request, without waiting for the server.

        Args:
            timeout: seconds without an answer or progress.
            meta: sent as the request's `_meta`.
            total: seconds for a call that reports progress. None: `timeout`.

        Returns:
            The result as the server sends it, usually an object. `results` reads it.

        Raises:
            CallError: the server or the connection failed, or the time is over.
        """
        server = self._servers.get(tool.server_name)
        if server is None:
            raise CallError(f"there is no MCP server {tool.server_name}")
        deadline = time.monotonic() + timeout
        try:
            return await server.call(tool.original_name, arguments, timeout, meta, total)
        except NotConnected as e:
            if not e.returning:
                raise
            await server.reconnected(deadline)
        except SessionExpired:
            await server.reconnected(deadline)
        return await server.call(tool.original_name, arguments, max(deadline - time.monotonic(), 0.001), meta, total)

    async def close(self, timeout: float = 3 * GRACE) -> None:
        """End all connections and programs. After `timeout` seconds, or on cancellation, kill them."""
        for server in self._servers.values():
            server.stop()
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=timeout)
        finally:
            pending = [task for task in self._tasks if not task.done()]
            self.kill()
        if pending:
            await asyncio.wait(pending, timeout=GRACE)

    def kill(self) -> None:
        """Kill all programs and drop all connections at once, without waiting."""
        for task in self._tasks:
            task.cancel()
        for server in self._servers.values():
            server.stop()
            server.signal(signal.SIGKILL)

    def _publish(self) -> None:
        new = catalog.build(server.listing for server in self._servers.values())
        if new == self._catalog:
            return
        self._catalog = new
        if self._on_change is not None:
            self._on_change(new)
