"""Content codings for scripted answers, and ways to cut bytes into pieces."""

import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import brotli
from backports import zstd

Coding = Literal["identity", "gzip", "deflate", "br", "zstd"]
CODINGS: tuple[Coding, ...] = ("identity", "gzip", "deflate", "br", "zstd")

_GZIP_WBITS = 16 + zlib.MAX_WBITS
_FAST_BROTLI_QUALITY = 4


def encode(body: bytes, coding: Coding) -> bytes:
    return b"".join(encode_stream([body], coding))


def encode_stream(chunks: Iterable[bytes], coding: Coding) -> list[bytes]:
    """Encode as one stream, flushed after each chunk: with it, a decoder has all of that chunk's bytes.

    Returns as many pieces as there are chunks; the last one also holds the end of the stream.
    """
    encoded, finish = _encoder(coding)
    pieces = [encoded(chunk) for chunk in chunks]
    end = finish()
    if end:
        pieces[-1:] = [(pieces[-1] if pieces else b"") + end]
    return pieces


def _encoder(coding: Coding) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    match coding:
        case "identity":
            return lambda chunk: chunk, lambda: b""
        case "gzip" | "deflate":
            zipper = zlib.compressobj(wbits=_GZIP_WBITS if coding == "gzip" else zlib.MAX_WBITS)
            return lambda chunk: zipper.compress(chunk) + zipper.flush(zlib.Z_SYNC_FLUSH), zipper.flush
        case "br":
            brotler = brotli.Compressor(quality=_FAST_BROTLI_QUALITY)
            return lambda chunk: brotler.process(chunk) + brotler.flush(), brotler.finish
        case "zstd":
            zstder = zstd.ZstdCompressor()
            return lambda chunk: zstder.compress(chunk, zstder.FLUSH_BLOCK), zstder.flush


def split(data: bytes, sizes: Sequence[int] | None = None, *, seed: int = 0, most: int = 64) -> list[bytes]:
    """Cut bytes into pieces of the given sizes, the rest last; without sizes, of random ones up to `most`."""
    dice = random.Random(seed)
    pieces: list[bytes] = []
    rest = data
    for size in sizes or ():
        pieces.append(rest[:size])
        rest = rest[size:]
    if sizes is not None:
        pieces.append(rest)
        return [piece for piece in pieces if piece]
    while rest:
        size = dice.randint(1, most)
        pieces.append(rest[:size])
        rest = rest[size:]
    return pieces
