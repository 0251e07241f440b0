"""Background responses: the request that brings the end completes the interception of the one that began it, once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import StartProxy
from tests.support.client import RawHttp1, gateway_client
from tests.support.database import Row, Table
from tests.support.databases import Database
from tests.support.in_process import InProcessProxy
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, Gate, Pause, ScriptedUpstream

INTERCEPTIONS: Table = "aibridge_interceptions"
TOKENS: Table = "aibridge_token_usages"
PROMPTS: Table = "aibridge_user_prompts"
TOOLS: Table = "aibridge_tool_usages"
KEY = "sk-0123456789-abcdefghijkl"
ID = "resp_0a1b2c"
USAGE = {"input_tokens": 30, "input_tokens_details": {"cached_tokens": 10}, "output_tokens": 8, "total_tokens": 38}
CALL = {"type": "function_call", "call_id": "call_1", "name": "read", "arguments": "{}", "status": "completed"}


def response(status: str, **members: Any) -> dict[str, Any]:
    base = {"id": ID, "object": "response", "background": True, "model": "gpt-5.1-2025-11-13", "output": []}
    return {**base, "status": status, "usage": None, "error": None, **members}


COMPLETED = response("completed", usage=USAGE, output=[CALL])
FAILED = response("failed", error={"code": "server_error", "message": "it broke"})
CANCELLED = response("cancelled")
INCOMPLETE = response("incomplete", usage=USAGE, incomplete_details={"reason": "max_output_tokens"})


def events(*named: tuple[str, dict[str, Any]], first: int = 0) -> Iterable[bytes]:
    for number, (kind, members) in enumerate(named, first):
        data = json.dumps({"type": kind, "sequence_number": number, **members})
        yield f"event: {kind}\ndata: {data}\n\n".encode()


@pytest.fixture
def process(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=config(upstream))


def config(upstream: ScriptedUpstream, more: str = "") -> str:
    return (
        f"providers:\n  - {{name: openai, type: openai, price_as: openai, base_url: '{upstream.url}/v1'}}\n"
        f"  - {{name: other, type: openai, base_url: '{upstream.url}/v1'}}\n{more}"
    )


def ask(process: RunningProxy, method: str, path: str, body: Any = None, key: str = KEY) -> Any:
    with gateway_client(process, "/openai") as client:
        headers = {"authorization": f"Bearer {key}"}
        answer = client.request(method, path, json=body, headers=headers)
    return answer.json() if "json" in answer.headers["content-type"] else answer.text


def create(process: RunningProxy, upstream: ScriptedUpstream, **members: Any) -> Row:
    begin(process, upstream, **members)
    return process.rows(INTERCEPTIONS)[-1]


def begin(process: RunningProxy, upstream: ScriptedUpstream, **members: Any) -> None:
    upstream.answer(Answer.json(response("queued")))
    body = {"model": "gpt-5.1", "input": "Think long", "background": True, **members}
    assert ask(process, "POST", "/v1/responses", body)["status"] == "queued"


def poll(process: RunningProxy, upstream: ScriptedUpstream, answer: dict[str, Any], key: str = KEY) -> None:
    upstream.answer(Answer.json(answer))
    assert ask(process, "GET", f"/v1/responses/{ID}", key=key) == answer


def test_a_background_response_stays_open_until_a_poll_brings_its_end(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    begun = create(process, upstream)
    assert (begun["status"], begun["ended_at"], begun["model"]) == (None, None, "gpt-5.1")
    poll(process, upstream, response("in_progress"))
    assert process.rows(INTERCEPTIONS) == [begun]
    poll(process, upstream, COMPLETED)
    [row] = process.rows(INTERCEPTIONS)
    assert (row["id"], row["status"], row["http_status"], row["turns"]) == (begun["id"], "completed", 200, 1)
    [tokens] = process.rows(TOKENS)
    assert tokens["interception_id"] == row["id"] and tokens["provider_response_id"] == ID
    assert (tokens["input_tokens"], tokens["cache_read_input_tokens"], tokens["output_tokens"]) == (20, 10, 8)
    assert tokens["completeness"] == "complete" and tokens["cost_usd"] is not None
    assert [call["tool"] for call in process.rows(TOOLS)] == ["read"]
    assert [prompt["prompt"] for prompt in process.rows(PROMPTS)] == ["Think long"]


@pytest.mark.parametrize(
    ("wish", "answer", "cost"),
    [
        # gpt-6-sol writes to its cache for 2.50, and for twice that if the entry lives for 12 hours.
        (
            {"model": "gpt-6-sol", "prompt_cache_retention": "12h"},
            {
                "model": "gpt-6-sol",
                "usage": {"input_tokens": 10_000, "input_tokens_details": {"cache_write_tokens": 10_000}},
            },
            0.05,
        ),
        (
            {"model": "gpt-5.5", "service_tier": "flex"},
            {"model": "gpt-5.5", "usage": {"input_tokens": 100_000, "output_tokens": 10_000}},
            0.4,
        ),
        # gpt-4o: 0.25 and 0.1 for the tokens, and 0.025 for a search of the preview tool.
        (
            {"model": "gpt-4o", "tools": [{"type": "web_search_preview"}]},
            {
                "model": "gpt-4o-2024-08-06",
                "usage": {"input_tokens": 100_000, "output_tokens": 10_000},
                "output": [{"type": "web_search_call", "id": "ws", "action": {"type": "search"}}],
            },
            0.375,
        ),
    ],
)
def test_the_end_has_the_price_of_what_the_first_request_asked_for(
    process: RunningProxy, upstream: ScriptedUpstream, wish: dict[str, Any], answer: dict[str, Any], cost: float
) -> None:
    create(process, upstream, **wish)
    poll(process, upstream, response("completed", **answer))
    [tokens] = process.rows(TOKENS)
    assert (tokens["cost_usd"], tokens["unpriced"]) == (pytest.approx(cost), None)


def test_further_polls_record_nothing(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    create(process, upstream)
    for _ in range(3):
        poll(process, upstream, COMPLETED)
    assert len(process.rows(INTERCEPTIONS)) == len(process.rows(TOKENS)) == len(process.rows(TOOLS)) == 1


def test_polls_at_the_same_time_record_one_end(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    create(process, upstream)
    gate = Gate()
    body = json.dumps(COMPLETED).encode()
    upstream.answer(*[Answer(200, [("content-type", "application/json")], (Pause(gate), body)) for _ in range(4)])
    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, process, "GET", f"/v1/responses/{ID}") for _ in range(4)]
        gate.wait_reached()
        gate.open()
        assert [asked.result() for asked in asking] == [COMPLETED] * 4
    assert len(process.rows(TOKENS)) == 1


@pytest.mark.parametrize(
    ("method", "path", "answer", "status", "error_type", "tokens"),
    [
        ("GET", "", FAILED, "failed", "server_error", 0),
        ("GET", "", INCOMPLETE, "completed", None, 1),
        ("POST", "/cancel", CANCELLED, "failed", "response_cancelled", 0),
    ],
)
def test_every_end_ends_the_interception(
    process: RunningProxy,
    upstream: ScriptedUpstream,
    method: str,
    path: str,
    answer: dict[str, Any],
    status: str,
    error_type: str | None,
    tokens: int,
) -> None:
    create(process, upstream)
    upstream.answer(Answer.json(answer))
    assert ask(process, method, f"/v1/responses/{ID}{path}") == answer
    [row] = process.rows(INTERCEPTIONS)
    assert (row["status"], row["error_type"], len(process.rows(TOKENS))) == (status, error_type, tokens)


def test_a_resumed_stream_brings_the_end(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    created = list(events(("response.created", {"response": response("queued")})))
    upstream.answer(Answer.event_stream(*created, Pause(gate)))
    body = json.dumps({"model": "gpt-5.1", "input": "Think long", "background": True, "stream": True}).encode()
    with RawHttp1.connect("127.0.0.1", process.port) as client:
        client.request("POST", "/openai/v1/responses", [("authorization", f"Bearer {KEY}")], body)
        assert client.read_head().status == 200
        client.read_body_until(b"\n\n")
    process.wait_for_rows(PROMPTS, 1)
    gate.open()
    [row] = process.rows(INTERCEPTIONS)
    assert (row["status"], row["streaming"]) == (None, 1)
    ends = events(
        ("response.output_item.done", {"item": CALL}), ("response.completed", {"response": COMPLETED}), first=1
    )
    upstream.answer(Answer.event_stream(*ends))
    assert "response.completed" in ask(process, "GET", f"/v1/responses/{ID}?stream=true&starting_after=0")
    [row] = process.rows(INTERCEPTIONS)
    assert row["status"] == "completed"
    assert [tokens["output_tokens"] for tokens in process.rows(TOKENS)] == [8]
    assert len(process.rows(TOOLS)) == 1


def test_a_stream_that_stays_to_its_end_ends_at_once(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    whole = events(
        ("response.created", {"response": response("queued")}), ("response.completed", {"response": COMPLETED})
    )
    upstream.answer(Answer.event_stream(*whole))
    ask(process, "POST", "/v1/responses", {"model": "gpt-5.1", "input": "a", "background": True, "stream": True})
    poll(process, upstream, COMPLETED)
    [row] = process.rows(INTERCEPTIONS)
    assert (row["status"], len(process.rows(TOKENS))) == ("completed", 1)


def test_another_credential_or_provider_does_not_bring_the_end(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    create(process, upstream)
    poll(process, upstream, COMPLETED, key="sk-another-0123456789abcd")
    upstream.answer(Answer.json(COMPLETED))
    with gateway_client(process, "/other") as client:
        client.get(f"/v1/responses/{ID}", headers={"authorization": f"Bearer {KEY}"})
    assert process.rows(TOKENS) == []


def test_a_poll_that_fails_ends_nothing(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    create(process, upstream)
    upstream.answer(Answer.json({"error": {"message": "no such response", "type": "invalid_request_error"}}, 404))
    ask(process, "GET", f"/v1/responses/{ID}")
    upstream.answer(Answer(200, [("content-type", "application/json")], b'{"id": "resp', framing="length"))
    with gateway_client(process, "/openai") as client:
        client.get(f"/v1/responses/{ID}", headers={"authorization": f"Bearer {KEY}"})
    assert process.rows(INTERCEPTIONS)[0]["status"] is None
    poll(process, upstream, COMPLETED)
    assert process.rows(INTERCEPTIONS)[0]["status"] == "completed"


def test_a_response_of_another_beginning_is_not_recorded(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    poll(process, upstream, COMPLETED)
    assert process.rows(INTERCEPTIONS) == []


def test_another_process_brings_the_end(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    def start() -> InProcessProxy:
        return start_proxy(config=config(upstream, f"database: {database.url}\n"))

    first = start()
    begin(first, upstream)
    first.close()
    second = start()
    poll(second, upstream, COMPLETED)
    [row] = database.rows(INTERCEPTIONS)
    assert (row["status"], len(database.rows(TOKENS))) == ("completed", 1)
    second.close()
    third = start()
    poll(third, upstream, COMPLETED)
    assert len(database.rows(TOKENS)) == 1


def test_without_durable_rows_a_poll_right_after_the_beginning_finds_it(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    process = start_proxy(config=config(upstream, "recording: {durable: false}\n"))
    upstream.answer(Answer.json(response("queued")), Answer.json(COMPLETED))
    ask(process, "POST", "/v1/responses", {"model": "gpt-5.1", "input": "a", "background": True})
    ask(process, "GET", f"/v1/responses/{ID}")
    assert process.wait_for_rows(TOKENS, 1)[0]["output_tokens"] == 8


def test_a_running_answer_to_a_plain_request_is_cut_as_before(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    """Every stream begins with a response that is in progress."""
    created = events(("response.created", {"response": response("in_progress", background=False)}))
    upstream.answer(Answer.event_stream(*created))
    ask(process, "POST", "/v1/responses", {"model": "gpt-5.1", "input": "a", "stream": True})
    [row] = process.rows(INTERCEPTIONS)
    assert (row["status"], row["error_type"]) == ("failed", "incomplete_stream")


OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "42"}
LATER: dict[str, dict[str, Any]] = {
    "by the response's id": {"previous_response_id": ID, "input": [OUTPUT]},
    "by its history": {"input": [{"role": "user", "content": "Think long"}, CALL, OUTPUT]},
}


@pytest.mark.parametrize("later", LATER)
def test_a_thread_continues_from_a_background_response(
    process: RunningProxy, upstream: ScriptedUpstream, later: str
) -> None:
    begun = create(process, upstream)
    poll(process, upstream, COMPLETED)
    upstream.answer(Answer.json(response("completed") | {"id": "resp_2"}))
    ask(process, "POST", "/v1/responses", {"model": "gpt-5.1", **LATER[later]})
    row = process.rows(INTERCEPTIONS)[-1]
    assert (row["thread_parent_id"], row["session_id"]) == (begun["id"], begun["session_id"])
    assert process.rows(TOOLS)[0]["result"] == "42"
