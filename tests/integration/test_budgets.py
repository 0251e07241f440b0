"""Budgets between real clients and a scripted upstream: every way in, restarts, and several processes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, Seen, wait_for_ended
from tests.integration.sockets import Provider, read, served, text, through
from tests.support import fixtures, frames
from tests.support.client import gateway_client
from tests.support.databases import Database
from tests.support.fixtures import BEDROCK_MODEL
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, Gate, Pause, ScriptedUpstream, unused_port

SIMPLE = fixtures.case("messages/simple/blocking")
STREAM = fixtures.case("messages/simple/streaming")
CHAT = fixtures.case("chat_completions/simple/blocking")
RESPONSES = fixtures.case("responses/simple/blocking")
CONVERSE = fixtures.case("converse/simple/blocking")
ONE = "[{name: one, per: actor, period: month, requests: 1}]"
JSON = [("content-type", "application/json")]


def config(url: str, budgets: str, *more: str, database: str = "") -> str:
    providers = (
        f"{{name: anthropic, type: anthropic, base_url: '{url}'}}",
        f"{{name: openai, type: openai, base_url: '{url}/v1', price_as: openai}}",
        f"{{name: azure, type: azure, hosts: [azure.test], base_url: '{url}'}}",
        f"{{name: bedrock, type: bedrock, hosts: [bedrock.test], base_url: '{url}'}}",
        f"{{name: other, type: anthropic, hosts: [other.test], base_url: '{url}', price_as: anthropic}}",
    )
    lines = [f"budgets: {budgets}", *(["providers:"] + [f"  - {provider}" for provider in providers]), *more]
    return "\n".join([*lines, *([f"database: {database}"] if database else [])])


def answer_of(case: fixtures.Case) -> Answer:
    return Answer(200, JSON, case.body, framing="length")


def ask(proxy: RunningProxy, host: str = "other.test", path: str = "/v1/messages", body: bytes = b"") -> Seen:
    with Client(proxy, host) as client:
        return client.post(path, body or SIMPLE.request)


def is_exceeded(seen: Seen) -> bool:
    return seen.status == 403 and b"budget_exceeded" in seen.body


def used_up(proxy: RunningProxy) -> bool:
    return is_exceeded(ask(proxy))


@pytest.mark.parametrize("match", ["", ", match: {models: [claude-sonnet-4-20250514]}"], ids=["every", "exact"])
def test_a_pattern_that_changes_the_names_of_models_opens_no_budget(
    start_proxy: StartProxy, upstream: ScriptedUpstream, match: str
) -> None:
    budget = f"[{{name: one, per: model, period: month, requests: 1{match}}}]"
    proxy = start_proxy(config=config(upstream.url, budget, "recording: {redact: ['[0-9]{8}']}"))
    upstream.answer(answer_of(SIMPLE))
    request = json.dumps(json.loads(SIMPLE.request) | {"model": "claude-sonnet-4-20250514"}).encode()
    assert ask(proxy, body=request).status == 200
    assert is_exceeded(ask(proxy, body=request))


# --- every way in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["proxy", "gateway"])
@pytest.mark.parametrize(
    ("name", "host", "path", "case"),
    [
        ("anthropic", ANTHROPIC, "/v1/messages", SIMPLE),
        ("openai", OPENAI, "/v1/chat/completions", CHAT),
        ("openai", OPENAI, "/v1/responses", RESPONSES),
        ("openai", OPENAI, "/v1/embeddings", CHAT),
        ("azure", "azure.test", "/openai/deployments/d/chat/completions", CHAT),
        ("azure", "azure.test", "/anthropic/v1/messages", SIMPLE),
        ("bedrock", "bedrock.test", f"/model/{BEDROCK_MODEL}/converse", CONVERSE),
        ("bedrock", "bedrock.test", f"/model/{BEDROCK_MODEL}/invoke", SIMPLE),
    ],
)
def test_a_request_over_budget_is_refused_in_the_shape_of_its_provider(
    start_proxy: StartProxy, upstream: ScriptedUpstream, way: str, name: str, host: str, path: str, case: fixtures.Case
) -> None:
    proxy = start_proxy(config=config(upstream.url, ONE))
    upstream.answer(answer_of(case))
    bodies = []
    for status in (200, 403):
        if way == "proxy":
            seen = ask(proxy, host, path, case.request)
            assert seen.status == status
            bodies.append((seen.headers, seen.body))
        else:
            with gateway_client(proxy, f"/{name}") as client:
                got = client.post(path, content=case.request)
            assert got.status_code == status
            bodies.append(({key.lower(): value for key, value in got.headers.items()}, got.content))
    assert len(upstream.requests) == 1
    headers, body = bodies[1]
    assert bodies[0][1] == case.body
    refused = json.loads(body)
    error = refused if name == "bedrock" else refused["error"]
    assert error["code"] == "budget_exceeded"
    found = error["budget"]
    assert found.pop("resets_at").endswith("01T00:00:00+00:00")
    assert found == {"name": "one", "per": "actor", "spent": 1, "limit": 1, "unit": "requests"}
    assert error["message"].startswith("budget one of actor ")
    assert "is used up: 1 of 1 requests are spent. It resets at 20" in error["message"]
    if name == "bedrock":
        assert headers["x-amzn-errortype"] == "AccessDeniedException"
    elif "messages" in path:
        assert (refused["type"], error["type"]) == ("error", "permission_error")
    else:
        assert error["type"] == "insufficient_quota"
    rows = wait_for_ended(proxy, 2)
    assert [(row["status"], row["error_type"], row["turns"]) for row in rows][1:] == [("failed", "budget_exceeded", 0)]


def test_a_request_over_budget_in_a_websocket_is_answered_with_an_error_message(start_proxy: StartProxy) -> None:
    case = fixtures.case("responses/simple/streaming")
    provider = Provider()
    with served(provider.serve) as port:
        proxy = start_proxy(config=config(f"http://localhost:{port}", ONE))
        provider.answer(*text(*frames.events(case)))
        with through(proxy) as client:
            client.send(frames.create(case).decode())
            read(client, len(frames.events(case)))
            client.send(frames.create(case).decode())
            [[message]] = read(client, 1)
    error = json.loads(message)
    assert (error["type"], error["status"]) == ("error", 403)
    assert (error["error"]["type"], error["error"]["code"]) == ("insufficient_quota", "budget_exceeded")
    assert error["error"]["budget"]["spent"] == 1
    assert len(provider.received) == 1


# --- admission -----------------------------------------------------------------------------------------------------


def test_of_twenty_at_once_only_those_pass_that_the_budget_has_room_for(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=config(upstream.url, "[{name: few, per: all, period: day, requests: 3}]"))
    gate = Gate()
    upstream.answer(*[Answer(200, JSON, [Pause(gate), SIMPLE.body]) for _ in range(3)])
    with ThreadPoolExecutor(20) as threads:
        asked = [threads.submit(ask, proxy) for _ in range(20)]
        poll_until(lambda: sum(each.done() for each in asked) >= 17, what="refusals")
        gate.open()
        seen = [each.result() for each in asked]
    assert sorted(each.status for each in seen) == [200] * 3 + [403] * 17
    assert used_up(proxy)


@pytest.mark.parametrize("outcome", [Answer.json({"type": "error"}, 529), Answer.json({"type": "error"}, 500)])
def test_a_request_that_fails_takes_nothing_from_a_budget_of_dollars(
    start_proxy: StartProxy, upstream: ScriptedUpstream, outcome: Answer
) -> None:
    proxy = start_proxy(config=config(upstream.url, "[{name: tiny, per: all, period: day, usd: 0.000001}]"))
    upstream.answer(outcome, answer_of(SIMPLE))
    assert ask(proxy).status >= 500
    assert ask(proxy).status == 200
    assert used_up(proxy)


def test_the_reservation_of_a_client_that_leaves_is_released(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=config(upstream.url, "[{name: tiny, per: all, period: day, usd: 0.000001}]"))
    gate = Gate()
    upstream.answer(Answer(200, JSON, [Pause(gate), b"{}"]), answer_of(SIMPLE))
    with Client(proxy, "other.test") as client:
        client.raw.request("POST", "/v1/messages", [], SIMPLE.request)
        gate.wait_reached()
        assert used_up(proxy)
    poll_until(lambda: ask(proxy).status == 200, what="an answer")
    gate.open()


def test_a_budget_that_is_not_used_up_changes_nothing_of_an_answer(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=config(upstream.url, "[{name: large, per: all, period: day, usd: 1000}]"))
    upstream.answer(Answer.event_stream(STREAM.body))
    seen = ask(proxy, body=STREAM.request)
    assert (seen.status, seen.body) == (200, STREAM.body)
    assert "x-ai-bridge-budget" not in seen.headers
    assert "budget is" not in proxy.log


def test_answers_near_the_limit_say_so_and_the_log_says_it_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    port = unused_port()
    budgets = "[{name: near, per: actor, period: day, requests: 100, warn_at: 0.01, timezone: Asia/Kolkata}]"
    more = f"metrics: {{listen: '127.0.0.1:{port}'}}", "actor: {default: ada}"
    proxy = start_proxy(config=config(upstream.url, budgets, *more))
    forged = Answer(200, [*JSON, ("X-AI-Bridge-Budget", "name=theirs")], SIMPLE.body, framing="length")
    upstream.answer(forged, *[answer_of(SIMPLE)] * 2)
    headers = [ask(proxy).headers.get("x-ai-bridge-budget") for _ in range(3)]
    assert headers[0] is None
    for header, used in zip(headers[1:], ("0.01", "0.02"), strict=True):
        assert header is not None
        assert header.startswith(f"name=near; used={used}; resets=") and header.endswith("T00:00:00+05:30")
    assert proxy.log.count("budget is near its limit: name=near;") == 1
    scraped = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert 'aibridge_budget_used_ratio{name="near",subject="ada"} 0.0' in scraped


def test_refusals_are_counted(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    port = unused_port()
    proxy = start_proxy(config=config(upstream.url, ONE, f"metrics: {{listen: '127.0.0.1:{port}'}}"))
    upstream.answer(answer_of(SIMPLE))
    ask(proxy)
    assert used_up(proxy)

    def counted() -> bool:
        scraped = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        return 'aibridge_refused_total{reason="budget_exceeded"} 1.0' in scraped

    poll_until(counted, what="a refusal in the metrics")


UNKNOWN = "no-such-model-9"


@pytest.mark.parametrize(
    ("host", "path", "case", "refused"),
    [
        ("other.test", "/v1/messages", SIMPLE, True),
        (OPENAI, "/v1/chat/completions", CHAT, True),
        (OPENAI, "/v1/responses", RESPONSES, True),
        ("bedrock.test", "/model/anthropic.no-such-model-9/converse", CONVERSE, True),
        ("unpriced.test", "/v1/messages", SIMPLE, True),
        # Only its answer names the model.
        ("azure.test", "/openai/deployments/d/chat/completions", CHAT, False),
        # Its answers may say what they cost.
        ("router.test", "/v1/chat/completions", CHAT, False),
    ],
)
def test_a_request_that_is_known_to_have_no_price_is_refused_before_it_goes_upstream(
    start_proxy: StartProxy, upstream: ScriptedUpstream, host: str, path: str, case: fixtures.Case, refused: bool
) -> None:
    budgets = "[{name: priced, per: all, period: day, usd: 100, unpriced: refuse}]"
    url = upstream.url
    more = (
        f"  - {{name: unpriced, type: anthropic, hosts: [unpriced.test], base_url: '{url}', price_as: none}}",
        f"  - {{name: router, type: openai, hosts: [router.test], base_url: '{url}/v1', price_as: openrouter}}",
    )
    proxy = start_proxy(config=config(url, budgets, *more))
    body = json.dumps({**json.loads(case.request), "model": UNKNOWN}).encode()
    if not refused:
        upstream.answer(answer_of(case))
    seen = ask(proxy, host, path, body)
    assert is_exceeded(seen) is refused
    if refused:
        assert b"refuses usage without a known price" in seen.body
    else:
        assert seen.status == 200
    assert len(upstream.requests) == (not refused)


def test_a_model_with_a_price_is_admitted_where_unpriced_usage_is_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(
        config=config(upstream.url, "[{name: priced, per: all, period: day, usd: 100, unpriced: refuse}]")
    )
    for host, path, case in (("other.test", "/v1/messages", SIMPLE), (OPENAI, "/v1/responses", RESPONSES)) * 2:
        upstream.answer(answer_of(case))
        assert ask(proxy, host, path, case.request).status == 200


# --- groups --------------------------------------------------------------------------------------------------------


def test_groups_come_from_a_trusted_header_which_is_not_sent_on(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    groups = "actor: {groups: {header: X-Groups}}"
    budgets = "[{name: team, per: group, period: day, requests: 1}]"
    folder = tmp_path / "proxy"
    folder.mkdir()
    for _ in range(2):  # the second time, what the first process has recorded counts
        proxy = start_proxy(folder=folder, config=config(upstream.url, budgets, groups))
        seen = []
        for named in ("red, blue", "blue", "green"):
            upstream.answer(answer_of(SIMPLE))
            with gateway_client(proxy, "/other") as client:
                seen.append(client.post("/v1/messages", content=SIMPLE.request, headers={"x-groups": named}))
        statuses = [each.status_code for each in seen]
        proxy.close()
        if statuses == [403] * 3:
            break
        assert statuses == [200, 403, 200]
    assert statuses == [403] * 3
    assert all(request.header("x-groups") is None for request in upstream.requests)


# --- databases -----------------------------------------------------------------------------------------------------


def test_what_was_spent_counts_after_a_restart(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    budgets = "[{name: tiny, per: all, period: month, usd: 0.000001}]"
    upstream.answer(answer_of(SIMPLE))
    first = start_proxy(config=config(upstream.url, "[]", database=database.url))
    assert ask(first).status == 200
    first.close()
    second = start_proxy(config=config(upstream.url, budgets, database=database.url))
    assert used_up(second)
    second.close()
    _, row = sorted(database.rows("aibridge_interceptions"), key=lambda row: str(row["started_at"]))
    assert (row["status"], row["error_type"], row["http_status"]) == ("failed", "budget_exceeded", None)
