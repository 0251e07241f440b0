"""Content codings (RFC 9110, 8.4): decode gzip, deflate, br and zstd in bounded memory and time.

The input is not trusted: a few bytes can decode to gigabytes. Pieces of at most `PIECE` bytes are therefore produced
lazily. Decoding fails beyond `max_output` bytes in total, or beyond `MAX_FEED_OUTPUT` bytes for one feed.

    CodingError (ValueError)
    ├── UnsupportedCoding      an unknown coding, or more than `MAX_CODINGS` of them
    ├── DecodeError            the bytes do not follow the coding, or a body ends too early
    └── OutputLimitExceeded    the output is larger than allowed
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 64 * 1024
"""Bytes. Maximum size of a decoded piece."""

MAX_FEED_OUTPUT = 16 * 1024 * 1024
"""Bytes. Maximum output of one feed. Decoding blocks the event loop, and 16 MiB take about 30 ms."""

MAX_CODINGS = 4
"""Maximum number of codings in a list. Each costs a pass over the bytes."""

# Bytes. An empty zstd frame has 9 bytes and takes 8 µs to set up. A body of empty frames would cost time without
# exceeding a limit on output. Each member therefore counts as this much output, which allows 1,024 members per feed.
_MEMBER_COST = 16 * 1024

# Bytes. The rest of the input is copied whenever a piece is full or a member ends. Small slices keep that linear.
_INPUT_SLICE = 16 * 1024

# Bytes. The brotli package extends its output by whole blocks and stops after the block that reaches the limit. The
# first block has 32,752 bytes and the second ends at 98,272 (version 1.2.0), so the limit is less than one block.
_BROTLI_STEP = 16 * 1024

# RFC 9659: a zstd content coding must not need a window above 8 MiB. The library would allow 128 MiB.
_ZSTD_WINDOW_LOG_MAX = 23

_GZIP_MAGIC = (b"\x1f\x8b",)
# RFC 8878: 3.1.1 a frame, 3.1.2 sixteen kinds of skippable frame.
_ZSTD_MAGIC = (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + kind]) + b"\x2a\x4d\x18" for kind in range(16)))


class CodingError(ValueError):
    """A body cannot be decoded."""


class UnsupportedCoding(CodingError):
    """The content coding is unknown."""

    def __init__(self, content_encoding: str) -> None:
        super().__init__(f"unsupported content coding: {content_encoding!r}")
        self.content_encoding = content_encoding


class DecodeError(CodingError):
    """The bytes do not follow the coding."""


class OutputLimitExceeded(CodingError):
    """The output is larger than allowed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"decoded body exceeds its limit of {limit} bytes")
        self.limit = limit


class _Engine(Protocol):
    """Decode one member of a coding, up to its end."""

    more: bool
    """Whether output is left. `decode` must then be called with no data."""
    eof: bool
    unused: bytes
    """The bytes after the end."""

    def decode(self, data: bytes) -> bytes:
        """Decode at most `PIECE` bytes."""


class _Inflate:
    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.decompressobj(wbits)
        self.more = self.eof = False
        self.unused = b""

    def decode(self, data: bytes) -> bytes:
        inflater = self._zlib
        piece = inflater.decompress(inflater.unconsumed_tail or data, PIECE)
        if inflater.eof:
            self.eof = True
            self.unused = inflater.unused_data
        # A full piece may leave the last bytes of a match inside zlib even when all input is consumed.
        self.more = len(piece) == PIECE or bool(inflater.unconsumed_tail)
        return piece


class _Deflate:
    """Decode `deflate`. RFC 9110 requires the zlib format, but some servers send the raw stream."""

    def __init__(self) -> None:
        self._head = b""
        self._inflate: _Inflate | None = None
        self.more = self.eof = False
        self.unused = b""

    def decode(self, data: bytes) -> bytes:
        if self._inflate is None:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return b""
            self._inflate = _Inflate(zlib.MAX_WBITS if _has_zlib_header(data) else -zlib.MAX_WBITS)
        inflate = self._inflate
        piece = inflate.decode(data)
        self.more, self.eof, self.unused = inflate.more, inflate.eof, inflate.unused
        return piece


