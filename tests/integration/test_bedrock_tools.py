"""Injected tools on Bedrock's own routes: AWS's and Anthropic's own clients, a real MCP server, one merged answer.

The scripted upstream frames its streams with AWS's own code, and the clients check every checksum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anthropic
import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import EventStreamError

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client, Seen, wait_for_ended
from tests.integration.test_bedrock import PATHS as STREAMED
from tests.integration.test_bedrock_sdks import Bedrock
from tests.integration.turns import CONNECTED, PREFIX, PROMPT, READ, Asked, call, own, recorded, text, thought
from tests.support import aws_frames
from tests.support.aws_signing import REGION, signed_headers
from tests.support.bedrock_forms import ALL_CLIENTS, BEDROCK_FORMS, frames
from tests.support.client_view import View
from tests.support.fixtures import BEDROCK_MODEL
from tests.support.mcp_servers import HttpMcp, ToolGate
from tests.support.streams import Block, Style, Turn, Written
from tests.support.upstream import HTTP1, HTTP2, Abort, Answer, Gate, Pause

pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")

TOKEN = "bedrock-api-key-0123456789"
BEARER = [("authorization", f"Bearer {TOKEN}")]
BY_DIALECT = pytest.mark.parametrize("dialect", list(BEDROCK_FORMS))
MODES = pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
BLOCKING = {
    "invoke": f"/model/{BEDROCK_MODEL}/invoke",
    "converse": f"/model/{BEDROCK_MODEL}/converse",
}
ID = "x-amzn-requestid"


@pytest.fixture(autouse=True)
def no_settings_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


class Turns:
    """What the model does in each turn, as Bedrock says it."""

    def __init__(self, dialect: str, *turns: Sequence[Block]) -> None:
        self.dialect = dialect
        self.turns = [Turn(tuple(blocks), 10 + n, 100, 5 + n) for n, blocks in enumerate(turns)]
        style = Style(usage="plain", pieces=1)
        self.written: list[Written] = [
            BEDROCK_FORMS[dialect].write(turn, number, style) for number, turn in enumerate(self.turns)
        ]

    def path(self, streaming: bool) -> str:
        return (STREAMED if streaming else BLOCKING)[self.dialect]

    def answers(self, streaming: bool) -> list[Answer]:
        return [self.answer(number, streaming) for number in range(len(self.turns))]

    def answer(self, number: int, streaming: bool) -> Answer:
        written, turn = self.written[number], self.turns[number]
        head = [(ID, f"request-{number}")]
        if streaming:
            return Answer(200, [("content-type", aws_frames.CONTENT_TYPE), *head], aws_frames.split(written.stream))
        counts = {"input": turn.input_tokens, "output": turn.output_tokens, "cache-read-input": turn.cached_tokens}
        head += [(f"x-amzn-bedrock-{name}-token-count", str(count)) for name, count in counts.items()]
        return Answer.json(written.body, headers=head)

    def request(self, **members: Any) -> dict[str, Any]:
        """A request with one tool of the client's own."""
        if self.dialect == "invoke":
            own = {"name": "Read", "input_schema": READ}
            asked = {"role": "user", "content": PROMPT}
            body = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 900, "tools": [own], "messages": [asked]}
        else:
            spec = {"name": "Read", "description": "Read a file.", "inputSchema": {"json": READ}}
            said = {"role": "user", "content": [{"text": PROMPT}]}
            body = {"toolConfig": {"tools": [{"toolSpec": spec}]}, "messages": [said]}
        return body | members

    def check(self, answer: bytes, streaming: bool) -> View:
        """The answer is one message with all that is visible, and nothing of what is not."""
        assert b"bmcp_" not in answer
        client = ALL_CLIENTS[self.dialect]
        view = client.stream(answer) if streaming else client.body(json.loads(answer))
        assert view.visible == client.expected([self._visible(written) for written in self.written])
        assert view.ends_for_calls == self.turns[-1].has("client")
        first = self.turns[0]
        output = sum(turn.output_tokens for turn in self.turns)
        assert view.usage == (first.input_tokens, first.cached_tokens, output)
        return view

    @staticmethod
    def _visible(written: Written) -> list[dict[str, Any]]:
        def name(block: dict[str, Any]) -> str:
            return str(block.get("name") or block.get("toolUse", {}).get("name", ""))

        return [block for block in written.said if not name(block).startswith(PREFIX)]

    def check_follow_up(self, request: dict[str, Any], number: int) -> None:
        calls = [
            block.get("id") or block["toolUse"]["toolUseId"] for block in self.written[number].said if _is_call(block)
        ]
        ALL_CLIENTS[self.dialect].check_history(request, self.written[number].said, calls)


