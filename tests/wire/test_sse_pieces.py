"""Blocks above the limit, handed out in pieces."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from aibridge_addon.wire.sse import Piece, SSEScanner

LIMIT = 50
SMALL = b"data: small\n\n"
LARGE = b'data: {"type":"x","text":"' + b"a" * 300 + b'"}\n\n'
STREAM = SMALL + LARGE + SMALL + LARGE + LARGE + b": hi\n\n"


def chunkings(stream: bytes) -> list[list[bytes]]:
    cuts = []
    for seed in range(30):
        dice = random.Random(seed)
        edges = sorted({0, len(stream), *(dice.randrange(len(stream)) for _ in range(dice.randrange(1, 40)))})
        cuts.append([stream[a:b] for a, b in pairwise(edges)])
    return [[stream], [stream[i : i + 1] for i in range(len(stream))], *cuts]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_no_byte_is_lost_and_small_blocks_stay_whole(newline: bytes) -> None:
    stream = STREAM.replace(b"\n", newline)
    for chunks in chunkings(stream):
        scanner = SSEScanner(LIMIT, pieces=True)
        found = [raw for chunk in chunks for raw, _ in scanner.feed(chunk)]
        assert b"".join(found) + scanner.finish() == stream
        assert scanner.oversized == 0
        small = [raw.strip() for raw in found if not isinstance(raw, Piece)]
        assert small == [SMALL.strip(), SMALL.strip(), b": hi"]


def test_a_large_block_has_one_first_and_one_last_piece() -> None:
    for chunks in chunkings(STREAM):
        scanner = SSEScanner(LIMIT, pieces=True)
        pieces = [raw for chunk in chunks for raw, _ in scanner.feed(chunk) if isinstance(raw, Piece)]
        blocks: list[list[Piece]] = []
        for piece in pieces:
            if piece.first:
                blocks.append([])
            blocks[-1].append(piece)
        assert len(blocks) == 3
        for block in blocks:
            assert [piece.last for piece in block] == [False] * (len(block) - 1) + [True]
            assert b"".join(block).strip(b"\n") == LARGE.strip(b"\n")
            assert len(block[0]) > LIMIT


def test_the_first_piece_comes_as_soon_as_the_limit_is_reached_and_the_rest_as_it_arrives() -> None:
    scanner = SSEScanner(LIMIT, pieces=True)
    assert scanner.feed(LARGE[:LIMIT]) == []
    for place in range(LIMIT, len(LARGE)):
        [(piece, _)] = scanner.feed(LARGE[place : place + 1])
        assert piece == LARGE[: LIMIT + 1] if place == LIMIT else piece == LARGE[place : place + 1]
