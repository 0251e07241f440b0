"""What goes wrong between two turns: at the provider, at the MCP server, at the bounds, and when the process ends."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client, Seen, wait_for_ended
from tests.integration.turns import (
    BY_DIALECT,
    CONNECTED,
    INJECTED,
    JSON_BODY,
    MODES,
    VERSIONS,
    Asked,
    Turns,
    call,
    configuration,
    recorded,
    results,
    text,
    tool_names,
)
from tests.support.mcp_servers import HttpMcp, ToolGate
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Abort, Answer, AnyAnswer, Close, ScriptedUpstream

LIMITED = {"type": "rate_limit_error", "message": "Busy", "code": "slow_down", "param": None}
OVERLOADED: dict[str, tuple[int, dict[str, Any], str]] = {
    "messages": (
        529,
        {
            "type": "error",
            "error": {"type": "overloaded_error", "message": "Busy", "details": {"region": "eu"}},
            "request_id": "req_1",
        },
        "overloaded_error",
    ),
    "chat_completions": (429, {"error": LIMITED}, "rate_limit_error"),
    "responses": (429, {"error": LIMITED}, "rate_limit_error"),
}
"""An error answer of each provider: status, body, and the error's type."""
EVENTS: dict[str, dict[str, Any]] = {
    "messages": {"type": "overloaded_error", "message": "Busy", "details": {"region": "eu"}},
    "chat_completions": {"type": "rate_limit_error", "message": "Busy", "code": "slow_down", "param": None},
    "responses": {"type": "error", "message": "Busy", "code": "slow_down", "param": None},
}
"""The error event that a client gets in the middle of a stream: the provider's own, because clients depend on it."""

Start = Callable[..., RunningProxy]


@pytest.fixture
def upstream(make_upstream: MakeUpstream, request: pytest.FixtureRequest) -> ScriptedUpstream:
    """One that speaks HTTP/1, unless the test says `http2`."""
    http2 = getattr(request.node, "callspec", None) is not None and request.node.callspec.params.get("http2", False)
    return make_upstream(alpn=[HTTP2 if http2 else HTTP1])


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> Start:
    def start(mcp: str = "keepalive_interval: 0.2", more: str = "") -> RunningProxy:
        mcp += "\nlater_turn_retries: 0"
        servers = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
        proxy = start_proxy(config=configuration(upstream.url, f"{mcp}\n{servers}", more))
        proxy.wait_for_log(CONNECTED)
        return proxy

    return start


@pytest.fixture
def proxy(start: Start) -> RunningProxy:
    return start()


def ask(proxy: RunningProxy, turns: Turns, *, streaming: bool, http2: bool = False) -> Seen:
    with Client(proxy, turns.host, http2=http2) as client:
        return client.post(turns.path, turns.request(streaming=streaming))


def loop_of(dialect: str, turns: int) -> Turns:
    """So many turns with a call each, and then a last one."""
    return Turns(dialect, *([text(f"{n}. "), call("echo", text=str(n))] for n in range(turns)), [text("Done.")])


def check_cut(turns: Turns, answer: bytes, said: int) -> dict[str, Any]:
    """The stream shows what these turns said, and ends in one error event in the dialect's words: its data."""
    assert INJECTED not in answer
    assert all(f"{n}. ".encode() in answer for n in range(said))
    *_, last = (event for event in answer.removesuffix(b"data: [DONE]\n\n").split(b"\n\n") if event)
    data = json.loads(last.split(b"data: ", 1)[1])
    assert data.get("error") or data["type"] == "error" or data["response"]["error"], last
    assert answer.endswith(b"\n\n") and b"message_stop" not in answer and b"response.completed" not in answer
    return dict(data)


# --- at the provider


@VERSIONS
@pytest.mark.parametrize("turn", [2, 3])
@BY_DIALECT
def test_an_error_in_a_later_turn_ends_the_stream_with_the_dialects_error(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, turn: int, http2: bool
) -> None:
    turns = loop_of(dialect, 3)
    status, body, kind = OVERLOADED[dialect]
    upstream.answer(*turns.answers(streaming=True)[: turn - 1], Answer.json(body, status))
    answer = ask(proxy, turns, streaming=True, http2=http2)
    assert answer.status == 200
    told = check_cut(turns, answer.body, turn - 1)
    assert (told if dialect == "responses" else told["error"]).items() >= EVENTS[dialect].items()
    wait_for_ended(proxy, 1)
    rows = recorded(proxy)
    assert rows.outcome == ("failed", turn, kind)
    assert rows.interception["http_status"] == status
    assert [row["output_tokens"] for row in rows.tokens] == [5, 6][: turn - 1]
    assert [row["input"] for row in rows.injected] == [{"text": str(n)} for n in range(turn - 1)]
    assert len(rows.prompts) == 1


