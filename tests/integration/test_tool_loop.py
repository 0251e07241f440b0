"""Injected tools run inside the live answer: real mitmdump, a real MCP server, raw clients and the vendors' SDKs."""

from __future__ import annotations

import pytest

from aibridge_addon.tools.calls import CANCELLED
from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client, wait_for_ended
from tests.integration.sdks import Sdks, content_of
from tests.integration.turns import (
    BY_DIALECT,
    CONNECTED,
    INJECTED,
    MODES,
    PROMPT,
    VERSIONS,
    Asked,
    Turns,
    call,
    configuration,
    own,
    recorded,
    results,
    text,
    thought,
    tool_names,
)
from tests.support.fixtures import Case
from tests.support.mcp_servers import HttpMcp, ToolGate
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Answer, ScriptedUpstream

pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")


class Bridge:
    """An upstream, the proxy before it, and the MCP server `ours` beside it."""

    def __init__(self, upstream: ScriptedUpstream, proxy: RunningProxy) -> None:
        self.upstream = upstream
        self.proxy = proxy

    def ask(self, turns: Turns, *, streaming: bool, http2: bool) -> bytes:
        """Let the model do these turns, and return what the client gets."""
        self.upstream.answer(*turns.answers(streaming=streaming))
        with Client(self.proxy, turns.host, http2=http2) as client:
            seen = client.post(turns.path, turns.request(streaming=streaming))
        assert seen.status == 200
        return seen.body


@pytest.fixture
def bridge(start_proxy: StartProxy, make_upstream: MakeUpstream, ours: HttpMcp, http2: bool) -> Bridge:
    upstream = make_upstream(alpn=[HTTP2 if http2 else HTTP1])
    mcp = f"keepalive_interval: 0.2\nservers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, mcp))
    proxy.wait_for_log(CONNECTED)
    return Bridge(upstream, proxy)


# --- one answer out of several turns


@pytest.mark.usefixtures("both_ways")
@VERSIONS
@BY_DIALECT
def test_a_stream_without_a_call_passes_byte_for_byte_to_its_last(bridge: Bridge, dialect: str, http2: bool) -> None:
    """Also where a line end is cut in half, and where something comes behind the terminal event."""
    stream = Turns(dialect, [text("Let me see. ")]).written[0].stream.replace(b"\n", b"\r\n")
    stream += b": bye\r\n\r\n" + (b"data: [DONE]\r\n\r\n" if dialect == "responses" else b"")
    pieces = [piece + b"\r" for piece in stream.split(b"\r")]
    bridge.upstream.answer(Answer.event_stream(*pieces[:-1], pieces[-1].removesuffix(b"\r")))
    turns = Turns(dialect, [text("Let me see. ")])
    with Client(bridge.proxy, turns.host, http2=http2) as client:
        answer = client.post(turns.path, turns.request(streaming=True)).body
    assert "bmcp_ours_echo" in tool_names(bridge.upstream.requests[0])
    assert answer == stream


@pytest.mark.usefixtures("both_ways")
@VERSIONS
@MODES
@BY_DIALECT
def test_two_turns_are_one_answer(bridge: Bridge, dialect: str, streaming: bool, http2: bool) -> None:
    turns = Turns(
        dialect, [thought("Hm."), text("Let me see. "), call("echo", text="hi")], [thought("So."), text("Done.")]
    )
    answer = bridge.ask(turns, streaming=streaming, http2=http2)
    rows = recorded(bridge.proxy)
    turns.check_usage(turns.check(answer, streaming=streaming))

    first, second = bridge.upstream.requests
    assert first.connection == second.connection
    assert first.http_version == ("2" if http2 else "1.1")
    assert {"Read", "bmcp_ours_echo"} <= set(tool_names(first))
    assert tool_names(second) == tool_names(first)
    turns.check_follow_up(second, 0)
    assert results(second) == ["hi"]

    assert rows.outcome == ("completed", 2, None)
    ids = [written.body["id"] for written in turns.written]
    assert [(row["provider_response_id"], row["output_tokens"]) for row in rows.tokens] == [(ids[0], 5), (ids[1], 6)]
    assert {row["completeness"] for row in rows.tokens} == {"complete"}
    assert [(row["prompt"], row["provider_response_id"]) for row in rows.prompts] == [(PROMPT, ids[0])]
    [tool] = rows.tools
    assert (tool["tool"], tool["server_name"], tool["injected"]) == ("echo", "ours", 1)
    assert (tool["provider_tool_call_id"], tool["provider_response_id"]) == (turns.call_ids(0)[0], ids[0])
    assert tool["input"] == {"text": "hi"} and tool["invocation_error"] is None and tool["duration_ms"] >= 0
    assert tool["server_url"].startswith("http://127.0.0.1:")
    thoughts = [] if dialect == "chat_completions" else ["Hm.", "So."]
    assert [row["content"] for row in rows.thoughts if dialect != "chat_completions"] == thoughts


