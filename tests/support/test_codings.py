"""Codings: each piece can be decoded as soon as it is there."""

import zlib
from typing import Protocol

import brotli
import pytest
from backports import zstd

from tests.support.codings import CODINGS, Coding, encode, encode_stream, split

CHUNKS = [b"data: 1\n\n", b"data: 2\n\n" * 300, b"data: [DONE]\n\n"]


class Decoder(Protocol):
    def __call__(self, piece: bytes, /) -> bytes: ...


def decoder(coding: Coding) -> Decoder:
    decoders: dict[Coding, Decoder] = {
        "identity": lambda piece: piece,
        "gzip": zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress,
        "deflate": zlib.decompressobj().decompress,
        "br": brotli.Decompressor().process,
        "zstd": zstd.ZstdDecompressor().decompress,
    }
    return decoders[coding]


@pytest.mark.parametrize("coding", CODINGS)
def test_each_encoded_chunk_is_decodable_at_once(coding: Coding) -> None:
    pieces = encode_stream(CHUNKS, coding)
    decode = decoder(coding)
    assert [decode(piece) for piece in pieces] == CHUNKS


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("body", [b"", b"x", bytes(range(256)) * 100])
def test_a_whole_body_survives(coding: Coding, body: bytes) -> None:
    encoded = encode(body, coding)
    assert decoder(coding)(encoded) == body
    assert encode(body, coding) == encoded


def test_pieces_have_the_sizes_asked_for() -> None:
    assert split(b"abcdef", [1, 0, 2]) == [b"a", b"bc", b"def"]
    assert split(b"ab", [5, 5]) == [b"ab"]


def test_random_pieces_are_the_same_for_the_same_seed() -> None:
    data = bytes(range(256))
    pieces = split(data, seed=3, most=5)
    assert b"".join(pieces) == data
    assert {len(piece) for piece in pieces} == {1, 2, 3, 4, 5} | {len(pieces[-1])}
    assert pieces == split(data, seed=3, most=5) != split(data, seed=4, most=5)
