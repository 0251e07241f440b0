"""Serve `/metrics`, `/healthz`, `/readyz` and pages of others with tornado, on a port and a thread of their own.

Rendering thousands of series takes a tenth of a second. It runs in a further thread, so that neither the proxy's event
loop nor a probe waits for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets

from aibridge_addon.config.values import Listen
from aibridge_addon.records.pages import AnswerPage, PageAnswer, PageRequest
from aibridge_addon.wire.printable import printable_json

logger = logging.getLogger(__name__)

MAX_HEAD = 16 * 1024
"""Bytes of a request's head. A connection that sends more is closed."""
MAX_BODY = 128 * 1024
"""Bytes of a request's body, which is ignored."""
MAX_CONNECTIONS = 16
"""Connections at a time: a scraper, a probe and a person need three. For a further one, the oldest is closed that has
not asked yet. If all are being answered, the further one is closed."""
DEADLINE = 10.0
"""Seconds that a connection may last: Prometheus's own default for a scrape."""
HEALTH_TIMEOUT = 2.0
"""Seconds in which the proxy's event loop must show that it runs."""
START_TIMEOUT = 10.0
STOP_TIMEOUT = 2.0

Page = tuple[HTTPStatus, bytes, str]
"""Status, body and content type."""
LOGIN = "/mcp/login/"
"""Beginning of the paths of the pages with which people log in at MCP servers."""
TEXT = "text/plain; charset=utf-8"


async def _always_ready() -> tuple[bool, Mapping[str, Any]]:
    return True, {}


async def _always_healthy() -> bool:
    return True


class ListenError(Exception):
    """The address cannot be listened on."""