@VERSIONS
@BY_DIALECT
def test_an_sdk_reads_the_turns_as_one_message(bridge: Bridge, dialect: str, http2: bool) -> None:
    turns = Turns(
        dialect, [text("One, "), call("echo", text="a")], [text("two, "), call("add", a=1, b=2)], [text("3.")]
    )
    sdks = Sdks(bridge.proxy, "proxy over HTTP/2" if http2 else "proxy")
    answers = []
    for streaming in (True, False):
        bridge.upstream.answer(*turns.answers(streaming=streaming))
        case = Case(dialect, "", streaming, turns.request(streaming=streaming), (), 200, "", b"", {})
        answers.append(content_of(dialect, sdks.ask(case)))
    sdks.close()
    streamed, whole = answers
    assert streamed == whole
    assert "".join(whole["text"]) == "One, two, 3." and whole["calls"] == [] and whole["id"] == turns.first_id
    assert whole["tokens"][1] == 5 + 6 + 7
    assert [results(request) for request in bridge.upstream.requests[:3]] == [[], ["a"], ["a", "3"]]


@VERSIONS
@MODES
@BY_DIALECT
def test_parallel_calls_run_at_once_and_their_results_keep_the_order(
    bridge: Bridge, dialect: str, streaming: bool, http2: bool
) -> None:
    with ToolGate() as first, ToolGate() as second, Client(bridge.proxy, _host(dialect), http2=http2) as client:
        calls = [call("slow", port=first.port), call("echo", text="quick"), call("slow", port=second.port)]
        turns = Turns(dialect, calls, [text("Done.")])
        bridge.upstream.answer(*turns.answers(streaming=streaming))
        asked = Asked(client, turns.path, turns.request(streaming=streaming))
        first.wait_reached()
        second.wait_reached()
        second.open()
        first.open()
        assert asked.status() == 200
        turns.check(asked.rest(), streaming=streaming)
    rows = recorded(bridge.proxy)
    turns.check_follow_up(bridge.upstream.requests[1], 0)
    assert results(bridge.upstream.requests[1]) == ["at last", "quick", "at last"]
    assert [row["tool"] for row in rows.injected] == ["slow", "echo", "slow"]
    assert [row["provider_tool_call_id"] for row in rows.injected] == turns.call_ids(0)


@VERSIONS
@MODES
@BY_DIALECT
def test_a_turn_with_calls_of_both_ends_the_answer_with_the_clients(
    bridge: Bridge, dialect: str, streaming: bool, http2: bool
) -> None:
    turns = Turns(dialect, [text("Both. "), own(path="a"), call("echo", text="hi")])
    answer = bridge.ask(turns, streaming=streaming, http2=http2)
    rows = recorded(bridge.proxy)
    view = turns.check(answer, streaming=streaming)
    assert view.ends_for_calls
    assert len(bridge.upstream.requests) == 1
    assert rows.outcome == ("completed", 1, None)
    assert sorted((row["tool"], row["injected"]) for row in rows.tools) == [("Read", 0), ("echo", 1)]


