"""Server-sent events (WHATWG HTML, 9.2.6): split a byte stream into events, and parse one event.

Splitting and parsing are separate, because most readers need only a few events, and a proxy forwards all of them
verbatim.
"""

from __future__ import annotations

import re

# HOW THE SCANNER WORKS
#
# The stream is a sequence of *blocks*. A block is any number of line ends, then at least one byte that is not
# a line end, then whatever follows up to and including the first line end that is directly followed by
# another (the blank line). A line end is CRLF, LF or CR. So every byte belongs to exactly one block, and
# all blocks and the rest, joined, are the stream. (A block may be a comment, or have no data: `parse` decides
# whether it is an event.)
#
# Line ends *lead* a block where a server sends more than one blank line, and in one more case: a block that
# ends in CR at the end of a feed is handed out at once, since the CR is a line end already and its event must
# not wait for the next one. If that CR was half of a CRLF, its LF opens the next feed, and so leads the next
# block, where it means nothing. Where the feeds are cut can thus move one LF from a block to the next, but
# changes no event.
#
# Between two feeds the scanner is in one of four states:
#
#   idle      nothing held.
#   leading   only line ends held, since no other byte of the block has come (`_leading`).
#   inside    a block has begun (`_held`), its end has not arrived. At most its last two bytes can be the
#             beginning of a terminator ("\r\n" + "\n"), so the search resumes there (`_searched`) and reads
#             no other byte twice.
#   skipping  a block outgrew `max_event` (`_skipping`): as *inside* (or *leading*), but all that is held
#             are the two bytes that the search needs. The block is dropped, or handed out in pieces.
#
# Nearly all chunks of a provider's stream are complete blocks with LF line ends that arrive in *idle*. They
# bypass the buffer and cost one `find` and one slice each.

_TERMINATOR = re.compile(rb"\r\n\r\n?|\r\n\n|\r\r\n?|\n\r\n?|\n\n")
_NOT_LINE_END = re.compile(rb"[^\r\n]")
_LF = 0x0A
_COLON = 0x3A
_BOM = b"\xef\xbb\xbf"


class Piece(bytes):
    """A part of a block that is larger than the limit. The first piece has the bytes up to the limit, or all."""

    first = False
    last = False


def _piece(data: bytes, *, first: bool = False, last: bool = False) -> Piece:
    piece = Piece(data)
    piece.first, piece.last = first, last
    return piece


