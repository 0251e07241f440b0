"""Content codings (RFC 9110, 8.4): decode gzip, deflate, br and zstd in bounded memory and time.

What peers send is not trusted. A few bytes can stand for gigabytes, so pieces are produced lazily, each at
most `PIECE` bytes, and decoding stops with an error beyond `max_output` bytes in total or `MAX_FEED_OUTPUT`
out of one feed.

    CodingError (ValueError)
    ├── UnsupportedCoding      a coding that we do not know, or more than `MAX_CODINGS` of them
    ├── DecodeError            the bytes are not what the coding says, or (whole bodies) they end too early
    └── OutputLimitExceeded    they decode to more than is allowed
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 64 * 1024
"""No decoded piece is larger."""

MAX_FEED_OUTPUT = 16 * 1024 * 1024
"""No single feed gives more: decoding runs in the event loop, and 16 MiB take about 30 ms."""

MAX_CODINGS = 4
"""As many as a list may name; each costs a pass over the bytes."""

# An empty zstd frame is 9 bytes and costs 8 µs to set up, so a body of nothing but those would cost time and
# never exceed a limit on output. Each member therefore counts as this much output of its feed: 1,024 members
# at most.
_MEMBER_COST = 16 * 1024

# The rest of the input is copied whenever a piece is full or a member ends. Small slices keep that linear.
_INPUT_SLICE = 16 * 1024

# The brotli package grows its output by whole blocks and stops after the first that reaches the limit: the
# first block holds 32,752 bytes, the second ends at 98,272 (1.2.0). So ask for less than one.
_BROTLI_STEP = 16 * 1024

# RFC 9659: a zstd content coding must not need a window of more than 8 MiB; the library
# itself would allow 128 MiB.
_ZSTD_WINDOW_LOG_MAX = 23

_GZIP_MAGIC = (b"\x1f\x8b",)
# RFC 8878: 3.1.1 a frame, 3.1.2 sixteen kinds of skippable frame.
_ZSTD_MAGIC = (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + kind]) + b"\x2a\x4d\x18" for kind in range(16)))


class CodingError(ValueError):
    """A body cannot be decoded."""


class UnsupportedCoding(CodingError):
    """The content coding is not known."""

    def __init__(self, content_encoding: str) -> None:
        super().__init__(f"unsupported content coding: {content_encoding!r}")
        self.content_encoding = content_encoding


class DecodeError(CodingError):
    """The bytes do not follow the coding."""


class OutputLimitExceeded(CodingError):
    """The bytes decode to more than is allowed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"decoded body exceeds its limit of {limit} bytes")
        self.limit = limit


class _Engine(Protocol):
    """Decode one member of a coding, up to its end."""

    more: bool
    """Whether there is output left: `decode` is then to be called with nothing."""
    eof: bool
    unused: bytes
    """What came after the end."""

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
    """Decode `deflate`: by RFC 9110 the zlib format, but some servers have always sent the bare stream."""

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
    # RFC 1950, 2.2: the method is 8 (deflate) and the two bytes are a multiple of 31. Read as raw deflate,
    # such a first byte would be a stored block with padding bits set, which no encoder writes.
    return data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0


class _Brotli:
    def __init__(self) -> None:
        self._brotli = brotli.Decompressor()
        self.more = self.eof = False
        self.unused = b""

    def decode(self, data: bytes) -> bytes:
        piece: bytes = self._brotli.process(data, output_buffer_limit=_BROTLI_STEP)
        self.eof = self._brotli.is_finished()
        # `can_accept_more_data` speaks of input only: when all of it is taken, output may still be left.
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
    """How a further member may begin, for codings that have several."""
    strict_end: bool = False
    """Whether bytes after the end are an error."""


_GZIP = _Coding(lambda: _Inflate(16 + zlib.MAX_WBITS), magic=_GZIP_MAGIC)
_CODINGS = {
    "gzip": _GZIP,
    "x-gzip": _GZIP,
    "deflate": _Coding(_Deflate),
    # The package fails on a piece that holds the end and more, and gives nothing of it: it must not depend on
    # how the bytes are cut, so more is always an error.
    "br": _Coding(_Brotli, strict_end=True),
    "zstd": _Coding(_Zstd, magic=_ZSTD_MAGIC),
}
_LIBRARY_ERRORS: tuple[type[Exception], ...] = (zlib.error, brotli.error, zstd.ZstdError)


class _Stage:
    """Undo one coding of the list: member after member, all that they give being counted."""

    def __init__(self, coding: _Coding, max_output: int, max_feed_output: int) -> None:
        self._coding = coding
        self._max_output = self._left = max_output
        self._max_feed_output = self._left_of_feed = max_feed_output
        self._engine: _Engine | None = None
        self._started = False  # some member was
        self._ended = False  # no other member will be
        self._undecided = b""  # too few bytes after a member to tell whether they begin another

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
        """Start the next member if `data` begins one; return its bytes so far.

        Other bytes after the last member are ignored, as clients do: some servers pad gzip with zeros.
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
    """Undo a list of content codings, one feed at a time."""

    def __init__(self, codings: list[_Coding], max_output: int, max_feed_output: int) -> None:
        # What lies between two codings is bounded too, else a list could hide a bomb that ends in nothing. It
        # may be a little longer than the output, so it has more room.
        between = max_output + MAX_FEED_OUTPUT
        limits = [between] * (len(codings) - 1) + [max_output]
        self._stages = [
            _Stage(coding, limit, max_feed_output) for coding, limit in zip(reversed(codings), limits, strict=True)
        ]
        self._dead = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes; decode them as the result is iterated, into pieces of at most `PIECE` bytes.

        Raise `DecodeError` or `OutputLimitExceeded` from the iteration. After an error the decoder is dead
        and each further feed raises `DecodeError`; so it does after a feed whose result was not iterated to
        its end.
        """
        if self._dead:
            raise DecodeError("an earlier feed failed or was not read to its end")
        self._dead = True
        return self._decode(data)

    @property
    def complete(self) -> bool:
        """Whether the coded stream has reached its end (gzip: its trailer). No bytes at all are complete."""
        return not self._dead and all(stage.complete for stage in self._stages)

    def _decode(self, data: bytes) -> Iterator[bytes]:
        pieces: Iterable[bytes] = (data,)
        for stage in self._stages:
            pieces = stage.decode(pieces)
        yield from pieces
        self._dead = False


def decoder_for(content_encoding: str | None, max_output: int) -> Decoder | None:
    """Make the decoder for a Content-Encoding header, None if nothing is to be decoded."""
    codings = _parse_codings(content_encoding)
    return Decoder(codings, max_output, MAX_FEED_OUTPUT) if codings else None


def decode_all(data: bytes, content_encoding: str | None, max_output: int) -> bytes:
    """Decode a whole body. A body that ends too early is a `DecodeError`."""
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


def _parse_codings(content_encoding: str | None) -> list[_Coding]:
    names = [name.strip().lower() for name in (content_encoding or "").split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if len(names) > MAX_CODINGS:
        raise UnsupportedCoding(content_encoding or "")
    unknown = next((name for name in names if name not in _CODINGS), None)
    if unknown is not None:
        raise UnsupportedCoding(unknown)
    return [_CODINGS[name] for name in names]
