"""MCP servers for tests: one of our own with every kind of tool, one with pages, and those of the registries.

    with HttpMcp() as server:                      # a process of its own, on a free port of 127.0.0.1
        settings = {"ours": server.settings()}
    settings = {"ours": stdio()}                   # the same tools, as a program that we start

Run as a program, this file is the server: `python -P mcp_servers.py {stdio|http} [--legacy] [--paged] …`.
"""

import argparse
import asyncio
import base64
import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import anyio
import mcp_types as types
import uvicorn
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, Field, SecretStr

from aibridge_addon.config.schema import HttpServer, StdioServer

EVERYTHING = "@modelcontextprotocol/server-everything"
EVERYTHING_VERSION = "2026.8.31"

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SOUND = base64.b64encode(b"RIFF\x24\0\0\0WAVEfmt ").decode()
LONG_NAME = "long_" + "x" * 95
ODD_NAME = "files.read/all"
PAGES, TOOLS_PER_PAGE = 5, 3


# --- for tests ------------------------------------------------------------------------------------


def stdio(*options: str, env: dict[str, str] | None = None, **settings: Any) -> StdioServer:
    """The configuration of our server as a program."""
    command = ["-P", __file__, "stdio", *options]
    secrets = {name: SecretStr(value) for name, value in (env or {}).items()}
    return StdioServer(command=sys.executable, args=tuple(command), env=secrets, **settings)


def server_time() -> StdioServer:
    """The configuration of `mcp-server-time` from PyPI."""
    return StdioServer(command=sys.executable, args=("-m", "mcp_server_time", "--local-timezone", "UTC"))


def server_everything() -> StdioServer:
    """The configuration of `server-everything` from npm."""
    node, folder = npm_package(EVERYTHING, EVERYTHING_VERSION)
    return StdioServer(command=node, args=(str(folder / "dist" / "index.js"), "stdio"))


def npm_package(name: str, version: str) -> tuple[str, Path]:
    """Return Node.js and the folder of a package, which is installed once into the user's cache."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        raise RuntimeError(f"these tests run {name}: install Node.js with npm (neither may be missing)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aibridge-tests"
    folder = cache / f"{name.rpartition('/')[2]}-{version}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "npm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # for others who run the same tests now
        if not (folder / "complete").exists():
            package = f"{name}@{version}"
            options = ["--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            done = subprocess.run([npm, "install", *options, package], capture_output=True, text=True, timeout=100)
            if done.returncode:
                raise RuntimeError(f"npm install {package} failed:\n{done.stderr}")
            (folder / "complete").touch()
    return node, folder / "node_modules" / name


class HttpMcp:
    """Our server over streamable HTTP, in a process that can be killed, and started again on its port.

    Options: `--legacy` (the protocol before 2026: sessions and a stream of notices), `--stateless`, `--json`,
    `--no-stream` (legacy, without that stream), `--paged`, `--endless`.
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def settings(self, *, headers: dict[str, str] | None = None, query: str = "", **settings: Any) -> HttpServer:
        secrets = {name: SecretStr(value) for name, value in (headers or {}).items()}
        return HttpServer(url=SecretStr(self.url + query), headers=secrets, **settings)

    def start(self) -> None:
        """Start, and wait until it listens: at the first start on a free port, later on the same one."""
        command = [sys.executable, "-P", __file__, "http", "--port", str(self.port), *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the MCP server did not start: exit code {self._process.wait()}")
        self.port = int(line)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class ToolGate:
    """Where the tool `slow` stands until it is let through: it connects to this port, from whatever process."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        self.port: int = self._listener.getsockname()[1]
        self._arrived: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._arrived:
            connection.close()
        self._listener.close()

    def wait_reached(self) -> socket.socket:
        """Wait until one more call stands here."""
        connection, _ = self._listener.accept()
        connection.settimeout(20)
        self._arrived.append(connection)
        return connection

    def open(self) -> None:
        """Let through who stands here."""
        for connection in self._arrived:
            connection.sendall(b"!")

    def wait_abandoned(self) -> None:
        """Wait until all who stand here have gone away without being let through."""
        for connection in self._arrived:
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""


# --- the server -----------------------------------------------------------------------------------


class Circle(BaseModel):
    kind: Literal["circle"]


class Square(BaseModel):
    kind: Literal["square"]


Shape = Annotated[Circle | Square, Field(discriminator="kind")]


class Weather(BaseModel):
    city: str
    degrees: float


def returned(*blocks: types.ContentBlock) -> types.CallToolResult:
    return types.CallToolResult(content=list(blocks))


def echo(text: str) -> types.CallToolResult:
    """Return the text."""
    return returned(types.TextContent(text=text))


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def area(shape: Shape) -> str:
    """Name a shape's kind; the schema has $defs and oneOf."""
    return shape.kind


async def slow(port: int) -> str:
    """Stand at a ToolGate until it is opened."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        await reader.read(1)
        return "at last"


def fail() -> str:
    """Fail, as a tool does."""
    raise ToolError("it went wrong")


def crash() -> str:
    """Take the whole process down."""
    os._exit(7)


def spawn() -> str:
    """Start a process that does not end when it is asked to; return its id."""
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.readline()
    return str(child.pid)


def pid() -> str:
    """Return the server's process id."""
    return str(os.getpid())


def environment(name: str) -> str:
    """Return an environment variable."""
    return os.environ.get(name, "(not set)")


def complain(text: str) -> None:
    """Write to stderr."""
    print(text, file=sys.stderr, flush=True)


def headers(ctx: Context[Any, Any]) -> str:
    """Return the request's headers."""
    return json.dumps(dict(ctx.headers or {}))


def meta(ctx: Context[Any, Any]) -> str:
    """Return the trace context in the request's `_meta`."""
    sent = dict(ctx.request_context.meta or {})
    return json.dumps({name: value for name, value in sent.items() if name.startswith("trace")})


def caller(ctx: Context[Any, Any]) -> str:
    """Return the members of the request's `_meta` that name the caller."""
    sent = dict(ctx.request_context.meta or {})
    return json.dumps({name: value for name, value in sent.items() if name.startswith("aibridge/")})


def structured(city: str) -> Weather:
    """Return structured content; the SDK adds the same as text."""
    return Weather(city=city, degrees=21.5)


def big(n: int) -> types.CallToolResult:
    """Return n bytes of text."""
    return returned(types.TextContent(text="x" * n))


async def grow(ctx: Context[Any, Any]) -> str:
    """Add a tool, `grown`, and notify the clients."""
    ctx.mcp_server.add_tool(lambda: "grown", name="grown", description="Came later.")
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        await ctx.notify_tools_changed()
    else:
        await ctx.session.send_tool_list_changed()
    return "grown"


Tools = tuple[Callable[..., Any], ...]
PLAIN: Tools = (
    *(echo, add, area, slow, fail, crash, spawn, pid),
    *(environment, complain, headers, meta, caller, structured, big, grow),
)
TEXT = types.TextResourceContents(uri="memo://insights", mime_type="text/markdown", text="# Insights")
BLOB = types.BlobResourceContents(uri="file:///report.pdf", mime_type="application/pdf", blob="JVBERi0xLjQ=")
LINK = types.ResourceLink(uri="file:///main.rs", name="main.rs", mime_type="text/x-rust", description="Entry")
FIXED = {
    "image": returned(types.ImageContent(data=PIXEL, mime_type="image/png")),
    "audio": returned(types.AudioContent(data=SOUND, mime_type="audio/wav")),
    "embedded_text": returned(types.EmbeddedResource(resource=TEXT)),
    "embedded_blob": returned(types.EmbeddedResource(resource=BLOB)),
    "resource_link": returned(LINK),
    "structured_only": types.CallToolResult(content=[], structured_content={"city": "Zürich", "degrees": 21.5}),
}
TOOL_COUNT = len(PLAIN) + len(FIXED) + 2


def every_kind() -> MCPServer[Any]:
    """A server with a tool of every kind."""

    def give(result: types.CallToolResult) -> Callable[[], types.CallToolResult]:
        def fixed() -> types.CallToolResult:
            return result

        return fixed

    server: MCPServer[Any] = MCPServer("ours", log_level="CRITICAL")
    for tool in PLAIN:
        server.add_tool(tool)
    for name, result in FIXED.items():
        server.add_tool(give(result), name=name)
    for name in (ODD_NAME, LONG_NAME):
        server.add_tool(echo, name=name)
    return server


def paged(*, endless: bool) -> Server[Any]:
    """A server whose tools come in pages; it also breaks the promise of their output schema."""

    async def list_tools(ctx: Any, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        page = int((params and params.cursor) or 0)
        promise = {"type": "object", "required": ["promised"]}
        tools = [
            types.Tool(name=f"tool_{page}_{n}", input_schema={"type": "object"}, output_schema=promise)
            for n in range(TOOLS_PER_PAGE)
        ]
        return types.ListToolsResult(tools=tools, next_cursor=str(page + 1) if endless or page + 1 < PAGES else None)

    async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(text=params.name)], structured_content={"other": 1})

    return Server("paged", on_list_tools=list_tools, on_call_tool=call_tool)


