"""Kept turns and ids of answers in Messages requests (API reference, "Tool use"; beta "message threads").

For a mixed turn, injected `tool_use` blocks are added to the assistant message with the client's calls. Their
`tool_result` blocks are added at the beginning of the user message that answers it.

For a hidden turn with thinking, calls and results are restored where the turn ended. The client has one assistant
message for several turns, so the message is split there.

When a thread is continued, the server has the calls already. Only the results of mixed turns are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from aibridge_addon.dialects.history import (
    MAX_CALL_IDS,
    Followers,
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
from aibridge_addon.dialects.messages.inject import tool_result
from aibridge_addon.dialects.turns import Result
from aibridge_addon.wire.json_object import JSONObject, array, encode
from aibridge_addon.wire.json_values import as_dict, as_text

NAMING = ("thread", "diagnostics")
"""Members whose `previous_message_id` refers to an answer."""
MAX_RUN = 20
"""Number of messages after a call that are searched for its result. Usually the next one has it."""
CALL, RESULT, THINKING = b'"tool_use"', b'"tool_result"', b'thinking"'


class _Block(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    id: str = ""
    tool_use_id: str = ""
    signature: Any = None
    data: Any = None

    @property
    def thinking(self) -> str | None:
        """The name of a thinking block; None for other blocks."""
        return _thinking(self.type, self.signature, self.data)


class _Message(msgspec.Struct, frozen=True, gc=False):
    role: str = ""
    content: str | list[_Block] = ""

    @property
    def blocks(self) -> Sequence[_Block]:
        return () if isinstance(self.content, str) else self.content

    def ids(self, kind: str) -> list[tuple[str, int]]:
        """Return the ids of the calls in blocks of this kind, each with the block's index."""
        found = [(block.tool_use_id or block.id, i) for i, block in enumerate(self.blocks) if block.type == kind]
        return [(call_id, place) for call_id, place in found if call_id]


_message = msgspec.json.Decoder(_Message)


def _thinking(kind: str, signature: object, data: object) -> str | None:
    name = {"thinking": signature, "redacted_thinking": data}.get(kind)
    return name if isinstance(name, str) and name else None


