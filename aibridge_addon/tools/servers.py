"""All configured MCP servers: their tools as one catalogue, and calls to them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import httpx2

from aibridge_addon.config.schema import HttpServer, Mcp, rendered
from aibridge_addon.records import ServerState, ToolServerConnected
from aibridge_addon.tools import CallError, NotConnected, SessionExpired, catalog
from aibridge_addon.tools.caller import Caller, printable
from aibridge_addon.tools.catalog import DENIED, NOT_ALLOWED, Catalog, LeftOut, ListedTool, Listing, Tool
from aibridge_addon.tools.connection import (
    LISTED_EVERY,
    REFRESHED_EVERY,
    WITHDRAWN_AFTER,
    Backoff,
    Connection,
    Settings,
    listing_of,
)
from aibridge_addon.tools.fair_share import Worker
from aibridge_addon.tools.header_command import HeaderCommand
from aibridge_addon.tools.oauth.connections import LoginConnections
from aibridge_addon.tools.oauth.credential import TokenCredential
from aibridge_addon.tools.oauth.logins import Logins
from aibridge_addon.tools.personal import PersonalConnections
from aibridge_addon.tools.pins import Pinned, Pins
from aibridge_addon.tools.rate import RateLimit
from aibridge_addon.tools.transports import GRACE

logger = logging.getLogger(__name__)

LIBRARY_LOGGERS = ("mcp", "client", "httpx2", "httpcore2")
"""Silenced below critical: their lines contain URLs with keys, messages and tracebacks."""

CHOSEN = frozenset((DENIED, NOT_ALLOWED))
"""Why tools are left out that the configuration excludes by name. These are not reported as left out."""


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row: 1 to 60, with jitter."""
    return min(60.0, 2.0 ** min(failures - 1, 6) * random.uniform(1.0, 1.5))  # noqa: S311 (no secret)


