"""One connection through a proxy, of which the test says which HTTP it speaks; and the rows of exchanges that ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.client import RawHttp1, connect_through
from tests.support.client_h2 import RawHttp2
from tests.support.database import Row
from tests.support.polling import poll_until
from tests.support.running import RunningProxy

ANTHROPIC = "api.anthropic.com"
OPENAI = "api.openai.com"


@dataclass(frozen=True)
class Seen:
    """A whole answer, and nothing done to its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content_type(self) -> str | None:
        return self.headers.get("content-type")


class Client:
    """A tunnel to one host, in the version of HTTP that the test says."""

    def __init__(self, proxy: RunningProxy, host: str, *, http2: bool = False) -> None:
        self.raw: RawHttp1 | RawHttp2
        if http2:
            self.raw = RawHttp2.through_proxy(proxy, host, 443)
        else:
            # As libraries do it: mitmproxy takes the first for the client, and offers both to the upstream.
            self.raw = RawHttp1(connect_through(proxy, host, 443, alpn=("http/1.1", "h2")), f"{host}:443")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.raw.close()

    def post(self, path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> Seen:
        return self.ask("POST", path, headers, body)

    def ask(self, method: str, path: str, headers: Sequence[tuple[str, str]] = (), body: bytes | None = None) -> Seen:
        if isinstance(self.raw, RawHttp1):
            self.raw.request(method, path, headers, body)
            head = self.raw.read_head()
            return Seen(head.status, _named(head.headers), self.raw.read_body())
        fields = [(name.encode(), value.encode()) for name, value in headers]
        if body is not None:
            fields.append((b"content-length", b"%d" % len(body)))
        stream = self.raw.request(method, path, fields, body or b"")
        status, answered = self.raw.read_head(stream)
        return Seen(status, _named(answered), self.raw.read_body(stream))


def _named(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in headers}


def wait_for_ended(proxy: RunningProxy, n: int, timeout: float = 10.0) -> list[Row]:
    """Wait until n interceptions have ended, and return all that there are, in the order of their start."""

    def maybe_ended() -> list[Row] | None:
        rows = sorted(proxy.rows("aibridge_interceptions"), key=lambda row: str(row["started_at"]))
        return rows if sum(row["ended_at"] is not None for row in rows) >= n else None

    return poll_until(maybe_ended, timeout, what=f"{n} ended interceptions")
