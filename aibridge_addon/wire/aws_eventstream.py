"""AWS event stream (`application/vnd.amazon.eventstream`): split a byte stream into messages, parse and encode one.

Sources: "Amazon Event Stream Specification" (Smithy), "Event stream encoding" (Amazon Transcribe) and botocore's
`eventstream.py`. As in `sse`, splitting and parsing are separate, because a proxy forwards all messages verbatim.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from zlib import crc32

# A MESSAGE
#
#   total length   4 bytes   of the whole message, including this field
#   header length  4 bytes
#   prelude CRC    4 bytes   CRC-32 of the preceding eight bytes
#   headers        each: length of the name (1), name, type of the value (1), value
#   payload        the rest
#   message CRC    4 bytes   CRC-32 of all preceding bytes
#
# All integers are big-endian. Only the lengths say where a message begins, so nothing can be read after a wrong
# checksum. The prelude has its own checksum, which is verified before its lengths are used.

CONTENT_TYPE = "application/vnd.amazon.eventstream"

HeaderValue = bool | int | bytes | str | uuid.UUID
"""A timestamp is an integer: milliseconds since 1970."""

_PRELUDE = struct.Struct(">III")
_LENGTHS = struct.Struct(">II")
_CRC = struct.Struct(">I")
_TEXT = 7
"""The type of a header with a text value."""
_OVERHEAD = _PRELUDE.size + _CRC.size
PRELUDE_SIZE = _PRELUDE.size


class CorruptEventStream(Exception):
    """The bytes are not an event stream, or were changed or truncated."""


@dataclass(frozen=True, slots=True)
class Message:
    headers: Mapping[str, HeaderValue]
    payload: bytes

    def text(self, name: str) -> str:
        """Return the value of a text header, or an empty text."""
        value = self.headers.get(name)
        return value if isinstance(value, str) else ""


class CutEventStream(CorruptEventStream):
    """The stream ends within a message. All bytes so far are valid."""


class EventStreamScanner:
    """Split a byte stream into messages, and verify both checksums of each.

    A message larger than `max_message` bytes is dropped without verification and counted in `oversized`. Scanning
    resumes after it.
    """

    def __init__(self, max_message: int = 8 * 1024 * 1024) -> None:
        self.oversized = 0
        self._max_message = max_message
        self._held = bytearray()
        self._total = 0
        """Bytes in the current message. 0: its prelude has not arrived."""
        self._skipping = 0
        """Bytes of an oversized message that have not arrived yet."""
        self._corrupt: CorruptEventStream | None = None

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far are complete messages, so that the next byte begins a new one."""
        return not self._held and not self._skipping

    def feed(self, data: bytes) -> list[tuple[bytes, int]]:
        """Take the next bytes and return each message that is now complete as (raw, start).

        `raw` are its verbatim bytes; `start` is the offset in `data` at which it begins, 0 if it began in an earlier
        feed.

        Raises:
            CorruptEventStream: the stream is corrupt and cannot be read further. Complete messages before the corrupt
                position are returned first. The error is then raised by the next call, or by `finish`.
        """
        if self._corrupt is not None:
            raise self._corrupt
        skipped = min(self._skipping, len(data))
        self._skipping -= skipped
        before = len(self._held)
        self._held += data[skipped:] if skipped else data
        messages: list[tuple[bytes, int]] = []
        start = 0
        try:
            while len(self._held) - start >= (self._total or _PRELUDE.size):
                if not self._total:
                    start += self._begin(start)
                    continue
                end = start + self._total
                messages.append((self._checked(start, end), skipped + max(0, start - before)))
                start, self._total = end, 0
        except CorruptEventStream as e:
            self._corrupt = e
            if not messages:
                raise
        if start == len(self._held) or self._corrupt is not None:
            self._held = bytearray()  # not clear(): that would keep the memory of the largest message
        else:
            del self._held[:start]
        return messages

    def finish(self) -> None:
        """End the stream.

        Raises:
            CorruptEventStream: the stream is corrupt.
            CutEventStream: the stream ends within a message.
        """
        if self._corrupt is not None:
            raise self._corrupt
        if not self.at_boundary:
            raise CutEventStream("the stream ends within a message")

    def _begin(self, start: int) -> int:
        """Read the prelude of the message at `start` and return the number of bytes to drop."""
        total, headers, crc = _PRELUDE.unpack_from(self._held, start)
        if crc32(self._held[start : start + _LENGTHS.size]) != crc:
            raise CorruptEventStream("the checksum of a message's prelude is wrong")
        if total < headers + _OVERHEAD:
            raise CorruptEventStream(f"a message of {total} bytes cannot have {headers} bytes of headers")
        if total <= self._max_message:
            self._total = total
            return 0
        self.oversized += 1
        dropped: int = min(total, len(self._held) - start)
        self._skipping = total - dropped
        return dropped

    def _checked(self, start: int, end: int) -> bytes:
        raw = bytes(memoryview(self._held)[start:end])
        (crc,) = _CRC.unpack_from(raw, len(raw) - _CRC.size)
        if crc32(memoryview(raw)[: -_CRC.size]) != crc:
            raise CorruptEventStream("the checksum of a message is wrong")
        return raw