class SSEScanner:
    """Split a byte stream into server-sent events without decoding them.

    A block larger than `max_event` bytes is handed out in pieces as it arrives, if `pieces` is set. Otherwise it is
    dropped and counted in `oversized`. Scanning resumes after it.
    """

    def __init__(self, max_event: int = 8 * 1024 * 1024, *, pieces: bool = False) -> None:
        self.oversized = 0
        self._max_event = max_event
        self._pieces = pieces
        self._held = bytearray()
        self._searched = 0
        self._held_cr = False
        self._leading = False
        self._skipping = False

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far are complete events and blank lines, so that the next byte begins a new event."""
        return (not self._held or self._leading) and not self._skipping

    def feed(self, data: bytes) -> list[tuple[bytes, int]]:
        """Take the next bytes and return each event that is now complete as (raw, start).

        `raw` are its verbatim bytes with the blank line that ends it; `start` is the offset in `data` at
        which it begins, 0 if it began in an earlier feed.
        """
        events: list[tuple[bytes, int]] = []
        start = self._finish_held(data, events) if self._held or self._skipping else 0
        size = len(data)
        has_cr = b"\r" in data
        while start < size:
            # Either is below 2 if there is no end.
            end = _block_end(data, start) if has_cr or data[start] == _LF else data.find(b"\n\n", start) + 2
            if end < 2:
                self._hold(data[start:] if start else data, has_cr, events, start)
                break
            if end - start > self._max_event:
                self._outgrown(events, data[start:end], start, last=True)
            else:
                events.append((data[start:end], start))
            start = end
        return events

    def finish(self) -> bytes:
        """End the stream and return the rest without a final blank line (empty if it was oversized).

        Many servers omit the last blank line, so the rest may be an event.
        """
        rest = b"" if self._skipping else bytes(self._held)
        self._reset()
        return rest

    def _finish_held(self, data: bytes, events: list[tuple[bytes, int]]) -> int:
        """Find the end of the held block in `data`. Return the offset after it, or the size of `data`."""
        before = len(self._held)
        self._held += data
        self._held_cr = self._held_cr or b"\r" in data
        end = self._search_held()
        if end < 0:
            if self._skipping and self._pieces:
                events.append((_piece(data), 0))
            self._shrink_if_oversized(events, 0)
            return len(data)
        if self._skipping:
            if self._pieces:
                events.append((_piece(data[: end - before], last=True), 0))
        else:
            if end > self._max_event:
                self._outgrown(events, bytes(memoryview(self._held)[:end]), 0, last=True)
            else:
                events.append((bytes(memoryview(self._held)[:end]), 0))
        self._reset()
        return end - before

    def _outgrown(self, events: list[tuple[bytes, int]], block: bytes, start: int, *, last: bool) -> None:
        """Hand out the beginning of a block that is too large, or count it."""
        if self._pieces:
            events.append((_piece(block, first=True, last=last), start))
        else:
            self.oversized += 1

    def _hold(self, rest: bytes, has_cr: bool, events: list[tuple[bytes, int]], start: int) -> None:
        """Keep the beginning of a block whose end has not arrived."""
        self._held += rest
        self._held_cr = has_cr
        self._leading = _NOT_LINE_END.search(rest) is None
        self._searched = len(rest) if self._leading else max(0, len(rest) - 2)
        self._shrink_if_oversized(events, start)

    def _search_held(self) -> int:
        """Return the end of the held block, or -1. Only bytes that were not searched before are read."""
        if self._leading:
            first = _NOT_LINE_END.search(self._held, self._searched)
            if first is None:
                self._searched = len(self._held)
                return -1
            self._leading = False
            self._searched = first.start()
        if self._held_cr:
            found = _TERMINATOR.search(self._held, self._searched)
            end = found.end() if found else -1
        else:
            end = self._held.find(b"\n\n", self._searched)
            end = end + 2 if end >= 0 else -1
        self._searched = max(self._searched, len(self._held) - 2)
        return end

    def _shrink_if_oversized(self, events: list[tuple[bytes, int]], start: int) -> None:
        if not self._skipping:
            if len(self._held) <= self._max_event:
                return
            self._skipping = True
            self._outgrown(events, bytes(self._held), start, last=False)
        if self._leading:
            self._held.clear()
        else:
            del self._held[:-2]
        self._searched = 0

    def _reset(self) -> None:
        self._held = bytearray()  # not clear(): that would keep the memory of the largest event
        self._searched = 0
        self._held_cr = self._leading = self._skipping = False


def parse(raw: bytes) -> tuple[str, bytes | None]:
    r"""Parse one block. Return the event's name, or "", and its data joined with \n, or None without a data field.

    A byte order mark is skipped at the beginning of any block, although only the stream's first may have one.
    """
    # Nearly all events have the form `data: Y`, or `event: X` and `data: Y`. All others are parsed line by line.
    last = len(raw) - 2
    if b"\r" not in raw and raw.endswith(b"\n\n"):
        if raw.startswith(b"event: "):
            line_end = raw.find(b"\n")
            if raw.startswith(b"data: ", line_end + 1) and raw.find(b"\n", line_end + 7) == last:
                return raw[7:line_end].decode("utf-8", "replace"), raw[line_end + 7 : last]
        elif raw.startswith(b"data: ") and raw.find(b"\n") == last:
            return "", raw[6:last]
    return _parse_lines(raw)


def event(name: str, data: bytes) -> bytes:
    """Encode one event. `data` must not contain a line end."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data) if name else b"data: %s\n\n" % data


def _parse_lines(raw: bytes) -> tuple[str, bytes | None]:
    name = b""
    data: list[bytes] = []
    for line in raw.removeprefix(_BOM).splitlines():  # bytes.splitlines splits at CR, LF and CRLF only
        if not line or line[0] == _COLON:
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return name.decode("utf-8", "replace"), b"\n".join(data) if data else None


def _block_end(data: bytes, start: int) -> int:
    """Return the end of the block that begins at `start`, with any line ends, or -1."""
    if data[start] in b"\r\n":
        first = _NOT_LINE_END.search(data, start)
        if first is None:
            return -1
        start = first.start()
    found = _TERMINATOR.search(data, start)
    return found.end() if found else -1
