"""The tap on AWS event streams: where the end begins, and what a corrupt, cut or coded stream does to the record."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

import pytest

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects import CONVERSE_STREAM, INVOKE_STREAM, MESSAGES
from aibridge_addon.dialects.base import Dialect, Reading
from aibridge_addon.interception.tap import Tap
from tests.support import aws_frames, fixtures
from tests.support.codings import CODINGS, Coding, encode_stream
from tests.support.fixtures import Case

STREAMS = [
    case
    for case in (*fixtures.cases(), *fixtures.invoke_cases())
    if case.content_type == aws_frames.CONTENT_TYPE and case.body
]
SIMPLE = [fixtures.case("converse/simple/streaming"), fixtures.case("invoke/simple/streaming")]
BY_SIMPLE = pytest.mark.parametrize("case", SIMPLE, ids=str)
TERMINALS = (b'"type":"message_stop"', b'"type": "message_stop"', b'"type":"error"')


def tap_for(
    dialect: Dialect, *, content_type: str = aws_frames.CONTENT_TYPE, coding: str = "", limits: Limits | None = None
) -> Tap:
    return Tap(
        dialect.answer_reader(),
        status=200,
        content_type=content_type,
        content_encoding=coding,
        limits=limits or Limits(),
    )


def is_terminal(frame: bytes) -> bool:
    """As the vendors describe it, written down a second time."""
    message = aws_frames.read(frame)
    if message.kind == "chunk":
        return any(terminal in message.inner for terminal in TERMINALS)
    return message.kind == "metadata" or message.is_exception


def terminal_of(case: Case) -> tuple[int, int] | None:
    """Where the terminal message begins and ends."""
    every = aws_frames.split(case.body)
    begins = accumulate(map(len, every), initial=0)
    return next(((at, at + len(frame)) for at, frame in zip(begins, every, strict=False) if is_terminal(frame)), None)


def read(case: Case, body: bytes, *, coding: str = "") -> tuple[Tap, Reading]:
    tap = tap_for(case.wire_format, coding=coding)
    tap.feed(body)
    tap.finish()
    return tap, tap.reader.reading


def chunkings(body: bytes) -> list[list[bytes]]:
    cuts = []
    for seed in range(25):
        dice = random.Random(seed)
        edges = sorted({0, len(body), *(dice.randrange(len(body) + 1) for _ in range(dice.randrange(1, 30)))})
        cuts.append([body[a:b] for a, b in pairwise(edges)])
    return [[body], aws_frames.split(body), [body[i : i + 1] for i in range(len(body))], *cuts]


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_however_a_stream_is_cut_its_end_is_reported_once_and_before_a_client_can_see_it(case: Case) -> None:
    terminal = terminal_of(case)
    for chunks in chunkings(case.body):
        tap = tap_for(case.wire_format)
        reported: list[tuple[int, int]] = []
        fed = 0
        for chunk in chunks:
            if (end := tap.feed(chunk)) is not None:
                reported.append((fed + end, fed))
            fed += len(chunk)
        if terminal is None:
            assert reported == []
            continue
        begins, ends = terminal
        [(held_from, chunk_began)] = reported
        assert held_from == max(begins, chunk_began) < ends


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("case", [case for case in STREAMS if terminal_of(case)], ids=str)
def test_a_coded_stream_is_read_and_its_end_comes_with_the_chunk_that_brings_it(case: Case, coding: Coding) -> None:
    pieces = aws_frames.split(case.body)
    tap = tap_for(case.wire_format, coding=coding)
    reported = [tap.feed(encoded) for encoded in encode_stream(pieces, coding)]
    assert reported == [0 if is_terminal(piece) else None for piece in pieces]
    tap.finish()
    assert tap.reader.reading == read(case, case.body)[1]


@BY_SIMPLE
def test_every_place_between_two_messages_and_no_other_takes_an_event_of_our_own(case: Case) -> None:
    edges = set(accumulate(map(len, aws_frames.split(case.body)), initial=0))
    tap = tap_for(case.wire_format)
    assert tap.at_event_boundary
    for offset in range(1, len(case.body) + 1):
        tap.feed(case.body[offset - 1 : offset])
        assert tap.at_event_boundary is (offset in edges)


@BY_SIMPLE
@pytest.mark.parametrize("in_chunks", [True, False])
def test_a_wrong_checksum_fails_the_interception_and_keeps_what_was_read_before(case: Case, in_chunks: bool) -> None:
    first, second, *rest = aws_frames.split(case.body)
    changed = bytearray(second)
    changed[-1] ^= 1
    pieces = [first, bytes(changed), *rest]
    tap = tap_for(case.wire_format)
    for piece in pieces if in_chunks else [b"".join(pieces)]:
        assert tap.feed(piece) is None
    tap.finish()
    reading = tap.reader.reading
    assert reading.error is not None and reading.error.type == "corrupt_event_stream"
    assert not reading.ended and not tap.readable and not tap.complete
    assert (reading.usage is not None) == (case.dialect == "invoke")  # Messages reports some at the beginning


@BY_SIMPLE
def test_what_is_corrupt_after_the_end_changes_nothing(case: Case) -> None:
    tap, reading = read(case, case.body + b"\x00" * 16)
    assert reading.ended and reading.error is None
    assert not tap.readable


@BY_SIMPLE
def test_a_header_that_cannot_be_read_is_corrupt_too(case: Case) -> None:
    first, *rest = aws_frames.split(case.body)
    tap, reading = read(case, first + aws_frames.with_unknown_header_type() + b"".join(rest))
    assert reading.error is not None and reading.error.type == "corrupt_event_stream"
    assert not tap.readable


@BY_SIMPLE
@pytest.mark.parametrize("within", [True, False], ids=["within a message", "between two"])
def test_a_stream_that_is_cut_has_no_error_of_its_own_and_does_not_end(case: Case, within: bool) -> None:
    *most, last = aws_frames.split(case.body)
    tap, reading = read(case, b"".join(most[:-1]) + (last[: len(last) // 2] if within else b""))
    assert reading.error is None and not reading.ended
    assert tap.readable


@BY_SIMPLE
def test_a_message_that_is_too_large_is_left_out_and_the_rest_is_read(case: Case) -> None:
    first, *rest = aws_frames.split(case.body)
    tap = tap_for(case.wire_format, limits=Limits(sse_event=1500))
    large = aws_frames.event("contentBlockDelta", b'{"delta":{"toolUse":{"input":"%s"}}}' % (b"x" * 2000))
    reported = [tap.feed(piece) for piece in (first, large, *rest)]
    assert reported == [*[None] * (len(rest) + 1), 0]
    tap.finish()
    assert tap.readable and not tap.complete
    assert tap.reader.reading == read(case, case.body)[1]


@pytest.mark.parametrize("dialect", [INVOKE_STREAM, CONVERSE_STREAM], ids=lambda dialect: str(dialect.name))
@pytest.mark.parametrize(
    ("frame", "type_", "message"),
    [
        (aws_frames.exception("throttlingException", {"message": "Slow down."}), "throttlingException", "Slow down."),
        (aws_frames.exception("validationException", {}), "validationException", ""),
        (aws_frames.error("InternalFailure", "It broke."), "InternalFailure", "It broke."),
    ],
)
def test_an_exception_in_the_stream_ends_it_with_its_type_and_message(
    dialect: Dialect, frame: bytes, type_: str, message: str
) -> None:
    tap = tap_for(dialect)
    assert tap.feed(aws_frames.event("messageStart", b'{"role":"assistant"}') + frame) is not None
    reading = tap.reader.reading
    assert reading.ended and reading.error is not None
    assert (reading.error.type, reading.error.message) == (type_, message)


@pytest.mark.parametrize("payload", [b"{", b"\xff", b"", b"[" * 100_000, b'{"bytes":"%%%"}', b'{"bytes":"AAA"}', b"7"])
@pytest.mark.parametrize("kind", ["chunk", "contentBlockDelta", "metadata2"])
@BY_SIMPLE
def test_a_message_whose_payload_is_not_what_it_should_be_is_left_out(case: Case, kind: str, payload: bytes) -> None:
    tap = tap_for(case.wire_format)
    assert tap.feed(aws_frames.event(kind, payload)) is None
    assert tap.feed(case.body) is not None
    assert tap.readable and tap.reader.reading == read(case, case.body)[1]


def test_a_server_that_answers_invoke_in_server_sent_events_is_read_too() -> None:
    case = fixtures.case("messages/thinking/streaming")
    tap = tap_for(INVOKE_STREAM, content_type="text/event-stream")
    assert tap.feed(case.body) is not None
    as_messages = tap_for(MESSAGES, content_type="text/event-stream")
    as_messages.feed(case.body)
    tap.reader.reading.model = as_messages.reader.reading.model
    assert tap.reader.reading == as_messages.reader.reading


def test_other_dialects_do_not_take_an_aws_event_stream_for_one_of_theirs() -> None:
    assert not tap_for(MESSAGES).streaming


@pytest.mark.parametrize(
    "label", ["", "text/plain", "application/json", "application/octet-stream", "text/event-stream"]
)
@BY_SIMPLE
def test_an_event_stream_is_recognised_by_its_first_message_whatever_its_label(case: Case, label: str) -> None:
    _, expected = read(case, case.body)
    for chunks in chunkings(case.body)[:6]:
        tap = tap_for(case.wire_format, content_type=label)
        ends = [end for chunk in chunks if (end := tap.feed(chunk)) is not None]
        tap.finish()
        assert len(ends) == 1 and tap.streaming and tap.complete
        assert tap.reader.reading == expected


@BY_SIMPLE
def test_a_body_with_the_label_of_an_event_stream_is_a_body(case: Case) -> None:
    tap = tap_for(case.wire_format)
    tap.feed(b'{"message": "no"}')
    tap.finish()
    assert not tap.streaming and tap.message == {"message": "no"}
