"""One client connection in mitmproxy's HTTP layer, with our streams in it and the real addon behind its hooks."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from mitmproxy import http
from mitmproxy.connection import Client, Server
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.addon import AIBridge
from aibridge_addon.bridge import Bridge
from aibridge_addon.proxy.flow.request_head import RequestClassifier
from aibridge_addon.proxy.stream.layer import BridgeHttpLayer
from tests.support import fixtures
from tests.support.database import Row, Table, read_table
from tests.support.fixtures import Case
from tests.support.playbook import Playbook, make_context

UPSTREAM = "http://upstream.example:8000"
PROVIDERS = [
    {"name": "anthropic", "type": "anthropic", "base_url": UPSTREAM},
    {"name": "openai", "type": "openai", "base_url": UPSTREAM + "/v1"},
]
PATHS = {
    "messages": "http://api.anthropic.com/v1/messages",
    "chat_completions": "http://api.openai.com/v1/chat/completions",
    "responses": "http://api.openai.com/v1/responses",
}
EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED_END = b"0\r\n\r\n"


class Scene:
    """Plays the proxy's server, the client and the upstream. `playbook` checks what happens in between."""

    def __init__(self, bridge: Bridge, database: Path, **options: object) -> None:
        self.bridge = bridge
        self.layer = BridgeHttpLayer(make_context(**options), HTTPMode.regular)
        self.playbook = Playbook(self.layer)
        self.ends: list[tuple[http.HTTPFlow, str]] = []
        """Each flow that has ended, and the hook that reported it."""
        self.database = database
        self._addon = AIBridge()
        self._addon._bridge, self._addon._classifier = bridge, RequestClassifier(bridge)

    @property
    def client(self) -> Client:
        return self.playbook.client

    async def hook(self, kind: type[commands.StartHook]) -> http.HTTPFlow:
        """Take this hook, let the addon do its part, and go on."""
        hook = self.playbook.expect(kind)
        await self.run(hook)
        self.playbook.done(hook)
        return flow_of(hook)

    async def run(self, hook: commands.StartHook) -> None:
        """Let the addon do its part of a hook; the layer still waits."""
        if isinstance(hook, hooks.HttpResponseHook | hooks.HttpErrorHook):
            self.ends.append((flow_of(hook), hook.name))
        handler = getattr(self._addon, hook.name)
        result = handler(*hook.args())
        if inspect.isawaitable(result):
            await result

    async def ask(self, request: bytes) -> http.HTTPFlow:
        """The client sends a whole request that is passed on."""
        self.playbook.receive(self.client, request)
        flow = await self.hook(hooks.HttpRequestHeadersHook)
        await self.hook(hooks.HttpRequestHook)
        return flow

    async def interceptions(self) -> list[Row]:
        return await self.rows("aibridge_interceptions")

    async def rows(self, table: Table) -> list[Row]:
        """The rows of a table, with those of everything that has been emitted so far."""
        await self.bridge.committed()
        return read_table(self.database, table)

    async def answer(self, upstream: Server, head: bytes) -> http.HTTPFlow:
        """The upstream sends an answer's head."""
        self.playbook.receive(upstream, head)
        return await self.hook(hooks.HttpResponseHeadersHook)

    async def answer_stream(self, case: Case) -> Server:
        """A bridged request is passed on, and its answer has begun. Returns the upstream connection."""
        await self.ask(request(case.request, PATHS[case.dialect]))
        upstream = self.playbook.connect()
        assert self.playbook.sent(upstream).endswith(b"\r\n\r\n" + case.request)
        await self.answer(upstream, EVENT_STREAM)
        assert self.playbook.sent(self.client).startswith(b"HTTP/1.1 200 OK\r\n")
        return upstream

    async def break_off(self, upstream: Server) -> None:
        """Close the upstream's connection, unless its data did. The addon's hook reports the end of the flow."""
        if not self.playbook.next_is(commands.CloseConnection):
            self.playbook.close(upstream)
        while self.playbook.next_is(commands.CloseConnection):
            self.playbook.expect_close(upstream)
        await self.hook(hooks.HttpErrorHook)

    def expect_error(self, status: int) -> dict[str, Any]:
        """An error of our own, whole, as JSON; the connection stays open."""
        head, _, body = self.playbook.sent(self.client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status) and b"application/json" in head
        self.playbook.expect_nothing()
        error: dict[str, Any] = json.loads(body)
        return error

    async def expect_to_go_on(self) -> None:
        """The client's connection takes a further request, which is answered."""
        case = fixtures.case("messages/simple/blocking")
        await self.ask(request(case.request))
        upstream = self.playbook.connect()
        assert self.playbook.sent(upstream)
        await self.answer(upstream, sized(case.body))
        sent = self.playbook.sent(self.client)
        await self.hook(hooks.HttpResponseHook)
        assert (sent + self.playbook.sent(self.client)).endswith(case.body)
        assert self.layer.streams == {}


def flow_of(hook: commands.StartHook) -> http.HTTPFlow:
    (flow,) = hook.args()
    assert isinstance(flow, http.HTTPFlow)
    return flow


# --- HTTP/1, as bytes ---------------------------------------------------------------------------------------------


def request(body: bytes, target: str = PATHS["messages"], headers: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n" % (target.encode(), size, headers)
    return head + body


def sized(body: bytes, status: bytes = b"200 OK", content_type: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (status, content_type, len(body)) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def dechunked(data: bytes) -> bytes:
    body = b""
    while data and data != CHUNKED_END:
        size, _, data = data.partition(b"\r\n")
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return body
