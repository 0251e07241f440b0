"""MCP servers over HTTP whose every answer a test decides, in the test's event loop.

    async with OddMcp({"tools/call": lambda request: Reply.json(b"…")}) as server:
        stage = start({"odd": server.settings()})

What is not scripted is answered as a well-behaved server of protocol 2025-06-18 with the tool `add` would.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pydantic import SecretStr

from aibridge_addon.config.schema import HttpServer

ADD: dict[str, Any] = {"name": "add", "inputSchema": {"type": "object", "properties": {"a": {"type": "number"}}}}
SESSION = "mcp-session-id"


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer whose body ends with the connection. An event among its parts is waited for."""

    parts: Iterable[bytes | asyncio.Event] = ()
    status: int = 200
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    """The connection ends before the body does."""
    raw: bool = False
    """The parts are all that is sent, head included."""

    @classmethod
    def json(cls, body: bytes, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Reply:
        return cls((body,), status, headers=headers or {})

    @classmethod
    def events(cls, *parts: bytes | asyncio.Event, cut: bool = False) -> Reply:
        return cls(parts, kind="text/event-stream", cut=cut)

    @classmethod
    def silence(cls) -> Reply:
        return cls((asyncio.Event(),), raw=True)


Request = dict[str, Any]
"""A message of the client, with its HTTP request under `verb`, `path` and `headers` (lower case)."""
Script = Callable[[Request], Reply]


def result(request: Request, value: Any) -> Reply:
    return Reply.json(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": value}).encode())


def error(request: Request, code: int, message: str, status: int = 200) -> Reply:
    body = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}
    return Reply.json(json.dumps(body).encode(), status)


def text(request: Request, words: str) -> Reply:
    return result(request, {"content": [{"type": "text", "text": words}]})


def event(value: Any, *, id: str = "") -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return (f"id: {id}\n".encode() if id else b"") + b"data: " + data + b"\n\n"


class OddMcp:
    def __init__(self, scripts: Mapping[str, Script] | None = None) -> None:
        self.scripts = dict(scripts or {})
        """By JSON-RPC method; `GET` and `DELETE` are HTTP methods."""
        self.requests: list[Request] = []
        self.came = asyncio.Event()
        self._sessions = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        assert self._server
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/mcp"

    def settings(self, **settings: Any) -> HttpServer:
        return HttpServer(url=SecretStr(self.url), **settings)

    def seen(self, method: str) -> list[Request]:
        return [request for request in self.requests if method in (request.get("method"), request["verb"])]

    async def until(self, method: str, count: int = 1) -> Request:
        """Wait for so many requests of a method, and return the last."""
        async with asyncio.timeout(60):
            while len(self.seen(method)) < count:
                self.came.clear()
                await self.came.wait()
        return self.seen(method)[-1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        with suppress(OSError, EOFError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            verb, path, _ = first.split()
            request = {"verb": verb, "path": path, "headers": headers, **(json.loads(body) if body else {})}
            self.requests.append(request)
            self.came.set()
            script = self.scripts.get(request.get("method", "")) or self.scripts.get(request["verb"])
            await self._answer(writer, script(request) if script is not None else self.well_behaved(request))
        self._tasks.discard(task)
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        head = {"content-type": reply.kind, "connection": "close", "transfer-encoding": "chunked", **reply.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        if not reply.raw:
            writer.write(f"HTTP/1.1 {reply.status} X\r\n{lines}\r\n".encode())
        for part in reply.parts:
            if isinstance(part, asyncio.Event):
                await part.wait()
            elif part:
                writer.write(part if reply.raw else b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
        if not reply.cut and not reply.raw:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    def well_behaved(self, request: Request) -> Reply:
        method = request.get("method")
        if method == "initialize":
            self._sessions += 1
            version = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": True}}}
            body = {**version, "serverInfo": {"name": "scripted", "version": "1"}}
            reply = result(request, body)
            return replace(reply, headers={SESSION: f"session-{self._sessions}"})
        if method == "tools/list":
            return result(request, {"tools": [ADD]})
        if method == "tools/call":
            return text(request, "3")
        if "id" in request:
            return error(request, -32601, "Method not found")
        return Reply(status=405 if request["verb"] != "POST" else 202)


@contextmanager
def beside(server: OddMcp) -> Iterator[OddMcp]:
    """Run a server on a thread with an event loop of its own, beside a proxy in this process."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        async with server:
            end = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), end))
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="odd-mcp", daemon=True)
    thread.start()
    loop, end = started.result(60)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(60)


class OldMcp(OddMcp):
    """A server with the transport of 2024: answers come as events of one stream, and POST to its URL is refused.

    Scripts return a reply whose body is the message, or one with an HTTP error.
    """

    def __init__(self, scripts: Mapping[str, Script] | None = None, *, refuses: int = 405) -> None:
        super().__init__(scripts)
        self._refuses = refuses
        self._streams: list[asyncio.StreamWriter] = []

    async def _answer(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        request = self.requests[-1]
        if request["verb"] == "GET":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            writer.write(b"event: endpoint\ndata: /messages?session_id=7\n\n")
            self._streams.append(writer)
            await asyncio.Event().wait()
        if request["path"] == "/mcp":
            reply = Reply(status=self._refuses)
        elif reply.status < 400:
            for part in reply.parts:
                if isinstance(part, bytes):
                    self.say(event(part))
            reply = Reply((b"Accepted",), status=202, kind="text/plain")
        await super()._answer(writer, reply)

    def say(self, part: bytes) -> None:
        """Send bytes on the newest stream."""
        self._streams[-1].write(part)

    def hang_up(self) -> None:
        self._streams[-1].close()
