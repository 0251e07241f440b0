"""Packets that are forwarded when they arrive, and those that are left to mitmproxy's server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from mitmproxy.connection import Server
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers import modes, tls
from mitmproxy.proxy.layers.http import GetHttpConnection, HTTPMode
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.proxy.stream.hooks import AibridgeCommitHook
from aibridge_addon.proxy.stream.layer import BridgeHttpLayer
from aibridge_addon.proxy.stream.short_way import SWITCH, PlainServer
from tests.support import fixtures
from tests.support.playbook import make_context
from tests.support.scene import CHUNKED_END, EVENT_STREAM, Scene, chunk, dechunked, request
from tests.support.ways import Answer, Player, Script, Sockets

STREAM = fixtures.case("messages/simple/streaming")
EVENTS = [event + b"\n\n" for event in STREAM.body.split(b"\n\n") if event]
FIRST, SECOND = chunk(EVENTS[0]), chunk(EVENTS[1])
END = chunk(EVENTS[-1])


class Streaming:
    """An answer that streams, and its sockets."""

    def __init__(self, scene: Scene, upstream: Server) -> None:
        self.scene = scene
        self.upstream = upstream
        self.sent = bytearray()
        self.sockets = Sockets(upstream, self.sent.extend)

    async def arrive(self, packet: bytes) -> bytes:
        """Returns what is left to mitmproxy's server."""
        return await self.sockets.arrive(packet)


@pytest.fixture
async def streaming(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Streaming]:
    monkeypatch.delenv(SWITCH, raising=False)
    await scene.ask(request(STREAM.request))
    streaming = Streaming(scene, scene.playbook.connect())
    scene.playbook.sent(streaming.upstream)
    await scene.answer(streaming.upstream, EVENT_STREAM)
    scene.playbook.sent(scene.client)
    yield streaming
    streaming.sockets.close()
    await leave(scene)


async def leave(scene: Scene) -> None:
    """The client disconnects."""
    playbook = scene.playbook
    playbook.sent(scene.client)
    if playbook.next_is(commands.StartHook):
        await scene.hook(commands.StartHook)
    playbook.close(scene.client)
    while True:
        if playbook.next_is(commands.StartHook):
            await scene.hook(commands.StartHook)
        elif playbook.next_is(commands.CloseConnection):
            playbook.expect(commands.CloseConnection)
        elif not playbook.sent(scene.client):
            return


async def test_a_whole_chunk_is_forwarded_without_mitmproxys_server(streaming: Streaming) -> None:
    assert await streaming.arrive(FIRST + SECOND) == b""
    assert streaming.sent == FIRST + SECOND
    streaming.scene.playbook.expect_nothing()


async def test_a_forwarded_packet_shows_that_the_client_is_active(streaming: Streaming) -> None:
    """Otherwise mitmproxy closes the connection after `tcp_timeout`."""
    await streaming.arrive(FIRST)
    await streaming.arrive(SECOND)
    assert streaming.sockets.active == 2


