"""Bedrock's own two dialects: how requests end, other vendors' bodies, Bedrock's counts, and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects import CONVERSE, CONVERSE_STREAM, INVOKE, INVOKE_STREAM
from aibridge_addon.dialects.base import Dialect, Reading, RequestReading, Usage
from aibridge_addon.wire.framing import AWS_EVENT_STREAM
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable
from tests.support import aws_frames

OF_BEDROCK = (INVOKE, INVOKE_STREAM, CONVERSE, CONVERSE_STREAM)
METRICS = {"inputTokenCount": 7, "outputTokenCount": 11, "invocationLatency": 900, "firstByteLatency": 80}
COUNTS = {"x-amzn-bedrock-input-token-count": "7", "x-amzn-bedrock-output-token-count": "11"}


def read_request(dialect: Dialect, body: dict[str, Any]) -> RequestReading:
    return dialect.read_request(JSONObject(json.dumps(body).encode()))


def read_body(dialect: Dialect, body: dict[str, Any], headers: dict[str, str] | None = None) -> Reading:
    reader = dialect.answer_reader()
    reader.head(headers or {})
    reader.message(body)
    return reader.reading


def read_chunks(*events: dict[str, Any], headers: dict[str, str] | None = None) -> Reading:
    """What a stream of InvokeModel's says whose chunks are these."""
    reader = INVOKE_STREAM.answer_reader()
    reader.head(headers or {})
    for event in events:
        name, data = AWS_EVENT_STREAM.parse(aws_frames.chunk(json.dumps(event).encode()))
        assert data is not None
        reader.event(name, data)
    reader.stream_ended()
    return reader.reading


# --- requests


@pytest.mark.parametrize("dialect", OF_BEDROCK, ids=lambda dialect: dialect.name)
def test_the_route_and_not_the_body_says_the_model_and_whether_it_streams(dialect: Dialect) -> None:
    reading = read_request(dialect, {"model": "m-1", "stream": dialect not in (INVOKE_STREAM, CONVERSE_STREAM)})
    assert reading.model == ""
    assert reading.streaming is (dialect in (INVOKE_STREAM, CONVERSE_STREAM))


def test_an_anthropic_models_body_is_read_as_messages() -> None:
    body = {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 32000,
        "metadata": {"user_id": "u-1"},
        "messages": [{"role": "user", "content": "hi"}],
    }
    reading = read_request(INVOKE, body)
    assert (reading.prompt, reading.side_call, reading.metadata_user_id) == ("hi", False, "u-1")


def test_claude_codes_probe_is_no_prompt_of_a_person() -> None:
    body = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 1, "messages": [{"role": "user", "content": "."}]}
    assert read_request(INVOKE, body).side_call
    converse = {"inferenceConfig": {"maxTokens": 1}, "messages": [{"role": "user", "content": [{"text": "."}]}]}
    assert read_request(CONVERSE, converse).side_call


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "[INST] hi [/INST]", "max_gen_len": 64},
        {"inputText": "hi", "textGenerationConfig": {"maxTokenCount": 64}},
        {"schemaVersion": "messages-v1", "messages": [{"role": "user", "content": [{"text": "hi"}]}]},
    ],
    ids=["Llama", "Titan", "Nova"],
)
def test_another_vendors_body_says_nothing_that_we_would_have_to_guess(body: dict[str, Any]) -> None:
    reading = read_request(INVOKE, body)
    assert (reading.prompt, reading.correlating_tool_call_id, reading.side_call) == (None, None, False)


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def result(call_id: Any) -> dict[str, Any]:
    return {"toolResult": {"toolUseId": call_id, "content": [{"text": "ok"}]}}


