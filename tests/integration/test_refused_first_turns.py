"""A first request that is refused because of what the bridge added to it is sent again without that."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client
from tests.integration.turns import (
    BY_DIALECT,
    CLIENTS_RESULT,
    CONNECTED,
    MODES,
    VERSIONS,
    Turns,
    call,
    configuration,
    own,
    recorded,
    results,
    text,
    tool_names,
)
from tests.support.in_process import InProcessProxy
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Answer, Request, ScriptedUpstream

Start = Callable[..., InProcessProxy]
BAD = "bmcp_ours_area"


@pytest.fixture
def upstream(make_upstream: MakeUpstream, request: pytest.FixtureRequest) -> ScriptedUpstream:
    """One that speaks HTTP/1, unless the test says `http2`."""
    http2 = getattr(request.node, "callspec", None) is not None and request.node.callspec.params.get("http2", False)
    return make_upstream(alpn=[HTTP2 if http2 else HTTP1])


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> Start:
    def start(mcp: str = "", more: str = "", **options: Any) -> InProcessProxy:
        servers = f"{mcp}\nservers: {{ours: {{type: http, url: '{ours.url}'}}}}"
        proxy = start_proxy(config=configuration(upstream.url, servers.strip(), more), **options)
        proxy.wait_for_log(CONNECTED)
        return proxy

    return start


def ask(proxy: RunningProxy, turns: Turns, body: bytes, *, http2: bool = False) -> tuple[int, bytes]:
    with Client(proxy, turns.host, http2=http2) as client:
        seen = client.post(turns.path, body)
    return seen.status, seen.body


# --- tools --------------------------------------------------------------------------------------------------------

# What providers say about a tool: with its name, or with its place among the tools of the request.
ERRORS: dict[str, Callable[[str, int], Any]] = {
    "anthropic": lambda _, place: {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": f"tools.{place}.custom.input_schema: JSON schema is invalid. It must match JSON Schema",
        },
    },
    "openai": lambda name, place: {
        "error": {
            "message": f"Invalid schema for function '{name}': array schema missing items.",
            "type": "invalid_request_error",
            "param": f"tools[{place}].function.parameters",
            "code": "invalid_function_parameters",
        }
    },
    "place": lambda _, place: {"error": {"message": f"Invalid 'tools[{place}].function.name': too long"}},
    "fastapi": lambda _, place: {"detail": [{"loc": ["body", "tools", place, "function"], "msg": "bad", "type": "x"}]},
    "gemini": lambda _, place: [
        {"error": {"code": 400, "message": f"* tools[0].function_declarations[{place}].parameters: bad", "status": "X"}}
    ],
    "bedrock": lambda _, place: {"message": f"The value at toolConfig.tools.{place}.member.toolSpec is invalid"},
}


def refusing(turns: Turns, error: Callable[[str, int], Any], *bad: str, streaming: bool, status: int = 400) -> Any:
    """A provider that refuses these tools, one after the other."""

    def answer(request: Request) -> Answer:
        names = tool_names(request)
        refused = next((name for name in bad if name in names), None)
        if refused is None:
            return turns.answers(streaming=streaming)[0]
        return Answer.json(error(refused, names.index(refused)), status)

    return answer


@VERSIONS
@MODES
@BY_DIALECT
def test_a_tool_that_the_provider_refuses_is_taken_out_and_stays_out(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool, http2: bool
) -> None:
    proxy, turns = start(), Turns(dialect, [text("Done.")])
    upstream.handler = refusing(turns, ERRORS["openai"], BAD, streaming=streaming)
    body = turns.request(streaming=streaming)
    for _ in range(2):
        status, answer = ask(proxy, turns, body, http2=http2)
        assert status == 200
        turns.check_usage(turns.check(answer, streaming=streaming))
        assert recorded(proxy).outcome == ("completed", 1, None)
    first, again, later = upstream.requests
    assert set(tool_names(first)) - set(tool_names(again)) == {BAD}
    assert again.body == later.body
    assert any(f"refuses the tool {BAD}" in line for line in proxy.log_tail.splitlines())


@pytest.mark.parametrize("kind", ERRORS)
@BY_DIALECT
def test_tools_are_recognised_in_the_words_of_every_provider(
    start: Start, upstream: ScriptedUpstream, dialect: str, kind: str
) -> None:
    proxy, turns = start(), Turns(dialect, [call("echo", text="hi")], [text("Done.")])
    bad = (BAD, "bmcp_ours_pid", "bmcp_ours_add")
    refuses = refusing(turns, ERRORS[kind], *bad, streaming=True, status=422 if kind == "fastapi" else 400)
    answers = iter(turns.answers(streaming=True))

    def answer(request: Request) -> Answer:
        found: Answer = refuses(request)
        return found if found.status >= 400 else next(answers)

    upstream.handler = answer
    status, seen = ask(proxy, turns, turns.request(streaming=True))
    assert status == 200
    turns.check(seen, streaming=True)
    assert not {*bad} & {*tool_names(upstream.requests[3])} and "bmcp_ours_echo" in tool_names(upstream.requests[3])
    assert results(upstream.requests[-1]) == ["hi"]


@BY_DIALECT
def test_a_streamed_chat_keeps_its_option_without_the_tool(
    start: Start, upstream: ScriptedUpstream, dialect: str
) -> None:
    proxy, turns = start(), Turns(dialect, [text("Done.")])
    upstream.handler = refusing(turns, ERRORS["openai"], BAD, streaming=True)
    status, _ = ask(proxy, turns, turns.request(streaming=True, usage=False))
    assert status == 200
    asked = [request.json().get("stream_options") for request in upstream.requests]
    assert asked == ([{"include_usage": True}] * 2 if dialect == "chat_completions" else [None] * 2)


@MODES
@BY_DIALECT
def test_a_model_that_takes_no_tools_gets_none_of_ours(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy, turns = start(), Turns(dialect, [text("Done.")])

    def answer(request: Request) -> Answer:
        if "tools" in request.json():
            return Answer.json({"error": {"message": "m does not support tools"}}, 400)
        return turns.answers(streaming=streaming)[0]

    upstream.handler = answer
    body = json.dumps({n: v for n, v in json.loads(turns.request(streaming=streaming)).items() if n != "tools"})
    for _ in range(2):
        assert ask(proxy, turns, body.encode())[0] == 200
    assert ["tools" in request.json() for request in upstream.requests] == [True, False, False]


@BY_DIALECT
def test_a_model_that_takes_no_tools_in_such_a_request_gets_them_in_others(
    start: Start, upstream: ScriptedUpstream, dialect: str
) -> None:
    proxy, turns = start(), Turns(dialect, [text("Done.")])

    def answer(request: Request) -> Answer:
        streaming = request.json().get("stream", False)
        if "tools" in request.json() and streaming:
            return Answer.json({"error": {"message": "This model doesn't support tool use in streaming mode."}}, 400)
        return turns.answers(streaming=streaming)[0]

    upstream.handler = answer
    for streaming in (True, True, False):
        body = {n: v for n, v in json.loads(turns.request(streaming=streaming)).items() if n != "tools"}
        assert ask(proxy, turns, json.dumps(body).encode())[0] == 200
    assert ["tools" in request.json() for request in upstream.requests] == [True, False, False, True]


@BY_DIALECT
def test_a_model_that_has_accepted_the_clients_tools_is_not_one_that_accepts_none(
    start: Start, upstream: ScriptedUpstream, dialect: str
) -> None:
    proxy, turns = start(), Turns(dialect, [text("Done.")])

    def answer(request: Request) -> Answer:
        if "bmcp_ours_echo" in tool_names(request):
            return Answer.json({"error": {"message": "m does not support so many tools"}}, 400)
        return turns.answers(streaming=True)[0]

    upstream.handler = answer
    for _ in range(2):
        assert ask(proxy, turns, turns.request(streaming=True))[0] == 200
    assert ["bmcp_ours_echo" in tool_names(request) for request in upstream.requests] == [True, False] * 2


@MODES
@BY_DIALECT
def test_an_error_about_the_clients_own_tool_is_about_the_clients_own_request(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    """The place of the tool in the error is the one in the client's request, and nothing is remembered."""
    proxy, turns = start(), Turns(dialect, [text("Done.")])
    upstream.handler = refusing(turns, ERRORS["place"], "Read", streaming=streaming)
    status, answer = ask(proxy, turns, turns.request(streaming=streaming))
    assert status == 400 and b"tools[0]" in answer
    assert tool_names(upstream.requests[-1]) == ["Read"] and len(upstream.requests) == 2
    assert recorded(proxy).outcome[:2] == ("failed", 1)
    upstream.handler = refusing(turns, ERRORS["place"], "other", streaming=streaming)
    assert ask(proxy, turns, turns.request(streaming=streaming))[0] == 200
    assert tool_names(upstream.requests[-1]) == tool_names(upstream.requests[0])


