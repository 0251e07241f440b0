"""The tap: what it reads of an answer, where it says that the end begins, and what can never hurt the traffic."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects import CHAT_COMPLETIONS, MESSAGES, RESPONSES
from aibridge_addon.dialects.base import Dialect, Reading
from aibridge_addon.interception.tap import Tap
from aibridge_addon.wire import sse
from tests.support import fixtures
from tests.support.codings import CODINGS, Coding, encode, encode_stream
from tests.support.fixtures import Case

CASES = list(fixtures.cases())
STREAMS = [case for case in CASES if case.status == 200 and case.content_type.startswith("text/event-stream")]
"""Of server-sent events; `test_tap_aws.py` has the others."""
TERMINALS = {
    "messages": {b"message_stop", b"error"},
    "chat_completions": {b"[DONE]"},
    "responses": {
        b"response.completed",
        b"response.incomplete",
        b"response.failed",
        b"response.cancelled",
        b"response.done",
        b"error",
    },
}
"""Written down a second time, from the vendors' descriptions."""
DIALECT_LIST = (MESSAGES, CHAT_COMPLETIONS, RESPONSES)
SIMPLE = fixtures.case("messages/simple/streaming")


def tap_for(
    dialect: Dialect, *, status: int = 200, content_type: str = "text/event-stream", coding: str = "", limits: Limits
) -> Tap:
    return Tap(
        dialect.answer_reader(), status=status, content_type=content_type, content_encoding=coding, limits=limits
    )


def case_tap(case: Case, coding: str = "", limits: Limits | None = None) -> Tap:
    return tap_for(
        case.wire_format,
        status=case.status,
        content_type=case.content_type,
        coding=coding,
        limits=limits or Limits(),
    )


def stream_tap(dialect: Dialect = MESSAGES, coding: str = "", limits: Limits | None = None) -> Tap:
    return tap_for(dialect, coding=coding, limits=limits or Limits())


def read_whole(case: Case, body: bytes | None = None) -> Reading:
    tap = case_tap(case)
    tap.feed(case.body if body is None else body)
    tap.finish()
    return tap.reader.reading


def blocks(stream: bytes) -> list[tuple[int, bytes]]:
    """A stream's events with the offset of each, cut the plain way."""
    found: list[tuple[int, bytes]] = []
    start = 0
    for line in stream.splitlines(keepends=True):
        begun = found[-1][1] if found and found[-1][0] == start else b""
        if not begun:
            found.append((start, b""))
        found[-1] = (start, begun + line)
        if not line.strip(b"\r\n"):
            start += len(found[-1][1])
    return found


def terminal_of(case: Case) -> tuple[int, int] | None:
    """Where the terminal event begins and ends; None where there is none, or no blank line ends it."""
    for start, raw in blocks(case.body):
        name, data = sse.parse(raw)
        kind = name.encode() or (data or b"")
        if data is not None and kind in TERMINALS[case.dialect] and raw.endswith((b"\n\n", b"\r\n\r\n")):
            return start, start + len(raw)
    return None


def random_cuts(body: bytes, seed: int) -> list[bytes]:
    dice = random.Random(seed)
    edges = sorted({0, len(body), *(dice.randrange(len(body) + 1) for _ in range(dice.randrange(1, 30)))})
    return [body[a:b] for a, b in pairwise(edges)]


def chunkings(body: bytes) -> list[list[bytes]]:
    return [
        [body],
        [body[i : i + 1] for i in range(len(body))],
        [raw for _, raw in blocks(body)],
        *(random_cuts(body, seed) for seed in range(25)),
    ]


def reported_end(case: Case, chunks: list[bytes]) -> tuple[int, int] | None:
    """The offset at which the tap says that the end begins, and the one at which that chunk began."""
    tap = case_tap(case)
    found: list[tuple[int, int]] = []
    fed = 0
    for chunk in chunks:
        end = tap.feed(chunk)
        if end is not None:
            assert 0 <= end <= len(chunk)
            found.append((fed + end, fed))
        fed += len(chunk)
    assert len(found) <= 1, "the end was reported twice"
    return found[0] if found else None


