"""The connection to one MCP server, over all reconnections.

    start ─▶ connect ─▶ list ─▶ publish ─▶ wait ─ changed ─▶ list …
                ▲                            │
                └──── backoff ◀── lost ──────┘     the tools of a lost server are withdrawn

One task owns the connection, because anyio's cancel scopes must be left in the task that entered them. Calls run in
tasks of their own, so that a cancelled caller returns at once. Transports and calls report a lost connection with
`Connection.lose`; other losses are exceptions of the library.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import anyio
import httpx2
import mcp_types as types
from mcp import Client, MCPError
from mcp.client import IncomingMessage
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from aibridge_addon.config.schema import HttpServer, StdioServer
from aibridge_addon.records import ToolServerConnected, utc_now
from aibridge_addon.tools import CallError, catalog
from aibridge_addon.tools.catalog import LeftOut, ListedTool, Listing
from aibridge_addon.tools.transports import GRACE, MAX_REASON, over_http, over_stdio
from aibridge_addon.wire.printable import printable_line

logger = logging.getLogger(__name__)

CONNECTED_WITHIN = 60.0
"""Seconds to connect and list all tools. `npx` may install a server before it starts it."""
REFRESHED_EVERY = 300.0
"""Seconds between listings of a server's tools. Not every server announces changes, or its end."""
STABLE_AFTER = 30.0
"""Seconds. After a connection that lasted this long, the next one is tried at once."""
MAX_PAGES = 100
"""Maximum number of pages of one listing."""
MIN_SECRET = 6
"""Characters. Shorter values are not masked in messages: they would match ordinary words."""
REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (httpx2.TimeoutException, "it did not answer in time"),
    (httpx2.TransportError, "it cannot be reached"),
    (FileNotFoundError, "its command was not found: name its full path, or put its folder on PATH"),
    (PermissionError, "its command may not be run"),
    (ValidationError, "its answer is not valid MCP"),
)
Backoff = Callable[[int], float]
Settings = HttpServer | StdioServer


