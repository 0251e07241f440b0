"""An Anthropic provider whose Messages requests go to Bedrock: real mitmdump, the vendor's SDK, AWS's own framing.

The scripted upstream checks each request's signature with botocore.
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import anthropic
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.conftest import MakeUpstream, RunToExit, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.turns import INJECTED, Turns, call, recorded, results, text
from tests.support import aws_frames, fixtures
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.script import Answer, Request
from tests.support.upstream import HTTP1, HTTP2, ScriptedUpstream

ACCESS, SECRET = "AKIDEXAMPLE1234567890", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
REGION, MODEL, SMALL = "eu-west-1", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "eu.anthropic.claude-haiku-4-5-v1:0"
BLOCKING, STREAMING = fixtures.case("messages/simple/blocking"), fixtures.case("messages/simple/streaming")
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
MODES = pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])


def configuration(upstream: ScriptedUpstream, path: str = "", keys: bool = True, more: str = "") -> str:
    static = f", access_key: {ACCESS}, secret_key: {SECRET}" if keys else ""
    bedrock = (
        f"{{region: {REGION}, model: '{MODEL}', small_fast_model: '{SMALL}', base_url: '{upstream.url}{path}'{static}}}"
    )
    return f"providers:\n  - {{name: anthropic, type: anthropic, bedrock: {bedrock}}}\n{more}"


def framed(stream: bytes) -> Answer:
    frames = aws_frames.invoke_frames(stream)
    return Answer(200, [("content-type", aws_frames.CONTENT_TYPE), ("x-amzn-requestid", "aws-1")], tuple(frames))


def check_signature(
    request: Request, upstream: ScriptedUpstream, secret: str = SECRET, token: str | None = None
) -> None:
    """The request is signed as botocore itself would sign it."""
    given = {name.decode().lower(): value.decode() for name, value in request.headers}
    scope = given["authorization"].split("Credential=")[1].split(",")[0].split("/")
    assert scope[2:] == [REGION, "bedrock", "aws4_request"]
    signed = given["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    host = urlsplit(upstream.url).netloc
    headers = {name: given.get(name, host) for name in signed if name != "x-amz-security-token"}
    again = AWSRequest("POST", f"{upstream.url}{request.target}", headers=headers, data=request.body)
    again.context["timestamp"] = given["x-amz-date"]
    auth = SigV4Auth(Credentials(scope[0], secret, token), "bedrock", REGION)
    if token is not None:
        again.headers["x-amz-security-token"] = token
    signature = auth.signature(auth.string_to_sign(again, auth.canonical_request(again)), again)
    assert given["authorization"].endswith(f"Signature={signature}")


@pytest.fixture
def upstream(make_upstream: MakeUpstream, request: pytest.FixtureRequest) -> ScriptedUpstream:
    http2 = getattr(request.node, "callspec", None) is not None and request.node.callspec.params.get("http2", False)
    return make_upstream(alpn=[HTTP2 if http2 else HTTP1])


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=configuration(upstream))


@MODES
@VERSIONS
def test_a_request_is_translated_signed_and_its_answer_given_on(
    proxy: RunningProxy, upstream: ScriptedUpstream, streaming: bool, http2: bool
) -> None:
    case = STREAMING if streaming else BLOCKING
    upstream.answer(framed(case.body) if streaming else Answer.json(json.loads(case.body)))
    sent = [("x-api-key", "sk-ant-client-key-123456"), ("anthropic-beta", "effort-2025-11-24,context-1m-2025-08-07")]
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        answer = client.post("/v1/messages?beta=true", case.request, sent)
    assert answer.status == 200 and answer.headers["request-id" if streaming else "content-type"]
    told, expected = answer.body, case.body
    if streaming:
        assert answer.content_type == "text/event-stream; charset=utf-8"
        told, expected = (
            b"".join(data.partition(b"data: ")[2] for data in one.split(b"\n\n")) for one in (told, expected)
        )
    assert told.replace(b" ", b"") == expected.replace(b" ", b"").replace(b"\n", b"")
    [request] = upstream.requests
    action = "invoke-with-response-stream" if streaming else "invoke"
    assert request.target == f"/model/{MODEL.replace(':', '%3A')}/{action}"
    body, asked = request.json(), json.loads(case.request)
    assert body["messages"] == asked["messages"] and body["anthropic_version"] == "bedrock-2023-05-31"
    assert not {"model", "stream"} & body.keys() and body["anthropic_beta"] == ["context-1m-2025-08-07"]
    names = {name.decode().lower() for name, _ in request.headers} - {"host"}
    assert names == {"authorization", "content-type", "content-length", "x-amz-date"}
    check_signature(request, upstream)
    wait_for_ended(proxy, 1)
    rows = recorded(proxy)
    row = rows.interception
    assert (row["provider"], row["model"], row["status"]) == ("anthropic", MODEL, "completed")
    assert (row["credential_kind"], row["credential_hint"]) == ("centralized", "AKID...7890")
    assert (row["upstream_host"], row["billing"]) == (urlsplit(upstream.url).hostname, "api")
    assert len(rows.tokens) == 1 and rows.tokens[0]["completeness"] == "complete"
    assert SECRET not in proxy.log and "sk-ant-client-key" not in proxy.log


def sdk(proxy: RunningProxy) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="sk-ant-none", base_url=f"{proxy.proxy_url}/anthropic", max_retries=0)


@MODES
def test_the_vendors_sdk_reads_it(proxy: RunningProxy, upstream: ScriptedUpstream, streaming: bool) -> None:
    upstream.answer(framed(STREAMING.body) if streaming else Answer.json(json.loads(BLOCKING.body)))
    with sdk(proxy) as client:
        asked = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
        if streaming:
            with client.messages.stream(**asked) as stream:  # type: ignore[arg-type]
                message = stream.get_final_message()
        else:
            message = client.messages.create(**asked)  # type: ignore[call-overload]
    assert message.content and message.usage.output_tokens
    assert upstream.requests[0].target.startswith(f"/model/{SMALL.replace(':', '%3A')}/")


@MODES
@VERSIONS
def test_the_tool_loop_runs_over_bedrock(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, streaming: bool, http2: bool
) -> None:
    more = f"mcp: {{servers: {{ours: {{type: http, url: '{ours.url}'}}}}}}"
    proxy = start_proxy(config=configuration(upstream, more=more))
    proxy.wait_for_log(r"MCP server ours: connected, \d+ tools")
    turns = Turns("messages", [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    answers = [framed(turn.stream) for turn in turns.written] if streaming else turns.answers(streaming=False)
    upstream.answer(*answers)
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        answer = client.post(
            turns.path, turns.request(streaming=streaming), [("anthropic-beta", "context-1m-2025-08-07")]
        )
    assert INJECTED not in answer.body
    turns.check_usage(turns.check(answer.body, streaming=streaming))
    first, second = upstream.requests
    for request in (first, second):
        check_signature(request, upstream)
        assert request.json()["anthropic_beta"] == ["context-1m-2025-08-07"] and "model" not in request.json()
    assert results(second) == ["hi"]
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 2, None) and len(rows.injected) == 1 and len(rows.tokens) == 2


@VERSIONS
def test_an_error_comes_in_anthropics_shape(proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool) -> None:
    upstream.answer(Answer.json({"message": "Too many tokens"}, 429, [("x-amzn-errortype", "ThrottlingException")]))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        answer = client.post("/v1/messages", STREAMING.request)
    assert answer.status == 429 and answer.content_type == "application/json"
    assert json.loads(answer.body)["error"] == {"type": "rate_limit_error", "message": "Too many tokens"}
    assert recorded(proxy).outcome == ("failed", 1, "rate_limit_error")


def test_an_exception_in_the_stream_ends_it_with_an_error_event(
    proxy: RunningProxy, upstream: ScriptedUpstream
) -> None:
    frames = [*aws_frames.invoke_frames(STREAMING.body)][:3]
    broken = aws_frames.exception("throttlingException", {"message": "Slow down"})
    upstream.answer(Answer(200, [("content-type", aws_frames.CONTENT_TYPE)], (*frames, broken)))
    with Client(proxy, ANTHROPIC) as client:
        answer = client.post("/v1/messages", STREAMING.request)
    assert answer.body.count(b"event: error") == 1 and b"rate_limit_error" in answer.body
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", 1, "rate_limit_error")


@VERSIONS
def test_a_corrupt_stream_ends_with_an_error_event(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    first, second, *_ = aws_frames.invoke_frames(STREAMING.body)
    upstream.answer(Answer(200, [("content-type", aws_frames.CONTENT_TYPE)], (first, second[:-1] + b"?", second)))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        answer = client.post("/v1/messages", STREAMING.request)
    assert (
        b"event: message_start" in answer.body
        and answer.body.rstrip().endswith(b"}")
        and b"event: error" in answer.body
    )
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", 1, "corrupt_event_stream")  # as where it is not translated


def test_a_base_url_may_have_a_path_and_credentials_may_come_from_the_environment(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    environment = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": "a-session"}
    proxy = start_proxy(config=configuration(upstream, path="/behind/it", keys=False), env=environment)
    upstream.answer(Answer.json(json.loads(BLOCKING.body)))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", BLOCKING.request).status == 200
    [request] = upstream.requests
    assert request.target.startswith("/behind/it/model/") and request.header("x-amz-security-token") == "a-session"
    check_signature(request, upstream, token="a-session")
    [row] = wait_for_ended(proxy, 1)
    assert (row["credential_kind"], row["credential_hint"]) == ("centralized", "AKID...7890")


def test_a_bearer_token_of_bedrocks_is_used(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=configuration(upstream, keys=False), env={"AWS_BEARER_TOKEN_BEDROCK": "bedrock-token"})
    upstream.answer(Answer.json(json.loads(BLOCKING.body)))
    with Client(proxy, ANTHROPIC) as client:
        client.post("/v1/messages", BLOCKING.request)
    assert upstream.requests[0].header("authorization") == "Bearer bedrock-token"


BEARER, SESSION = "bedrock-api-key-0123456789", "session-token-0123456789"


@pytest.mark.parametrize("bearer", [True, False], ids=["bearer", "session"])
def test_mitmproxys_own_log_and_files_do_not_have_what_authenticates(
    start_proxy: StartProxy, upstream: ScriptedUpstream, bearer: bool
) -> None:
    """And the row has a hint, though the credential was found after the interception had begun."""
    keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SESSION}
    proxy = start_proxy(
        config=configuration(upstream, keys=False),
        env={"AWS_BEARER_TOKEN_BEDROCK": BEARER} if bearer else keys,
        arguments=["--flow-detail", "4", "-w", "flows"],
    )
    upstream.answer(Answer.json(json.loads(BLOCKING.body)))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", BLOCKING.request).status == 200
    [row] = wait_for_ended(proxy, 1)
    assert row["credential_hint"] == ("bedr...6789" if bearer else "AKID...7890")
    proxy.wait_for_log(r"\.\.\.6789")
    proxy.close()
    for secret in (BEARER, SESSION):
        assert secret not in proxy.log
        assert secret.encode() not in (proxy.folder / "flows").read_bytes()


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/messages/batches", "/v1/complete", "/v1/files"])
def test_through_the_proxy_nothing_that_may_hold_a_conversation_goes_to_anthropic(
    proxy: RunningProxy, upstream: ScriptedUpstream, path: str
) -> None:
    with Client(proxy, ANTHROPIC) as client:
        answer = client.post(path, b"{}", [("x-api-key", "sk-ant-client-key-123456")])
    assert (answer.status, json.loads(answer.body)["error"]["type"]) == (404, "not_found_error")
    assert upstream.requests == []


def test_without_credentials_the_client_is_told(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=configuration(upstream, keys=False), env={"AWS_EC2_METADATA_DISABLED": "true"})
    with Client(proxy, ANTHROPIC) as client:
        answer = client.post("/v1/messages", BLOCKING.request)
    assert answer.status == 503 and "no AWS credentials" in json.loads(answer.body)["error"]["message"]
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", 0, "not_translated")


def test_a_request_that_cannot_be_made_ready_goes_to_nobody(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """Least of all to Anthropic, whose address it has until it is signed."""
    no_text = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": b"secret-\xff".decode(errors="surrogateescape")}
    proxy = start_proxy(config=configuration(upstream, keys=False), env=no_text, allow_traceback=True)
    with Client(proxy, ANTHROPIC) as client:
        answer = client.post("/v1/messages", BLOCKING.request)
    assert (answer.status, json.loads(answer.body)["error"]["type"]) == (500, "api_error")
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", 0, "internal_error")
    proxy.wait_for_log("an internal error ends a request")
    assert upstream.requests == [] and "secret-" not in proxy.log and "server connection" not in proxy.log


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/models"])
def test_other_routes_of_a_gateway_go_nowhere(proxy: RunningProxy, upstream: ScriptedUpstream, path: str) -> None:
    with sdk(proxy) as client, pytest.raises(anthropic.NotFoundError):
        client.post(path, cast_to=object, body={})
    assert upstream.requests == []


def test_a_key_beside_it_is_refused(run_to_exit: RunToExit, upstream: ScriptedUpstream) -> None:
    config = configuration(upstream).replace("type: anthropic,", "type: anthropic, api_key: sk-ant-central-1234,")
    ended = run_to_exit(config=config)
    assert ended.code == 1 and "providers[0].api_key" in ended.output and "sk-ant" not in ended.output
