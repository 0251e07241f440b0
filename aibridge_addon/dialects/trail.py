"""A running digest of a history: what both sides said and the client's calls, in order.

A client's session already separates conversations, and its client may change system prompts and old results of tools
between two requests. So they count only in a `whole` trail, for requests without a session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec

from aibridge_addon.dialects.place import After
from aibridge_addon.dialects.words import without_reminders
from aibridge_addon.wire.json_object import JSONObject, encode

TEXTS = frozenset(("text", "input_text", "output_text"))
"""Types of the parts of a content that are texts."""
MARKS = frozenset(("cache_control", "copilot_cache_control"))
"""Members of a part that clients move between two requests."""


class _Part(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    text: Any = None


class _Written(msgspec.Struct, frozen=True, gc=False):
    """A part with its text as it is written."""

    type: str = ""
    text: msgspec.Raw = msgspec.Raw(b"null")


_written = msgspec.json.Decoder(list[_Written])
_content = msgspec.json.Decoder(str | list[_Part])
_parts = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def _read(content: msgspec.Raw) -> tuple[list[str], bool] | None:
    """Return the texts of a content and whether it has other parts. None if it has another form."""
    try:
        parts = _content.decode(content)
    except (ValueError, RecursionError):
        return None
    if isinstance(parts, str):
        return [parts], False
    texts = [part.text for part in parts if part.type in TEXTS and isinstance(part.text, str)]
    return texts, len(texts) < len(parts)


def texts(content: msgspec.Raw) -> Iterable[str]:
    """Return the texts of a message's content. Nothing if it has another form."""
    read = _read(content)
    return () if read is None else read[0]


def by_a_person(texts: Iterable[str]) -> Iterator[str]:
    """Return the texts without the client's reminders. Blank ones are left out."""
    return filter(None, map(without_reminders, texts))


def attachments(content: msgspec.Raw, besides: Collection[str] = TEXTS) -> Iterator[bytes]:
    """Yield a digest of each part whose type is not among `besides`: an image, a document, audio."""
    try:
        parts = _parts.decode(content)
    except (ValueError, RecursionError):
        return
    for part in parts:
        if bytes(part.get("type", b"")).strip(b'"').decode("utf-8", "replace") not in besides:
            digest = hashlib.sha256()
            for name in sorted(part.keys() - MARKS):
                digest.update(encode((name, len(bytes(part[name])))))
                digest.update(part[name])
            yield digest.digest()


def said_in(content: msgspec.Raw) -> Iterator[str | bytes]:
    """Yield the texts by a person in a user message's content, and digests of its attachments."""
    if (read := _read(content)) is not None:
        yield from by_a_person(read[0])
        if read[1]:
            yield from attachments(content)


class Trail:
    def __init__(self, *, whole: bool) -> None:
        """`whole`: system prompts and results of tools count, too."""
        self._whole = whole
        self._hash = hashlib.sha256()
        self._begun: After | None = None
        """What stands before the current answer. None while no answer has begun."""
        self.empty = True
        """Neither the user nor the model has said anything yet."""
        self.results_alone = False
        """The last result of a tool has nothing of them before it."""

    def opened(self, body: JSONObject, names: Iterable[str]) -> None:
        """Add members of the request beside its history: what is said of the whole conversation, and for whom."""
        for name in names:
            if self._whole and name in body:
                self.stated(name, msgspec.Raw(body.raw(name)))

    def asked(self, said: Iterable[str | bytes]) -> None:
        """Add what a person said in a message of the user."""
        self.interrupted()
        for part in said:
            self._said(b"u", part)

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
            self._said(b"a", text)

    def called(self, call_id: str, call: str) -> After:
        """Add a call of the model. Returns what stands before its answer."""
        before = self._begin()
        self._said(b"c", f"{call_id} {call}")
        return before

    def returned(self, call_id: str | None, content: msgspec.Raw) -> None:
        """Add the result of a tool."""
        self.interrupted()
        self.results_alone = self.empty
        if self._whole:
            self._add(b"t", call_id or "")
            self._add_content(b"r", content)

    def stated(self, role: str, content: msgspec.Raw) -> None:
        """Add a system prompt, instructions, or another text of the client's program."""
        if self._whole:
            self._add(b"s", role)
            self._add_content(b"i", content)

    def _begin(self) -> After:
        if self._begun is None:
            self._begun = self.before
        return self._begun

    def _said(self, kind: bytes, part: str | bytes) -> None:
        self.empty = False
        self._add(kind, part)

    def _add_content(self, kind: bytes, content: msgspec.Raw) -> None:
        """Add a content as it is written, without decoding its texts: results of tools are most of a long history.

        A text and a list with one text are the same, because clients put cache markers into lists only.
        """
        try:
            parts = _written.decode(content) if bytes(memoryview(content)[:1]) == b"[" else [_Written("text", content)]
        except (ValueError, RecursionError):
            parts = [_Written("text", content)]
        texts = [part.text for part in parts if part.type in TEXTS]
        for text in texts:
            self._add(kind, text)
        for digest in attachments(content) if len(texts) < len(parts) else ():
            self._add(kind, digest)

    def _add(self, kind: bytes, part: str | bytes | msgspec.Raw) -> None:
        data = memoryview(part.strip().encode("utf-8", "replace") if isinstance(part, str) else part)
        self._hash.update(b"%b%d:" % (kind, len(data)))
        self._hash.update(data)