class SessionExpired(CallError):
    """The server has dropped our session and has not run the call."""


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
        self.expired = False
        self.status = 0  # of the last HTTP error
        self.tls: ssl.SSLContext | None = None
        self.group: int | None = None  # of the program and all that it started
        self._settings = settings
        self._publish = publish
        self._backoff = backoff
        self._clock = clock
        self._on_connected = on_connected
        self._connecting: ToolServerConnected | None = None
        url = settings.public_url if isinstance(settings, HttpServer) else None
        self.listing = Listing(name, url, settings.allow, settings.deny, read_only=settings.read_only)
        self._client: Client | None = None
        self._calls: set[asyncio.Task[types.CallToolResult]] = set()
        self._slots = asyncio.Semaphore(settings.max_concurrent)
        self._scope: anyio.CancelScope | None = None
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self.tried = asyncio.Event()
        """Whether the first attempt to connect has ended, well or not, in each version of the protocol."""
        self.problem = ""
        """Why the server is away. Empty: it is connected, or the first attempt has not ended."""
        self._was_up = self._stopping = self._legacy = self._unstartable = False
        self._lost = self._logged_state = ""
        self._left_out: tuple[LeftOut, ...] = ()
        self._secrets = sorted(_secrets(settings), key=len, reverse=True)

    # --- used by servers, calls and transports ----------------------------------------------------

    @property
    def is_up(self) -> bool:
        return self._client is not None

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The server's tools that cannot be offered. Empty while it is away."""
        return self._left_out if self.is_up else ()

    async def call(
        self, tool: str, arguments: dict[str, Any], timeout: float, meta: Mapping[str, Any] | None = None
    ) -> types.CallToolResult:
        """Call a tool. While `max_concurrent` other calls run, this one waits; the wait counts for `timeout`."""
        waits, deadline = self._slots.locked(), time.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise CallError(f"MCP server {self.name} was busy with other calls for {timeout:g} s", "busy") from None
        try:
            left = max(deadline - time.monotonic(), 0.001) if waits else timeout
            return await self._call(tool, arguments, left, meta)
        finally:
            self._slots.release()

    async def _call(
        self, tool: str, arguments: dict[str, Any], timeout: float, meta: Mapping[str, Any] | None
    ) -> types.CallToolResult:
        client = self._client
        if client is None:
            raise CallError(f"MCP server {self.name} is not connected", "connection")
        if all(listed.name != tool for listed in self.listing.tools):
            raise CallError(f"MCP server {self.name} does not offer the tool {tool!r} any more", "request")
        sent = types.RequestParamsMeta(**meta) if meta else None  # type: ignore[typeddict-item]
        task = asyncio.ensure_future(client.call_tool(tool, arguments, read_timeout_seconds=timeout, meta=sent))
        self._calls.add(task)
        task.add_done_callback(self._call_ended)
        try:
            await asyncio.wait({task}, timeout=timeout)
            if not task.done():
                raise CallError(f"MCP server {self.name} did not answer within {timeout:g} s", "timeout")
            if task.cancelled():
                raise CallError(f"the connection to MCP server {self.name} was closed", "connection")
            return task.result()
        except MCPError as e:
            raise self._call_error(e, client, timeout) from None
        except CallError:
            raise
        except Exception as e:  # noqa: BLE001 (`reason` selects what may be shown of foreign errors)
            raise CallError(f"MCP server {self.name}: {self.reason(e)}") from None
        finally:
            task.cancel()

    def _call_error(self, error: MCPError, client: Client, timeout: float) -> CallError:
        if error.code == types.REQUEST_TIMEOUT:
            return CallError(f"MCP server {self.name} did not answer within {timeout:g} s", "timeout")
        current = self._client is client
        if error.code == types.CONNECTION_CLOSED:
            if current:
                self.lose("the connection has ended")
            return CallError(f"the connection to MCP server {self.name} was lost", "connection")
        if self.expired:
            if current:
                self.lose("the session has expired")
            return SessionExpired(f"the session with MCP server {self.name} has expired", "connection")
        return CallError(f"MCP server {self.name}: {self.reason(error)}")

    def _call_ended(self, task: asyncio.Task[types.CallToolResult]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio logs that it was never retrieved

    async def reconnected(self, deadline: float) -> None:
        """Wait until the server is connected again.

        Raises:
            CallError: it is not connected before `deadline`.
        """
        try:
            await asyncio.wait_for(self._up.wait(), max(deadline - time.monotonic(), 0))
        except TimeoutError:
            raise CallError(
                f"MCP server {self.name} has lost our session and did not reconnect in time", "connection"
            ) from None

    def lose(self, reason: str) -> None:
        """Mark the connection as lost, and withdraw its tools."""
        self._lost = self._lost or reason
        self._client = None
        self._up.clear()
        self._wake.set()
        self._publish_tools(())

    def change(self) -> None:
        """List the tools again, since they may have changed."""
        self._wake.set()

    def stop(self) -> None:
        """Begin to end the connection for good."""
        self._stopping = True
        self._wake.set()
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
        """Describe an error in short. Texts of the server appear only from MCP errors, with secrets masked."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, MCPError):
            status = f" (HTTP {self.status})" if self.status else ""
            return printable_line(self.masked(" ".join(error.message.split()))[:MAX_REASON]) + status
        known = (text for kind, text in REASONS if isinstance(error, kind))
        return next(known, type(error).__name__)

    def masked(self, text: str) -> str:
        """Replace the configuration's secrets in a text."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    # --- the connections --------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and reconnect after each loss, until `stop` is called."""
        await asyncio.sleep(0)  # mitmproxy starts tasks eagerly, and the caller must not wait for a fork
        failures = 0
        while not self._stopping:
            began = self._clock()
            reason = await self._connection()
            if not self._was_up:
                self._legacy = not self._legacy  # some old servers exit when the client negotiates the protocol version
            stable = self._was_up and self._clock() - began >= STABLE_AFTER
            failures = 0 if stable else failures + 1
            self._note_end(reason, failures)
            if not self._stopping:
                self._log_state(logging.WARNING, "away", f"{reason}; trying again")
                self._wake.clear()
                await self._woken(self._backoff(failures) if failures else 0)

    def _note_end(self, reason: str, failures: int) -> None:
        self.problem = reason
        # A program that was started once is started again for the older protocol, which may work.
        if self._was_up or self._stopping or failures > 1 or self._unstartable or self._settings.type != "stdio":
            self.tried.set()
        self._publish()

    async def _connection(self) -> str:
        """Connect, and wait until the connection ends. Return the reason."""
        self._lost, self._was_up, self.expired, self.status = "", False, False, 0
        now = utc_now()
        self._connecting = ToolServerConnected(self.name, self.listing.server_url, now, now)
        transport = (
            over_http(self, self._settings)
            if isinstance(self._settings, HttpServer)
            else over_stdio(self, self._settings)
        )
        client = Client(
            transport,
            mode="legacy" if self._legacy else "auto",
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
            self._lost = self._lost or self.reason(e)
            self._unstartable = isinstance(e, OSError)
        finally:
            self._scope = None
            self.lose("it did not answer in time")
            self._report(error=self._lost)
        return self._lost

    async def _serve(self, client: Client) -> None:
        async with anyio.create_task_group() as tasks:
            if client.protocol_version in MODERN_PROTOCOL_VERSIONS:
                tasks.start_soon(self._subscribe, client)
            if self._connecting is not None:
                self._connecting = replace(self._connecting, listed_from=utc_now())
            while not self._lost and not self._stopping:
                self._wake.clear()
                self._allow(self.connected_within)
                tools = await self._list(client)
                self._report(tools=len(tools))
                self._allow(math.inf)
                if not self._lost:
                    self._client, self._was_up = client, True
                    self._up.set()
                    self.problem = ""
                    self.tried.set()
                    self._publish_tools(tools)
                    selected = sum(self.listing.maybe_left_out(tool) is None for tool in tools)
                    self._log_state(logging.INFO, f"connected, {selected} tools")
                    await self._woken(self.refreshed_every)
            tasks.cancel_scope.cancel()
        self._allow(GRACE)

    def _report(self, *, tools: int = 0, error: str | None = None) -> None:
        """Report the first listing of a connection, or why there was none."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None and self._on_connected is not None and not self._stopping:
            self._on_connected(replace(connecting, ended_at=utc_now(), tools=tools, error=error))

    async def _list(self, client: Client) -> tuple[ListedTool, ...]:
        if client.server_capabilities.tools is None:
            return ()
        listed: list[ListedTool] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            listed += (
                ListedTool(tool.name, tool.description or tool.title or "", tool.input_schema, annotations=_hints(tool))
                for tool in page.tools
            )
            cursor = page.next_cursor
            if not cursor or len(listed) > catalog.MAX_TOOLS:
                break
        else:
            logger.warning("MCP server %s: its list of tools has more than %d pages", self.name, MAX_PAGES)
        admitted, left_out = catalog.admit(listed)
        if left_out and left_out != self._left_out:
            logger.warning(
                "MCP server %s: %d tools left out: %s", self.name, len(left_out), ", ".join(map(str, left_out[:5]))
            )
        self._left_out = left_out
        return admitted

    async def _subscribe(self, client: Client) -> None:
        """Subscribe to changes of the tools. Modern protocol versions require it."""
        while True:
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    self.change()  # changes before the subscription were missed
                    async for _ in changes:
                        self.change()
            except (ListenNotSupportedError, MCPError, TimeoutError):
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

    def _log_state(self, level: int, state: str, why: str = "") -> None:
        """Log a state; at debug level if it is the one that was logged last."""
        if state == self._logged_state:
            level = logging.DEBUG
        self._logged_state = state
        logger.log(level, "MCP server %s: %s%s", self.name, state, f": {why}" if why else "")


async def _not_validated(name: str, result: types.CallToolResult) -> None:
    pass


def _hints(tool: types.Tool) -> Mapping[str, Any]:
    return tool.annotations.model_dump(by_alias=True) if tool.annotations is not None else {}


def _secrets(settings: Settings) -> Iterator[str]:
    """Yield every text of the configuration that must not appear in logs or results."""
    if isinstance(settings, HttpServer):
        url = settings.url.get_secret_value()
        parts = urlsplit(url)
        texts = [url, parts.query, parts.password or "", *(value for _, value in parse_qsl(parts.query))]
        texts += [word for value in settings.headers.values() for word in value.get_secret_value().split()]
    else:
        texts = [*settings.args, *(value.get_secret_value() for value in settings.env.values())]
    yield from (text for text in texts if len(text) >= MIN_SECRET)
