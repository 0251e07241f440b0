"""Our streams in mitmproxy's HTTP layer, event by event: refused requests, the gateway, and asking upstream again."""

from __future__ import annotations

import json

import pytest
from mitmproxy.connection import Server
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.proxy.flow.state import RETRY_BODY_LIMIT
from aibridge_addon.proxy.stream.hooks import AibridgeCommitHook, AibridgeTurnHook
from tests.proxy.conftest import MakeScene
from tests.support import fixtures
from tests.support.scene import CHUNKED_END, EVENT_STREAM, PATHS, Scene, chunk, dechunked, request, sized

MESSAGES = fixtures.case("messages/simple/streaming")
CHAT = fixtures.case("chat_completions/simple/streaming")
UNASKED = b'{"model":"gpt-4.1","stream":true,"messages":[{"role":"user","content":"hi"}]}'
REFUSAL = b'{"error":{"message":"Unknown parameter: stream_options","type":"invalid_request_error"}}'
OTHER_REFUSAL = b'{"error":{"message":"max_tokens is too large","type":"invalid_request_error"}}'


# --- requests that are too large --------------------------------------------------------------------------------


async def test_a_body_that_is_announced_as_too_large_is_refused_before_it_comes(make_scene: MakeScene) -> None:
    scene = make_scene({"limits": {"request_body": 100}})
    scene.playbook.receive(scene.client, request(b"", length=101))
    await scene.hook(hooks.HttpRequestHeadersHook)
    await scene.hook(hooks.HttpErrorHook)
    assert scene.expect_error(413) == {
        "type": "error",
        "error": {"type": "request_too_large", "message": "the request body is larger than 100 bytes"},
    }
    scene.playbook.receive(scene.client, b"x" * 101)
    scene.playbook.expect_nothing()
    assert scene.layer.streams == {} and await scene.interceptions() == []


async def test_a_body_that_grows_too_large_is_refused_while_it_comes(make_scene: MakeScene) -> None:
    scene = make_scene({"limits": {"request_body": 100}})
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATHS["responses"].encode()
    scene.playbook.receive(scene.client, head + chunk(b"x" * 100))
    await scene.hook(hooks.HttpRequestHeadersHook)
    scene.playbook.expect_nothing()
    scene.playbook.receive(scene.client, chunk(b"x"))
    await scene.hook(hooks.HttpErrorHook)
    assert scene.expect_error(413)["error"]["code"] == "request_too_large"
    scene.playbook.receive(scene.client, chunk(b"x" * 1_000) + CHUNKED_END)
    scene.playbook.expect_nothing()


async def test_the_connection_of_a_refused_request_takes_the_next_one(make_scene: MakeScene) -> None:
    scene = make_scene({"limits": {"request_body": 2_000}})
    scene.playbook.receive(scene.client, request(b"x" * 2_001))
    await scene.hook(hooks.HttpRequestHeadersHook)
    await scene.hook(hooks.HttpErrorHook)
    scene.expect_error(413)
    await scene.expect_to_go_on()


async def test_a_body_of_exactly_the_limit_passes(make_scene: MakeScene) -> None:
    scene = make_scene({"limits": {"request_body": len(MESSAGES.request)}})
    upstream = await scene.answer_stream(MESSAGES)
    await scene.break_off(upstream)
    scene.playbook.sent(scene.client)


async def test_a_body_that_is_not_json_is_refused_and_asks_nobody(scene: Scene) -> None:
    await scene.ask(request(b"{nope"))
    await scene.hook(hooks.HttpResponseHeadersHook)
    await scene.hook(hooks.HttpResponseHook)
    assert scene.expect_error(400)["error"]["type"] == "invalid_request_error"
    assert await scene.interceptions() == []
    await scene.expect_to_go_on()


async def test_a_client_that_goes_in_the_middle_of_its_request_leaves_nothing_behind(scene: Scene) -> None:
    scene.playbook.receive(scene.client, request(b"{", length=100))
    await scene.hook(hooks.HttpRequestHeadersHook)
    scene.playbook.close(scene.client)
    while scene.playbook.next_is(hooks.HttpErrorHook) is False:
        scene.playbook.expect_close(scene.client)
    await scene.hook(hooks.HttpErrorHook)
    assert scene.layer.streams == {} and await scene.interceptions() == []


# --- requests to us ---------------------------------------------------------------------------------------------