def _is_call(block: dict[str, Any]) -> bool:
    return block.get("type") == "tool_use" or "toolUse" in block


def results(request: dict[str, Any]) -> list[str]:
    """The texts of the results at the end of a follow-up request."""
    blocks = [block.get("toolResult", block) for block in request["messages"][-1]["content"]]
    return ["".join(part["text"] for part in block["content"]) for block in blocks]


def names(request: dict[str, Any]) -> list[str]:
    tools = request.get("tools") or [tool["toolSpec"] for tool in request["toolConfig"]["tools"]]
    return [tool["name"] for tool in tools]


class Setting(Bedrock):
    def ask(self, turns: Turns, *, streaming: bool, http2: bool = False, **members: Any) -> Seen:
        self.upstream.answer(*turns.answers(streaming))
        return self.post(turns, turns.request(**members), streaming=streaming, http2=http2)

    def post(self, turns: Turns, request: dict[str, Any], *, streaming: bool, http2: bool = False) -> Seen:
        with Client(self.proxy, "localhost", http2=http2) as client:
            return client.post(turns.path(streaming), json.dumps(request).encode(), BEARER)

    def stream(self, turns: Turns) -> Iterator[Any]:
        """The events that boto3 reads."""
        client, request = self.boto3_client(), turns.request()
        if turns.dialect == "converse":
            return iter(client.converse_stream(modelId=BEDROCK_MODEL, **request)["stream"])
        asked = client.invoke_model_with_response_stream(modelId=BEDROCK_MODEL, body=json.dumps(request))
        return iter(asked["body"])

    def boto3_client(self) -> Any:
        """With the bearer token of the environment."""
        return boto3.client(
            "bedrock-runtime",
            region_name=REGION,
            endpoint_url=self.upstream.url,
            verify=str(self.proxy.ca_file),
            config=Config(
                proxies={"https": self.proxy.proxy_url},
                connect_timeout=10,
                read_timeout=10,
                retries={"total_max_attempts": 1},
            ),
        )


Start = Callable[..., Setting]


@pytest.fixture
def start(
    start_proxy: StartProxy, make_upstream: MakeUpstream, ours: HttpMcp, monkeypatch: pytest.MonkeyPatch
) -> Start:
    def start(*, alpn: str = HTTP1, more: str = "", provider: str = "", retries: int = 2) -> Setting:
        upstream = make_upstream(alpn=[alpn])
        address = f"base_url: '{upstream.url}', hosts: [localhost]"
        config = (
            f"{more}\n"
            f"providers:\n  - {{name: bedrock, type: bedrock, {address}{provider}}}\n"
            f"mcp:\n  keepalive_interval: 0.2\n  later_turn_retries: {retries}\n"
            f"  servers: {{ours: {{type: http, url: '{ours.url}'}}}}\n"
        )
        proxy = start_proxy(config=config)
        proxy.wait_for_log(CONNECTED)
        monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", TOKEN)  # boto3's; the proxy has an environment of its own
        return Setting(upstream, proxy)

    return start


# --- one answer out of several turns


@VERSIONS
@MODES
@BY_DIALECT
def test_two_turns_are_one_answer(start: Start, dialect: str, streaming: bool, http2: bool) -> None:
    setting = start(alpn=HTTP2 if http2 else HTTP1)
    turns = Turns(
        dialect, [thought("Hm."), text("Let me see. "), call("echo", text="hi")], [thought("So."), text("Done.")]
    )
    seen = setting.ask(turns, streaming=streaming, http2=http2)
    rows = recorded(setting.proxy)
    turns.check(seen.body, streaming)
    first, second = setting.upstream.requests
    assert {request.header("authorization") for request in (first, second)} == {f"Bearer {TOKEN}"}
    assert first.target == second.target == turns.path(streaming)
    assert {"Read", "bmcp_ours_echo"} <= set(names(first.json())) and names(first.json()) == names(second.json())
    turns.check_follow_up(second.json(), 0)
    assert results(second.json()) == ["hi"]
    assert rows.outcome == ("completed", 2, None)
    assert [row["output_tokens"] for row in rows.tokens] == [5, 6]
    assert {row["completeness"] for row in rows.tokens} == {"complete"}
    [tool] = rows.tools
    assert (tool["tool"], tool["server_name"], tool["injected"], tool["result"]) == ("echo", "ours", 1, "hi")
    assert [row["content"] for row in rows.thoughts] == ["Hm.", "So."]
    assert seen.headers[ID] == "request-0"
    if not streaming:
        assert seen.headers["x-amzn-bedrock-input-token-count"] == "10"
        assert seen.headers["x-amzn-bedrock-output-token-count"] == "11"


