"""Replace secrets, and matches of the operator's own patterns, in text before it is stored.

The text is untrusted, so the patterns run in RE2, whose time is linear in the text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import re2

from aibridge_addon.credentials.secrets import SECRETS, WEAK

REDACTED = "[redacted]"
MAX_LEVELS = 100
"""Maximum depth of a JSON value. What is nested deeper is replaced as a whole."""
MAX_PASSES = 4
"""A mark can make a pattern match what is left. Passes over a text with secrets until nothing changes."""
MAX_MEMORY = 64 * 1024 * 1024
"""Bytes. Limit of the states that RE2 keeps of one expression. It uses about 1 MB."""
MAX_HEAD = 64
"""Bytes. Maximum length of a key before its `tail`."""

_WORD = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_~.-")
_MARK = r"\[redacted(?::[0-9a-f]{16})?\]"
_ONLY_MARK = re.compile(_MARK.encode())
_ESCAPES = tuple(f"\\{letter}".encode() for letter in "bfnrt")
_ESCAPED_CODE = re.compile(rb"\\u[0-9a-fA-F]{4}")


class Redactor:
    """Redacts texts. Redacting twice is the same as once.

    A redactor without `patterns` redacts secrets only.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        options = re2.Options()
        options.max_mem = MAX_MEMORY
        self._secrets = re2.compile(_any_of((WEAK, *SECRETS)), options)
        names = self._secrets.groupindex
        self._named = tuple(names[name] - 1 for name in ("weak", "tail", "after"))
        self._before = tuple(place for place in range(self._secrets.groups) if place not in self._named)
        self._own = None
        if patterns:
            # A mark is never matched itself, whatever the patterns are.
            options.never_capture = True
            self._own = re2.compile(_any_of((_MARK, *patterns)), options)

    def text(self, text: str) -> str:
        return self._redacted(text, REDACTED)

    def maybe_text(self, text: str | None) -> str | None:
        return None if text is None else self.text(text)

    def link(self, text: str) -> str:
        """Redact a text that links rows. Different texts stay different, also if only a secret differs.

        The mark has the first 64 bits of the text's SHA-256.
        """
        return self._redacted(text, f"[redacted:{hashlib.sha256(_encode(text)).hexdigest()[:16]}]")

    def encoded(self, data: bytes) -> bytes:
        """Redact UTF-8 text that may be JSON, or a piece of it. All other bytes stay unchanged."""
        mark = REDACTED.encode()
        if b"\\" in data:
            # Escapes hide where a word begins: the JSON `"\\nsk-…"` has an `n` before the secret.
            data = self._replaced(data, _without_escapes(data), mark)
        return self._replaced(data, data, mark)

    def _redacted(self, text: str, mark: str) -> str:
        data = _encode(text)
        redacted = self._replaced(data, data, mark.encode())
        return text if redacted is data else redacted.decode("utf-8", "surrogatepass")

    def _replaced(self, data: bytes, shown: bytes, mark: bytes) -> bytes:
        """Put marks into `data` where `shown`, which is as long, has secrets. Returns `data` itself if it has none."""
        for _ in range(MAX_PASSES):
            before = data
            for find in (self._find_secrets, self._find_own):
                # A mark is no secret, whatever is around it.
                if spans := [span for span in find(shown) if not _ONLY_MARK.fullmatch(shown, *span)]:
                    same = data is shown
                    data = _marked(data, spans, mark)
                    shown = data if same else _marked(shown, spans, mark)
            if data == before:
                return before
        return data

    def _find_secrets(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Yield the places of secrets. What an expression has in groups before and after the secret stays."""
        last = 0
        for match in self._secrets.finditer(data):
            start, end = match.span()
            groups = match.groups()
            weak, tail, after = (groups[place] for place in self._named)
            if weak is not None:
                if not _is_mixed(weak):
                    continue
                start = end - len(weak)
            elif tail is not None:
                start = _beginning_of_word(data, start, last)
            else:
                start += sum(len(groups[place] or b"") for place in self._before)
                end -= len(after or b"")
            yield start, end
            last = end

    def _find_own(self, data: bytes) -> Iterator[tuple[int, int]]:
        if self._own is not None:
            for match in self._own.finditer(data):
                start, end = match.span()
                if start < end:
                    yield start, end

    def value(self, value: Any, levels: int = MAX_LEVELS) -> Any:
        """Redact each text of a JSON value. In encoded JSON, escapes would hide secrets (`\\nsk-…`)."""
        match value:
            case str():
                return self.text(value)
            case list() | tuple() | Mapping() if not levels:
                return REDACTED
            case list():
                return [self.value(element, levels - 1) for element in value]
            case tuple():
                return tuple(self.value(element, levels - 1) for element in value)
            case Mapping():
                return self._members(value, levels - 1)
        return value

    def _members(self, value: Mapping[str, Any], levels: int) -> dict[str, Any]:
        redacted: dict[str, Any] = {}
        for name, member in value.items():
            shown = self.text(name)
            redacted[self.link(name) if shown in redacted else shown] = self.value(member, levels)
        return redacted


def _any_of(patterns: Sequence[str]) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _without_escapes(data: bytes) -> bytes:
    """Return the data with blanks in place of JSON escapes, at the same offsets."""
    for escape in _ESCAPES:
        data = data.replace(escape, b"  ")
    return _ESCAPED_CODE.sub(b" " * 6, data) if b"\\u" in data else data


def _beginning_of_word(data: bytes, end: int, earliest: int) -> int:
    """Return where the word that ends at `end` begins, at most `MAX_HEAD` bytes before."""
    start = end
    while start > max(earliest, end - MAX_HEAD) and data[start - 1] in _WORD:
        start -= 1
    return start


def _marked(data: bytes, spans: Sequence[tuple[int, int]], mark: bytes) -> bytes:
    kept = []
    last = 0
    for start, end in spans:
        kept += [data[last:start], mark]
        last = end
    return b"".join([*kept, data[last:]])


def _is_mixed(key: bytes) -> bool:
    """Return whether there are lower case letters, upper case letters and digits."""
    letters = key.removeprefix(b"sk-")
    return letters.lower() != letters != letters.upper() and any(48 <= byte < 58 for byte in letters)
