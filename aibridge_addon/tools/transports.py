"""The two transports of MCP: streamable HTTP, and the standard streams of a program. Messages are bounded."""

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

from aibridge_addon.wire.printable import printable_line

logger = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds for each step of an end: closing stdin, SIGTERM, SIGKILL; for HTTP, ending the session."""
POLL_INTERVAL = 0.01
"""Seconds between checks whether a program has ended."""
MAX_MESSAGE = 16 << 20
"""Bytes. A larger message ends the connection."""
MAX_REASON = 300
"""Characters of a server's text in a log line or an error."""
MAX_LOG_LINES = 200
"""Lines of a program's stderr that are logged per connection, at debug level."""
Incoming = SessionMessage | Exception


class Peer(Protocol):
    """What a transport needs from its connection."""

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
    """Reports what the library hides: an expired session, and the end of the notification stream."""

    def __init__(self, server: Peer, settings: HttpServer, tls: ssl.SSLContext) -> None:
        headers = httpx2.Headers({"accept-encoding": "identity"})  # a compressed answer could expand beyond the bound
        headers.update({name: value.get_secret_value() for name, value in settings.headers.items()})
        # No read timeout: calls may take long and have timeouts of their own.
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
                self._server.change()  # notifications were missed while there was no stream
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
        server.tls = await asyncio.to_thread(
            httpx2.create_ssl_context
        )  # reading the certificates takes tenths of a second
    url = settings.url.get_secret_value()
    async with (
        _HttpClient(server, settings, server.tls) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=MAX_MESSAGE) as streams,
    ):
        yield streams


# --- programs, over stdio ---------------------------------------------------------------------------


@asynccontextmanager
async def over_stdio(server: Peer, settings: StdioServer) -> AsyncGenerator[TransportStreams]:
    """Run a program in its own process group, and end the group with it.

    If a program exits by itself, the library's own transport leaves its child processes behind.
    """
    process = await asyncio.create_subprocess_exec(
        settings.command,
        *settings.args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=get_default_environment() | {name: value.get_secret_value() for name, value in settings.env.items()},
        cwd=settings.cwd,
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
                    logger.debug("MCP server %s: a line of its output is not a message", server.name)
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
            server.lose("its process accepts no more input")


async def _log(server: Peer, stderr: asyncio.StreamReader) -> None:
    """Log stderr up to the limit. Read it to the end, because a full pipe would block the program."""
    lines = 0
    while not stderr.at_eof():
        try:
            line = await stderr.readline()
        except ValueError:
            continue
        lines += 1
        if lines <= MAX_LOG_LINES:
            text = server.masked(line.decode("utf-8", "replace").rstrip())
            logger.debug("MCP server %s: stderr: %s", server.name, printable_line(text[:MAX_REASON]))


async def _end(server: Peer, process: asyncio.subprocess.Process) -> None:
    """End the program's process group: close stdin, then SIGTERM, then SIGKILL; also on cancellation."""
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
    # Not process.wait(): it also waits for pipes, which child processes may have inherited.
    deadline = anyio.current_time() + GRACE
    while not check() and anyio.current_time() < deadline:  # noqa: ASYNC110 (process groups send no notification when they are empty)
        await anyio.sleep(POLL_INTERVAL)
