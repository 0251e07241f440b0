"""One proxy between clients and scripted upstreams, for many exchanges that a header tells apart.

with open_stage(folder, ca, mitmproxy_ca) as stage, ROUTES[0].connect(stage) as client:
    stage.answer("a", Answer.json({}))
    seen = client.exchange("POST", "/v1/messages", [(CASE, b"a")], b"{}")
    assert stage.received["a"].body == b"{}"
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import pytest

from tests.support.authority import Authority
from tests.support.client import RawHttp1, connect_through
from tests.support.client_h2 import RawHttp2
from tests.support.database import Row, Table, said_of_usage
from tests.support.in_process import InProcessProxy
from tests.support.mitmdump import Mitmdump
from tests.support.running import RunningProxy
from tests.support.script import AnyAnswer, Header, Request
from tests.support.upstream import HTTP1, ScriptedUpstream

CASE = b"x-case"
HOP_BY_HOP = frozenset({b"connection", b"host", b"keep-alive", b"transfer-encoding"})

UpstreamKind = Literal["h2", "h1", "plain"]


class Stage:
    """Answers are set, and requests are found, by the value of their `x-case` header."""

    def __init__(self) -> None:
        self.received: dict[str, Request] = {}
        self._answers: dict[str, AnyAnswer] = {}
        self.upstreams: dict[UpstreamKind, ScriptedUpstream] = {}
        self.proxy: RunningProxy

    def answer(self, case: str, answer: AnyAnswer) -> None:
        self._answers[case] = answer

    def choose(self, request: Request) -> AnyAnswer:
        case = request.header(CASE.decode()) or ""
        self.received[case] = request
        return self._answers[case]

    def bytes_sent(self, case: str) -> bytes:
        """What an upstream has written of an answer's body so far."""
        request = self.received[case]
        [upstream] = [found for found in self.upstreams.values() if request in found.requests]
        return upstream.bodies_sent[request.sequence]


@contextmanager
def open_stage(
    folder: Path, ca: Authority, mitmproxy_ca: Path, kind: type[InProcessProxy] | type[Mitmdump] = InProcessProxy
) -> Iterator[Stage]:
    """Three upstreams, each behind one provider per type: `anthropic-h1` at `anthropic-h1.test`, and so on."""
    stage = Stage()
    with ExitStack() as stack:
        stage.upstreams = {
            "h2": stack.enter_context(ScriptedUpstream(handler=stage.choose, authority=ca)),
            "h1": stack.enter_context(ScriptedUpstream(handler=stage.choose, authority=ca, alpn=[HTTP1])),
            "plain": stack.enter_context(ScriptedUpstream(handler=stage.choose)),
        }
        lines = ["recording: {ask_chat_usage: false}", "providers:"]
        for way, upstream in stage.upstreams.items():
            for type_, path in (("anthropic", ""), ("openai", "/v1"), ("bedrock", "")):
                name = f"{type_}-{way}"
                price_as = "" if type_ == "bedrock" else f", price_as: {type_}"
                lines.append(
                    f"- {{name: {name}, type: {type_}, hosts: [{name}.test],"
                    f" base_url: '{upstream.url}{path}'{price_as}}}"
                )
        config = "\n".join(lines) + "\n"
        stage.proxy = stack.enter_context(kind(folder, config=config, upstream_ca=ca.pem, mitmproxy_ca=mitmproxy_ca))
        yield stage
    if stage.proxy.has_traceback:
        pytest.fail(f"the proxy logged a traceback:\n{stage.proxy.log_tail}", pytrace=False)


# --- clients ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """An answer as its client saw it."""

    status: int
    headers: list[Header]
    body: bytes


