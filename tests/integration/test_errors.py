"""What a client gets when a request is refused or not answered: JSON in the provider's shape, never HTML."""

from __future__ import annotations

import json

import pytest

from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, wait_for_ended
from tests.support.client import RawHttp1, gateway_client
from tests.support.client_h2 import RawHttp2
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream, unused_port

MESSAGES = (ANTHROPIC, "/v1/messages")
CHAT = (OPENAI, "/v1/chat/completions")
RESPONSES = (OPENAI, "/v1/responses")
BRIDGED = (MESSAGES, CHAT, RESPONSES)
LIMIT = 64 * 1024
MEBIBYTE = 1024 * 1024
QUESTION = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"Hello?"}],"input":"Hello?"}'
ANSWER = {"id": "msg_1", "type": "message", "model": "m", "content": [], "usage": {"input_tokens": 1}}


def config(port: int) -> str:
    return (
        f"limits: {{request_body: {LIMIT}}}\n"
        "providers:\n"
        f"  - {{name: anthropic, type: anthropic, base_url: 'https://localhost:{port}'}}\n"
        f"  - {{name: openai, type: openai, base_url: 'https://localhost:{port}/v1'}}\n"
    )


def message_in_shape(host: str, content_type: str | None, body: bytes) -> str:
    """The error's message, from a body that must have the shape of the host's provider."""
    assert content_type == "application/json"
    error = json.loads(body)
    if host == ANTHROPIC:
        assert error.keys() == {"type", "error"} and error["type"] == "error"
        assert error["error"].keys() == {"type", "message"}
    else:
        assert error.keys() == {"error"}
        assert error["error"].keys() == {"message", "type", "param", "code"}
    message: str = error["error"]["message"]
    assert message and "<" not in message and "localhost" not in message and "mitmproxy" not in message
    return message


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=config(upstream.port))


@pytest.fixture
def proxy_to_nobody(start_proxy: StartProxy) -> RunningProxy:
    return start_proxy(config=config(unused_port()))


# --- a body that is too large


@pytest.mark.parametrize("http2", [False, True])
def test_a_body_above_the_limit_is_refused_with_413(proxy: RunningProxy, http2: bool) -> None:
    for host, path in BRIDGED:
        with Client(proxy, host, http2=http2) as client:
            for _ in range(2):
                refused = client.post(path, b"x" * (LIMIT + 1))
                assert refused.status == 413
                assert str(LIMIT) in message_in_shape(host, refused.content_type, refused.body)
    assert proxy.rows("aibridge_interceptions") == []


