"""GitHub Copilot: its hosts, its three dialects, a user's own token, and models in other vendors' habits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.conftest import RunToExit, StartProxy
from tests.integration.exchanges import Client
from tests.integration.sdks import answer_of, check_answer, events, expected, last_recorded
from tests.integration.turns import CONNECTED, INJECTED, MODES, recorded, results, tool_names
from tests.support import fixtures
from tests.support.client import gateway_client, trust
from tests.support.fixtures import Case
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

# Fixtures name models that their vendor has since deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")

TOKEN = "tid=0123456789abcdef;exp=1767229200;sku=copilot_individual;8kp=1:Zm9vYmFy"
HINT = "tid=...YmFy"
HOSTS = (
    ("api.individual.githubcopilot.com", "copilot"),
    ("api.githubcopilot.com", "copilot"),
    ("api.business.githubcopilot.com", "copilot-business"),
    ("api.enterprise.githubcopilot.com", "copilot-enterprise"),
)
PATHS = {"messages": "/v1/messages", "chat_completions": "/chat/completions", "responses": "/responses"}
HOST = HOSTS[0][0]
EDITOR = [("user-agent", "GitHubCopilotChat/0.37.2026011603"), ("editor-version", "vscode/1.120.0")]


def config(upstream: ScriptedUpstream, more: str = "") -> str:
    names = dict.fromkeys(name for _, name in HOSTS)
    lines = [f"  - {{name: {name}, type: copilot, base_url: '{upstream.url}'}}\n" for name in names]
    return "providers:\n" + "".join(lines) + more


@pytest.fixture
def process(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=config(upstream))


class Sdks:
    """Both vendors' clients, pointed at one of Copilot's hosts through the proxy."""

    def __init__(self, process: RunningProxy, host: str) -> None:
        options: dict[str, Any] = {"proxy": process.proxy_url, "verify": trust(process), "timeout": 10.0}
        without: dict[str, Any] = {"X-Api-Key": anthropic.Omit()}
        self.anthropic = anthropic.Anthropic(
            auth_token=TOKEN,
            base_url=f"https://{host}",
            max_retries=0,
            default_headers=without,
            http_client=anthropic.DefaultHttpxClient(**options),
        )
        self.openai = openai.OpenAI(
            api_key=TOKEN,
            base_url=f"https://{host}",
            max_retries=0,
            http_client=openai.DefaultHttpxClient(**options),
        )

    def __enter__(self) -> Sdks:
        return self

    def __exit__(self, *_: object) -> None:
        self.anthropic.close()
        self.openai.close()

    def ask(self, case: Case) -> dict[str, Any]:
        """The answer as the SDK has parsed it."""
        body = json.loads(case.request)
        body.pop("stream", None)
        headers = {name.decode(): value.decode() for name, value in case.request_headers}
        messages, chat, responses = self.anthropic.messages, self.openai.chat.completions, self.openai.responses
        answer: Any
        if case.dialect == "messages":
            if not case.streaming:
                answer = messages.create(**body, extra_headers=headers)
            else:
                with messages.stream(**body, extra_headers=headers) as stream:
                    answer = stream.get_final_message()
        elif case.dialect == "chat_completions":
            if not case.streaming:
                answer = chat.create(**body, extra_headers=headers)
            else:
                state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
                for chunk in chat.create(**body, stream=True, extra_headers=headers):
                    state.handle_chunk(chunk)
                answer = state.get_final_completion()
        elif not case.streaming:
            answer = responses.create(**body, extra_headers=headers)
        else:
            [*_, last] = responses.create(**body, stream=True, extra_headers=headers)
            answer = last.response
        told: dict[str, Any] = answer.to_dict()
        return told


# --- hosts and dialects -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "name"), HOSTS)
def test_each_host_speaks_three_dialects_with_the_users_own_token(
    process: RunningProxy, upstream: ScriptedUpstream, host: str, name: str
) -> None:
    with Sdks(process, host) as sdks:
        for dialect, path in PATHS.items():
            for mode in ("streaming", "blocking"):
                case = fixtures.case(f"{dialect}/parallel_tools/{mode}")
                upstream.answer(answer_of(case))
                answer = sdks.ask(case)
                assert last_recorded(process) == expected(case), case
                check_answer(case, answer)
                request = upstream.requests[-1]
                assert (request.path, request.values("authorization")) == (path, [f"Bearer {TOKEN}"])
                row = process.rows("aibridge_interceptions")[-1]
                assert (row["provider"], row["provider_name"], row["route"]) == ("copilot", name, path)
                assert (row["credential_kind"], row["credential_hint"]) == ("byok", HINT)
    stored = process.database.read_bytes() + process.database.with_name("aibridge.db-wal").read_bytes()
    assert TOKEN.encode() not in stored and TOKEN not in process.log


def test_as_a_gateway_it_takes_the_users_token_too(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    case = fixtures.case("chat_completions/copilot_vertex/streaming")
    upstream.answer(answer_of(case))
    headers = {"authorization": f"Bearer {TOKEN}"}
    with gateway_client(process, "/copilot-business") as client:
        assert client.post("/chat/completions", content=case.request, headers=headers).content == case.body
    assert last_recorded(process) == expected(case)
    assert upstream.requests[0].body == case.request
    assert upstream.requests[0].values("authorization") == [f"Bearer {TOKEN}"]
    [row] = process.rows("aibridge_interceptions")
    assert (row["provider_name"], row["credential_kind"], row["credential_hint"]) == ("copilot-business", "byok", HINT)


def test_what_copilot_says_to_a_client_without_a_token_is_the_answer(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    refusal = b"unauthorized: AuthenticateToken authentication failed\n"
    upstream.answer(Answer(401, [("content-type", "text/plain; charset=utf-8")], refusal, framing="length"))
    with Client(process, HOST) as client:
        seen = client.post("/chat/completions", fixtures.case("chat_completions/simple/blocking").request)
    assert (seen.status, seen.body) == (401, refusal)
    [row] = process.rows("aibridge_interceptions")
    assert (row["status"], row["http_status"], row["credential_hint"]) == ("failed", 401, "")


def test_a_central_key_for_copilot_does_not_start(run_to_exit: RunToExit) -> None:
    ended = run_to_exit(
        config=f"metrics: {{listen: null}}\nproviders: [{{name: c, type: copilot, api_key: {TOKEN}}}]\n"
    )
    assert ended.code == 1
    assert "providers[0].api_key: found one; allowed: no api_key: Copilot knows each user" in ended.output
    assert TOKEN not in ended.output and "Traceback" not in ended.output


# --- other vendors' habits ----------------------------------------------------------------------------------------


def vertex(n: int, *deltas: dict[str, Any], reason: str, usage: dict[str, Any]) -> list[dict[str, Any]]:
    """One turn of a Claude model behind Copilot, as in the fixture `copilot_vertex`."""
    head = {"created": 1767225600 + n, "id": f"msg_vrtx_{n}", "model": "claude-sonnet-4.5"}
    said = [{"content": None, "role": "assistant"} | delta for delta in deltas]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} | head for delta in said]
    finish = {"finish_reason": reason, "index": 0, "delta": {"content": None, "role": "assistant"}}
    return [*chunks, {"choices": [finish]} | head | {"usage": usage}]


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "completion_tokens": completion,
        "prompt_tokens": prompt,
        "prompt_tokens_details": {"cached_tokens": cached},
        "total_tokens": prompt + completion,
    }


def called(index: int, id_: str, name: str, *arguments: str) -> list[dict[str, Any]]:
    """A call's name and its arguments come in chunks of their own."""
    first = {"function": {"name": name}, "id": id_, "index": index, "type": "function"}
    rest = [{"function": {"arguments": piece}, "index": index, "type": "function"} for piece in ("", *arguments)]
    return [{"tool_calls": [delta]} for delta in (first, *rest)]


