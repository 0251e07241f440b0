"""All configured MCP servers: their tools as one catalogue, and calls to them."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from typing import Any

import httpx2
import mcp_types as types

from aibridge_addon.config.schema import HttpServer, Mcp, rendered
from aibridge_addon.records import ServerState, ToolServerConnected
from aibridge_addon.tools import CallError, catalog
from aibridge_addon.tools.caller import Caller, printable
from aibridge_addon.tools.catalog import Catalog, Tool
from aibridge_addon.tools.connection import (
    CONNECTED_WITHIN,
    REFRESHED_EVERY,
    Backoff,
    Connection,
    SessionExpired,
    Settings,
    listing_of,
)
from aibridge_addon.tools.header_command import HeaderCommand
from aibridge_addon.tools.personal import PersonalConnections
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
        actor_connections: int = Mcp().actor_connections,
        actor_idle: float = Mcp().actor_idle,
    ) -> None:
        self._catalog = Catalog()
        self._on_change = on_change
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: dict[str, Connection | PersonalConnections] = {}
        # The MCP library sends each message in the context of its sender, also from another task.
        self._caller: ContextVar[Caller | None] = ContextVar("caller", default=None)

        def connection(name: str, entry: Settings, publish: Callable[[], None], actor: str | None = None) -> Connection:
            server = Connection(name, entry, publish=publish, backoff=backoff, clock=clock, on_connected=on_connected)
            server.connected_within, server.refreshed_every = connected_within, refreshed_every
            if isinstance(entry, HttpServer) and entry.send_actor_headers:
                server.on_request = self._name_actor
            if isinstance(entry, HttpServer) and entry.headers_command:
                server.credential = HeaderCommand(name, entry.headers_command, actor=actor)
            return server

        def personal(name: str, entry: Settings) -> PersonalConnections:
            def of_actor(caller: Caller, publish: Callable[[], None]) -> Connection:
                actor = printable(caller.actor)
                return connection(name, rendered(entry, actor, caller.metadata), publish, actor)

            return PersonalConnections(
                listing_of(name, entry),
                of_actor,
                publish=self._publish,
                backoff=backoff,
                clock=clock,
                max_connections=actor_connections,
                idle=actor_idle,
            )

        for name, entry in settings.items():
            self._servers[name] = personal(name, entry) if entry.templates else connection(name, entry, self._publish)

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

    @property
    def needs_actor(self) -> bool:
        """Whether `prepare` may have something to do."""
        return any(
            isinstance(server, PersonalConnections) and not server.listing.tools for server in self._servers.values()
        )

    async def prepare(self, caller: Caller, hidden: Collection[str]) -> None:
        """Connect to servers whose tools are known from an actor's connection only. Waits for a short time.

        `hidden`: the servers that the actor may not use.
        """
        unknown = [
            server.prepare(caller)
            for name, server in self._servers.items()
            if isinstance(server, PersonalConnections) and name not in hidden and not server.listing.tools
        ]
        if unknown:
            await asyncio.gather(*unknown)

    async def call(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        timeout: float,
        meta: Mapping[str, Any] | None = None,
        caller: Caller | None = None,
    ) -> types.CallToolResult:
        """Call a tool. Cancelling this also cancels the server's request, without waiting for the server.

        `meta` is sent as the request's `_meta`. `caller`: who the call runs for.

        Raises:
            CallError: the server or the connection failed, or the time is over.
        """
        server = self._servers.get(tool.server_name)
        if server is None:
            raise CallError(f"there is no MCP server {tool.server_name}")
        self._caller.set(caller)
        if isinstance(server, PersonalConnections):
            return await server.call(tool.original_name, arguments, timeout, meta, caller)
        deadline = time.monotonic() + timeout
        try:
            return await server.call(tool.original_name, arguments, timeout, meta)
        except SessionExpired:
            await server.reconnected(deadline)
        return await server.call(tool.original_name, arguments, max(deadline - time.monotonic(), 0.001), meta)

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

    async def _name_actor(self, request: httpx2.Request) -> None:
        """Name the actor in a request that belongs to a call. The headers of a server itself win."""
        if (caller := self._caller.get()) is not None:
            for name, value in caller.headers().items():
                if name not in request.headers:
                    request.headers.update({name.encode(): value})

    def _publish(self) -> None:
        new = catalog.build(server.listing for server in self._servers.values())
        if new == self._catalog:
            return
        self._catalog = new
        if self._on_change is not None:
            self._on_change(new)
