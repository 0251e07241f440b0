"""Content codings: what encoders write is read back however it is cut, and what bombs cost is bounded."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibridge_addon.wire import codings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024
AMPLE = 64 * MIB


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def br(data: bytes) -> bytes:
    coded: bytes = brotli.compress(data, quality=5)
    return coded


# name: (Content-Encoding, encoder)
ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate in zlib format": ("deflate", zlib.compress),
    "deflate without zlib's wrapper": ("deflate", raw_deflate),
    "br": ("br", br),
    "zstd": ("zstd", zstd.compress),
    "gzip, then br": ("gzip, br", lambda data: br(gzip.compress(data))),
    "zstd, deflate, br, then gzip": (
        "zstd, deflate, br, gzip",
        lambda data: gzip.compress(br(zlib.compress(zstd.compress(data)))),
    ),
}
SINGLE = ["gzip", "deflate in zlib format", "deflate without zlib's wrapper", "br", "zstd"]

# Sizes about those at which a piece is full.
PAYLOADS = {
    "nothing": b"",
    "one byte": b"x",
    "an event": b'event: ping\ndata: {"type": "ping"}\n\n',
    "a piece": bytes(codings.PIECE),
    "a piece and one byte": bytes(codings.PIECE) + b"x",
    "two pieces": b"ab" * codings.PIECE,
    "brotli's first block": bytes(32_752),
    "a mebibyte": b"The quick brown fox. " * (MIB // 21),
}


def decode(coding: str, chunks: Iterable[bytes], max_output: int = AMPLE) -> tuple[bytes, bool]:
    decoder = codings.decoder_for(coding, max_output)
    assert decoder is not None
    pieces = [piece for chunk in chunks for piece in decoder.feed(chunk)]
    assert all(0 < len(piece) <= codings.PIECE for piece in pieces)
    return b"".join(pieces), decoder.complete


def one_by_one(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize(("coding", "encode"), ENCODERS.values(), ids=ENCODERS)
class TestEveryCoding:
    def test_fed_whole(self, coding: str, encode: Callable[[bytes], bytes], payload: bytes) -> None:
        assert decode(coding, [encode(payload)]) == (payload, True)

    def test_fed_byte_by_byte(self, coding: str, encode: Callable[[bytes], bytes], payload: bytes) -> None:
        assert decode(coding, one_by_one(encode(payload))) == (payload, True)

    def test_fed_with_an_empty_tail(self, coding: str, encode: Callable[[bytes], bytes], payload: bytes) -> None:
        assert decode(coding, [b"", encode(payload), b"", b""]) == (payload, True)

    def test_as_a_whole_body(self, coding: str, encode: Callable[[bytes], bytes], payload: bytes) -> None:
        assert codings.decode_all(encode(payload), coding, len(payload)) == payload


@settings(deadline=None)
@given(
    st.sampled_from(sorted(ENCODERS)),
    st.binary(max_size=300).map(lambda data: data * 20),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_how_the_bytes_are_cut_changes_nothing(name: str, payload: bytes, places: list[int]) -> None:
    coding, encode = ENCODERS[name]
    coded = encode(payload)
    bounds = [0, *sorted(place % (len(coded) + 1) for place in places), len(coded)]
    chunks = [coded[a:b] for a, b in pairwise(bounds)]
    assert decode(coding, chunks) == (payload, True)


def gzip_chunks(events: list[bytes]) -> list[bytes]:
    compressor = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    return [compressor.compress(event) + compressor.flush(zlib.Z_SYNC_FLUSH) for event in events]


def deflate_chunks(events: list[bytes]) -> list[bytes]:
    compressor = zlib.compressobj()
    return [compressor.compress(event) + compressor.flush(zlib.Z_SYNC_FLUSH) for event in events]


def br_chunks(events: list[bytes]) -> list[bytes]:
    compressor = brotli.Compressor()
    return [compressor.process(event) + compressor.flush() for event in events]


def zstd_chunks(events: list[bytes]) -> list[bytes]:
    compressor = zstd.ZstdCompressor()
    return [compressor.compress(event, mode=compressor.FLUSH_BLOCK) for event in events]


@pytest.mark.parametrize(
    ("coding", "encode"),
    [("gzip", gzip_chunks), ("deflate", deflate_chunks), ("br", br_chunks), ("zstd", zstd_chunks)],
)
def test_each_event_comes_out_as_soon_as_its_chunk_goes_in(
    coding: str, encode: Callable[[list[bytes]], list[bytes]]
) -> None:
    events = [b'data: {"n": %d}\n\n' % n for n in range(50)] + [bytes(codings.PIECE), b"\n\n"]
    decoder = codings.decoder_for(coding, AMPLE)
    assert decoder is not None
    assert [b"".join(decoder.feed(chunk)) for chunk in encode(events)] == events
    assert not decoder.complete


@pytest.mark.parametrize("name", SINGLE)
def test_a_body_that_is_cut_anywhere_gives_what_came_and_is_not_complete(name: str) -> None:
    coding, encode = ENCODERS[name]
    payload = b"The quick brown fox jumps over the lazy dog. " * 3
    coded = encode(payload)
    for size in range(1, len(coded)):
        got, complete = decode(coding, [coded[:size]])
        assert payload.startswith(got)
        assert not complete
        with pytest.raises(codings.DecodeError, match="too early"):
            codings.decode_all(coded[:size], coding, AMPLE)


@pytest.mark.parametrize("content_encoding", [None, "", "identity", " Identity ", "identity, identity", ", ,"])
def test_no_coding_needs_no_decoder(content_encoding: str | None) -> None:
    assert codings.decoder_for(content_encoding, 3) is None
    assert codings.decode_all(b"abc", content_encoding, 3) == b"abc"
    with pytest.raises(codings.OutputLimitExceeded):
        codings.decode_all(b"abcd", content_encoding, 3)


@pytest.mark.parametrize("content_encoding", ["GZIP", " gzip ", "identity,gzip", "gzip,,", "X-GZip"])
def test_names_are_read_whatever_their_case_and_spaces(content_encoding: str) -> None:
    """RFC 9110, 8.4.1: content codings are case-insensitive; 5.6.1.2: empty list elements are ignored."""
    assert codings.decode_all(gzip.compress(b"abc"), content_encoding, 3) == b"abc"


@pytest.mark.parametrize("content_encoding", ["compress", "gzip, lz4", "gzip;q=1", "*", "br,br,br,br,br"])
def test_an_unknown_coding_or_too_many_are_unsupported(content_encoding: str) -> None:
    with pytest.raises(codings.UnsupportedCoding) as caught:
        codings.decoder_for(content_encoding, AMPLE)
    assert caught.value.content_encoding in content_encoding
    with pytest.raises(codings.UnsupportedCoding):
        codings.decode_all(b"", content_encoding, AMPLE)


def test_every_error_is_a_coding_error() -> None:
    assert issubclass(codings.CodingError, ValueError)
    for kind in (codings.UnsupportedCoding, codings.DecodeError, codings.OutputLimitExceeded):
        assert issubclass(kind, codings.CodingError)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
def test_no_bytes_at_all_are_an_empty_body(coding: str) -> None:
    """Ours: an answer to HEAD, or with length 0, may name a coding."""
    assert codings.decode_all(b"", coding, AMPLE) == b""


SKIPPABLE_FRAME = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"


@pytest.mark.parametrize(
    ("coding", "coded"),
    [
        pytest.param("gzip", b"".join(map(gzip.compress, [b"ab", b"", b"c"])), id="gzip members"),
        pytest.param("zstd", zstd.compress(b"ab") + zstd.compress(b"c"), id="zstd frames"),
        pytest.param("zstd", SKIPPABLE_FRAME + zstd.compress(b"abc") + SKIPPABLE_FRAME, id="zstd skippable frames"),
    ],
)
def test_members_that_follow_each_other_are_one_body(coding: str, coded: bytes) -> None:
    """RFC 1952, 2.2, and RFC 8878, 3: a file is a series of members (frames)."""
    assert decode(coding, [coded]) == (b"abc", True)
    assert decode(coding, one_by_one(coded)) == (b"abc", True)
    assert decode(coding, [coded[:-1]])[1] is False


@pytest.mark.parametrize("junk", [bytes(512), b"junk", b"\x1f\x8c", b"\x28\xb5\x2f\xfe"])
@pytest.mark.parametrize("name", ["gzip", "deflate in zlib format", "deflate without zlib's wrapper", "zstd"])
def test_other_bytes_after_the_end_are_ignored(name: str, junk: bytes) -> None:
    """Ours, as clients do: some servers pad gzip with zeros."""
    coding, encode = ENCODERS[name]
    coded = encode(b"abc")
    assert decode(coding, [coded + junk, encode(b"never read")]) == (b"abc", True)
    assert decode(coding, [coded, junk]) == (b"abc", True)
    assert decode(coding, one_by_one(coded + junk)) == (b"abc", True)


def test_bytes_after_the_end_of_brotli_are_an_error_however_they_are_cut() -> None:
    """Ours: the package cannot ignore them in the chunk that ends the stream, so they never are ignored."""
    coded = br(b"abc")
    for chunks in ([coded + b"junk"], [coded, b"junk"], one_by_one(coded + b"junk")):
        with pytest.raises(codings.DecodeError):
            decode("br", chunks)


def test_the_beginning_of_another_member_is_not_the_end() -> None:
    assert decode("gzip", [gzip.compress(b"abc") + b"\x1f"]) == (b"abc", False)


@pytest.mark.parametrize(
    ("coding", "coded"),
    [
        pytest.param("gzip", b"data: not coded at all\n\n", id="gzip, not coded"),
        pytest.param("deflate", b"data: not coded at all\n\n", id="deflate, not coded"),
        pytest.param("br", b"data: not coded at all\n\n", id="br, not coded"),
        pytest.param("zstd", b"data: not coded at all\n\n", id="zstd, not coded"),
        pytest.param("gzip", gzip.compress(b"abc")[:-8] + bytes(8), id="gzip, wrong checksum"),
        pytest.param("deflate", zlib.compress(b"abc")[:-4] + bytes(4), id="deflate, wrong checksum"),
        pytest.param("gzip", gzip.compress(b"abc") + b"\x1f\x8b\xff" + bytes(20), id="gzip, wrong second member"),
        pytest.param("gzip, br", br(b"not gzip"), id="the inner coding is wrong"),
    ],
)
def test_bytes_that_are_not_what_the_coding_says_are_an_error(coding: str, coded: bytes) -> None:
    for chunks in ([coded], one_by_one(coded)):
        with pytest.raises(codings.DecodeError):
            decode(coding, chunks)
    with pytest.raises(codings.DecodeError):
        codings.decode_all(coded, coding, AMPLE)


def test_a_zstd_window_that_http_forbids_is_an_error() -> None:
    """RFC 9659, 3: no more than 8 MiB."""
    for window_log in (23, 24):
        compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window_log})
        coded = compressor.compress(b"abc") + compressor.flush()
        if window_log == 23:
            assert decode("zstd", [coded]) == (b"abc", True)
        else:
            with pytest.raises(codings.DecodeError):
                decode("zstd", [coded])


@settings(deadline=None)
@given(st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, br"]), st.lists(st.binary(max_size=50)))
def test_any_bytes_at_all_raise_nothing_but_coding_errors(coding: str, chunks: list[bytes]) -> None:
    try:
        decode(coding, chunks)
    except codings.CodingError:
        pass


def test_a_decoder_is_dead_after_an_error() -> None:
    decoder = codings.decoder_for("gzip", 2)
    assert decoder is not None
    with pytest.raises(codings.OutputLimitExceeded):
        list(decoder.feed(gzip.compress(b"abc")))
    assert not decoder.complete
    with pytest.raises(codings.DecodeError, match="earlier feed"):
        decoder.feed(gzip.compress(b""))


def test_a_decoder_is_dead_after_a_feed_that_was_not_read_to_its_end() -> None:
    decoder = codings.decoder_for("gzip", AMPLE)
    assert decoder is not None
    next(decoder.feed(gzip.compress(bytes(MIB))))
    with pytest.raises(codings.DecodeError, match="earlier feed"):
        decoder.feed(b"")


@pytest.mark.parametrize(("coding", "encode"), ENCODERS.values(), ids=ENCODERS)
def test_the_limit_is_what_a_body_may_have(coding: str, encode: Callable[[bytes], bytes]) -> None:
    coded = encode(bytes(100_000))
    assert decode(coding, [coded], max_output=100_000)[0] == bytes(100_000)
    for chunks in ([coded], one_by_one(coded)):
        with pytest.raises(codings.OutputLimitExceeded) as caught:
            decode(coding, chunks, max_output=99_999)
        assert caught.value.limit == 99_999


@pytest.fixture(scope="module")
def bombs() -> dict[str, tuple[str, bytes]]:
    """128 MiB each, and less than 140 KiB."""
    zeros = bytes(128 * MIB)
    bombs = {name: (ENCODERS[name][0], ENCODERS[name][1](zeros)) for name in SINGLE}
    bombs["gzip in gzip"] = ("gzip, gzip", gzip.compress(bombs["gzip"][1]))
    bombs["zstd in br"] = ("zstd, br", br(bombs["zstd"][1]))
    return bombs


def detonate(coding: str, bomb: bytes, max_output: int) -> tuple[int, int]:
    """Decode until the limit; return how many bytes came out, and how many were held at once."""
    decoder = codings.decoder_for(coding, max_output)
    assert decoder is not None
    size = 0
    tracemalloc.start()
    try:
        for piece in decoder.feed(bomb):
            size += len(piece)
    except codings.OutputLimitExceeded:
        return size, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    pytest.fail("the bomb went off")


@pytest.mark.parametrize("name", [*SINGLE, "gzip in gzip", "zstd in br"])
def test_a_bomb_costs_bounded_memory_and_output(bombs: dict[str, tuple[str, bytes]], name: str) -> None:
    coding, bomb = bombs[name]
    assert len(bomb) < 140 * 1024
    size, peak = detonate(coding, bomb, AMPLE)
    assert size <= codings.MAX_FEED_OUTPUT
    assert peak < MIB
    size, peak = detonate(coding, bomb, 100_000)
    assert size <= 100_000
    assert peak < MIB


@pytest.mark.parametrize("name", [*SINGLE, "gzip in gzip", "zstd in br"])
def test_a_bomb_as_a_whole_body_costs_what_its_limit_says(bombs: dict[str, tuple[str, bytes]], name: str) -> None:
    coding, bomb = bombs[name]
    tracemalloc.start()
    try:
        with pytest.raises(codings.OutputLimitExceeded):
            codings.decode_all(bomb, coding, 2 * MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB


def test_a_whole_body_may_have_more_than_a_feed() -> None:
    size = codings.MAX_FEED_OUTPUT + 1
    assert codings.decode_all(zstd.compress(bytes(size)), "zstd", size) == bytes(size)


@pytest.mark.parametrize(
    ("coding", "coded"),
    [
        pytest.param("gzip", gzip.compress(b"") * 100_000, id="gzip"),
        pytest.param("zstd", zstd.compress(b"") * 100_000, id="zstd"),
        pytest.param("gzip, zstd", zstd.compress(gzip.compress(b"") * 100_000), id="gzip in zstd"),
    ],
)
def test_a_flood_of_empty_members_is_a_bomb_too(coding: str, coded: bytes) -> None:
    """It would decode to nothing at the cost of starting 100,000 members."""
    assert detonate(coding, coded, AMPLE)[0] == 0
    with pytest.raises(codings.OutputLimitExceeded):
        codings.decode_all(coded, coding, AMPLE // 4)


def test_what_lies_between_two_codings_is_bounded_too() -> None:
    """A gzip header's comment may be endless: the inner coding gives nothing, however much it reads."""
    comment = b"\x1f\x8b\x08\x10" + bytes(6) + b"x" * (32 * MIB)
    size, peak = detonate("gzip, zstd", zstd.compress(comment), AMPLE)
    assert size == 0
    assert peak < MIB