TEXT, REMINDER = {"text": "hi"}, {"text": "<system-reminder>\nToday is a day.\n</system-reminder>"}
ASSISTANT = {"role": "assistant", "content": [{"text": "Hello."}]}
ENDS: dict[str, tuple[dict[str, Any], tuple[str | None, str | None]]] = {
    "a text": ({"messages": [user(TEXT)]}, ("hi", None)),
    "the last of several texts": ({"messages": [user({"text": "a"}, TEXT)]}, ("hi", None)),
    "reminders do not count": ({"messages": [user(TEXT, REMINDER)]}, ("hi", None)),
    "reminders only": ({"messages": [user(REMINDER)]}, (None, None)),
    "blank text": ({"messages": [user(TEXT, {"text": " \n"})]}, ("hi", None)),
    "an image and a cache point after it": (
        {"messages": [user(TEXT, {"image": {"format": "png"}}, {"cachePoint": {"type": "default"}})]},
        ("hi", None),
    ),
    "an image only": ({"messages": [user({"image": {"format": "png"}})]}, (None, None)),
    "a tool's result": ({"messages": [ASSISTANT, user(result("t1"))]}, (None, "t1")),
    "several results: the last one": ({"messages": [ASSISTANT, user(result("t1"), result("t2"))]}, (None, "t2")),
    "a result, and text beside it": ({"messages": [ASSISTANT, user(result("t1"), TEXT)]}, ("hi", "t1")),
    "a result, and a reminder beside it": ({"messages": [ASSISTANT, user(result("t1"), REMINDER)]}, (None, "t1")),
    "a message of unknown blocks after it": ({"messages": [user(TEXT), user({"novel": {}})]}, ("hi", None)),
    "an unknown role after a result": ({"messages": [user(result("t1")), {"role": "novel"}]}, (None, "t1")),
    "a system entry after it": (
        {"messages": [user(TEXT), {"role": "system", "content": [{"text": "Be brief."}]}]},
        ("hi", None),
    ),
    "the model's turn": ({"messages": [user(TEXT), ASSISTANT]}, (None, None)),
    "text that is no list": ({"messages": [{"role": "user", "content": "hi"}]}, (None, None)),
    "a stored prompt": ({"promptVariables": {"topic": {"text": "x"}}}, (None, None)),
    "an id that is no text": ({"messages": [user(result(7))]}, (None, None)),
    "a result that is no object": ({"messages": [user({"toolResult": "x"})]}, (None, None)),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_conversation_ends_as_the_table_says(case: str) -> None:
    body, ends = ENDS[case]
    reading = read_request(CONVERSE, body)
    assert (reading.prompt, reading.correlating_tool_call_id) == ends


# --- other vendors' answers


@pytest.mark.parametrize(
    "body",
    [
        {"generation": "Hello", "prompt_token_count": 7, "generation_token_count": 11, "stop_reason": "stop"},
        {"inputTextTokenCount": 7, "results": [{"outputText": "Hello", "tokenCount": 11}]},
        {"output": {"message": {"content": [{"text": "Hello"}]}}, "usage": {"inputTokens": 7, "outputTokens": 11}},
        {"id": "c-1", "model": "m", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 11}},
        {},
    ],
    ids=["Llama", "Titan", "Nova", "OpenAI", "nothing"],
)
def test_the_tokens_of_another_vendors_body_are_those_of_the_headers(body: dict[str, Any]) -> None:
    reading = read_body(INVOKE, body, {**COUNTS, "x-amzn-requestid": "r-1", "x-amzn-bedrock-service-tier": "flex"})
    assert reading.usage == Usage(input_tokens=7, output_tokens=11, extra={"service_tier": "flex"})
    assert (reading.response_id, reading.model, reading.finished) == ("r-1", "", True)
    assert read_body(INVOKE, body).usage is None


LLAMA = ({"generation": "Hel"}, {"generation": "lo", "stop_reason": "stop"})
NOVA = (
    {"messageStart": {"role": "assistant"}},
    {"contentBlockDelta": {"delta": {"text": "Hello"}, "contentBlockIndex": 0}},
    {"messageStop": {"stopReason": "end_turn"}},
    {"metadata": {"usage": {"inputTokens": 7, "outputTokens": 11}}},
)


@pytest.mark.parametrize("events", [LLAMA, NOVA], ids=["Llama", "Nova"])
def test_another_vendors_stream_ends_with_bedrocks_metrics_which_tell_its_tokens(
    events: tuple[dict[str, Any], ...],
) -> None:
    *most, last = events
    reading = read_chunks(
        *most, last | {"amazon-bedrock-invocationMetrics": METRICS}, headers={"x-amzn-requestid": "r"}
    )
    assert reading.usage == Usage(input_tokens=7, output_tokens=11)
    assert (reading.response_id, reading.ended, reading.finished) == ("r", True, True)
    assert not read_chunks(*events).ended


# --- what Bedrock counts beside Messages


def messages_stream(usage: dict[str, int], metrics: dict[str, int]) -> Reading:
    return read_chunks(
        {"type": "message_start", "message": {"id": "msg_1", "model": "claude", "usage": usage}},
        {"type": "message_delta", "usage": {"output_tokens": 11}},
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics},
    )


def test_messages_own_counts_stand_and_bedrocks_fill_in_what_they_leave_out() -> None:
    metrics = {**METRICS, "inputTokenCount": 999, "cacheReadInputTokenCount": 500, "cacheWriteInputTokenCount": 40}
    reading = messages_stream({"input_tokens": 7, "cache_read_input_tokens": 300}, metrics)
    assert reading.usage == Usage(
        input_tokens=7, output_tokens=11, cache_read_input_tokens=300, cache_write_input_tokens=40
    )
    assert reading.response_id == "msg_1"


