"""Turns that end without their terminal event, are errors under status 200, or come in the other form."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest

from tests.conftest import StartProxy
from tests.integration.exchanges import Client, Seen, wait_for_ended
from tests.integration.turns import (
    BY_DIALECT,
    CONNECTED,
    INJECTED,
    MODES,
    VERSIONS,
    Turns,
    call,
    configuration,
    own,
    recorded,
    results,
    text,
    thought,
)
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, Gate, Pause, ScriptedUpstream

TERMINALS: dict[str, tuple[bytes, ...]] = {
    "messages": (b"message_stop", b'stop_reason":"', b'stop_reason": "'),
    "chat_completions": (b"[DONE]", b'finish_reason":"', b'finish_reason": "'),
    "responses": (b"response.completed", b"response.incomplete"),
}
"""What no one may find in an answer whose end did not come."""
ERRORS: dict[str, dict[str, Any]] = {
    "messages": {"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}},
    "chat_completions": {"error": {"type": "server_error", "message": "Busy", "code": "busy", "param": None}},
    "responses": {"error": {"type": "server_error", "message": "Busy", "code": "busy", "param": None}},
}


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> RunningProxy:
    servers = f"keepalive_interval: 0.2\nservers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, servers))
    proxy.wait_for_log(CONNECTED)
    return proxy


def ask(proxy: RunningProxy, turns: Turns, *, streaming: bool, http2: bool = False) -> Seen:
    with Client(proxy, turns.host, http2=http2) as client:
        return client.post(turns.path, turns.request(streaming=streaming))


def loop(dialect: str, *more: Any) -> Turns:
    return Turns(dialect, [thought("Hm."), text("0. "), call("echo", text="hi")], [text("Done."), *more])


def without_end(turns: Turns, number: int) -> list[bytes]:
    """A turn's events without those that say that it has ended."""
    signs = TERMINALS[turns.dialect]
    return [event for event in turns.events(number) if not any(sign in event for sign in signs)]


def check_broken(turns: Turns, answer: bytes) -> dict[str, Any]:
    """The stream ends with one error event, and with no other end."""
    assert INJECTED not in answer
    assert not any(sign in answer for sign in TERMINALS[turns.dialect])
    *_, last = (event for event in answer.split(b"\n\n") if event)
    data: dict[str, Any] = json.loads(last.split(b"data: ", 1)[1])
    assert data.get("error") or data["type"] == "error"
    assert answer.endswith(b"\n\n")
    return data


# --- an end that did not come


@VERSIONS
@pytest.mark.parametrize("turn", [1, 2])
@BY_DIALECT
def test_a_merged_stream_without_its_terminal_event_ends_with_an_error(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, turn: int, http2: bool
) -> None:
    turns = loop(dialect)
    first = turns.answers(streaming=True)[0]
    upstream.answer(*[first][: turn - 1], Answer.event_stream(*without_end(turns, turn - 1)))
    answer = ask(proxy, turns, streaming=True, http2=http2)
    assert answer.status == 200 and b"0. " in answer.body and (turn == 1 or b"Done." in answer.body)
    check_broken(turns, answer.body)
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", turn, "incomplete_stream")


@pytest.mark.parametrize("framing", ["length", "chunked"])
@MODES
@BY_DIALECT
def test_an_empty_later_turn_is_an_error(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool, framing: Any
) -> None:
    turns = loop(dialect)
    label = "text/event-stream" if streaming else "application/json"
    empty = Answer(200, [("content-type", label)], b"", framing=framing)
    upstream.answer(turns.answers(streaming=streaming)[0], empty)
    answer = ask(proxy, turns, streaming=streaming)
    if streaming:
        check_broken(turns, answer.body)
    else:
        assert answer.status == 502 and json.loads(answer.body)["error"]["message"]
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome[:2] == ("failed", 2)


