"""What readers and splices keep of an answer is bounded, and is put together in linear time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects import CHAT_COMPLETIONS, CONVERSE_STREAM, MESSAGES, RESPONSES
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.chat_completions.growth import Grown
from aibridge_addon.dialects.room import MAX_PIECES, STEP, Pieces, Room
from aibridge_addon.interception.tap import Tap
from aibridge_addon.wire import sse
from tests.interception.test_buffers import buffers_of

PIECE = "x" * 1000


def test_a_room_takes_in_steps_from_what_all_share() -> None:
    share = buffers_of(10 * STEP).share()
    room = Room(3 * STEP, share.add)
    assert room.take(1000) and share.size == STEP
    assert all(room.take(1000) for _ in range(99)) and share.size == 2 * STEP


def test_a_room_is_exceeded_once_and_for_all() -> None:
    room = Room(100)
    assert room.take(100) and not room.exceeded
    assert not room.take(1) and not room.take(0) and room.exceeded


def test_without_a_share_nothing_more_is_kept() -> None:
    share = buffers_of(10).share()
    assert not Room(10**9, share.add).take(11)


def test_pieces_are_joined_now_and_then() -> None:
    """Each short text takes 50 bytes by itself."""
    pieces = Pieces("a")
    for _ in range(10 * MAX_PIECES):
        pieces.add("bc")
    assert len(pieces._pieces) <= MAX_PIECES and len(pieces._joined) <= 11
    assert pieces.text() == "a" + "bc" * 10 * MAX_PIECES


@pytest.mark.parametrize(
    ("deltas", "whole"),
    [
        ([{"a": "x"}, {"a": "y"}, {"a": None}], {"a": "xy"}),
        ([{"a": None}, {"a": "x"}], {"a": "x"}),
        ([{"id": "1", "type": "function"}, {"id": "1", "type": "function"}], {"id": "1", "type": "function"}),
        ([{"name": "a"}, {"name": "b"}, {"name": "ab"}], {"name": "ab"}),
        ([{"a": {"b": "x"}}, {"a": {"b": "y", "c": 1}}], {"a": {"b": "xy", "c": 1}}),
        ([{"a": [1]}, {"a": [2]}], {"a": [1, 2]}),
        (
            [{"a": [{"index": 0, "text": "x"}]}, {"a": [{"index": 1, "text": "z"}, {"index": 0, "text": "y"}]}],
            {"a": [{"index": 0, "text": "xy"}, {"index": 1, "text": "z"}]},
        ),
        ([{"a": [{"index": 0, "text": "x"}]}, {"a": [{"index": 0, "text": None, "b": 1}]}], None),
        ([{"a": [{"index": [], "type": {}}]}, {"a": [{"index": [], "type": {}}]}], {"a": [{"index": [], "type": {}}]}),
        ([{"a": 1}, {"a": "x"}, {"a": [1]}, {"a": {}}], {"a": {}}),
    ],
)
def test_deltas_are_merged(deltas: list[dict[str, Any]], whole: dict[str, Any] | None) -> None:
    grown = Grown()
    before = json.dumps(deltas)
    for delta in deltas:
        grown.add(delta)
    assert grown.whole() == (whole or {"a": [{"index": 0, "text": "x", "b": 1}]})
    assert json.dumps(deltas) == before


def messages_events(count: int) -> Iterable[tuple[str, dict[str, Any]]]:
    yield "message_start", {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 1}}}
    block = {"type": "tool_use", "id": "t", "name": "Write", "input": {}}
    yield "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}
    for _ in range(count):
        delta = {"type": "input_json_delta", "partial_json": PIECE}
        yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    usage = {"output_tokens": 7}
    yield "message_delta", {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": usage}
    yield "message_stop", {"type": "message_stop"}


def blocks(count: int) -> Iterable[tuple[str, dict[str, Any]]]:
    """Many blocks that never stop."""
    for number in range(count):
        block = {"type": "thinking", "thinking": PIECE}
        yield "content_block_start", {"type": "content_block_start", "index": number, "content_block": block}
    usage = {"input_tokens": 1, "output_tokens": 7}
    yield "message_delta", {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    yield "message_stop", {"type": "message_stop"}


def chat_events(count: int) -> Iterable[tuple[str, dict[str, Any]]]:
    for _ in range(count):
        call = {"index": 0, "id": "c", "function": {"name": "Write", "arguments": PIECE}}
        yield "", {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
    usage = {"prompt_tokens": 1, "completion_tokens": 7}
    yield "", {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}], "usage": usage}


def responses_events(count: int) -> Iterable[tuple[str, dict[str, Any]]]:
    for number in range(count):
        item = {"type": "function_call", "call_id": str(number), "name": "Write", "arguments": PIECE}
        event = {"type": "response.output_item.done", "output_index": number, "item": item}
        yield "response.output_item.done", event
    response = {"id": "r", "status": "completed", "usage": {"input_tokens": 1, "output_tokens": 7}}
    yield "response.completed", {"type": "response.completed", "response": response}


def converse_events(count: int) -> Iterable[tuple[str, dict[str, Any]]]:
    start = {"toolUse": {"toolUseId": "t", "name": "Write"}}
    yield "contentBlockStart", {"contentBlockIndex": 0, "start": start}
    for _ in range(count):
        yield "contentBlockDelta", {"contentBlockIndex": 0, "delta": {"toolUse": {"input": PIECE}}}
    yield "contentBlockStop", {"contentBlockIndex": 0}
    yield "messageStop", {"stopReason": "tool_use"}
    yield "metadata", {"usage": {"inputTokens": 1, "outputTokens": 7}}


STREAMS = {
    "messages": (MESSAGES, messages_events),
    "blocks": (MESSAGES, blocks),
    "chat": (CHAT_COMPLETIONS, chat_events),
    "responses": (RESPONSES, responses_events),
    "converse": (CONVERSE_STREAM, converse_events),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("shared", [False, True])
def test_beyond_the_limit_the_rest_is_not_kept_but_the_usage_is_read(name: str, shared: bool) -> None:
    dialect: Dialect
    dialect, events = STREAMS[name]
    limit = 200_000
    buffers = buffers_of(limit if shared else 10**9)
    tap = Tap(
        dialect.answer_reader(),
        status=200,
        content_type="text/event-stream",
        content_encoding="",
        limits=Limits(answer=10**9 if shared else limit),
        streaming=True,
        share=buffers.share(),
    )
    for event_name, event in events(1000):
        tap.feed(sse.event(event_name, json.dumps(event).encode()))
    tap.finish()
    reading = tap.reader.reading
    assert reading.ended and reading.usage is not None and reading.usage.output_tokens == 7
    assert not tap.complete and tap.beyond == "limits.answer"
    kept = sum(len(json.dumps(call.input)) for call in reading.tool_calls)
    kept += sum(len(thought.content) for thought in reading.thoughts)
    assert 50_000 < kept <= limit
    assert buffers.used <= limit
