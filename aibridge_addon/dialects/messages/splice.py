"""One Messages answer out of several turns (API reference, "Streaming Messages").

What the client sees: the first turn's `message_start`; the visible blocks of every turn, numbered on; and at the end
the last turn's `message_delta` and `message_stop`, with output tokens summed over turns and input tokens of the first,
since that is the conversation that the client knows. An answer of one turn that hides nothing passes byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from aibridge_addon.dialects.base import arguments
from aibridge_addon.dialects.turns import Call, Splice, TurnEnd, divided, told_usage
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

_INDEX = re.compile(rb'(data: ?\{"type": ?"content_block_(?:start|delta|stop)", ?"index": ?)(\d+)')
BLOCK_EVENTS = frozenset(("content_block_start", "content_block_delta", "content_block_stop"))
CONVERSATION = ("input_tokens", "cache_")
"""How the members of `usage` begin that describe the conversation, not the work."""
ENDING = ("stop_reason", "stop_sequence", "stop_details")
"""How the last turn ended: the end of the answer."""
LASTING = ("container", "context_management")
"""What holds for the answer if one of its turns had it."""
CUT_SHORT = frozenset(("max_tokens", "model_context_window_exceeded", "refusal", "pause_turn"))
"""Stop reasons of a message whose calls may be halves, and are not asked to be run."""
INVALID_INPUT = "INVALID_JSON"
"""What the API reference wraps a call's input in that is no JSON object ("Fine-grained tool streaming")."""


