"""The connection to one MCP server, over all reconnections.

    start ─▶ connect ─▶ list ─▶ publish ─▶ wait ─ changed ─▶ list …
                ▲                            │
                └──── backoff ◀── lost ──────┘

One task owns the connection, because anyio's cancel scopes must be left in the task that entered them. Calls run in
tasks of their own, so that a cancelled caller returns at once.

What ends a connection is seen here, and never what a server claims: the end of its output, a list that cannot be
fetched because the server is not reached or is silent, a session that it has dropped (HTTP 404). Transports report an
end with `Connection.lose`, and a doubt with `Connection.change`: then the list is fetched, which shows it. All else is
the failure of one request. A list that fails otherwise leaves the last one in place.

A lost server keeps its tools for `WITHDRAWN_AFTER` seconds, since a request without them would lose its prompt cache.
Calls to them fail meanwhile, or wait if the connection is on its way.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import anyio
import mcp_types as types
from mcp import Client, MCPError
from mcp.client import IncomingMessage
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from aibridge_addon.config.schema import HttpServer, StdioServer
from aibridge_addon.records import ToolServerConnected, utc_now
from aibridge_addon.tools import CallError, NotConnected, SessionExpired, messages, pages
from aibridge_addon.tools.call_time import CallTime
from aibridge_addon.tools.catalog import LeftOut, ListedTool, Listing
from aibridge_addon.tools.fair_share import Worker
from aibridge_addon.tools.held import HeldResults
from aibridge_addon.tools.http_client import Credential, OldTransport, OnRequest
from aibridge_addon.tools.transports import GRACE, over_http, over_sse, over_stdio
from aibridge_addon.tools.wording import Lost, Wording, cause

logger = logging.getLogger(__name__)

CONNECTED_WITHIN = 60.0
"""Seconds to connect and list all tools. `npx` may install a server before it starts it."""
REFRESHED_EVERY = 300.0
"""Seconds between listings of a server's tools. Not every server announces changes, or its end."""
LISTED_EVERY = 1.0
"""Seconds from one listing to the next, at least. Servers may announce changes in a storm; the last one counts."""
WITHDRAWN_AFTER = 300.0
"""Seconds. The tools of a server that is away for longer are withdrawn. Prompt caches live for about as long."""
MAX_ERROR = 4096
"""Characters of a server's error that a model gets."""
MAX_SILENT_LISTINGS = 2
"""Listings in a row without an answer in time. After these the connection counts as lost."""
STABLE_AFTER = 30.0
"""Seconds. After a connection that lasted this long, the next one is tried at once."""
Backoff = Callable[[int], float]
Settings = HttpServer | StdioServer


_LOST_CODES = frozenset((messages.UNREACHABLE, messages.SESSION_EXPIRED, messages.SESSION_DOUBTFUL))
"""What shows, as the answer to a listing, that the connection is lost."""


