"""Any bytes, in any pieces: a parser returns them, or raises the errors that it documents, and nothing else.

`make soak` runs a million examples and more, over these and the properties in `tests/interception` and `tests/proxy`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.wire import aws_eventstream, codings, sse
from aibridge_addon.wire.aws_eventstream import CorruptEventStream
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode, decode_tolerantly, encode
from aibridge_addon.wire.multipart import form_fields
from tests.support.soak import FUZZ, FUZZ_TIMEOUT

LIMIT = 10_000

FRAGMENTS = (
    *(b"data:", b"data: {", b"event: x", b"\n", b"\r", b"\r\n\r\n", b"\n\n", b": ", b"id", b"\xef\xbb\xbf", b"\0"),
    *(b'{"a":', b'"', b"[", b"]", b"{", b"}", b",", b":", b"\\u", b"\\ud800", b"1e999", b"NaN", b"9" * 400, b"-0.0"),
    *(b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x78\x9c", b"\xff" * 4, b"[DONE]", b"\xc3(", b"\xed\xa0\x80"),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=12), max_size=24).map(b"".join)
"""Bytes that often look like what a parser expects."""


def in_pieces(data: st.DataObject, whole: bytes) -> list[bytes]:
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=6).map(sorted))
    return [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]


@FUZZ_TIMEOUT
@FUZZ
@given(data=st.data(), whole=TEXTS)
def test_events_are_the_same_however_they_are_cut(data: st.DataObject, whole: bytes) -> None:
    def scanned(pieces: list[bytes]) -> list[tuple[str, bytes | None]]:
        scanner, raws = sse.SSEScanner(), []
        for piece in pieces:
            raws += [raw for raw, _ in scanner.feed(piece)]
        rest = scanner.finish()
        assert b"".join([*raws, rest]) == whole
        return [sse.parse(raw) for raw in raws]

    assert scanned(in_pieces(data, whole)) == scanned([whole])


def frames(data: st.DataObject) -> bytes:
    """Messages of AWS, some of whose bytes are others."""
    headers = st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3)
    messages = data.draw(st.lists(st.builds(aws_eventstream.encode, headers, TEXTS), max_size=3))
    whole = bytearray(b"".join(messages) + data.draw(st.binary(max_size=4)))
    for place in data.draw(st.lists(st.integers(0, max(0, len(whole) - 1)), max_size=3)) if whole else ():
        whole[place] = data.draw(st.integers(0, 255))
    return bytes(whole)


@FUZZ_TIMEOUT
@FUZZ
@given(data=st.data())
def test_messages_of_aws_are_read_or_corrupt(data: st.DataObject) -> None:
    whole = frames(data)

    def scanned(pieces: list[bytes]) -> tuple[list[bytes], bool]:
        scanner, raws = aws_eventstream.EventStreamScanner(), []
        try:
            for piece in pieces:
                for raw, _ in scanner.feed(piece):
                    raws.append(raw)
                    with suppress(CorruptEventStream):
                        aws_eventstream.parse(raw)
            scanner.finish()
        except CorruptEventStream:
            return raws, True
        return raws, False

    raws, corrupt = scanned([whole])
    assert whole.startswith(b"".join(raws))
    assert scanned(in_pieces(data, whole))[1] == corrupt


CODERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "": bytes}
NAMES = ("gzip", "deflate", "br", "zstd", "identity", "x-gzip", "", "compress", "GZIP", " , ")


@FUZZ_TIMEOUT
@FUZZ
@given(data=st.data(), whole=TEXTS)
def test_a_coded_body_is_decoded_within_its_limit_or_refused(data: st.DataObject, whole: bytes) -> None:
    coded = bytearray(data.draw(st.sampled_from(list(CODERS.values())))(whole * data.draw(st.integers(1, 60))))
    if coded and data.draw(st.booleans()):
        coded[data.draw(st.integers(0, len(coded) - 1))] ^= data.draw(st.integers(1, 255))
    label = ",".join(data.draw(st.lists(st.sampled_from(NAMES), max_size=4)))
    with suppress(codings.CodingError):
        assert len(codings.decode_all(bytes(coded), label, LIMIT)) <= LIMIT
    decoded = 0
    with suppress(codings.CodingError):
        decoder = codings.decoder_for(label, LIMIT)
        for piece in in_pieces(data, bytes(coded)) if decoder is not None else ():
            decoded += sum(map(len, decoder.feed(piece))) if decoder is not None else 0
    assert decoded <= LIMIT


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@FUZZ_TIMEOUT
@FUZZ
@given(data=TEXTS)
def test_bytes_are_json_or_an_error(data: bytes) -> None:
    for read in (decode, decode_tolerantly):
        with suppress(NotJSON, Unreadable):
            read(data)
    with suppress(NotJSON, Unreadable):
        use(JSONObject(data))


@FUZZ_TIMEOUT
@FUZZ
@given(value=JSON)
def test_any_json_is_an_object_whose_members_are_read_or_an_error(value: Any) -> None:
    raw = json.dumps(value).encode()
    with suppress(NotJSON, Unreadable):
        body = JSONObject(raw)
        use(body)
        assert JSONObject(body.replaced({"x": b"1"})).get("x") == 1
    with suppress(NotJSON, Unreadable):
        decode(encode(decode(raw)))


def use(body: JSONObject) -> None:
    """Read each member in every way, as if it had the right type."""
    for name in [*body._members, "missing"]:
        body.has_elements(name)
        body.text(name)
        body.length(name)
        for read in (body.get, body.elements, body.raw_elements, body.raw):
            read(name)
        body.beginning(name, 2)
        list(body.elements_backwards(name))


@FUZZ_TIMEOUT
@FUZZ
@given(data=TEXTS, boundary=st.sampled_from(["x", "", "--", "é", "a" * 70]))
def test_a_form_is_read_or_not(data: bytes, boundary: str) -> None:
    body = data.replace(b"\n\n", b"\r\n--" + boundary.encode() + b"\r\n")
    fields = form_fields(f'multipart/form-data; boundary="{boundary}"', body)
    assert fields is not None and sum(map(len, fields.values())) <= len(body)