class Client(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def exchange(
        self, method: str, target: str, headers: Sequence[Header], body: bytes = b"", pieces: Sequence[bytes] = ()
    ) -> Seen: ...
    def open(self, method: str, target: str, headers: Sequence[Header], body: bytes) -> Callable[[], bytes]:
        """Ask, read the answer's head, and return what reads the next piece of its body."""
        ...


@dataclass(frozen=True)
class Route:
    """A way through the proxy: how the client speaks to it, and to which upstream it leads."""

    client: Literal["h1", "h2", "h1 or h2", "gateway"]
    upstream: UpstreamKind
    version: str
    """The HTTP version that the upstream is spoken to in."""

    def __str__(self) -> str:
        return f"{self.client} to {self.upstream}"

    @property
    def keeps_case(self) -> bool:
        return self.client != "h2" and self.version != "2"

    def connect(self, stage: Stage, type_: str = "anthropic") -> Client:
        host = f"{type_}-{self.upstream}.test"
        if self.client == "h2":
            return Http2Client(RawHttp2.through_proxy(stage.proxy, host, 443))
        return Http1Client(self, stage, host)

    def connect_raw(self, stage: Stage, type_: str = "anthropic") -> RawHttp1:
        """Connect a client that speaks HTTP/1."""
        host = f"{type_}-{self.upstream}.test"
        if self.client == "gateway":
            return RawHttp1.connect("127.0.0.1", stage.proxy.port)
        alpn = ["http/1.1", "h2"] if self.client == "h1 or h2" else ["http/1.1"]
        return RawHttp1(connect_through(stage.proxy, host, 443, alpn=alpn), host)


ROUTES = (
    Route("h1", "h1", "1.1"),
    Route("h2", "h2", "2"),
    Route("h1 or h2", "h2", "2"),
    Route("h2", "h1", "1.1"),
    Route("gateway", "h1", "1.1"),
    Route("gateway", "plain", "1.1"),
    Route("h2", "plain", "1.1"),
)
H1, H2, H1_TO_H2, H2_TO_H1, GATEWAY, GATEWAY_TO_PLAIN, H2_TO_PLAIN = ROUTES


class Http1Client:
    """Keep the connection as long as the answers' framing lets it."""

    def __init__(self, route: Route, stage: Stage, host: str) -> None:
        self._route = route
        self._stage = stage
        self._prefix = "/" + host.removesuffix(".test") if route.client == "gateway" else ""
        self._type = host.partition("-")[0]
        self._raw: RawHttp1 | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def exchange(
        self, method: str, target: str, headers: Sequence[Header], body: bytes = b"", pieces: Sequence[bytes] = ()
    ) -> Seen:
        """Send the body whole, or in these pieces; its length is among the headers."""
        if self._raw is None:
            self._raw = self._route.connect_raw(self._stage, self._type)
        self._raw.request(method, self._prefix + target, headers)
        for piece in pieces or [body]:
            self._raw.send(piece)
        head = self._raw.read_head()
        seen = Seen(head.status, list(head.headers), self._raw.read_body())
        if head.header("content-length") is None and head.header("transfer-encoding") is None and method != "HEAD":
            self._close()
        return seen

    def open(self, method: str, target: str, headers: Sequence[Header], body: bytes) -> Callable[[], bytes]:
        raw = self._raw = self._raw or self._route.connect_raw(self._stage, self._type)
        raw.request(method, self._prefix + target, headers)
        raw.send(body)
        assert raw.read_head().status == 200
        return raw.read_body_chunk

    def _close(self) -> None:
        if self._raw is not None:
            self._raw.close()
            self._raw = None


class Http2Client:
    def __init__(self, raw: RawHttp2) -> None:
        self.raw = raw

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.raw.close()

    def exchange(
        self, method: str, target: str, headers: Sequence[Header], body: bytes = b"", pieces: Sequence[bytes] = ()
    ) -> Seen:
        stream = self.raw.request(method, target, [(name.lower(), value) for name, value in headers], body)
        status, answered = self.raw.read_head(stream)
        return Seen(status, answered, self.raw.read_body(stream))

    def open(self, method: str, target: str, headers: Sequence[Header], body: bytes) -> Callable[[], bytes]:
        stream = self.raw.request(method, target, headers, body)
        assert self.raw.read_head(stream)[0] == 200
        return partial(self.raw.read_data, stream)


def end_to_end(headers: Sequence[Header], *, keep_case: bool) -> list[Header]:
    """The headers that are the client's and the provider's own affair, in their order."""
    kept = [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]
    return kept if keep_case else [(name.lower(), value) for name, value in kept]


# --- rows ---------------------------------------------------------------------------------------------------------

_CHILDREN: dict[str, Table] = {
    "prompts": "aibridge_user_prompts",
    "tokens": "aibridge_token_usages",
    "tools": "aibridge_tool_usages",
    "thoughts": "aibridge_model_thoughts",
    "answers": "aibridge_answers",
}


def interceptions(proxy: RunningProxy) -> list[dict[str, Any]]:
    """The interceptions, each with all that was recorded of it, in the terms of a fixture's `expect`."""
    children: dict[str, defaultdict[str, list[Row]]] = {}
    for name, table in _CHILDREN.items():
        children[name] = defaultdict(list)
        for row in proxy.rows(table):
            children[name][row["interception_id"]].append(row)
    return [
        _interception(row, {name: rows[row["id"]] for name, rows in children.items()})
        for row in proxy.rows("aibridge_interceptions")
    ]


def _interception(row: Row, children: dict[str, list[Row]]) -> dict[str, Any]:
    [prompt] = [child["prompt"] for child in children["prompts"]] or [None]
    ids = {child["provider_response_id"] for rows in children.values() for child in rows}
    return {
        **row,
        "prompt": prompt,
        "response_ids": ids,
        "tokens": [_tokens(child) for child in children["tokens"] if child["kind"] == "answer"],
        "iterations": [
            {"kind": child["kind"], "model": child["model"]} | _tokens(child)
            for child in children["tokens"]
            if child["kind"] != "answer"
        ],
        "answered_by": next((child["model"] for child in children["tokens"] if child["kind"] == "answer"), None),
        "stop_reason": next((child["stop_reason"] for child in children["tokens"]), None),
        "cost_usd": _cost(children["tokens"]),
        "answers": [child["content"] for child in children["answers"]],
        "tools": [_tool(child) for child in children["tools"]],
        "thoughts": [{"content": c["content"], "source": c["metadata"]["source"]} for c in children["thoughts"]],
    }


def _cost(rows: list[Row]) -> float | None:
    """The sum of the rows' costs, exact to a billionth of a dollar. None: one of them has no price."""
    costs = [row["cost_usd"] for row in rows]
    return None if None in costs else round(sum(costs), 9)


def _tokens(row: Row) -> dict[str, Any]:
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens", "completeness")
    return {name: row[name] for name in names} | {"extra": said_of_usage(row)}


def _tool(row: Row) -> dict[str, Any]:
    members = {name: row[name] for name in ("tool", "provider_tool_call_id", "input")}
    return members | ({"server_side": True} if row["metadata"].get("server_side") else {})