# --- where the end begins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_the_end_of_a_stream_begins_exactly_with_its_terminal_event(case: Case) -> None:
    terminal = terminal_of(case)
    reported = reported_end(case, [case.body]) if case.body else None
    assert reported == (None if terminal is None else (terminal[0], 0))


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_however_a_stream_is_cut_its_end_is_reported_once_and_before_a_client_can_see_it(case: Case) -> None:
    terminal = terminal_of(case)
    for chunks in chunkings(case.body):
        reported = reported_end(case, chunks)
        if terminal is None:
            assert reported is None
            continue
        assert reported is not None
        (begins, ends), (held_from, chunk_began) = terminal, reported
        if chunk_began <= begins:
            # Nothing of the event has been passed on; a line end before it may be held with it.
            assert case.body[held_from:begins].strip(b"\r\n") == b"" and held_from <= begins
        else:
            # The event began in earlier chunks: all of this one is held, and it is not whole without it.
            assert held_from == chunk_began < ends
        passed_on = case_tap(case)
        passed_on.feed(case.body[:held_from])
        assert not passed_on.reader.reading.ended


@pytest.mark.parametrize("case", [case for case in STREAMS if terminal_of(case)], ids=str)
def test_a_stream_without_its_terminal_event_lacks_only_the_end(case: Case) -> None:
    terminal = terminal_of(case)
    assert terminal is not None
    whole, without = read_whole(case), read_whole(case, case.body[: terminal[0]])
    assert whole.ended
    assert without.response_id == whole.response_id
    if case.dialect == "messages":
        assert (without.usage, without.tool_calls) == (whole.usage, whole.tool_calls)
    if case.dialect == "responses":
        assert not without.ended and without.usage is None
    else:
        assert without.thoughts == whole.thoughts


@pytest.mark.parametrize("coding", [coding for coding in CODINGS if coding != "identity"])
@pytest.mark.parametrize("case", [case for case in STREAMS if case.body], ids=str)
def test_the_end_of_a_coded_stream_is_reported_once_at_the_chunk_that_brings_it(case: Case, coding: Coding) -> None:
    pieces = [raw for _, raw in blocks(case.body)]
    tap = case_tap(case, coding)
    reported = [tap.feed(encoded) for encoded in encode_stream(pieces, coding)]
    terminal = terminal_of(case)
    at = None if terminal is None else [start for start, _ in blocks(case.body)].index(terminal[0])
    assert reported == [0 if number == at else None for number in range(len(pieces))]
    tap.finish()
    assert tap.reader.reading == read_whole(case)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_coded_answer_reads_the_same_however_it_is_cut(coding: Coding) -> None:
    for name in ("messages/parallel_tools", "chat_completions/cached_tokens", "responses/thinking"):
        for mode in ("streaming", "blocking"):
            case = fixtures.case(f"{name}/{mode}")
            body = encode(case.body, coding)
            for chunks in chunkings(body):
                tap = case_tap(case, coding)
                reported = [end for chunk in chunks if (end := tap.feed(chunk)) is not None]
                assert len(reported) == (mode == "streaming")
                tap.finish()
                assert tap.complete and tap.reader.reading == read_whole(case)


# --- wrong labels -----------------------------------------------------------------------------------------------

LABELS = (
    "",
    "text/plain",
    "application/json",
    "application/octet-stream",
    "text/event-stream",
    "text/html",
    "nonsense",
)


def mislabelled(case: Case, label: str, *, streaming: bool, status: int | None = None) -> Tap:
    return Tap(
        case.wire_format.answer_reader(),
        status=case.status if status is None else status,
        content_type=label,
        content_encoding="",
        limits=Limits(),
        streaming=streaming,
    )


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("case", [case for case in CASES if case.status == 200 and case.body], ids=str)
def test_the_first_bytes_decide_the_form_and_not_the_label(case: Case, label: str) -> None:
    if case.dialect == "converse":
        return  # `test_tap_aws.py`
    is_stream = case in STREAMS
    expected = read_whole(case)
    for streaming in (True, False):
        for chunks in chunkings(case.body)[:6]:
            tap = mislabelled(case, label, streaming=streaming)
            ends = [end for chunk in chunks if (end := tap.feed(chunk)) is not None]
            assert len(ends) == (is_stream and terminal_of(case) is not None)
            tap.finish()
            assert tap.streaming is is_stream
            assert tap.reader.reading == expected