class MessagesHistory(History):
    def read(self, body: JSONObject) -> RequestHistory:
        return _MessagesRequest(body)

    def result(self, result: Result) -> dict[str, Any]:
        return tool_result(result)

    def followers(
        self, content: Sequence[Mapping[str, Any]], results: Sequence[Result]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        ours = {result.call.id for result in results}
        visible = [block for block in content if block.get("type") != "tool_use" or block.get("id") not in ours]
        names = [
            (place, name)
            for place, block in enumerate(visible)
            if (name := _thinking(as_text(block.get("type")), block.get("signature"), block.get("data"))) is not None
        ]
        if names and results:
            place, name = names[-1]
            yield (
                name,
                {
                    "call_ids": [result.call.id for result in results],
                    "items": [*(result.call.item for result in results), *map(self.result, results)],
                    "visible": len(visible) - place - 1,
                },
            )


def _renamed(body: JSONObject, aliases: Mapping[str, str]) -> dict[str, bytes]:
    changes = {}
    for member in NAMING:
        last = aliases.get(as_text(as_dict(body.get(member)).get("previous_message_id")))
        if last is not None:
            changes[member] = JSONObject(body.raw(member)).replaced({"previous_message_id": encode(last)})
    return changes


class _MessagesRequest(RequestHistory):
    def __init__(self, body: JSONObject) -> None:
        self._body = body
        self._messages = body.elements("messages")
        self._continues_thread = as_dict(body.get("thread")).get("type") == "continue"
        self._speaking = list(scan(self._messages, _message, CALL, THINKING))
        """The messages with calls or thinking, last first, each with its index."""
        self._answering = list(scan(self._messages, _message, RESULT)) if self._continues_thread else []
        """The messages with results, if the server has the calls."""

    def references(self) -> References:
        named = (as_text(as_dict(self._body.get(member)).get("previous_message_id")) for member in NAMING)
        sought = ((self._speaking, "assistant", "tool_use"), (self._answering, "user", "tool_result"))
        calls = (
            call_id
            for messages, role, kind in sought
            for _, message in messages
            if message.role == role
            for call_id, _ in message.ids(kind)
        )
        names = (
            block.thinking
            for _, message in self._speaking
            if message.role == "assistant" and not self._continues_thread
            for block in message.blocks
            if block.thinking is not None
        )
        return References(
            frozenset(filter(None, named)),
            frozenset(islice(calls, MAX_CALL_IDS)),
            frozenset(islice(names, MAX_CALL_IDS)),
        )

    def completed(self, found: Found) -> bytes | None:
        changes = _renamed(self._body, found.aliases)
        if found.turns or found.followers:
            completion = _Completion(self._messages, self._speaking, self._answering)
            for turn in found.turns:
                completion.complete(turn)
            if not self._continues_thread:
                completion.follow(found.followers, self._speaking)
            changes |= completion.changes()
        return self._body.replaced(changes) if changes else None


class _Completion:
    """Collects the insertions into each message."""

    def __init__(
        self,
        messages: Sequence[bytes],
        speaking: Iterable[tuple[int, _Message]],
        answering: Iterable[tuple[int, _Message]],
    ) -> None:
        self._messages = messages
        self._calls: dict[str, tuple[int, int]] = {}
        """Message index and block index of each call."""
        self._results: dict[str, int] = {}
        """Index of the message with each result, as far as messages have been searched."""
        self._answered_by: dict[int, list[int]] = {}
        self._put: dict[int, Insertions] = {}
        self._done: set[str] = set()
        self._splits: dict[int, dict[int, Followers]] = {}
        """Calls and results to insert as separate messages, by message and by the block that follows them."""
        for place, message in speaking:
            if message.role == "assistant":
                for call_id, block in message.ids("tool_use"):
                    self._calls.setdefault(call_id, (place, block))
        for place, message in answering:
            self._look_at(place, message)

    def complete(self, turn: KeptTurn) -> None:
        own = sorted(self._calls[call_id] for call_id in turn.client_calls if call_id in self._calls)
        if not own:
            answered = [self._results[call_id] for call_id in turn.client_calls if call_id in self._results]
            if answered:
                self._answer(max(answered), turn)
            return
        last, block = own[-1]
        answers = self._answers(last)
        if not answers:
            return  # the client has not answered its own calls yet
        present = {call_id for call_id, place in self._results.items() if place in answers} | self._calls.keys()
        left = absent(turn, present, self._done)
        answer = next((place for place in answers if self._has_result(place, turn.client_calls)), answers[0])
        for kept in left:
            place = self._calls.get(kept.anchor or "", (-1, 0))
            if kept.anchor not in turn.client_calls or self._answers(place[0]) != answers:
                place = (last, block + 1)
            self._at(place[0]).add(place[1], kept.call)
            self._at(answer).add(0, kept.result)

    def follow(self, followers: Mapping[str, Followers], speaking: Iterable[tuple[int, _Message]]) -> None:
        """Split the messages in which hidden turns ended."""
        for place, message in speaking if followers else ():
            if message.role != "assistant":
                continue
            here = {call_id for call_id, _ in message.ids("tool_use")}
            for index, block in enumerate(message.blocks):
                if block.type == "tool_use":
                    break  # the client answers its call after this message
                those = followers.get(block.thinking or "")
                known = (self._done, self._calls, here)
                if those is None or any(call_id in ids for call_id in those.call_ids for ids in known):
                    continue
                if not self._goes_on_after_a_call(place):
                    self._done.update(those.call_ids)
                    self._splits.setdefault(place, {})[self._end(message, index, those.visible)] = those

    def _goes_on_after_a_call(self, place: int) -> bool:
        """Return whether the assistant messages directly before this one have a call, which is answered after it."""
        for before in range(place - 1, max(-1, place - 1 - MAX_RUN), -1):
            message = maybe_decode(self._messages[before], _message)
            if message is None or message.role != "assistant":
                return False
            if message.ids("tool_use"):
                return True
        return False

    @staticmethod
    def _end(message: _Message, block: int, visible: int) -> int:
        """Return the block index at which a turn ended. The client may have dropped blocks of it.

        The end is at the latest before the next thinking block or call, which belong to a later turn.
        """
        end = min(block + 1 + visible, len(message.blocks))
        later = (
            place
            for place in range(block + 1, end)
            if message.blocks[place].thinking is not None or message.blocks[place].type == "tool_use"
        )
        return next(later, end)

    def _answer(self, place: int, turn: KeptTurn) -> None:
        for kept in absent(turn, self._results.keys() | self._calls.keys(), self._done):
            self._at(place).add(0, kept.result)

    def _answers(self, place: int) -> list[int]:
        """Return the user messages that follow an assistant message, or further assistant messages after it."""
        if place in self._answered_by:
            return self._answered_by[place]
        found = self._answered_by[place] = []
        for after in range(place + 1, min(place + 1 + MAX_RUN, len(self._messages))):
            message = maybe_decode(self._messages[after], _message)
            if message is None or message.role not in ("assistant", "user"):
                break
            if message.role == "user":
                self._look_at(after, message)
                found.append(after)
            elif found:
                break
        return found

    def _look_at(self, place: int, message: _Message) -> None:
        if message.role == "user":
            for call_id, _ in message.ids("tool_result"):
                self._results.setdefault(call_id, place)

    def _has_result(self, place: int, call_ids: Sequence[str]) -> bool:
        return any(self._results.get(call_id) == place for call_id in call_ids)

    def _at(self, place: int) -> Insertions:
        return self._put.setdefault(place, Insertions())

    def changes(self) -> dict[str, bytes]:
        changed = self._put.keys() | self._splits.keys()
        if not changed:
            return {}
        messages: list[bytes] = []
        for place, message in enumerate(self._messages):
            messages += self._changed(place) if place in changed else (message,)
        return {"messages": Insertions().into(messages)}

    def _changed(self, place: int) -> Iterator[bytes]:
        """Yield the messages that replace a message."""
        message = JSONObject(self._messages[place])
        text = message.text("content")
        blocks = message.elements("content") if text is None else [_text_block(message)]
        put = self._put.get(place, Insertions())
        begin = 0
        for end, those in sorted(self._splits.get(place, {}).items()):
            said = [*put.within(blocks, begin, end), *map(bytes, those.calls)]
            yield message.replaced({"content": array(said)})
            yield b'{"role":"user","content":' + array([bytes(result) for result in those.results]) + b"}"
            begin = end
        rest = [*put.within(blocks, begin, len(blocks)), *put.at(len(blocks))]
        if rest or not begin:
            yield message.replaced({"content": array(rest)})


def _text_block(message: JSONObject) -> bytes:
    """Return the text block that is equivalent to a content that is a string."""
    return b'{"type":"text","text":' + message.raw("content") + b"}"