def test_a_body_of_exactly_the_limit_passes(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    upstream.answer(Answer.json(ANSWER))
    body = QUESTION.ljust(LIMIT)
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", body).status == 200
    assert upstream.requests[0].body == body


def test_a_length_above_the_limit_is_refused_before_the_body_comes(proxy: RunningProxy) -> None:
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.request("POST", "/v1/messages", {"content-length": str(LIMIT + 1)})
        head = client.read_head()
        assert head.status == 413
        message_in_shape(ANTHROPIC, head.header("content-type"), client.read_body())


def test_a_body_that_is_announced_too_large_is_never_asked_for(proxy: RunningProxy) -> None:
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.request("POST", "/v1/messages", {"expect": "100-continue", "content-length": str(LIMIT + 1)})
        assert client.read_head().status == 413
        message_in_shape(ANTHROPIC, "application/json", client.read_body())


def test_a_body_that_is_announced_small_enough_is_asked_for(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    upstream.answer(Answer.json(ANSWER))
    body = QUESTION
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.request("POST", "/v1/messages", {"expect": "100-continue", "content-length": str(len(body))})
        assert client.read_head().status == 100
        client.send(body)
        assert client.read_head().status == 200
    assert upstream.wait_for_requests(1)[0].body == body


def test_a_stream_without_length_that_outgrows_the_limit_is_refused(
    proxy: RunningProxy, upstream: ScriptedUpstream
) -> None:
    upstream.answer(Answer.json(ANSWER))
    with RawHttp2.through_proxy(proxy, ANTHROPIC, 443) as client:
        stream = client.request("POST", "/v1/messages", body=b"x" * (LIMIT + 1))
        status, headers = client.read_head(stream)
        assert status == 413
        message_in_shape(ANTHROPIC, dict(headers)[b"content-type"].decode(), client.read_body(stream))
        stream = client.request("POST", "/v1/messages", body=QUESTION)
        assert client.read_head(stream)[0] == 200


# --- a request that is no request


@pytest.mark.parametrize("http2", [False, True])
def test_a_body_that_is_not_json_is_refused_with_400(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    for host, path in BRIDGED:
        upstream.answer(Answer.json(ANSWER))
        with Client(proxy, host, http2=http2) as client:
            for body in (b"", b"hello", b'{"model":', b"\xff\xfe", b'{"model":"m"} x'):
                refused = client.post(path, body)
                assert refused.status == 400
                assert "JSON" in message_in_shape(host, refused.content_type, refused.body)
            assert client.post(path, QUESTION).status == 200, "the connection is still usable"
    assert len(upstream.requests) == len(BRIDGED)
    assert len(proxy.rows("aibridge_interceptions")) == len(BRIDGED)


def test_a_gateway_route_that_no_provider_has_is_404(proxy: RunningProxy) -> None:
    with gateway_client(proxy) as client:
        for target in ("/", "/nobody/v1/messages", "/anthropic", "/openai/v2/responses", "/v1/messages"):
            for unknown in (client.post(target, content=QUESTION), client.get(target)):
                assert unknown.status_code == 404
                assert unknown.headers["content-type"] == "application/json"
                assert unknown.json()["error"]["type"] == "not_found_error"
    assert proxy.rows("aibridge_interceptions") == []


def test_a_gateway_refuses_in_the_providers_shape(proxy: RunningProxy) -> None:
    with gateway_client(proxy) as client:
        for path, host in (("/anthropic/v1/messages", ANTHROPIC), ("/openai/v1/chat/completions", OPENAI)):
            refused = client.post(path, content=b"x" * (LIMIT + 1))
            assert refused.status_code == 413
            message_in_shape(host, refused.headers.get("content-type"), refused.content)
            refused = client.post(path, content=b"no JSON")
            assert refused.status_code == 400
            message_in_shape(host, refused.headers.get("content-type"), refused.content)


@pytest.mark.parametrize("field", ["content-length: abc", "content-length: 1\r\ntransfer-encoding: chunked", "a b: c"])
def test_a_malformed_head_is_refused_without_a_traceback(
    proxy: RunningProxy, upstream: ScriptedUpstream, field: str
) -> None:
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.send(f"POST /v1/messages HTTP/1.1\r\nhost: {ANTHROPIC}\r\n{field}\r\n\r\n0\r\n\r\n".encode())
        assert client.read_head().status == 400
    assert upstream.requests == []
    assert proxy.rows("aibridge_interceptions") == []


# --- an upstream that cannot be reached


@pytest.mark.parametrize("http2", [False, True])
def test_an_upstream_that_cannot_be_reached_is_502(proxy_to_nobody: RunningProxy, http2: bool) -> None:
    for host, path in BRIDGED:
        with Client(proxy_to_nobody, host, http2=http2) as client:
            for body in (QUESTION, QUESTION[:-1] + b',"stream":true}'):
                unreached = client.post(path, body)
                assert unreached.status == 502
                message_in_shape(host, unreached.content_type, unreached.body)
            assert client.post(path, b"no JSON").status == 400, "the connection is still usable"
    rows = wait_for_ended(proxy_to_nobody, 6)
    assert [(row["status"], row["error_type"], row["http_status"], row["turns"]) for row in rows] == [
        ("failed", "upstream_unreachable", None, 0)
    ] * 6
    assert all(row["error_message"] for row in rows)
    prompts = proxy_to_nobody.wait_for_rows("aibridge_user_prompts", 6)
    assert [prompt["prompt"] for prompt in prompts] == ["Hello?"] * 6
    assert proxy_to_nobody.rows("aibridge_token_usages") == []


@pytest.mark.parametrize("http2", [False, True])
def test_a_passthrough_route_that_cannot_be_reached_is_502(proxy_to_nobody: RunningProxy, http2: bool) -> None:
    for host in (ANTHROPIC, OPENAI):
        with Client(proxy_to_nobody, host, http2=http2) as client:
            for method, body in (("GET", None), ("GET", None), ("POST", b"x" * 1000), ("GET", None)):
                unreached = client.ask(method, "/v1/models", body=body)
                assert unreached.status == 502
                message_in_shape(host, unreached.content_type, unreached.body)
    assert proxy_to_nobody.rows("aibridge_interceptions") == []


def test_a_gateway_says_in_the_providers_shape_that_nobody_answers(proxy_to_nobody: RunningProxy) -> None:
    with gateway_client(proxy_to_nobody) as client:
        for path, host in (("/anthropic/v1/messages", ANTHROPIC), ("/openai/v1/responses", OPENAI)):
            unreached = client.post(path, content=QUESTION)
            assert unreached.status_code == 502
            message_in_shape(host, unreached.headers.get("content-type"), unreached.content)
    rows = wait_for_ended(proxy_to_nobody, 2)
    assert [row["error_type"] for row in rows] == ["upstream_unreachable"] * 2