@VERSIONS
@BY_DIALECT
def test_a_blocking_client_gets_a_later_turns_error_as_it_is(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, http2: bool
) -> None:
    turns = loop_of(dialect, 1)
    status, body, kind = OVERLOADED[dialect]
    upstream.answer(turns.answers(streaming=False)[0], Answer.json(body, status))
    answer = ask(proxy, turns, streaming=False, http2=http2)
    assert (answer.status, json.loads(answer.body)) == (status, body)
    assert recorded(proxy).outcome == ("failed", 2, kind)


@VERSIONS
@pytest.mark.parametrize("end", [Abort(), Close()], ids=["reset", "closed"])
@BY_DIALECT
def test_an_upstream_that_breaks_off_in_a_later_turn_ends_the_stream_with_an_error(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, end: Abort | Close, http2: bool
) -> None:
    turns = loop_of(dialect, 1)
    upstream.answer(turns.answers(streaming=True)[0], Answer.event_stream(*turns.broken(1), end))
    answer = ask(proxy, turns, streaming=True, http2=http2)
    check_cut(turns, answer.body, 1)
    wait_for_ended(proxy, 1)
    rows = recorded(proxy)
    assert rows.outcome == ("failed", 2, "upstream_disconnected")
    assert len(rows.injected) == 1 and rows.tokens[0]["completeness"] == "complete"


