"""Messages: when a block ends, when a turn ends, and which of several usage objects counts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects import MESSAGES
from aibridge_addon.dialects.base import Reading
from aibridge_addon.interception.tap import Tap

START = {"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": {"input_tokens": 9}}}
TOOL: dict[str, Any] = {
    "type": "content_block_start",
    "index": 0,
    "content_block": {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}},
}
PIECES: list[dict[str, Any]] = [
    {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": piece}}
    for piece in ('{"a":', "1}")
]
END = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}}
PROGRESS = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}}
STOP = {"type": "message_stop"}


def read(*events: dict[str, Any]) -> Reading:
    tap = Tap(
        MESSAGES.answer_reader(), status=200, content_type="text/event-stream", content_encoding="", limits=Limits()
    )
    for event in events:
        tap.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    tap.finish()
    return tap.reader.reading


@pytest.mark.parametrize("delta", [{}, {"stop_reason": None}, {"stop_reason": ""}])
def test_only_a_stop_reason_ends_the_blocks_of_a_turn(delta: dict[str, Any]) -> None:
    progress = PROGRESS | {"delta": delta}
    block_stop = {"type": "content_block_stop", "index": 0}
    whole = read(START, TOOL, PIECES[0], progress, PIECES[1], block_stop, END, STOP)
    assert [call.input for call in whole.tool_calls] == [{"a": 1}]
    assert whole.finished and whole.ended and whole.usage is not None and whole.usage.output_tokens == 7
    cut = read(START, TOOL, PIECES[0], progress)
    assert not cut.finished and not cut.ended and cut.tool_calls == []
    assert cut.usage is not None and cut.usage.output_tokens == 3


def test_a_block_that_the_end_of_the_message_leaves_open_is_read() -> None:
    for ending in ((END, STOP), (PROGRESS, STOP), (STOP,)):
        reading = read(START, TOOL, *PIECES, *ending)
        assert [call.input for call in reading.tool_calls] == [{"a": 1}]
        assert reading.finished and reading.ended


def test_an_input_is_read_as_an_object_and_as_text() -> None:
    block_stop = {"type": "content_block_stop", "index": 0}
    piece = PIECES[0] | {"delta": {"type": "input_json_delta", "partial_json": {"a": 1}}}
    assert [call.input for call in read(START, TOOL, piece, block_stop, END, STOP).tool_calls] == [{"a": 1}]
    for given in ({"a": 1}, '{"a": 1}'):
        reader = MESSAGES.answer_reader()
        reader.message({"type": "message", "content": [TOOL["content_block"] | {"input": given}]})
        assert [call.input for call in reader.reading.tool_calls] == [{"a": 1}]


NAMES = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
FULL: dict[str, tuple[tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    # message_start, the usage of message_delta, and what counts
    "the whole input came from the cache": (
        (8834, 0, 0, 1),
        {NAMES[0]: 0, NAMES[1]: 0, NAMES[2]: 8834, NAMES[3]: 7},
        (0, 0, 8834, 7),
    ),
    "nothing came from the cache after all": (
        (100, 0, 5000, 1),
        {NAMES[0]: 4000, NAMES[1]: 0, NAMES[2]: 0, NAMES[3]: 7},
        (4000, 0, 0, 7),
    ),
    "nothing was written after all": (
        (100, 300, 5000, 1),
        {NAMES[0]: 400, NAMES[1]: 0, NAMES[2]: 5000, NAMES[3]: 7},
        (400, 0, 5000, 7),
    ),
    "no output": ((100, 0, 0, 5), {NAMES[0]: 100, NAMES[1]: 0, NAMES[2]: 0, NAMES[3]: 0}, (100, 0, 0, 0)),
    "without a count of what was written": (
        (100, 0, 5000, 1),
        {NAMES[0]: 4000, NAMES[2]: 0, NAMES[3]: 7},
        (4000, 0, 0, 7),
    ),
    "floats and texts": ((100, 0, 5000, 1), {NAMES[0]: "4000", NAMES[1]: 0.0, NAMES[2]: "0"}, (4000, 0, 0, 1)),
    "zeros only": (
        (10, 512, 4096, 1),
        {NAMES[0]: 0, NAMES[1]: 0, NAMES[2]: 0, NAMES[3]: 7},
        (10, 512, 4096, 7),
    ),
    "nulls are no counts": (
        (10, 512, 4096, 1),
        {NAMES[0]: 20, NAMES[1]: 0, NAMES[2]: None, NAMES[3]: 7},
        (20, 512, 4096, 7),
    ),
    "a part of the set": ((10, 512, 4096, 1), {NAMES[2]: 0, NAMES[3]: 7}, (10, 512, 4096, 7)),
    "the same write follows what was read": (
        (10, 512, 4096, 1),
        {NAMES[0]: 210, NAMES[1]: 512, NAMES[2]: 0, NAMES[3]: 7},
        (210, 512, 4096, 7),
    ),
}


@pytest.mark.parametrize(("start", "usage", "expected"), FULL.values(), ids=list(FULL))
def test_a_full_set_of_counts_replaces_that_of_the_start_with_its_zeros(
    start: tuple[int, ...], usage: dict[str, Any], expected: tuple[int, ...]
) -> None:
    message = {"id": "msg_1", "model": "m", "usage": dict(zip(NAMES, start, strict=True))}
    reading = read({"type": "message_start", "message": message}, END | {"usage": usage}, STOP)
    found = reading.usage
    assert found is not None and found.complete
    assert (
        found.input_tokens,
        found.cache_write_input_tokens,
        found.cache_read_input_tokens,
        found.output_tokens,
    ) == expected


LIFETIMES = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")


@pytest.mark.parametrize(
    ("written", "lifetimes", "expected"),
    [
        (0, None, (0, 0)),
        (0, (0, 0), (0, 0)),
        (512, (0, 512), (0, 512)),
        (512, (0, 0), (512, 0)),  # lifetimes without a sum are not meant
        (512, None, (512, 0)),
    ],
)
def test_the_lifetimes_of_what_was_written_agree_with_its_count(
    written: int, lifetimes: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    start = dict(zip(NAMES, (10, 512, 4096, 1), strict=True))
    start_usage = start | {"cache_creation": dict(zip(LIFETIMES, (512, 0), strict=True))}
    usage: dict[str, Any] = dict(zip(NAMES, (600, written, 4096, 7), strict=True))
    if lifetimes is not None:
        usage["cache_creation"] = dict(zip(LIFETIMES, lifetimes, strict=True))
    message = {"id": "msg_1", "model": "m", "usage": start_usage}
    found = read({"type": "message_start", "message": message}, END | {"usage": usage}, STOP).usage
    assert found is not None and found.cache_write_input_tokens == written
    assert tuple(found.extra[f"cache_creation.{name}"] for name in LIFETIMES) == expected


def test_a_usage_that_is_null_at_first_counts_when_it_comes() -> None:
    start = {"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": None}}
    found = read(start, END | {"usage": dict(zip(NAMES, (5, 0, 3, 7), strict=True))}, STOP).usage
    assert found is not None and (found.input_tokens, found.cache_read_input_tokens, found.output_tokens) == (5, 3, 7)


@pytest.mark.parametrize(
    ("usage", "complete"),
    [
        ({"input_tokens": 9}, False),
        ({"output_tokens": 7}, False),
        ({"input_tokens": None, "output_tokens": 7}, False),
        ({"input_tokens": 0, "output_tokens": 0}, True),
    ],
)
def test_usage_without_one_of_its_two_counts_is_not_complete(usage: dict[str, Any], complete: bool) -> None:
    reader = MESSAGES.answer_reader()
    reader.message({"type": "message", "content": [], "stop_reason": "end_turn", "usage": usage})
    found = reader.reading.usage
    assert found is not None and found.complete == complete
