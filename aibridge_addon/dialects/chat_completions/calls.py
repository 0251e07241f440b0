"""Put the pieces of streamed tool calls together (API reference, "chat.completion.chunk", `delta.tool_calls`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aibridge_addon.dialects.base import arguments
from aibridge_addon.dialects.room import Pieces
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode
from aibridge_addon.wire.json_values import as_count, as_dict, as_text

MAX_NAME = 256
"""Characters of a name that arrives in pieces. No provider allows longer ones."""


@dataclass(slots=True)
class StreamedCall:
    """A tool call whose deltas are still arriving."""

    id: str = ""
    name: str = ""
    pieces: Pieces = field(default_factory=Pieces)
    """The text of the arguments so far."""
    given: Any = None
    """The arguments of a server that sends them as an object instead of text."""
    place: int = 0
    """Its index in the message, or that of the call before it if it has none."""

    @property
    def input(self) -> Any:
        return arguments(self.pieces.text()) if self.given is None else self.given

    def grow(self, delta: dict[str, Any]) -> None:
        self.id = self.id or as_text(delta.get("id"))
        function = function_of(delta)
        name = as_text(function.get("name"))
        if name != self.name and len(self.name) < MAX_NAME:  # some servers repeat the name in every delta
            self.name += name
        given = _arguments(function)
        if isinstance(given, str):
            self.pieces.add(given)
        elif given is not None:
            self.given = given


class StreamedCalls[Kind: StreamedCall]:
    """The calls of one message, in the order in which they begin.

    An id that is known names the call of a delta. Otherwise its index does, since most servers send the id only once.
    Some servers use one index for all calls, or send none. Then a delta belongs to the last call, unless it begins
    another one.
    """

    def __init__(self, new: Callable[[], Kind]) -> None:
        self.all: list[Kind] = []
        """The calls that have an id or a name."""
        self._new = new
        self._by_index: dict[int, Kind] = {}
        self._by_id: dict[str, Kind] = {}
        self._last: Kind | None = None
        self._listed: set[int] = set()
        """Identities of the calls in `all`."""

    @property
    def in_order(self) -> list[Kind]:
        """The calls in the order of their indexes, as a blocking answer has them."""
        return sorted(self.all, key=lambda call: call.place)

    def of(self, delta: dict[str, Any]) -> Kind:
        """Add the next delta to the call that it belongs to, and return that call. An empty delta belongs to none."""
        if not delta:
            return self._new()
        call = self._known(delta)
        if call is None or _begins_another(call, delta):
            call = self._new()
            index = delta.get("index")
            last = self.all[-1].place if self.all else 0
            call.place = last if index is None else as_count(index)
        call.grow(delta)
        if (call.id or call.name) and id(call) not in self._listed:
            self._listed.add(id(call))
            self.all.append(call)
        if call.id:
            self._by_id.setdefault(call.id, call)
        if delta.get("index") is not None:
            self._by_index[as_count(delta["index"])] = call
        self._last = call
        return call

    def _known(self, delta: dict[str, Any]) -> Kind | None:
        """Return the call whose place or id a delta has, if there is one."""
        index, call_id = delta.get("index"), as_text(delta.get("id"))
        if call_id in self._by_id:
            return self._by_id[call_id]
        call = self._last if index is None else self._by_index.get(as_count(index))
        if call is None and not call_id and not function_of(delta).get("name"):
            return self._last
        return call


def function_of(delta: dict[str, Any]) -> dict[str, Any]:
    return as_dict(delta.get("function")) or as_dict(delta.get("custom"))


def _arguments(function: dict[str, Any]) -> Any:
    given = function.get("arguments")
    return function.get("input") if given is None else given


def _begins_another(call: StreamedCall, delta: dict[str, Any]) -> bool:
    """Return whether a delta with the place of a call begins another one. Only a delta with a name can."""
    function, call_id = function_of(delta), as_text(delta.get("id"))
    name, given = as_text(function.get("name")), _arguments(function)
    if not name:
        return False
    if call_id and call.id:
        return call_id != call.id
    begun = call.given is not None or bool(call.pieces)
    return begun and (name != call.name or (bool(given) and _is_whole(call)))


def _is_whole(call: StreamedCall) -> bool:
    """Return whether nothing can follow in the call's arguments, because they are a complete object."""
    if call.given is not None:
        return True
    if not call.pieces.are_few:  # such servers send the arguments at once, and joining each time takes quadratic time
        return False
    text = call.pieces.text().strip()
    if not text.endswith("}"):
        return False
    try:
        return isinstance(decode(text.encode("utf-8", "replace")), dict)
    except (NotJSON, Unreadable):
        return False
