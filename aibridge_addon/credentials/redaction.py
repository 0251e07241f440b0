"""Replace secrets, and matches of the operator's own patterns, in text before it is stored.

The text is untrusted, so the patterns run in RE2, whose time is linear in the text.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
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
REMEMBERED = 1024
"""Maximum number of short texts whose redacted form is remembered."""
SHORT = 128
"""Characters. Maximum length of a text that is remembered."""
MAX_HEAD = 64
"""Bytes. Maximum length of a key before its `tail`."""

_WORD = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_~.-")
_MARK = r"\[redacted(?::[0-9a-f]{16})?\]"
_ONLY_MARK = re.compile(_MARK.encode())
_NO_ESCAPES = re.compile(rb"\\\\*(?![bfnrt]|u[0-9a-fA-F]{4})")
"""Backslashes that `_unescaped` removes: those in front of `"`, of `/` and of other backslashes, and stray ones."""
_ESCAPE = re.compile(
    rb"\\\\*(?:(?P<letter>[bfnrt\"/])|(?P<pair>u[dD][89abAB][0-9a-fA-F]{2}\\\\*u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|u(?P<code>[0-9a-fA-F]{4}))?"
)
_JSON = json.JSONDecoder(strict=False)
_NOT_ASCII = bytes(byte if byte < 0x80 else ord("?") for byte in range(0x100))


class Redactor:
    """Redacts texts. Redacting twice is the same as once.

    A redactor without `patterns` redacts secrets only.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        options = re2.Options()
        options.max_mem = MAX_MEMORY
        self._secrets = re2.compile(_any_of((WEAK, *SECRETS)), options)
        names = self._secrets.groupindex
        self._weak, self._tail, self._after = (names[name] for name in ("weak", "tail", "after"))
        self._own = None
        if patterns:
            # A mark is never matched itself, whatever the patterns are.
            options.never_capture = True
            self._own = re2.compile(_any_of((_MARK, *patterns)), options)
        self._name = remembering(self.text)

    def text(self, text: str) -> str:
        return self._redacted(text, REDACTED)

    def link(self, text: str) -> str:
        """Redact a text that links rows. Different texts stay different, also if only a secret differs.

        The mark has the first 64 bits of the text's SHA-256.
        """
        if (redacted := self.text(text)) == text:
            return redacted
        return self._redacted(text, f"[redacted:{hashlib.sha256(_encode(text)).hexdigest()[:16]}]")

    def encoded(self, data: bytes) -> bytes:
        """Redact UTF-8 text that may be JSON, or a piece of it. All other bytes stay unchanged."""
        if b"\\" in data:
            # Escapes hide secrets: the JSON `"\\nsk-…"` has an `n` before the key, and `\\u002b` is a `+` in a key.
            data = self._replaced(data, REDACTED.encode(), escaped=True)
        return self._replaced(data, REDACTED.encode())

    def _redacted(self, text: str, mark: str) -> str:
        """Lone surrogates become question marks: no sink can encode them."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            data = text.encode("utf-8", "replace")
            text = data.decode()
        redacted = self._replaced(data, mark.encode())
        return text if redacted is data else redacted.decode()

    def _replaced(self, data: bytes, mark: bytes, *, escaped: bool = False) -> bytes:
        """Put marks in place of secrets. Returns `data` itself if it has none.

        `escaped`: search the data without its escapes.
        """
        shown = _unescaped(data) if escaped else data
        for _ in range(MAX_PASSES):
            before = data
            for find in (self._find_secrets, self._find_own):
                # A mark is no secret, whatever is around it.
                if spans := [span for span in find(shown) if not _ONLY_MARK.fullmatch(shown, *span)]:
                    data = _marked(data, _places(data, spans) if escaped else spans, mark)
                    shown = _marked(shown, spans, mark) if escaped else data
            if data is before:
                return data
        return data

    def _find_secrets(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Yield the places of secrets. What an expression has in groups before and after the secret stays."""
        last = 0
        for match in self._secrets.finditer(data):
            start, end = match.span()
            group = match.lastindex  # each expression has one group at most, but that of `after` has two
            if group == self._weak:
                start = match.start(group)
                if not _is_mixed(data[start:end]):
                    continue
            elif group == self._tail:
                start = _beginning_of_word(data, start, last)
            elif group == self._after:
                start, end = match.end(group - 1), match.start(group)
            elif group is not None:
                start = match.end(group)
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
            case None | bool() | int() | float():  # before `Mapping`, which takes longer to rule out
                return value
            case _ if not levels and isinstance(value, list | tuple | Mapping):
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
            shown = self._name(name)
            redacted[self.link(name) if shown in redacted else shown] = self.value(member, levels)
        return redacted


def remembering(redact: Callable[[str], str]) -> Callable[[str], str]:
    """Return the same function, which remembers what it returned for short texts. For texts that come often: names."""
    short = lru_cache(REMEMBERED)(redact)
    return lambda text: short(text) if len(text) <= SHORT else redact(text)


def _any_of(patterns: Sequence[str]) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unescaped(data: bytes) -> bytes:
    """Return the text of JSON, and of JSON in a text of JSON: with characters in place of escapes."""
    data = _NO_ESCAPES.sub(b"", data).replace(b'"', b'\\"')
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.translate(_NOT_ASCII).decode()  # as long as before
    return _encode(_JSON.decode(f'"{text}"'))


def _places(data: bytes, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return where in `data` the `spans` of `_unescaped(data)` are."""
    starts, ends, ends_in_data = [0], [0], [0]
    """Of escapes: where they start and end in the text without escapes, and where they end in `data`."""
    for escape in _ESCAPE.finditer(data):
        starts.append(ends[-1] + escape.start() - ends_in_data[-1])
        ends.append(starts[-1] + _size(escape))
        ends_in_data.append(escape.end())

    def begin(offset: int) -> int:
        last = bisect_right(ends, offset) - 1
        return ends_in_data[last] + offset - ends[last]

    def finish(offset: int) -> int:
        last = bisect_left(starts, offset) - 1  # a backslash without a character is behind the secret, not in it
        return ends_in_data[last] + max(offset - ends[last], 0)

    return [(begin(start), finish(end)) for start, end in spans]


def _size(escape: re.Match[bytes]) -> int:
    """Return the size of the character that `_unescaped` puts in place of this."""
    match escape.lastgroup:
        case "letter":
            return 1
        case "pair":
            return 4
        case "code":
            return len(_encode(chr(int(escape["code"], 16))))
    return 0


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