@BY_DIALECT
@MODES
def test_an_upstream_that_breaks_off_before_a_later_turn_begins_is_told(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    turns = loop_of(dialect, 1)
    broken: list[AnyAnswer] = [Answer(before=[Abort()])] * 2  # a fresh connection is tried after the kept one
    upstream.answer(turns.answers(streaming=streaming)[0], *broken)
    answer = ask(proxy, turns, streaming=streaming)
    if streaming:
        check_cut(turns, answer.body, 1)
    else:
        assert answer.status == 502 and json.loads(answer.body)["error"]
    wait_for_ended(proxy, 1)
    rows = recorded(proxy)
    assert rows.outcome[0] == "failed" and rows.outcome[2] == "upstream_disconnected"
    assert len(rows.injected) == 1


@BY_DIALECT
@MODES
def test_an_upstream_that_is_gone_in_a_later_turn_is_told(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    with ToolGate() as gate, Client(proxy, Turns(dialect).host) as client:
        turns = Turns(dialect, [text("0. "), call("slow", port=gate.port)], [text("Done.")])
        upstream.answer(turns.answers(streaming=streaming)[0])
        asked = Asked(client, turns.path, turns.request(streaming=streaming))
        gate.wait_reached()
        upstream.stop()
        gate.open()
        status, answer = asked.status(), asked.rest()
    if streaming:
        check_cut(turns, answer, 1)
    else:
        assert status == 502 and json.loads(answer)["error"]
    wait_for_ended(proxy, 1)
    rows = recorded(proxy)
    assert rows.outcome[0] == "failed" and rows.outcome[2] in ("upstream_unreachable", "upstream_disconnected")
    assert [row["invocation_error"] for row in rows.injected] == [None]


@pytest.mark.parametrize("coded", [0, 1])
@MODES
@BY_DIALECT
def test_a_turn_may_come_in_another_coding(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool, coded: int
) -> None:
    turns = loop_of(dialect, 1)
    answers = turns.answers(streaming=streaming)
    plain = answers[coded]
    packed = gzip.compress(b"".join(step for step in plain.steps if isinstance(step, bytes)))
    kind = "text/event-stream" if streaming else "application/json"
    half = len(packed) // 2
    pieces = (packed[:half], packed[half:])
    answers[coded] = Answer(200, [("content-type", kind), ("content-encoding", "gzip")], pieces, framing="length")
    upstream.answer(*answers)
    answer = ask(proxy, turns, streaming=streaming)
    assert "content-encoding" not in answer.headers
    turns.check_usage(turns.check(answer.body, streaming=streaming))
    assert [request.header("accept-encoding") for request in upstream.requests] == ["identity"] * 2
    assert recorded(proxy).outcome == ("completed", 2, None)


@BY_DIALECT
def test_a_blocking_answer_of_any_size_is_put_together(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    long = "a" * 3_000_000
    turns = Turns(dialect, [text(long), call("echo", text="hi")], [text("b" * 3_000_000)])
    upstream.answer(*turns.answers(streaming=False))
    turns.check_usage(turns.check(ask(proxy, turns, streaming=False).body, streaming=False))
    assert recorded(proxy).outcome == ("completed", 2, None)


@VERSIONS
@pytest.mark.parametrize("turn", [1, 2])
@BY_DIALECT
def test_a_blocking_answer_beyond_the_limit_is_refused_and_not_shown(
    start: Start, upstream: ScriptedUpstream, dialect: str, turn: int, http2: bool
) -> None:
    proxy = start(more="limits: {decoded_body: 100KiB}")
    long = Turns(dialect, [text("a" * 200_000), call("echo", text="hi")])
    upstream.answer(*loop_of(dialect, 1).answers(streaming=False)[: turn - 1], *long.answers(streaming=False))
    answer = ask(proxy, long, streaming=False, http2=http2)
    assert answer.status == 502 and INJECTED not in answer.body
    assert "larger than 102400 bytes" in json.loads(answer.body)["error"]["message"]
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", turn, "answer_too_large")


@VERSIONS
@BY_DIALECT
def test_a_later_turns_error_beyond_the_limit_ends_the_stream(
    start: Start, upstream: ScriptedUpstream, dialect: str, http2: bool
) -> None:
    proxy = start(more="limits: {decoded_body: 100KiB}")
    turns = loop_of(dialect, 1)
    huge = Answer.json({"error": {"message": "x" * 200_000}}, 500)
    upstream.answer(turns.answers(streaming=True)[0], huge)
    answer = ask(proxy, turns, streaming=True, http2=http2)
    check_cut(turns, answer.body, 1)
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", 2, "answer_too_large")


@pytest.mark.parametrize("turn", [1, 2])
@BY_DIALECT
def test_a_blocking_answer_that_cannot_be_decoded_is_not_shown(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, turn: int
) -> None:
    turns = loop_of(dialect, 1)
    answers = turns.answers(streaming=False)
    answers[turn - 1] = Answer(200, [*JSON_BODY, ("content-encoding", "gzip")], (INJECTED,), framing="length")
    upstream.answer(*answers[:turn])
    answer = ask(proxy, turns, streaming=False)
    assert answer.status == 502 and "cannot be decoded" in json.loads(answer.body)["error"]["message"]
    assert recorded(proxy).outcome == ("failed", turn, "undecodable_answer")


# --- at a bound


@MODES
@BY_DIALECT
def test_the_last_turn_that_is_allowed_is_asked_without_injected_tools(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start("max_turns: 2")
    turns = loop_of(dialect, 1)
    upstream.answer(*turns.answers(streaming=streaming))
    turns.check(ask(proxy, turns, streaming=streaming).body, streaming=streaming)
    assert tool_names(upstream.requests[1]) == ["Read"]
    assert recorded(proxy).outcome == ("completed", 2, None)


@MODES
@BY_DIALECT
def test_a_model_that_calls_beyond_the_bound_is_not_heard(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start("max_turns: 2")
    turns = loop_of(dialect, 5)
    upstream.answer(*turns.answers(streaming=streaming)[:2])
    answer = ask(proxy, turns, streaming=streaming).body
    assert INJECTED not in answer and len(upstream.requests) == 2
    view = turns.view(answer, streaming=streaming)
    assert not view.ends_for_calls and b"0. " in answer and b"1. " in answer
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 2, None) and len(rows.injected) == 1


@MODES
@BY_DIALECT
def test_the_same_call_is_not_made_a_third_time(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    turns = Turns(dialect, *([[text("Again. "), call("echo", text="x")]] * 3), [text("Enough.")])
    upstream.answer(*turns.answers(streaming=streaming))
    turns.check(ask(proxy, turns, streaming=streaming).body, streaming=streaming)
    told = results(upstream.requests[3])
    assert told[:2] == ["x", "x"] and "3 times in a row" in told[2]
    assert tool_names(upstream.requests[3]) == ["Read"]
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 4, None) and len(rows.injected) == 2


# --- at the MCP server


@MODES
@BY_DIALECT
def test_a_tool_that_is_gone_between_turns_becomes_an_error_result(
    start_proxy: StartProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    with HttpMcp() as mortal, ToolGate() as gate:
        servers = f"servers: {{ours: {{type: http, url: '{mortal.url}'}}}}"
        proxy = start_proxy(config=configuration(upstream.url, f"keepalive_interval: 0.2\n{servers}"))
        proxy.wait_for_log(CONNECTED)
        waits = [text("Wait. "), call("slow", port=gate.port)]
        turns = Turns(dialect, waits, [call("echo", text="hi")], [text("Well.")])
        upstream.answer(*turns.answers(streaming=streaming))
        with Client(proxy, turns.host) as client:
            asked = Asked(client, turns.path, turns.request(streaming=streaming))
            gate.wait_reached()
            mortal.kill()
            asked.status()
            turns.check(asked.rest(), streaming=streaming)
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 3, None)
    assert [(row["tool"], row["server_name"]) for row in rows.injected] == [("slow", "ours"), ("echo", "ours")]
    assert all(row["invocation_error"] for row in rows.injected)
    assert all("rror" in result for result in results(upstream.requests[2]))
