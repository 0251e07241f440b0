"""Merge the deltas of a message into a whole, in linear time (API reference, "chat.completion.chunk").

Texts and lists are appended, objects are merged, everything else is replaced. Unknown members are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aibridge_addon.dialects.room import Pieces
from aibridge_addon.wire.json_object import encode

MAX_NAME = 256
"""Characters of a name that arrives in pieces. No provider allows longer ones."""
REPEATED = frozenset(("id", "type", "role"))
"""Texts that some servers repeat in every delta: the first one counts."""
APPENDED = ("text", "summary", "data")
"""Texts of an element with an index that arrive in pieces (`reasoning_details` of OpenRouter)."""


class Grown:
    """An object, as far as its deltas have arrived."""

    __slots__ = ("_members",)

    def __init__(self) -> None:
        self._members: dict[str, Any] = {}

    def add(self, delta: Mapping[str, Any]) -> None:
        """Merge a delta. It is not changed, and not changed later."""
        members = self._members
        for name, value in delta.items():
            known = members.get(name)
            if isinstance(value, str):
                members[name] = _with_text(name, known, value)
            elif isinstance(value, dict):
                grown = known if isinstance(known, Grown) else Grown()
                grown.add(value)
                members[name] = grown
            elif isinstance(value, list):
                elements = known if isinstance(known, GrownList) else GrownList()
                elements.add(value)
                members[name] = elements
            elif value is not None or name not in members:
                members[name] = value

    def whole(self) -> dict[str, Any]:
        return {name: _whole(value) for name, value in self._members.items()}


class GrownList:
    """A list, as far as its deltas have arrived. Pieces of an element with an index are merged."""

    __slots__ = ("_elements", "_places")

    def __init__(self) -> None:
        self._elements: list[Any] = []
        self._places: dict[bytes, int] = {}

    def add(self, added: list[Any]) -> None:
        for piece in added:
            if not isinstance(piece, dict) or "index" not in piece:
                self._elements.append(piece)
                continue
            place = self._places.setdefault(encode((piece["index"], piece.get("type"))), len(self._elements))
            if place == len(self._elements):
                self._elements.append({})
            entry = self._elements[place]
            for name, value in piece.items():
                known = entry.get(name)
                if name in APPENDED and isinstance(value, str):
                    entry[name] = _with_text(name, known, value)
                elif value is not None or name not in entry:
                    entry[name] = value

    def whole(self) -> list[Any]:
        return [
            {name: _whole(value) for name, value in element.items()} if isinstance(element, dict) else element
            for element in self._elements
        ]


def _with_text(name: str, known: object, value: str) -> str | Pieces:
    if name in REPEATED:
        return known or value if isinstance(known, str) else value
    if name == "name":
        if not isinstance(known, str) or value == known:
            return value
        return known + value if len(known) < MAX_NAME else known
    if not isinstance(known, Pieces):
        known = Pieces()
    known.add(value)
    return known


def _whole(value: Any) -> Any:
    if isinstance(value, Pieces):
        return value.text()
    return value.whole() if isinstance(value, Grown | GrownList) else value