@pytest.mark.parametrize("status", [401, 403, 429, 500, 529])
@BY_DIALECT
def test_other_errors_take_no_tool_out(start: Start, upstream: ScriptedUpstream, dialect: str, status: int) -> None:
    proxy, turns = start(), Turns(dialect, [text("Done.")])
    upstream.handler = refusing(turns, ERRORS["openai"], BAD, streaming=True, status=status)
    assert ask(proxy, turns, turns.request(streaming=True))[0] == status
    assert len(upstream.requests) == 1


# --- kept results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [False, True], ids=["same proxy", "next proxy"])
@MODES
@BY_DIALECT
def test_a_kept_result_that_was_followed_by_a_refusal_is_not_put_in_again(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool, restarts: bool
) -> None:
    proxy = start()
    turns = Turns(dialect, [text("Both. "), call("echo", text="poison"), own(path="a")])
    done = Turns(dialect, [text("Done.")])
    upstream.answer(*turns.answers(streaming=streaming))
    _, answer = ask(proxy, turns, turns.request(streaming=streaming))
    request = turns.next_request(answer, streaming=streaming)

    def refuse(request: Request) -> Answer:
        if "poison" in results(request):
            return Answer.json({"type": "error", "error": {"type": "invalid_request_error", "message": "No"}}, 400)
        return done.answers(streaming=streaming)[0]

    upstream.handler = refuse
    status, answer = ask(proxy, done, request)
    assert status == 200
    done.check(answer, streaming=streaming)
    assert [results(request) for request in upstream.requests[1:2]] == [["poison", CLIENTS_RESULT]]
    if restarts:
        proxy.close()
        proxy = start(folder=proxy.folder)
    assert ask(proxy, done, request)[0] == 200
    again, later = upstream.requests[2:]
    assert again.body == later.body
    left_out, clients = results(later)
    assert "left out" in left_out and clients == CLIENTS_RESULT
    assert set(tool_names(later)) == set(tool_names(upstream.requests[0]))


@BY_DIALECT
def test_calls_that_are_refused_even_with_notes_are_left_out(
    start: Start, upstream: ScriptedUpstream, dialect: str
) -> None:
    proxy = start()
    turns = Turns(dialect, [call("echo", text="poison"), own(path="a")])
    done = Turns(dialect, [text("Done.")])
    upstream.answer(*turns.answers(streaming=True))
    _, answer = ask(proxy, turns, turns.request(streaming=True))
    request = turns.next_request(answer, streaming=True)

    def refuse(request: Request) -> Answer:
        if len(results(request)) > 1:
            return Answer.json({"type": "error", "error": {"type": "invalid_request_error", "message": "No"}}, 400)
        return done.answers(streaming=True)[0]

    upstream.handler = refuse
    assert [ask(proxy, done, request)[0] for _ in range(3)] == [400, 200, 200]
    assert results(upstream.requests[-1]) == [CLIENTS_RESULT]