@pytest.mark.parametrize("http2", [False], ids=["h1"])
@MODES
@BY_DIALECT
def test_what_a_tool_says_went_wrong_reaches_the_model(
    bridge: Bridge, dialect: str, streaming: bool, http2: bool
) -> None:
    turns = Turns(dialect, [call("fail")], [text("A pity.")])
    turns.check(bridge.ask(turns, streaming=streaming, http2=http2), streaming=streaming)
    rows = recorded(bridge.proxy)
    [result] = results(bridge.upstream.requests[1])
    assert "it went wrong" in result
    if dialect == "messages":
        assert bridge.upstream.requests[1].json()["messages"][-1]["content"][0]["is_error"] is True
    assert rows.outcome == ("completed", 2, None)
    [tool] = rows.injected
    assert "it went wrong" in tool["invocation_error"]


# --- while a tool takes its time


@VERSIONS
@BY_DIALECT
def test_a_client_that_waits_for_a_tool_hears_that_somebody_is_there(bridge: Bridge, dialect: str, http2: bool) -> None:
    sign = b"event: ping\n" if dialect == "messages" else b":"
    with ToolGate() as gate, Client(bridge.proxy, _host(dialect), http2=http2) as client:
        turns = Turns(dialect, [text("Wait. "), call("slow", port=gate.port)], [text("Done.")])
        bridge.upstream.answer(*turns.answers(streaming=True))
        asked = Asked(client, turns.path, turns.request(streaming=True))
        assert asked.status() == 200
        gate.wait_reached()
        pieces = asked.pieces()
        heard = b""
        signs = 0
        while signs < 3:
            piece = next(pieces)
            heard += piece
            signs += piece.startswith(sign)
        assert b"Wait. " in heard and len(bridge.upstream.requests) == 1
        gate.open()
        heard += b"".join(pieces)
    turns.check(heard, streaming=True)
    assert recorded(bridge.proxy).outcome == ("completed", 2, None)


@VERSIONS
@MODES
@BY_DIALECT
def test_a_client_that_leaves_while_a_tool_runs_takes_the_call_with_it(
    bridge: Bridge, dialect: str, streaming: bool, http2: bool
) -> None:
    with ToolGate() as gate, Client(bridge.proxy, _host(dialect), http2=http2) as client:
        turns = Turns(dialect, [text("Wait. "), call("slow", port=gate.port)], [text("Done.")])
        bridge.upstream.answer(turns.answers(streaming=streaming)[0])
        asked = Asked(client, turns.path, turns.request(streaming=streaming))
        gate.wait_reached()
        asked.leave()
        gate.wait_abandoned()
    wait_for_ended(bridge.proxy, 1)
    rows = recorded(bridge.proxy)
    assert rows.outcome == ("failed", 1, "client_disconnected")
    assert [row["output_tokens"] for row in rows.tokens] == [5]
    assert [(row["tool"], row["invocation_error"]) for row in rows.injected] == [("slow", CANCELLED)]
    assert len(bridge.upstream.requests) == 1


@MODES
@pytest.mark.parametrize("http2", [False], ids=["h1"])
def test_reasoning_that_the_client_sends_back_has_the_call_that_followed_it_again(
    bridge: Bridge, streaming: bool, http2: bool
) -> None:
    turns = Turns(
        "responses", [thought("Hm."), call("echo", text="hi")], [thought("So."), text("Done.")], [text("Bye")]
    )
    bridge.upstream.answer(*turns.answers(streaming=streaming))
    (first, hidden), second = turns.written[0].said, turns.written[1].said
    asked = {"role": "user", "content": PROMPT}
    with Client(bridge.proxy, turns.host, http2=http2) as client:
        client.post(turns.path, turns.request(streaming=streaming))
        client.post(turns.path, turns.request(streaming=streaming, input=[asked, first, *second, asked], store=False))
    sent = bridge.upstream.requests[2].json()["input"]
    result = {"type": "function_call_output", "call_id": hidden["call_id"], "output": "hi"}
    assert sent == [asked, first, hidden, result, *second, asked]


# --- usage that only we asked for


