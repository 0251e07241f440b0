"""The requests that a scripted upstream receives and the answers that it sends, as values.

A test owns the pace of an answer through a `Gate`: the server stops at `Pause(gate)` until the test opens it.
"""

import asyncio
import json
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

Header = tuple[bytes, bytes]
AnyHeader = tuple[str | bytes, str | bytes]
Framing = Literal["chunked", "length", "eof"]

DEFAULT_TIMEOUT = 10.0
INTERNAL_ERROR = 2  # HTTP/2 error code, RFC 9113 section 7


class Gate:
    """Hold an answer back until the test opens the gate, for good and for all who wait."""

    def __init__(self) -> None:
        self._opened: Future[None] = Future()
        self._reached = threading.Event()
        self._lock = threading.Lock()

    def open(self) -> None:
        with self._lock:
            if not self._opened.done():
                self._opened.set_result(None)

    def wait_reached(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until a server stands at this gate: all steps before it have been written."""
        if not self._reached.wait(timeout):
            raise TimeoutError(f"no server came to the gate within {timeout} s")

    async def passed(self) -> None:
        """Stand at the gate; for servers only."""
        self._reached.set()
        # Shielded: a server that goes away while it stands here must not cancel the gate for others.
        await asyncio.shield(asyncio.wrap_future(self._opened))


@dataclass(frozen=True)
class Pause:
    """Go on only once the gate is open."""

    gate: Gate


@dataclass(frozen=True)
class Abort:
    """Reset the connection (HTTP/1.1) or the stream (HTTP/2) here."""

    error_code: int = INTERNAL_ERROR


@dataclass(frozen=True)
class Close:
    """Close the connection here in an orderly way: what the framing promised may still be missing."""


@dataclass(frozen=True)
class GoAway:
    """HTTP/2: send GOAWAY here, and go on with the answer. No stream above `last` is served any more.

    `last` None: the stream of this answer.
    """

    last: int | None = None
    error_code: int = 0


Step = bytes | Pause | Abort | Close | GoAway


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")


@dataclass(frozen=True)
class Answer:
    """One response. Each bytes step is written and flushed by itself: one chunk, or one DATA frame.

    - chunked: `transfer-encoding: chunked` (HTTP/2: no length)
    - length:  `content-length` of all the body's bytes, unless a header already names one
    - eof:     neither; the connection's end is the body's end (HTTP/2: no length)

    `before` holds steps that come before the head: a pause, an abort, a close.
    """

    status: int = 200
    headers: Sequence[AnyHeader] = ()
    body: bytes | Iterable[Step] = b""
    framing: Framing = "chunked"
    trailers: Sequence[AnyHeader] = ()
    before: Sequence[Pause | Abort | Close | GoAway] = ()
    reason: bytes = b""

    @property
    def steps(self) -> tuple[Step, ...]:
        return (self.body,) if isinstance(self.body, bytes) else tuple(self.body)

    @property
    def raw_headers(self) -> list[Header]:
        """The headers to send, framing but `transfer-encoding` included."""
        headers = [(_raw(name), _raw(value)) for name, value in self.headers]
        named = {name.lower() for name, _ in headers}
        if self.framing == "length" and b"content-length" not in named:
            length = sum(len(step) for step in self.steps if isinstance(step, bytes))
            headers.append((b"content-length", b"%d" % length))
        return headers

    @property
    def raw_trailers(self) -> list[Header]:
        return [(_raw(name), _raw(value)) for name, value in self.trailers]

    @classmethod
    def json(cls, value: object, status: int = 200, headers: Sequence[AnyHeader] = ()) -> "Answer":
        content = json.dumps(value).encode()
        return cls(status, [("content-type", "application/json"), *headers], content, framing="length")

    @classmethod
    def event_stream(cls, *steps: Step, status: int = 200, headers: Sequence[AnyHeader] = ()) -> "Answer":
        return cls(status, [("content-type", "text/event-stream; charset=utf-8"), *headers], steps)


@dataclass(frozen=True)
class RawAnswer:
    """Bytes that go out verbatim on HTTP/1.1, head included: a server that breaks the rules."""

    steps: Sequence[Step]
    close: bool = True


AnyAnswer = Answer | RawAnswer


@dataclass(frozen=True)
class Request:
    """A complete request as it came in: headers as written, in their order, without pseudo-headers."""

    sequence: int  # also the index in `requests` and `bodies_sent`
    connection: int
    http_version: str  # "1.0", "1.1", "2"
    method: str
    target: str  # exactly as on the wire, one character per byte
    authority: str
    headers: tuple[Header, ...]
    body: bytes
    sni: str | None = None
    alpn: str | None = None
    expected_continue: bool = False
    pseudo_headers: tuple[Header, ...] = field(default=(), repr=False)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def values(self, name: str) -> list[str]:
        wanted = name.lower().encode()
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == wanted]

    def header(self, name: str) -> str | None:
        """The one value of a header, None if it is absent; twice the same header is an error."""
        values = self.values(name)
        if len(values) > 1:
            raise ValueError(f"{name} was sent {len(values)} times: {values}")
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Disconnect:
    """The peer left, or reset the stream, before its answer was complete."""

    request: Request
    kind: Literal["eof", "reset"]
    bytes_sent: int
