"""Messages requests of InvokeModel with injected tools, and their answers in AWS's framing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.dialects import INVOKE_STREAM
from aibridge_addon.dialects.bedrock.invoke_inject import InvokeInjection, InvokeSplice
from aibridge_addon.wire.json_object import JSONObject
from tests.dialects.test_inject import BASE, MEANT, MESSAGES_TOOLS, NOT_MEANT, TOOLS
from tests.dialects.test_splice import block, end, start, text, use
from tests.support import aws_frames
from tests.support.streams import play

CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
VERSION = {"anthropic_version": "bedrock-2023-05-31"}
METRICS = "amazon-bedrock-invocationMetrics"
INJECTED = ("bmcp_a_x",)


def injected(body: dict[str, Any], model: str = CLAUDE) -> dict[str, Any] | None:
    injection, request = InvokeInjection().for_model(model), JSONObject(json.dumps(body).encode())
    offered = injection.offered(request, TOOLS)
    if not offered:
        return None
    made: dict[str, Any] = json.loads(injection.inject(request, offered))
    return made


def members_of(cases: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [members for dialect, members in cases if dialect == "messages" and "thread" not in members]


@pytest.mark.parametrize("members", members_of(MEANT), ids=str)
def test_tools_are_injected_as_in_messages(members: dict[str, Any]) -> None:
    body = {name: value for name, value in BASE["messages"].items() if name != "model"} | VERSION | members
    assert injected(body) == body | {"tools": MESSAGES_TOOLS + members.get("tools", [])}


@pytest.mark.parametrize("members", members_of(NOT_MEANT), ids=str)
def test_nothing_is_injected_where_it_cannot_be_meant(members: dict[str, Any]) -> None:
    assert injected(BASE["messages"] | VERSION | members) is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        BASE["messages"],
        VERSION | {"prompt": "Human: hi"},
        {"messages": [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {}},
        {"prompt": "[INST] hi [/INST]", "max_tokens": 9},
        {"inputText": "hi"},
    ],
    ids=str,
)
def test_bodies_of_other_vendors_are_left_alone(body: dict[str, Any]) -> None:
    assert injected(body) is None


@pytest.mark.parametrize("model", ["anthropic.claude-v2:1", "anthropic.claude-instant-v1"])
def test_models_that_take_no_tools_get_none(model: str) -> None:
    assert injected(BASE["messages"] | VERSION, model) is None


def frames(*events: dict[str, Any]) -> list[bytes]:
    return [aws_frames.chunk(json.dumps(event).encode()) for event in events]


def test_metrics_are_the_first_turns_input_and_the_output_and_time_of_all() -> None:
    def turn(number: int, *events: dict[str, Any], reason: str) -> list[bytes]:
        counts = {"inputTokenCount": number, "outputTokenCount": 10 * number, "cacheReadInputTokenCount": number}
        times = {"invocationLatency": 100 * number, "firstByteLatency": number}
        delta, stop = end(reason)
        return frames(start(number), *events, delta, stop | {METRICS: counts | times})

    turns = [turn(1, *use(0), reason="tool_use"), turn(2, *text(0, "a"), reason="end_turn")]
    seen = play(INVOKE_STREAM, InvokeSplice(INJECTED), turns)
    *_, last = [json.loads(aws_frames.read(frame).inner) for frame in aws_frames.split(seen.client)]
    assert last[METRICS] == {
        "inputTokenCount": 1,
        "outputTokenCount": 30,
        "cacheReadInputTokenCount": 1,
        "invocationLatency": 300,
        "firstByteLatency": 1,
    }


def test_a_chunk_keeps_its_headers_and_its_padding() -> None:
    turns = [
        frames(start(1), *use(0), *end("tool_use")),
        frames(start(2), *text(0, "a"), *text(1, "b"), *end("end_turn")),
    ]
    shifted = [frames(start(1), *text(0, "x"), *use(1), *end("tool_use")), turns[1]]
    seen = play(INVOKE_STREAM, InvokeSplice(INJECTED), shifted)
    read = [aws_frames.read(frame) for frame in aws_frames.split(seen.client)]
    indexes = [json.loads(message.inner).get("index") for message in read]
    assert indexes == [None, 0, 0, 0, 1, 1, 1, 2, 2, 2, None, None]
    assert all(json.loads(message.payload).get("p") == "abcdefgh" for message in read[:-2])


@pytest.mark.parametrize("inner", [b"not JSON", b'{"type":"content_block_start"', b"\xff", b"null", b"[]", b""])
def test_an_unreadable_chunk_passes_if_nothing_is_hidden(inner: bytes) -> None:
    *most, delta, stop = frames(start(1), *text(0, "a"), *end("end_turn"))
    stream = [*most, aws_frames.chunk(inner), delta, stop]
    assert play(INVOKE_STREAM, InvokeSplice(INJECTED), [stream]).client == b"".join(stream)


def test_an_unreadable_chunk_that_names_an_injected_tool_is_found() -> None:
    splice = InvokeSplice(INJECTED)
    assert splice.shows_call(aws_frames.chunk(b'{"type":"content_block_start","name":"bmcp_a_x"'))
    assert not splice.shows_call(aws_frames.chunk(b'{"text":"our bmcp_a_x"'))
    assert not splice.shows_call(aws_frames.event("chunk", b'{"bytes":"?"}'))


def test_thinking_and_citations_go_back_whole() -> None:
    thinking = block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm."},
        {"type": "signature_delta", "signature": "s"},
    )
    turn = frames(start(1), *thinking, *use(1, "bmcp_a_x", '{"n":', "1}"), *end("tool_use"))
    (ended, *_) = play(INVOKE_STREAM, InvokeSplice(INJECTED), [turn, []]).ends
    assert ended.content == [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "tool_use", "id": "toolu_1", "name": "bmcp_a_x", "input": {"n": 1}},
    ]