@pytest.mark.parametrize("http2", [False], ids=["h1"])
def test_usage_that_only_we_asked_for_stays_hidden_in_a_loop(bridge: Bridge, http2: bool) -> None:
    turns = Turns("chat_completions", [text("See. "), call("echo", text="hi")], [text("Done.")])
    bridge.upstream.answer(*turns.answers(streaming=True))
    with Client(bridge.proxy, turns.host, http2=http2) as client:
        answer = client.post(turns.path, turns.request(streaming=True, usage=False)).body
    rows = recorded(bridge.proxy)
    assert turns.check(answer, streaming=True).usage is None
    assert b'"usage":{' not in answer and b'"choices":[]' not in answer
    assert [request.json()["stream_options"]["include_usage"] for request in bridge.upstream.requests] == [True, True]
    assert [row["output_tokens"] for row in rows.tokens] == [5, 6]


@pytest.mark.parametrize("http2", [False], ids=["h1"])
def test_a_provider_that_takes_no_such_wish_is_asked_again_with_the_tools(bridge: Bridge, http2: bool) -> None:
    turns = Turns("chat_completions", [text("See. "), call("echo", text="hi")], [text("Done.")])
    refusal = {"error": {"type": "invalid_request_error", "message": "Unrecognized argument: stream_options"}}
    bridge.upstream.answer(Answer.json(refusal, 400), *turns.answers(streaming=True))
    with Client(bridge.proxy, turns.host, http2=http2) as client:
        answer = client.post(turns.path, turns.request(streaming=True, usage=False)).body
    turns.check(answer, streaming=True)
    asked = bridge.upstream.requests
    assert ["stream_options" in request.json() for request in asked] == [True, False, False]
    assert all("bmcp_ours_echo" in tool_names(request) for request in asked)
    assert recorded(bridge.proxy).outcome == ("completed", 2, None)


# --- where nothing is injected


@pytest.mark.parametrize("http2", [False], ids=["h1"])
@MODES
@BY_DIALECT
def test_a_client_keeps_its_own_tool_of_an_injected_ones_name(
    bridge: Bridge, dialect: str, streaming: bool, http2: bool
) -> None:
    turns = Turns(dialect, [text("Yours. "), call("echo", text="hi")])
    body = turns.request(streaming=streaming).replace(b'"Read"', b'"bmcp_ours_echo"')
    bridge.upstream.answer(*turns.answers(streaming=streaming))
    with Client(bridge.proxy, turns.host, http2=http2) as client:
        answer = client.post(turns.path, body).body
    assert tool_names(bridge.upstream.requests[0]).count("bmcp_ours_echo") == 1
    assert turns.view(answer, streaming=streaming).ends_for_calls
    rows = recorded(bridge.proxy)
    assert [(row["tool"], row["injected"]) for row in rows.tools] == [("bmcp_ours_echo", 0)]


@pytest.mark.parametrize("http2", [False], ids=["h1"])
def test_a_response_in_the_background_is_passed_on_as_it_is(bridge: Bridge, http2: bool) -> None:
    turns = Turns("responses", [text("Later.")])
    body = turns.request(streaming=False, background=True)
    bridge.upstream.answer(*turns.answers(streaming=False))
    with Client(bridge.proxy, turns.host) as client:
        assert client.post(turns.path, body).body == bridge.upstream.bodies_sent[0]
    assert bridge.upstream.requests[0].body == body


@pytest.mark.parametrize("inject", [", inject_tools: false", ""], ids=["switched off", "no servers"])
@MODES
@BY_DIALECT
def test_a_request_without_injected_tools_goes_as_it_came(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, dialect: str, streaming: bool, inject: str
) -> None:
    mcp = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}" if inject else ""
    proxy = start_proxy(config=configuration(upstream.url, mcp, inject=inject))
    if mcp:
        proxy.wait_for_log(CONNECTED)
    turns = Turns(dialect, [text("Hello."), own(path="a")])
    body = turns.request(streaming=streaming)
    upstream.answer(*turns.answers(streaming=streaming))
    with Client(proxy, turns.host) as client:
        answer = client.post(turns.path, body, [("accept-encoding", "gzip")]).body
    assert upstream.requests[0].body == body
    assert upstream.requests[0].header("accept-encoding") == "gzip"
    assert answer == upstream.bodies_sent[0]
    assert INJECTED not in upstream.requests[0].body


def _host(dialect: str) -> str:
    return Turns(dialect).host
