"""AWS's and Anthropic's own Python clients at Bedrock, through the proxy: signatures hold, answers and rows are exact.

The scripted upstream frames its streams with AWS's own code, and checks signatures with botocore's. Rows are read
without waiting: they are committed before the client sees the answer's end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anthropic
import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.stage import interceptions
from tests.support import aws_frames, fixtures
from tests.support.aws_signing import ACCESS_KEY, HINT, REGION, SECRET_KEY, SESSION_TOKEN, is_validly_signed
from tests.support.client import trust
from tests.support.fixtures import BEDROCK_MODEL, Case
from tests.support.running import RunningProxy
from tests.support.script import Abort, Gate, Pause
from tests.support.upstream import HTTP1, HTTP2, Answer, ScriptedUpstream

# Fixtures name models that their vendor has since deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")

NAMES = ("simple", "thinking", "parallel_tools", "cached_tokens")
MODES = ("streaming", "blocking")
CONVERSED = [fixtures.case(f"converse/{name}/{mode}") for name in NAMES for mode in MODES]
INVOKED = [fixtures.case(f"invoke/{name}/{mode}") for name in NAMES for mode in MODES]
SIMPLE_STREAM = fixtures.case("invoke/simple/streaming")
TIMEOUT = 10.0
ROUTES = {
    ("invoke", False): "invoke",
    ("invoke", True): "invoke-with-response-stream",
    ("converse", False): "converse",
    ("converse", True): "converse-stream",
}


@pytest.fixture(autouse=True)
def no_settings_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients look at the environment, and at the user's files."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


class Bedrock:
    """The proxy before an upstream that both take for Bedrock: the client's host stays, or no signature would hold."""

    def __init__(self, upstream: ScriptedUpstream, proxy: RunningProxy) -> None:
        self.upstream = upstream
        self.proxy = proxy

    def boto3_client(self) -> Any:
        return boto3.client(
            "bedrock-runtime",
            region_name=REGION,
            endpoint_url=self.upstream.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            aws_session_token=SESSION_TOKEN,
            verify=str(self.proxy.ca_file),
            config=Config(
                proxies={"https": self.proxy.proxy_url},
                connect_timeout=TIMEOUT,
                read_timeout=TIMEOUT,
                retries={"total_max_attempts": 1},
            ),
        )

    def anthropic_client(self, *, http2: bool = False, **credentials: str) -> anthropic.AnthropicBedrock:
        return anthropic.AnthropicBedrock(
            aws_region=REGION,
            base_url=self.upstream.url,
            max_retries=0,
            http_client=self._http_client(http2),
            **(credentials or self._signing()),  # type: ignore[arg-type]
        )

    def mantle_client(self) -> anthropic.AnthropicBedrockMantle:
        return anthropic.AnthropicBedrockMantle(
            aws_region=REGION,
            base_url=f"{self.upstream.url}/anthropic",
            max_retries=0,
            http_client=self._http_client(http2=False),
            **self._signing(),  # type: ignore[arg-type]
        )

    def _signing(self) -> dict[str, str]:
        return {
            "aws_access_key": ACCESS_KEY,
            "aws_secret_key": SECRET_KEY,
            "aws_session_token": SESSION_TOKEN,
        }

    def _http_client(self, http2: bool) -> anthropic.DefaultHttpxClient:
        options: dict[str, Any] = {"timeout": TIMEOUT, "http2": http2}
        return anthropic.DefaultHttpxClient(proxy=self.proxy.proxy_url, verify=trust(self.proxy), **options)


Start = Callable[..., Bedrock]


@pytest.fixture
def start(start_proxy: StartProxy, make_upstream: MakeUpstream) -> Start:
    def start(more: str = "", *, alpn: str = HTTP1) -> Bedrock:
        config = f"{more}\nproviders:\n  - {{name: bedrock, type: bedrock, hosts: [localhost]}}\n"
        return Bedrock(make_upstream(alpn=[alpn]), start_proxy(config=config))

    return start


@pytest.fixture
def bedrock(start: Start) -> Bedrock:
    return start()


def answer_of(case: Case) -> Answer:
    """The case's answer; of a stream, every message is a piece of its own."""
    headers = [("content-type", case.content_type), ("x-amzn-requestid", "request-1"), *case.answer_headers.items()]
    return Answer(case.status, list(dict(headers).items()), case.body)


def check_row(bedrock: Bedrock, case: Case, *, hint: str = HINT) -> None:
    """The newest interception and all that hangs on it are what the fixture says, at this moment."""
    row = interceptions(bedrock.proxy)[-1]
    expected = {"prompt": None, "tokens": [], "tools": [], "thoughts": [], **case.expected}
    ids = {expected.pop("response_id")}
    assert {name: row[name] for name in expected} == expected
    assert row["response_ids"] == ids
    assert (row["provider"], row["provider_name"], row["credential_kind"]) == ("bedrock", "bedrock", "byok")
    assert row["credential_hint"] == hint
    assert row["streaming"] == case.streaming
    assert row["route"] == f"/model/{{id}}/{ROUTES[case.dialect, case.streaming]}"
    assert {child["model"] for child in bedrock.proxy.rows("aibridge_token_usages")} == {BEDROCK_MODEL}


