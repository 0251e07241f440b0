"""Exceptions of the bridge itself: the request ends with an error, its rows are there, and nothing waits for it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import pytest
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.proxy.flow import answer, dispatch, request
from aibridge_addon.proxy.flow.request_head import RequestClassifier
from aibridge_addon.proxy.stream.answer import Tapped
from aibridge_addon.proxy.stream.hooks import AibridgeCommitHook, AibridgeDispatchHook
from tests.proxy.conftest import MakeScene
from tests.support import fixtures
from tests.support.scene import CHUNKED_END, PATHS, PROVIDERS, Scene, chunk, sized
from tests.support.scene import request as request_of

STREAM = fixtures.case("messages/simple/streaming")
BLOCKING = fixtures.case("messages/simple/blocking")

pytestmark = pytest.mark.usefixtures("both_ways")
EVENTS = [event + b"\n\n" for event in STREAM.body.split(b"\n\n") if event]


class Fault(Exception):
    pass


def broken(*_: object, **__: object) -> Any:
    raise Fault("a fault for a test")


async def broken_later(*_: object, **__: object) -> Any:
    raise Fault("a fault for a test")


@pytest.fixture(autouse=True)
def one_traceback(caplog: pytest.LogCaptureFixture) -> Any:
    """The log has the fault once."""
    with caplog.at_level(logging.ERROR):
        yield
    tracebacks = [record for record in caplog.get_records("call") if record.exc_info]
    assert [record.exc_info[0] for record in tracebacks if record.exc_info] == [Fault]


async def ended(scene: Scene) -> None:
    """The interception's row says what happened, and a stop waits for nothing."""
    [row] = await scene.interceptions()
    assert (row["status"], row["error_type"]) == ("failed", "internal_error")
    assert len(scene.bridge.in_flight) == 0


async def test_a_head_that_cannot_be_handled_is_answered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RequestClassifier, "_decided", broken)
        scene.playbook.receive(scene.client, request_of(BLOCKING.request))
        await scene.hook(hooks.HttpRequestHeadersHook)
        await scene.hook(hooks.HttpRequestHook)
        await scene.hook(hooks.HttpResponseHeadersHook)
        await scene.hook(hooks.HttpResponseHook)
    assert scene.expect_error(500)["type"] == "error"
    await scene.expect_to_go_on()