def is_prelude(data: bytes) -> bool:
    """Return whether `data` begins with a prelude whose checksum is right."""
    (crc,) = _CRC.unpack_from(data, _LENGTHS.size)
    return bool(crc32(data[: _LENGTHS.size]) == crc)


def parse(raw: bytes) -> Message:
    """Parse one message that `EventStreamScanner.feed` returned.

    Raises:
        CorruptEventStream: the headers do not follow the format.
    """
    _, size, _ = _PRELUDE.unpack_from(raw)
    position, end = _PRELUDE.size, _PRELUDE.size + size
    headers: dict[str, HeaderValue] = {}
    try:
        while position < end:
            named = position + 1 + raw[position]
            name = raw[position + 1 : named].decode()
            if name in headers:
                raise CorruptEventStream(f"the header {name!r} occurs twice")
            headers[name], position = _VALUES[raw[named]](raw, named + 1)
    except (IndexError, ValueError, struct.error) as e:  # an unknown type, a truncated value, invalid UTF-8
        raise CorruptEventStream("a message's headers cannot be read") from e
    if position != end:
        raise CorruptEventStream("a message's last header is longer than its headers")
    return Message(headers, raw[end : -_CRC.size])


def encode(headers: Mapping[str, str], payload: bytes) -> bytes:
    """Encode one message with text headers."""
    encoded = b"".join(
        bytes((len(name),)) + name.encode() + bytes((_TEXT,)) + len(value).to_bytes(2) + value.encode()
        for name, value in headers.items()
    )
    return _message(encoded, payload)


def with_payload(raw: bytes, payload: bytes) -> bytes:
    """Return a message with the headers of the message `raw`, verbatim, and another payload."""
    _, size, _ = _PRELUDE.unpack_from(raw)
    return _message(raw[_PRELUDE.size : _PRELUDE.size + size], payload)


def _message(headers: bytes, payload: bytes) -> bytes:
    prelude = _LENGTHS.pack(len(headers) + len(payload) + _OVERHEAD, len(headers))
    whole = prelude + _CRC.pack(crc32(prelude)) + headers + payload
    return whole + _CRC.pack(crc32(whole))


def _integer(form: str) -> Callable[[bytes, int], tuple[HeaderValue, int]]:
    packed = struct.Struct(form)

    def value(raw: bytes, start: int) -> tuple[HeaderValue, int]:
        return packed.unpack_from(raw, start)[0], start + packed.size

    return value


def _bytes(raw: bytes, start: int) -> tuple[bytes, int]:
    """Read two bytes of length, then the value. The caller finds a value beyond the message by its end."""
    first = start + 2
    end = first + int.from_bytes(raw[start:first])
    return raw[first:end], end


def _text(raw: bytes, start: int) -> tuple[HeaderValue, int]:
    value, end = _bytes(raw, start)
    return value.decode(), end


def _uuid(raw: bytes, start: int) -> tuple[HeaderValue, int]:
    return uuid.UUID(bytes=raw[start : start + 16]), start + 16


_VALUES: tuple[Callable[[bytes, int], tuple[HeaderValue, int]], ...] = (
    lambda _, start: (True, start),
    lambda _, start: (False, start),
    _integer(">b"),
    _integer(">h"),
    _integer(">i"),
    _integer(">q"),
    _bytes,
    _text,
    _integer(">q"),
    _uuid,
)
"""Functions that return a header's value and its end, by type."""
