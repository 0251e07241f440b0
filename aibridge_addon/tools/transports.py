"""The transports of MCP: HTTP in both its forms, and the standard streams of a program. Messages are bounded."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import httpx2
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.sse import sse_client
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from aibridge_addon.config.schema import HttpServer, StdioServer
from aibridge_addon.tools import messages
from aibridge_addon.tools.fair_share import Pace, Worker
from aibridge_addon.tools.held import HeldResults
from aibridge_addon.tools.http_client import MAX_MESSAGE, Credential, HttpClient, OnRequest
from aibridge_addon.tools.lines import Lines, TooLarge
from aibridge_addon.tools.messages import Requests
from aibridge_addon.tools.wording import MAX_REASON
from aibridge_addon.wire.json_object import NotJSON, Unreadable

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

from aibridge_addon.wire.printable import printable_line

logger = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds for each step of an end: closing stdin, SIGTERM, SIGKILL; for HTTP, ending the session."""
POLL_INTERVAL = 0.01
"""Seconds between checks whether a program has ended."""
MAX_LIBRARY_EVENT = MAX_MESSAGE * 2 + (1 << 20)
"""Bytes. The library's bound of an event; ours is reached first. A mended message may be longer than the server's."""
READ_SIZE = 16 << 10
"""Bytes that are read at once from a program."""
MAX_LOG_LINES = 200
"""Lines of a program's stderr that are logged per connection, at debug level."""
MAX_LOG_LINE = 64 << 10
"""Bytes. Longer lines of a program's stderr are not logged."""
Incoming = SessionMessage | Exception


class Peer(Protocol):
    """What a transport needs from its connection."""

    name: str
    connected_within: float
    group: int | None
    tls: ssl.SSLContext | None
    on_request: OnRequest | None
    credential: Credential | None
    worker: Worker
    held: HeldResults

    def lose(self, reason: str) -> None: ...
    def change(self) -> None: ...
    def reason(self, error: BaseException) -> str: ...
    def masked(self, text: str) -> str: ...
    def signal(self, number: int) -> bool: ...


@asynccontextmanager
async def over_http(server: Peer, settings: HttpServer) -> AsyncGenerator[TransportStreams]:
    """Streamable HTTP."""
    url = settings.url.get_secret_value()
    async with (
        HttpClient(server, settings, await _tls(server)) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=MAX_LIBRARY_EVENT) as streams,
    ):
        yield streams


@asynccontextmanager
async def over_sse(server: Peer, settings: HttpServer) -> AsyncGenerator[TransportStreams]:
    """HTTP with SSE, the transport of 2024: one stream for all answers, which is the connection."""
    tls = await _tls(server)
    incoming, read = anyio.create_memory_object_stream[Incoming](0)

    async def deliver(message: bytes) -> None:
        try:
            await incoming.send(_parsed(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass

    def client(headers: Any = None, timeout: Any = None, auth: Any = None) -> HttpClient:
        return HttpClient(server, settings, tls, deliver=deliver)

    async def forward(received: Any) -> None:
        try:
            async for message in received:
                await incoming.send(message)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        server.lose("its stream has ended")
        incoming.close()

    url = settings.url.get_secret_value()
    with incoming, read:
        async with (
            sse_client(url, httpx_client_factory=client) as (received, write),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(forward, received)
            yield read, write
            tasks.cancel_scope.cancel()


async def _tls(server: Peer) -> ssl.SSLContext:
    if server.tls is None:
        # Reading the certificates takes tenths of a second.
        server.tls = await asyncio.to_thread(httpx2.create_ssl_context)
    return server.tls


def _parsed(message: bytes) -> SessionMessage:
    return SessionMessage(types.jsonrpc_message_adapter.validate_json(message, by_name=False))


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
        limit=READ_SIZE,
    )
    assert process.stdin and process.stdout and process.stderr
    server.group = process.pid
    requests = Requests(server.held)
    incoming, read = anyio.create_memory_object_stream[Incoming](0)
    write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, server, requests, process.stdout, incoming)
            tasks.start_soon(_write, server, requests, process.stdin, outgoing)
            tasks.start_soon(_log, server, process.stderr)
            yield read, write
            tasks.cancel_scope.cancel()
    finally:
        for stream in (incoming, read, write, outgoing):
            stream.close()
        await _end(server, process)


async def _read(
    server: Peer, requests: Requests, stdout: asyncio.StreamReader, incoming: MemoryObjectSendStream[Incoming]
) -> None:
    lines, pace = Lines(MAX_MESSAGE), Pace()
    with incoming:
        try:
            while data := await stdout.read(READ_SIZE):
                await pace.took(len(data))
                for line in lines.feed(data):
                    if line:
                        await _take(server, requests, line, incoming)
                        await pace.took()
            for line in lines.finish():
                await _take(server, requests, line, incoming)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        server.lose("its process has ended")


async def _take(
    server: Peer, requests: Requests, line: bytes | TooLarge, incoming: MemoryObjectSendStream[Incoming]
) -> None:
    """Pass the messages in a line of a program's output."""
    if isinstance(line, TooLarge):
        asked = requests.under_way(line.id)
        if asked is None:
            server.lose(f"its answer is larger than {MAX_MESSAGE} bytes")
            return
        requests.answered(asked)
        found = [messages.unreadable(asked, f"larger than {MAX_MESSAGE} bytes")]
    else:
        try:
            found = await server.worker.run(len(line), requests.read, line)
        except (NotJSON, Unreadable):
            logger.debug("MCP server %s: a line of its output is not a message", server.name)
            return
    for message in found:
        await incoming.send(_parsed(message))


async def _write(
    server: Peer,
    requests: Requests,
    stdin: asyncio.StreamWriter,
    outgoing: MemoryObjectReceiveStream[SessionMessage],
) -> None:
    with outgoing:
        try:
            async for message in outgoing:
                requests.sent(message.message)
                stdin.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await stdin.drain()
        except (OSError, ValueError):
            server.lose("its process accepts no more input")


async def _log(server: Peer, stderr: asyncio.StreamReader) -> None:
    """Log stderr up to the limit. Read it to the end, because a full pipe would block the program."""
    lines, pace, logged = Lines(MAX_LOG_LINE), Pace(), 0
    while data := await stderr.read(READ_SIZE):
        await pace.took(len(data))
        if logged >= MAX_LOG_LINES:
            continue
        for line in lines.feed(data):
            if isinstance(line, bytes) and logged < MAX_LOG_LINES:
                logged += 1
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
        # A pipe that is full, and that nothing reads any more, would stay open.
        process._transport.close()  # type: ignore[attr-defined]


async def _until(check: Callable[[], bool]) -> None:
    # Not process.wait(): it also waits for pipes, which child processes may have inherited.
    deadline = anyio.current_time() + GRACE
    while not check() and anyio.current_time() < deadline:  # noqa: ASYNC110 (process groups send no notification when they are empty)
        await anyio.sleep(POLL_INTERVAL)
