"""A later turn that is refused because of its results is asked again with shorter or simpler ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client, wait_for_ended
from tests.integration.turns import (
    BY_DIALECT,
    CONNECTED,
    INJECTED,
    MODES,
    VERSIONS,
    Turns,
    call,
    configuration,
    recorded,
    text,
)
from tests.integration.turns import results as results_in
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Answer, ScriptedUpstream

LONG = "x" * 40_000
TOO_LONG: list[tuple[int, dict[str, Any]]] = [
    (400, {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}),
    (413, {"type": "request_too_large", "message": "Request exceeds the maximum size"}),
    (400, {"message": "No", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}),
    (400, {"message": "Your input exceeds the context window of this model. Please adjust your input."}),
    (400, {"message": "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens"}),
    (400, {"message": "Input is too long for requested model."}),
    (400, {"code": 400, "message": "The input token count (2) exceeds the maximum number of tokens allowed (1)."}),
    (422, {"message": "Too many tokens in the prompt"}),
]
Start = Callable[..., RunningProxy]


@pytest.fixture
def upstream(make_upstream: MakeUpstream, request: pytest.FixtureRequest) -> ScriptedUpstream:
    """One that speaks HTTP/1, unless the test says `http2`."""
    http2 = getattr(request.node, "callspec", None) is not None and request.node.callspec.params.get("http2", False)
    return make_upstream(alpn=[HTTP2 if http2 else HTTP1])


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> Start:
    def start(mcp: str = "") -> RunningProxy:
        servers = f"{mcp}\nservers: {{ours: {{type: http, url: '{ours.url}'}}}}"
        proxy = start_proxy(config=configuration(upstream.url, servers.strip()))
        proxy.wait_for_log(CONNECTED)
        return proxy

    return start


def refusal(status: int, error: dict[str, Any]) -> Answer:
    return Answer.json({"type": "error", "error": error}, status)


def ask(proxy: RunningProxy, turns: Turns, *, streaming: bool, http2: bool = False) -> tuple[int, bytes]:
    with Client(proxy, turns.host, http2=http2) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming))
    return seen.status, seen.body


@VERSIONS
@MODES
@BY_DIALECT
def test_a_context_that_is_full_gets_shorter_results_once(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool, http2: bool
) -> None:
    proxy = start()
    turns = Turns(
        dialect,
        [text("One. "), call("echo", text=LONG)],
        [text("Two. "), call("echo", text=LONG + "y"), call("echo", text="short")],
        [text("Done.")],
    )
    first, second, last = turns.answers(streaming=streaming)
    upstream.answer(first, second, refusal(*TOO_LONG[0]), last)
    status, answer = ask(proxy, turns, streaming=streaming, http2=http2)
    assert status == 200
    turns.check_usage(turns.check(answer, streaming=streaming))
    refused, again = map(results_in, upstream.requests[2:])
    assert [len(result) for result in refused] == [40_000, 40_001, 5]
    assert all(4_000 < len(result) < 6_000 and "bytes were cut" in result for result in again[:2])
    assert again[2] == "short"
    wait_for_ended(proxy, 1)
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 3, None) and len(rows.injected) == 3
    assert [row["turn"] for row in rows.tokens] == [1, 2, 3]


@MODES
@BY_DIALECT
def test_the_second_refusal_is_the_clients(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start()
    turns = Turns(dialect, [text("One. "), call("echo", text=LONG)])
    upstream.answer(*turns.answers(streaming=streaming), *[refusal(*TOO_LONG[0])] * 2)
    status, answer = ask(proxy, turns, streaming=streaming)
    assert status == (200 if streaming else 400) and b"prompt is too long" in answer
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", 2, "invalid_request_error")
    assert len(upstream.requests) == 3


@pytest.mark.parametrize(("status", "error"), TOO_LONG, ids=lambda value: str(value)[:40])
@BY_DIALECT
def test_every_word_for_a_full_context_is_understood(
    start: Start, upstream: ScriptedUpstream, dialect: str, status: int, error: dict[str, Any]
) -> None:
    proxy = start()
    turns = Turns(dialect, [call("echo", text=LONG)], [text("Done.")])
    first, last = turns.answers(streaming=True)
    upstream.answer(first, refusal(status, error), last)
    turns.check(ask(proxy, turns, streaming=True)[1], streaming=True)
    assert len(results_in(upstream.requests[2])[0]) < 6_000


@MODES
@pytest.mark.parametrize("dialect", ["messages", "responses"])
def test_an_image_that_is_refused_becomes_a_note(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start()
    turns = Turns(dialect, [call("image")], [text("Done.")])
    first, last = turns.answers(streaming=streaming)
    upstream.answer(first, refusal(400, {"type": "invalid_request_error", "message": "Could not process image"}), last)
    turns.check(ask(proxy, turns, streaming=streaming)[1], streaming=streaming)
    assert b"cannot be shown here" in upstream.requests[2].body
    assert b"iVBORw0" not in upstream.requests[2].body


@MODES
@BY_DIALECT
def test_a_refusal_that_is_not_about_results_is_the_clients(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start()
    turns = Turns(dialect, [call("echo", text="hi")])
    upstream.answer(*turns.answers(streaming=streaming), refusal(400, {"type": "other", "message": "No"}))
    _, answer = ask(proxy, turns, streaming=streaming)
    assert b"No" in answer and len(upstream.requests) == 2


@MODES
@BY_DIALECT
def test_results_are_bounded_for_each_turn_and_for_the_loop(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start("max_result_bytes: 1000\nmax_turns: 20")
    many = [[call("echo", text=f"{turn}{number}" + "x" * 990) for number in range(8)] for turn in range(6)]
    turns = Turns(dialect, *many, [text("Done.")])
    upstream.answer(*turns.answers(streaming=streaming))
    turns.check(ask(proxy, turns, streaming=streaming)[1], streaming=streaming)
    given = results_in(upstream.requests[-1])
    of_turns = [sum(map(len, given[place : place + 8])) for place in range(0, 48, 8)]
    note = 70
    assert all(size <= 4_000 + 8 * note for size in of_turns)
    assert sum(of_turns) <= 16_000 + 48 * note
    assert json.loads(upstream.requests[-1].body)


def failed(number: int) -> dict[str, Any]:
    error = {"code": "context_length_exceeded", "message": "Your input exceeds the context window of this model."}
    return {"id": f"resp_failed_{number}", "object": "response", "status": "failed", "output": [], "error": error}


@MODES
def test_a_response_that_fails_because_its_context_is_full_gets_shorter_results_once(
    start: Start, upstream: ScriptedUpstream, streaming: bool
) -> None:
    proxy = start()
    turns = Turns("responses", [text("One. "), call("echo", text=LONG)], [text("Done.")])
    first, last = turns.answers(streaming=streaming)
    events = [
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        for event in (
            {"type": "response.created", "response": failed(1) | {"status": "in_progress", "error": None}},
            {"type": "response.failed", "response": failed(1)},
        )
    ]
    upstream.answer(first, Answer.event_stream(*events) if streaming else Answer.json(failed(1)), last)
    status, answer = ask(proxy, turns, streaming=streaming)
    assert status == 200
    turns.check(answer, streaming=streaming)
    refused, again = map(results_in, upstream.requests[1:])
    assert len(refused[0]) == 40_000 and len(again[0]) < 6_000
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("completed", 3, None)


@MODES
def test_a_response_that_fails_again_is_the_clients(start: Start, upstream: ScriptedUpstream, streaming: bool) -> None:
    proxy = start()
    turns = Turns("responses", [text("One. "), call("echo", text=LONG)])
    event = {"type": "response.failed", "response": failed(1)}
    raw = f"event: response.failed\ndata: {json.dumps(event)}\n\n".encode()
    failure = Answer.event_stream(raw) if streaming else Answer.json(failed(1))
    upstream.answer(*turns.answers(streaming=streaming), failure, failure)
    _, answer = ask(proxy, turns, streaming=streaming)
    assert b"context_length_exceeded" in answer and b"bmcp_" not in answer
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", 3, "context_length_exceeded")
    assert len(upstream.requests) == 3


FULL: dict[str, dict[str, Any]] = {
    "messages": {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 2 > 1"}},
    "chat_completions": {"error": {"code": "context_length_exceeded", "message": "maximum context length is 8192"}},
    "responses": {"type": "error", "code": "context_length_exceeded", "message": "exceeds the context window"},
}
ENDS_WITH_DONE = [False, True]


def full(turns: Turns, *, done: bool, begins: bool, keeps_alive: bool = False) -> Answer:
    """A stream under status 200 in which the provider says that the context is full."""
    error = FULL[turns.dialect]
    name = f"event: {error['type']}\n" if "type" in error else ""
    began = turns.events(1)[:1] if begins and turns.dialect != "chat_completions" else []
    ping = [b": ping\n\n", b'event: ping\ndata: {"type": "ping"}\n\n'] if keeps_alive else []
    ending = [b"data: [DONE]\n\n"] if done else []
    return Answer.event_stream(*began, *ping, f"{name}data: {json.dumps(error)}\n\n".encode(), *ending)


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("done", ENDS_WITH_DONE)
@MODES
@BY_DIALECT
def test_a_context_that_is_full_under_status_200_gets_shorter_results_once(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool, done: bool, begins: bool
) -> None:
    proxy = start()
    turns = Turns(dialect, [text("One. "), call("echo", text=LONG)], [text("Done.")])
    first, last = turns.answers(streaming=streaming)
    pings = streaming and dialect == "messages"
    upstream.answer(first, full(turns, done=done, begins=begins, keeps_alive=pings), last)
    status, answer = ask(proxy, turns, streaming=streaming)
    assert status == 200
    turns.check(answer, streaming=streaming)
    refused, again = map(results_in, upstream.requests[1:])
    assert len(refused[0]) == 40_000 and len(again[0]) < 6_000
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("completed", 3, None)


@pytest.mark.parametrize("done", ENDS_WITH_DONE)
@BY_DIALECT
def test_a_context_that_is_still_full_under_status_200_is_the_clients(
    start: Start, upstream: ScriptedUpstream, dialect: str, done: bool
) -> None:
    proxy = start()
    turns = Turns(dialect, [text("One. "), call("echo", text=LONG)], [text("Done.")])
    refusals = [full(turns, done=done, begins=False)] * 2
    upstream.answer(turns.answers(streaming=True)[0], *refusals)
    _, answer = ask(proxy, turns, streaming=True)
    assert answer.count(b"context") + answer.count(b"too long") and INJECTED not in answer
    assert (b"[DONE]" in answer) == (done and dialect == "chat_completions")
    assert len(upstream.requests) == 3
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome[0] == "failed"


@BY_DIALECT
def test_a_turn_that_fails_after_its_first_words_is_not_asked_again(
    start: Start, upstream: ScriptedUpstream, dialect: str
) -> None:
    """The client would get these words twice."""
    proxy = start()
    turns = Turns(dialect, [text("One. "), call("echo", text=LONG)], [text("Two, and more words.")])
    events = [*turns.broken(1), *full(turns, done=False, begins=False).steps]
    upstream.answer(turns.answers(streaming=True)[0], Answer.event_stream(*events))
    _, answer = ask(proxy, turns, streaming=True)
    assert len(upstream.requests) == 2
    assert b"context" in answer or b"too long" in answer
