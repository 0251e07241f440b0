"""The HTTP client under the library's HTTP transports. Every answer that it returns is one that they can read.

The transports let one broken answer end the session of all callers, do not bound what a compressed answer expands to,
and cannot say why a request failed. So the client reads answers itself, in bounded memory:

    answer ─┬─ cannot be reached, broken ──▶ an error answer to this request
            ├─ HTTP error ─▶ an error answer: the session has expired, or the request is refused
            ├─ JSON ──────▶ decoded, bounded, mended (see `messages`)
            └─ events ────▶ the same for each event, as they come

Only the handshake fails with exceptions, because nothing is to be saved then.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import httpx2
from mcp.client.streamable_http import LAST_EVENT_ID, MCP_SESSION_ID

from aibridge_addon.config.schema import HttpServer
from aibridge_addon.tools import messages
from aibridge_addon.tools.fair_share import Pace, Worker
from aibridge_addon.tools.held import HeldResults, Id
from aibridge_addon.tools.messages import Asked, Requests
from aibridge_addon.wire import sse
from aibridge_addon.wire.codings import CodingError, OutputLimitExceeded, decoder_for
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable

MAX_MESSAGE = 16 << 20
"""Bytes of one message, decoded. A larger answer is not read."""
MAX_STREAM = 64 << 20
"""Bytes of all events of one answer, decoded."""
MAX_EVENTS = 20_000
"""Events of one answer."""
MAX_ERROR_BODY = 64 << 10
"""Bytes of an HTTP error's body that are read."""
HANDSHAKE = frozenset(("initialize", "server/discover"))
OLD_TRANSPORT = frozenset((httpx2.codes.NOT_FOUND, httpx2.codes.METHOD_NOT_ALLOWED))
"""HTTP statuses of servers that have the transport of 2024 only ("Backwards Compatibility" of the specification)."""

EDGE = 64
"""Bytes in which a message begins."""
READ_SIZE = 16 << 10
"""Bytes that are searched for events at once."""
EVENTS = "text/event-stream"
Read = Callable[[bytes], Awaitable[list[bytes]]]
Deliver = Callable[[bytes], Awaitable[None]]
OnRequest = Callable[[httpx2.Request], Awaitable[None]]
"""Changes a request before it is sent."""


