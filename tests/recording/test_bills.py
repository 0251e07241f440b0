"""What an answer costs as a whole: all rows of it, from the bytes of the request and the answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from aibridge_addon.wire import aws_eventstream
from tests.support.bills import BEDROCK, Sold, bill, lines, prices, server_sent

MESSAGES, CHAT, RESPONSES = "/v1/messages", "/v1/chat/completions", "/v1/responses"
COPILOT, OPENROUTER = "api.githubcopilot.com", "openrouter.ai"
MILLION = {"input_tokens": 100_000, "output_tokens": 10_000}
"""A tenth and a hundredth of a million, below every threshold of a long context."""


def message(usage: dict[str, Any], model: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "model": model, "usage": usage, "content": [], **more}


def response(model: str, usage: object = MILLION, **more: Any) -> dict[str, Any]:
    return {"id": "r", "model": model, "usage": usage, "status": "completed", "output": [], **more}


# --- the provider's cost of an answer with iterations

OPUS = "claude-opus-4.6"
COMPACTED: dict[str, Any] = {
    "input_tokens": 23_000,
    "output_tokens": 1_000,
    "iterations": [
        {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500},
        {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000},
    ],
}
NANO = 112_750_000_000
OF_THE_WHOLE = [("answer", 1.1275, None), ("compaction", 0.0, None)]


@pytest.mark.parametrize(
    ("host", "path", "answer", "rows"),
    [
        (
            COPILOT,
            MESSAGES,
            message(COMPACTED, OPUS, copilot_usage={"total_nano_aiu": NANO, "token_details": [{"n": 1}]}),
            OF_THE_WHOLE,
        ),
        (COPILOT, MESSAGES, message({**COMPACTED, "total_nano_aiu": NANO}, OPUS), OF_THE_WHOLE),
        (OPENROUTER, MESSAGES, message({**COMPACTED, "cost": 1.1275}, OPUS), OF_THE_WHOLE),
        (OPENROUTER, MESSAGES, message(COMPACTED, OPUS, cost=1.1275), OF_THE_WHOLE),
        (
            OPENROUTER,
            MESSAGES,
            message(
                {
                    **COMPACTED,
                    "cost": 0.1275,
                    "is_byok": True,
                    "cost_details": {"upstream_inference_cost": 1},
                },
                OPUS,
            ),
            OF_THE_WHOLE,
        ),
        (
            OPENROUTER,
            MESSAGES,
            message({**COMPACTED, "cost": "much"}, OPUS),
            [(kind, None, "provider_cost: not an amount") for kind in ("answer", "compaction")],
        ),
        # Anthropic states no cost, so such a member means nothing there.
        (
            "api.anthropic.com",
            MESSAGES,
            message(COMPACTED, "claude-opus-4-6", cost=1),
            [("answer", 0.14, None), ("compaction", 0.9875, None)],
        ),
        (
            "api.anthropic.com",
            MESSAGES,
            message(COMPACTED, "claude-opus-4-6", tool_usage={"web_search": {"num_requests": 2}}),
            [("answer", 0.16, None), ("compaction", 0.9875, None)],
        ),
    ],
)
def test_what_is_stated_for_the_whole_answer_is_booked_once(
    host: str, path: str, answer: dict[str, Any], rows: list[tuple[str, float | None, str | None]]
) -> None:
    settings = {"type": "anthropic"} if host == OPENROUTER else {}
    assert prices(Sold(host, path, {"model": OPUS}, answer, settings=settings)) == rows


def test_an_iteration_within_a_stated_cost_says_that_the_provider_states_it() -> None:
    answer = message(COMPACTED, OPUS, copilot_usage={"total_nano_aiu": NANO})
    assert [row.cost_source for row in bill(Sold(COPILOT, MESSAGES, {"model": OPUS}, answer))] == ["provider"] * 2


# --- batches

FILE, BATCH = "/v1/files/f1/content", "/v1/messages/batches/b1/results"
SEARCH = {"type": "web_search_call", "id": "ws", "action": {"type": "search"}}
OPEN = {"type": "web_search_call", "id": "ws", "action": {"type": "open_page"}}


def file_line(body: object) -> dict[str, Any]:
    return {"id": "b", "custom_id": "1", "response": {"status_code": 200, "body": body}, "error": None}


def of_openai(model: str = "gpt-5.5", usage: object = MILLION, **more: Any) -> dict[str, Any]:
    return file_line({**response(model, usage, **more), "object": "response"})


def of_anthropic(usage: object, content: object = (), model: str = "claude-opus-4-6") -> dict[str, Any]:
    body = {"type": "message", "id": "m", "model": model, "content": content, "usage": usage}
    return {"custom_id": "x", "result": {"type": "succeeded", "message": body}}


def fetched(*results: dict[str, Any]) -> list[tuple[str, float | None, str | None]]:
    host, path = ("api.anthropic.com", BATCH) if "result" in results[0] else ("api.openai.com", FILE)
    return prices(Sold(host, path, {}, lines(results), content_type="application/octet-stream"))


def ran(name: str) -> list[dict[str, Any]]:
    return [{"type": "server_tool_use", "id": "s", "name": name, "input": {}}]


THOUSAND = {"input_tokens": 1_000, "output_tokens": 10}


@pytest.mark.parametrize(
    ("results", "rows"),
    [
        # gpt-5.5 costs 0.80 for these tokens, and half of it in a batch.
        ([of_openai(output=[SEARCH, OPEN, SEARCH])], [(0.42, None)]),
        ([of_openai(output=[SEARCH]), of_openai(output=[SEARCH, SEARCH])], [(0.83, None)]),
        ([of_openai(output=[SEARCH]), of_openai()], [(0.41, None), (0.4, None)]),
        ([of_openai(output=[{"type": "code_interpreter_call", "id": "x"}])], [(None, "tool: code_interpreter")]),
        (
            [of_openai(), of_openai(output=[{"type": "code_interpreter_call", "id": "x"}])],
            [(0.4, None), (None, "tool: code_interpreter")],
        ),
        # gpt-4o: 0.25 + 0.1, half of it, and 0.025 for a search of the preview tool.
        (
            [of_openai("gpt-4o", output=[SEARCH], tools=[{"type": "web_search_preview"}])],
            [(0.2, None)],
        ),
        # claude-opus-4-6: 5 and 25, half of it.
        ([of_anthropic(THOUSAND, ran("bash_code_execution"))], [(None, "tool: bash_code_execution")]),
        (
            [of_anthropic({**THOUSAND, "server_tool_use": {"web_search_requests": 2}}, ran("web_search"))],
            [(0.022625, None)],
        ),
        (
            [
                of_anthropic({**THOUSAND, "server_tool_use": {"web_search_requests": 2}}, ran("web_search")),
                of_anthropic(THOUSAND, ran("web_search")),
            ],
            [(0.022625, None), (0.012625, None)],
        ),
    ],
)
def test_hosted_tools_of_a_batch_have_their_fees(
    results: list[dict[str, Any]], rows: list[tuple[float | None, str | None]]
) -> None:
    assert [(cost, unpriced) for _, cost, unpriced in fetched(*results)] == rows


IN_US, IN_GLOBAL = ({"input_tokens": 50_000, "inference_geo": geography} for geography in ("us", "global"))


@pytest.mark.parametrize("results", [[IN_US, IN_GLOBAL], [IN_GLOBAL, IN_US], [IN_US, {"input_tokens": 50_000}]])
def test_answers_of_a_batch_are_added_up_by_their_geography(results: list[dict[str, Any]]) -> None:
    costs = [cost for _, cost, _ in fetched(*map(of_anthropic, results))]
    assert sum(cost or 0 for cost in costs) == pytest.approx(0.2625)  # 0.125 * 1.1 + 0.125


@pytest.mark.parametrize("first", [0, 1])
def test_answers_of_a_batch_are_added_up_by_their_speed(first: int) -> None:
    usages = [{"input_tokens": 50_000, "speed": "fast"}, {"input_tokens": 50_000}]
    assert set(fetched(of_anthropic(usages[first]), of_anthropic(usages[1 - first]))) == {
        ("answer", 0.125, None),
        ("answer", None, "combination: processing batch, speed fast"),
    }


@pytest.mark.parametrize("results", [[of_anthropic(THOUSAND), of_anthropic(None)], [of_openai(), of_openai(usage={})]])
def test_a_succeeded_line_without_usage_has_a_row_without_a_price(results: list[dict[str, Any]]) -> None:
    host, path = ("api.anthropic.com", BATCH) if "result" in results[0] else ("api.openai.com", FILE)
    first, second = bill(Sold(host, path, {}, lines(results), content_type="application/octet-stream"))
    assert first.cost_usd is not None and first.completeness == "complete"
    assert (second.unpriced, second.completeness, second.model) == ("usage: not readable", "partial", first.model)


def test_an_iteration_is_served_where_its_answer_is() -> None:
    usage = {**COMPACTED, "inference_geo": "us", "service_tier": "standard"}
    answer = message(usage, "claude-opus-4-6")
    assert prices(Sold("api.anthropic.com", MESSAGES, {"model": "claude-opus-4-6"}, answer)) == [
        ("answer", 0.154, None),  # 0.14 * 1.1
        ("compaction", 1.08625, None),  # 0.9875 * 1.1
    ]


WRITTEN = {"input_tokens": 10_000, "input_tokens_details": {"cache_write_tokens": 10_000}}


@pytest.mark.parametrize(
    ("model", "wish", "answer", "cost"),
    [
        # gpt-5.5: 0.80, gpt-6-sol: 2.50 for a million tokens written to its cache.
        ("gpt-5.5", {}, {"usage": MILLION}, 0.8),
        ("gpt-5.5", {"service_tier": "priority"}, {"usage": MILLION}, 2.0),
        ("gpt-5.5", {"service_tier": "flex"}, {"usage": MILLION}, 0.4),
        ("gpt-5.5", {"service_tier": "flex"}, {"usage": MILLION, "service_tier": "default"}, 0.8),
        ("gpt-5.5", {"service_tier": 7}, {"usage": MILLION}, 0.8),
        ("gpt-6-sol", {}, {"usage": WRITTEN}, 0.025),
        ("gpt-6-sol", {"prompt_cache_retention": "12h"}, {"usage": WRITTEN}, 0.05),
    ],
)
def test_a_compaction_has_the_price_of_what_was_requested(
    model: str, wish: dict[str, Any], answer: dict[str, Any], cost: float
) -> None:
    body = {"id": "r", "object": "response.compaction", "output": [], **answer}
    sold = Sold("api.openai.com", "/v1/responses/compact", {"model": model, **wish}, body)
    assert prices(sold) == [("answer", cost, None)]


# --- facts beside the usage of a streamed chat completion

CHUNK = {"id": "c", "model": "gpt-5.5", "object": "chat.completion.chunk"}
USAGE_CHUNK = {**CHUNK, "choices": [], "usage": {"prompt_tokens": 100_000, "completion_tokens": 10_000}}
TEXT_CHUNK = {**CHUNK, "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}
OPENAI = "api.openai.com"


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("place", ["before the usage", "with a text", "after the usage"])
@pytest.mark.parametrize(
    ("host", "path", "fact", "row"),
    [
        (COPILOT, "/chat/completions", {"copilot_usage": {"total_nano_aiu": 1_500_000_000}}, (0.015, None)),
        (OPENROUTER, "/api/v1/chat/completions", {"cost": 0.25}, (0.25, None)),
        (OPENAI, CHAT, {"service_tier": "flex"}, (0.4, None)),
        (OPENAI, CHAT, {"serviceTier": "flex"}, (0.4, None)),
        (OPENAI, CHAT, {"service_tier": None}, (0.8, None)),
        (OPENAI, CHAT, {"inference_geo": "moon"}, (None, "inference_geo: moon")),
        (OPENAI, CHAT, {"speed": "fast"}, (None, "speed: fast")),
        (OPENAI, CHAT, {"performanceConfig": {"latency": "optimized"}}, (None, "latency: optimized")),
        (OPENAI, CHAT, {"tool_usage": {"web_search": {"num_requests": 2}}}, (0.82, None)),
    ],
)
def test_a_fact_beside_the_usage_counts_in_every_chunk(
    host: str, path: str, fact: dict[str, Any], row: tuple[float | None, str | None], place: str, compact: bool
) -> None:
    chunks: list[dict[str, Any]] = [{**TEXT_CHUNK, "service_tier": "default"}, TEXT_CHUNK, USAGE_CHUNK]
    if place == "with a text":
        chunks[1] = {**chunks[1], **fact}
    else:
        chunks.insert(2 if place == "before the usage" else 3, {**CHUNK, "choices": [], **fact})
    stream = server_sent(chunks, done=True, compact=compact)
    sold = Sold(host, path, {"model": "gpt-5.5", "stream": True}, stream, content_type="text/event-stream")
    assert prices(sold) == [("answer", *row)]


# --- the service tier in Bedrock's headers

TIER = "x-amzn-bedrock-service-tier"
HEADER_COUNTS = {"x-amzn-bedrock-input-token-count": "100000", "x-amzn-bedrock-output-token-count": "10000"}
GPT_OSS, SONNET = "openai.gpt-oss-120b-1%3A0", "global.anthropic.claude-sonnet-4-5-20250929-v1%3A0"
METRICS = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 100_000, "outputTokenCount": 10_000}}
FRAMED = "application/vnd.amazon.eventstream"


def framed(*events: dict[str, Any]) -> bytes:
    headers = {":message-type": "event", ":event-type": "chunk", ":content-type": "application/json"}
    payloads = (base64.b64encode(json.dumps(event).encode()).decode() for event in events)
    return b"".join(aws_eventstream.encode(headers, json.dumps({"bytes": data}).encode()) for data in payloads)


def claude_stream(*, metrics: bool) -> bytes:
    start = {"type": "message_start", "message": message({**MILLION, "service_tier": "standard"}, "claude-sonnet-4-5")}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 10_000}}
    return framed(start, delta, {"type": "message_stop", **(METRICS if metrics else {})})


# gpt-oss-120b: 0.015 and 0.006 for these tokens. Flex costs half, priority 1.75 times. Sonnet 4.5: 0.45.
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("model", "wish", "served", "cost", "unpriced"),
    [
        (GPT_OSS, None, None, 0.021, None),
        (GPT_OSS, None, "priority", 0.03675, None),
        (GPT_OSS, "flex", "default", 0.021, None),
        (GPT_OSS, "flex", "flex", 0.0105, None),
        (GPT_OSS, "flex", None, 0.0105, None),
        (SONNET, None, "reserved", None, "service_tier: reserved"),
        (SONNET, "reserved", "default", 0.45, None),
        (SONNET, None, "default", 0.45, None),
    ],
)
def test_the_tier_in_the_headers_of_an_invocation_counts(
    model: str, wish: str | None, served: str | None, cost: float | None, unpriced: str | None, streamed: bool
) -> None:
    answer: dict[str, Any] | bytes = message({**MILLION, "service_tier": "standard"}, "claude-sonnet-4-5")
    if model == GPT_OSS:
        answer = framed({"choices": [], **METRICS}) if streamed else {"choices": []}
    elif streamed:
        answer = claude_stream(metrics=True)
    sold = Sold(
        *(BEDROCK, f"/model/{model}/invoke{'-with-response-stream' if streamed else ''}", {}, answer),
        content_type=FRAMED if streamed else "application/json",
        request_headers={TIER.encode(): wish.encode()} if wish else {},
        answer_headers=({} if streamed else HEADER_COUNTS) | ({TIER: served} if served else {}),
    )
    assert prices(sold) == [("answer", cost, unpriced)]


@pytest.mark.parametrize("metrics", [False, True])
def test_the_tier_in_the_headers_counts_for_iterations_and_without_metrics(metrics: bool) -> None:
    stream = claude_stream(metrics=metrics)
    sold = Sold(
        *(BEDROCK, f"/model/{SONNET}/invoke-with-response-stream", {}, stream, FRAMED),
        answer_headers={TIER: "reserved"},
    )
    assert prices(sold) == [("answer", None, "service_tier: reserved")]
    body = message(COMPACTED, "claude-opus-4-6")
    sold = Sold(BEDROCK, "/model/global.anthropic.claude-opus-4-6-v1/invoke", {}, body, answer_headers={TIER: "flex"})
    assert [unpriced for _, _, unpriced in prices(sold)] == ["service_tier: flex"] * 2


def test_the_tier_in_the_headers_of_a_conversation_counts_if_the_body_has_none() -> None:
    body = {"usage": {"inputTokens": 100_000, "outputTokens": 10_000}, "output": {}}
    sold = Sold(BEDROCK, f"/model/{GPT_OSS}/converse", {}, body, answer_headers={TIER: "priority"})
    assert prices(sold) == [("answer", 0.03675, None)]


# --- counts that cannot be read

UNREADABLE = ["many", -5, 11.5, True, {"x": 1}, [1], 2**70, "9" * 30, ""]


@pytest.mark.parametrize("count", UNREADABLE, ids=repr)
@pytest.mark.parametrize(
    ("host", "path", "answer", "name"),
    [
        (OPENAI, CHAT, {"id": "c", "model": "gpt-4.1", "choices": []}, "prompt_tokens"),
        (OPENAI, RESPONSES, response("gpt-4.1"), "input_tokens"),
        (OPENAI, "/v1/embeddings", {"model": "text-embedding-3-small"}, "prompt_tokens"),
        ("api.anthropic.com", MESSAGES, message({}, "claude-opus-4-6"), "input_tokens"),
        ("api.anthropic.com", MESSAGES, message({}, "claude-opus-4-6"), "cache_read_input_tokens"),
        (BEDROCK, f"/model/{SONNET}/converse", {"output": {}}, "inputTokens"),
        (BEDROCK, f"/model/{SONNET}/invoke", message({}, ""), "input_tokens"),
    ],
)
def test_a_count_that_cannot_be_read_leaves_the_row_without_a_price(
    host: str, path: str, answer: dict[str, Any], name: str, count: object
) -> None:
    usage = {"completion_tokens": 10, "output_tokens": 10, "outputTokens": 10, name: count}
    [row] = bill(Sold(host, path, {"model": "m"}, {**answer, "usage": usage}))
    assert (row.cost_usd, row.unpriced, row.completeness) == (None, f"usage: {name}", "partial")


@pytest.mark.parametrize("count", UNREADABLE, ids=repr)
@pytest.mark.parametrize("first", [0, 1])
def test_a_count_of_a_batch_that_cannot_be_read_leaves_its_sum_without_a_price(first: int, count: object) -> None:
    usages = [{"input_tokens": count, "output_tokens": 10}, THOUSAND]
    body = lines([of_anthropic(usages[first]), of_anthropic(usages[1 - first])])
    [row] = bill(Sold("api.anthropic.com", BATCH, {}, body, content_type="application/octet-stream"))
    assert (row.cost_usd, row.unpriced, row.completeness) == (None, "usage: input_tokens", "partial")


def test_counts_of_iterations_and_headers_that_cannot_be_read_leave_their_rows_without_a_price() -> None:
    usage = {**COMPACTED, "iterations": [{"type": "compaction", "input_tokens": "many"}]}
    assert prices(Sold("api.anthropic.com", MESSAGES, {}, message(usage, "claude-opus-4-6"))) == [
        ("answer", 0.14, None),
        ("compaction", None, "usage: input_tokens"),
    ]
    headers = HEADER_COUNTS | {"x-amzn-bedrock-input-token-count": "many"}
    sold = Sold(BEDROCK, f"/model/{GPT_OSS}/invoke", {}, {"choices": []}, answer_headers=headers)
    assert prices(sold) == [("answer", None, "usage: x-amzn-bedrock-input-token-count")]


def test_a_stated_cost_counts_whatever_the_tokens_are() -> None:
    usage = {"prompt_tokens": "many", "completion_tokens": 10, "cost": 0.25}
    answer = {"id": "c", "model": "x/y", "choices": [], "usage": usage}
    assert prices(Sold(OPENROUTER, "/api/v1/chat/completions", {}, answer)) == [("answer", 0.25, None)]


# --- more than is kept of an answer

MANY = {f"note_{n}": "x" for n in range(70)}
LEFT_OUT = "usage: more_names_than_are_read_tokens"


@pytest.mark.parametrize(
    ("usage", "beside", "row"),
    [
        # claude-opus-5: 5 for a million tokens, fast mode twice that.
        ({"speed": "fast"}, {}, (0.01, None)),
        ({**MANY, "speed": "fast"}, {}, (None, LEFT_OUT)),
        (MANY, {"speed": "fast"}, (None, LEFT_OUT)),
        ({"new_tokens" * 20: 1}, {}, (None, LEFT_OUT)),
        ({"a": {"b": {"c": {"d": {"e": {"new_tokens": 1}}}}}}, {}, (None, LEFT_OUT)),
        ({"new_tokens": 2**64}, {}, (None, "usage: new_tokens")),
        ({"speed": "x" * 300}, {}, (None, f"speed: {'x' * 64}")),
        ({}, {"performanceConfig": {"latency": "x" * 300}}, (None, f"latency: {'x' * 64}")),
    ],
)
def test_what_is_not_kept_of_the_usage_leaves_the_row_without_a_price(
    usage: Mapping[str, Any], beside: Mapping[str, Any], row: tuple[float | None, str | None]
) -> None:
    answer = message({"input_tokens": 1_000, **usage}, "claude-opus-5", **beside)
    assert prices(Sold("api.anthropic.com", MESSAGES, {}, answer)) == [("answer", *row)]


def test_a_stated_cost_and_conditions_are_kept_behind_any_number_of_other_members() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, **MANY, "cost": 0.25}
    answer = {"id": "c", "model": "x/y", "choices": [], "usage": usage, "service_tier": "flex"}
    [row] = bill(Sold(OPENROUTER, "/api/v1/chat/completions", {}, answer))
    assert (row.cost_usd, row.extra["service_tier"]) == (0.25, "flex")


def test_iterations_beyond_the_bound_have_one_row_without_a_price() -> None:
    iterations = [{"type": "message", "input_tokens": 1}] * 100 + [{"type": "compaction", "input_tokens": 1_000}] * 70
    usage = {"input_tokens": 1_000, "iterations": iterations}
    *rows, rest = bill(Sold("api.anthropic.com", MESSAGES, {}, message(usage, "claude-opus-4-6")))
    assert len(rows) == 65 and {row.cost_usd for row in rows} == {0.005}
    assert (rest.kind, rest.input_tokens, rest.cost_usd) == ("rest", 6_000, None)
    assert (rest.unpriced, rest.completeness) == (LEFT_OUT, "partial")
