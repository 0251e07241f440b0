"""Retries and fail-over before the first byte: real clients, a real proxy, upstreams with scripted failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, wait_for_ended
from tests.integration.turns import Asked, Turns, call, configuration, recorded, text
from tests.support import fixtures
from tests.support.client import gateway_client
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import (
    HTTP1,
    HTTP2,
    Abort,
    Answer,
    AnyAnswer,
    Close,
    Gate,
    Pause,
    RawAnswer,
    ScriptedUpstream,
    unused_port,
)

FIRST, SECOND = "sk-first-00000000000000001", "sk-second-0000000000000002"
HINTS = ["sk-f...0001", "sk-s...0002"]
BLOCKING = fixtures.case("messages/simple/blocking")
STREAMING = fixtures.case("messages/simple/streaming")
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
MODES = pytest.mark.parametrize("case", [BLOCKING, STREAMING], ids=["blocking", "streaming"])
AT_ONCE = ("retry-after-ms", "1")

Start = Callable[..., RunningProxy]


@pytest.fixture
def upstream(make_upstream: MakeUpstream, request: pytest.FixtureRequest) -> ScriptedUpstream:
    """One that speaks HTTP/1, unless the test says `http2`."""
    params = getattr(request.node, "callspec", None)
    return make_upstream(alpn=[HTTP2 if params and params.params.get("http2") else HTTP1])


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream) -> Start:
    def start(more: str, config: str = "", url: str = "") -> RunningProxy:
        url = url or upstream.url
        return start_proxy(
            config=f"{config}\nproviders:\n"
            f"  - {{name: anthropic, type: anthropic, base_url: '{url}', {more}}}\n"
            f"  - {{name: openai, type: openai, base_url: '{url}/v1', {more}}}\n"
        )

    return start


def good(case: fixtures.Case) -> Answer:
    if case is STREAMING:
        return Answer.event_stream(case.body)
    return Answer(200, [("content-type", "application/json")], case.body, framing="length")


def bad(status: int, *headers: tuple[str, str], steps: Any = None) -> Answer:
    body = json.dumps({"type": "error", "error": {"type": f"http_{status}", "message": "No"}}).encode()
    steps = body if steps is None else steps
    return Answer(status, [("content-type", "application/json"), *headers], steps, framing="chunked")


def keys_seen(upstream: ScriptedUpstream) -> list[str | None]:
    return [request.header("x-api-key") for request in upstream.requests]


def attempts_of(proxy: RunningProxy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The one interception, and the attempts in its metadata."""
    [row] = wait_for_ended(proxy, 1)
    return row, row["metadata"].get("attempts", [])


# --- central keys -------------------------------------------------------------------------------------------------

KEYS = f"api_key: [{FIRST}, {SECOND}]"


@VERSIONS
@MODES
def test_a_rate_limited_key_gives_way_to_the_next_and_rests(
    start: Start, upstream: ScriptedUpstream, case: fixtures.Case, http2: bool
) -> None:
    proxy = start(KEYS)
    upstream.answer(bad(429, ("retry-after", "30")), good(case), good(case))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        seen = client.post("/v1/messages", case.request)
        assert (seen.status, seen.body) == (200, case.body)
        row, attempts = attempts_of(proxy)
        assert client.post("/v1/messages", case.request).body == case.body
    assert keys_seen(upstream) == [FIRST, SECOND, SECOND]
    assert (row["status"], row["credential_kind"], row["credential_hint"]) == ("completed", "centralized", HINTS[1])
    assert attempts == [
        {"status": 429, "credential_hint": HINTS[0], "then": "next_key"},
        {"status": 200, "credential_hint": HINTS[1]},
    ]
    assert [request.body for request in upstream.requests] == [case.request] * 3


@VERSIONS
def test_a_key_that_is_not_accepted_rests_for_a_minute(start: Start, upstream: ScriptedUpstream, http2: bool) -> None:
    proxy = start(KEYS)
    upstream.answer(bad(401), good(BLOCKING), good(BLOCKING))
    for _ in range(2):
        with Client(proxy, ANTHROPIC, http2=http2) as client:
            assert client.post("/v1/messages", BLOCKING.request).status == 200
    assert keys_seen(upstream) == [FIRST, SECOND, SECOND]