@MODES
def test_boto3_reads_the_turns_of_a_conversation_as_one_message(start: Start, streaming: bool) -> None:
    setting = start()
    turns = Turns(
        "converse", [text("One, "), call("echo", text="a")], [text("two, "), call("add", a=1, b=2)], [text("3.")]
    )
    setting.upstream.answer(*turns.answers(streaming))
    client = setting.boto3_client()
    if streaming:
        events = list(client.converse_stream(modelId=BEDROCK_MODEL, **turns.request())["stream"])
        deltas = [event["contentBlockDelta"] for event in events if "contentBlockDelta" in event]
        words = [(delta["contentBlockIndex"], delta["delta"]["text"]) for delta in deltas]
        assert words == [(0, "One, "), (1, "two, "), (2, "3.")]
        assert [next(iter(event)) for event in events].count("messageStart") == 1
        stop, usage = events[-2]["messageStop"]["stopReason"], events[-1]["metadata"]["usage"]
        assert events[-1]["metadata"]["metrics"]["latencyMs"] == 303
    else:
        answer = client.converse(modelId=BEDROCK_MODEL, **turns.request())
        said = [block["text"] for block in answer["output"]["message"]["content"]]
        assert said == ["One, ", "two, ", "3."]
        stop, usage = answer["stopReason"], answer["usage"]
        assert answer["ResponseMetadata"]["RequestId"] == "request-0"
    assert stop == "end_turn"
    assert (usage["inputTokens"], usage["outputTokens"], usage["totalTokens"]) == (10, 18, 28)
    assert [results(request.json()) for request in setting.upstream.requests[1:]] == [["a"], ["3"]]


@MODES
@pytest.mark.parametrize("client", ["anthropic", "boto3"])
def test_clients_read_the_turns_of_an_invocation_as_one_message(start: Start, client: str, streaming: bool) -> None:
    setting = start()
    turns = Turns("invoke", [text("One, "), call("echo", text="a")], [text("two.")])
    setting.upstream.answer(*turns.answers(streaming))
    request = turns.request()
    if client == "boto3":
        ask = setting.boto3_client()
        if streaming:
            stream = ask.invoke_model_with_response_stream(modelId=BEDROCK_MODEL, body=json.dumps(request))["body"]
            events = [json.loads(event["chunk"]["bytes"]) for event in stream]
            assert [event["delta"]["text"] for event in events if "text" in event.get("delta", ())] == ["One, ", "two."]
            assert events[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] == 11
        else:
            answer = json.loads(ask.invoke_model(modelId=BEDROCK_MODEL, body=json.dumps(request))["body"].read())
            assert [block["text"] for block in answer["content"]] == ["One, ", "two."]
        return
    request.pop("anthropic_version")
    with setting.anthropic_client(api_key=TOKEN) as sdk:
        if streaming:
            with sdk.messages.stream(model=BEDROCK_MODEL, **request) as read:
                message = read.get_final_message()
        else:
            message = sdk.messages.create(model=BEDROCK_MODEL, **request)
    assert [block.text for block in message.content if block.type == "text"] == ["One, ", "two."]
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 10, 11)


@MODES
@BY_DIALECT
def test_an_answer_without_a_call_passes_byte_for_byte(start: Start, dialect: str, streaming: bool) -> None:
    setting = start()
    turns = Turns(dialect, [thought("Hm."), text("Done.")])
    seen = setting.ask(turns, streaming=streaming)
    written = turns.written[0]
    assert seen.body == (written.stream if streaming else json.dumps(written.body).encode())
    assert "bmcp_ours_echo" in names(setting.upstream.requests[0].json())