def _has_zlib_header(data: bytes) -> bool:
    # RFC 1950, 2.2: the method is 8 (deflate) and the two bytes are a multiple of 31. In raw deflate such a first
    # byte would be a stored block with padding bits set, which encoders do not write.
    return data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0


class _Brotli:
    def __init__(self) -> None:
        self._brotli = brotli.Decompressor()
        self.more = self.eof = False
        self.unused = b""

    def decode(self, data: bytes) -> bytes:
        piece: bytes = self._brotli.process(data, output_buffer_limit=_BROTLI_STEP)
        self.eof = self._brotli.is_finished()
        # `can_accept_more_data` concerns the input only. Output may be left when all input is consumed.
        self.more = len(piece) >= _BROTLI_STEP or not self._brotli.can_accept_more_data()
        return piece


class _Zstd:
    def __init__(self) -> None:
        self._zstd = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG_MAX})
        self.more = self.eof = False
        self.unused = b""

    def decode(self, data: bytes) -> bytes:
        piece = self._zstd.decompress(data, PIECE)
        if self._zstd.eof:
            self.eof = True
            self.unused = self._zstd.unused_data
        self.more = not self._zstd.needs_input
        return piece


@dataclass(frozen=True, slots=True)
class _Coding:
    engine: Callable[[], _Engine]
    magic: tuple[bytes, ...] = ()
    """First bytes of further members, for codings that can have several."""
    strict_end: bool = False
    """Whether bytes after the end are an error."""


_GZIP = _Coding(lambda: _Inflate(16 + zlib.MAX_WBITS), magic=_GZIP_MAGIC)
_CODINGS = MappingProxyType(
    {
        "gzip": _GZIP,
        "x-gzip": _GZIP,
        "deflate": _Coding(_Deflate),
        # The package fails on a piece that contains the end and more bytes, and returns nothing of it. The result must
        # not depend on how the bytes are split, so bytes after the end are always an error.
        "br": _Coding(_Brotli, strict_end=True),
        "zstd": _Coding(_Zstd, magic=_ZSTD_MAGIC),
    }
)
_LIBRARY_ERRORS: tuple[type[Exception], ...] = (zlib.error, brotli.error, zstd.ZstdError)


