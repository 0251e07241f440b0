"""Limits of plans that answers name: they become rows, and reach the client as the provider sent them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client
from tests.integration.sockets import CODEX, Provider, config, read, served, text, through
from tests.integration.turns import BY_DIALECT, CONNECTED, MODES, VERSIONS, Turns, call, configuration
from tests.integration.turns import text as words
from tests.support import fixtures, frames
from tests.support.client import RawHttp1
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Answer, ScriptedUpstream

SIMPLE = fixtures.case("messages/simple/streaming")
RESPONSES = fixtures.case("responses/simple/streaming")
KEY = ("x-api-key", "sk-ant-0123456789-abcdefghij")
RESET = "4102444800"


def unified(used: str, status: str = "allowed") -> list[tuple[str, str]]:
    """Headers that Claude Code warns by."""
    return [
        ("anthropic-ratelimit-unified-status", status),
        ("anthropic-ratelimit-unified-5h-utilization", used),
        ("anthropic-ratelimit-unified-5h-reset", RESET),
        ("anthropic-ratelimit-unified-representative-claim", "five_hour"),
        ("x-codex-primary-used-percent", "1e9"),
    ]


def limits(proxy: RunningProxy, number: int) -> list[dict[str, Any]]:
    """The rows of windows, once there are as many."""

    def rows() -> list[dict[str, Any]] | None:
        found = proxy.rows("aibridge_plan_limits")
        return found if len(found) >= number else None

    return poll_until(rows, 10.0, what=f"{number} limits")


def headers_of(seen: Any) -> dict[str, str]:
    return {name: value for name, value in seen.headers.items() if name.startswith(("anthropic-", "x-codex-"))}


@VERSIONS
def test_a_row_is_made_of_each_change(start_proxy: StartProxy, make_upstream: MakeUpstream, http2: bool) -> None:
    upstream = make_upstream(alpn=[HTTP2 if http2 else HTTP1])
    proxy = start_proxy(config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]\n")
    said = [unified("0.42"), unified("0.42"), unified("0.43"), unified("0.43", "rejected")]
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        for headers in said:
            upstream.answer(Answer.event_stream(SIMPLE.body, headers=headers))
            seen = client.post("/v1/messages", SIMPLE.request, [KEY])
            assert headers_of(seen) == dict(headers)
    rows = limits(proxy, 4)
    assert [(row["window_name"], row["used_ratio"], row["metadata"].get("status")) for row in rows] == [
        ("unified", None, "allowed"),
        ("5h", 0.42, None),
        ("5h", 0.43, None),
        ("unified", None, "rejected"),
    ]
    window = rows[1]
    assert (window["provider_name"], window["credential_hint"]) == ("anthropic", "sk-a...ghij")
    assert window["resets_at"] == "2100-01-01T00:00:00.000000+00:00"
    assert window["metadata"] == {"representative": True}


@VERSIONS
@MODES
@BY_DIALECT
def test_headers_reach_the_client_also_if_the_answer_has_two_turns(
    start_proxy: StartProxy, make_upstream: MakeUpstream, ours: HttpMcp, dialect: str, streaming: bool, http2: bool
) -> None:
    upstream = make_upstream(alpn=[HTTP2 if http2 else HTTP1])
    mcp = f"keepalive_interval: 0.2\nservers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, mcp))
    proxy.wait_for_log(CONNECTED)
    turns = Turns(dialect, [words("Let me see. "), call("echo", text="hi")], [words("Done.")])
    said = [unified("0.42"), unified("0.45")]
    for answer, headers in zip(turns.answers(streaming=streaming), said, strict=True):
        assert isinstance(answer, Answer)
        upstream.answer(replace(answer, headers=[*answer.headers, *headers]))
    with Client(proxy, turns.host, http2=http2) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming))
    # The head of a stream is sent before its second turn.
    assert headers_of(seen) == dict(said[0 if streaming else 1])
    rows = limits(proxy, 3)
    assert [row["used_ratio"] for row in rows if row["window_name"] == "5h"] == [0.42, 0.45]


def test_limits_of_a_key_that_the_client_does_not_see_are_recorded(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    keys = "[sk-first-00000000000000001, sk-second-0000000000000002]"
    proxy = start_proxy(
        config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}', api_key: {keys}}}]\n"
    )
    upstream.answer(
        Answer.json({"type": "error", "error": {"type": "rate_limit_error"}}, 429, unified("1", "rejected")),
        Answer.event_stream(SIMPLE.body, headers=unified("0.1")),
    )
    with Client(proxy, ANTHROPIC) as client:
        assert headers_of(client.post("/v1/messages", SIMPLE.request)) == dict(unified("0.1"))
    rows = [row for row in limits(proxy, 4) if row["window_name"] == "5h"]
    assert [(row["credential_hint"], row["used_ratio"]) for row in rows] == [
        ("sk-f...0001", 1.0),
        ("sk-s...0002", 0.1),
    ]


def rate_limits(percent: float) -> dict[str, Any]:
    windows = {"primary": {"used_percent": percent, "window_minutes": 300, "reset_at": int(RESET)}}
    return {"type": "codex.rate_limits", "plan_type": "pro", "rate_limits": windows}


def test_an_event_within_a_stream_is_read_and_passed_on(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=f"providers: [{{name: openai, type: openai, base_url: '{upstream.url}/v1'}}]\n")
    first, rest = RESPONSES.body.split(b"\n\n", 1)
    event = b"event: codex.rate_limits\ndata: " + json.dumps(rate_limits(12)).encode()
    body = b"\n\n".join([first, event, rest])
    upstream.answer(Answer.event_stream(body))
    with Client(proxy, OPENAI) as client:
        assert client.post("/v1/responses", RESPONSES.request).body == body
    [row] = limits(proxy, 1)
    assert (row["window_name"], row["used_ratio"]) == ("primary", 0.12)
    assert row["metadata"] == {"window_minutes": 300, "plan": "pro"}


@pytest.mark.parametrize("idle", [False, True], ids=["within an answer", "between answers"])
def test_a_message_of_a_websocket_is_read_and_passed_on(start_proxy: StartProxy, idle: bool) -> None:
    provider = Provider()
    with served(provider.serve) as provider.port:
        proxy = start_proxy(config=config(provider.port))
        events = frames.events(CODEX)
        event = json.dumps(rate_limits(34)).encode()
        sent = text(*events, event) if idle else text(events[0], event, *events[1:])
        provider.answer(*sent)
        with through(proxy) as client:
            client.send(frames.create(CODEX).decode())
            assert read(client, len(sent)) == [[message] for message in sent]
            [row] = limits(proxy, 1)
    assert (row["window_name"], row["used_ratio"]) == ("primary", 0.34)
    assert row["credential_hint"]


def test_unreadable_limits_are_left_out(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]\n")
    hostile = [
        (b"anthropic-ratelimit-unified-5h-status", b"\xff\xfe\x1b[31m"),
        (b"anthropic-ratelimit-unified-7d-utilization", b"nan"),
        (b"x-quota-snapshot-chat", b"ent=%00&rem=<script>"),
        (b"x-ratelimit-limit-requests", b"9" * 5000),
    ]
    upstream.answer(Answer.event_stream(SIMPLE.body, headers=[*hostile, ("x-codex-primary-used-percent", "50")]))
    with Client(proxy, ANTHROPIC) as client:
        assert isinstance(client.raw, RawHttp1)
        client.raw.request("POST", "/v1/messages", [], SIMPLE.request)
        assert set(hostile) <= set(client.raw.read_head().headers)
        assert client.raw.read_body() == SIMPLE.body
    [row] = limits(proxy, 1)
    assert (row["window_name"], row["used_ratio"]) == ("primary", 0.5)


@pytest.mark.parametrize(
    ("way", "path"),
    [("POST", "/v1/messages/count_tokens"), ("GET", "/v1/models"), ("GET", "/v1/models/claude"), ("GET", "/v1/new")],
)
def test_limits_of_a_plan_are_read_on_routes_that_are_not_bridged(
    start_proxy: StartProxy, upstream: ScriptedUpstream, way: str, path: str
) -> None:
    proxy = start_proxy(config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]\n")
    upstream.answer(replace(Answer.json({"input_tokens": 3}), headers=unified("0.42")))
    with Client(proxy, ANTHROPIC) as client:
        seen = client.ask(way, path, [KEY], b"{}" if way == "POST" else None)
    assert headers_of(seen) == dict(unified("0.42"))
    rows = {row["window_name"]: row for row in limits(proxy, 2)}
    assert rows["5h"]["used_ratio"] == 0.42 and rows["5h"]["credential_hint"].startswith("sk-a")


def test_rates_that_are_counted_for_an_endpoint_have_its_name(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """Anthropic counts requests to `count_tokens` apart from messages."""
    proxy = start_proxy(config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]\n")

    def rate(limit: int) -> list[tuple[str, str]]:
        return [(f"anthropic-ratelimit-requests-{name}", str(limit)) for name in ("limit", "remaining")]

    upstream.answer(
        replace(Answer.json({"input_tokens": 3}), headers=rate(4000)), Answer.event_stream(SIMPLE.body, headers=rate(50))
    )
    with Client(proxy, ANTHROPIC) as client:
        client.post("/v1/messages/count_tokens", b"{}", [KEY])
        client.post("/v1/messages", SIMPLE.request, [KEY])
    named = {row["window_name"]: row["limit_value"] for row in limits(proxy, 2)}
    assert named == {"count_tokens-requests": 4000, "requests": 50}
