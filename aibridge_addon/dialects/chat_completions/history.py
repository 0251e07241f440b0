"""Kept turns in Chat Completions requests (API reference, "Function calling").

Injected calls are added to the `tool_calls` of the assistant message with the client's calls. Their `tool` messages
follow directly after it. Every request contains the complete history, so answers are not referred to by id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from aibridge_addon.dialects.chat_completions.inject import tool_message
from aibridge_addon.dialects.history import (
    MAX_CALL_IDS,
    Found,
    History,
    Insertions,
    KeptTurn,
    References,
    RequestHistory,
    absent,
    maybe_decode,
    scan,
)
from aibridge_addon.dialects.turns import Result
from aibridge_addon.wire.json_object import JSONObject

CALLS = b'"tool_calls"'


class _ToolCall(msgspec.Struct, frozen=True, gc=False):
    id: str = ""


class _Message(msgspec.Struct, frozen=True, gc=False):
    role: str = ""
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None

    def ids(self) -> list[str]:
        """Return the ids of an assistant's calls. A call without an id has an empty one."""
        return [call.id for call in self.tool_calls or ()] if self.role == "assistant" else []


_message = msgspec.json.Decoder(_Message)


class ChatHistory(History):
    def read(self, body: JSONObject) -> RequestHistory:
        return _ChatRequest(body)

    def result(self, result: Result) -> dict[str, Any]:
        return tool_message(result)


class _ChatRequest(RequestHistory):
    def __init__(self, body: JSONObject) -> None:
        self._body = body
        self._messages = body.elements("messages")
        self._calling = list(scan(self._messages, _message, CALLS))
        """The messages with calls, last first, each with its index."""

    def references(self) -> References:
        calls = (call_id for _, message in self._calling for call_id in message.ids() if call_id)
        return References(call_ids=frozenset(islice(calls, MAX_CALL_IDS)))

    def completed(self, found: Found) -> bytes | None:
        if not found.turns:
            return None
        completion = _Completion(self._messages, self._calling)
        for turn in found.turns:
            completion.complete(turn)
        messages = completion.changed()
        return self._body.replaced({"messages": messages}) if messages is not None else None


class _Completion:
    """Collects the insertions into each message."""

    def __init__(self, messages: Sequence[bytes], calling: Iterable[tuple[int, _Message]]) -> None:
        self._messages = messages
        self._calls: dict[str, tuple[int, int]] = {}
        """Message index and entry index of each call."""
        self._calls_put: dict[int, Insertions] = {}
        self._results_put = Insertions()
        self._done: set[str] = set()
        for place, message in calling:
            for entry, call_id in enumerate(message.ids()):
                if call_id:
                    self._calls.setdefault(call_id, (place, entry))

    def complete(self, turn: KeptTurn) -> None:
        own = sorted(self._calls[call_id] for call_id in turn.client_calls if call_id in self._calls)
        if not own or own[-1][0] + 1 == len(self._messages):
            return  # the client has not answered its own calls yet
        message, last = own[-1]
        for kept in absent(turn, self._calls.keys() | self._answered(message, turn), self._done):
            entry = last + 1
            if kept.anchor in turn.client_calls and kept.anchor in self._calls:
                place, before = self._calls[kept.anchor]
                entry = before if place == message else entry
            self._calls_put.setdefault(message, Insertions()).add(entry, kept.call)
            self._results_put.add(message + 1, kept.result)

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