@pytest.mark.parametrize("streaming", [True, False])
def test_an_empty_answer_has_the_form_of_its_label_or_else_the_form_that_was_requested(streaming: bool) -> None:
    for label, is_stream in (("text/event-stream", True), ("application/json", False), ("", streaming)):
        tap = mislabelled(SIMPLE, label, streaming=streaming)
        tap.finish()
        assert tap.streaming is is_stream and not tap.reader.reading.ended


@pytest.mark.parametrize("label", ["text/event-stream", "application/json", ""])
@pytest.mark.parametrize("dialect", DIALECT_LIST, ids=lambda dialect: str(dialect.name))
def test_an_error_that_comes_as_an_event_keeps_its_words(dialect: Dialect, label: str) -> None:
    tap = tap_for(dialect, status=400, content_type=label, limits=Limits())
    assert tap.feed(b'event: error\ndata: {"type":"error","error":{"type":"bad","message":"Too') is None
    assert tap.feed(b' long"}}\n\n') is None
    tap.finish()
    error = tap.reader.reading.error
    assert error is not None and (error.type, error.message) == ("bad", "Too long")
    assert not tap.streaming


@pytest.mark.parametrize("coding", ["utf-8", "UTF-8", "none", "identity", "aws-chunked", "", ", identity,"])
def test_names_that_are_no_codings_mean_no_coding(coding: str) -> None:
    tap = case_tap(SIMPLE, coding)
    assert tap.feed(SIMPLE.body) is not None
    assert tap.complete and tap.reader.reading == read_whole(SIMPLE)


# --- what can be put in between ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_an_event_may_be_put_in_between_two_events_only(case: Case) -> None:
    edges = {start for start, _ in blocks(case.body)}
    edges |= {start + len(raw) for start, raw in blocks(case.body) if raw.endswith((b"\n\n", b"\r\n\r\n"))}
    tap = case_tap(case)
    assert tap.at_event_boundary
    for offset in range(1, len(case.body) + 1):
        tap.feed(case.body[offset - 1 : offset])
        if offset in edges:
            assert tap.at_event_boundary
        elif tap.at_event_boundary:
            # After the CR of a blank line's CR LF: the line has ended.
            assert case.body[offset - 1 : offset + 1] == b"\r\n" and offset + 1 in edges


def test_nothing_may_be_put_into_a_coded_stream_or_a_whole_body() -> None:
    assert not stream_tap(coding="gzip").at_event_boundary
    assert not tap_for(MESSAGES, content_type="application/json", limits=Limits()).at_event_boundary
    assert not tap_for(MESSAGES, status=500, limits=Limits()).at_event_boundary


@pytest.mark.parametrize(
    ("status", "content_type", "streaming"),
    [
        (200, "text/event-stream", True),
        (200, "Text/Event-Stream; charset=utf-8", True),
        (200, "application/json", False),
        (200, "", False),
        (400, "text/event-stream", False),
        (529, "text/event-stream", False),
    ],
)
def test_an_answer_streams_by_its_type_unless_it_is_an_error(status: int, content_type: str, streaming: bool) -> None:
    assert tap_for(MESSAGES, status=status, content_type=content_type, limits=Limits()).streaming is streaming


# --- what can go wrong ------------------------------------------------------------------------------------------

SMALL = Limits(decoded_body=100_000, sse_event=2_000)


@pytest.mark.parametrize("coding", [coding for coding in CODINGS if coding != "identity"])
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
def test_a_bomb_ends_the_reading_and_nothing_else(coding: Coding, content_type: str) -> None:
    bomb = encode(b"data: x\n\n" * 5_000_000, coding)
    tap = tap_for(MESSAGES, content_type=content_type, coding=coding, limits=SMALL)
    for start in range(0, len(bomb), 4096):
        assert tap.feed(bomb[start : start + 4096]) is None
    tap.finish()
    assert not tap.complete and not tap.readable


def test_a_body_that_is_larger_than_may_be_held_ends_the_reading() -> None:
    tap = tap_for(MESSAGES, content_type="application/json", limits=SMALL)
    for _ in range(100):
        assert tap.feed(b'{"id": "' + b"x" * 2_000) is None
    tap.finish()
    assert not tap.complete and not tap.readable


