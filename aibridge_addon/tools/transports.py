"""The two ways to an MCP server: streamable HTTP, and a program's standard streams. Bounded, and ended for sure."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import httpx2
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import MCP_SESSION_ID, streamable_http_client
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from aibridge_addon.config.schema import HttpServer, StdioServer

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams


logger = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds for each step of an end: stdin closed, SIGTERM, SIGKILL; for HTTP, to end the session."""
POLL_INTERVAL = 0.01
MAX_MESSAGE = 16 << 20
MAX_REASON = 300
MAX_LOG_LINES = 200
"""Lines of a program's stderr per connection, at debug."""
Incoming = SessionMessage | Exception


class Peer(Protocol):
    """What a transport tells the connection that it is of, and learns from it."""

    name: str
    connected_within: float
    expired: bool
    status: int
    group: int | None
    tls: ssl.SSLContext | None

    def lose(self, reason: str) -> None: ...
    def change(self) -> None: ...
    def reason(self, error: BaseException) -> str: ...
    def masked(self, text: str) -> str: ...
    def signal(self, number: int) -> bool: ...


class _HttpClient(httpx2.AsyncClient):
    """Tells what the library keeps to itself: that the session is unknown, that the stream of notices is gone."""

    def __init__(self, server: Peer, settings: HttpServer, tls: ssl.SSLContext) -> None:
        headers = httpx2.Headers({"accept-encoding": "identity"})  # else `_Bounded` bounds little
        headers.update({name: value.get_secret_value() for name, value in settings.headers.items()})
        # No limit to reading: a call may take long, and has its own.
        timeout = httpx2.Timeout(server.connected_within, read=None)
        super().__init__(headers=headers, timeout=timeout, verify=tls)
        self._server = server
        self._streaming = False

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        notices = request.method == "GET"
        try:
            response = await super().send(request, **options)
        except httpx2.TransportError as e:
            if not notices or self._streaming:
                self._server.lose(self._server.reason(e))
            raise
        self._server.status = response.status_code if response.is_error else 0
        if notices and response.is_success:
            if self._streaming:
                self._server.change()  # while the stream was away, nobody listened
            self._streaming = True
        elif notices and self._streaming:
            self._server.lose(f"its stream has ended (HTTP {response.status_code})")
        elif response.status_code == httpx2.codes.NOT_FOUND and MCP_SESSION_ID in request.headers:
            self._server.expired = True
        if response.headers.get("content-type", "").startswith("application/json"):
            response.stream = _Bounded(response.stream)
        return response


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > MAX_MESSAGE:
                raise httpx2.ReadError("the answer is too large")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def over_http(server: Peer, settings: HttpServer) -> AsyncGenerator[TransportStreams]:
    if server.tls is None:
        server.tls = await asyncio.to_thread(httpx2.create_ssl_context)  # reads files for tenths of a second
    url = settings.url.get_secret_value()
    async with (
        _HttpClient(server, settings, server.tls) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=MAX_MESSAGE) as streams,
    ):
        yield streams


# --- programs, over stdio ---------------------------------------------------------------------------


@asynccontextmanager
async def over_stdio(server: Peer, settings: StdioServer) -> AsyncGenerator[TransportStreams]:
    """Run a program in a process group of its own, which ends with it.

    The library's own transport leaves those behind whom a server has started, if it ends by itself.
    """
    process = await asyncio.create_subprocess_exec(
        settings.command,
        *settings.args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=get_default_environment() | {name: value.get_secret_value() for name, value in settings.env.items()},
        start_new_session=True,
        limit=MAX_MESSAGE,
    )
    assert process.stdin and process.stdout and process.stderr
    server.group = process.pid
    incoming, read = anyio.create_memory_object_stream[Incoming](0)
    write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, server, process.stdout, incoming)
            tasks.start_soon(_write, server, process.stdin, outgoing)
            tasks.start_soon(_log, server, process.stderr)
            yield read, write
            tasks.cancel_scope.cancel()
    finally:
        for stream in (incoming, read, write, outgoing):
            stream.close()
        await _end(server, process)


async def _read(server: Peer, stdout: asyncio.StreamReader, incoming: MemoryObjectSendStream[Incoming]) -> None:
    reason = "its process has ended"
    with incoming:
        try:
            while line := await stdout.readline():
                try:
                    message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValidationError:
                    logger.debug("MCP server %s: a line of its output is no message", server.name)
                else:
                    await incoming.send(SessionMessage(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        except ValueError:
            reason = f"its answer is larger than {MAX_MESSAGE} bytes"
        server.lose(reason)


async def _write(
    server: Peer, stdin: asyncio.StreamWriter, outgoing: MemoryObjectReceiveStream[SessionMessage]
) -> None:
    with outgoing:
        try:
            async for message in outgoing:
                stdin.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await stdin.drain()
        except (OSError, ValueError):
            server.lose("its process takes no more input")


async def _log(server: Peer, stderr: asyncio.StreamReader) -> None:
    """Pass stderr on to our log, as far as it goes; read it to the end, for a full pipe would stop the program."""
    lines = 0
    while not stderr.at_eof():
        try:
            line = await stderr.readline()
        except ValueError:
            continue
        lines += 1
        if lines <= MAX_LOG_LINES:
            text = server.masked(line.decode("utf-8", "replace").rstrip())
            logger.debug("MCP server %s: stderr: %s", server.name, text[:MAX_REASON])


async def _end(server: Peer, process: asyncio.subprocess.Process) -> None:
    """End the program and all that it started: ask, then insist. Not even a cancellation leaves one behind."""
    assert process.stdin
    try:
        with anyio.CancelScope(shield=True):
            process.stdin.close()
            await _until(lambda: process.returncode is not None)
            for number in (signal.SIGTERM, signal.SIGKILL):
                if server.signal(number):
                    await _until(lambda: not server.signal(0))
    finally:
        server.signal(signal.SIGKILL)
        server.group = None


async def _until(check: Callable[[], bool]) -> None:
    # Not process.wait(): that also waits for pipes which others may have inherited.
    deadline = anyio.current_time() + GRACE
    while not check() and anyio.current_time() < deadline:  # noqa: ASYNC110 (groups do not say that they are empty)
        await anyio.sleep(POLL_INTERVAL)