def test_a_message_in_one_body_takes_the_headers_for_what_it_leaves_out() -> None:
    body = {"type": "message", "id": "msg_1", "usage": {"input_tokens": 3, "output_tokens": 4}, "content": []}
    cached = {**COUNTS, "x-amzn-bedrock-cache-read-input-token-count": "500"}
    assert read_body(INVOKE, body, cached).usage == Usage(3, 4, cache_read_input_tokens=500)
    assert read_body(INVOKE, {**body, "usage": None}, COUNTS).usage == Usage(7, 11)


@pytest.mark.parametrize("count", ["-1", "seven", "1.5", "²", "9" * 30, str(2**63)])
def test_a_count_in_a_header_that_is_none_makes_the_usage_incomplete(count: str) -> None:
    name = "x-amzn-bedrock-input-token-count"
    assert read_body(INVOKE, {}, {name: count}).usage == Usage(extra={name: count}, complete=False)


@pytest.mark.parametrize("count", ["", "0"])
def test_a_header_without_tokens_is_no_usage(count: str) -> None:
    assert read_body(INVOKE, {}, {"x-amzn-bedrock-input-token-count": count}).usage is None


# --- errors


@pytest.mark.parametrize(
    ("headers", "body", "type_", "message"),
    [
        ({"x-amzn-errortype": "ValidationException"}, b'{"message":"No."}', "ValidationException", "No."),
        ({"x-amzn-errortype": "AccessDeniedException:http://x/"}, b'{"Message":"No."}', "AccessDeniedException", "No."),
        ({}, b'{"__type":"com.amazon.coral.service#ExpiredTokenException"}', "ExpiredTokenException", ""),
        ({}, b'{"message":7}', "http_400", ""),
        ({}, b"<html>", "http_400", ""),
        ({}, b"[1]", "http_400", ""),
        ({}, b'{"error":{"type":"rate_limit_error","message":"No."}}', "rate_limit_error", "No."),
    ],
)
@pytest.mark.parametrize("dialect", [INVOKE, CONVERSE], ids=lambda dialect: dialect.name)
def test_an_error_answer_says_its_type_in_a_header_or_in_the_body(
    dialect: Dialect, headers: dict[str, str], body: bytes, type_: str, message: str
) -> None:
    reader = dialect.answer_reader()
    reader.head(headers)
    reader.failure(400, body)
    assert reader.reading.error is not None
    assert (reader.reading.error.type, reader.reading.error.message) == (type_, message)


@pytest.mark.parametrize(
    ("status", "type_"),
    [(400, "ValidationException"), (407, "UnrecognizedClientException"), (502, "InternalServerException")],
)
@pytest.mark.parametrize("dialect", [INVOKE, CONVERSE], ids=lambda dialect: dialect.name)
def test_an_error_of_ours_is_read_as_one(dialect: Dialect, status: int, type_: str) -> None:
    reader = dialect.answer_reader()
    reader.head(dialect.error_headers(status))
    reader.failure(status, dialect.error_body(status, 'a "message"'))
    assert reader.reading.error is not None
    assert (reader.reading.error.type, reader.reading.error.message) == (type_, 'a "message"')


@pytest.mark.parametrize("dialect", [INVOKE_STREAM, CONVERSE_STREAM], ids=lambda dialect: dialect.name)
def test_an_error_event_of_ours_is_an_exception_to_botocore_and_to_us(dialect: Dialect) -> None:
    frame = dialect.error_event("Größe", {"originalStatusCode": 500})
    buffer = EventStreamBuffer()
    buffer.add_data(frame)
    [message] = buffer
    assert message.to_response_dict()["status_code"] == 400
    assert message.headers[":exception-type"] == "internalServerException"
    assert json.loads(message.payload) == {"message": "Größe", "originalStatusCode": 500}
    reader = dialect.answer_reader()
    name, data = AWS_EVENT_STREAM.parse(frame)
    assert data is not None
    reader.event(name, data)
    assert reader.reading.error is not None and reader.reading.error.message == "Größe"


# --- any bytes at all


@given(inner=st.binary(max_size=60))
def test_no_chunk_makes_reading_fail_otherwise(inner: bytes) -> None:
    reader = INVOKE_STREAM.answer_reader()
    name, data = AWS_EVENT_STREAM.parse(aws_frames.chunk(inner))
    assert data is not None
    try:
        reader.event(name, data)
    except (NotJSON, Unreadable):
        pass


def test_usage_of_converse_without_one_of_its_two_counts_is_not_complete() -> None:
    found = read_body(CONVERSE, {"stopReason": "end_turn", "usage": {"inputTokens": 9, "outputTokens": None}}).usage
    assert found is not None and not found.complete
