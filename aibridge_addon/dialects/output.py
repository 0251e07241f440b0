"""Collect what the model produced, in its order, with a limit on each text."""

from __future__ import annotations

from aibridge_addon.dialects.base import AnswerText, Output, Thought
from aibridge_addon.dialects.room import Pieces
from aibridge_addon.records import ThoughtSource

MAX_ANSWER = 64 * 1024
"""Bytes of one text for the user. The rest is dropped."""
MAX_THOUGHT = 1024 * 1024
"""Bytes of one thought. The rest is dropped."""


class KeptText:
    """The beginning of a text that arrives in pieces."""

    __slots__ = ("_left", "_limit", "_pieces", "truncated")

    def __init__(self, limit: int = MAX_ANSWER) -> None:
        self._limit = limit
        self._left = limit
        self._pieces = Pieces()
        self.truncated = False
        """Text was dropped."""

    @property
    def full(self) -> bool:
        return self._left <= 0

    def add(self, piece: str) -> None:
        if len(piece) > self._left:
            self.truncated = True
            piece = piece[: self._left]
        if piece:
            self._left -= len(piece)
            self._pieces.add(piece)

    def content(self) -> str:
        """Return the text, cut to the limit in bytes."""
        text = self._pieces.text()
        if len(text) * 4 <= self._limit:
            return text
        data = text.encode("utf-8", "replace")
        if len(data) <= self._limit:
            return text
        self.truncated = True
        return data[: self._limit].decode("utf-8", "ignore")

    def answer(self) -> AnswerText | None:
        """Return the text for the user, or None if it is blank."""
        content = self.content()
        return AnswerText(content, self.truncated) if content.strip() else None

    def thought(self, source: ThoughtSource) -> Thought | None:
        content = self.content()
        return Thought(content, source) if content else None


class OutputWriter:
    """Writes the parts of an answer into its reading. Texts with nothing between them become one."""

    def __init__(self, output: list[Output], *, texts: bool) -> None:
        self._output = output
        self.texts = texts
        """Whether texts for the user are kept."""
        self._text: KeptText | None = None

    @property
    def full(self) -> bool:
        """Whether no more of the current text is kept."""
        return not self.texts or (self._text is not None and self._text.full)

    def text(self, piece: str) -> None:
        """Add a piece of a text for the user."""
        if piece and self.texts:
            if self._text is None:
                self._text = KeptText()
            self._text.add(piece)

    def drop_text(self) -> None:
        """Note that a piece of the current text is not kept."""
        if self._text is not None:
            self._text.truncated = True

    def part(self, part: Output) -> None:
        """Add a part that is not text for the user."""
        self.between()
        self._output.append(part)

    def between(self) -> None:
        """End the current text: something else follows, or nothing."""
        text, self._text = self._text, None
        answer = text.answer() if text is not None else None
        if answer is not None:
            self._output.append(answer)