class MessagesSplice(Splice):
    def __init__(self, injected: Collection[str]) -> None:
        super().__init__(injected)
        self._next_index = 0
        self._first: dict[str, Any] = {}
        """The first turn's whole body."""
        self._visible: list[dict[str, Any]] = []
        self._client_calls = False
        self._spliced = False
        """Whether the client sees anything else than the first turn, as it is."""
        self._work: list[dict[str, Any]] = []
        """The usage of every turn, final numbers."""
        self._ending: dict[str, Any] = {}
        self._last_delta: dict[str, Any] = {}
        """The `message_delta` of the last turn that had one."""
        self._failed = self._finished = False
        self._reset()

    def _reset(self) -> None:
        self._id = ""
        self._raw: list[bytes] = []
        self._tail: list[bytes] = []
        """The answer's end as it came, while it may be all there is."""
        self._indexes: dict[int, int | None] = {}
        """The client's index of each of the turn's blocks; None: hidden."""
        self._client_ids: list[str] = []
        self._hides = self._stopped = False

    def begin_turn(self) -> None:
        self._reset()

    # --- a stream ---------------------------------------------------------------------------------------------

    def event(self, raw: bytes, name: str, event: Any) -> bytes:
        self._raw.append(raw)
        if event is None:
            return self._passed(self._renumbered(raw) if b"content_block_" in raw else raw)
        members = as_dict(event)
        kind = as_text(members.get("type")) or name
        if kind == "content_block_start":
            self._open(as_count(members.get("index")), as_dict(members.get("content_block")))
        if kind in BLOCK_EVENTS:
            return self._passed(self._renumbered(raw))
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
        return self._passed(raw)

    def _passed(self, raw: bytes) -> bytes:
        """What may pass at once, but keeps its place behind what is held."""
        if self._finished or (self._stopped and self._spliced):
            return b"" if self._spliced else raw
        if self._tail and not self._spliced:
            self._tail.append(raw)
            return b""
        return raw

    def _start(self, raw: bytes, message: dict[str, Any]) -> bytes:
        self._id = as_text(message.get("id"))
        self._work.append(dict(as_dict(message.get("usage"))))
        return b"" if self._spliced else raw

    def _end(self, usage: dict[str, Any], members: dict[str, Any], *, anew: bool) -> None:
        """Take how the turn has ended. Counts are cumulative: the last one stands, and a zero says nothing new."""
        if not self._work:
            self._work.append({})
        known = self._work[-1]
        known |= {name: value for name, value in usage.items() if value or name not in known}
        if anew:
            self._ending = {name: value for name, value in self._ending.items() if name in LASTING}
        self._ending |= {name: members[name] for name in (*ENDING, *LASTING) if members.get(name) is not None}

    def _open(self, index: int, block: dict[str, Any]) -> None:
        if _is_hidden(block, self.injected):
            self._indexes[index] = None
            self._hides = self._spliced = True
            return
        if (call_id := _maybe_client_call(block)) is not None:
            self._client_ids.append(call_id)
            self._client_calls = True
        told = self._next_index if self._spliced else index
        self._indexes[index] = told
        self._next_index = told + 1

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
        """An event whose members stand in another order, or apart."""
        name, data = sse.parse(raw)
        try:
            members = JSONObject((data or b"").replace(b"\n", b" "))
        except (NotJSON, Unreadable):
            return raw
        if (as_text(members.get("type")) or name) not in BLOCK_EVENTS:
            return raw
        index = self._indexes.get(as_count(members.get("index")), self._next_index)
        return b"" if index is None else sse.event(name, members.replaced({"index": b"%d" % index}))

    def end_turn(self) -> TurnEnd:
        if not self._hides:
            return TurnEnd(client_calls=self._client_ids, response_id=self._id)
        return self._turn_end(self._id, self._content(), self._ending if self._stopped and not self._failed else None)

    def _content(self) -> list[dict[str, Any]]:
        """The turn's blocks, put together from its events."""
        blocks: dict[int, dict[str, Any]] = {}
        for raw in self._raw:
            name, data = sse.parse(raw)
            try:
                event = as_dict(decode(data or b"null"))
            except (NotJSON, Unreadable):
                continue
            index = as_count(event.get("index"))
            match as_text(event.get("type")) or name:
                case "content_block_start":
                    blocks[index] = as_dict(event.get("content_block"))
                case "content_block_delta":
                    _grow(blocks.setdefault(index, {}), as_dict(event.get("delta")))
        return [_grown(block) for block in blocks.values()]

    def finish(self) -> bytes:
        self._finished = True
        if not self._spliced:
            return b"".join(self._tail)
        if self._failed or not self._last_delta:
            return b""
        told = dict(self._last_delta)
        delta = dict(as_dict(told.get("delta")))
        for name, value in self._ended().items():
            (told if name in told or name == "context_management" else delta)[name] = value
        told |= {"delta": delta} | self._usage()
        return sse.event("message_delta", encode(told)) + sse.event("message_stop", b'{"type":"message_stop"}')

    def _ended(self) -> dict[str, Any]:
        """How the answer ends. Clients take a stop for the use of a tool, without its call, for broken."""
        if self._ending.get("stop_reason") != "tool_use" or self._client_calls:
            return self._ending
        return self._ending | {"stop_reason": "end_turn"}

    def _usage(self) -> dict[str, Any]:
        told = told_usage(self._work, CONVERSATION, "output_tokens")
        return {"usage": told} if told else {}

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
        return self._first | {"content": self._visible} | self._ended() | self._usage()

    def _turn_end(self, response_id: str, blocks: list[dict[str, Any]], ending: dict[str, Any] | None) -> TurnEnd:
        """`ending`: how the turn ended; None if it broke off."""
        calls, client_calls = divided(blocks, self._maybe_call, _maybe_client_call)
        whole = ending is not None and ending.get("stop_reason") not in CUT_SHORT
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
        told = block.get("input")
        if isinstance(told, dict) and told.keys() == {INVALID_INPUT}:
            told = told[INVALID_INPUT]
        return Call(as_text(block.get("id")), as_text(block.get("name")), told, block, anchor)


def _is_hidden(block: dict[str, Any], injected: Collection[str]) -> bool:
    return block.get("type") == "tool_use" and as_text(block.get("name")) in injected


def _maybe_client_call(block: dict[str, Any]) -> str | None:
    return as_text(block.get("id")) if block.get("type") == "tool_use" else None


def _grow(block: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add a delta to its block. Text grows, lists grow, whatever they are called: unknown kinds are carried too."""
    for name, value in delta.items():
        if name == "type":
            continue
        known = block.get(name)
        if name == "citation":
            block["citations"] = [*as_list(block.get("citations")), value]
        elif isinstance(value, str) and isinstance(known, str):
            block[name] = known + value
        elif isinstance(value, list) and isinstance(known, list):
            block[name] = [*known, *value]
        elif value is not None or name not in block:
            block[name] = value


def _grown(block: dict[str, Any]) -> dict[str, Any]:
    """A finished block: the pieces of a tool's input have become its input."""
    if "partial_json" not in block:
        return block
    text = as_text(block["partial_json"])
    told = arguments(text) if text.strip() else block.get("input")
    whole = {name: value for name, value in block.items() if name != "partial_json"}
    return whole | {"input": told if isinstance(told, dict) else {INVALID_INPUT: text}}
