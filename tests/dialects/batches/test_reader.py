"""Results of batches, read piece by piece without keeping them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects.base import UNREAD_USAGE, Reading
from aibridge_addon.dialects.batches.reader import UNREAD_CALLS, BatchReader, FileOfResultsReader, MessageBatchReader
from aibridge_addon.dialects.batches.sums import (
    LONG,
    MAX_LONG,
    MAX_NAMES,
    MAX_RESTS,
    MAX_SUMS,
    TOO_MANY,
    TOO_MANY_COUNTS,
)
from tests.integration.test_batches import SONNET, answered, chat, lines, message


def read(reader: BatchReader, body: bytes, size: int = 1000, *, cut: bool = False) -> Reading:
    for start in range(0, len(body), size):
        reader.piece(body[start : start + size])
    reader.body_ended(cut=cut)
    return reader.reading


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_size_of_the_pieces_does_not_matter(size: int) -> None:
    reading = read(MessageBatchReader(), lines([message(SONNET, 10, 3), message(SONNET, 1, 1)]), size)
    assert reading.usage is not None and reading.ended and reading.finished and not reading.foreign
    assert (reading.usage.input_tokens, reading.usage.extra["requests"]) == (11, 2)


def test_the_usage_of_a_line_too_long_to_be_kept_is_found_at_its_end() -> None:
    reading = read(MessageBatchReader(), lines([message(SONNET, 10, 3, text='"usage"\\' * 100_000)]), 60_000)
    assert reading.usage is not None and reading.finished
    assert (reading.model, reading.usage.input_tokens, reading.usage.output_tokens) == (SONNET, 10, 3)


def test_a_line_that_cannot_be_read_makes_the_sum_partial() -> None:
    reading = read(
        FileOfResultsReader(), lines([chat("gpt-4.1", 10, 3)]) + b"{broken\n" + lines([chat("gpt-4.1", 1, 1)])
    )
    assert reading.usage is not None and reading.ended and not reading.finished
    assert reading.usage.input_tokens == 11
    assert [part.usage.unpriced for part in reading.iterations] == [UNREAD_USAGE]


def test_results_that_are_cut_have_not_ended() -> None:
    assert not read(MessageBatchReader(), lines([message(SONNET, 10, 3)])[:-9], cut=True).ended


def test_long_requests_are_not_added_up_because_their_prices_differ() -> None:
    results = [message(SONNET, LONG + 1, 1), message(SONNET, LONG + 2, 1), message(SONNET, 5, 1)]
    reading = read(MessageBatchReader(), lines(results))
    assert reading.usage is not None
    inputs = [reading.usage.input_tokens, *(iteration.usage.input_tokens for iteration in reading.iterations)]
    assert inputs == [LONG + 1, LONG + 2, 5]


def test_more_long_requests_than_are_kept_apart_have_no_price() -> None:
    reading = read(MessageBatchReader(), lines(message(SONNET, LONG, 1) for _ in range(MAX_LONG + 2)), 50_000)
    assert len(reading.iterations) == MAX_LONG
    assert reading.iterations[-1].usage.unpriced == TOO_MANY
    assert reading.iterations[-1].usage.extra["requests"] == 2


def test_more_models_than_are_kept_apart_make_the_sum_partial() -> None:
    most = MAX_SUMS + MAX_RESTS
    reading = read(MessageBatchReader(), lines(message(f"m{n}", 1, 1) for n in range(most + 1)), 50_000)
    assert [part.usage.unpriced for part in reading.iterations[MAX_SUMS - 1 :]] == [TOO_MANY] * MAX_RESTS
    assert not reading.finished


def test_answers_under_more_conditions_than_are_kept_apart_have_no_price() -> None:
    results = [in_geography(str(n)) for n in range(MAX_SUMS + 5)]
    reading = read(MessageBatchReader(), lines(results), 50_000)
    assert len(reading.iterations) == MAX_SUMS and reading.finished
    rest = reading.iterations[-1].usage
    assert (rest.unpriced, rest.input_tokens) == (TOO_MANY, 5)


def in_geography(name: str) -> dict[str, Any]:
    result = message(SONNET, 1, 1)
    result["result"]["message"]["usage"]["inference_geo"] = name
    return result


def test_more_counts_than_are_added_up_leave_the_sum_without_a_price() -> None:
    def with_counts(number: int) -> dict[str, Any]:
        result = message(SONNET, 1, 1)
        result["result"]["message"]["usage"] |= {f"x{number}_{n}_tokens": 1 for n in range(50)}
        return result

    reading = read(MessageBatchReader(), lines(with_counts(n) for n in range(7)), 50_000)
    assert reading.usage is not None and reading.usage.unpriced == TOO_MANY_COUNTS
    assert len(reading.usage.extra) == MAX_NAMES


@pytest.mark.parametrize(
    "call",
    [{"type": "code_interpreter_call", "id": "ci"}, {"type": "server_tool_use", "name": "bash_code_execution"}],
)
def test_a_line_too_long_to_be_kept_with_a_hosted_call_has_no_price(call: dict[str, Any]) -> None:
    body = {"object": "response", "usage": {"input_tokens": 1}, "output": [call, {"text": "A" * 500_000}]}
    reading = read(FileOfResultsReader(), lines([answered({**body, "usage": {"input_tokens": 1}, "model": "m"})]))
    assert reading.usage is not None and reading.usage.unpriced == UNREAD_CALLS


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda v: (
            st.lists(v)
            | st.dictionaries(
                st.sampled_from(
                    ["custom_id", "result", "response", "type", "message", "body", "usage", "id", "object"]
                ),
                v,
            )
        ),
    )
)
def test_no_line_makes_the_reading_fail(value: object) -> None:
    for reader in (MessageBatchReader(), FileOfResultsReader()):
        read(reader, lines([chat("a", 1, 1) | message("a", 1, 1)]) + json.dumps(value).encode() + b"\n")
        assert reader.reading.ended