@BY_DIALECT
def test_a_first_turn_that_hides_nothing_ends_as_it_came(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    turns = Turns(dialect, [text("Done.")])
    given = without_end(turns, 0)
    upstream.answer(Answer.event_stream(*given))
    assert ask(proxy, turns, streaming=True).body == b"".join(given)
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", 1, "incomplete_stream")


def test_the_vendors_own_clients_see_an_error(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    base = proxy.proxy_url
    turns = {dialect: loop(dialect) for dialect in TERMINALS}

    def answer(dialect: str) -> dict[str, Any]:
        cut = without_end(turns[dialect], 1)
        upstream.answer(turns[dialect].answers(streaming=True)[0], Answer.event_stream(*cut))
        body: dict[str, Any] = json.loads(turns[dialect].request(streaming=True))
        return body

    claude = anthropic.Anthropic(api_key="k", base_url=f"{base}/anthropic", max_retries=0)
    with claude, pytest.raises(anthropic.APIError, match="terminal event"):
        list(claude.messages.create(**answer("messages")))
    with openai.OpenAI(api_key="k", base_url=f"{base}/openai/v1", max_retries=0) as client:
        with pytest.raises(openai.APIError, match="terminal event"):
            list(client.chat.completions.create(**answer("chat_completions")))
        last = list(client.responses.create(**answer("responses")))[-1]
        assert last.type == "error" and "terminal event" in last.message


# --- errors under status 200


@pytest.mark.parametrize("label", ["application/json", "text/event-stream", "text/plain"])
@BY_DIALECT
def test_an_error_body_of_a_later_turn_becomes_an_error_event_in_a_stream(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, label: str
) -> None:
    turns = loop(dialect)
    error = Answer(200, [("content-type", label)], json.dumps(ERRORS[dialect]).encode())
    upstream.answer(turns.answers(streaming=True)[0], error)
    answer = ask(proxy, turns, streaming=True)
    data = check_broken(turns, answer.body)
    assert (data if dialect == "responses" else data["error"])["message"] == "Busy"
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome[:2] == ("failed", 2)
    assert recorded(proxy).interception["error_message"] == "Busy"


@pytest.mark.parametrize("turn", [1, 2])
@MODES
@BY_DIALECT
def test_an_error_body_is_shown_as_it_came(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, turn: int, streaming: bool
) -> None:
    if streaming and turn == 2:
        return  # above
    turns = loop(dialect)
    upstream.answer(*turns.answers(streaming=streaming)[: turn - 1], Answer.json(ERRORS[dialect]))
    answer = ask(proxy, turns, streaming=streaming)
    assert (answer.status, json.loads(answer.body)) == (200, ERRORS[dialect])
    wait_for_ended(proxy, 1)
    rows = recorded(proxy)
    assert rows.outcome == ("failed", turn, "overloaded_error" if dialect == "messages" else "server_error")
    assert rows.interception["error_message"] == "Busy"


@pytest.mark.parametrize("body", [b"<html>no</html>", b"[1]", b"null", b'{"id": "x", '])
@BY_DIALECT
def test_an_unreadable_later_turn_is_an_error_for_a_blocking_client(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, body: bytes
) -> None:
    turns = loop(dialect)
    upstream.answer(turns.answers(streaming=False)[0], Answer(200, [("content-type", "application/json")], body))
    answer = ask(proxy, turns, streaming=False)
    assert answer.status == 502 and json.loads(answer.body)["error"]["message"]
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", 2, "unreadable_answer")


@BY_DIALECT
def test_an_error_of_a_choice_or_event_under_status_200_passes_in_a_merged_stream(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    turns = loop(dialect)
    error: dict[str, Any] = {"type": "error", "message": "Busy", "code": "busy"} | ERRORS[dialect]
    if dialect == "chat_completions":
        error = {"id": "c", "choices": [{"index": 0, "delta": {}, "error": {"code": 502, "message": "Busy"}}]}
    name = f"event: {error['type']}\n" if "type" in error else ""
    event = f"{name}data: {json.dumps(error)}\n\n".encode()
    upstream.answer(turns.answers(streaming=True)[0], Answer.event_stream(*without_end(turns, 1), event))
    answer = ask(proxy, turns, streaming=True)
    assert b"Busy" in answer.body and INJECTED not in answer.body
    assert not any(sign in answer.body for sign in TERMINALS[dialect])


# --- the other form


@pytest.mark.parametrize("others", [(False, True), (True, False), (True, True)], ids=str)
@VERSIONS
@MODES
@BY_DIALECT
def test_turns_in_the_other_form_reach_the_client_in_the_form_that_it_asked_for(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool, others: Any, http2: bool
) -> None:
    turns = loop(dialect)
    given = [turns.answers(streaming=streaming is not other)[n] for n, other in enumerate(others)]
    upstream.answer(*given)
    answer = ask(proxy, turns, streaming=streaming, http2=http2)
    assert (answer.content_type or "").startswith("text/event-stream" if streaming else "application/json")
    turns.check_usage(turns.check(answer.body, streaming=streaming))
    turns.check_follow_up(upstream.requests[1], 0)
    assert results(upstream.requests[1]) == ["hi"]
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 2, None)
    assert [row["completeness"] for row in rows.tokens] == ["complete"] * 2 and len(rows.injected) == 1


@MODES
@BY_DIALECT
def test_a_mixed_turn_in_the_other_form_reaches_the_client_with_its_own_calls_only(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    turns = Turns(dialect, [text("0. "), call("echo", text="hi"), own(path="a")])
    upstream.answer(turns.answers(streaming=not streaming)[0])
    turns.check(ask(proxy, turns, streaming=streaming).body, streaming=streaming)
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 1, None) and len(rows.injected) == 1


@MODES
def test_a_hidden_call_that_was_cut_off_leaves_a_row(
    proxy: RunningProxy, upstream: ScriptedUpstream, streaming: bool
) -> None:
    turns = Turns("messages", [text("0. "), call("echo", text="hi")])
    [given] = turns.answers(streaming=streaming)
    cut = [step.replace(b'"tool_use"}', b'"max_tokens"}') for step in given.steps if isinstance(step, bytes)]
    cut = [step.replace(b'"stop_reason": "tool_use"', b'"stop_reason": "max_tokens"') for step in cut]
    cut = [step.replace(b'"stop_reason":"tool_use"', b'"stop_reason":"max_tokens"') for step in cut]
    upstream.answer(Answer(200, given.headers, cut))
    answer = ask(proxy, turns, streaming=streaming)
    assert b"max_tokens" in answer.body and INJECTED not in answer.body
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 1, None)
    [row] = rows.injected
    assert row["input"] == {"text": "hi"} and "cut off" in row["invocation_error"]


@VERSIONS
@pytest.mark.parametrize("dialect", ["messages", "chat_completions"])
def test_a_later_stream_whose_end_says_nothing_is_an_error_although_its_body_is_held_open(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, http2: bool
) -> None:
    turns = loop(dialect)
    end = {
        "messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        "chat_completions": b"data: [DONE]\n\n",
    }
    gate = Gate()
    upstream.answer(turns.answers(streaming=True)[0], Answer.event_stream(end[dialect], Pause(gate)))
    check_broken(turns, ask(proxy, turns, streaming=True, http2=http2).body)
    gate.open()
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", 2, "incomplete_answer")


@BY_DIALECT
def test_a_later_body_that_says_nothing_is_an_error_for_a_blocking_client(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    turns = loop(dialect)
    upstream.answer(turns.answers(streaming=False)[0], Answer.json({}))
    answer = ask(proxy, turns, streaming=False)
    assert answer.status == 502 and "stop reason" in json.loads(answer.body)["error"]["message"]