def test_a_key_that_need_not_rest_is_the_first_again(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start(KEYS)
    upstream.answer(bad(429, ("retry-after", "0")), good(BLOCKING), good(BLOCKING))
    with Client(proxy, ANTHROPIC) as client:
        for _ in range(2):
            assert client.post("/v1/messages", BLOCKING.request).status == 200
    assert keys_seen(upstream) == [FIRST, SECOND, FIRST]


def test_a_403_is_shown_to_the_client(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start(KEYS)
    upstream.answer(bad(403), good(BLOCKING))
    with Client(proxy, ANTHROPIC) as client:
        seen = client.post("/v1/messages", BLOCKING.request)
        assert (seen.status, json.loads(seen.body)["error"]["type"]) == (403, "http_403")
        assert client.post("/v1/messages", BLOCKING.request).status == 200
    assert keys_seen(upstream) == [FIRST, FIRST]


@VERSIONS
def test_when_all_keys_are_limited_the_client_is_told_when_the_first_comes_back(
    start: Start, upstream: ScriptedUpstream, http2: bool
) -> None:
    proxy = start(KEYS)
    upstream.answer(bad(429, ("retry-after", "40")), bad(429, ("retry-after", "90")))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        for _ in range(2):
            seen = client.post("/v1/messages", BLOCKING.request)
            assert seen.status == 429 and 0 < int(seen.headers["retry-after"]) <= 40
            assert json.loads(seen.body)["type"] == "error"
    assert len(upstream.requests) == 2, "the second time, nobody is asked"
    rows = wait_for_ended(proxy, 2)
    assert [(row["status"], row["error_type"]) for row in rows] == [("failed", "keys_exhausted")] * 2
    assert [row["http_status"] for row in rows] == [429, None], "the status of the last answer, where there was one"


def test_when_no_key_is_accepted_that_is_not_the_clients_fault(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start(KEYS)
    upstream.answer(bad(401), bad(401))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", BLOCKING.request).status == 502
    assert keys_seen(upstream) == [FIRST, SECOND]


def test_a_single_key_shows_what_the_provider_says(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start(f"api_key: {FIRST}")
    upstream.answer(bad(429, ("retry-after", "30")), bad(401), good(BLOCKING))
    with Client(proxy, ANTHROPIC) as client:
        assert [client.post("/v1/messages", BLOCKING.request).status for _ in range(3)] == [429, 401, 200]


@pytest.mark.parametrize("status", [429, 401])
def test_a_clients_own_credential_never_fails_over(start: Start, upstream: ScriptedUpstream, status: int) -> None:
    proxy = start(KEYS)
    upstream.answer(bad(status))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", BLOCKING.request, [("x-api-key", "own")]).status == status
    assert keys_seen(upstream) == ["own"]


def test_a_passthrough_without_a_body_fails_over_too(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start(KEYS)
    upstream.answer(bad(429), Answer.json({"data": []}))
    with Client(proxy, ANTHROPIC) as client:
        assert client.ask("GET", "/v1/models").status == 200
    assert keys_seen(upstream) == [FIRST, SECOND]


def test_a_passthrough_with_a_small_body_is_sent_again_with_the_next_key(
    start: Start, upstream: ScriptedUpstream
) -> None:
    proxy = start(KEYS + ", max_retries: 2")
    upstream.answer(bad(429), Answer.json({"input_tokens": 1}))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages/count_tokens", BLOCKING.request).status == 200
    assert keys_seen(upstream) == [FIRST, SECOND]
    assert [request.body for request in upstream.requests] == [BLOCKING.request] * 2


def test_a_passthrough_with_a_large_body_is_sent_once_but_its_key_rests(
    start: Start, upstream: ScriptedUpstream
) -> None:
    proxy = start(KEYS + ", max_retries: 2", "limits: {passthrough_body: 1}")
    upstream.answer(bad(429), Answer.json({"input_tokens": 1}))
    with Client(proxy, ANTHROPIC) as client:
        statuses = [client.post("/v1/messages/count_tokens", BLOCKING.request).status for _ in range(2)]
    assert statuses == [429, 200]
    assert keys_seen(upstream) == [FIRST, SECOND]


def test_a_passthrough_without_any_key_left_is_told_so(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start(KEYS)
    upstream.answer(bad(429), bad(429))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages/count_tokens", BLOCKING.request).status == 429
        assert client.post("/v1/messages/count_tokens", BLOCKING.request).status == 429
    with gateway_client(proxy) as gateway:
        assert gateway.post("/anthropic/v1/messages/count_tokens", content=BLOCKING.request).status_code == 429
    assert len(upstream.requests) == 2


# --- retries ------------------------------------------------------------------------------------------------------

RESET = RawAnswer([Abort()])
CLOSED = RawAnswer([Close()])


@VERSIONS
@MODES
@pytest.mark.parametrize("status", [408, 409, 429, 500, 529])
def test_a_failure_is_retried_as_one_interception(
    start: Start, upstream: ScriptedUpstream, case: fixtures.Case, http2: bool, status: int
) -> None:
    proxy = start("max_retries: 2")
    upstream.answer(bad(status, AT_ONCE), bad(status, AT_ONCE), good(case))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        seen = client.post("/v1/messages", case.request, [("x-api-key", "own")])
    assert (seen.status, seen.body) == (200, case.body)
    row, attempts = attempts_of(proxy)
    assert (row["status"], row["turns"], row["http_status"]) == ("completed", 1, 200)
    assert [attempt["status"] for attempt in attempts] == [status, status, 200]
    assert keys_seen(upstream) == ["own"] * 3
    assert len(proxy.rows("aibridge_token_usages")) == 1


def test_by_default_nothing_is_retried(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start("inject_tools: true")
    upstream.answer(bad(529, AT_ONCE))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", BLOCKING.request).status == 529
    row, attempts = attempts_of(proxy)
    assert (row["error_type"], attempts) == ("http_529", [])


@VERSIONS
def test_when_the_retries_are_spent_the_last_answer_is_shown(
    start: Start, upstream: ScriptedUpstream, http2: bool
) -> None:
    proxy = start("max_retries: 1")
    upstream.answer(bad(500, AT_ONCE), bad(529, AT_ONCE))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        seen = client.post("/v1/messages", BLOCKING.request)
    assert (seen.status, json.loads(seen.body)["error"]["type"]) == (529, "http_529")
    row, attempts = attempts_of(proxy)
    assert (row["status"], row["http_status"], [a["status"] for a in attempts]) == ("failed", 529, [500, 529])


def test_the_provider_may_say_not_to_retry_and_when_it_would_help(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start("max_retries: 1")
    with Client(proxy, ANTHROPIC) as client:
        upstream.answer(bad(529, AT_ONCE, ("x-should-retry", "false")))
        assert client.post("/v1/messages", BLOCKING.request).status == 529
        upstream.answer(bad(400, AT_ONCE, ("x-should-retry", "true")), good(BLOCKING))
        assert client.post("/v1/messages", BLOCKING.request).status == 200


@VERSIONS
@pytest.mark.parametrize("failure", [RESET, CLOSED], ids=["reset", "closed"])
def test_a_connection_that_breaks_before_the_answer_is_retried(
    start: Start, upstream: ScriptedUpstream, make_upstream: MakeUpstream, http2: bool, failure: AnyAnswer
) -> None:
    breaking = make_upstream(alpn=[HTTP1])
    proxy = start("max_retries: 2", url=breaking.url)
    breaking.answer(failure, failure, good(BLOCKING))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        seen = client.post("/v1/messages", BLOCKING.request)
        assert (seen.status, seen.body) == (200, BLOCKING.body)
    row, attempts = attempts_of(proxy)
    assert (row["status"], row["turns"]) == ("completed", 1)
    assert [attempt["status"] for attempt in attempts] == [None, None, 200] and attempts[0]["error"]


@VERSIONS
def test_an_upstream_that_is_back_during_the_retries_answers(
    start: Start, make_upstream: MakeUpstream, http2: bool
) -> None:
    """Also over a client connection that has seen it fail before."""
    port = unused_port()
    proxy = start("max_retries: 1", url=f"https://localhost:{port}")
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        assert client.post("/v1/messages", BLOCKING.request).status == 502
        row, attempts = attempts_of(proxy)
        assert (row["error_type"], [a["status"] for a in attempts]) == ("upstream_unreachable", [None, None])
        make_upstream(port=port).answer(good(BLOCKING), good(BLOCKING))
        for _ in range(2):
            assert client.post("/v1/messages", BLOCKING.request).body == BLOCKING.body


@VERSIONS
def test_an_upstream_whose_certificate_is_anothers_is_told_as_unreachable_each_time(
    start: Start, make_upstream: MakeUpstream, http2: bool
) -> None:
    stranger = make_upstream(names=["stranger.test"])
    proxy = start("max_retries: 1", url=stranger.url)
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        assert [client.post("/v1/messages", BLOCKING.request).status for _ in range(3)] == [502] * 3
    assert stranger.requests == []
    for row in wait_for_ended(proxy, 3):
        assert [attempt["status"] for attempt in row["metadata"]["attempts"]] == [None, None]


@VERSIONS
@pytest.mark.parametrize("large", [True, False], ids=["too large", "never ends"])
def test_a_failed_answers_body_is_not_waited_for(
    start: Start, upstream: ScriptedUpstream, http2: bool, large: bool
) -> None:
    proxy = start("max_retries: 1")
    steps = [b"x" * 1024 * 1024] if large else [b"x", Pause(Gate())]
    upstream.answer(bad(529, AT_ONCE, steps=steps), good(BLOCKING), good(BLOCKING))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        for _ in range(2):
            seen = client.post("/v1/messages", BLOCKING.request)
            assert (seen.status, seen.body) == (200, BLOCKING.body)


@VERSIONS
def test_a_failed_answer_that_breaks_off_is_retried(start: Start, upstream: ScriptedUpstream, http2: bool) -> None:
    proxy = start("max_retries: 1")
    upstream.answer(bad(529, AT_ONCE, steps=[b"x", Abort()]), good(BLOCKING))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        assert client.post("/v1/messages", BLOCKING.request).body == BLOCKING.body


def test_nothing_is_retried_after_the_first_byte(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start("max_retries: 2")
    upstream.answer(Answer.event_stream(STREAMING.body[:200], Abort()), good(STREAMING))
    with Client(proxy, ANTHROPIC) as client:
        asked = Asked(client, "/v1/messages", STREAMING.request)
        assert asked.status() == 200
        with pytest.raises((EOFError, ConnectionError)):
            asked.rest()
    assert len(upstream.requests) == 1


@VERSIONS
def test_a_client_that_goes_during_a_pause_ends_it(start: Start, upstream: ScriptedUpstream, http2: bool) -> None:
    proxy = start("max_retries: 1")
    upstream.answer(bad(529, ("retry-after", "50")))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        asked = Asked(client, "/v1/messages", BLOCKING.request)
        poll_until(lambda: upstream.requests, 10, what="the first attempt")
        proxy.wait_for_rows("aibridge_interceptions", 1)
        asked.leave()
        row, attempts = attempts_of(proxy)
    assert (row["error_type"], len(attempts), len(upstream.requests)) == ("client_disconnected", 1, 1)


def test_attempts_are_counted(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    port = unused_port()
    proxy = start_proxy(
        config=f"metrics: {{listen: '127.0.0.1:{port}'}}\nproviders:\n"
        f"- {{name: anthropic, type: anthropic, base_url: '{upstream.url}', max_retries: 1, {KEYS}}}\n"
    )
    upstream.answer(bad(429), bad(529, AT_ONCE), good(BLOCKING))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", BLOCKING.request).status == 200
    with gateway_client(proxy) as client_:
        for step in ("next_key", "retry", "show"):
            line = f'upstream_attempts_total{{provider="anthropic",route="/v1/messages",step="{step}"}} 1.0'
            poll_until(lambda: line in client_.get(f"http://127.0.0.1:{port}/metrics").text, 20, what=line)  # noqa: B023


def test_refused_and_exhausted_central_keys_are_counted(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    port = unused_port()
    proxy = start_proxy(
        config=f"metrics: {{listen: '127.0.0.1:{port}'}}\nproviders:\n"
        f"- {{name: anthropic, type: anthropic, base_url: '{upstream.url}', {KEYS}}}\n"
    )
    upstream.answer(bad(429), bad(401))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", BLOCKING.request).status == 429
    with gateway_client(proxy) as client_:
        for line in (
            'key_pool_state{provider="anthropic",state="temporary"} 1.0',
            'key_pool_state{provider="anthropic",state="permanent"} 1.0',
            'key_pool_state{provider="anthropic",state="valid"} 0.0',
            'key_pool_state_transitions_total{provider="anthropic",reason="rate_limited"} 1.0',
            'key_pool_state_transitions_total{provider="anthropic",reason="unauthorized"} 1.0',
            'key_pool_exhaustions_total{outcome="rate_limited",provider="anthropic"} 1.0',
            'key_pool_failover_attempts_sum{provider="anthropic"} 2.0',
        ):
            poll_until(lambda: line in client_.get(f"http://127.0.0.1:{port}/metrics").text, 20, what=line)  # noqa: B023


# --- later turns of a tool loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "http2"),
    # A raw answer, which breaks off where it should not, is HTTP/1's.
    [("busy", False), ("busy", True), ("limited key", False), ("limited key", True), ("reset", False)],
)
@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])
def test_a_later_turn_is_tried_again_before_its_first_byte(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, http2: bool, streaming: bool, failure: str
) -> None:
    turns = Turns("messages", [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    failures: dict[str, AnyAnswer] = {"busy": bad(529, AT_ONCE), "limited key": bad(429), "reset": RESET}
    first, last = turns.answers(streaming=streaming)
    upstream.answer(first, failures[failure], last)
    servers = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, servers, inject=f", max_retries: 1, {KEYS}"))
    proxy.wait_for_log(r"MCP server ours: connected, \d+ tools")
    with Client(proxy, turns.host, http2=http2) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming))
    assert seen.status == 200
    turns.check(seen.body, streaming=streaming)
    assert recorded(proxy).outcome == ("completed", 2, None)
    assert len(upstream.requests) == 3


@VERSIONS
def test_a_client_is_kept_awake_while_a_later_turn_pauses(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, http2: bool
) -> None:
    turns = Turns("messages", [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    first, last = turns.answers(streaming=True)
    upstream.answer(first, bad(529, ("retry-after", "1")), last)
    mcp = f"keepalive_interval: 0.1\nservers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, mcp, inject=", max_retries: 1"))
    proxy.wait_for_log(r"MCP server ours: connected, \d+ tools")
    with Client(proxy, turns.host, http2=http2) as client:
        seen = client.post(turns.path, turns.request(streaming=True))
    assert seen.body.count(b"event: ping") >= 5
    turns.check(seen.body, streaming=True)


@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])
def test_a_later_turn_without_any_key_left_ends_the_answer_in_an_error(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, streaming: bool
) -> None:
    turns = Turns("messages", [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    upstream.answer(turns.answers(streaming=streaming)[0], bad(429), bad(429))
    servers = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, servers, inject=f", {KEYS}"))
    proxy.wait_for_log(r"MCP server ours: connected, \d+ tools")
    with Client(proxy, turns.host) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming))
    if streaming:
        assert (seen.status, seen.body.count(b"event: error")) == (200, 1)
        assert b"message_stop" not in seen.body
    else:
        assert seen.status == 429
    [row] = wait_for_ended(proxy, 1)
    assert (row["status"], row["error_type"]) == ("failed", "keys_exhausted")


def test_chat_completions_whose_stream_options_were_added_are_retried_as_they_were_sent(
    start: Start, upstream: ScriptedUpstream
) -> None:
    chat = fixtures.case("chat_completions/simple/streaming")
    body = json.loads(chat.request)
    body.pop("stream_options", None)
    proxy = start("max_retries: 1")
    upstream.answer(bad(529, AT_ONCE), Answer.event_stream(chat.body))
    with Client(proxy, OPENAI) as client:
        assert client.post("/v1/chat/completions", json.dumps(body).encode()).status == 200
    first, second = upstream.requests
    assert first.body == second.body and first.json()["stream_options"] == {"include_usage": True}
