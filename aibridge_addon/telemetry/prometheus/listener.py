"""Serve `/metrics`, `/healthz` and `/readyz` on a port of their own, from a thread of their own.

Putting thousands of series into text takes a tenth of a second, in which the proxy's event loop would stand still. So
the server has its own thread and event loop, and a further thread for that text, so that probes and `stop` need not
wait for it. It is small: one request per connection, a head of at most
`MAX_HEAD` bytes, `MAX_CONNECTIONS` at a time, and `deadline` seconds for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from aibridge_addon.config.values import Listen

logger = logging.getLogger(__name__)

MAX_HEAD = 16 * 1024
"""Bytes of a request's head."""
MAX_CONNECTIONS = 16
"""At a time; a scraper, a probe and a person need three."""
DEADLINE = 10.0
"""Seconds for one connection, from its request to its end: Prometheus's own default for a scrape."""
HEALTH_TIMEOUT = 2.0
"""Seconds in which the proxy's event loop must show that it runs."""
START_TIMEOUT = 10.0
STOP_TIMEOUT = 2.0
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors of an address that this machine does not have, such as `::1` where IPv6 is off."""

Readiness = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Whether new work is welcome, and what there is to say about it. Called on the listener's thread; returns at once."""


class ListenError(Exception):
    """The address cannot be listened on."""

    def __init__(self, address: Listen, reason: str) -> None:
        self.host, self.port = address
        self.reason = reason
        host = f"[{self.host}]" if ":" in self.host else self.host
        super().__init__(f"{reason}: {host}:{self.port}")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    headers: str = ""


def _plain(status: HTTPStatus, headers: str = "") -> _Answer:
    return _Answer(status, f"{status.phrase}\n".encode(), headers=headers)


def always_ready() -> tuple[bool, Mapping[str, Any]]:
    return True, {}