@BY_DIALECT
def test_only_messages_that_change_are_encoded_anew(start: Start, dialect: str) -> None:
    setting = start()
    turns = Turns(dialect, [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    seen = setting.ask(turns, streaming=True)
    came = {frame for written in turns.written for frame in aws_frames.split(written.stream)}
    passed = [frame in came for frame in aws_frames.split(seen.body)]
    assert all(passed[:3])
    # The second turn's block has another number, and the end other counts; `messageStop` is the same.
    assert passed[3:].count(False) == (5 if dialect == "invoke" else 3)


# --- who may get tools


@MODES
@BY_DIALECT
def test_a_central_key_gets_tools_for_a_client_without_credentials(start: Start, dialect: str, streaming: bool) -> None:
    setting = start(provider=", api_key: central-bedrock-key-0123456789, allow_anonymous: true")
    turns = Turns(dialect, [call("echo", text="hi")], [text("Done.")])
    setting.upstream.answer(*turns.answers(streaming))
    with Client(setting.proxy, "localhost") as client:
        seen = client.post(turns.path(streaming), json.dumps(turns.request()).encode())
    turns.check(seen.body, streaming)
    keys = {request.header("authorization") for request in setting.upstream.requests}
    assert keys == {"Bearer central-bedrock-key-0123456789"} and len(setting.upstream.requests) == 2
    row = recorded(setting.proxy).interception
    assert (row["credential_kind"], row["turns"]) == ("centralized", 2)


@MODES
@BY_DIALECT
def test_a_signed_request_is_not_changed_and_its_row_says_why(start: Start, dialect: str, streaming: bool) -> None:
    setting = start(provider=", api_key: central-bedrock-key-0123456789, allow_anonymous: true")
    turns = Turns(dialect, [text("Done.")])
    setting.upstream.answer(*turns.answers(streaming))
    body, path = json.dumps(turns.request()).encode(), turns.path(streaming)
    with Client(setting.proxy, "localhost") as client:
        client.post(path, body, signed_headers(f"https://localhost{path}", body))
    [request] = setting.upstream.requests
    assert request.body == body
    row = recorded(setting.proxy).interception
    assert row["metadata"]["not_injected"] == "aws_signature"


def test_other_vendors_bodies_are_left_alone(start: Start) -> None:
    setting = start()
    body = json.dumps({"prompt": "Hello", "max_gen_len": 9}).encode()
    setting.upstream.answer(Answer.json({"generation": "Hi", "prompt_token_count": 1, "generation_token_count": 1}))
    with Client(setting.proxy, "localhost") as client:
        client.post("/model/meta.llama3-8b-instruct-v1:0/invoke", body, BEARER)
    assert setting.upstream.requests[0].body == body


# --- calls of both, and what goes wrong


@MODES
@BY_DIALECT
def test_a_turn_with_calls_of_both_ends_the_answer_with_the_clients(
    start: Start, dialect: str, streaming: bool
) -> None:
    setting = start()
    turns = Turns(dialect, [text("Both. "), call("echo", text="hi"), own(path="a")])
    view = turns.check(setting.ask(turns, streaming=streaming).body, streaming)
    assert view.ends_for_calls and len(setting.upstream.requests) == 1
    rows = recorded(setting.proxy)
    assert rows.outcome == ("completed", 1, None)
    assert sorted((row["tool"], row["injected"]) for row in rows.tools) == [("Read", 0), ("echo", 1)]


def next_request(turns: Turns, view: View) -> dict[str, Any]:
    """The client's next request: the answer that it got, and the results of its own calls."""
    body = turns.request()
    asked = body["messages"][0]
    if turns.dialect == "invoke":
        ids = [block["id"] for block in view.visible if block["type"] == "tool_use"]
        answers = [{"type": "tool_result", "tool_use_id": id_, "content": "the client's"} for id_ in ids]
    else:
        ids = [block["toolUse"]["toolUseId"] for block in view.visible if "toolUse" in block]
        answers = [{"toolResult": {"toolUseId": id_, "content": [{"text": "the client's"}]}} for id_ in ids]
    said = {"role": "assistant", "content": view.visible}
    thanks = {"type": "text", "text": "Go on."} if turns.dialect == "invoke" else {"text": "Go on."}
    body["messages"] = [asked, said, {"role": "user", "content": answers or [thanks]}]
    return body


@MODES
@BY_DIALECT
def test_the_next_request_has_the_calls_and_results_that_the_client_has_not_seen(
    start: Start, dialect: str, streaming: bool
) -> None:
    setting = start()
    turns = Turns(dialect, [text("Both. "), call("echo", text="hi"), own(path="a")])
    view = turns.check(setting.ask(turns, streaming=streaming).body, streaming)
    done = Turns(dialect, [text("Done.")])
    setting.upstream.answer(done.answer(0, streaming))
    setting.post(done, next_request(turns, view), streaming=streaming)
    spoken, answer = setting.upstream.requests[-1].json()["messages"][-2:]
    assert spoken == {"role": "assistant", "content": turns.written[0].said}
    ids = [block.get("tool_use_id") or block["toolResult"]["toolUseId"] for block in answer["content"]]
    assert ids == [
        block.get("id") or block["toolUse"]["toolUseId"] for block in turns.written[0].said if _is_call(block)
    ]
    first, second = setting.proxy.rows("aibridge_interceptions")
    assert second["thread_parent_id"] == first["id"]


@MODES
@BY_DIALECT
def test_the_next_request_has_a_hidden_turn_behind_its_thinking(start: Start, dialect: str, streaming: bool) -> None:
    setting = start()
    turns = Turns(dialect, [thought("Hm."), call("echo", text="hi")], [thought("So."), text("Done.")])
    view = turns.check(setting.ask(turns, streaming=streaming).body, streaming)
    done = Turns(dialect, [text("Bye.")])
    setting.upstream.answer(done.answer(0, streaming))
    setting.post(done, next_request(turns, view), streaming=streaming)
    _, hidden, result, last, _ = setting.upstream.requests[-1].json()["messages"]
    assert hidden == {"role": "assistant", "content": turns.written[0].said}
    assert results({"messages": [result]}) == ["hi"]
    assert last == {"role": "assistant", "content": turns.written[1].said}


@BY_DIALECT
def test_clients_get_keep_alives_that_they_skip_while_a_tool_runs(start: Start, dialect: str) -> None:
    setting = start()
    with ToolGate() as gate:
        turns = Turns(dialect, [text("Wait. "), call("slow", port=gate.port)], [text("Done.")])
        setting.upstream.answer(*turns.answers(True))
        events = setting.stream(turns)
        first = next(events)
        gate.wait_reached()
        gate.open()
        seen = [first, *events]
    assert all(len(event) == 1 for event in seen)
    assert recorded(setting.proxy).outcome == ("completed", 2, None)


@BY_DIALECT
def test_a_keep_alive_is_a_whole_message(start: Start, dialect: str) -> None:
    setting = start()
    with ToolGate() as gate, Client(setting.proxy, "localhost") as client:
        turns = Turns(dialect, [call("slow", port=gate.port)], [text("Done.")])
        setting.upstream.answer(*turns.answers(True))
        asked = Asked(client, turns.path(True), json.dumps(turns.request()).encode())
        assert asked.status() == 200
        gate.wait_reached()
        heard = asked.until(b"ping")
        gate.open()
        heard += asked.rest()
    assert "ping" in [frame.kind for frame in frames(heard)]
    turns.check(heard, True)


@BY_DIALECT
def test_an_error_of_a_later_turn_is_an_exception_in_the_stream(start: Start, dialect: str) -> None:
    setting = start(retries=0)
    turns = Turns(dialect, [text("Wait. "), call("echo", text="hi")])
    refusal = Answer.json({"message": "Too many tokens"}, 429, [("x-amzn-errortype", "ThrottlingException")])
    setting.upstream.answer(turns.answer(0, True), refusal)
    events = setting.stream(turns)
    with pytest.raises(EventStreamError, match="Too many tokens"):
        list(events)
    [row] = wait_for_ended(setting.proxy, 1)
    assert (row["status"], row["turns"], row["error_type"]) == ("failed", 2, "ThrottlingException")


@BY_DIALECT
def test_a_later_turn_that_breaks_off_is_an_exception_in_the_stream(start: Start, dialect: str) -> None:
    setting = start(retries=0)
    turns = Turns(dialect, [text("Wait. "), call("echo", text="hi")], [text("Done.")])
    gate = Gate()
    gate.open()
    head = [("content-type", aws_frames.CONTENT_TYPE)]
    some = aws_frames.split(turns.written[1].stream)[:2]
    setting.upstream.answer(turns.answer(0, True), Answer(200, head, [*some, Pause(gate), Abort()]))
    seen = setting.post(turns, turns.request(), streaming=True)
    *_, last = frames(seen.body)
    assert last.is_exception and b"bmcp_" not in seen.body
    assert wait_for_ended(setting.proxy, 1)[0]["status"] == "failed"


# --- answers in the other form


@BY_DIALECT
def test_a_stream_that_comes_as_bodies_is_a_stream_all_the_same(start: Start, dialect: str) -> None:
    setting = start()
    turns = Turns(dialect, [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    setting.upstream.answer(*turns.answers(False))
    seen = setting.post(turns, turns.request(), streaming=True)
    assert seen.content_type == aws_frames.CONTENT_TYPE
    turns.check(seen.body, True)


@BY_DIALECT
def test_bodies_that_come_as_streams_are_a_body_all_the_same(start: Start, dialect: str) -> None:
    setting = start()
    turns = Turns(dialect, [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    setting.upstream.answer(*turns.answers(True))
    seen = setting.post(turns, turns.request(), streaming=False)
    assert seen.content_type == "application/json"
    turns.check(seen.body, False)


@BY_DIALECT
@pytest.mark.parametrize("label", ["application/octet-stream", "application/json", "text/event-stream"])
def test_a_mislabelled_stream_is_read_by_its_first_bytes(start: Start, dialect: str, label: str) -> None:
    setting = start()
    turns = Turns(dialect, [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    streams = [Answer(200, [("content-type", label)], aws_frames.split(w.stream)) for w in turns.written]
    setting.upstream.answer(*streams)
    turns.check(setting.post(turns, turns.request(), streaming=True).body, True)


@BY_DIALECT
def test_a_message_that_is_too_large_to_be_read_ends_the_answer_with_an_exception(start: Start, dialect: str) -> None:
    """Without it, the client would get an answer with a part missing."""
    setting = start(more="limits: {sse_event: 4096}")
    turns = Turns(dialect, [text("a" * 9000), text("b")])
    seen = setting.ask(turns, streaming=True)
    *_, last = frames(seen.body)
    assert last.is_exception
    assert wait_for_ended(setting.proxy, 1)[0]["status"] == "failed"


@BY_DIALECT
def test_a_corrupt_stream_ends_with_an_exception(start: Start, dialect: str) -> None:
    setting = start()
    turns = Turns(dialect, [text("a"), call("echo", text="hi")])
    first, second, *rest = aws_frames.split(turns.written[0].stream)
    pieces = [first, second[:-1] + bytes([second[-1] ^ 1]), *rest]
    setting.upstream.answer(Answer(200, [("content-type", aws_frames.CONTENT_TYPE)], pieces))
    *_, last = frames(setting.post(turns, turns.request(), streaming=True).body)
    assert last.is_exception


def test_anthropics_client_sees_an_error_of_a_later_turn(start: Start) -> None:
    setting = start(retries=0)
    turns = Turns("invoke", [text("Wait. "), call("echo", text="hi")])
    refusal = Answer.json({"message": "Too many tokens"}, 429, [("x-amzn-errortype", "ThrottlingException")])
    setting.upstream.answer(turns.answer(0, True), refusal)
    request = turns.request()
    request.pop("anthropic_version")
    with (
        setting.anthropic_client(api_key=TOKEN) as sdk,
        pytest.raises((anthropic.APIError, ValueError), match="Too many tokens"),
        sdk.messages.stream(model=BEDROCK_MODEL, **request) as read,
    ):
        read.get_final_message()


@pytest.mark.parametrize("model", ["us.amazon.nova-pro-v1:0", BEDROCK_MODEL])
def test_a_refused_tool_is_remembered_in_the_form_in_which_the_model_got_it(start: Start, model: str) -> None:
    setting, turns = start(), Turns("converse", [text("Hi.")])
    refused = Answer.json({"message": "Malformed input request: #/toolConfig/tools/1: bmcp_ours_echo is invalid"}, 400)
    setting.upstream.answer(refused, *turns.answers(False) * 3)
    with Client(setting.proxy, "localhost") as client:
        for _ in range(3):
            assert client.post(f"/model/{model}/converse", json.dumps(turns.request()).encode(), BEARER).status == 200
    asked = ["bmcp_ours_echo" in names(request.json()) for request in setting.upstream.requests]
    assert asked == [True, False, False, False]