# --- boto3


def converse(client: Any, case: Case) -> dict[str, Any]:
    """What boto3 makes of the answer: text, tool calls and usage."""
    body = json.loads(case.request)
    if not case.streaming:
        answer = client.converse(modelId=BEDROCK_MODEL, **body)
        blocks = answer["output"]["message"]["content"]
        calls = [block["toolUse"] for block in blocks if "toolUse" in block]
        return {
            "text": "".join(block.get("text", "") for block in blocks),
            "calls": [(call["toolUseId"], call["name"], call["input"]) for call in calls],
            "usage": answer["usage"],
        }
    started: dict[int, dict[str, str]] = {}
    inputs: dict[int, str] = {}
    text = ""
    usage: dict[str, Any] = {}
    for event in client.converse_stream(modelId=BEDROCK_MODEL, **body)["stream"]:
        if tool := event.get("contentBlockStart", {}).get("start", {}).get("toolUse"):
            started[event["contentBlockStart"]["contentBlockIndex"]] = tool
        if block := event.get("contentBlockDelta"):
            text += block["delta"].get("text", "")
            index = block["contentBlockIndex"]
            inputs[index] = inputs.get(index, "") + block["delta"].get("toolUse", {}).get("input", "")
        usage = event.get("metadata", {}).get("usage", usage)
    calls = [(call["toolUseId"], call["name"], json.loads(inputs[at])) for at, call in started.items()]
    return {"text": text, "calls": calls, "usage": usage}


@pytest.mark.parametrize("case", CONVERSED, ids=str)
def test_boto3_converses(bedrock: Bedrock, case: Case) -> None:
    bedrock.upstream.answer(answer_of(case))
    seen = converse(bedrock.boto3_client(), case)
    check_row(bedrock, case)
    [request] = bedrock.upstream.requests
    assert is_validly_signed(request)
    assert "%3A" in request.target
    assert seen["text"] or seen["calls"]
    calls = [(tool["provider_tool_call_id"], tool["tool"], tool["input"]) for tool in case.expected.get("tools", ())]
    assert seen["calls"] == calls
    assert seen["usage"]["outputTokens"] == case.expected["tokens"][0]["output_tokens"]


@pytest.mark.parametrize("case", INVOKED, ids=str)
def test_boto3_invokes(bedrock: Bedrock, case: Case) -> None:
    bedrock.upstream.answer(answer_of(case))
    if case.streaming:
        answer = bedrock.boto3_client().invoke_model_with_response_stream(modelId=BEDROCK_MODEL, body=case.request)
        seen = [event["chunk"]["bytes"] for event in answer["body"]]
        assert seen == [aws_frames.read(frame).inner for frame in aws_frames.split(case.body)]
    else:
        assert bedrock.boto3_client().invoke_model(modelId=BEDROCK_MODEL, body=case.request)["body"].read() == case.body
    check_row(bedrock, case)
    [request] = bedrock.upstream.requests
    assert is_validly_signed(request)
    assert request.body == case.request


# --- anthropic[bedrock]


def invoke(client: anthropic.AnthropicBedrock, case: Case) -> dict[str, Any]:
    body = {"model": BEDROCK_MODEL, **json.loads(case.request)}
    body.pop("anthropic_version")
    if not case.streaming:
        return dict(client.messages.create(**body).to_dict())
    with client.messages.stream(**body) as stream:
        return dict(stream.get_final_message().to_dict())


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
@pytest.mark.parametrize("case", INVOKED, ids=str)
def test_anthropics_client_invokes(start: Start, case: Case, http2: bool) -> None:
    bedrock = start(alpn=HTTP2 if http2 else HTTP1)
    bedrock.upstream.answer(answer_of(case))
    with bedrock.anthropic_client(http2=http2) as client:
        seen = invoke(client, case)
        check_row(bedrock, case)
    [request] = bedrock.upstream.requests
    assert request.http_version == ("2" if http2 else "1.1")
    assert is_validly_signed(request)
    assert f"/model/{BEDROCK_MODEL}/" in request.target
    assert seen["id"] == case.expected["response_id"]
    calls = [(block["id"], block["name"], block["input"]) for block in seen["content"] if block["type"] == "tool_use"]
    assert calls == [
        (tool["provider_tool_call_id"], tool["tool"], tool["input"])
        for tool in case.expected.get("tools", ())
        if not tool.get("server_side")
    ]