async def test_a_request_that_names_only_a_path_is_meant_for_us(scene: Scene) -> None:
    await scene.ask(request(MESSAGES.request, "/anthropic/v1/messages?beta=true"))
    upstream = scene.playbook.connect()
    assert upstream.address == ("upstream.example", 8_000)
    assert scene.playbook.sent(upstream).startswith(b"POST /v1/messages?beta=true HTTP/1.1\r\n")
    await scene.answer(upstream, sized(b"{}"))
    sent = scene.playbook.sent(scene.client)
    await scene.hook(hooks.HttpResponseHook)
    assert (sent + scene.playbook.sent(scene.client)).endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize("target", ["/", "/nobody/v1/messages", "/v1/messages"])
async def test_a_path_of_nobody_is_not_found(scene: Scene, target: str) -> None:
    await scene.ask(request(b"{}", target))
    await scene.hook(hooks.HttpResponseHeadersHook)
    await scene.hook(hooks.HttpResponseHook)
    assert scene.expect_error(404)["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("target", "proxyauth", "moved"),
    [
        ("/anthropic/v1/messages", "any", True),
        ("/anthropic/v1/messages", None, False),
        (PATHS["messages"], "any", False),
    ],
)
async def test_a_gateways_client_may_say_who_it_is_as_to_any_server(
    make_scene: MakeScene, target: str, proxyauth: str | None, moved: bool
) -> None:
    scene = make_scene(proxyauth=proxyauth)
    scene.playbook.receive(scene.client, request(b"{}", target, headers=b"Authorization: Basic YWRhOng=\r\n"))
    hook = scene.playbook.expect(hooks.HttpRequestHeadersHook)
    headers = hook.flow.request.headers
    assert headers.get("proxy-authorization") == ("Basic YWRhOng=" if moved else None)
    assert headers.get("authorization") == (None if moved else "Basic YWRhOng=")
    await scene.run(hook)
    scene.playbook.close(scene.client)
    scene.playbook.done(hook)
    await scene.hook(hooks.HttpErrorHook)


async def test_a_request_to_another_host_is_mitmproxys_own(scene: Scene) -> None:
    scene.playbook.receive(scene.client, request(b"abc", "http://example.com/x"))
    await scene.hook(hooks.HttpRequestHeadersHook)
    await scene.hook(hooks.HttpRequestHook)
    upstream = scene.playbook.connect()
    assert scene.playbook.sent(upstream).endswith(b"abc")
    await scene.answer(upstream, sized(b"ok", content_type=b"text/plain"))
    await scene.hook(hooks.HttpResponseHook)  # before the client gets a small body: other addons may change it
    assert scene.playbook.sent(scene.client).endswith(b"ok")
    assert await scene.interceptions() == []


# --- asking upstream again --------------------------------------------------------------------------------------


async def ask_unasked(scene: Scene) -> tuple[Server, bytes]:
    """A chat stream that asks for no usage is passed on. Returns the upstream, and what it was sent."""
    await scene.ask(request(UNASKED, PATHS["chat_completions"]))
    upstream = scene.playbook.connect()
    return upstream, scene.playbook.sent(upstream)


