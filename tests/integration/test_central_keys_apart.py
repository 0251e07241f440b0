"""What one client sends, or asks for, does not cost the other clients the central keys or a provider."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, wait_for_ended
from tests.support import fixtures
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, Answer, ScriptedUpstream

FIRST, SECOND = "sk-first-00000000000000001", "sk-second-0000000000000002"
CHAT = fixtures.case("chat_completions/simple/blocking")
PATH = "/v1/chat/completions"

Start = Callable[..., RunningProxy]


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP1])


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream) -> Start:
    def start(more: str = f"api_key: [{FIRST}, {SECOND}]") -> RunningProxy:
        return start_proxy(
            config=f"providers:\n  - {{name: openai, type: openai, base_url: '{upstream.url}/v1', {more}}}\n"
        )

    return start


def question(model: str) -> bytes:
    return json.dumps(json.loads(CHAT.request) | {"model": model}).encode()


def good() -> Answer:
    return Answer(200, [("content-type", "application/json")], CHAT.body, framing="length")


def refused(status: int, code: str, message: str = "No") -> Answer:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return Answer.json({"error": error}, status)


def keys_seen(upstream: ScriptedUpstream) -> list[str]:
    return [(request.header("authorization") or "").removeprefix("Bearer ") for request in upstream.requests]


DROPPED = {
    "OpenAI-Organization": "org-not-ours",
    "OpenAI-Project": "proj-not-ours",
    "X-HTTP-Method-Override": "DELETE",
    "X-HTTP-Method": "DELETE",
    "X-Method-Override": "DELETE",
    "X-Original-URL": "/v1/organization/admin_api_keys",
    "X-Rewrite-URL": "/v1/organization/admin_api_keys",
    "Cookie": "session=other",
    "X-Goog-Api-Key": "AIzaSyOWN0000000000000000000000000000000",
    "X-Goog-User-Project": "project-of-others",
    "Ocp-Apim-Subscription-Key": "0123456789abcdef0123456789abcdef",
    "X-Named": "1",
    "Connection": "keep-alive, x-named, Authorization, content-length",
}


def test_headers_that_name_another_account_or_request_do_not_go_with_a_central_key(
    start: Start, upstream: ScriptedUpstream
) -> None:
    proxy = start()
    upstream.answer(good())
    with Client(proxy, OPENAI) as client:
        assert client.post(PATH, CHAT.request, [*DROPPED.items(), ("X-Kept", "1")]).status == 200
    [request] = upstream.requests
    for name in DROPPED:
        assert request.header(name.lower()) in (None, "keep-alive"), name
    assert (request.header("x-kept"), request.body) == ("1", CHAT.request)
    assert keys_seen(upstream) == [FIRST]


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("?key=AIza0000&alt=sse", "?alt=sse"),
        ("?alt=sse&%6bey=AIza0000", "?alt=sse"),
        ("?API_KEY=x", ""),
        ("?subscription-key=x&access_token=y&a=%20+&b", "?a=%20+&b"),
        ("?monkey=1&a=key", "?monkey=1&a=key"),
        ("?", "?"),
    ],
)
def test_a_credential_in_a_query_does_not_go_with_a_central_key(
    start: Start, upstream: ScriptedUpstream, query: str, sent: str
) -> None:
    proxy = start()
    upstream.answer(good())
    with Client(proxy, OPENAI) as client:
        assert client.post(PATH + query, CHAT.request).status == 200
    assert [request.target for request in upstream.requests] == [PATH + sent]


def test_headers_of_a_client_with_its_own_key_are_left_alone(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start()
    upstream.answer(good())
    own = {"OpenAI-Organization": "org-own", "Cookie": "a=b", "Authorization": "Bearer sk-own-000000000000000"}
    with Client(proxy, OPENAI) as client:
        assert client.post(PATH, CHAT.request, list(own.items())).status == 200
    [request] = upstream.requests
    assert (request.header("openai-organization"), request.header("cookie")) == ("org-own", "a=b")


def test_a_rate_limit_rests_a_key_for_its_model_only(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start()
    upstream.answer(refused(429, "rate_limit_exceeded"), refused(429, "rate_limit_exceeded"), good())
    with Client(proxy, OPENAI) as client:
        assert client.post(PATH, question("large")).status == 429
        assert client.post(PATH, question("small")).status == 200
        assert client.post(PATH, question("large")).status == 429
    assert keys_seen(upstream) == [FIRST, SECOND, FIRST]


NO_SCOPE = "You have insufficient permissions for this operation. Missing scopes: api.model.read."
AT_THEIR_ROUTE = [
    (429, "rate_limit_exceeded", "Rate limit reached"),
    (401, "", NO_SCOPE),
    (401, "invalid_api_key", "No"),
]


@pytest.mark.parametrize(("status", "code", "message"), AT_THEIR_ROUTE)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/x"),
        ("GET", "/v1/conversations/c"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/input_tokens"),
    ],
)
def test_a_refusal_at_a_route_that_asks_no_model_rests_keys_for_this_route(
    start: Start, upstream: ScriptedUpstream, method: str, path: str, status: int, code: str, message: str
) -> None:
    proxy = start()
    upstream.answer(*[refused(status, code, message)] * 2, good())
    with Client(proxy, OPENAI) as client:
        for _ in range(2):
            seen = client.post(path, CHAT.request) if method == "POST" else client.ask(method, path)
            assert seen.status != 200
        assert client.post(PATH, CHAT.request).status == 200
    assert keys_seen(upstream) == [FIRST, SECOND, FIRST], "both rest there, and nowhere else"


def test_a_route_that_a_key_has_no_right_to_does_not_rest_it_for_others(
    start: Start, upstream: ScriptedUpstream
) -> None:
    proxy = start()
    upstream.answer(*[refused(401, "", "Missing scopes: model.request.")] * 2, good())
    with Client(proxy, OPENAI) as client:
        assert client.post("/v1/responses", b'{"model": "large", "input": "hello"}').status == 502
        assert client.post(PATH, question("large")).status == 200
    assert keys_seen(upstream) == [FIRST, SECOND, FIRST]


def test_a_limit_of_counting_tokens_does_not_rest_keys_for_messages(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(
        config=f"providers:\n  - {{name: anthropic, type: anthropic, base_url: '{upstream.url}',"
        f" api_key: [{FIRST}, {SECOND}]}}\n"
    )
    messages = fixtures.case("messages/simple/blocking")
    limited = Answer.json({"type": "error", "error": {"type": "rate_limit_error", "message": "count_tokens"}}, 429)
    upstream.answer(limited, limited, Answer.json(json.loads(messages.body)))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages/count_tokens", messages.request).status == 429
        assert client.post("/v1/messages", messages.request).status == 200
    assert [request.header("x-api-key") for request in upstream.requests] == [FIRST, SECOND, FIRST]


@pytest.mark.parametrize(("status", "code"), [(429, "insufficient_quota"), (401, "invalid_api_key"), (401, "")])
def test_a_key_whose_account_is_refused_rests_for_all_models(
    start: Start, upstream: ScriptedUpstream, status: int, code: str
) -> None:
    proxy = start()
    upstream.answer(refused(status, code), good(), good())
    with Client(proxy, OPENAI) as client:
        assert client.post(PATH, question("large")).status == 200
        assert client.post(PATH, question("small")).status == 200
    assert keys_seen(upstream) == [FIRST, SECOND, SECOND]


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "mismatched_organization", "OpenAI-Organization header should match organization for API key"),
        (401, "mismatched_project", "No"),
        (
            429,
            "rate_limit_exceeded",
            "Request too large for gpt-5.5 on tokens per min (TPM): Limit 30000",
        ),
    ],
)
def test_a_request_that_no_key_would_help_rests_none(
    start: Start, upstream: ScriptedUpstream, status: int, code: str, message: str
) -> None:
    proxy = start()
    upstream.answer(refused(status, code, message), good())
    with Client(proxy, OPENAI) as client:
        seen = client.post(PATH, CHAT.request)
        assert (seen.status, json.loads(seen.body)["error"]["message"]) == (status, message)
        assert client.post(PATH, CHAT.request).status == 200
    assert keys_seen(upstream) == [FIRST, FIRST]
    first, second = sorted(wait_for_ended(proxy, 2), key=lambda row: row["started_at"])
    assert (first["error_type"], first["status"], second["status"]) == ("request_refused", "failed", "completed")


def test_names_without_an_address_open_no_breaker(start_proxy: StartProxy) -> None:
    proxy = start_proxy(
        config="egress: {guard: off}\nproviders:\n"
        "  - {name: azure, type: azure, hosts: ['*.openai.azure.invalid'],"
        " circuit_breaker: {failure_threshold: 2, interval: 1000, timeout: 1000}}\n"
    )
    for number in range(4):
        with Client(proxy, f"no-such-{number % 2}.openai.azure.invalid") as client:
            assert client.post("/openai/v1/chat/completions", CHAT.request).status == 502
    assert {row["error_type"] for row in wait_for_ended(proxy, 4)} == {"upstream_unresolvable"}
