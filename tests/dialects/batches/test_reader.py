"""Results of batches, read piece by piece without keeping them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects.base import Reading
from aibridge_addon.dialects.batches.reader import BatchReader, FileOfResultsReader, MessageBatchReader
from aibridge_addon.dialects.batches.sums import LONG, MAX_LONG, MAX_SUMS, TOO_MANY
from tests.integration.test_batches import SONNET, chat, lines, message


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
    reading = read(MessageBatchReader(), lines(message(f"m{n}", 1, 1) for n in range(MAX_SUMS + 1)), 50_000)
    assert len(reading.iterations) == MAX_SUMS - 1
    assert not reading.finished


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