class Servers:
    """All configured servers, and the catalogue of their tools.

    After a reload, the connections of the `Servers` before serve until the new ones are up:

        before ── tools, calls ──▶ each server's first attempt ends ──▶ the own connection
           └── close(linger=True) waits for all first attempts, and for calls that run
    """

    def __init__(
        self,
        settings: Mapping[str, Settings],
        *,
        on_change: Callable[[Catalog], None] | None = None,
        on_connected: Callable[[ToolServerConnected], None] | None = None,
        backoff: Backoff = backoff,
        clock: Callable[[], float] = time.monotonic,
        connected_within: float | None = None,
        refreshed_every: float = REFRESHED_EVERY,
        actor_connections: int = Mcp().actor_connections,
        actor_idle: float = Mcp().actor_idle,
        listed_every: float = LISTED_EVERY,
        withdrawn_after: float = WITHDRAWN_AFTER,
        pinned: Pinned | None = None,
        logins: Logins | None = None,
    ) -> None:
        """`pinned`: None accepts all tools of servers with `pin: true`. `logins`: needed for servers with `oauth`."""
        self._catalog = Catalog()
        self._on_change = on_change
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: dict[str, Connection | PersonalConnections] = {}
        # The MCP library sends each message in the context of its sender, also from another task.
        self._caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
        self._rates = {name: RateLimit(entry.rate) for name, entry in settings.items() if entry.rate is not None}
        self._pins = {
            name: Pins(name, pinned, self._publish)
            for name, entry in settings.items()
            if entry.pin and pinned is not None
        }
        self._required = frozenset(name for name, entry in settings.items() if entry.required)
        self._before: Servers | None = None
        self._after: Servers | None = None
        self._started = -math.inf
        self._ended = False
        self.worker = Worker()
        self._running = 0
        """Calls that run or wait for their turn."""
        self._idle = asyncio.Event()

        def connection(name: str, entry: Settings, publish: Callable[[], None], actor: str | None = None) -> Connection:
            server = Connection(name, entry, publish=publish, backoff=backoff, clock=clock, on_connected=on_connected)
            server.connected_within, server.refreshed_every = connected_within or entry.startup_timeout, refreshed_every
            server.listed_every, server.withdrawn_after = listed_every, withdrawn_after
            server.worker = self.worker
            if isinstance(entry, HttpServer) and entry.send_actor_headers:
                server.on_request = self._name_actor
            if isinstance(entry, HttpServer) and entry.headers_command:
                server.credential = HeaderCommand(name, entry.headers_command, actor=actor)
            return server

        def personal(name: str, entry: Settings) -> PersonalConnections:
            def of_actor(caller: Caller, publish: Callable[[], None]) -> Connection:
                actor = printable(caller.actor)
                metadata = {key: printable(str(value)) for key, value in caller.metadata.items()}
                made = connection(name, rendered(entry, actor, metadata), publish, actor)
                if isinstance(entry, HttpServer) and entry.oauth is not None and logins is not None:
                    made.credential = TokenCredential(logins.tokens, name, caller.actor)
                return made

            options: dict[str, Any] = {
                "publish": self._publish,
                "backoff": backoff,
                "clock": clock,
                "max_connections": actor_connections,
                "idle": actor_idle,
            }
            if isinstance(entry, HttpServer) and entry.oauth is not None and logins is not None:
                return LoginConnections(listing_of(name, entry), of_actor, logins=logins, **options)
            return PersonalConnections(listing_of(name, entry), of_actor, **options)

        for name, entry in settings.items():
            is_personal = entry.templates or (isinstance(entry, HttpServer) and entry.oauth is not None)
            self._servers[name] = personal(name, entry) if is_personal else connection(name, entry, self._publish)

    @property
    def catalog(self) -> Catalog:
        """The current catalogue. A request keeps the one that it began with."""
        return self._catalog

    def states(self) -> tuple[ServerState, ...]:
        """Return the state of each server. May be called on any thread."""
        offered = Counter(tool.server_name for tool in self._catalog.tools)
        return tuple(
            ServerState(
                name,
                server.is_up,
                offered[name],
                sum(each.why not in CHOSEN for each in self.left_out(name)),
                name in self._required,
                server.problem,
                bool(server.listing.tools) if isinstance(server, LoginConnections) else None,
            )
            for name in self._servers
            for server in (self._serving(name),)
        )

    def left_out(self, name: str) -> list[LeftOut]:
        """Return the tools of a server that are not offered. May be called on any thread."""
        server, listing = self._serving(name), self._listing(name)
        reasons = (LeftOut(tool.name, listing.maybe_left_out(tool) or "") for tool in listing.tools)
        return [*(each for each in reasons if each.why), *server.left_out]

    def listed(self, name: str) -> Sequence[ListedTool]:
        """Return the tools that a server lists, offered or not."""
        return self._serving(name).listing.tools

    def replace(self, before: Servers | None) -> None:
        """Serve with the connections of `before` until the own ones are up. Called before `start`."""
        self._before = before
        earlier = before._rates if before is not None else {}
        for name, limit in earlier.items():
            if name in self._rates and self._rates[name].rate == limit.rate:
                self._rates[name] = limit
        for name, server in self._servers.items():
            earlier_server = before._servers.get(name) if before is not None else None
            if isinstance(server, PersonalConnections) and isinstance(earlier_server, PersonalConnections):
                server.listing = dataclasses.replace(server.listing, tools=earlier_server.listing.tools)

    def start(self) -> None:
        """Connect in the background, on the running loop."""
        for name in LIBRARY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        loop = asyncio.get_running_loop()
        self._started = time.monotonic()
        if self._before is not None:
            self._before._after = self
        self._publish()  # what serves from before, and stand-ins
        self._tasks += [loop.create_task(server.run()) for server in self._servers.values()]

    @property
    def is_connecting(self) -> bool:
        """Whether the first attempt to connect to a server, which nothing serves yet, has not ended."""
        return not all(
            (server.tried.is_set() or self._serving(name).is_up) and not self._waits_for_pins(name)
            for name, server in self._servers.items()
        )

    async def connected(self, startup_wait: float) -> None:
        """Wait until each server is connected or has failed once, at most until `startup_wait` after the start."""
        try:
            async with asyncio.timeout(self._started + startup_wait - time.monotonic()):
                await self._tried()
        except TimeoutError:
            pass

    @property
    def needs_actor(self) -> bool:
        """Whether `prepare` may have something to do."""
        return any(
            isinstance(server, PersonalConnections) and not server.listing.tools for server in self._servers.values()
        )

    async def prepare(self, caller: Caller, hidden: Collection[str], timeout: float) -> None:
        """Connect to servers whose tools are known from an actor's connection only. Wait up to `timeout` seconds.

        `hidden`: the servers that the actor may not use.
        """
        unknown = [
            server.prepare(caller, timeout)
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
        total: float | None = None,
    ) -> Any:
        """Call a tool. Cancelling this also cancels the server's request, without waiting for the server.

        Args:
            timeout: seconds without an answer or progress.
            meta: sent as the request's `_meta`.
            caller: who the call runs for.
            total: seconds for a call that reports progress. None: `timeout`.

        Returns:
            The result as the server sends it, usually an object. `results` reads it.

        Raises:
            CallError: the server or the connection failed, or the time is over.
        """
        if tool.server_name not in self._servers:
            raise CallError(f"there is no MCP server {tool.server_name}")
        if (rate := self._rates.get(tool.server_name)) is not None:
            timeout -= await rate.admit(tool.server_name, timeout)
        owner = self._owner(tool.server_name)
        owner._running += 1
        try:
            return await owner._call(tool, arguments, timeout, meta, caller, total)
        finally:
            owner._running -= 1
            owner._idle.set()

    async def _call(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        timeout: float,
        meta: Mapping[str, Any] | None,
        caller: Caller | None,
        total: float | None,
    ) -> Any:
        server = self._servers[tool.server_name]
        self._caller.set(caller)
        if isinstance(server, PersonalConnections):
            return await server.call(tool.original_name, arguments, timeout, meta, caller, total)
        deadline = time.monotonic() + timeout
        try:
            return await server.call(tool.original_name, arguments, timeout, meta, total)
        except NotConnected as e:
            if not e.returning:
                raise
        except SessionExpired:
            pass
        await server.reconnected(deadline)
        return await server.call(tool.original_name, arguments, max(deadline - time.monotonic(), 0.001), meta, total)

    async def close(self, timeout: float = 3 * GRACE, *, linger: bool = False) -> None:
        """End all connections and programs. After `timeout` seconds, or on cancellation, kill them.

        `linger`: serve before that until other `Servers`, which replace these, have tried to connect.
        """
        if linger and self._after is not None:
            await self._after._tried(all_servers=True)
            while self._running:
                self._idle.clear()
                await self._idle.wait()
        self._end()
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
            server.tried.set()
        self._end()

    def _end(self) -> None:
        self._ended = True
        self.worker.close()
        for pins in self._pins.values():
            pins.stop()
            pins.read.set()

    def _owner(self, name: str) -> Servers:
        """Return these `Servers`, or those before whose connection still serves."""
        own, before = self._servers[name], self._before
        if before is None or own.tried.is_set() or name not in before._servers:
            return self
        owner = before._owner(name)
        return owner if owner._servers[name].is_up else self

    def _serving(self, name: str) -> Connection | PersonalConnections:
        return self._owner(name)._servers[name]

    async def _tried(self, *, all_servers: bool = False) -> None:
        """Wait for the end of the first attempts. Without `all_servers`, only of servers that nothing serves yet."""
        for name, server in self._servers.items():
            if all_servers or not self._serving(name).is_up:
                await server.tried.wait()
            if self._waits_for_pins(name):
                await self._pins[name].read.wait()

    def _waits_for_pins(self, name: str) -> bool:
        """Return whether a server has tools that were not compared with their pins yet."""
        return name in self._pins and not self._pins[name].read.is_set() and bool(self._serving(name).listing.tools)

    def _listing(self, name: str) -> Listing:
        """Return the tools of the connection that serves, and the choice of the present configuration."""
        pins = self._pins[name].digests if name in self._pins else None
        serving = self._serving(name)
        tools = serving.listing.tools
        if not tools and isinstance(serving, LoginConnections):
            return serving.stand_in
        return dataclasses.replace(self._servers[name].listing, tools=tools, pins=pins)

    async def _name_actor(self, request: httpx2.Request) -> None:
        """Name the actor in a request that belongs to a call. The headers of a server itself win."""
        if (caller := self._caller.get()) is not None:
            for name, value in caller.headers().items():
                if name not in request.headers:
                    request.headers.update({name.encode(): value})

    def _publish(self) -> None:
        if self._before is not None and all(server.tried.is_set() for server in self._servers.values()):
            self._before = None
        if self._after is not None:
            self._after._publish()
        if not self._ended:
            for name, pins in self._pins.items():
                pins.check(self._serving(name).listing.tools)
        new = catalog.build(map(self._listing, self._servers))
        if new == self._catalog:
            return
        self._catalog = new
        if self._on_change is not None:
            self._on_change(new)
