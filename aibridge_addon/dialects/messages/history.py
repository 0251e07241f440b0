"""Kept turns and ids of answers in Messages requests (API reference, "Tool use"; beta "message threads").

For a mixed turn, injected `tool_use` blocks are added to the assistant message with the client's calls. Their
`tool_result` blocks are added at the beginning of the user message that answers it.

For a hidden turn with thinking, calls and results are restored where the turn ended. The client has one assistant
message for several turns, so the message is split there.

When a thread is continued, the server has the calls already. Only the results of mixed turns are added. They are found
by the id of the message that the thread continues from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from aibridge_addon.dialects.history import (
    MAX_CALLS,
    MAX_ELEMENTS,
    MAX_OPENING,
    Followers,
    Found,
    History,
    Insertions,
    KeptTurn,
    References,
    RequestHistory,
    absent,
    opening_of,
)
from aibridge_addon.dialects.messages.blocks import Message, MessageForm, content_of, text_block
from aibridge_addon.dialects.messages.inject import tool_result
from aibridge_addon.dialects.place import After, Place, Position
from aibridge_addon.dialects.trail import Trail
from aibridge_addon.dialects.turns import Result
from aibridge_addon.wire.json_object import JSONObject, array, encode
from aibridge_addon.wire.json_values import as_dict, as_list, as_text

NAMING = ("thread", "diagnostics")
"""Members whose `previous_message_id` refers to an answer."""
MAX_RUN = 20
"""Number of messages after a call that are searched for its result. Usually the next one has it."""


class MessagesHistory(History):
    member = "messages"
    form: ClassVar[MessageForm] = MessageForm()
    """How messages are written."""

    def read(self, body: JSONObject, *, whole: bool = False) -> RequestHistory:
        return _MessagesRequest(body, self.held(body), self.form, whole=whole)

    def result(self, result: Result) -> dict[str, Any]:
        return tool_result(result)

    def followers(
        self, content: Sequence[Mapping[str, Any]], results: Sequence[Result]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        ours = {result.call.id for result in results}
        visible = [block for block in map(self.form.block, content) if not block.call_id or block.call_id not in ours]
        names = [(place, name) for place, block in enumerate(visible) if (name := block.thinking) is not None]
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

    def held(self, body: JSONObject) -> After | None:
        thread = as_dict(body.get("thread"))
        return ("answer", as_text(thread.get("previous_message_id"))) if thread.get("type") == "continue" else None

    def maybe_call(self, element: dict[str, Any], call_id: str) -> tuple[str, Any] | None:
        for block in map(as_dict, as_list(element.get("content"))):
            if block.get("type") == "tool_use" and block.get("id") == call_id:
                return as_text(block.get("name")), block.get("input")
        return None

    def opening(self, body: JSONObject) -> Position:
        if self.held(body) is not None:
            return Position(named=True)
        messages = body.elements("messages", MAX_OPENING)
        return Position(opening_of(_opening(messages, self.form)), named="thread" in body)

    def call_places(
        self, content: Sequence[Mapping[str, Any]], client_calls: Sequence[str], after: Sequence[After]
    ) -> list[Place]:
        blocks = map(self.form.block, content)
        first = next((block for block in blocks if block.call_id and block.call_id in client_calls), None)
        if first is None:
            return []
        return [Place(before, first.id, first.digest if before[0] == "history" else "") for before in after]


def _opening(messages: Iterable[bytes], form: MessageForm) -> Iterator[str | bytes]:
    for raw in messages:
        message = form.message(raw)
        if message is not None and (message.role == "assistant" or message.results):
            return
        if message is not None and message.role == "user":
            yield from form.said(message, raw)


def _renamed(body: JSONObject, aliases: Mapping[str, str]) -> dict[str, bytes]:
    changes = {}
    for member in NAMING:
        last = aliases.get(as_text(as_dict(body.get(member)).get("previous_message_id")))
        if last is not None:
            changes[member] = JSONObject(body.raw(member)).replaced({"previous_message_id": encode(last)})
    return changes


class _MessagesRequest(RequestHistory):
    def __init__(self, body: JSONObject, held: After | None, form: MessageForm, *, whole: bool) -> None:
        self._body = body
        self._form = form
        self._messages = body.elements("messages")
        self._held = held
        """What a continued thread continues. The server has its history."""
        self._places: deque[tuple[Place, int]] = deque(maxlen=MAX_CALLS)
        """The client's calls, each with the index of its message; of a thread that is continued, also its results."""
        self._thinking: deque[tuple[int, Message]] = deque(maxlen=MAX_ELEMENTS)
        """The messages with thinking, each with its index."""
        trail = Trail(whole=whole)
        trail.opened(body, form.BESIDE)
        for index, raw in enumerate(self._messages):
            message = form.message(raw)
            if message is not None and message.role == "assistant":
                self._follow(trail, index, message)
            elif message is not None and message.role == "user":
                self._follow_user(trail, index, message, raw)
            else:
                trail.stated(message.role if message is not None else "", content_of(raw))
        self.results_alone = trail.results_alone
        self.position = Position(trail.before if held is None else None, named="thread" in body)

    def _follow(self, trail: Trail, index: int, message: Message) -> None:
        for text in message.texts:
            trail.answered(text)
        for block in message.blocks:
            if block.call_id:
                digest = block.digest
                before = trail.called(block.id, digest)
                place = Place(before, block.id, digest) if self._held is None else Place(self._held, block.id)
                self._places.append((place, index))
        if self._held is None and any(block.thinking is not None for block in message.blocks):
            self._thinking.append((index, message))

    def _follow_user(self, trail: Trail, index: int, message: Message, raw: bytes) -> None:
        for block in message.blocks:
            if block.type == "tool_result":
                trail.returned(block.tool_use_id, block.content)
        trail.asked(self._form.said(message, raw))
        if self._held is not None:
            self._places += [(Place(self._held, call_id), index) for call_id in message.results]

    def calls(self) -> Iterable[tuple[Place, bytes]]:
        return ((place, self._messages[index]) for place, index in reversed(self._places))

    def references(self) -> References:
        named = (as_text(as_dict(self._body.get(member)).get("previous_message_id")) for member in NAMING)
        names = (
            block.thinking
            for _, message in reversed(self._thinking)
            for block in message.blocks
            if block.thinking is not None
        )
        return References(
            frozenset(filter(None, named)),
            frozenset(place for place, _ in self._places),
            frozenset(islice(names, MAX_CALLS)),
        )

    def completed(self, found: Found) -> bytes | None:
        changes = _renamed(self._body, found.aliases)
        if found.turns or found.followers:
            completion = _Completion(self._messages, self._form)
            for place, index in self._places:
                if (turn := found.turns.get(place)) is not None:
                    completion.complete(turn, index)
            completion.follow(found.followers, self._thinking)
            changes |= completion.changes()
        return self._body.replaced(changes) if changes else None


