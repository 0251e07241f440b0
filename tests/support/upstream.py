"""The fake AI provider: a real HTTP/1.1 and HTTP/2 server, in its own thread, with scripted answers.

    with ScriptedUpstream(authority=ca) as upstream:
        gate = Gate()
        upstream.answer(Answer.event_stream(b"data: 1\\n\\n", Pause(gate), b"data: 2\\n\\n"))
        ...                        # a client sends its request to upstream.url
        gate.wait_reached()        # the first event is written; the client can have read it
        gate.open()
        assert upstream.requests[0].header("x-api-key") == "secret"

Answers are taken from the queue in order; when it is empty, from the handler. A request that finds
neither is a failure: it gets a 500, and leaving the `with` block raises.
"""

import asyncio
import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypedDict, Unpack
from weakref import WeakKeyDictionary

from h2.settings import SettingCodes

from tests.support.authority import LOCAL_NAMES, Authority
from tests.support.codings import CODINGS, Coding, encode, encode_stream, split
from tests.support.http1_server import Http1Session
from tests.support.http2_server import Http2Session
from tests.support.journal import Journal
from tests.support.peer import Peer
from tests.support.script import (
    Abort,
    Answer,
    AnyAnswer,
    Close,
    Disconnect,
    Gate,
    GoAway,
    Pause,
    RawAnswer,
    Request,
    Step,
)

__all__ = [
    "CODINGS",
    "Abort",
    "Answer",
    "AnyAnswer",
    "Close",
    "Coding",
    "Disconnect",
    "Gate",
    "GoAway",
    "Pause",
    "RawAnswer",
    "Request",
    "ScriptedUpstream",
    "Step",
    "UpstreamOptions",
    "encode",
    "encode_stream",
    "split",
    "unused_port",
]

HTTP2 = "h2"
HTTP1 = "http/1.1"
STARTED_WITHIN = 10.0
STOPPED_WITHIN = 10.0
TLS_CLOSED_WITHIN = 1.0

log = logging.getLogger(__name__)

Handler = Callable[[Request], AnyAnswer]


class UpstreamOptions(TypedDict, total=False):
    handler: Handler | None  # runs in the server's thread: it must not block
    authority: Authority | None  # None: no TLS
    alpn: Iterable[str]  # what TLS offers
    names: Iterable[str]  # that the certificate is for
    port: int
    send_continue: bool  # HTTP/1.1: answer `Expect: 100-continue` with 100 before reading the body
    h2_settings: Mapping[SettingCodes | int, int]


class ScriptedUpstream(Journal):
    def __init__(self, **options: Unpack[UpstreamOptions]) -> None:
        super().__init__()
        self.handler = options.get("handler")
        self._authority = options.get("authority")
        self._alpn = tuple(options.get("alpn", (HTTP2, HTTP1)))
        self._names = tuple(options.get("names", LOCAL_NAMES))
        self._port = options.get("port", 0)
        self._send_continue = options.get("send_continue", True)
        self._h2_settings = options.get("h2_settings", {})
        self._queue: deque[AnyAnswer] = deque()
        self._sni: WeakKeyDictionary[ssl.SSLObject, str | None] = WeakKeyDictionary()
        self._connections = 0
        self._ready: Future[int] = Future()
        self._sessions: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_asked: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="scripted-upstream", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None and self.failures:
            raise AssertionError("the scripted upstream failed:\n" + "\n".join(self.failures))

    def start(self) -> None:
        self._thread.start()
        self._port = self._ready.result(STARTED_WITHIN)

    def stop(self) -> None:
        """Stop at once, also in the middle of answers; safe to call twice."""
        if self._loop is not None and self._stop_asked is not None and self._thread.is_alive():
            try:
                self._loop.call_soon_threadsafe(self._stop_asked.set)
            except RuntimeError:
                log.debug("the loop had ended by itself")
        self._thread.join(STOPPED_WITHIN)
        if self._thread.is_alive():
            raise TimeoutError(f"the scripted upstream did not stop within {STOPPED_WITHIN} s")

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"{'http' if self._authority is None else 'https'}://localhost:{self._port}"

    @property
    def connections(self) -> int:
        """How many connections were accepted (and their TLS handshakes completed)."""
        return self._connections

    def answer(self, *answers: AnyAnswer) -> None:
        """Queue answers for the next requests, in order."""
        self._queue.extend(answers)

    def _choose(self, request: Request) -> AnyAnswer:
        try:
            return self._queue.popleft()
        except IndexError:
            pass
        try:
            if self.handler is None:
                raise LookupError("no answer was scripted")
            return self.handler(request)
        except Exception as error:
            log.exception("no answer for %s %s", request.method, request.target)
            self.failed(f"{request.method} {request.target}: {error!r}")
            return Answer.json({"error": {"message": f"scripted upstream: {error!r}"}}, 500)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop_asked = asyncio.Event()
        context = None
        if self._authority is not None:
            context = self._authority.server_context(self._names, self._alpn, self._sni.__setitem__)
        server = await asyncio.start_server(
            self._connected,
            "127.0.0.1",
            self._port,
            ssl=context,
            ssl_shutdown_timeout=None if context is None else TLS_CLOSED_WITHIN,
        )
        self._ready.set_result(server.sockets[0].getsockname()[1])
        await self._stop_asked.wait()
        server.close()
        sessions = list(self._sessions)
        for session in sessions:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)
        server.abort_clients()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = asyncio.create_task(self._converse(reader, writer))
        self._sessions.add(session)
        session.add_done_callback(self._sessions.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        peer = Peer(
            reader,
            writer,
            number=self._connections,
            sni=self._sni.get(tls) if tls else None,
            alpn=tls.selected_alpn_protocol() if tls else None,
        )
        self._connections += 1
        try:
            if peer.alpn == HTTP2:
                await Http2Session(peer, self, self._choose, settings=self._h2_settings).run()
            else:
                await Http1Session(peer, self, self._choose, send_continue=self._send_continue).run()
        except OSError:
            log.debug("connection %s was reset between answers", peer.number)
        except Exception as error:
            log.exception("connection %s", peer.number)
            self.failed(f"connection {peer.number}: {error!r}")
        finally:
            await peer.closed()


def unused_port() -> int:
    """Return a port of 127.0.0.1 without a listener, for an upstream that cannot be reached."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
