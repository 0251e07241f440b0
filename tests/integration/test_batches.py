"""Batches are recorded when their results are fetched: one interception, one token row per model, once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from typing import Any

import pytest

from tests.conftest import StartProxy
from tests.support.client import gateway_client
from tests.support.database import Row, Table
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

INTERCEPTIONS: Table = "aibridge_interceptions"
TOKENS: Table = "aibridge_token_usages"
KEY = "sk-0123456789-abcdefghijkl"
BATCH = "/anthropic/v1/messages/batches/msgbatch_1/results"
FILE = "/openai/v1/files/file-1/content"
SONNET, HAIKU = "claude-sonnet-4-5-20250929", "claude-haiku-4-5-20251001"


def message(model: str, inputs: int, outputs: int, text: str = "hi") -> dict[str, Any]:
    usage = {"input_tokens": inputs, "output_tokens": outputs, "cache_read_input_tokens": 2, "service_tier": "batch"}
    content = [{"type": "text", "text": text}]
    body = {"id": "msg_1", "type": "message", "model": model, "content": content, "usage": usage}
    return {"custom_id": "a", "result": {"type": "succeeded", "message": body}}


def chat(model: str, inputs: int, outputs: int) -> dict[str, Any]:
    usage = {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": inputs + outputs}
    return answered({"id": "chatcmpl-1", "object": "chat.completion", "model": model, "choices": [], "usage": usage})


def answered(body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "req_1", "body": body}
    return {"id": "batch_req_1", "custom_id": "a", "response": response, "error": None}


def lines(results: Iterable[object]) -> bytes:
    return b"".join(json.dumps(result).encode() + b"\n" for result in results)


@pytest.fixture
def process(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=config(upstream))


def config(upstream: ScriptedUpstream) -> str:
    return (
        f"providers:\n  - {{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}\n"
        f"  - {{name: openai, type: openai, base_url: '{upstream.url}/v1'}}\n"
    )


def fetch(
    process: RunningProxy, upstream: ScriptedUpstream, path: str, body: bytes, status: int = 200, coding: str = ""
) -> list[Row]:
    """Fetch results, and return all token rows."""
    content = gzip.compress(body) if coding else body
    headers = [("content-type", "application/octet-stream"), *([("content-encoding", coding)] if coding else ())]
    upstream.answer(Answer(status, headers, [content[i : i + 50_000] for i in range(0, len(content), 50_000)]))
    with gateway_client(process) as client:
        sent = {"x-api-key": KEY, "authorization": f"Bearer {KEY}"}
        with client.stream("GET", path, headers=sent) as answer:
            assert (answer.status_code, b"".join(answer.iter_raw())) == (status, content)
    return process.rows(TOKENS)


def test_the_results_of_a_message_batch_are_added_up_by_model(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    results = [
        *(message(SONNET, 10, 3) for _ in range(1000)),
        message(HAIKU, 7, 1),
        {"custom_id": "b", "result": {"type": "errored", "error": {"type": "invalid_request"}}},
        {"custom_id": "c", "result": {"type": "expired"}},
    ]
    rows = {row["model"]: row for row in fetch(process, upstream, BATCH, lines(results), coding="gzip")}
    assert rows.keys() == {SONNET, HAIKU}
    assert (rows[SONNET]["input_tokens"], rows[SONNET]["output_tokens"]) == (10_000, 3_000)
    assert rows[SONNET]["cache_read_input_tokens"] == 2_000
    assert rows[SONNET]["metadata"].items() >= {"requests": 1000, "service_tier": "batch"}.items()
    assert rows[HAIKU]["metadata"]["requests"] == 1
    assert {row["provider_response_id"] for row in rows.values()} == {"msgbatch_1"}
    [interception] = process.rows(INTERCEPTIONS)
    assert (interception["route"], interception["status"]) == ("/v1/messages/batches/{id}/results", "completed")
    assert interception["credential_hint"] == "sk-0...ijkl"


def test_a_file_of_results_holds_the_answers_of_several_routes(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    usage = {"input_tokens": 20, "input_tokens_details": {"cached_tokens": 5}, "output_tokens": 4}
    results = [
        chat("gpt-4.1-2025-04-14", 10, 3),
        answered({"id": "resp_1", "object": "response", "model": "gpt-5.1", "status": "completed", "usage": usage}),
        answered({"object": "list", "model": "text-embedding-3-small", "usage": {"prompt_tokens": 9}}),
        answered({"error": {"message": "no"}}, status=400),
    ]
    rows = {row["model"]: row for row in fetch(process, upstream, FILE, lines(results).rstrip())}
    assert {model: row["input_tokens"] for model, row in rows.items()} == {
        "gpt-4.1-2025-04-14": 10,
        "gpt-5.1": 15,
        "text-embedding-3-small": 9,
    }
    assert {row["metadata"]["service_tier"] for row in rows.values()} == {"batch"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"\x89PNG\r\n\x1a\n" + bytes(400_000),
        lines([{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4.1"}}]),
        lines([{"messages": [{"role": "user", "content": '"custom_id" "response" "usage": {"input_tokens": 1}'}]}]),
        json.dumps({"usage": {"input_tokens": 1}}, indent=1).encode(),
        b"null\n[1]\n",
    ],
)
def test_any_other_file_passes_unrecorded(process: RunningProxy, upstream: ScriptedUpstream, content: bytes) -> None:
    assert fetch(process, upstream, FILE, content) == []
    assert process.rows(INTERCEPTIONS) == []


def test_results_that_are_fetched_again_are_recorded_once(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    first = start_proxy(config=config(upstream))
    body = lines([message(SONNET, 10, 3)])
    for _ in range(2):
        assert len(fetch(first, upstream, BATCH, body)) == 1
    assert len(first.rows(INTERCEPTIONS)) == 1
    first.close()
    second = start_proxy(config=config(upstream), folder=first.folder)
    assert len(fetch(second, upstream, BATCH, body)) == 1
    assert len(fetch(second, upstream, BATCH.replace("msgbatch_1", "msgbatch_2"), body)) == 2


def test_an_answer_with_another_status_is_not_the_results(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    body = lines([message(SONNET, 10, 3)])
    for status in (206, 404):
        assert fetch(process, upstream, BATCH, body, status=status) == []
    assert len(fetch(process, upstream, BATCH, body)) == 1
