"""Answers of which only the model and the usage are read, however they are cut up, and whatever else they hold."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import Reading
from aibridge_addon.dialects.usage_only.reader import UNCOUNTED, UsageReader
from aibridge_addon.interception.tap import Tap
from aibridge_addon.wire.body_edges import HEAD, TAIL, BodyEdges
from tests.integration.test_usage_routes import CASES, Case


def read(body: bytes, cuts: Sequence[int], content_type: str = "application/json", *, cut: bool = False) -> Reading:
    reader = UsageReader()
    reader.head({"content-type": content_type})
    tap = Tap(reader, status=200, content_type=content_type, content_encoding="", limits=Limits())
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        tap.feed(body[start:end])
    tap.finish(cut=cut)
    assert tap.complete
    return reader.reading


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_cuts_do_not_matter(case: Case) -> None:
    body = case.answer_body
    whole = read(body, [], case.content_type)
    assert whole.usage is not None and whole.finished and whole.ended
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (max(0, case.counts[0]), case.counts[1])
    for seed in range(5):
        generator = random.Random(seed)
        cuts = sorted(generator.randrange(len(body) + 1) for _ in range(20))
        assert read(body, cuts, case.content_type) == whole
    if len(body) < 5000:
        assert read(body, range(1, len(body)), case.content_type) == whole


@pytest.mark.parametrize("size", [HEAD + TAIL - 200, HEAD + TAIL, HEAD + 2 * TAIL, HEAD + 9 * TAIL])
@pytest.mark.parametrize("first", [True, False], ids=["usage first", "usage last"])
def test_the_usage_of_a_large_body_is_found_at_either_end(size: int, first: bool) -> None:
    usage, data = {"usage": {"input_tokens": 7, "output_tokens": 9}}, {"data": [{"b64_json": "A" * size}]}
    body = json.dumps({"model": "m", **usage, **data} if first else {**data, "model": "m", **usage}).encode()
    reading = read(body, range(1000, len(body), 60_000))
    assert reading.usage is not None
    assert (reading.model, reading.usage.input_tokens, reading.usage.output_tokens) == ("m", 7, 9)


def test_a_text_that_looks_like_usage_is_none() -> None:
    text = '"usage": {"input_tokens": 1}, "model": "x"'
    body = json.dumps({"text": text + "A" * (HEAD + 3 * TAIL) + text}).encode()
    reading = read(body, [])
    assert (reading.model, reading.usage and reading.usage.unpriced) == ("", UNCOUNTED)


def test_an_answer_that_is_cut_has_not_ended_and_its_row_has_no_price() -> None:
    reading = read(b'{"data": [1, 2', [], cut=True)
    assert not reading.ended and not reading.finished
    assert reading.usage is not None and reading.usage.unpriced == UNCOUNTED


def test_an_error_under_status_200_is_an_error() -> None:
    for content_type, body in (
        ("application/json", b'{"error": {"type": "server_error", "message": "no"}}'),
        ("text/event-stream", b'event: error\ndata: {"type": "error", "error": {"type": "server_error"}}\n\n'),
    ):
        reading = read(body, [], content_type)
        assert reading.error is not None and reading.error.type == "server_error"
        assert reading.usage is None


@given(st.binary(max_size=400), st.sampled_from(["application/json", "text/event-stream", "audio/mpeg", ""]))
def test_no_answer_makes_the_reading_fail(body: bytes, content_type: str) -> None:
    read(b"{" + body, [], content_type)


@given(st.lists(st.integers(0, 3 * TAIL), max_size=12))
def test_no_more_than_the_edges_of_a_body_are_kept(sizes: list[int]) -> None:
    edges, body = BodyEdges(), b""
    for number, size in enumerate(sizes):
        piece = bytes([65 + number]) * size
        edges.feed(piece)
        body += piece
    tail, head = edges.windows
    assert head == body[:HEAD] and len(tail) <= 2 * TAIL
    assert body.endswith(tail)
    assert edges.whole in (None, body)
    if len(body) <= HEAD + TAIL:
        assert edges.whole == body
