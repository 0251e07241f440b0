"""One MCP server with a connection for each actor, because its headers or its environment name the actor.

    a request ─▶ prepare ─▶ the first actor's connection ─▶ its list of tools is offered to all
    a call ────▶ the caller's own connection, made at the first call ─▶ closed after it was idle for long

Connections are bounded. If there are too many, the one that was idle for the longest time makes way.

A refused credential is one actor's, and costs no other one anything. If the server cannot be reached, it counts as away
for a while only: nothing but a request finds out whether it is back.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aibridge_addon.tools import CallError, SessionExpired
from aibridge_addon.tools.caller import Caller
from aibridge_addon.tools.catalog import LeftOut, Listing
from aibridge_addon.tools.connection import Connection
from aibridge_addon.tools.wording import is_about_credential

SWEEP = 30.0
"""Seconds between searches for idle connections."""
MAX_FAILED = 1000
"""Actors whose failed attempts to connect are remembered. Beyond it, the oldest is forgotten."""

Publish = Callable[[], None]
MakeConnection = Callable[[Caller, Publish], Connection]
Backoff = Callable[[int], float]


@dataclass(slots=True, eq=False)
class _Personal:
    """The connection of one actor."""

    connection: Connection
    running: int = 0
    used: float = 0.0
    task: asyncio.Task[None] | None = None


class PersonalConnections:
    """Used on one event loop, in the place of one `Connection`."""

    def __init__(
        self,
        listing: Listing,
        make: MakeConnection,
        *,
        publish: Publish,
        backoff: Backoff,
        clock: Callable[[], float],
        max_connections: int,
        idle: float,
    ) -> None:
        """`make` creates an actor's connection. `idle`: seconds after which an unused one is closed."""
        self.listing = listing
        self.name = listing.server_name
        self._make = make
        self._publish = publish
        self._backoff = backoff
        self._clock = clock
        self._max = max_connections
        self._idle = idle
        self._actors: dict[str, _Personal] = {}
        self._ending: set[_Personal] = set()
        self._lister: _Personal | None = None
        self._failed: dict[str, tuple[int, float]] = {}
        """By actor: the attempts that have failed in a row, and when the next one may be made for a list of tools."""
        self._away_until = -math.inf
        self._stopping = asyncio.Event()
        self.tried = asyncio.Event()
        """As of a `Connection`. There is nothing to wait for before an actor is known."""
        self.tried.set()
        self.problem = ""
        """Why the server could not be reached. Empty: it could."""

    @property
    def is_up(self) -> bool:
        """Whether one of the connections is up, or the server was not found away a moment ago."""
        return self._clock() >= self._away_until or any(each.connection.is_up for each in self._actors.values())

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        return self._lister.connection.left_out if self._lister is not None else ()

    @property
    def _listed(self) -> bool:
        return bool(self.listing.tools)

    async def prepare(self, caller: Caller, timeout: float) -> None:
        """Connect for this actor if the server's tools are not known yet. Wait up to `timeout` seconds for them."""
        if self._listed or self._stopping.is_set():
            return
        _, next_attempt = self._failed.get(caller.actor, (0, -math.inf))
        each = self._lister or (self._opened(caller) if self._clock() >= next_attempt else None)
        if each is not None and not each.connection.tried.is_set():
            try:
                await asyncio.wait_for(each.connection.tried.wait(), timeout)
            except TimeoutError:
                pass

    async def call(
        self,
        tool: str,
        arguments: dict[str, Any],
        timeout: float,
        meta: Mapping[str, Any] | None = None,
        caller: Caller | None = None,
        total: float | None = None,
    ) -> Any:
        """Call a tool over the caller's own connection. Connecting counts for `timeout`.

        Raises:
            CallError: there is no caller, there are too many connections, or what `Connection.call` raises.
        """
        if caller is None:
            raise CallError(f"MCP server {self.name} is used in the name of an actor, and there is none")
        deadline = time.monotonic() + timeout
        each = self._opened(caller)
        each.running += 1
        try:
            await self._up(each, timeout)
            connection = each.connection
            try:
                return await connection.call(tool, arguments, _left(deadline), meta, total)
            except SessionExpired:
                await connection.reconnected(deadline)
            return await connection.call(tool, arguments, _left(deadline), meta, total)
        finally:
            each.running -= 1
            each.used = self._clock()

    async def reconnected(self, deadline: float) -> None:
        """A `Connection` has this, too. Here, `call` itself waits."""

    async def run(self) -> None:
        """Close idle connections until `stop` is called. Then wait for the end of all."""
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), min(SWEEP, self._idle))
            except TimeoutError:
                self.close_idle()
        tasks = [each.task for each in (*self._actors.values(), *self._ending) if each.task is not None]
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()

    def close_idle(self) -> None:
        """Close the connections that were not used for long."""
        now = self._clock()
        for actor, each in list(self._actors.items()):
            if not each.running and now - each.used >= self._idle:
                self._close(actor)

    def forget(self, actor: str) -> None:
        """Close an actor's connection, whose credential does not count any more."""
        if actor in self._actors:
            self._close(actor)

    def stop(self) -> None:
        self._stopping.set()
        for each in self._actors.values():
            each.connection.stop()

    def signal(self, number: int) -> bool:
        """Send a signal to all programs. Returns whether a process is left."""
        left = [each.connection.signal(number) for each in (*self._actors.values(), *self._ending)]
        for each in (*self._actors.values(), *self._ending):
            if each.task is not None:
                each.task.cancel()
        return any(left)

    # --- one actor's connection -----------------------------------------------------------------------

    def _opened(self, caller: Caller) -> _Personal:
        """Return the caller's connection, which may still be connecting. Raises CallError if there are too many."""
        found = self._actors.get(caller.actor)
        if found is not None:
            if found.connection.is_up or not found.connection.tried.is_set():
                return found
            self._close(caller.actor)  # it is lost, or could not be made: this call does not wait for a pause to end
        if self._stopping.is_set():
            raise CallError(f"MCP server {self.name} is not connected")
        if len(self._actors) >= self._max:
            idle = [actor for actor, each in self._actors.items() if not each.running]
            if not idle:
                raise CallError(f"MCP server {self.name} is busy: {self._max} actors use it now")
            self._close(min(idle, key=lambda actor: self._actors[actor].used))
        made = self._actors[caller.actor] = _Personal(self._make(caller, lambda: self._published(made)))
        made.used = self._clock()
        if self._lister is None:
            self._lister = made
        made.task = asyncio.get_running_loop().create_task(self._kept(caller.actor, made))
        return made

    async def _kept(self, actor: str, each: _Personal) -> None:
        """Run a connection until it is closed, or its first attempt has failed. Then the next call makes another."""
        connection = each.connection
        running = asyncio.ensure_future(connection.run())
        tried = asyncio.ensure_future(connection.tried.wait())
        try:
            await asyncio.wait({running, tried}, return_when=asyncio.FIRST_COMPLETED)
            if connection.is_up:
                self._failed.pop(actor, None)
            elif self._actors.get(actor) is each:
                self._note_failure(actor, connection.problem)
                self._close(actor)
            await asyncio.wait({running})
        finally:
            connection.tried.set()
            running.cancel()
            tried.cancel()
            self._ending.discard(each)

    def _note_failure(self, actor: str, problem: str) -> None:
        failures, _ = self._failed.pop(actor, (0, 0.0))
        next_attempt = self._clock() + self._backoff(failures + 1)
        if len(self._failed) >= MAX_FAILED:
            self._failed.pop(next(iter(self._failed)))
        self._failed[actor] = failures + 1, next_attempt
        if not is_about_credential(problem):
            self.problem, self._away_until = problem, next_attempt

    def _close(self, actor: str) -> None:
        each = self._actors.pop(actor)
        self._ending.add(each)
        each.connection.stop()
        if self._lister is each:
            self._lister = next(iter(self._actors.values()), None)

    async def _up(self, each: _Personal, timeout: float) -> None:
        try:
            await asyncio.wait_for(each.connection.tried.wait(), timeout)
        except TimeoutError:
            raise CallError(f"MCP server {self.name} did not connect within {timeout:g} s") from None
        if not each.connection.is_up and each.connection.problem:
            raise CallError(f"MCP server {self.name} is not connected: {each.connection.problem}")

    def _published(self, each: _Personal) -> None:
        """A connection has listed its tools, or has lost them. What was listed once stays."""
        if not each.connection.is_up:
            return
        self.problem, self._away_until = "", -math.inf
        if self._lister is each and each.connection.listing.tools != self.listing.tools:
            self.listing = replace(self.listing, tools=each.connection.listing.tools)
            self._publish()


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)
