"""Put the pieces of streamed tool calls together (API reference, "chat.completion.chunk", `delta.tool_calls`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aibridge_addon.dialects.base import arguments
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode
from aibridge_addon.wire.json_values import as_count, as_dict, as_text


@dataclass(slots=True)
class StreamedCall:
    """A tool call whose deltas are still arriving."""

    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    """The text of the arguments so far."""
    given: Any = None
    """The arguments of a server that sends them as an object instead of text."""

    @property
    def input(self) -> Any:
        return arguments("".join(self.pieces)) if self.given is None else self.given

    def grow(self, delta: dict[str, Any]) -> None:
        self.id = self.id or as_text(delta.get("id"))
        function = function_of(delta)
        name = as_text(function.get("name"))
        self.name += "" if name == self.name else name  # some servers repeat the name in every delta
        given = _arguments(function)
        if isinstance(given, str):
            self.pieces.append(given)
        elif given is not None:
            self.given = given


class StreamedCalls[Kind: StreamedCall]:
    """The calls of one message, in the order in which they begin.

    The index of a delta names its call. Some servers use one index for all calls, or send none. Then a delta belongs
    to the call with its id, or else to the last call, unless it begins another one.
    """

    def __init__(self, new: Callable[[], Kind]) -> None:
        self.all: list[Kind] = []
        self._new = new
        self._by_index: dict[int, Kind] = {}

    def of(self, delta: dict[str, Any]) -> Kind:
        """Add the next delta to the call that it belongs to, and return that call."""
        index, call_id = delta.get("index"), as_text(delta.get("id"))
        place = as_count(index)
        call = self._by_index.get(place)
        if index is None and call_id:
            call = next((known for known in reversed(self.all) if known.id == call_id), call)
        if call is None or _begins_another(call, delta):
            call = self._new()
            self.all.append(call)
        self._by_index[place] = call
        call.grow(delta)
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
    begun = call.given is not None or any(call.pieces)
    return begun and (name != call.name or (bool(given) and _is_whole(call)))


def _is_whole(call: StreamedCall) -> bool:
    """Return whether nothing can follow in the call's arguments, because they are a complete object."""
    if call.given is not None:
        return True
    text = "".join(call.pieces).strip()
    if not text.endswith("}"):
        return False
    try:
        return isinstance(decode(text.encode("utf-8", "replace")), dict)
    except (NotJSON, Unreadable):
        return False