class Listener:
    """The endpoint for scrapers and probes. `loop` is the one whose health is asked for; None: only our own."""

    def __init__(
        self,
        address: Listen,
        registry: Collector,
        *,
        ready: Readiness = always_ready,
        loop: asyncio.AbstractEventLoop | None = None,
        deadline: float = DEADLINE,
        health_timeout: float = HEALTH_TIMEOUT,
    ) -> None:
        self._address = address
        self._registry = registry
        self._ready = ready
        self._watched = loop
        self._deadline = deadline
        self._health_timeout = health_timeout
        self._sockets: list[socket.socket] = []
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._freed = threading.Event()
        self._scraping = asyncio.Lock()
        self._connections = 0

    @property
    def port(self) -> int:
        """The port that is listened on; of port 0, the one that was free."""
        return self._address.port

    def start(self) -> None:
        """Listen. Returns when requests are served.

        Raises:
            ListenError: the address is taken, not ours, or not allowed.
        """
        self._sockets = _bind(self._address)
        self._address = self._address._replace(port=self._sockets[0].getsockname()[1])
        serving = threading.Event()
        threading.Thread(target=self._run, args=(serving,), name="aibridge-metrics", daemon=True).start()
        serving.wait(START_TIMEOUT)

    def stop(self) -> None:
        """Cut what is under way, and free the port. May be called twice."""
        if self._own_loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._own_loop.call_soon_threadsafe(self._stopping.set)
            self._freed.wait(STOP_TIMEOUT)  # not for the thread: a scrape may be under way in it

    # --- on the listener's thread -----------------------------------------------------------------------------

    def _run(self, serving: threading.Event) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._serve(serving))
        except Exception:
            logger.exception("aibridge: metrics are not served any more")
        finally:
            _close(self._sockets)
            self._freed.set()
            serving.set()

    async def _serve(self, serving: threading.Event) -> None:
        self._own_loop = asyncio.get_running_loop()
        servers = [await asyncio.start_server(self._connected, sock=s, limit=MAX_HEAD) for s in self._sockets]
        serving.set()
        await self._stopping.wait()
        for server in servers:
            server.close()
            server.abort_clients()
        self._freed.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections += 1
        try:
            async with asyncio.timeout(self._deadline):
                await self._converse(reader, writer)
        except OSError:  # which a timeout is, too
            writer.transport.abort()
        finally:
            self._connections -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil((b"\r\n\r\n", b"\n\n"))
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            method, answer = "", _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            method, answer = await self._read_and_answer(head)
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits until all has been taken
        writer.write(
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
            f"Content-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\n"
            f"{answer.headers}"
            "Cache-Control: no-store\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        if method != "HEAD":
            writer.write(answer.body)
        await writer.drain()
        # Closing with unread bytes resets the connection, and the client might lose what it has not read.
        writer.write_eof()
        while await reader.read(MAX_HEAD):
            pass

    async def _read_and_answer(self, head: bytes) -> tuple[str, _Answer]:
        text = head.decode("latin-1").replace("\r\n", "\n")
        request, *lines = text.split("\n")
        method, _, rest = request.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1.") or "\r" in text:  # RFC 9112, section 2.2: a CR alone ends nothing
            return method, _plain(HTTPStatus.BAD_REQUEST)
        path = self._paths().get(target.partition("?")[0])
        if path is None:
            return method, _plain(HTTPStatus.NOT_FOUND)
        if method not in ("GET", "HEAD"):
            return method, _plain(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD\r\n")
        fields = (line.partition(":") for line in lines)
        accept = ",".join(value for name, _, value in fields if name.lower() == "accept")
        try:
            return method, await path(accept)
        except Exception:
            logger.exception("aibridge: %s cannot be answered", target)
            return method, _plain(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _paths(self) -> Mapping[str, Callable[[str], Awaitable[_Answer]]]:
        return {"/metrics": self._metrics, "/healthz": self._health, "/readyz": self._readiness}

    async def _metrics(self, accept: str) -> _Answer:
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # it asks for a version that is none
            encoder, content_type = choose_encoder("")
        async with self._scraping:
            body = await asyncio.to_thread(encoder, self._registry)
        return _Answer(HTTPStatus.OK, body, content_type)

    async def _health(self, _accept: str) -> _Answer:
        if self._watched is None or await self._runs(self._watched):
            return _Answer(HTTPStatus.OK, b"ok\n")
        return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"the event loop does not run\n")

    async def _runs(self, watched: asyncio.AbstractEventLoop) -> bool:
        """Whether that event loop still takes its turns."""
        own = asyncio.get_running_loop()
        beat = asyncio.Event()

        def answer() -> None:
            with contextlib.suppress(RuntimeError):  # we have been stopped meanwhile
                own.call_soon_threadsafe(beat.set)

        try:
            watched.call_soon_threadsafe(answer)
            async with asyncio.timeout(self._health_timeout):
                await beat.wait()
        except (RuntimeError, TimeoutError):  # closed, or stuck
            return False
        return True

    async def _readiness(self, _accept: str) -> _Answer:
        ready, details = self._ready()
        body = json.dumps({"ready": ready, **details}, default=str) + "\n"
        return _Answer(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, body.encode(), JSON)


def _bind(address: Listen) -> list[socket.socket]:
    """Listen on every address of a host, for `localhost` has two; at least one of them must do.

    Raises ListenError.
    """
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as e:
        raise ListenError(address, (e.strerror or str(e)).lower()) from e
    listening: list[socket.socket] = []
    failure: OSError | None = None
    for family, _, _, _, name in sorted(found, key=lambda info: info[0] != socket.AF_INET):
        try:
            listening.append(_listen(family, (name[0], port, *name[2:])))
        except OSError as e:
            if e.errno in NOT_HERE:
                failure = e
                continue
            _close(listening)
            raise ListenError(address, os.strerror(e.errno or 0).lower()) from e
        port = listening[0].getsockname()[1]
    if not listening:
        raise ListenError(address, os.strerror(failure.errno or 0).lower() if failure else "no address") from failure
    return listening


def _listen(family: int, name: tuple[Any, ...]) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A reload takes the port again while the kernel still remembers its last connections.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(name)
        listening.listen(MAX_CONNECTIONS)
    except OSError:
        listening.close()
        raise
    return listening


def _close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()
