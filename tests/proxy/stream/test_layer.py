"""Our streams in mitmproxy's HTTP layer, event by event: what of an answer is held, and what follows a failure."""

from __future__ import annotations

import pytest
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.proxy.stream.hooks import AibridgeCommitHook
from tests.proxy.conftest import MakeScene
from tests.support import fixtures
from tests.support.fixtures import Case
from tests.support.scene import CHUNKED_END, Scene, chunk, dechunked, request, sized

MESSAGES = fixtures.case("messages/simple/streaming")
CHAT = fixtures.case("chat_completions/simple/streaming")
BLOCKING = fixtures.case("messages/simple/blocking")
STREAMS = [MESSAGES, CHAT, fixtures.case("responses/simple/streaming")]
TERMINALS = {
    "messages": b"event: message_stop",
    "chat_completions": b"data: [DONE]",
    "responses": b"event: response.completed",
}
# --- the end is held --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", STREAMS, ids=str)
async def test_exactly_the_bytes_of_the_terminal_event_are_held_until_the_rows_are_committed(
    plain_chat: Scene, case: Case
) -> None:
    scene, playbook = plain_chat, plain_chat.playbook
    upstream = await scene.answer_stream(case)
    end = case.body.index(TERMINALS[case.dialect])
    playbook.receive(upstream, chunk(case.body))
    assert dechunked(playbook.sent(scene.client)) == case.body[:end]
    hook = playbook.expect(AibridgeCommitHook)
    playbook.receive(upstream, CHUNKED_END)
    playbook.expect_nothing()
    await scene.run(hook)
    assert [row["status"] for row in await scene.interceptions()] == ["completed"]
    playbook.done(hook)
    assert dechunked(playbook.sent(scene.client)) == case.body[end:]
    await scene.hook(hooks.HttpResponseHook)
    assert playbook.sent(scene.client) == CHUNKED_END


@pytest.mark.parametrize("case", STREAMS, ids=str)
async def test_every_chunk_before_the_terminal_event_passes_at_once_as_it_came(plain_chat: Scene, case: Case) -> None:
    scene, playbook = plain_chat, plain_chat.playbook
    upstream = await scene.answer_stream(case)
    end = case.body.index(TERMINALS[case.dialect])
    for start in range(0, end, 37):
        piece = case.body[start : min(end, start + 37)]
        playbook.receive(upstream, chunk(piece))
        assert playbook.sent(scene.client) == chunk(piece)
    playbook.receive(upstream, chunk(case.body[end:]))
    await scene.hook(AibridgeCommitHook)
    assert playbook.sent(scene.client) == chunk(case.body[end:])
    playbook.receive(upstream, CHUNKED_END)
    await scene.hook(hooks.HttpResponseHook)
    assert playbook.sent(scene.client) == CHUNKED_END


async def test_of_a_body_whose_length_is_known_the_last_bytes_are_held(scene: Scene) -> None:
    """Its rows are waited for in the `response` hook, which comes in any case."""
    playbook = scene.playbook
    await scene.ask(request(BLOCKING.request))
    upstream = playbook.connect()
    playbook.sent(upstream)
    answer = sized(BLOCKING.body)
    head = answer.removesuffix(BLOCKING.body)
    await scene.answer(upstream, head + BLOCKING.body[:50])
    assert playbook.sent(scene.client) == head + BLOCKING.body[:50]
    playbook.receive(upstream, BLOCKING.body[50:])
    hook = playbook.expect(hooks.HttpResponseHook)
    playbook.expect_nothing()
    await scene.run(hook)
    assert [row["status"] for row in await scene.interceptions()] == ["completed"]
    playbook.done(hook)
    assert playbook.sent(scene.client) == BLOCKING.body[50:]


async def test_a_client_that_goes_while_the_end_is_held_was_answered_and_gets_nothing_more(scene: Scene) -> None:
    playbook = scene.playbook
    upstream = await scene.answer_stream(MESSAGES)
    playbook.receive(upstream, chunk(MESSAGES.body))
    playbook.sent(scene.client)
    hook = playbook.expect(AibridgeCommitHook)
    playbook.close(scene.client)
    playbook.expect_nothing()
    await scene.run(hook)
    playbook.done(hook)
    await scene.hook(hooks.HttpErrorHook)
    assert [(row["status"], row["error_type"]) for row in await scene.interceptions()] == [("completed", None)]