@pytest.mark.parametrize("fault", [broken, broken_later])
async def test_a_request_that_cannot_be_read_is_answered_and_has_a_row(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(request, "read_request", fault)
        scene.playbook.receive(scene.client, request_of(BLOCKING.request))
        await scene.hook(hooks.HttpRequestHeadersHook)
        await scene.hook(hooks.HttpRequestHook)
        await scene.hook(hooks.HttpResponseHeadersHook)
        await scene.hook(hooks.HttpResponseHook)
    assert scene.expect_error(500)["type"] == "error"
    await ended(scene)
    await scene.expect_to_go_on()


async def test_a_request_that_cannot_be_prepared_is_answered(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene({"providers": [{**PROVIDERS[0], "api_key": "key-12345678"}, PROVIDERS[1]]})
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "prepare", broken_later)
        await scene.ask(request_of(BLOCKING.request))
        await scene.hook(AibridgeDispatchHook)
        await scene.hook(hooks.HttpErrorHook)
    assert scene.expect_error(500)["type"] == "error"
    await ended(scene)


async def test_an_answer_whose_head_cannot_be_handled_is_replaced(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.ask(request_of(BLOCKING.request))
    upstream = scene.playbook.connect()
    assert scene.playbook.sent(upstream)
    with monkeypatch.context() as patch:
        patch.setattr(answer, "open_answer", broken)
        await scene.answer(upstream, sized(BLOCKING.body))
        await scene.hook(hooks.HttpErrorHook)
    scene.playbook.expect_close(upstream)
    assert scene.expect_error(500)["type"] == "error"
    await ended(scene)
    await scene.expect_to_go_on()


@dataclass
class Cut:
    """What a client has got of an answer that was broken off."""

    shown: bytes

    @property
    def error(self) -> dict[str, Any]:
        assert self.shown.endswith(b"\n\n")
        error: dict[str, Any] = json.loads(self.shown.rpartition(b"data: ")[2])
        return error


async def rest(scene: Scene) -> Cut:
    sent = scene.playbook.sent(scene.client)
    assert sent.endswith(CHUNKED_END)
    body = b""
    while sent != CHUNKED_END:
        size, _, sent = sent.partition(b"\r\n")
        body, sent = body + sent[: int(size, 16)], sent[int(size, 16) + 2 :]
    return Cut(body)


async def test_a_stream_ends_with_an_error_event_if_its_rows_cannot_be_awaited(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = await scene.answer_stream(STREAM)
    scene.playbook.receive(upstream, chunk(STREAM.body))
    scene.playbook.sent(scene.client)
    with monkeypatch.context() as patch:
        patch.setattr(answer, "commit", broken_later)
        await scene.hook(AibridgeCommitHook)
        await scene.hook(hooks.HttpErrorHook)
    scene.playbook.expect_close(upstream)
    assert (await rest(scene)).error["type"] == "error"
    [row] = await scene.interceptions()
    assert row["status"] == "completed"  # its terminal event was read, and its rows are there
    await scene.expect_to_go_on()


async def test_a_stream_that_cannot_be_handled_ends_with_an_error_event(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = await scene.answer_stream(STREAM)
    scene.playbook.receive(upstream, chunk(EVENTS[0]))
    scene.playbook.sent(scene.client)
    scene.layer.streams[1].answer.exchange.tap.feed = broken  # type: ignore[attr-defined]
    scene.playbook.receive(upstream, chunk(EVENTS[1]))
    await scene.hook(hooks.HttpErrorHook)
    scene.playbook.expect_close(upstream)
    assert (await rest(scene)).error["type"] == "error"
    await ended(scene)
    tokens = await scene.rows("aibridge_token_usages")
    assert [row["completeness"] for row in tokens] == ["partial"]
    assert scene.layer.handling is None  # a later error of mitmproxy's code does not concern this stream
    await scene.expect_to_go_on()


async def test_an_answer_with_a_length_that_cannot_be_handled_is_cut(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.ask(request_of(BLOCKING.request))
    upstream = scene.playbook.connect()
    scene.playbook.sent(upstream)
    with monkeypatch.context() as patch:
        patch.setattr(Tapped, "on_data", broken)
        await scene.answer(upstream, sized(BLOCKING.body))
        assert scene.playbook.sent(scene.client).endswith(b"\r\n\r\n")
        await scene.hook(hooks.HttpErrorHook)
    scene.playbook.expect_close(upstream)
    scene.playbook.expect_close(scene.client)
    await ended(scene)


async def test_a_failing_last_hook_ends_the_flow(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.ask(request_of(BLOCKING.request))
    upstream = scene.playbook.connect()
    scene.playbook.sent(upstream)
    await scene.answer(upstream, sized(BLOCKING.body))
    scene.playbook.sent(scene.client)
    with monkeypatch.context() as patch:
        patch.setattr(answer, "answered", broken)
        await scene.hook(hooks.HttpResponseHook)
    while scene.playbook.next_is(commands.CloseConnection):
        scene.playbook.expect(commands.CloseConnection)
    assert len(scene.bridge.in_flight) == 0
    [row] = await scene.interceptions()
    assert row["status"] is not None


async def test_a_failing_error_hook_ends_the_flow(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.ask(request_of(BLOCKING.request))
    upstream = scene.playbook.connect()
    scene.playbook.sent(upstream)
    with monkeypatch.context() as patch:
        patch.setattr(answer, "failed", broken)
        await scene.break_off(upstream)
    scene.playbook.expect_close(upstream)
    assert scene.expect_error(500)["type"] == "error"
    await ended(scene)


async def test_a_passthrough_that_cannot_be_handled_is_answered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.playbook.receive(scene.client, b"GET http://api.anthropic.com/v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    await scene.hook(hooks.HttpRequestHeadersHook)
    await scene.hook(hooks.HttpRequestHook)
    upstream = scene.playbook.connect()
    scene.playbook.sent(upstream)
    with monkeypatch.context() as patch:
        patch.setattr(answer, "open_answer", broken)
        await scene.answer(upstream, sized(b"{}"))
        await scene.hook(hooks.HttpErrorHook)
    scene.playbook.expect_close(upstream)
    assert scene.expect_error(500)["type"] == "error"
    assert await scene.interceptions() == []
    await scene.expect_to_go_on()


async def test_an_error_of_mitmproxy_for_an_upstream_connection_ends_its_request(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.ask(request_of(BLOCKING.request))
    upstream = scene.playbook.connect()
    scene.playbook.sent(upstream)
    with monkeypatch.context() as patch:
        patch.setattr(scene.layer.connections[upstream].child_layer, "state", broken)  # type: ignore[attr-defined]
        scene.playbook.receive(upstream, sized(BLOCKING.body))
        await scene.hook(hooks.HttpErrorHook)
    while scene.playbook.next_is(commands.CloseConnection):
        scene.playbook.expect_close(upstream)
    assert scene.expect_error(500)["type"] == "error"
    await ended(scene)
    await scene.expect_to_go_on()


async def test_an_error_of_mitmproxy_for_the_client_connection_closes_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = await scene.answer_stream(STREAM)
    monkeypatch.setattr(scene.layer.connections[scene.client], "state", broken)
    scene.playbook.receive(scene.client, b"x")
    scene.playbook.expect_close(scene.client)
    scene.playbook.expect_close(upstream)
    await ended(scene)


async def test_an_error_of_a_layer_around_ends_the_request(scene: Scene) -> None:
    """mitmproxy drops the generators of all its layers then."""
    upstream = await scene.answer_stream(STREAM)
    try:
        for _command in scene.layer.handle_event(events.DataReceived(upstream, chunk(EVENTS[0]))):
            raise Fault("a fault for a test")
    except Fault:
        logging.getLogger("mitmproxy").exception("mitmproxy has crashed!")
    await ended(scene)


@pytest.mark.parametrize("dialect", PATHS)
async def test_the_error_has_the_shape_of_the_dialect(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(request, "read_request", broken)
        scene.playbook.receive(scene.client, request_of(b"{}", PATHS[dialect]))
        await scene.hook(hooks.HttpRequestHeadersHook)
        await scene.hook(hooks.HttpRequestHook)
        await scene.hook(hooks.HttpResponseHeadersHook)
        await scene.hook(hooks.HttpResponseHook)
    error = scene.expect_error(500)
    assert error["error"]["message"] and ("type" in error) == (dialect == "messages")
    await ended(scene)