def test_a_bearer_token_is_recorded_by_its_hint(bedrock: Bedrock) -> None:
    bedrock.upstream.answer(answer_of(SIMPLE_STREAM))
    with bedrock.anthropic_client(api_key="bedrock-api-key-0123456789") as client:
        invoke(client, SIMPLE_STREAM)
    check_row(bedrock, SIMPLE_STREAM, hint="bedr...6789")
    [request] = bedrock.upstream.requests
    assert request.header("authorization") == "Bearer bedrock-api-key-0123456789"


@pytest.mark.parametrize("mode", MODES)
def test_anthropics_client_at_mantle_is_recorded_like_the_original(bedrock: Bedrock, mode: str) -> None:
    case = fixtures.case(f"messages/thinking/{mode}")
    bedrock.upstream.answer(answer_of(case))
    body = json.loads(case.request)
    body.pop("stream", None)
    with bedrock.mantle_client() as client:
        if case.streaming:
            with client.messages.stream(**body) as stream:
                seen = stream.get_final_message()
        else:
            seen = client.messages.create(**body)
        row = interceptions(bedrock.proxy)[-1]
    assert seen.id == case.expected["response_id"]
    assert {name: row[name] for name in ("tokens", "thoughts", "prompt", "status", "model")} == {
        name: case.expected[name] for name in ("tokens", "thoughts", "prompt", "status", "model")
    }
    assert (row["provider"], row["route"], row["credential_hint"]) == ("bedrock", "/anthropic/v1/messages", HINT)
    [request] = bedrock.upstream.requests
    assert is_validly_signed(request)


# --- what they see when something is wrong


def test_both_clients_see_an_exception_of_ours_where_the_upstream_breaks_off(bedrock: Bedrock) -> None:
    first = aws_frames.split(SIMPLE_STREAM.body)[0]
    headers = [("content-type", aws_frames.CONTENT_TYPE)]

    def cut() -> Gate:
        gate = Gate()
        bedrock.upstream.answer(Answer(200, headers, [first, Pause(gate), Abort()]))
        return gate

    gate = cut()
    body = bedrock.boto3_client().invoke_model_with_response_stream(modelId=BEDROCK_MODEL, body=SIMPLE_STREAM.request)[
        "body"
    ]
    events = iter(body)
    assert "chunk" in next(events)
    gate.open()
    with pytest.raises(EventStreamError, match=r"internalServerException.*broke off"):
        next(events)
    with bedrock.anthropic_client() as client:
        gate = cut()
        request = {**json.loads(SIMPLE_STREAM.request), "model": BEDROCK_MODEL}
        request.pop("anthropic_version")
        with client.messages.create(**request, stream=True) as stream:
            messages = iter(stream)
            assert next(messages).type == "message_start"
            gate.open()
            with pytest.raises(anthropic.APIStatusError, match="broke off"):
                next(messages)
    bedrock.proxy.wait_for_rows("aibridge_token_usages", 2)
    rows = interceptions(bedrock.proxy)
    assert [(row["status"], row["error_type"]) for row in rows] == [("failed", "upstream_disconnected")] * 2
    assert {row["tokens"][0]["completeness"] for row in rows} == {"partial"}


def test_a_refusal_of_ours_is_an_error_that_both_clients_understand(start: Start) -> None:
    bedrock = start("limits: {request_body: 200}")
    large = json.dumps({"max_tokens": 9, "messages": [{"role": "user", "content": "x" * 400}]})
    with pytest.raises(ClientError) as refused:
        bedrock.boto3_client().invoke_model(modelId=BEDROCK_MODEL, body=large)
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    assert "larger than 200 bytes" in refused.value.response["Error"]["Message"]
    with (
        bedrock.anthropic_client() as client,
        pytest.raises(anthropic.APIStatusError, match="larger than 200 bytes") as error,
    ):
        client.messages.create(model=BEDROCK_MODEL, **json.loads(large))
    assert error.value.status_code == 413
    with pytest.raises(ClientError, match=r"ValidationException.*not JSON"):
        bedrock.boto3_client().invoke_model(modelId=BEDROCK_MODEL, body=b"{")
    assert not bedrock.upstream.requests


def test_bedrocks_own_error_reaches_the_client_and_the_row(bedrock: Bedrock) -> None:
    case = fixtures.case("converse/error_before_429/blocking")
    bedrock.upstream.answer(answer_of(case))
    with pytest.raises(ClientError) as refused:
        converse(bedrock.boto3_client(), case)
    assert refused.value.response["Error"]["Code"] == "ThrottlingException"
    assert refused.value.response["Error"]["Message"].startswith("Too many requests")
    [row] = interceptions(bedrock.proxy)
    assert (row["status"], row["error_type"], row["http_status"]) == ("failed", "ThrottlingException", 429)
