"""Merge several turns into one Messages answer (API reference, "Streaming Messages").

The client sees:

- the first turn's `message_start`;
- the visible blocks of every turn, numbered consecutively;
- the last turn's `message_delta` and `message_stop`. Output tokens are those of all turns. Input tokens are those of
  the first turn, which is the conversation that the client knows.

An answer of one turn without hidden calls passes byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aibridge_addon.dialects.base import arguments, decode_event, event_members
from aibridge_addon.dialects.messages.events import events_of
from aibridge_addon.dialects.messages.reader import fold
from aibridge_addon.dialects.our_calls import INVALID_INPUT, called_input, valid_input, valid_name
from aibridge_addon.dialects.room import Pieces
from aibridge_addon.dialects.turns import Call, Splice, TurnEnd, call_id_for, combined_usage, divide_calls
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import NotJSON, Unreadable, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

_INDEX = re.compile(rb'(data: ?\{"type": ?"content_block_(?:start|delta|stop)", ?"index": ?)(\d{1,9})(?=\s*[,}])')
_block_type = re.compile(rb'\s*,\s*"content_block"\s*:\s*\{\s*"type"\s*:\s*"(\w{1,80})"').match
HEAD_SIZE = 4096
"""Bytes. Size of the beginning of a large event in which its type and index are searched."""
BLOCK_EVENTS = frozenset(("content_block_start", "content_block_delta", "content_block_stop"))
CONVERSATION = ("input_tokens", "cache_")
"""Prefixes of `usage` members that describe the input."""
ENDING = ("stop_reason", "stop_sequence", "stop_details")
"""Members that the merged answer takes from the last turn."""
LASTING = ("container", "context_management")
"""Members that the merged answer has if any turn had them."""
CUT_SHORT = frozenset(("max_tokens", "model_context_window_exceeded", "refusal", "pause_turn"))
"""Stop reasons of a message whose calls may be incomplete and are not to be run."""
SERVER_CALLS = ("server_tool_use", "mcp_tool_use")
"""Blocks that call tools of the provider, whose names may be the same."""
ABANDONED = ("tool_use", "thinking", "redacted_thinking")
"""Blocks before a `fallback` block that must not be sent back."""
MEMBERS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "text": frozenset(("type", "text", "citations")),
        "thinking": frozenset(("type", "thinking", "signature")),
        "redacted_thinking": frozenset(("type", "data")),
        "tool_use": frozenset(("type", "id", "name", "input", "caller")),
        "server_tool_use": frozenset(("type", "id", "name", "input", "caller")),
    }
)
"""Members of blocks in a request (API reference, "Messages"). Answers have more, such as `estimated_tokens`."""


class MessagesSplice(Splice):
    def __init__(self, injected: Collection[str], own: Collection[str] = ()) -> None:
        super().__init__(injected, own)
        self._next_index = 0
        self._first: dict[str, Any] = {}
        """The first turn's body."""
        self._visible: list[dict[str, Any]] = []
        self._client_calls = False
        self._spliced = False
        """Whether the client's answer differs from the first turn."""
        self._work: list[dict[str, Any]] = []
        """The final usage of each turn."""
        self._ending: dict[str, Any] = {}
        """How the turn has ended, and members of earlier turns that last."""
        self._failed = self._finished = False
        self._reset()

    def _reset(self) -> None:
        self._id = ""
        self._raw: list[bytes] = []
        self._tail: list[bytes] = []
        """The verbatim end of the turn, which passes unchanged if no other turn follows."""
        self._indexes: dict[int, int | None] = {}
        """The index in the client's answer of each block of the turn. None: hidden."""
        self._client_ids: list[str] = []
        self._last_delta: dict[str, Any] = {}
        """The turn's last `message_delta`."""
        self._hides = self._stopped = False

    @property
    def spliced(self) -> bool:
        return self._spliced

    @property
    def hides(self) -> bool:
        return self._hides

    def begin_turn(self) -> None:
        self._forget_ending()
        self._reset()

    def _forget_ending(self) -> None:
        self._ending = {name: value for name, value in self._ending.items() if name in LASTING}

    # --- a stream ---------------------------------------------------------------------------------------------

    def event(self, raw: bytes, name: str, event: Any) -> bytes:
        if self.keeps:
            self._raw.append(raw)
        if event is None:
            is_block = b"content_block_" in raw
            return self._passed(self._renumbered(raw) if is_block else raw, is_block=is_block)
        members = as_dict(event)
        kind = as_text(members.get("type")) or name
        if kind == "content_block_start":
            self._open(as_count(members.get("index")), as_dict(members.get("content_block")))
        if kind in BLOCK_EVENTS:
            return self._passed(self._renumbered(raw), is_block=True)
        if kind == "message_start":
            return self._start(raw, as_dict(members.get("message")))
        if kind == "message_delta":
            self._last_delta = members
            self._end(as_dict(members.get("usage")), members | as_dict(members.get("delta")), anew=not self._tail)
            self._tail.append(raw)
            return b""
        if kind == "message_stop":
            self._stopped = True
            self._tail.append(raw)
            return b""
        if kind == "error":
            self._failed = True
            held, self._tail = self._tail, []
            return b"".join(held) + raw if not self._spliced else raw
        return b"" if _is_hidden(as_dict(members.get("content_block")), self.injected) else self._passed(raw)

    def _passed(self, raw: bytes, *, is_block: bool = False) -> bytes:
        """Return the bytes that pass at once. After the held end, events are held as well to keep the order.

        `is_block`: a block goes on, so a held `message_delta` was not the end.
        """
        if self._finished or (self._stopped and self._spliced):
            return b"" if self._spliced else raw
        if self._tail and not self._spliced:
            if is_block and not self._stopped:
                held, self._tail = self._tail, []
                return b"".join(held) + raw
            self._tail.append(raw)
            return b""
        return raw

    def _start(self, raw: bytes, message: dict[str, Any]) -> bytes:
        self._id = as_text(message.get("id"))
        self._work.append(dict(as_dict(message.get("usage"))))
        return b"" if self._spliced else raw

    def _end(self, usage: dict[str, Any], members: dict[str, Any], *, anew: bool) -> None:
        """Read the end of the turn."""
        if not self._work:
            self._work.append({})
        fold(self._work[-1], usage)
        if anew:
            self._forget_ending()
        self._ending |= {name: members[name] for name in (*ENDING, *LASTING) if members.get(name) is not None}

    def _open(self, index: int, block: dict[str, Any]) -> None:
        if _is_hidden(block, self.injected):
            self._indexes[index] = None
            self._hides = self._spliced = True
            return
        if block.get("type") == "fallback":
            self._client_ids.clear()  # the model that made these calls has declined
        if (call_id := _maybe_client_call(block)) is not None:
            self._client_ids.append(call_id)
            self._client_calls = True
        visible_index = self._next_index if self._spliced else index
        self._indexes[index] = visible_index
        self._next_index = visible_index + 1

    def _renumbered(self, raw: bytes) -> bytes:
        if not self._spliced:
            return raw
        found = _INDEX.search(raw)
        if found is None:
            return self._renumbered_slowly(raw)
        index = self._indexes.get(int(found[2]), self._next_index)
        if index is None:
            return b""
        return raw[: found.start(2)] + b"%d" % index + raw[found.end(2) :]

    def _renumbered_slowly(self, raw: bytes) -> bytes:
        """Renumber an event whose members have another order or spacing, or that is framed in another way."""
        try:
            name, data = self.parse(raw)
            members = event_members(data or b"")
        except (NotJSON, Unreadable):
            return b"" if self.shows_call(raw) else raw
        if (as_text(members.get("type")) or name) not in BLOCK_EVENTS:
            return raw
        index = self._indexes.get(as_count(members.get("index")), self._next_index)
        return b"" if index is None else self.changed(raw, name, members.replaced({"index": b"%d" % index}))

    def parse(self, raw: bytes) -> tuple[str, bytes | None]:
        """Return the name and the data of a raw event. May raise NotJSON or Unreadable."""
        return sse.parse(raw)

    def changed(self, _raw: bytes, name: str, data: bytes) -> bytes:
        """Return a raw event with this name and other data."""
        return sse.event(name, data)

    def last_event(self, _raw: bytes, name: str, members: dict[str, Any]) -> bytes:
        """Return an event of the merged answer's end. The raw event is one of the turn's end, or empty."""
        return sse.event(name, encode(members))

    def large_event(self, beginning: bytes) -> bytes | None:
        found = _INDEX.search(beginning, 0, HEAD_SIZE)
        if found is None or self.shows_call(beginning):
            return None
        if b"content_block_start" in found[1]:
            kind = _block_type(beginning, found.end(), HEAD_SIZE)
            if kind is None or kind[1] == b"tool_use":
                return None
            self._open(int(found[2]), {"type": kind[1].decode()})
        return self._passed(self._renumbered(beginning), is_block=True)

    def keep_large(self, raw: bytes) -> None:
        self._raw.append(raw)

    def end_turn(self) -> TurnEnd:
        if not self._hides:
            return TurnEnd(client_calls=self._client_ids, response_id=self._id)
        return self._turn_end(
            self._id, self._content(self._raw), self._ending if self._stopped and not self._failed else None
        )

    def finish(self) -> bytes:
        self._finished = True
        if not self._spliced:
            return b"".join(self._tail)
        if self._failed or not self._last_delta:
            return b""
        merged = dict(self._last_delta)
        delta = dict(as_dict(merged.get("delta")))
        for name, value in self._ended().items():
            (merged if name in merged or name == "context_management" else delta)[name] = value
        merged |= {"delta": delta} | self._usage()
        raw = self._tail[0] if self._tail else b""
        ends = (("message_delta", merged), ("message_stop", {"type": "message_stop"}))
        return b"".join(self.last_event(raw, name, members) for name, members in ends)

    def _ended(self) -> dict[str, Any]:
        """Return the end of the answer. `tool_use` is replaced if no call is visible: clients treat it as an error."""
        if self._ending.get("stop_reason") != "tool_use" or self._client_calls:
            return self._ending
        return self._ending | {"stop_reason": "end_turn"}

    def _usage(self) -> dict[str, Any]:
        usage = combined_usage(self._work, CONVERSATION, "output_tokens")
        return {"usage": usage} if usage else {}

    def keepalive(self) -> bytes:
        return b'event: ping\ndata: {"type": "ping"}\n\n'

    # --- one body ---------------------------------------------------------------------------------------------

    def take_body(self, body: dict[str, Any]) -> TurnEnd:
        self._first = self._first or body
        self._work.append({})
        self._end(as_dict(body.get("usage")), body, anew=True)
        blocks = [as_dict(block) for block in as_list(body.get("content"))]
        visible = [block for block in blocks if not _is_hidden(block, self.injected)]
        self._spliced = self._spliced or len(visible) < len(blocks)
        self._visible += visible
        end = self._turn_end(as_text(body.get("id")), blocks, body)
        self._client_calls = self._client_calls or bool(end.client_calls)
        return end

    def body(self) -> dict[str, Any]:
        if not self._spliced:
            return self._first
        earlier = dict.fromkeys(name for name in ENDING if name in self._first)
        return self._first | earlier | {"content": self._visible} | self._ended() | self._usage()

    def events_of(self, body: dict[str, Any], *, usage: bool) -> Iterable[tuple[str, Any]]:
        return ((as_text(event["type"]), event) for event in events_of(body))

    def body_of(self, events: Sequence[bytes]) -> dict[str, Any]:
        body: dict[str, Any] = {}
        usage: dict[str, Any] = {}
        for kind, event in self._decoded(events):
            if kind == "message_start":
                body = dict(as_dict(event.get("message")))
                usage = dict(as_dict(body.get("usage")))
            elif kind == "message_delta":
                body |= as_dict(event.get("delta")) | {name: event[name] for name in LASTING if name in event}
                fold(usage, as_dict(event.get("usage")))
        return body | {"content": self._content(events), "usage": usage}

    def _decoded(self, events: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the type and the data of raw events. Unreadable ones are skipped."""
        for raw in events:
            try:
                name, data = self.parse(raw)
                event = as_dict(decode_event(data or b"null"))
            except (NotJSON, Unreadable):
                continue
            yield as_text(event.get("type")) or name, event

    def _content(self, events: Iterable[bytes]) -> list[dict[str, Any]]:
        """Return a turn's blocks, merged from its events."""
        blocks: dict[int, _Block] = {}
        for kind, event in self._decoded(events):
            index = as_count(event.get("index"))
            match kind:
                case "content_block_start":
                    blocks[index] = _Block(as_dict(event.get("content_block")))
                case "content_block_delta":
                    if index not in blocks:
                        blocks[index] = _Block({})
                    blocks[index].grow(as_dict(event.get("delta")))
        return [_grown(block.whole()) for block in blocks.values()]

    def _turn_end(self, response_id: str, blocks: list[dict[str, Any]], ending: dict[str, Any] | None) -> TurnEnd:
        """`ending` has the stop reason. None: the turn was truncated."""
        blocks = [_for_request(block) for block in _after_fallback(blocks)]
        for place, block in enumerate(blocks):
            if _is_hidden(block, self.injected):
                blocks[place] = _valid(block, response_id, place)
        calls, client_calls = divide_calls(blocks, self._maybe_call, _maybe_client_call)
        whole = ending is not None and as_text(ending.get("stop_reason")) not in CUT_SHORT
        return TurnEnd(
            calls=calls if whole else [],
            client_calls=client_calls,
            content=blocks,
            response_id=response_id,
            container=as_text(as_dict(self._ending.get("container")).get("id")),
        )

    def _maybe_call(self, block: dict[str, Any], anchor: str | None) -> Call | None:
        if not _is_hidden(block, self.injected):
            return None
        tool_input = called_input(block.get("input"))
        return Call(as_text(block.get("id")), as_text(block.get("name")), tool_input, block, anchor)


def _is_hidden(block: dict[str, Any], injected: Collection[str]) -> bool:
    """Return whether a block calls an injected tool. Its type may be one that is not known here, or no text."""
    return as_text(block.get("name")) in injected and block.get("type") not in SERVER_CALLS


def _valid(block: dict[str, Any], response_id: str, place: int) -> dict[str, Any]:
    """Return a hidden call as a request may contain it: with an id, a valid name, and an object as its input."""
    call_id = as_text(block.get("id")) or call_id_for(response_id, place, block)
    return block | {
        "id": call_id,
        "name": valid_name(as_text(block.get("name"))),
        "input": valid_input(block.get("input")),
    }


def _maybe_client_call(block: dict[str, Any]) -> str | None:
    return as_text(block.get("id")) if block.get("type") == "tool_use" else None


def _after_fallback(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the blocks without those that a model that declined has abandoned ("Refusals and fallback")."""
    last = next((place for place in range(len(blocks) - 1, -1, -1) if blocks[place].get("type") == "fallback"), 0)
    return [block for place, block in enumerate(blocks) if place >= last or block.get("type") not in ABANDONED]


def _for_request(block: dict[str, Any]) -> dict[str, Any]:
    """Return a block with the members that a request may contain. Blocks of other types are not changed."""
    members = MEMBERS.get(as_text(block.get("type")))
    if members is None or block.keys() <= members:
        return block
    return {name: value for name, value in block.items() if name in members}


class _Block:
    """A block whose deltas are still arriving. It grows in linear time."""

    def __init__(self, block: dict[str, Any]) -> None:
        self._members: dict[str, Any] = dict(block)

    def grow(self, delta: dict[str, Any]) -> None:
        """Merge a delta: text and lists are appended. `_for_request` removes what is not the block's own."""
        members = self._members
        for name, value in delta.items():
            if name == "type":
                continue
            known = members.get(name)
            if name == "citation":
                members["citations"] = _extended(members.get("citations"), [value])
            elif isinstance(value, str):
                if not isinstance(known, Pieces):
                    known = Pieces(as_text(known))
                known.add(value)
                members[name] = known
            elif isinstance(value, list):
                members[name] = _extended(known, value)
            elif value is not None or name not in members:
                members[name] = value

    def whole(self) -> dict[str, Any]:
        return {name: _whole(value) for name, value in self._members.items()}


class _List(list[Any]):
    """A list that the block owns, so that it may be changed."""


def _extended(known: object, added: list[Any]) -> _List:
    grown = known if isinstance(known, _List) else _List(as_list(known))
    grown.extend(added)
    return grown


def _whole(value: Any) -> Any:
    if isinstance(value, Pieces):
        return value.text()
    return list(value) if isinstance(value, _List) else value


def _grown(block: dict[str, Any]) -> dict[str, Any]:
    """Return a finished block, with the pieces of a tool's input decoded."""
    if "partial_json" not in block:
        return block
    text = as_text(block["partial_json"])
    tool_input = arguments(text) if text.strip() else block.get("input")
    whole = {name: value for name, value in block.items() if name != "partial_json"}
    return whole | {"input": tool_input if isinstance(tool_input, dict) else {INVALID_INPUT: text}}
