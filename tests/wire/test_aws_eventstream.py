"""The AWS event stream scanner, against frames that AWS's own code encodes, and what botocore reads in them."""

from __future__ import annotations

import tracemalloc
import uuid
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given, settings
from hypothesis import strategies as st
from smithy_aws_event_stream.events import HEADER_VALUE, Byte, EventMessage, Long, Short

from aibridge_addon.wire.aws_eventstream import CorruptEventStream, EventStreamScanner, HeaderValue, Message, parse

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

VALUES: st.SearchStrategy[HEADER_VALUE] = st.one_of(
    st.booleans(),
    st.integers(-(2**7), 2**7 - 1).map(Byte),
    st.integers(-(2**15), 2**15 - 1).map(Short),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1).map(Long),
    st.binary(max_size=300),
    st.text(max_size=100),
    st.integers(0, 2**32).map(lambda seconds: EPOCH + timedelta(seconds=seconds)),
    st.uuids(),
)
HEADERS = st.dictionaries(st.text(min_size=1, max_size=20), VALUES, max_size=6)
MESSAGES = st.builds(lambda headers, payload: EventMessage(headers=headers, payload=payload), HEADERS, st.binary())
PLACES = st.lists(st.integers(0, 2000), max_size=20)

CHUNK = EventMessage(
    headers={":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"},
    payload=b'{"bytes":"e30="}',
).encode()


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


def scan(chunks: Iterable[bytes]) -> list[bytes]:
    """Feed the chunks; return the raw messages, having checked where each begins and that no byte is lost."""
    scanner = EventStreamScanner()
    raws: list[bytes] = []
    fed = end = 0
    for chunk in chunks:
        for raw, start in scanner.feed(chunk):
            assert start == max(0, end - fed)
            end += len(raw)
            raws.append(raw)
        fed += len(chunk)
        assert scanner.at_boundary == (end == fed)
    scanner.finish()
    assert end == fed
    return raws


def told(message: EventMessage) -> Message:
    """What we are to read in it."""
    return Message({name: value_read(value) for name, value in message.headers.items()}, message.payload)


def value_read(value: HEADER_VALUE) -> HeaderValue:
    return round((value - EPOCH) / timedelta(milliseconds=1)) if isinstance(value, datetime) else value


def read_by_botocore(stream: bytes) -> list[tuple[dict[str, Any], bytes]]:
    buffer = EventStreamBuffer()
    buffer.add_data(stream)
    return [(message.headers, message.payload) for message in buffer]


@settings(deadline=None)
@given(st.lists(MESSAGES, max_size=6), PLACES)
def test_any_messages_cut_anywhere_are_read_as_they_were_written(
    messages: list[EventMessage], places: list[int]
) -> None:
    encoded = [message.encode() for message in messages]
    raws = scan(cut(b"".join(encoded), places))
    assert raws == encoded
    assert [parse(raw) for raw in raws] == [told(message) for message in messages]


@settings(deadline=None)
@given(st.lists(MESSAGES, max_size=4))
def test_botocore_reads_the_same(messages: list[EventMessage]) -> None:
    stream = b"".join(message.encode() for message in messages)
    ours = [parse(raw) for raw in scan([stream])]
    as_botocore = [
        ({k: v.bytes if isinstance(v, uuid.UUID) else v for k, v in m.headers.items()}, m.payload) for m in ours
    ]
    assert as_botocore == read_by_botocore(stream)


@settings(deadline=None)
@given(MESSAGES)
def test_fed_byte_by_byte_a_message_comes_with_its_last_byte(message: EventMessage) -> None:
    raw = message.encode()
    scanner = EventStreamScanner()
    for i in range(len(raw) - 1):
        assert scanner.feed(raw[i : i + 1]) == []
    assert scanner.feed(raw[-1:]) == [(raw, 0)]


@settings(deadline=None)
@given(MESSAGES, st.integers(0), st.integers(1, 255), PLACES)
def test_one_changed_byte_anywhere_is_an_error_and_what_came_before_is_kept(
    message: EventMessage, place: int, difference: int, places: list[int]
) -> None:
    changed = bytearray(message.encode())
    changed[place % len(changed)] ^= difference
    scanner = EventStreamScanner()
    raws: list[bytes] = []

    def feed_all() -> None:
        for chunk in cut(CHUNK + bytes(changed), places):
            raws.extend(raw for raw, _ in scanner.feed(chunk))
        scanner.finish()

    with pytest.raises(CorruptEventStream, match="checksum"):
        feed_all()
    assert raws == [CHUNK]
    with pytest.raises(CorruptEventStream, match="checksum"):
        scanner.feed(CHUNK)