@dataclass(frozen=True, slots=True)
class _Answer:
    """Successive assistant messages, and the user messages that answer them."""

    calls: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Message index and block index of each call."""
    answers: list[int] = field(default_factory=list)
    """Indexes of the user messages."""
    results: dict[str, int] = field(default_factory=dict)
    """Message index of each result."""
    done: set[str] = field(default_factory=set)
    """Ids of the calls that were put in."""


class _Completion:
    """Collects the insertions into each message."""

    def __init__(self, messages: Sequence[bytes], form: MessageForm) -> None:
        self._messages = messages
        self._form = form
        self._answers: dict[int, _Answer] = {}
        """By the index of each of its assistant messages."""
        self._results_only = _Answer()
        self._put: dict[int, Insertions] = {}
        self._followed: set[str] = set()
        """Names of the thinking that was completed."""
        self._splits: dict[int, dict[int, Followers]] = {}
        """Calls and results to insert as separate messages, by message and by the block that follows them."""

    def complete(self, turn: KeptTurn, index: int) -> None:
        """Complete the turn whose calls, or their results, are in the message at this index."""
        message = self._message(index)
        if message is None or message.role == "user":
            self._answer(turn, index)
            return
        answer = self._answer_at(index)
        own = sorted(answer.calls[call_id] for call_id in turn.client_calls if call_id in answer.calls)
        if not own or not answer.answers:
            return  # the client has not answered its own calls yet
        last, block = own[-1]
        left = absent(turn, answer.results.keys() | answer.calls.keys(), answer.done)
        answered = {answer.results.get(call_id) for call_id in turn.client_calls}
        place = next((place for place in answer.answers if place in answered), answer.answers[0])
        for kept in left:
            before = answer.calls.get(kept.anchor or "") if kept.anchor in turn.client_calls else None
            at = before or (last, block + 1)
            self._at(at[0]).add(at[1], kept.call)
            self._at(place).add(0, kept.result)

    def _answer(self, turn: KeptTurn, index: int) -> None:
        """Add results only: the server has the calls."""
        known = self._results_only
        if not known.results:
            for place in range(len(self._messages)):
                message = self._message(place)
                for call_id in message.results if message is not None and message.role == "user" else ():
                    known.results.setdefault(call_id, place)
        place = max(
            (known.results[call_id] for call_id in turn.client_calls if call_id in known.results), default=index
        )
        for kept in absent(turn, known.results, known.done):
            self._at(place).add(0, kept.result)

    def _answer_at(self, index: int) -> _Answer:
        """Return the answer that an assistant message is a part of."""
        if index in self._answers:
            return self._answers[index]
        begin = index
        while begin and index - begin < MAX_RUN and self._role(begin - 1) == "assistant":
            begin -= 1
        answer = _Answer()
        for place in range(begin, min(index + MAX_RUN, len(self._messages))):
            message = self._message(place)
            if message is None or message.role not in ("assistant", "user"):
                break
            if message.role == "user":
                answer.answers.append(place)
                for call_id in message.results:
                    answer.results.setdefault(call_id, place)
            elif answer.answers:
                break
            else:
                self._answers[place] = answer
                for block_index, block in enumerate(message.blocks):
                    if block.call_id:
                        answer.calls.setdefault(block.call_id, (place, block_index))
        return answer

    def _message(self, place: int) -> Message | None:
        return self._form.message(self._messages[place])

    def _role(self, place: int) -> str:
        message = self._message(place)
        return message.role if message is not None else ""

    def follow(self, followers: Mapping[str, Followers], thinking: Iterable[tuple[int, Message]]) -> None:
        """Split the messages in which hidden turns ended."""
        for place, message in thinking if followers else ():
            here = {block.call_id for block in message.blocks if block.call_id}
            for index, block in enumerate(message.blocks):
                if block.type == "tool_use":
                    break  # the client answers its call after this message
                name = block.thinking or ""
                those = followers.get(name)
                if those is None or name in self._followed:
                    continue
                if not here.isdisjoint(those.call_ids):
                    self._followed.add(name)
                    break  # all up to that call is of the turn that has it
                if not self._goes_on_after_a_call(place):
                    self._followed.add(name)
                    self._splits.setdefault(place, {})[self._end(message, index, those.visible)] = those

    def _goes_on_after_a_call(self, place: int) -> bool:
        """Return whether the assistant messages directly before this one have a call, which is answered after it."""
        for before in range(place - 1, max(-1, place - 1 - MAX_RUN), -1):
            message = self._message(before)
            if message is None or message.role != "assistant":
                return False
            if any(block.call_id for block in message.blocks):
                return True
        return False

    @staticmethod
    def _end(message: Message, block: int, visible: int) -> int:
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
        blocks = message.elements("content") if text is None else [text_block(message)]
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
