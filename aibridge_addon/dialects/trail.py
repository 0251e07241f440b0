"""A running digest of a history: the texts of both sides and the client's calls, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from aibridge_addon.dialects.base import written_by_person
from aibridge_addon.dialects.place import After

TEXTS = frozenset(("text", "input_text", "output_text"))
"""Types of the parts of a content that are texts."""


class _Part(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    text: Any = None


_content = msgspec.json.Decoder(str | list[_Part])


def texts(content: msgspec.Raw) -> Iterator[str]:
    """Yield the texts of a message's content. Nothing if it has another form."""
    try:
        parts = _content.decode(content)
    except (ValueError, RecursionError):
        return
    if isinstance(parts, str):
        yield parts
    else:
        yield from (part.text for part in parts if part.type in TEXTS and isinstance(part.text, str))


def by_a_person(texts: Iterable[str]) -> Iterator[str]:
    """Return the texts that are neither blank nor reminders of the client."""
    return filter(written_by_person, texts)


class Trail:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._begun: After | None = None
        """What stands before the current answer. None while no answer has begun."""

    def asked(self, text: str) -> None:
        """Add a text of the user."""
        self.interrupted()
        if written_by_person(text):
            self._add(b"u", text)

    def interrupted(self) -> None:
        """Note that the user has said something or that a tool has answered. The next answer is another one."""
        self._begun = None

    @property
    def before(self) -> After:
        """What stands before the current or next answer."""
        return ("history", self._hash.hexdigest()) if self._begun is None else self._begun

    def answered(self, text: str) -> None:
        """Add a text of the model."""
        self._begin()
        if text.strip():
            self._add(b"a", text)

    def called(self, call_id: str, call: str) -> After:
        """Add a call of the model. Returns what stands before its answer."""
        before = self._begin()
        self._add(b"c", f"{call_id} {call}")
        return before

    def _begin(self) -> After:
        if self._begun is None:
            self._begun = self.before
        return self._begun

    def _add(self, kind: bytes, text: str) -> None:
        data = text.strip().encode("utf-8", "replace")
        self._hash.update(b"%b%d:%b" % (kind, len(data), data))
