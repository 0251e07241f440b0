"""A stream that is over leaves nothing in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from mitmproxy.connection import Server
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.config.schema import Limits
from aibridge_addon.proxy.flow.state import HOOK
from aibridge_addon.proxy.stream.hooks import AibridgeCommitHook
from aibridge_addon.proxy.stream.layer import BridgeHttpLayer
from aibridge_addon.proxy.stream.short_way import SWITCH
from aibridge_addon.proxy.stream.stream import BridgeHttpStream
from tests.support import fixtures
from tests.support.playbook import Playbook, make_context
from tests.support.scene import CHUNKED_END, Scene, chunk, flow_of, request, sized

CASE = fixtures.case("messages/simple/blocking")
STREAM = fixtures.case("messages/simple/streaming")


@pytest.fixture(autouse=True)
def no_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(SWITCH, raising=False)
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def stream_of(scene: Scene) -> BridgeHttpStream:
    stream = scene.layer.streams[1]
    assert isinstance(stream, BridgeHttpStream)
    return stream


def way_of(scene: Scene, upstream: Server) -> Any:
    return scene.layer.connections[upstream].context.layers[-1].short_way  # type: ignore[attr-defined]


CHUNKED_REQUEST = (
    b"POST http://x.example/ HTTP/1.1\r\nHost: x.example\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"14\r\naaaaaaaaaaaaaaaaaaaa\r\n"
)


def two_requests() -> bytes:
    """One without a body yet, and one whose body is too large."""
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    for stream_id, path in (1, "/slow"), (3, "/big"):
        head = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x.example")]
        client.send_headers(stream_id, head)
    client.send_data(3, b"a" * 20)
    return client.data_to_send()


async def test_a_stream_is_freed_when_its_answer_has_ended(scene: Scene) -> None:
    await scene.ask(request(CASE.request))
    guard = weakref.ref(stream_of(scene).guard)
    upstream = scene.playbook.connect()
    assert scene.playbook.sent(upstream)
    await scene.answer(upstream, sized(CASE.body))
    scene.playbook.sent(scene.client)
    await scene.hook(hooks.HttpResponseHook)
    assert scene.playbook.sent(scene.client)
    assert guard() is None


async def test_a_stream_is_freed_when_its_client_has_left(scene: Scene) -> None:
    upstream = await scene.answer_stream(STREAM)
    guard = weakref.ref(stream_of(scene).guard)
    scene.playbook.close(scene.client)
    scene.playbook.expect_close(upstream)
    await scene.hook(hooks.HttpErrorHook)
    assert guard() is None


async def test_an_answer_is_freed_although_its_upstream_connection_stays(scene: Scene) -> None:
    upstream = await scene.answer_stream(STREAM)
    way = way_of(scene, upstream)
    answer = weakref.ref(way._convert.__self__)
    del way
    scene.playbook.receive(upstream, chunk(STREAM.body) + CHUNKED_END)
    scene.playbook.sent(scene.client)
    await scene.hook(AibridgeCommitHook)
    scene.playbook.sent(scene.client)
    await scene.hook(hooks.HttpResponseHook)
    scene.playbook.sent(scene.client)
    assert upstream.connected and answer() is None


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1", "HTTP/2"])
def test_a_stream_that_handles_an_event_within_another_is_freed_after_both(
    http2: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that becomes too large to be buffered is streamed, and its upstream cannot be reached."""
    context = make_context()
    if http2:
        context.client.alpn = b"h2"
    context.server.address = ("x.example", 80)
    scripted = BridgeHttpLayer(context, HTTPMode.transparent if http2 else HTTPMode.regular)
    scripted.limits = Limits(passthrough_body=10)
    playbook = Playbook(scripted)
    playbook.receive(context.client, (two_requests() if http2 else CHUNKED_REQUEST))
    kinds = []
    while playbook.next_is(commands.Command):
        command = playbook.expect(commands.Command)
        kinds.append(type(command))
        if isinstance(command, commands.OpenConnection):
            playbook.opened(command, "refused")
        elif isinstance(command, commands.StartHook):
            flow_of(command).metadata[HOOK] = command.name
            playbook.done(command)
    assert hooks.HttpErrorHook in kinds
    assert not http2 or commands.CloseConnection not in kinds  # the rest of a chunked body is not read over HTTP/1
    assert "internal error" not in caplog.text


async def test_an_empty_stream_ignores_events_and_its_short_way_is_closed(scene: Scene) -> None:
    upstream = await scene.answer_stream(STREAM)
    stream = stream_of(scene)
    way = way_of(scene, upstream)
    assert way.is_open(1)
    scene.playbook.close(scene.client)
    scene.playbook.expect_close(upstream)
    await scene.hook(hooks.HttpErrorHook)
    assert list(stream.handle_event(object())) == []  # type: ignore[arg-type]
    assert not way.is_open(1)
