"""Keep the beginning and the end of a body whose middle is large and of no interest, such as images. Sans-io."""

from __future__ import annotations

HEAD = 256 * 1024
"""Bytes kept of the beginning. Bodies up to `HEAD + TAIL` are kept whole."""
TAIL = 64 * 1024
"""Bytes kept of the end."""


class BodyEdges:
    """Receives a body in pieces."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = False

    def feed(self, data: bytes) -> None:
        room = HEAD - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data[-2 * TAIL :]
        if len(data) > 2 * TAIL or len(self._tail) > 2 * TAIL:
            self._dropped = True
            del self._tail[:-TAIL]

    @property
    def whole(self) -> bytes | None:
        """The whole body. None if its middle was dropped."""
        return None if self._dropped else bytes(self._head + self._tail)

    @property
    def windows(self) -> tuple[bytes, bytes]:
        """The end, and the beginning."""
        return bytes(self._tail), bytes(self._head)

    @property
    def is_object(self) -> bool:
        """Whether the body begins like a JSON object."""
        return self._head[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