async def test_upstream_is_asked_again_on_the_same_connection_and_the_client_sees_one_answer(scene: Scene) -> None:
    playbook = scene.playbook
    upstream, asked = await ask_unasked(scene)
    assert json.loads(asked.partition(b"\r\n\r\n")[2])["stream_options"] == {"include_usage": True}
    await scene.answer(upstream, sized(REFUSAL, b"400 Bad Request"))
    turn = playbook.expect(AibridgeTurnHook)
    playbook.expect_nothing()
    await scene.run(turn)
    playbook.done(turn)
    again = playbook.sent(upstream)
    assert again.partition(b"\r\n\r\n")[2] == UNASKED
    assert b"Content-Length: %d\r\n" % len(UNASKED) in again
    assert sorted(scene.layer.streams) == [-2, 1]
    await scene.answer(upstream, EVENT_STREAM + chunk(CHAT.body) + CHUNKED_END)
    sent = playbook.sent(scene.client)
    await scene.hook(AibridgeCommitHook)
    sent += playbook.sent(scene.client)
    await scene.hook(hooks.HttpResponseHook)
    head, _, body = (sent + playbook.sent(scene.client)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK") and dechunked(body) == CHAT.body
    assert scene.layer.streams == {}
    (row,) = await scene.interceptions()
    assert (row["status"], row["turns"], row["http_status"]) == ("completed", 1, 200)


async def test_a_provider_that_has_refused_once_is_not_asked_again(scene: Scene) -> None:
    playbook = scene.playbook
    upstream, _ = await ask_unasked(scene)
    await scene.answer(upstream, sized(REFUSAL, b"400 Bad Request"))
    await scene.hook(AibridgeTurnHook)
    playbook.sent(upstream)
    await scene.answer(upstream, EVENT_STREAM + chunk(CHAT.body) + CHUNKED_END)
    playbook.sent(scene.client)
    await scene.hook(AibridgeCommitHook)
    playbook.sent(scene.client)
    await scene.hook(hooks.HttpResponseHook)
    playbook.sent(scene.client)
    await scene.ask(request(UNASKED, PATHS["chat_completions"]))
    assert playbook.sent(upstream).endswith(b"\r\n\r\n" + UNASKED)
    await scene.break_off(upstream)
    scene.expect_error(502)


async def test_any_other_refusal_is_the_clients_as_it_came(scene: Scene) -> None:
    playbook = scene.playbook
    upstream, _ = await ask_unasked(scene)
    await scene.answer(upstream, sized(OTHER_REFUSAL, b"400 Bad Request"))
    await scene.hook(AibridgeTurnHook)
    await scene.hook(hooks.HttpResponseHook)
    sent = playbook.sent(scene.client)
    assert sent.startswith(b"HTTP/1.1 400 Bad Request\r\n") and sent.endswith(b"\r\n\r\n" + OTHER_REFUSAL)
    (row,) = await scene.interceptions()
    assert (row["status"], row["http_status"], row["error_type"]) == ("failed", 400, "invalid_request_error")
    assert scene.layer.streams == {}


async def test_a_refusal_that_is_too_long_to_be_looked_at_is_passed_on(scene: Scene) -> None:
    playbook = scene.playbook
    upstream, _ = await ask_unasked(scene)
    body = b'{"error":{"message":"stream_options %s"}}' % (b"x" * RETRY_BODY_LIMIT)
    await scene.answer(upstream, sized(body, b"400 Bad Request"))
    sent = playbook.sent(scene.client)
    await scene.hook(hooks.HttpResponseHook)
    assert (sent + playbook.sent(scene.client)).endswith(b"\r\n\r\n" + body)


async def test_a_new_connection_is_opened_where_the_first_answer_closed_it(scene: Scene) -> None:
    playbook = scene.playbook
    upstream, _ = await ask_unasked(scene)
    await scene.answer(upstream, sized(REFUSAL, b"400 Bad Request").replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
    playbook.expect_close(upstream)
    turn = playbook.expect(AibridgeTurnHook)
    await scene.run(turn)
    playbook.done(turn)
    second = playbook.connect()
    assert second is not upstream and playbook.sent(second).endswith(UNASKED)
    await scene.break_off(second)
    scene.expect_error(502)
    assert scene.layer.streams == {}
    assert [row["error_type"] for row in await scene.interceptions()] == ["upstream_unreachable"]


async def test_a_client_that_goes_before_upstream_is_asked_again_costs_no_second_request(scene: Scene) -> None:
    playbook = scene.playbook
    upstream, _ = await ask_unasked(scene)
    await scene.answer(upstream, sized(REFUSAL, b"400 Bad Request"))
    turn = playbook.expect(AibridgeTurnHook)
    playbook.close(scene.client)
    await scene.run(turn)
    playbook.done(turn)
    await scene.hook(hooks.HttpErrorHook)
    assert playbook.sent(upstream) == b""
    assert [row["error_type"] for row in await scene.interceptions()] == ["client_disconnected"]


async def test_a_client_that_goes_during_the_second_turn_closes_its_upstream(scene: Scene) -> None:
    playbook = scene.playbook
    upstream, _ = await ask_unasked(scene)
    await scene.answer(upstream, sized(REFUSAL, b"400 Bad Request"))
    await scene.hook(AibridgeTurnHook)
    assert playbook.sent(upstream)
    playbook.close(scene.client)
    playbook.expect_close(upstream)
    await scene.hook(hooks.HttpErrorHook)
    assert scene.layer.streams == {}
