"""A stream that is over leaves nothing in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.proxy.stream.stream import BridgeHttpStream
from tests.support import fixtures
from tests.support.scene import Scene, request, sized

CASE = fixtures.case("messages/simple/blocking")
STREAM = fixtures.case("messages/simple/streaming")


@pytest.fixture(autouse=True)
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def stream_of(scene: Scene) -> BridgeHttpStream:
    stream = scene.layer.streams[1]
    assert isinstance(stream, BridgeHttpStream)
    return stream


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


async def test_an_empty_stream_ignores_events_and_its_short_way_is_closed(scene: Scene) -> None:
    upstream = await scene.answer_stream(STREAM)
    stream = stream_of(scene)
    way = scene.layer.connections[upstream].context.layers[-1].short_way  # type: ignore[attr-defined]
    assert way.is_open(1)
    scene.playbook.close(scene.client)
    scene.playbook.expect_close(upstream)
    await scene.hook(hooks.HttpErrorHook)
    assert list(stream.handle_event(object())) == []  # type: ignore[arg-type]
    assert not way.is_open(1)