class Connection:
    """Connects to one server, again and again, and runs calls on it."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        publish: Callable[[], None],
        backoff: Backoff,
        clock: Callable[[], float],
        on_connected: Callable[[ToolServerConnected], None] | None = None,
    ) -> None:
        self.name = name
        self.connected_within = CONNECTED_WITHIN
        self.refreshed_every = REFRESHED_EVERY
        self.listed_every = LISTED_EVERY
        self.withdrawn_after = WITHDRAWN_AFTER
        self.tls: ssl.SSLContext | None = None
        self.credential: Credential | None = None
        self.on_request: OnRequest | None = None  # changes each HTTP request before it is sent
        self.worker = Worker()
        self.held = HeldResults()
        self.group: int | None = None  # of the program and all that it started
        self._settings = settings
        self._publish = publish
        self._backoff = backoff
        self._clock = clock
        self._on_connected = on_connected
        self._connecting: ToolServerConnected | None = None
        self.listing = listing_of(name, settings)
        self._client: Client | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(settings.max_concurrent)
        self._scope: anyio.CancelScope | None = None
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()  # connected, or an attempt has failed
        self._ended = asyncio.Event()
        self.tried = asyncio.Event()
        """Whether the first attempt to connect has ended, well or not, in each version of the protocol."""
        self.problem = ""
        """Why the server is away. Empty: it is connected, or the first attempt has not ended."""
        self._was_up = self._stopping = self._legacy = self._returning = self._unstartable = False
        self._sse = isinstance(settings, HttpServer) and settings.type == "sse"
        self._lost = self._logged_state = self._no_post = ""
        self._away_since = 0.0
        self._left_out: tuple[LeftOut, ...] = ()
        self._wording = Wording(settings, lambda: self.credential.secrets if self.credential is not None else ())

    # --- used by servers, calls and transports ----------------------------------------------------

    @property
    def is_up(self) -> bool:
        return self._client is not None

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The server's tools that cannot be offered. Empty while it is away."""
        return self._left_out if self.is_up else ()

    async def call(
        self,
        tool: str,
        arguments: dict[str, Any],
        timeout: float,
        meta: Mapping[str, Any] | None = None,
        total: float | None = None,
    ) -> Any:
        """Call a tool, and return its result as the server sends it.

        While `max_concurrent` other calls run, this one waits; the wait counts for `timeout`. Progress that the server
        reports extends the time by `timeout`, up to `total` seconds.
        """
        waits, deadline = self._slots.locked(), time.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise CallError(f"MCP server {self.name} was busy with other calls for {timeout:g} s", "busy") from None
        try:
            left = max(deadline - time.monotonic(), 0.001) if waits else timeout
            return await self._call(tool, arguments, CallTime(left, timeout, total), meta)
        finally:
            self._slots.release()

    async def _call(
        self, tool: str, arguments: dict[str, Any], allowed: CallTime, meta: Mapping[str, Any] | None
    ) -> Any:
        client = self._client
        if client is None:
            raise NotConnected(f"MCP server {self.name} is not connected", returning=self._returning)
        if all(listed.name != tool for listed in self.listing.tools):
            raise CallError(f"MCP server {self.name} does not offer the tool {tool!r} any more", "request")
        sent = types.RequestParamsMeta(**meta) if meta else None  # type: ignore[typeddict-item]
        task = asyncio.ensure_future(
            client.call_tool(
                tool,
                arguments,
                read_timeout_seconds=allowed.total + GRACE,
                progress_callback=allowed.progressed,
                meta=sent,
            )
        )
        self._calls.add(task)
        task.add_done_callback(self._call_ended)
        try:
            while not task.done() and (left := allowed.left()) > 0:
                await asyncio.wait({task}, timeout=left)
            if not task.done():
                raise CallError(f"MCP server {self.name} {allowed.exceeded}", "timeout")
            if task.cancelled():
                raise CallError(f"the connection to MCP server {self.name} was closed", "connection")
            return messages.result_of(task.result(), self.held)
        except MCPError as e:
            raise await self._call_error(e, client) from None
        except CallError:
            raise
        except Exception as e:  # noqa: BLE001 (`reason` selects what may be shown of foreign errors)
            raise CallError(f"MCP server {self.name}: {self.reason(e)}") from None
        finally:
            task.cancel()

    async def _call_error(self, error: MCPError, client: Client) -> CallError:
        """Say why a call has no result. Only a session that is gone ends the connection."""
        if error.code == messages.SESSION_EXPIRED or (
            error.code == messages.SESSION_DOUBTFUL and await self._has_expired(client)
        ):
            if self._client is client:
                self.lose("the session has expired")
            return SessionExpired(f"the session with MCP server {self.name} has expired", "connection")
        if error.code == types.CONNECTION_CLOSED:
            if self._client is client:
                self.change()  # the list shows whether the server is there
                return CallError(f"MCP server {self.name} ended its answer without a result", "connection")
            return CallError(f"the connection to MCP server {self.name} was lost", "connection")
        text = f"MCP server {self.name}: {self._wording.whole(error)}"
        if error.code == messages.UNREACHABLE:
            self.change()  # the list shows whether the server is there
            return CallError(text, "connection")
        return CallError(text)

    async def _has_expired(self, client: Client) -> bool:
        """Return whether the server refuses a request that is certainly valid."""
        try:
            async with asyncio.timeout(self.connected_within):
                await client.list_tools()
        except MCPError as e:
            return e.code in (messages.SESSION_EXPIRED, messages.SESSION_DOUBTFUL)
        except (TimeoutError, ValidationError):
            pass
        return False

    def _call_ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio logs that it was never retrieved

    async def reconnected(self, deadline: float) -> None:
        """Wait until the server is connected again.

        Raises:
            CallError: the next attempt to connect fails, or takes until `deadline`.
        """
        try:
            await asyncio.wait_for(self._settled.wait(), max(deadline - time.monotonic(), 0))
        except TimeoutError:
            pass
        if not self.is_up:
            raise CallError(f"MCP server {self.name} was lost and could not be connected again in time", "connection")

    def lose(self, reason: str) -> None:
        """Mark the connection as lost."""
        self._lost = self._lost or reason
        if self._client is not None:
            self._away_since, self._returning = self._clock(), True
            self._settled.clear()
        self._client = None
        self._wake.set()
        self._ended.set()

    def change(self) -> None:
        """List the tools again, since they may have changed."""
        self._wake.set()

    def stop(self) -> None:
        """Begin to end the connection for good."""
        self._stopping = True
        self._wake.set()
        self._ended.set()
        self._allow(GRACE if self._client is not None else 0)

    def signal(self, number: int) -> bool:
        """Send a signal to the program's process group. Return False if no process is left."""
        try:
            if self.group is not None:
                os.killpg(self.group, number)
        except ProcessLookupError:
            self.group = None  # the id may be used again for other processes
        except PermissionError:
            pass  # some processes run as another user
        return self.group is not None

    def reason(self, error: BaseException) -> str:
        """Describe an error in one short line without secrets."""
        return self._wording.reason(error)

    def masked(self, text: str) -> str:
        """Replace the configuration's secrets in a text."""
        return self._wording.masked(text)

    # --- the connections --------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and reconnect after each loss, until `stop` is called."""
        await asyncio.sleep(0)  # mitmproxy starts tasks eagerly, and the caller must not wait for a fork
        try:
            await self._reconnect()
        finally:
            self._settled.set()
            self._publish_tools(())

    async def _reconnect(self) -> None:
        failures = 0
        while not self._stopping:
            began = self._clock()
            reason = await self._connection()
            if not self._was_up:
                if self._other_transport():
                    continue
                self._legacy = not self._legacy  # some old servers exit when the client negotiates the protocol version
                self._returning = False
                self._settled.set()
            stable = self._was_up and self._clock() - began >= STABLE_AFTER
            failures = 0 if stable else failures + 1
            self._note_end(self._no_post or reason, failures)
            if not self._stopping:
                self._log_state(logging.WARNING, "away", f"{self._no_post or reason}; trying again")
                if self.listing.tools and self._clock() - self._away_since >= self.withdrawn_after:
                    self._publish_tools(())
                self._wake.clear()
                await self._woken(self._backoff(failures) if failures else 0)

    def _note_end(self, reason: str, failures: int) -> None:
        self.problem = reason
        # A program that was started once is started again for the older protocol, which may work.
        if self._was_up or self._stopping or failures > 1 or self._unstartable or self._settings.type != "stdio":
            self.tried.set()
        self._publish()

    def _other_transport(self) -> bool:
        """Return whether the older HTTP transport is to be tried at once, since the server refuses the newer one."""
        if self._settings.type != "http":
            return False
        tried, self._sse = self._sse, bool(self._no_post) and not self._sse
        if tried or not self._sse:
            self._sse = False
            return False
        return True

    async def _connection(self) -> str:
        """Connect, and wait until the connection ends. Return the reason."""
        self._lost, self._was_up = "", False
        self._ended.clear()
        now = utc_now()
        self._connecting = ToolServerConnected(self.name, self.listing.server_url, now, now)
        if not isinstance(self._settings, HttpServer):
            transport = over_stdio(self, self._settings)
        else:
            transport = over_sse(self, self._settings) if self._sse else over_http(self, self._settings)
        if not self._sse:
            self._no_post = ""
        client = Client(
            transport,
            mode="legacy" if self._legacy or self._sse else "auto",
            cache=None,
            read_timeout_seconds=self.connected_within,
            message_handler=self._message,
            client_info=types.Implementation(name="aibridge", version="1"),
        )
        try:
            with anyio.CancelScope() as self._scope:
                self._allow(self.connected_within)
                async with client:
                    # The library would match the server's schema, with its patterns, in our event loop.
                    client.session.validate_tool_result = _not_validated  # type: ignore[method-assign]
                    await self._serve(client)
        except Exception as e:  # noqa: BLE001 (logged by `_log_state`; the next attempt follows)
            if isinstance(cause(e), OldTransport):
                self._no_post = self.reason(e)
            self._lost = self._lost or self.reason(e)
            self._unstartable = isinstance(e, OSError)
        finally:
            self._scope = None
            self.lose("it did not answer in time")
            self._report(error=self._lost)
        return self._lost

    async def _serve(self, client: Client) -> None:
        """List the tools, and again whenever they may have changed, until the connection is lost."""
        async with anyio.create_task_group() as tasks:
            if client.protocol_version in MODERN_PROTOCOL_VERSIONS:
                tasks.start_soon(self._subscribe, client)
            if self._connecting is not None:
                self._connecting = replace(self._connecting, listed_from=utc_now())
            failures = 0
            while not self._lost and not self._stopping:
                self._wake.clear()
                self._allow(math.inf)
                began = time.monotonic()
                failed = await self._relist(client, failures)
                failures = failures + 1 if failed else 0
                if not self._lost:
                    await self._woken(self._backoff(failures) if failed else self.refreshed_every)
                    await self._over(began + self.listed_every - time.monotonic())
            tasks.cancel_scope.cancel()
        self._allow(GRACE)

    async def _relist(self, client: Client, failures: int) -> bool:
        """Fetch the list of tools, and publish it. Return whether it could not be fetched.

        Raises:
            Lost: the server is away.
        """
        try:
            async with asyncio.timeout(self.connected_within):
                tools, left_out = await pages.fetch(client, self.name, self.worker, self.held)
        except (MCPError, ValidationError, TimeoutError) as e:
            code = e.code if isinstance(e, MCPError) else None
            silent = isinstance(e, TimeoutError) or code == types.REQUEST_TIMEOUT
            if code in _LOST_CODES or (silent and (self._client is None or failures + 1 >= MAX_SILENT_LISTINGS)):
                raise Lost("it did not answer in time" if silent else self.reason(e)) from None
            if self._lost:
                return True
            if self.listing.tools:
                self._serves(client)
            why = "it did not answer in time" if silent else self.reason(e)
            self._log_state(logging.WARNING, "its tools cannot be listed", f"{why}; trying again")
            return True
        self._note_left_out(left_out)
        self._report(tools=len(tools))
        if not self._lost:
            self._serves(client)
            self._publish_tools(tools)
            selected = sum(self.listing.maybe_left_out(tool) is None for tool in tools)
            self._log_state(logging.INFO, f"connected, {selected} tools")
        return False

    def _serves(self, client: Client) -> None:
        self._client, self._was_up, self._no_post = client, True, ""
        self.problem = ""
        self._settled.set()
        self.tried.set()

    def _note_left_out(self, left_out: tuple[LeftOut, ...]) -> None:
        if left_out and left_out != self._left_out:
            named = self.masked(", ".join(map(str, left_out[:5])))
            logger.warning("MCP server %s: %d tools left out: %s", self.name, len(left_out), named)
        self._left_out = left_out

    def _report(self, *, tools: int = 0, error: str | None = None) -> None:
        """Report the first listing of a connection, or why there was none."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None and self._on_connected is not None and not self._stopping:
            self._on_connected(replace(connecting, ended_at=utc_now(), tools=tools, error=error))

    async def _subscribe(self, client: Client) -> None:
        """Subscribe to changes of the tools. Modern protocol versions require it."""
        while True:
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    self.change()  # changes before the subscription were missed
                    async for _ in changes:
                        self.change()
            except MCPError:
                self.change()  # the list shows whether the server is there
                return
            except (ListenNotSupportedError, TimeoutError):
                return
            except SubscriptionLost:
                pass
            if self._lost:
                return
            await anyio.sleep(self._backoff(1))

    async def _message(self, message: IncomingMessage) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self.change()

    def _publish_tools(self, tools: tuple[ListedTool, ...]) -> None:
        self.listing = replace(self.listing, tools=tools)
        self._publish()

    def _allow(self, seconds: float) -> None:
        """Set the connection's deadline to so many seconds from now."""
        if self._scope is not None:
            self._scope.deadline = anyio.current_time() + seconds

    async def _woken(self, timeout: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), timeout)
        except TimeoutError:
            pass

    async def _over(self, seconds: float) -> None:
        """Wait, but not beyond the connection's end."""
        if seconds > 0 and not self._stopping:
            try:
                await asyncio.wait_for(self._ended.wait(), seconds)
            except TimeoutError:
                pass

    def _log_state(self, level: int, state: str, why: str = "") -> None:
        """Log a state; at debug level if it is the one that was logged last."""
        if state == self._logged_state:
            level = logging.DEBUG
        self._logged_state = state
        logger.log(level, "MCP server %s: %s%s", self.name, state, f": {why}" if why else "")


def listing_of(name: str, settings: Settings) -> Listing:
    """Return a server's listing before its tools are known."""
    url = settings.public_url if isinstance(settings, HttpServer) else None
    return Listing(name, url, settings.allow, settings.deny, read_only=settings.read_only)


async def _not_validated(name: str, result: types.CallToolResult) -> None:
    pass