async def test_a_whole_answer_is_forwarded_but_for_its_end(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    answer = Answer(EVENT_STREAM, [*map(chunk, EVENTS), CHUNKED_END], closes=False)
    play = await Player(scene, sockets=True).play(Script("messages", STREAM.request, [answer], offers=False))
    assert play.on_arrival == b"".join(map(chunk, EVENTS[:-1]))
    assert dechunked(play.steps[-1][0].partition(b"\r\n\r\n")[2]) == STREAM.body


async def test_the_rest_of_a_packet_is_left_to_the_server(streaming: Streaming) -> None:
    assert await streaming.arrive(FIRST + SECOND[:9]) == SECOND[:9]
    assert streaming.sent == FIRST


async def test_nothing_is_forwarded_while_an_earlier_packet_is_not_read(streaming: Streaming) -> None:
    reader = streaming.sockets.reader
    reader.feed_data(FIRST)  # the server does not wait yet
    reader.feed_data(SECOND)
    assert await reader.read(2**16) == FIRST + SECOND
    assert streaming.sent == b""


async def test_nothing_is_forwarded_before_the_server_has_read_a_packet_that_has_woken_it(
    streaming: Streaming,
) -> None:
    reader = streaming.sockets.reader
    reading = asyncio.ensure_future(reader.read(2**16))
    await asyncio.sleep(0)
    reader.feed_data(FIRST[:9])  # wakes it
    reader.feed_data(SECOND)
    assert await reading == FIRST[:9] + SECOND


async def test_nothing_is_forwarded_when_the_server_has_ended_the_connection(streaming: Streaming) -> None:
    reading = asyncio.ensure_future(streaming.sockets.reader.read(2**16))
    await asyncio.sleep(0)
    reading.cancel()
    streaming.sockets.reader.feed_data(FIRST)
    assert streaming.sent == b""


async def test_nothing_is_forwarded_while_a_client_is_slow(streaming: Streaming) -> None:
    streaming.sockets.client.unsent = 1
    assert await streaming.arrive(FIRST) == FIRST
    streaming.sockets.client.unsent = 0
    assert await streaming.arrive(SECOND) == b""
    assert streaming.sent == SECOND


async def test_nothing_is_forwarded_to_a_client_that_is_gone(streaming: Streaming) -> None:
    streaming.sockets.client.close()
    assert await streaming.arrive(FIRST) == FIRST
    assert streaming.sent == b""


@pytest.mark.parametrize("more", [b"", CHUNKED_END], ids=["alone", "with the last chunk"])
async def test_an_answers_end_waits_for_its_rows(streaming: Streaming, more: bytes) -> None:
    scene, body = streaming.scene, b"".join(EVENTS[:-1])
    assert await streaming.arrive(chunk(body)) == b""
    left = await streaming.arrive(END + more)
    assert left == END[-1:] + more
    scene.playbook.receive(streaming.upstream, left)
    assert streaming.sent == chunk(body)
    await scene.hook(AibridgeCommitHook)
    assert scene.playbook.sent(scene.client).startswith(END)


async def test_an_answers_end_is_sent_also_if_the_server_ends_the_connection_at_once(streaming: Streaming) -> None:
    """It then forgets what it has not read."""
    scene = streaming.scene
    assert await streaming.arrive(chunk(STREAM.body)) == b"\n"
    scene.playbook.close(streaming.upstream)
    begun = scene.playbook.sent(scene.client)
    await scene.hook(AibridgeCommitHook)
    scene.playbook.expect_close(streaming.upstream)
    assert dechunked(begun + scene.playbook.sent(scene.client)) == STREAM.body
    (row,) = await scene.interceptions()
    assert row["status"] == "completed"


async def test_nothing_of_an_answers_end_follows_when_the_client_has_left(streaming: Streaming) -> None:
    scene, playbook = streaming.scene, streaming.scene.playbook
    assert await streaming.arrive(chunk(STREAM.body)) == b"\n"
    playbook.close(scene.client)
    playbook.expect_close(streaming.upstream)
    hook = playbook.expect(hooks.HttpErrorHook)
    playbook.close(streaming.upstream)  # while the hook waits
    await scene.run(hook)
    playbook.done(hook)
    while playbook.next_is(commands.CloseConnection):
        playbook.expect(commands.CloseConnection)
    playbook.expect_nothing()


# --- which connections --------------------------------------------------------------------------------------------


def opened(layer: BridgeHttpLayer, scheme: str) -> Server:
    """The connection that a layer makes for a request."""
    event = GetHttpConnection(("upstream.example", 1), tls=scheme == "https", via=None, transport_protocol="tcp")
    return layer._new_stack(event, None)[0].context.server


def test_a_connection_without_tls_can_forward_on_arrival() -> None:
    ctx = make_context()
    modes.HttpProxy(ctx)
    assert isinstance(opened(BridgeHttpLayer(ctx, HTTPMode.regular), "http"), PlainServer)


def test_a_connection_with_tls_cannot() -> None:
    assert not isinstance(opened(BridgeHttpLayer(make_context(), HTTPMode.regular), "https"), PlainServer)


def test_a_connection_whose_client_has_tls_cannot() -> None:
    ctx = make_context()
    modes.HttpProxy(ctx)
    tls.ClientTLSLayer(ctx)
    assert not isinstance(opened(BridgeHttpLayer(ctx, HTTPMode.transparent), "http"), PlainServer)


def test_a_connection_of_a_tunnel_cannot() -> None:
    ctx = make_context()
    BridgeHttpLayer(ctx, HTTPMode.regular)
    assert not isinstance(opened(BridgeHttpLayer(ctx, HTTPMode.transparent), "http"), PlainServer)
