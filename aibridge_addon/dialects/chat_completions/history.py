"""Kept turns in Chat Completions requests (API reference, "Function calling").

Injected calls are added to the `tool_calls` of the assistant message with the client's calls. Their `tool` messages
follow directly after it. Every request contains the complete history, so answers are not referred to by id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from aibridge_addon.dialects.chat_completions.inject import tool_message
from aibridge_addon.dialects.history import (
    MAX_CALLS,
    MAX_OPENING,
    Found,
    History,
    Insertions,
    KeptTurn,
    References,
    RequestHistory,
    absent,
    maybe_decode,
    opening_of,
)
from aibridge_addon.dialects.place import After, Place, Position, call_digest
from aibridge_addon.dialects.trail import Trail, said_in, texts
from aibridge_addon.dialects.turns import Result
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.json_values import as_dict, as_list, as_text

EMPTY = msgspec.Raw(b"null")
BESIDE = ("user", "safety_identifier")
"""Members beside the messages that belong to a whole trail."""


class _Function(msgspec.Struct, frozen=True, gc=False):
    name: Any = ""
    arguments: Any = ""
    input: Any = ""


class _ToolCall(msgspec.Struct, frozen=True, gc=False):
    id: str = ""
    function: _Function | None = None
    custom: _Function | None = None

    @property
    def digest(self) -> str:
        made = self.function or self.custom or _Function()
        return call_digest(made.name, made.arguments or made.input)


class _Message(msgspec.Struct, frozen=True, gc=False):
    role: str = ""
    content: msgspec.Raw = EMPTY
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    name: Any = None

    @property
    def calls(self) -> Sequence[_ToolCall]:
        """The model's calls. A call without an id has an empty one."""
        return self.tool_calls or () if self.role == "assistant" else ()


_message = msgspec.json.Decoder(_Message)


class ChatHistory(History):
    member = "messages"

    def read(self, body: JSONObject, *, whole: bool = False) -> RequestHistory:
        return _ChatRequest(body, whole=whole)

    def result(self, result: Result) -> dict[str, Any]:
        return tool_message(result)

    def opening(self, body: JSONObject) -> Position:
        return Position(opening_of(_opening(body.elements("messages", MAX_OPENING))))

    def maybe_call(self, element: dict[str, Any], call_id: str) -> tuple[str, Any] | None:
        for call in map(as_dict, as_list(element.get("tool_calls"))):
            if call.get("id") == call_id:
                made = as_dict(call.get("function")) or as_dict(call.get("custom"))
                return as_text(made.get("name")), made.get("arguments") or made.get("input") or ""
        return None

    def call_places(
        self, content: Sequence[Mapping[str, Any]], client_calls: Sequence[str], after: Sequence[After]
    ) -> list[Place]:
        for said in content:
            message = maybe_decode(encode(said), _message)
            for call in message.tool_calls or () if message is not None else ():
                if call.id and call.id in client_calls:
                    return [Place(before, call.id, call.digest) for before in after]
        return []


def _opening(messages: Iterable[bytes]) -> Iterator[str | bytes]:
    for raw in messages:
        message = maybe_decode(raw, _message)
        if message is not None and message.role in ("assistant", "tool"):
            return
        if message is not None and message.role == "user":
            yield from said_in(message.content)


class _ChatRequest(RequestHistory):
    def __init__(self, body: JSONObject, *, whole: bool) -> None:
        self._body = body
        self._messages = body.elements("messages")
        self._places: deque[tuple[Place, int]] = deque(maxlen=MAX_CALLS)
        """The calls, each with the index of its message."""
        trail = Trail(whole=whole)
        trail.opened(body, BESIDE)
        for index, raw in enumerate(self._messages):
            message = maybe_decode(raw, _message)
            if message is not None:
                self._follow(trail, index, message)
            else:
                trail.stated("", msgspec.Raw(raw))
        self.results_alone = trail.results_alone
        self.position = Position(trail.before)

    def _follow(self, trail: Trail, index: int, message: _Message) -> None:
        if message.role == "assistant":
            for text in texts(message.content):
                trail.answered(text)
            for call in message.calls:
                digest = call.digest
                before = trail.called(call.id, digest)
                if call.id:
                    self._places.append((Place(before, call.id, digest), index))
        elif message.role == "user":
            trail.asked(said_in(message.content))
        elif message.role in ("tool", "function"):
            trail.returned(message.tool_call_id or as_text(message.name), message.content)
        else:
            trail.stated(message.role, message.content)

    def calls(self) -> Iterable[tuple[Place, bytes]]:
        return ((place, self._messages[index]) for place, index in reversed(self._places))

    def references(self) -> References:
        return References(calls=frozenset(place for place, _ in self._places))

    def completed(self, found: Found) -> bytes | None:
        if not found.turns:
            return None
        completion = _Completion(self._messages)
        for place, index in self._places:
            if (turn := found.turns.get(place)) is not None:
                completion.complete(turn, index)
        messages = completion.changed()
        return self._body.replaced({"messages": messages}) if messages is not None else None


class _Completion:
    """Collects the insertions into each message."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        self._messages = messages
        self._calls_put: dict[int, Insertions] = {}
        self._results_put = Insertions()
        self._done: dict[int, set[str]] = {}
        """Ids of the calls that were put into each message."""

    def complete(self, turn: KeptTurn, index: int) -> None:
        """Complete the turn whose calls are in the message at this index."""
        message = maybe_decode(self._messages[index], _message)
        if message is None or index + 1 == len(self._messages):
            return  # the client has not answered its own calls yet
        calls: dict[str, int] = {}
        for entry, call in enumerate(message.calls):
            calls.setdefault(call.id, entry)
        last = max((calls[call_id] for call_id in turn.client_calls if call_id in calls), default=len(calls) - 1)
        present = calls.keys() | self._answered(index, turn)
        for kept in absent(turn, present, self._done.setdefault(index, set())):
            own = kept.anchor in turn.client_calls
            entry = calls.get(kept.anchor or "", last + 1) if own else last + 1
            self._calls_put.setdefault(index, Insertions()).add(entry, kept.call)
            self._results_put.add(index + 1, kept.result)

    def _answered(self, place: int, turn: KeptTurn) -> Collection[str]:
        """Return the ids of the calls that the `tool` messages after this index answer, limited to this turn."""
        answered: set[str] = set()
        end = place + 1 + len(turn.client_calls) + len(turn.kept)
        for after in range(place + 1, min(end, len(self._messages))):
            message = maybe_decode(self._messages[after], _message)
            if message is None or message.role != "tool":
                break
            answered.add(message.tool_call_id or "")
        return answered

    def changed(self) -> bytes | None:
        if not self._calls_put:
            return None
        messages = list(self._messages)
        for place, insertions in self._calls_put.items():
            message = JSONObject(messages[place])
            messages[place] = message.replaced({"tool_calls": insertions.into(message.elements("tool_calls"))})
        return self._results_put.into(messages)
