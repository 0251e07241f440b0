"""What stands around the text in the chunks of one stream. It is the same in most of them, so only the text is decoded.

data: {"id":"…","choices":[{"index":0,"delta":{"content":" proxies"},"finish_reason":null}],"obfuscation":"x7"}
└──────────────── before ──────────────────────────────┘└ text ─┘└──────────── after ────────────────┘└ any ┘└ end
"""

from __future__ import annotations

CONTENT = b'"content":"'
PADDING = b'"obfuscation":"'
"""Random characters that OpenAI adds to chunks, so that their length does not show the text."""


class Frame:
    """Made of one chunk that was read, and then compared with the next ones."""

    __slots__ = ("_after", "_before", "_end")

    def __init__(self, before: bytes, after: bytes, end: bytes | None) -> None:
        self._before = before
        self._after = after
        self._end = end
        """What follows the padding. None: there is no padding."""

    @classmethod
    def of(cls, raw: bytes) -> Frame | None:
        """Return the frame of a chunk with a text. None if it has no text, more than one, or an escape in it."""
        start = raw.find(CONTENT) + len(CONTENT)
        stop = raw.find(b'"', start)
        if start < len(CONTENT) or stop < 0 or b"\\" in raw[start:stop] or raw.find(CONTENT, stop) >= 0:
            return None
        padding = raw.find(PADDING, stop)
        if padding < 0:
            return cls(raw[:start], raw[stop:], None)
        padding += len(PADDING)
        return cls(raw[:start], raw[stop:padding], raw[raw.find(b'"', padding) :])

    def text(self, raw: bytes) -> str | None:
        """Return the text of a chunk. None if something else differs, or if the text has to be decoded as JSON."""
        if not raw.startswith(self._before):
            return None
        start = len(self._before)
        stop = raw.find(b'"', start)
        if self._end is None:
            if raw[stop:] != self._after:
                return None
        elif not raw.startswith(self._after, stop):
            return None
        else:
            padding = raw.find(b'"', stop + len(self._after))
            if raw[padding:] != self._end or not raw[stop + len(self._after) : padding].isalnum():
                return None
        data = raw[start:stop]
        if b"\\" in data:
            return None
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        return text if text.isprintable() else None