def test_an_event_that_is_too_large_is_left_out_and_the_rest_is_read() -> None:
    events = [raw for _, raw in blocks(SIMPLE.body)]
    large = b'event: content_block_delta\ndata: {"x": "' + b"a" * 5_000 + b'"}\n\n'
    tap = case_tap(SIMPLE, limits=SMALL)
    ends = [tap.feed(raw) for raw in (*events[:2], large, *events[2:])]
    tap.finish()
    assert ends[-1] == 0 and ends.count(None) == len(ends) - 1
    assert tap.readable and not tap.complete
    assert tap.reader.reading == read_whole(SIMPLE)


@pytest.mark.parametrize("bad", [b"{", b"\xff", b'{"a":1}x', b"[" * 100_000, b"", b"7", b"null"])
@pytest.mark.parametrize("dialect", DIALECT_LIST, ids=lambda dialect: str(dialect.name))
def test_an_event_that_is_no_json_is_left_out_and_the_rest_is_read(dialect: Dialect, bad: bytes) -> None:
    case = fixtures.case(f"{dialect.name}/simple/streaming")
    tap = case_tap(case)
    assert tap.feed(b"data: " + bad + b"\n\n") is None
    assert tap.feed(case.body) is not None
    assert tap.readable
    assert tap.reader.reading == read_whole(case)


@pytest.mark.parametrize("coding", ["x-secret", "gzip, gzip, gzip, gzip, gzip"])
def test_an_unknown_coding_ends_the_reading(coding: str) -> None:
    tap = stream_tap(coding=coding)
    assert tap.feed(SIMPLE.body) is None
    tap.finish()
    assert not tap.readable and not tap.complete


def test_bytes_that_are_not_in_their_coding_end_the_reading() -> None:
    tap = stream_tap(coding="gzip")
    assert tap.feed(SIMPLE.body) is None
    assert tap.feed(SIMPLE.body) is None
    tap.finish()
    assert not tap.readable and not tap.complete


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"null", b"\xff"])
def test_a_body_that_is_no_json_object_is_an_error_of_the_answer(body: bytes) -> None:
    tap = tap_for(MESSAGES, content_type="application/json", limits=Limits())
    assert tap.feed(body) is None
    tap.finish()
    assert tap.reader.reading.error is not None
    assert tap.reader.reading.error.type == "unreadable_answer"


def test_an_answer_that_cannot_be_read_in_full_is_reported_once() -> None:
    reported: list[tuple[str, Exception | None]] = []
    tap = Tap(
        MESSAGES.answer_reader(),
        status=200,
        content_type="text/event-stream",
        content_encoding="",
        limits=Limits(),
        on_partial=lambda *reason: reported.append(reason),
    )
    for _ in range(3):
        tap.feed(b"data: {\n\n")
    tap.finish()
    assert tap.partial_reason is not None and reported == [(tap.partial_reason, None)]


def test_an_internal_error_ends_the_reading_and_is_reported_with_its_exception() -> None:
    reported: list[tuple[str, Exception | None]] = []
    error = RuntimeError("a fault of ours")

    def on_event(_raw: bytes, _name: str, _data: object) -> None:
        raise error

    tap = Tap(
        MESSAGES.answer_reader(),
        status=200,
        content_type="text/event-stream",
        content_encoding="",
        limits=Limits(),
        on_event=on_event,
        on_partial=lambda *reason: reported.append(reason),
    )
    assert tap.feed(SIMPLE.body) is None
    assert tap.feed(SIMPLE.body) is None
    assert not tap.readable and not tap.complete
    assert reported == [("an internal error", error)]


@given(
    chunks=st.lists(st.binary(max_size=40) | st.sampled_from([b"\n\n", b"data: ", b"event: message_stop\n", b"{}"])),
    coding=st.sampled_from(["", "gzip", "deflate", "br", "zstd", "gzip, br", "nonsense"]),
    status=st.sampled_from([200, 204, 400, 500]),
    content_type=st.sampled_from(["text/event-stream", "application/json", ""]),
    dialect=st.sampled_from(DIALECT_LIST),
)
def test_no_bytes_make_it_fail(
    chunks: list[bytes], coding: str, status: int, content_type: str, dialect: Dialect
) -> None:
    tap = tap_for(dialect, status=status, content_type=content_type, coding=coding, limits=SMALL)
    reported = [end for chunk in chunks if (end := tap.feed(chunk)) is not None]
    assert len(reported) <= 1
    tap.finish()
    tap.finish()