class Listener:
    """The endpoint for scrapers and probes, on a thread of its own."""

    def __init__(
        self,
        address: Listen,
        registry: Collector,
        *,
        ready: Callable[[], Awaitable[tuple[bool, Mapping[str, Any]]]] = _always_ready,
        healthy: Callable[[], Awaitable[bool]] = _always_healthy,
        loop: asyncio.AbstractEventLoop | None = None,
        logins: AnswerPage | None = None,
        deadline: float = DEADLINE,
        health_timeout: float = HEALTH_TIMEOUT,
    ) -> None:
        """`ready` has details beside its answer. `/healthz` asks `healthy`, and checks that `loop` runs, if any.

        `logins` answers what begins with `LOGIN`, on the listener's own event loop.
        """
        self._address = address
        self._registry = registry
        self._ready = ready
        self._healthy = healthy
        self._watched = loop
        self._deadline = deadline
        self._health_timeout = health_timeout
        self._logins = logins
        self._pages = {"/metrics": self._metrics, "/healthz": self._health, "/readyz": self._readiness}
        self._shared: Sequence[socket.socket] = ()
        self._sockets: Sequence[socket.socket] = ()
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._serving = threading.Event()
        self._stopping = asyncio.Event()
        self._freed = threading.Event()
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The port that is listened on: of port 0, the one that the system has chosen."""
        return self._address.port

    @property
    def address(self) -> str:
        return _shown(self._address)

    def share(self, before: Listener) -> None:
        """Listen where another one does, which may stop afterwards. No connection is refused in between."""
        self._shared = [opened.dup() for opened in before._sockets]

    def start(self) -> None:
        """Listen. Returns when requests are served. Raises ListenError."""
        sockets = self._sockets = self._shared or _bind(self._address)
        self._address = self._address._replace(port=sockets[0].getsockname()[1])
        serve = self._serve(sockets)
        threading.Thread(target=asyncio.run, args=(serve,), name="aibridge-metrics", daemon=True).start()
        if not self._serving.wait(START_TIMEOUT):
            for opened in sockets:
                opened.close()
            raise ListenError("the listener did not start in time")

    def stop(self) -> None:
        """Close all connections and free the port, without waiting for a scrape. May be called twice."""
        if self._own_loop is not None:
            with suppress(RuntimeError):  # the loop has been closed already
                self._own_loop.call_soon_threadsafe(self._stopping.set)
            self._freed.wait(STOP_TIMEOUT)

    async def _serve(self, sockets: Sequence[socket.socket]) -> None:
        self._own_loop = asyncio.get_running_loop()
        self._own_loop.set_default_executor(ThreadPoolExecutor(1, "aibridge-scrape"))  # one scrape after the other
        server = self._server = _Server(
            self._respond, no_keep_alive=True, max_header_size=MAX_HEAD, max_body_size=MAX_BODY, deadline=self._deadline
        )
        server.add_sockets(sockets)
        self._serving.set()
        await self._stopping.wait()
        server.stop()
        await server.close_all_connections()
        self._freed.set()

    def _respond(self, request: HTTPServerRequest) -> None:
        connection = request.connection
        assert isinstance(connection, HTTP1Connection)
        if self._server is not None:
            self._server.asked(connection.stream)
        writing = asyncio.create_task(self._write_page(request, connection))

        def stop() -> None:
            writing.cancel()

        connection.set_close_callback(stop)

    async def _write_page(self, request: HTTPServerRequest, connection: HTTP1Connection) -> None:
        answer = await self._answer(request)
        headers = HTTPHeaders({"Content-Length": str(len(answer.body)), **answer.headers})
        headers["Cache-Control"] = "no-store"
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        start = ResponseStartLine("HTTP/1.1", answer.status, HTTPStatus(answer.status).phrase)
        connection.write_headers(start, headers, None if request.method == "HEAD" else answer.body)
        connection.finish()

    async def _answer(self, request: HTTPServerRequest) -> PageAnswer:
        logins = self._logins if request.path.startswith(LOGIN) else None
        if logins is None and request.path not in self._pages:
            return _whole(_error(HTTPStatus.NOT_FOUND))
        if request.method not in ("GET", "HEAD"):
            return _whole(_error(HTTPStatus.METHOD_NOT_ALLOWED))
        try:
            if logins is not None:
                return await logins(_page_request(request))
            return _whole(await self._pages[request.path](request.headers.get("accept", "")))
        except Exception:
            logger.exception("aibridge: %s cannot be answered", request.path)
            return _whole(_error(HTTPStatus.INTERNAL_SERVER_ERROR))

    async def _metrics(self, accept: str) -> Page:
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the version that is accepted is not a version
            encoder, content_type = choose_encoder("")
        return HTTPStatus.OK, await asyncio.to_thread(encoder, self._registry), content_type

    async def _health(self, _accept: str) -> Page:
        if self._watched is not None and not await _runs(self._watched, self._health_timeout):
            return HTTPStatus.SERVICE_UNAVAILABLE, b"the event loop does not run\n", TEXT
        if not await self._healthy():
            return HTTPStatus.SERVICE_UNAVAILABLE, b"no worker is healthy\n", TEXT
        return HTTPStatus.OK, b"ok\n", TEXT

    async def _readiness(self, _accept: str) -> Page:
        ready, details = await self._ready()
        text = printable_json(json.dumps({"ready": ready, **details}, default=str)) + "\n"
        return HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, text.encode(), "application/json"


class _Server(HTTPServer):
    """Bounds the number of connections, and the seconds that each may last."""

    def initialize(self, *args: Any, deadline: float = DEADLINE, **options: Any) -> None:
        super().initialize(*args, **options)
        self._deadline = deadline
        self._timers: dict[IOStream, asyncio.TimerHandle] = {}
        self._idle: dict[IOStream, None] = {}
        """Connections without a complete request, in the order of their age."""

    def asked(self, stream: IOStream) -> None:
        """A complete request has come."""
        self._idle.pop(stream, None)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        if len(self._timers) >= MAX_CONNECTIONS:
            oldest = next(iter(self._idle), None)
            if oldest is None:
                stream.close()
                return
            del self._idle[oldest]
            self._timers.pop(oldest).cancel()
            oldest.close()
        self._idle[stream] = None
        self._timers[stream] = asyncio.get_running_loop().call_later(self._deadline, stream.close)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        assert isinstance(server_conn, HTTP1ServerConnection)
        self._idle.pop(server_conn.stream, None)
        if (timer := self._timers.pop(server_conn.stream, None)) is not None:
            timer.cancel()
        super().on_close(server_conn)


def _page_request(request: HTTPServerRequest) -> PageRequest:
    purpose = (request.headers.get(name, "") for name in ("sec-purpose", "purpose"))
    return PageRequest(
        request.method or "", request.path, request.query, request.headers.get("cookie", ""), " ".join(purpose).lower()
    )


def _whole(page: Page) -> PageAnswer:
    status, body, content_type = page
    return PageAnswer(status, {"Content-Type": content_type}, body)


def _error(status: HTTPStatus) -> Page:
    return status, f"{status.phrase}\n".encode(), TEXT


async def _runs(loop: asyncio.AbstractEventLoop, timeout: float) -> bool:
    """Return whether that event loop runs what it is given, within a time."""
    if loop.is_closed():
        return False
    turn = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, True), loop)
    with suppress(TimeoutError):
        return await asyncio.wait_for(asyncio.wrap_future(turn), timeout)
    return False


def _bind(address: Listen) -> Sequence[socket.socket]:
    """Listen on every address of a host: `localhost` has two."""
    host, port = address
    reason = "no such kind of address"
    try:
        if sockets := bind_sockets(port, None if host == "::" else host):  # None: all addresses, those of IPv4 too
            return sockets
    except OSError as e:
        reason = e.strerror or str(e)
    raise ListenError(f"{reason.lower()}: {_shown(address)}")


def _shown(address: Listen) -> str:
    host, port = address
    return f"{f'[{host}]' if ':' in host else host}:{port}"