class _Stage:
    """Decode one coding of the list, member by member, and count the output."""

    def __init__(self, coding: _Coding, max_output: int, max_feed_output: int) -> None:
        self._coding = coding
        self._max_output = self._left = max_output
        self._max_feed_output = self._left_of_feed = max_feed_output
        self._engine: _Engine | None = None
        self._started = False  # the first member has begun
        self._ended = False  # no further member can begin
        self._undecided = b""  # bytes after a member, too few to decide whether they begin another one

    @property
    def complete(self) -> bool:
        return self._engine is None and not self._undecided

    def decode(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        self._left_of_feed = self._max_feed_output
        for data in pieces:
            for start in range(0, len(data), _INPUT_SLICE):
                yield from self._decode_slice(data[start : start + _INPUT_SLICE])

    def _decode_slice(self, data: bytes) -> Iterator[bytes]:
        while True:
            engine = self._engine
            if engine is None:
                data = self._begin_member(data)
                engine = self._engine
                if engine is None:
                    return
            try:
                piece = engine.decode(data)
            except _LIBRARY_ERRORS as e:
                raise DecodeError(str(e)) from e
            if piece:
                self._count(len(piece))
                yield piece
            if engine.eof:
                self._engine = None
                data = engine.unused
                if not data:
                    return
            elif engine.more:
                data = b""
            else:
                return

    def _begin_member(self, data: bytes) -> bytes:
        """Start the next member if `data` begins one, and return its bytes so far.

        Other bytes after the last member are ignored, as clients do. Some servers pad gzip with zeros.
        """
        if self._ended:
            return b""
        data = self._undecided + data
        self._undecided = b""
        if not self._started or data.startswith(self._coding.magic):
            self._started = True
            self._count_member()
            self._engine = self._coding.engine()
        elif any(magic.startswith(data) for magic in self._coding.magic):
            self._undecided = data
        elif self._coding.strict_end:
            raise DecodeError("bytes after the end of the coded stream")
        else:
            self._ended = True
        return data

    def _count(self, size: int) -> None:
        self._left -= size
        self._left_of_feed -= size
        if self._left < 0:
            raise OutputLimitExceeded(self._max_output)
        if self._left_of_feed < 0:
            raise OutputLimitExceeded(self._max_feed_output)

    def _count_member(self) -> None:
        self._left_of_feed -= _MEMBER_COST
        if self._left_of_feed < 0:
            raise OutputLimitExceeded(self._max_feed_output)


class Decoder:
    """Decode a list of content codings, one feed at a time."""

    def __init__(self, codings: list[_Coding], max_output: int, max_feed_output: int) -> None:
        # The data between two codings is limited too. Otherwise a list could expand in the middle without exceeding the
        # limit on output. The limit is higher, because this data may be a little longer than the output.
        between = max_output + MAX_FEED_OUTPUT
        limits = [between] * (len(codings) - 1) + [max_output]
        self._stages = [
            _Stage(coding, limit, max_feed_output) for coding, limit in zip(reversed(codings), limits, strict=True)
        ]
        self._dead = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes and decode them during iteration, into pieces of at most `PIECE` bytes.

        The iteration raises `DecodeError` or `OutputLimitExceeded`. After an error, or if a result was not iterated to
        its end, each further feed raises `DecodeError`.
        """
        if self._dead:
            raise DecodeError("an earlier feed failed or was not read to its end")
        self._dead = True
        return self._decode(data)

    @property
    def complete(self) -> bool:
        """Whether the coded stream has reached its end (gzip: its trailer). An empty stream is complete."""
        return not self._dead and all(stage.complete for stage in self._stages)

    def _decode(self, data: bytes) -> Iterator[bytes]:
        pieces: Iterable[bytes] = (data,)
        for stage in self._stages:
            pieces = stage.decode(pieces)
        yield from pieces
        self._dead = False


def decoder_for(content_encoding: str | None, max_output: int) -> Decoder | None:
    """Return a decoder for a Content-Encoding header, or None if there is no coding."""
    codings = _parse_codings(content_encoding)
    return Decoder(codings, max_output, MAX_FEED_OUTPUT) if codings else None


def decode_all(data: bytes, content_encoding: str | None, max_output: int) -> bytes:
    """Decode a complete body. Raises DecodeError if it ends too early."""
    codings = _parse_codings(content_encoding)
    if not codings:
        if len(data) > max_output:
            raise OutputLimitExceeded(max_output)
        return data
    decoder = Decoder(codings, max_output, max_feed_output=max_output + MAX_FEED_OUTPUT)
    body = b"".join(decoder.feed(data))
    if not decoder.complete:
        raise DecodeError("the coded body ends too early")
    return body


_IDENTITY = frozenset(("", "identity", "none", "utf-8", "utf8", "aws-chunked", "binary", "8bit", "7bit"))
"""Names for no coding. Only `identity` is registered; servers also send the names of charsets and other encodings."""


def _parse_codings(content_encoding: str | None) -> list[_Coding]:
    names = [name.strip().lower() for name in (content_encoding or "").split(",")]
    names = [name for name in names if name not in _IDENTITY]
    if len(names) > MAX_CODINGS:
        raise UnsupportedCoding(content_encoding or "")
    unknown = next((name for name in names if name not in _CODINGS), None)
    if unknown is not None:
        raise UnsupportedCoding(unknown)
    return [_CODINGS[name] for name in names]
