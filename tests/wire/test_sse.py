"""The server-sent event scanner, against WHATWG HTML 9.2.6 and a plain reading of it."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibridge_addon.wire import sse

Event = tuple[str, bytes | None]

# stream, its events
CASES: dict[str, tuple[bytes, list[Event]]] = {
    "nothing": (b"", []),
    "data": (b"data: a\n\n", [("", b"a")]),
    "event and data": (b'event: ping\ndata: {"type": "ping"}\n\n', [("ping", b'{"type": "ping"}')]),
    "data before event": (b"data: a\nevent: x\n\n", [("x", b"a")]),
    "two events": (b"data: a\n\nevent: x\ndata: b\n\n", [("", b"a"), ("x", b"b")]),
    "the example of the specification, 1": (
        b"data: YHOO\ndata: +2\ndata: 10\n\n",
        [("", b"YHOO\n+2\n10")],
    ),
    "the example of the specification, 2": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [("", None), ("", b"first event"), ("", b"second event"), ("", b" third event")],
    ),
    "the example of the specification, 3": (b"data\n\ndata\ndata\n\n", [("", b""), ("", b"\n")]),
    "no space after the colon": (b"event:x\ndata:a\n\n", [("x", b"a")]),
    "only one space is taken off": (b"event:  x\ndata:  a\n\n", [(" x", b" a")]),
    "a colon in the value": (b"data: a: b\n\n", [("", b"a: b")]),
    "CR LF": (b"event: x\r\ndata: a\r\n\r\ndata: b\r\n\r\n", [("x", b"a"), ("", b"b")]),
    "CR": (b"event: x\rdata: a\r\rdata: b\r\r", [("x", b"a"), ("", b"b")]),
    "LF, then CR LF": (b"data: a\n\r\ndata: b\n\r\n", [("", b"a"), ("", b"b")]),
    "CR LF, then LF": (b"data: a\r\n\ndata: b\r\n\n", [("", b"a"), ("", b"b")]),
    "CR, then CR LF": (b"data: a\r\r\ndata: b\r\r\n", [("", b"a"), ("", b"b")]),
    "CR LF, then CR": (b"data: a\r\n\rdata: b\r\n\r", [("", b"a"), ("", b"b")]),
    "LF, then CR": (b"data: a\n\rdata: b\n\r", [("", b"a"), ("", b"b")]),
    "several kinds of line end in an event": (b"event: x\r\ndata: a\rdata: b\n\n", [("x", b"a\nb")]),
    "a CR within the data of a simple shape": (b"data: a\rdata: b\n\n", [("", b"a\nb")]),
    "more than one blank line": (b"data: a\n\n\n\ndata: b\n\n\n\n\n", [("", b"a"), ("", b"b")]),
    "more than one blank line, CR LF": (b"data: a\r\n\r\n\r\ndata: b\r\n\r\n", [("", b"a"), ("", b"b")]),
    "blank lines first": (b"\n\r\n\rdata: a\n\n", [("", b"a")]),
    "blank lines only": (b"\n\n\r\r\n", []),
    "a comment": (b": keep-alive\n\ndata: a\n\n", [("", None), ("", b"a")]),
    "a comment within an event": (b"event: x\n: why\ndata: a\n\n", [("x", b"a")]),
    "an event without data": (b"event: x\n\n", [("x", None)]),
    "an unknown field": (b"foo: 1\nDATA: no\ndata: a\n\n", [("", b"a")]),
    "id and retry": (b"id: 7\nretry: 10\ndata: a\n\n", [("", b"a")]),
    "the last event field wins": (b"event: x\nevent: y\ndata: a\n\n", [("y", b"a")]),
    "an empty event field": (b"event: x\nevent\ndata: a\n\n", [("", b"a")]),
    "empty data after an event": (b"event: x\ndata: \n\n", [("x", b"")]),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
    "a byte order mark before an event field": (b"\xef\xbb\xbfevent: x\ndata: a\n\n", [("x", b"a")]),
    "text that is not ASCII": ("event: é\ndata: 日本\n\n".encode(), [("é", "日本".encode())]),
    "an event's name that is not UTF-8": (b"event: \xff\ndata: \xff\n\n", [("�", b"\xff")]),
    "line ends of Unicode are text": (
        "data: a\u2028b\x85c\x0bd\x0ce\n\n".encode(),
        [("", "a\u2028b\x85c\x0bd\x0ce".encode())],
    ),
}


def scan(chunks: Iterable[bytes]) -> tuple[list[bytes], bytes]:
    """Feed the chunks; return the raw events and the rest, having checked starts and that no byte is lost."""
    scanner = sse.SSEScanner()
    raws: list[bytes] = []
    fed = b""
    end = 0
    for chunk in chunks:
        for raw, start in scanner.feed(chunk):
            assert start == max(0, end - len(fed))
            end += len(raw)
            raws.append(raw)
        fed += chunk
    rest = scanner.finish()
    assert b"".join(raws) + rest == fed
    return raws, rest


def one_by_one(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


def read(raws: Iterable[bytes]) -> list[Event]:
    return [sse.parse(raw) for raw in raws]


@pytest.mark.parametrize("case", CASES)
class TestEveryCase:
    def test_fed_whole(self, case: str) -> None:
        stream, events = CASES[case]
        raws, rest = scan([stream])
        assert read(raws) == events
        assert rest.strip(b"\r\n") == b""

    def test_fed_byte_by_byte(self, case: str) -> None:
        stream, events = CASES[case]
        raws, rest = scan(one_by_one(stream))
        assert read(raws) == events
        assert rest.strip(b"\r\n") == b""

    @pytest.mark.parametrize("tail", [b"data: tail", b"data: tail\n", b"data: tail\r\n", b"data: tail\r"])
    def test_fed_with_a_tail(self, case: str, tail: bytes) -> None:
        """Spec: an event that no blank line ended is discarded. Ours: the caller gets it and may parse it."""
        stream, events = CASES[case]
        for chunks in ([stream + tail], [stream, tail], one_by_one(stream + tail)):
            raws, rest = scan(chunks)
            assert read(raws) == events
            assert sse.parse(rest) == ("", b"tail")

    def test_cut_once_anywhere(self, case: str) -> None:
        stream, events = CASES[case]
        for place in range(len(stream)):
            raws, _ = scan([stream[:place], stream[place:]])
            assert read(raws) == events


def test_raw_and_start_are_the_bytes_of_the_event_and_where_they_begin() -> None:
    scanner = sse.SSEScanner()
    assert scanner.feed(b"data: a\n\n: c\n\ndata") == [(b"data: a\n\n", 0), (b": c\n\n", 9)]
    assert scanner.feed(b": b\n\ndata: c\n\n") == [(b"data: b\n\n", 0), (b"data: c\n\n", 5)]
    assert scanner.finish() == b""


def test_blank_lines_before_an_event_belong_to_it() -> None:
    assert sse.SSEScanner().feed(b"data: a\n\n\n\ndata: b\n\n") == [
        (b"data: a\n\n", 0),
        (b"\n\ndata: b\n\n", 9),
    ]


def test_an_event_that_ends_in_cr_does_not_wait_for_a_line_feed() -> None:
    scanner = sse.SSEScanner()
    assert scanner.feed(b"data: a\r\n\r") == [(b"data: a\r\n\r", 0)]
    assert scanner.feed(b"\ndata: b\n\n") == [(b"\ndata: b\n\n", 0)]
    assert sse.parse(b"\ndata: b\n\n") == ("", b"b")


def test_a_scanner_starts_afresh_after_its_finish() -> None:
    scanner = sse.SSEScanner()
    assert scanner.feed(b"data: a\r") == []
    assert scanner.finish() == b"data: a\r"
    assert scanner.feed(b"\ndata: b\n\n") == [(b"\ndata: b\n\n", 0)]


FIELDS = b"data: |data|event: |event|id: |:| |x|\xc3\xa9|data: x\n\n|event: x\ndata: y\n\n".split(b"|")
LINE_ENDS = b"\n|\r|\r\n|\n\n|\r\n\r\n".split(b"|")
STREAMS = st.lists(st.sampled_from(FIELDS + LINE_ENDS), max_size=40).map(b"".join)
PLACES = st.lists(st.integers(0, 400), max_size=20)


def events_by_the_book(stream: bytes) -> list[Event]:
    """Read a whole stream as the specification does, line by line; a block of comments has no data."""
    *lines, _unended = re.split(rb"\r\n|\r|\n", stream)
    events: list[Event] = []
    name, data, begun = "", None, False
    for line in lines:
        if not line:
            if begun:
                events.append((name, data))
            name, data, begun = "", None, False
            continue
        begun = True
        found = re.fullmatch(rb"(data|event)(?:: ?(.*))?", line, re.DOTALL)
        if found and found[1] == b"event":
            name = (found[2] or b"").decode()
        elif found:
            data = (found[2] or b"") if data is None else data + b"\n" + (found[2] or b"")
    return events


@settings(deadline=None)
@given(STREAMS, PLACES)
def test_any_stream_cut_anywhere_gives_the_events_of_the_specification(stream: bytes, places: list[int]) -> None:
    raws, _ = scan(cut(stream, places))
    assert read(raws) == events_by_the_book(stream)


@settings(deadline=None)
@given(st.binary(max_size=200), PLACES)
def test_any_bytes_at_all_are_cut_without_loss_and_parsed_without_error(data: bytes, places: list[int]) -> None:
    raws, rest = scan(cut(data, places))
    read([*raws, rest])


@settings(deadline=None)
@given(STREAMS.filter(lambda stream: b"\r" not in stream), PLACES, st.integers(1, 30))
def test_exactly_the_events_larger_than_the_limit_are_dropped(stream: bytes, places: list[int], max_event: int) -> None:
    every, rest = scan([stream])
    scanner = sse.SSEScanner(max_event)
    kept = [raw for chunk in cut(stream, places) for raw, _ in scanner.feed(chunk)]
    assert kept == [raw for raw in every if len(raw) <= max_event]
    assert scanner.finish() == (rest if len(rest) <= max_event else b"")
    assert scanner.oversized == len(every) - len(kept) + (len(rest) > max_event)


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("chunk_size", [1, 7, 4096])
def test_scanning_resumes_after_an_oversized_event(line_end: bytes, chunk_size: int) -> None:
    scanner = sse.SSEScanner(max_event=50)
    big = b"event: big" + line_end + b"data: " + b"x" * 100 + line_end * 2
    stream = big + b"data: a" + line_end * 2 + big + big + b"data: b" + line_end * 2 + big[:80]
    raws = [
        raw
        for start in range(0, len(stream), chunk_size)
        for raw, _ in scanner.feed(stream[start : start + chunk_size])
    ]
    assert read(raws) == [("", b"a"), ("", b"b")]
    assert scanner.finish() == b""
    assert scanner.oversized == 4


def test_the_limit_is_what_an_event_may_have() -> None:
    scanner = sse.SSEScanner(max_event=9)
    assert scanner.feed(b"data: a\n\ndata: ab\n\ndata: b\n\n") == [(b"data: a\n\n", 0), (b"data: b\n\n", 19)]
    assert scanner.oversized == 1


@pytest.mark.parametrize("filler", [b"x", b"\n", b"\r\n", b"data: x\n"])
def test_memory_is_bounded_whatever_the_peer_sends_without_end(filler: bytes) -> None:
    scanner = sse.SSEScanner(max_event=256 * 1024)
    chunk = filler * (16 * 1024 // len(filler))
    tracemalloc.start()
    try:
        for _ in range(256):
            assert scanner.feed(chunk) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * 256 * 1024
    assert scanner.oversized == 1
    assert scanner.finish() == b""


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_huge_event_in_tiny_chunks_costs_each_byte_once(line_end: bytes) -> None:
    """Were the held bytes copied or searched again with each chunk, this would outlast the test's timeout."""
    stream = b"event: x" + line_end + b"data: " + b"y" * (4 * 1024 * 1024) + line_end * 2
    scanner = sse.SSEScanner()
    events = [event for start in range(0, len(stream), 32) for event in scanner.feed(stream[start : start + 32])]
    assert events == [(stream, 0)]


def test_a_flood_of_blank_lines_in_tiny_chunks_costs_each_byte_once() -> None:
    scanner = sse.SSEScanner()
    for _ in range(100_000):
        assert scanner.feed(b"\n" * 32) == []
    assert scanner.feed(b"data: a\n\n") == [(b"\n" * 3_200_000 + b"data: a\n\n", 0)]