class OldTransport(Exception):
    """The server refuses to initialize over POST. It may have the transport of 2024, HTTP with SSE."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it has no streamable HTTP at this URL (HTTP {status})")


class Credential(Protocol):
    """Authenticates HTTP requests to a server."""

    @property
    def secrets(self) -> Sequence[str]:
        """Texts that must not appear in logs or results."""

    @property
    def auth(self) -> httpx2.Auth: ...


class Peer(Protocol):
    """What the client needs from its connection."""

    connected_within: float
    on_request: OnRequest | None
    credential: Credential | None
    worker: Worker
    held: HeldResults

    def change(self) -> None: ...
    def reason(self, error: BaseException) -> str: ...


class HttpClient(httpx2.AsyncClient):
    """Reads and mends answers.

    Args:
        deliver: for the transport of 2024, where answers come as events of the one stream: takes the error answers
            that are made here. None: streamable HTTP.
    """

    def __init__(
        self, server: Peer, settings: HttpServer, tls: ssl.SSLContext, *, deliver: Deliver | None = None
    ) -> None:
        headers = httpx2.Headers({"accept-encoding": "identity"})
        headers.update({name.encode(): value.get_secret_value().encode() for name, value in settings.headers.items()})
        # No read timeout: calls may take long and have timeouts of their own.
        timeout = httpx2.Timeout(server.connected_within, read=None)
        super().__init__(
            headers=headers,
            timeout=timeout,
            verify=tls,
            auth=server.credential.auth if server.credential is not None else None,
            event_hooks={"request": [server.on_request]} if server.on_request is not None else None,
        )
        self._server = server
        self._deliver = deliver
        self._requests = Requests(server.held)
        self._resumable: dict[Id, tuple[str, Asked]] = {}
        """Requests whose events have ids, each with its last one."""
        self._streaming = False
        """A stream of notifications has been open."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if request.method == "GET":
            return await self._get(request, options)
        if request.method != "POST":
            return _bounded(await super().send(request, **options))
        asked = _asked(request)
        if asked is None:
            request.extensions = {
                **request.extensions,
                "timeout": httpx2.Timeout(self._server.connected_within).as_dict(),
            }
        if self._deliver is not None:
            return await self._post_beside_stream(request, asked, self._deliver, options)
        try:
            response = await super().send(request, **options)
        except httpx2.TransportError as e:
            return self._unreachable(request, asked, e)
        finally:
            if asked is None:
                self._requests.note(request.content)
        if response.is_redirect:
            return _bounded(response)
        if response.is_error:
            return await self._refused(response, asked)
        if asked is None or response.status_code == httpx2.codes.ACCEPTED:
            return _bounded(response)
        if response.headers.get("content-type", "").lower().startswith(EVENTS):
            return _replaced(response, _Events(response, self._reader(asked), asked, self._note_event(asked)))
        return await self._whole(response, asked)

    # --- answers to one request -----------------------------------------------------------------------------------

    def _unreachable(
        self, request: httpx2.Request, asked: Asked | None, error: httpx2.TransportError
    ) -> httpx2.Response:
        if asked is None:
            self._server.change()  # the next list shows whether the server is there
            return httpx2.Response(httpx2.codes.ACCEPTED, request=request)
        if asked.method in HANDSHAKE:
            raise error
        return _answer(request, messages.error(asked.id, messages.UNREACHABLE, self._server.reason(error)))

    async def _refused(self, response: httpx2.Response, asked: Asked | None) -> httpx2.Response:
        """Read an HTTP error. What it says about the session is its status, not the code in its body."""
        status, has_session = response.status_code, MCP_SESSION_ID in response.request.headers
        if asked is not None and asked.method == "initialize" and status in OLD_TRANSPORT:
            await response.aclose()
            raise OldTransport(status)
        body = await _beginning(response)
        if asked is None:
            self._server.change()
            return httpx2.Response(httpx2.codes.ACCEPTED, request=response.request)
        code = _SESSION_CODES.get(status) if has_session else None
        return _answer(response.request, messages.refusal(asked, body, status, code))

    async def _whole(self, response: httpx2.Response, asked: Asked) -> httpx2.Response:
        """Read an answer that is no stream of events."""
        headers = {MCP_SESSION_ID: response.headers[MCP_SESSION_ID]} if MCP_SESSION_ID in response.headers else {}
        try:
            body = await _body(response)
            mend = partial(messages.mend, body, [asked], whole=True, held=self._server.held)
            found = await self._server.worker.run(len(body), mend)
        except httpx2.TransportError as e:
            if asked.method in HANDSHAKE:
                raise
            text = f"the connection broke before the answer: {self._server.reason(e)}"
            return _answer(response.request, messages.error(asked.id, messages.UNREACHABLE, text))
        except (CodingError, NotJSON, Unreadable) as e:
            return _answer(response.request, messages.unreadable(asked, _why(e)), headers=headers)
        finally:
            await response.aclose()
        answers = [message for message, answered in found if answered is not None][:1]
        answers = answers or [messages.unreadable(asked, "it has no result")]
        others = [message for message, answered in found if answered is None]
        return _answer(response.request, *others, *answers, headers=headers)

    def _reader(self, asked: Asked) -> Read:
        async def read(data: bytes) -> list[bytes]:
            mend = partial(messages.mend, data, [asked], held=self._server.held, of_server=self._requests.of_server)
            found = await self._server.worker.run(len(data), mend)
            if any(answered is not None for _, answered in found):
                self._resumable.pop(asked.id, None)
            return [message for message, _ in found]

        return read

    def _note_event(self, asked: Asked) -> Callable[[str], None]:
        def note(event_id: str) -> None:
            self._resumable[asked.id] = (event_id, asked)
            if len(self._resumable) > MAX_RESUMABLE:
                del self._resumable[next(iter(self._resumable))]

        return note

    # --- streams of the server ------------------------------------------------------------------------------------

    async def _get(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        last = request.headers.get(LAST_EVENT_ID)
        resumed = next((asked for event_id, asked in self._resumable.values() if event_id == last), None)
        try:
            response = await super().send(request, **options)
        except httpx2.TransportError:
            if resumed is None and self._streaming:
                self._server.change()  # the next list shows whether the server is there
            raise
        if resumed is not None and response.is_success:
            return _replaced(response, _Events(response, self._reader(resumed), resumed, self._note_event(resumed)))
        if resumed is None:
            # The stream was away: notifications were missed, or the server does not know the session any more.
            if self._streaming:
                self._server.change()
            self._streaming = self._streaming or response.is_success
        if not response.is_success:
            return _bounded(response)
        return _replaced(response, _Events(response, self._read, requests=self._requests, deliver=self._deliver))

    async def _read(self, data: bytes) -> list[bytes]:
        return await self._server.worker.run(len(data), self._requests.read, data)

    # --- the transport of 2024 ------------------------------------------------------------------------------------

    async def _post_beside_stream(
        self, request: httpx2.Request, asked: Asked | None, deliver: Deliver, options: dict[str, Any]
    ) -> httpx2.Response:
        """Send a message whose answer comes on the stream. A failure is answered here."""
        if asked is not None:
            self._requests.note(request.content)
        made: list[bytes] = []
        try:
            response = await super().send(request, **options)
            if response.is_error and asked is not None:
                code = messages.SESSION_EXPIRED if response.status_code == httpx2.codes.NOT_FOUND else None
                made.append(messages.refusal(asked, await _beginning(response), response.status_code, code))
            elif asked is not None and "json" in response.headers.get("content-type", ""):
                made += await self._read(await _beginning(response, MAX_MESSAGE))
            else:
                await response.aclose()
        except httpx2.TransportError as e:
            if asked is not None:
                made.append(messages.error(asked.id, messages.UNREACHABLE, self._server.reason(e)))
        except (NotJSON, Unreadable):
            pass  # such as `Accepted`
        finally:
            if asked is None:
                self._requests.note(request.content)
        for message in made:
            if asked is not None and self._requests.under_way(asked.id):
                self._requests.answered(asked)
            await deliver(message)
        return httpx2.Response(httpx2.codes.ACCEPTED, request=request)


MAX_RESUMABLE = 1000
"""Requests whose last event is remembered."""
_SESSION_CODES: Mapping[int, int] = MappingProxyType(
    {httpx2.codes.NOT_FOUND: messages.SESSION_EXPIRED, httpx2.codes.BAD_REQUEST: messages.SESSION_DOUBTFUL}
)


class _Events(httpx2.AsyncByteStream):
    """The events of an answer, each with one mended message."""

    def __init__(
        self,
        response: httpx2.Response,
        read: Read,
        asked: Asked | None = None,
        on_id: Callable[[str], None] | None = None,
        *,
        requests: Requests | None = None,
        deliver: Deliver | None = None,
    ) -> None:
        self._stream: Any = response.stream
        self._coding = response.headers.get("content-encoding")
        self._read = read
        self._asked = asked
        self._on_id = on_id
        self._requests = requests
        self._deliver = deliver  # the library's transport of 2024 takes only small events

    async def __aiter__(self) -> AsyncIterator[bytes]:
        scanner, oversized = sse.SSEScanner(MAX_MESSAGE), 0
        limit = MAX_STREAM if self._asked is not None or self._coding else sys.maxsize
        size = count = 0
        pace = Pace()
        try:
            async for piece in _decoded(self._stream, self._coding, limit):
                size += len(piece)
                if size > limit:
                    raise Unreadable(f"larger than {limit} bytes")
                await pace.took(len(piece))
                for event, _ in scanner.feed(piece):
                    count += 1
                    await pace.took()
                    if count > MAX_EVENTS and self._asked is not None:
                        raise Unreadable(f"more than {MAX_EVENTS} events")
                    async for mended in self._passed(event):
                        yield mended
                if scanner.oversized > oversized:
                    oversized = scanner.oversized
                    raise Unreadable(f"larger than {MAX_MESSAGE} bytes")
            async for mended in self._passed(scanner.finish()):
                yield mended
        except (CodingError, Unreadable) as e:
            asked = self._asked or (self._requests.under_way(None) if self._requests is not None else None)
            if asked is None:
                raise httpx2.ReadError(_why(e)) from None
            if self._requests is not None:
                self._requests.answered(asked)
            made = messages.unreadable(asked, _why(e))
            if self._deliver is not None:
                await self._deliver(made)
            else:
                yield sse.event("message", made)

    async def _passed(self, event: bytes) -> AsyncIterator[bytes]:
        name, data = sse.parse(event)
        if name == "endpoint":  # of the transport of 2024
            yield event
        elif self._deliver is None:
            async for mended in self._mended(event, data):
                yield mended
        else:
            for message in await self._messages(data):
                await self._deliver(message)

    async def _mended(self, event: bytes, data: bytes | None) -> AsyncIterator[bytes]:
        kept = b"".join(line + b"\n" for line in event.splitlines() if line.startswith((b"id:", b"retry:")))
        for line in kept.splitlines():
            if line.startswith(b"id:") and self._on_id is not None:
                self._on_id(line[3:].strip().decode("utf-8", "replace"))
        for message in await self._messages(data):
            yield kept + sse.event("message", message)
            kept = b""
        if kept:
            yield kept + b"data: \n\n"

    async def _messages(self, data: bytes | None) -> Sequence[bytes]:
        if data is None or data.isspace() or not data:
            return ()
        try:
            return await self._read(data)
        except (NotJSON, Unreadable) as e:
            # Other texts are keep-alives.
            if self._asked is not None and data[:EDGE].lstrip(b"\xef\xbb\xbf \t\n").startswith((b"{", b"[")):
                return [messages.unreadable(self._asked, _why(e))]
        return ()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Nothing(httpx2.AsyncByteStream):
    """In place of a body that is not read."""

    def __init__(self, response: httpx2.Response) -> None:
        self._stream: Any = response.stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        nothing: tuple[bytes, ...] = ()
        for each in nothing:
            yield each

    async def aclose(self) -> None:
        await self._stream.aclose()


def _asked(request: httpx2.Request) -> Asked | None:
    """Return the request that a POST transports; None for a notification or an answer."""
    try:
        message = JSONObject(request.content)
    except (NotJSON, Unreadable):
        return None
    id, method = message.get("id"), message.text("method")
    return Asked(id, method) if isinstance(id, int | str) and method is not None else None


def _answer(request: httpx2.Request, *found: bytes, headers: dict[str, str] | None = None) -> httpx2.Response:
    """Return an answer with these messages, as JSON or, if there are several, as events."""
    if len(found) == 1:
        kind, body = "application/json", found[0]
    else:
        kind, body = EVENTS, b"".join(sse.event("message", message) for message in found)
    return httpx2.Response(
        httpx2.codes.OK, headers={"content-type": kind, **(headers or {})}, content=body, request=request
    )


def _replaced(response: httpx2.Response, stream: httpx2.AsyncByteStream) -> httpx2.Response:
    response.headers.pop("content-encoding", None)
    response.headers.pop("content-length", None)
    if isinstance(stream, _Events) and response.headers.get("content-type", "").lower().startswith(EVENTS):
        response.headers["content-type"] = EVENTS  # without a charset: the mended ones are UTF-8
    response.stream = stream
    return response


def _bounded(response: httpx2.Response) -> httpx2.Response:
    """Drop the body of an answer of which only the head counts."""
    return _replaced(response, _Nothing(response))


async def _decoded(stream: Any, coding: str | None, limit: int) -> AsyncIterator[bytes]:
    decoder = decoder_for(coding, limit)
    async for chunk in stream:
        for piece in (chunk,) if decoder is None else decoder.feed(chunk):
            for start in range(0, len(piece), READ_SIZE):
                yield piece[start : start + READ_SIZE]


async def _body(response: httpx2.Response) -> bytes:
    body, pace = bytearray(), Pace()
    async for piece in _decoded(response.stream, response.headers.get("content-encoding"), MAX_MESSAGE):
        await pace.took(len(piece))
        body += piece
        if len(body) > MAX_MESSAGE:
            raise Unreadable(f"larger than {MAX_MESSAGE} bytes")
    return bytes(body)


async def _beginning(response: httpx2.Response, limit: int = MAX_ERROR_BODY) -> bytes:
    """Read the beginning of a body as far as it can be read."""
    body, pace = bytearray(), Pace()
    try:
        async for piece in _decoded(response.stream, response.headers.get("content-encoding"), limit):
            await pace.took(len(piece))
            body += piece[: limit - len(body)]
            if len(body) >= limit:
                break
    except (CodingError, httpx2.TransportError):
        pass
    finally:
        await response.aclose()
    return bytes(body)


def _why(error: Exception) -> str:
    """Describe why an answer cannot be read. A decoder's own words may repeat the answer."""
    if isinstance(error, NotJSON):
        return "it is not JSON"
    if isinstance(error, OutputLimitExceeded):
        return f"larger than {error.limit} bytes"
    return str(error)