@settings(deadline=None)
@given(st.binary(max_size=200), PLACES)
def test_any_bytes_at_all_are_read_or_refused(data: bytes, places: list[int]) -> None:
    scanner = EventStreamScanner()
    try:
        for chunk in cut(data, places):
            for raw, _ in scanner.feed(chunk):
                parse(raw)
        scanner.finish()
    except CorruptEventStream:
        pass


@pytest.mark.parametrize("length", range(1, len(CHUNK)))
def test_a_stream_that_ends_within_a_message_says_so(length: int) -> None:
    scanner = EventStreamScanner()
    assert scanner.feed(CHUNK + CHUNK[:length]) == [(CHUNK, 0)]
    assert not scanner.at_boundary
    with pytest.raises(CorruptEventStream, match="within a message"):
        scanner.finish()


def test_lengths_that_contradict_each_other_are_an_error_though_their_checksum_is_right() -> None:
    wrong = bytes.fromhex("00000014 00000014")
    prelude = wrong + crc(wrong)
    with pytest.raises(CorruptEventStream, match="a message of 20 bytes cannot have 20 bytes of headers"):
        EventStreamScanner().feed(prelude)


def crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4)


def framed(headers: bytes, payload: bytes) -> bytes:
    """A message whose headers are these bytes, right or wrong; its checksums are right."""
    prelude = (len(headers) + len(payload) + 16).to_bytes(4) + len(headers).to_bytes(4)
    whole = prelude + crc(prelude) + headers + payload
    return whole + crc(whole)


@pytest.mark.parametrize("payload", [b"", b"a payload that is longer than what is cut"])
@pytest.mark.parametrize(
    "headers",
    [
        b"\x01a\x0a",
        b"\x01a\x07\x00\x02\xff\xfe",
        b"\x01\xff\x00",
        b"\x01a\x09abc",
        b"\x01a\x05abc",
        b"\x01a\x07\x00\x09abc",
        b"\xf0a",
    ],
    ids=[
        "an unknown type",
        "text that is no UTF-8",
        "a name that is no UTF-8",
        "a UUID that is cut",
        "an integer that is cut",
        "text that is cut",
        "a name that is cut",
    ],
)
def test_headers_that_do_not_follow_the_format_are_an_error(headers: bytes, payload: bytes) -> None:
    raw = framed(headers, payload)
    assert EventStreamScanner().feed(raw) == [(raw, 0)]
    with pytest.raises(CorruptEventStream, match="header"):
        parse(raw)


def test_a_header_that_is_there_twice_is_an_error() -> None:
    with pytest.raises(CorruptEventStream, match="'a' occurs twice"):
        parse(framed(b"\x01a\x00\x01a\x01", b""))


def test_only_a_header_that_is_text_is_given_as_text() -> None:
    message = parse(EventMessage(headers={":event-type": "chunk", "n": 7}).encode())
    assert (message.text(":event-type"), message.text("n"), message.text("absent")) == ("chunk", "", "")


@settings(deadline=None)
@given(st.lists(MESSAGES, max_size=6), PLACES, st.integers(16, 400))
def test_exactly_the_messages_larger_than_the_limit_are_dropped(
    messages: list[EventMessage], places: list[int], max_message: int
) -> None:
    encoded = [message.encode() for message in messages]
    begins = list(accumulate(map(len, encoded), initial=0))
    scanner = EventStreamScanner(max_message)
    found: list[tuple[bytes, int]] = []
    expected = [(raw, begin) for raw, begin in zip(encoded, begins, strict=False) if len(raw) <= max_message]
    fed = 0
    for chunk in cut(b"".join(encoded), places):
        for raw, start in scanner.feed(chunk):
            begin = expected[len(found)][1]
            assert start == max(0, begin - fed)
            found.append((raw, begin))
        fed += len(chunk)
    assert found == expected
    assert scanner.oversized == len(encoded) - len(found)
    assert scanner.at_boundary
    scanner.finish()


def test_memory_is_bounded_whatever_length_a_message_claims_to_have() -> None:
    claim = b"\xff\xff\xff\xff\x00\x00\x00\x00"
    scanner = EventStreamScanner(max_message=256 * 1024)
    assert scanner.feed(claim + crc(claim)) == []
    chunk = b"x" * 16 * 1024
    tracemalloc.start()
    try:
        for _ in range(256):
            assert scanner.feed(chunk) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 256 * 1024
    assert scanner.oversized == 1
    assert not scanner.at_boundary


def test_a_huge_message_in_tiny_chunks_costs_each_byte_once() -> None:
    """Were the held bytes copied or checked again with each chunk, this would outlast the test's timeout."""
    stream = EventMessage(payload=b"y" * (4 * 1024 * 1024)).encode()
    scanner = EventStreamScanner()
    messages = [found for start in range(0, len(stream), 32) for found in scanner.feed(stream[start : start + 32])]
    assert messages == [(stream, 0)]
