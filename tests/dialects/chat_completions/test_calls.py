"""Pieces of streamed tool calls: which deltas belong to one call. The reader and the splice use the same rule."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.dialects.chat_completions.calls import StreamedCall, StreamedCalls
from aibridge_addon.dialects.chat_completions.splice import ChatSplice
from aibridge_addon.wire import sse


def delta(index: Any = None, id: str | None = None, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    given = {"index": index, "id": id, "function": {key: v for key, v in function.items() if v is not None}}
    return {key: value for key, value in given.items() if value is not None}


Made = list[tuple[str, str, Any]]
A, B = {"p": "a"}, {"p": "b"}
TABLE: dict[str, tuple[list[dict[str, Any]], Made]] = {
    "indexes": (
        [delta(0, "1", "f", '{"p":'), delta(1, "2", "f", '{"p":"b"}'), delta(0, arguments='"a"}')],
        [("1", "f", A), ("2", "f", B)],
    ),
    "indexes as texts and floats": (
        [delta("0", "1", "f", '{"p":'), delta(1.0, "2", "f", '{"p":"b"}'), delta(0, arguments='"a"}')],
        [("1", "f", A), ("2", "f", B)],
    ),
    "one index, ids": (
        [delta(0, "1", "f", '{"p":"a"}'), delta(0, "2", "f", '{"p":'), delta(0, arguments='"b"}')],
        [("1", "f", A), ("2", "f", B)],
    ),
    "no index, ids": (
        [delta(None, "1", "f", '{"p":'), delta(None, arguments='"a"}'), delta(None, "2", "f", '{"p":"b"}')],
        [("1", "f", A), ("2", "f", B)],
    ),
    "no index, ids in turn": (
        [
            delta(None, "1", "f", '{"p":'),
            delta(None, "2", "f", '{"p":'),
            delta(None, "1", arguments='"a"}'),
            delta(None, "2", arguments='"b"}'),
        ],
        [("1", "f", A), ("2", "f", B)],
    ),
    "one index, ids in turn": (
        [
            delta(0, "1", "f", '{"p":'),
            delta(0, "2", "f", '{"p":'),
            delta(0, "1", arguments='"a"}'),
            delta(0, "2", arguments='"b"}'),
        ],
        [("1", "f", A), ("2", "f", B)],
    ),
    "one index, ids and names in turn": (
        [
            delta(0, "1", "f", '{"p":'),
            delta(0, "2", "f", '{"p":'),
            delta(0, "1", "f", '"a"}'),
            delta(0, "2", "f", '"b"}'),
        ],
        [("1", "f", A), ("2", "f", B)],
    ),
    "other indexes, one id": (
        [delta(0, "1", "f", '{"p":'), delta(3, "1", arguments='"a"}')],
        [("1", "f", A)],
    ),
    "an index at the beginning only": (
        [delta(1, "1", "f", '{"p":'), delta(None, arguments='"a"}')],
        [("1", "f", A)],
    ),
    "nothing before a call": ([{}, delta(0, "1", "f", "{}")], [("1", "f", {})]),
    "one index, no ids": (
        [delta(0, name="f", arguments='{"p":"a"}'), delta(0, name="f", arguments='{"p":"b"}')],
        [("", "f", A), ("", "f", B)],
    ),
    "no index, no ids, other names": (
        [delta(name="f", arguments="{}"), delta(name="g", arguments='{"p":'), delta(arguments='"b"}')],
        [("", "f", {}), ("", "g", B)],
    ),
    "a name in every delta": (
        [delta(0, "1", "f", '{"p":'), delta(0, "1", "f", '"a"}')],
        [("1", "f", A)],
    ),
    "a name in pieces": (
        [delta(0, "1", "get_"), delta(0, name="time"), delta(0, arguments="{}")],
        [("1", "get_time", {})],
    ),
    "an object": ([delta(0, "1", "f", A), delta(0, "2", "f", B)], [("1", "f", A), ("2", "f", B)]),
    "cut arguments": ([delta(0, "1", "f", '{"p'), delta(0, arguments='":')], [("1", "f", '{"p":')]),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_delta_belongs_to_the_call_that_the_table_says(name: str) -> None:
    deltas, made = TABLE[name]
    calls = StreamedCalls(StreamedCall)
    for piece in deltas:
        calls.of(piece)
    assert [(call.id, call.name, call.input) for call in calls.all] == made


@pytest.mark.parametrize(
    "name", [name for name in TABLE if not name.startswith(("a name in pieces", "cut", "nothing"))]
)
def test_hidden_calls_are_put_together_by_the_same_rule(name: str) -> None:
    deltas, made = TABLE[name]
    splice = ChatSplice({"f", "g"})
    chunks = [{"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]} for piece in deltas]
    chunks.append({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    splice.begin_turn()
    for chunk in chunks:
        assert splice.event(sse.event("", json.dumps(chunk).encode()), "", chunk) == b""
    calls = splice.end_turn().calls
    assert all(call.id for call in calls)  # a call without an id gets one
    named = [id for id, _, _ in made]
    assert [(call.id if id else "", call.name, call.input) for id, call in zip(named, calls, strict=True)] == made