def said(text: str, reason: str) -> dict[str, Any]:
    return {"finish_reason": reason, "message": {"content": text, "role": "assistant"}}


def calls(*calls: tuple[str, str, str]) -> dict[str, Any]:
    told = [{"function": {"arguments": a, "name": name}, "id": id_, "type": "function"} for id_, name, a in calls]
    return {"finish_reason": "tool_calls", "message": {"role": "assistant", "content": None, "tool_calls": told}}


def body(n: int, *choices: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
    """Text and calls are choices of their own."""
    numbered = [{"index": index} | choice for index, choice in enumerate(choices)]
    head = {"created": 1767225600 + n, "id": f"msg_vrtx_{n}", "model": "claude-sonnet-4.5"}
    return {"choices": numbered} | head | {"usage": usage}


OURS = ("toolu_vrtx_ours", "bmcp_ours_echo", '{"text": "hi"}')
THEIRS = ("toolu_vrtx_theirs", "read_file", '{"path": "a"}')
FIRST, SECOND = usage(100, 20, 60), usage(140, 7, 100)
REQUEST: dict[str, Any] = {
    "model": "claude-sonnet-4.5",
    "messages": [{"role": "user", "content": "What is there?"}],
    "tools": [{"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}],
}


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def injecting(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> RunningProxy:
    proxy = start_proxy(config=config(upstream, f"mcp: {{servers: {{ours: {{type: http, url: '{ours.url}'}}}}}}\n"))
    proxy.wait_for_log(CONNECTED)
    return proxy


@pytest.fixture
def ask(injecting: RunningProxy, upstream: ScriptedUpstream) -> Ask:
    """Ask over a proxy that injects tools, and return what the client gets, put together by OpenAI's SDK."""
    proxy = injecting

    def ask(*turns: tuple[list[dict[str, Any]], dict[str, Any]], streaming: bool) -> dict[str, Any]:
        for chunks, whole in turns:
            events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
            stream = Answer.event_stream(*events, b"data: [DONE]\n\n")
            upstream.answer(stream if streaming else Answer.json(whole))
        with Sdks(proxy, HOST) as sdks:
            answer: dict[str, Any]
            given: dict[str, Any] = {**REQUEST, "extra_headers": dict(EDITOR)}
            if not streaming:
                answer = sdks.openai.chat.completions.create(**given).to_dict()
            else:
                state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
                for chunk in sdks.openai.chat.completions.create(**given, stream=True):
                    assert chunk.id == "msg_vrtx_0"
                    state.handle_chunk(chunk)
                answer = state.get_final_completion().to_dict()
        assert INJECTED not in json.dumps(answer).encode()
        rows = recorded(proxy)
        row = rows.interception
        assert rows.outcome == ("completed", len(turns), None)
        assert (row["provider"], row["client"], row["credential_hint"]) == ("copilot", "GitHub Copilot (VS Code)", HINT)
        assert {request.header("authorization") for request in upstream.requests} == {f"Bearer {TOKEN}"}
        assert [request.header("editor-version") for request in upstream.requests] == ["vscode/1.120.0"] * len(turns)
        counted = [
            (r["provider_response_id"], r["input_tokens"], r["cache_read_input_tokens"], r["output_tokens"])
            for r in rows.tokens
        ]
        assert counted == [("msg_vrtx_0", 40, 60, 20), ("msg_vrtx_1", 40, 100, 7)][: len(turns)]
        assert [(r["tool"], r["provider_tool_call_id"], r["provider_response_id"]) for r in rows.injected] == [
            ("echo", OURS[0], "msg_vrtx_0")
        ]
        return answer

    return ask


@MODES
@pytest.mark.parametrize("preamble", ["", "I'll look. "])
def test_an_injected_call_at_index_one_is_answered(
    ask: Ask, upstream: ScriptedUpstream, streaming: bool, preamble: str
) -> None:
    spoken = [{"content": preamble}] if preamble else []
    first = vertex(0, *spoken, *called(1, OURS[0], OURS[1], '{"te', 'xt": "hi"}'), reason="tool_calls", usage=FIRST)
    second = vertex(1, {"content": "Done."}, reason="stop", usage=SECOND)
    choices = [said(preamble, "tool_calls")] if preamble else []
    answer = ask(
        (first, body(0, *choices, calls(OURS), usage=FIRST)),
        (second, body(1, said("Done.", "stop"), usage=SECOND)),
        streaming=streaming,
    )
    [choice] = answer["choices"]
    assert (answer["id"], choice["index"], choice["finish_reason"]) == ("msg_vrtx_0", 0, "stop")
    assert choice["message"]["content"] == f"{preamble}Done."
    assert not choice["message"].get("tool_calls")

    follow_up = upstream.requests[1]
    assert results(follow_up) == ["hi"]
    assert {"read_file", "bmcp_ours_echo"} <= set(tool_names(follow_up))
    repeated, result = follow_up.json()["messages"][-2:]
    [call] = repeated["tool_calls"]
    assert (repeated["content"], call["id"], call["function"]["name"]) == (preamble or None, OURS[0], OURS[1])
    assert json.loads(call["function"]["arguments"]) == {"text": "hi"}
    assert (result["role"], result["tool_call_id"]) == ("tool", OURS[0])


@MODES
def test_a_client_call_beside_an_injected_one_is_the_clients_and_both_are_there_in_the_next_request(
    ask: Ask, injecting: RunningProxy, upstream: ScriptedUpstream, streaming: bool
) -> None:
    first = vertex(
        0,
        *called(1, OURS[0], OURS[1], OURS[2]),
        *called(2, THEIRS[0], THEIRS[1], THEIRS[2]),
        reason="tool_calls",
        usage=FIRST,
    )
    answer = ask((first, body(0, calls(OURS, THEIRS), usage=FIRST)), streaming=streaming)
    [choice] = answer["choices"]
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert (call["id"], call["function"]["name"], call["function"]["arguments"]) == THEIRS
    assert len(upstream.requests) == 1

    upstream.answer(Answer.json(body(2, said("Done.", "stop"), usage=SECOND)))
    spoken = {"role": "assistant", "content": None, "tool_calls": [{n: call[n] for n in ("id", "type", "function")}]}
    result = {"role": "tool", "tool_call_id": THEIRS[0], "content": "the client's own"}
    given: dict[str, Any] = REQUEST | {"messages": [*REQUEST["messages"], spoken, result]}
    with Sdks(injecting, HOST) as sdks:
        sdks.openai.chat.completions.create(**given)
    follow_up = upstream.requests[1]
    *_, repeated, _, _ = follow_up.json()["messages"]
    assert [entry["id"] for entry in repeated["tool_calls"]] == [OURS[0], THEIRS[0]]
    assert results(follow_up) == ["hi", "the client's own"]


@pytest.mark.parametrize("mode", ["streaming", "blocking"])
@pytest.mark.parametrize("name", ["copilot_vertex", "parallel_tools_from_index_one"])
def test_an_answer_in_another_vendors_habits_passes_as_it_is_and_is_recorded(
    process: RunningProxy, upstream: ScriptedUpstream, name: str, mode: str
) -> None:
    case = fixtures.case(f"chat_completions/{name}/{mode}")
    sent = Answer.event_stream(*events(case)) if case.streaming else answer_of(case)
    upstream.answer(sent)
    headers = [(n.decode(), v.decode()) for n, v in case.request_headers]
    with Client(process, HOST) as client:
        seen = client.post("/chat/completions", case.request, [*headers, ("authorization", f"Bearer {TOKEN}")])
    assert seen.body == case.body
    assert upstream.requests[0].body == case.request
    assert last_recorded(process) == expected(case)
    row = process.rows("aibridge_interceptions")[-1]
    for column in ("client", "client_session_id"):
        assert row[column] == case.expected.get(column, row[column])