async def test_without_its_rows_a_stream_does_not_end_properly_where_that_is_configured(make_scene: MakeScene) -> None:
    scene = make_scene({"recording": {"on_failure": "closed"}})
    playbook = scene.playbook
    upstream = await scene.answer_stream(MESSAGES)
    playbook.receive(upstream, chunk(MESSAGES.body))
    sent = playbook.sent(scene.client)
    await scene.bridge.stream.drain(10)  # from here on, nothing is committed
    await scene.hook(AibridgeCommitHook)
    await scene.hook(hooks.HttpErrorHook)
    rest = playbook.sent(scene.client)
    assert TERMINALS["messages"] not in sent + rest
    assert dechunked(rest).startswith(b"event: error\ndata: ") and rest.endswith(CHUNKED_END)


async def test_without_its_rows_a_body_is_cut_where_that_is_configured(make_scene: MakeScene) -> None:
    scene = make_scene({"recording": {"on_failure": "closed"}})
    playbook = scene.playbook
    await scene.ask(request(BLOCKING.request))
    upstream = playbook.connect()
    playbook.sent(upstream)
    await scene.answer(upstream, sized(BLOCKING.body))
    sent = playbook.sent(scene.client)
    await scene.bridge.stream.drain(10)  # from here on, nothing is committed
    await scene.hook(hooks.HttpResponseHook)
    playbook.expect_close(scene.client)
    assert BLOCKING.body not in sent


# --- an upstream that fails -------------------------------------------------------------------------------------


async def test_an_upstream_that_cannot_be_reached_is_told_in_the_providers_shape(scene: Scene) -> None:
    await scene.ask(request(MESSAGES.request))
    scene.playbook.connect("no route to host")
    await scene.hook(hooks.HttpErrorHook)
    assert scene.expect_error(502)["type"] == "error"
    (row,) = await scene.interceptions()
    assert (row["status"], row["error_type"], row["http_status"]) == ("failed", "upstream_unreachable", None)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
async def test_an_upstream_that_breaks_off_before_its_answer_is_told_in_the_providers_shape(
    scene: Scene, answer: bytes
) -> None:
    playbook = scene.playbook
    await scene.ask(request(MESSAGES.request))
    upstream = playbook.connect()
    playbook.sent(upstream)
    if answer:
        playbook.receive(upstream, answer)
    await scene.break_off(upstream)
    assert scene.expect_error(502)["type"] == "error"
    await scene.expect_to_go_on()


@pytest.mark.parametrize("case", STREAMS, ids=str)
async def test_a_stream_that_breaks_off_between_two_events_ends_with_the_dialects_error_event(
    plain_chat: Scene, case: Case
) -> None:
    scene, playbook = plain_chat, plain_chat.playbook
    upstream = await scene.answer_stream(case)
    begun = case.body[: case.body.index(b"\n\n") + 2]
    playbook.receive(upstream, chunk(begun))
    assert dechunked(playbook.sent(scene.client)) == begun
    await scene.break_off(upstream)
    rest = playbook.sent(scene.client)
    assert b"error" in dechunked(rest) and dechunked(rest).endswith(b"\n\n") and rest.endswith(CHUNKED_END)
    (row,) = await scene.interceptions()
    assert (row["status"], row["error_type"]) == ("failed", "upstream_disconnected")


async def test_a_stream_that_breaks_off_inside_an_event_is_cut(scene: Scene) -> None:
    playbook = scene.playbook
    upstream = await scene.answer_stream(MESSAGES)
    playbook.receive(upstream, chunk(MESSAGES.body[:30]))
    playbook.sent(scene.client)
    await scene.break_off(upstream)
    playbook.expect_close(scene.client)


async def test_a_body_of_known_length_that_breaks_off_is_cut(scene: Scene) -> None:
    playbook = scene.playbook
    await scene.ask(request(BLOCKING.request))
    upstream = playbook.connect()
    playbook.sent(upstream)
    await scene.answer(upstream, sized(BLOCKING.body)[:-5])
    playbook.sent(scene.client)
    await scene.break_off(upstream)
    playbook.expect_close(scene.client)


async def test_an_upstream_that_breaks_off_after_the_terminal_event_has_answered(scene: Scene) -> None:
    playbook = scene.playbook
    upstream = await scene.answer_stream(MESSAGES)
    playbook.receive(upstream, chunk(MESSAGES.body))
    playbook.sent(scene.client)
    await scene.hook(AibridgeCommitHook)
    playbook.sent(scene.client)
    await scene.break_off(upstream)
    playbook.expect_close(scene.client)
    assert [row["status"] for row in await scene.interceptions()] == ["completed"]
