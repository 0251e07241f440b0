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
from aibridge_addon.tools import CallError, catalog, listing, messages
from aibridge_addon.tools.catalog import ListedTool, Listing
from aibridge_addon.tools.http_client import OldTransport
from aibridge_addon.tools.transports import GRACE, MAX_REASON, over_http, over_sse, over_stdio
from aibridge_addon.wire.printable import printable_line

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


class NotConnected(CallError):
    """The server is away. The call was not sent."""

    def __init__(self, text: str, *, returning: bool) -> None:
        super().__init__(text)
        self.returning = returning
        """It was connected a moment ago, and no attempt to connect again has failed."""


class _Lost(Exception):
    """The connection is lost. The text says why."""


_LOST_CODES = frozenset((messages.UNREACHABLE, messages.SESSION_EXPIRED, messages.SESSION_DOUBTFUL))
"""What shows, as the answer to a listing, that the connection is lost."""


class CallTime:
    """The time that a call may take. Progress extends it."""

    def __init__(self, left: float, timeout: float, total: float | None) -> None:
        now = time.monotonic()
        self.timeout = timeout
        self.total = max(total or timeout, timeout)
        self._end = now + left
        self._last_end = now + left + self.total - timeout
        self._extended = False

    def left(self) -> float:
        return self._end - time.monotonic()

    async def progressed(self, progress: float, total: float | None, message: str | None) -> None:
        """Extend the time. The library calls this."""
        self._end = max(self._end, min(time.monotonic() + self.timeout, self._last_end))
        self._extended = True

    @property
    def exceeded(self) -> str:
        if not self._extended:
            return f"did not answer within {self.timeout:g} s"
        if self._end >= self._last_end:
            return f"did not answer within {self.total:g} s"
        return f"reported no progress for {self.timeout:g} s"


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
        self.group: int | None = None  # of the program and all that it started
        self._settings = settings
        self._publish = publish
        self._backoff = backoff
        self._clock = clock
        self._on_connected = on_connected
        self._connecting: ToolServerConnected | None = None
        url = settings.public_url if isinstance(settings, HttpServer) else None
        self.listing = Listing(name, url, settings.allow, settings.deny)
        self._client: Client | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(settings.max_concurrent)
        self._scope: anyio.CancelScope | None = None
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()  # connected, or an attempt has failed
        self._ended = asyncio.Event()
        self._was_up = self._stopping = self._legacy = self._returning = False
        self._sse = isinstance(settings, HttpServer) and settings.type == "sse"
        self._lost = self._logged_state = self._no_post = ""
        self._away_since = 0.0
        self._left_out: tuple[str, ...] = ()
        self._secrets = sorted(_secrets(settings), key=len, reverse=True)

    # --- used by servers, calls and transports ----------------------------------------------------

    @property
    def is_up(self) -> bool:
        return self._client is not None

    @property
    def left_out(self) -> int:
        """Number of the server's tools that cannot be offered. 0 while it is away."""
        return len(self._left_out) if self.is_up else 0

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
            raise CallError(f"MCP server {self.name} was busy with other calls for {timeout:g} s") from None
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
            raise CallError(f"MCP server {self.name} does not offer the tool {tool!r} any more")
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
                raise CallError(f"MCP server {self.name} {allowed.exceeded}")
            if task.cancelled():
                raise CallError(f"the connection to MCP server {self.name} was closed")
            return messages.result_of(task.result())
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
            return SessionExpired(f"the session with MCP server {self.name} has expired")
        if error.code == types.CONNECTION_CLOSED:
            if self._client is client:
                self.change()  # the list shows whether the server is there
                return CallError(f"MCP server {self.name} ended its answer without a result")
            return CallError(f"the connection to MCP server {self.name} was lost")
        if error.code == messages.UNREACHABLE:
            self.change()  # the list shows whether the server is there
        text = self.masked(error.message)
        return CallError(f"MCP server {self.name}: {text if len(text) <= MAX_ERROR else text[:MAX_ERROR] + '…'}")

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
            raise CallError(f"MCP server {self.name} was lost and could not be connected again in time")

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
        """Describe an error in short. Texts of the server appear only from MCP errors, with secrets masked."""
        error = _cause(error)
        if isinstance(error, MCPError):
            return printable_line(self.masked(" ".join(error.message.split()))[:MAX_REASON])
        if isinstance(error, OldTransport | _Lost):
            return str(error)
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
                if self._other_transport():
                    continue
                self._legacy = not self._legacy  # some old servers exit when the client negotiates the protocol version
                self._returning = False
                self._settled.set()
            stable = self._was_up and self._clock() - began >= STABLE_AFTER
            failures = 0 if stable else failures + 1
            if not self._stopping:
                self._log_state(logging.WARNING, "away", f"{self._no_post or reason}; trying again")
                if self.listing.tools and self._clock() - self._away_since >= self.withdrawn_after:
                    self._publish_tools(())
                self._wake.clear()
                await self._woken(self._backoff(failures) if failures else 0)
        self._settled.set()
        self._publish_tools(())

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
            if isinstance(_cause(e), OldTransport):
                self._no_post = self.reason(e)
            self._lost = self._lost or self.reason(e)
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
            _Lost: the server is away.
        """
        try:
            async with asyncio.timeout(self.connected_within):
                tools = await self._list(client)
        except (MCPError, ValidationError, TimeoutError) as e:
            code = e.code if isinstance(e, MCPError) else None
            silent = isinstance(e, TimeoutError) or code == types.REQUEST_TIMEOUT
            if code in _LOST_CODES or (silent and (self._client is None or failures + 1 >= MAX_SILENT_LISTINGS)):
                raise _Lost("it did not answer in time" if silent else self.reason(e)) from None
            if self._lost:
                return True
            if self.listing.tools:
                self._serves(client)
            why = "it did not answer in time" if silent else self.reason(e)
            self._log_state(logging.WARNING, "its tools cannot be listed", f"{why}; trying again")
            return True
        self._report(tools=len(tools))
        if not self._lost:
            self._serves(client)
            self._publish_tools(tools)
            selected = sum(self.listing.selects(tool.name) for tool in tools)
            self._log_state(logging.INFO, f"connected, {selected} tools")
        return False

    def _serves(self, client: Client) -> None:
        self._client, self._was_up, self._no_post = client, True, ""
        self._settled.set()

    def _report(self, *, tools: int = 0, error: str | None = None) -> None:
        """Report the first listing of a connection, or why there was none."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None and self._on_connected is not None and not self._stopping:
            self._on_connected(replace(connecting, ended_at=utc_now(), tools=tools, error=error))

    async def _list(self, client: Client) -> tuple[ListedTool, ...]:
        if client.server_capabilities.tools is None:
            return ()
        listed: list[ListedTool] = []
        left_out: list[str] = []
        cursors: set[str | None] = set()
        cursor: str | None = None
        count = 0
        while cursor not in cursors:
            if len(cursors) == MAX_PAGES:
                logger.warning("MCP server %s: its list of tools has more than %d pages", self.name, MAX_PAGES)
                break
            cursors.add(cursor)
            page = await client.list_tools(cursor=cursor)
            result = messages.result_of(page)
            tools, odd = listing.read(result, count)
            count += len(result["tools"])
            valid = {tool.name for tool in page.tools}  # the library drops tools whose headers are not valid
            listed += (tool for tool in tools if tool.name in valid)
            left_out += odd
            left_out += (f"{tool.name[:60]!r} (inputSchema: x-mcp-header)" for tool in tools if tool.name not in valid)
            cursor = page.next_cursor
            if not cursor or len(listed) > catalog.MAX_TOOLS:
                break
        admitted, refused = catalog.admit(listed)
        problems = (*left_out, *refused)
        if problems and problems != self._left_out:
            logger.warning(
                "MCP server %s: %d tools left out: %s", self.name, len(problems), self.masked(", ".join(problems[:5]))
            )
        self._left_out = problems
        return admitted

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


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _not_validated(name: str, result: types.CallToolResult) -> None:
    pass


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