def strictly_old() -> None:
    """A server over stdio that ends when it is asked anything before it is initialized."""
    for line in sys.stdin:
        message = json.loads(line)
        result: dict[str, Any]
        match message["method"]:
            case "initialize":
                result = {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}}
                result["serverInfo"] = {"name": "old", "version": "1"}
            case "tools/list":
                result = {"tools": [{"name": "old", "inputSchema": {"type": "object"}}]}
            case "tools/call":
                result = {"content": [{"type": "text", "text": "still here"}]}
            case "notifications/initialized":
                continue
            case _:
                sys.exit(3)
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)


def limited(app: Callable[..., Awaitable[None]], *, legacy: bool, stream: bool) -> Callable[..., Awaitable[None]]:
    """Refuse newer protocols, as an old server does, and optionally the stream of notifications."""

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        status = 0
        if scope["type"] == "http":
            version = dict(scope["headers"]).get(b"mcp-protocol-version", b"").decode()
            status = 400 if legacy and version in MODERN_PROTOCOL_VERSIONS else 0
            status = 405 if not stream and scope["method"] == "GET" else status
        if not status:
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return handle


def serve_http(options: argparse.Namespace) -> None:
    server = paged(endless=options.endless) if options.paged else every_kind()
    app = limited(
        server.streamable_http_app(json_response=options.json, stateless_http=options.stateless),
        legacy=options.legacy,
        stream=not options.no_stream,
    )
    listener = socket.create_server(("127.0.0.1", options.port))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited; asyncio sets it on other sockets only
    print(listener.getsockname()[1], flush=True)
    # The end of the input means that the parent process has ended.
    threading.Thread(target=lambda: sys.stdin.read() or os._exit(0), daemon=True).start()
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run(sockets=[listener])


async def serve_stdio(options: argparse.Namespace) -> None:
    if not options.paged:
        await every_kind().run_stdio_async()
        return
    server = paged(endless=options.endless)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=["stdio", "http"])
    parser.add_argument("--port", type=int, default=0)
    for flag in ("--legacy", "--stateless", "--json", "--no-stream", "--paged", "--endless", "--strictly-old"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    if options.transport == "http":
        serve_http(options)
    elif options.strictly_old:
        strictly_old()
    else:
        anyio.run(serve_stdio, options)


if __name__ == "__main__":
    main()
