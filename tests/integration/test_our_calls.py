"""Calls with the bridge's prefix are the bridge's, whatever their name and their arguments: the loop goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client
from tests.integration.turns import (
    BY_DIALECT,
    CONNECTED,
    INJECTED,
    MODES,
    READ,
    Turns,
    call,
    configuration,
    recorded,
    results,
    text,
    tool_names,
)
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.streams import Block
from tests.support.upstream import Request, ScriptedUpstream

Start = Callable[..., RunningProxy]


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream()


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> Start:
    def start(server: str = "", mcp: str = "") -> RunningProxy:
        servers = f"{mcp}\nservers: {{ours: {{type: http, url: '{ours.url}'{server}}}}}"
        proxy = start_proxy(config=configuration(upstream.url, servers.strip()))
        proxy.wait_for_log(CONNECTED)
        return proxy

    return start


def ask(proxy: RunningProxy, turns: Turns, upstream: ScriptedUpstream, *, streaming: bool, **members: Any) -> bytes:
    upstream.answer(*turns.answers(streaming=streaming))
    with Client(proxy, turns.host) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming, **members))
    assert seen.status == 200
    return seen.body


def calls_in(request: Request) -> list[tuple[str, Any]]:
    """The name and the decoded arguments of each call in a request's history."""
    body = request.json()
    if "input" in body:
        items = [item for item in body["input"] if item.get("type") == "function_call"]
        return [(item["name"], json.loads(item["arguments"])) for item in items]
    found: list[tuple[str, Any]] = []
    for message in body["messages"]:
        for made in message.get("tool_calls", ()):
            found.append((made["function"]["name"], json.loads(made["function"]["arguments"])))
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] == "tool_use":
                found.append((block["name"], block["input"]))
    return found


@pytest.mark.parametrize(
    "name", ["bmcp_ours_gone", "bmcp_elsewhere_look", "bmcp_", "bmcp_ours.gone!", "bmcp_" + "x" * 90]
)
@MODES
@BY_DIALECT
def test_a_tool_that_was_never_offered_is_an_error_result(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool, name: str
) -> None:
    proxy = start()
    turns = Turns(dialect, [text("Hm. "), Block("injected", "{}", name), call("echo", text="hi")], [text("Done.")])
    answer = ask(proxy, turns, upstream, streaming=streaming)
    turns.check_usage(turns.check(answer, streaming=streaming))
    follow_up = upstream.requests[1]
    missing, present = results(follow_up)
    assert "no tool" in missing and present == "hi"
    made, _ = calls_in(follow_up)[0]
    assert len(made) <= 64 and made.startswith("bmcp_") and "." not in made
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 2, None)
    gone, echo = rows.injected
    assert gone["tool"].startswith("bmcp_") and gone["server_name"] is None and gone["invocation_error"]
    assert echo["tool"] == "echo" and echo["invocation_error"] is None


@MODES
@BY_DIALECT
def test_a_tool_of_the_history_is_ours_even_if_none_is_offered_any_more(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start(", deny: .")
    gone = Block("injected", '{"text": "a"}', "bmcp_ours_echo")
    said = Turns(dialect, [gone]).written[0].said
    asked = {"role": "user", "content": "What is there?"}
    said = [{"role": "assistant", "content": said}] if dialect == "messages" else said
    history = {"input" if dialect == "responses" else "messages": [asked, *said, asked]}
    turns = Turns(dialect, [text("Hm. "), gone], [text("Done.")])
    answer = ask(proxy, turns, upstream, streaming=streaming, **history)
    assert tool_names(upstream.requests[0]) == ["Read"]
    turns.check(answer, streaming=streaming)
    assert "no tool" in results(upstream.requests[1])[-1]


@BY_DIALECT
def test_without_tools_and_calls_of_ours_the_request_stays_as_it_is(
    start: Start, upstream: ScriptedUpstream, dialect: str
) -> None:
    proxy = start(", deny: .")
    turns = Turns(dialect, [text("Hm. ")])
    assert ask(proxy, turns, upstream, streaming=True) == turns.written[0].stream
    [request] = upstream.requests
    assert request.body == turns.request(streaming=True) and request.header("accept-encoding") is None


@MODES
@BY_DIALECT
def test_a_clients_own_tool_may_have_our_prefix(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start()
    tool: dict[str, Any] = {"name": "bmcp_mine", "input_schema": READ}
    if dialect == "responses":
        tool = {"type": "function", "name": "bmcp_mine", "parameters": READ}
    if dialect == "chat_completions":
        tool = {"type": "function", "function": {"name": "bmcp_mine", "parameters": READ}}
    turns = Turns(dialect, [Block("client", '{"path": "a"}', "bmcp_mine")])
    answer = ask(proxy, turns, upstream, streaming=streaming, tools=[tool])
    assert turns.view(answer, streaming=streaming).ends_for_calls and b"bmcp_mine" in answer
    assert recorded(proxy).injected == [] and len(upstream.requests) == 1


@pytest.mark.parametrize("given", ['{"text": "h', "nonsense", '["hi"]', "3", '"hi"', "{'text': 'hi'}"])
@MODES
@BY_DIALECT
def test_arguments_that_are_no_object_are_an_error_result_and_mended_in_the_history(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool, given: str
) -> None:
    proxy = start()
    turns = Turns(dialect, [text("Hm. "), Block("injected", given, "bmcp_ours_echo")], [text("Done.")])
    turns.check(ask(proxy, turns, upstream, streaming=streaming), streaming=streaming)
    [(name, sent)] = calls_in(upstream.requests[1])
    assert name == "bmcp_ours_echo" and list(sent) == ["INVALID_JSON"]
    assert "arguments are not a JSON object" in results(upstream.requests[1])[0]
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 2, None) and rows.injected[0]["invocation_error"]


DEMANDS: dict[str, Any] = {"messages": {"type": "any"}, "chat_completions": "required", "responses": "required"}


@MODES
@BY_DIALECT
def test_a_client_that_demands_a_call_gets_one_of_its_own(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start()
    turns = Turns(dialect, [call("echo", text="hi")], [Block("client", '{"path": "a"}', "Read")])
    answer = ask(proxy, turns, upstream, streaming=streaming, tool_choice=DEMANDS[dialect])
    assert turns.check(answer, streaming=streaming).ends_for_calls
    assert [request.json()["tool_choice"] for request in upstream.requests] == [DEMANDS[dialect]] * 2


@BY_DIALECT
def test_a_demanded_call_is_not_left_to_ours_in_the_only_turn(
    start: Start, upstream: ScriptedUpstream, dialect: str
) -> None:
    proxy = start(mcp="max_turns: 1")
    turns = Turns(dialect, [Block("client", '{"path": "a"}', "Read")])
    answer = ask(proxy, turns, upstream, streaming=True, tool_choice=DEMANDS[dialect])
    assert tool_names(upstream.requests[0]) == ["Read"] and INJECTED not in answer
