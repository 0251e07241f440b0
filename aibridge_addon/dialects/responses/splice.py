"""Merge several turns into one response (API reference, "Streaming events" of Responses).

The client sees:

- the first turn's `response.created`;
- the visible items of every turn, numbered consecutively, with increasing sequence numbers;
- the last turn's terminal event. Its response has the first turn's id, all visible items and the output tokens of all
  turns.

A response repeats the request's tools, so injected tools are removed from it. Apart from that, an answer of one turn
without hidden calls passes byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

from aibridge_addon.dialects import openai
from aibridge_addon.dialects.base import DONE, arguments, event_members
from aibridge_addon.dialects.excerpt import name_in
from aibridge_addon.dialects.our_calls import called_input, valid_arguments, valid_name
from aibridge_addon.dialects.responses.events import events_of
from aibridge_addon.dialects.responses.reader import CLIENT_CALLS, TERMINAL, status_of
from aibridge_addon.dialects.turns import Call, Splice, TurnEnd, call_id_for, divide_calls
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text, maybe_count

_is_delta = re.compile(rb'(?:event: ?|data: ?\{"type": ?")response\.[a-z_.]+\.delta\b').match
"""Matches deltas of an item. They are most of a stream, and only their numbers may change."""

_kind_in = re.compile(rb'data: ?\{\s*"type"\s*:\s*"([a-z_.]{1,80})"').search
_item_type_in = re.compile(rb'"item"\s*:\s*\{[^{]*?"type"\s*:\s*"(\w{1,80})"').search
_OUTPUT_INDEX = re.compile(rb'("output_index"\s*:\s*)(\d{1,9})')
_NUMBER = re.compile(rb'("sequence_number"\s*:\s*)(\d{1,9})')
OTHER_CALLS = ("custom_tool_call", "mcp_call")
"""Items that call tools of the client or the provider, whose names may be the same."""
HEAD_SIZE = 4096
"""Bytes. Size of the beginning of a large event in which its type and numbers are searched."""
FIRST_MEMBERS = ("id", "created_at", "previous_response_id", "conversation", "tool_choice", "parallel_tool_calls")
"""Members that the merged response takes from the first turn. Later requests were not the client's."""
NOT_NULL = ("content", "status", "id")
"""Members that an item in an answer may have as null, and an item in a request must not."""
ARGUMENTS = "response.function_call_arguments."
PREAMBLE = frozenset(("response.created", "response.in_progress", "response.queued"))

ITEM_EVENTS = ("response.output_item.added", "response.output_item.done")


class ResponsesSplice(Splice):
    def __init__(self, injected: Collection[str], own: Collection[str] = ()) -> None:
        super().__init__(injected, own)
        self._sequence: int | None = None
        """The last sequence number sent to the client, unless `_unread` has a later one."""
        self._unread: bytes | None = None
        """The last event with a sequence number that passed verbatim and was not parsed."""
        self._next_index = 0
        self._spliced = False
        """Whether the client's answer differs from the first turn."""
        self._begun = self._failed = self._finished = False
        self._first: dict[str, Any] = {}
        self._visible: list[dict[str, Any]] = []
        self._work: list[dict[str, Any]] = [{}]
        self._last: dict[str, Any] = {}
        """The response of the last turn that ended."""
        self._reset()

    def _reset(self) -> None:
        self._id = ""
        self._indexes: dict[int, int | None] = {}
        """The index in the client's answer of each item of the turn. None: hidden."""
        self._highest = -1
        """The highest index of an item of the turn."""
        self._unnumbered: dict[str, int] = {}
        """The index of each item of the turn that came without one, by its id."""
        self._hidden_ids: set[str] = set()
        self._items: dict[int, dict[str, Any]] = {}
        """Completed items, by their index."""
        self._output: list[dict[str, Any]] = []
        self._status = ""
        self._terminal: tuple[str, bytes, JSONObject] | None = None
        """The turn's terminal event."""
        self._tail: list[bytes] = []
        """Events after the turn's terminal event, which pass if no other turn follows."""
        self._ended = False
        self._is_excerpt = False
        """The turn's terminal event is too large, so `event` gets an excerpt of it."""
        self._hides_last = False
        """Whether the item that began last is hidden."""

    @property
    def spliced(self) -> bool:
        return self._spliced

    @property
    def hides(self) -> bool:
        return any(index is None for index in self._indexes.values())

    def begin_turn(self) -> None:
        self._spliced = self._spliced or self._begun
        self._work.append({})
        self._reset()

    # --- a stream ---------------------------------------------------------------------------------------------

    def event(self, raw: bytes, name: str, event: Any) -> bytes:
        if self._ended:
            return self._trailing(raw, event)
        if event is None and not self._spliced and _is_delta(raw):
            self._pass(raw)
            return raw
        name, data = sse.parse(raw)
        try:
            members = event_members(data or b"")
        except (NotJSON, Unreadable):
            return b"" if self.shows_call(raw) else raw
        kind = members.text("type") or name
        if kind in PREAMBLE:
            return self._preamble(raw, name, members)
        if kind in TERMINAL:
            if self._is_excerpt:
                members = self._completed(kind, members)
                raw = sse.event(name, members.replaced({}))
            self._terminal = name, raw, members
            response = as_dict(members.get("response"))
            self._take(response, status_of(kind, response) if kind == "response.done" else kind[len("response.") :])
            return b""
        if kind == "error":
            self._failed = True
        elif kind in ITEM_EVENTS and not isinstance(members.get("item"), dict) and self.shows_call(raw):
            return b""  # the item cannot be decoded, for example because it is nested too deeply
        elif "response" in members and self.shows_call(raw):
            return b""  # a whole response in an event of an unknown kind
        elif kind == "response.output_item.added":
            item = as_dict(members.get("item"))
            self._open(self._index(members, item), item)
        elif kind == "response.output_item.done":
            item = as_dict(members.get("item"))
            index = self._index(members, item)
            if self.keeps:
                self._items[index] = item
            if index not in self._indexes or _is_hidden(item, self.injected):
                self._open(index, item)
        return self._numbered(raw, name, members)

    def _completed(self, kind: str, members: JSONObject) -> JSONObject:
        """Return a terminal event with the members of the response that earlier events had."""
        done = [item for _, item in sorted(self._items.items())]
        response = self._first | {"output": done} | as_dict(members.get("response"))
        number = {"sequence_number": members.get("sequence_number")} if "sequence_number" in members else {}
        return JSONObject(encode({"type": kind} | number | {"response": response}))

    def _trailing(self, raw: bytes, event: Any) -> bytes:
        """Handle an event after the terminal event. Some servers end with `[DONE]`, which is kept."""
        if self._spliced and event != DONE:
            return b""
        if self._finished:
            return raw
        self._tail.append(raw)
        return b""

    def _pass(self, raw: bytes) -> None:
        self._begun = True
        if b'"sequence_number"' in raw:
            self._unread = raw

    def _preamble(self, raw: bytes, name: str, members: JSONObject) -> bytes:
        response = as_dict(members.get("response"))
        self._id = self._id or as_text(response.get("id"))
        if self._spliced:
            return b""
        self._first = self._first or response
        return self._numbered(raw, name, members)

    def _index(self, members: JSONObject, item: dict[str, Any]) -> int:
        """Return the index of an item. Some servers send none: then its id names an item that has begun."""
        if (given := maybe_count(members.get("output_index"))) is not None:
            return given
        item_id = as_text(item.get("id"))
        index = self._unnumbered.get(item_id) if item_id else None
        if index is None:
            index = self._highest + 1
            if item_id:
                self._unnumbered[item_id] = index
        return index

    def _open(self, index: int, item: dict[str, Any]) -> None:
        self._highest = max(self._highest, index)
        self._hides_last = _is_hidden(item, self.injected)
        if self._hides_last:
            self._indexes[index] = None
            self._hidden_ids.add(as_text(item.get("id")))
            self._spliced = True
            return
        visible_index = self._next_index if self._spliced else index
        self._indexes[index] = visible_index
        self._next_index = visible_index + 1

    def _numbered(self, raw: bytes, name: str, members: JSONObject) -> bytes:
        """Return the event with the client's numbers and without injected tools. Empty for hidden items."""
        if members.text("name") in self.injected or _is_hidden(as_dict(members.get("item")), self.injected):
            self._spliced = True
            return b""
        changes = self._without_injected_tools(members)
        if not self._spliced:
            self._pass(raw)
            return sse.event(name, members.replaced(changes)) if changes else raw
        index = maybe_count(members.get("output_index"))
        if index is not None:
            if index not in self._indexes:
                self._open(index, {})
            if (visible_index := self._indexes[index]) is None:
                return b""
            changes["output_index"] = b"%d" % visible_index
        elif self._is_of_hidden_item(members.text("type") or name, members):
            return b""
        if "sequence_number" in members:
            changes["sequence_number"] = b"%d" % self._next_number(members)
        return sse.event(name, members.replaced(changes)) if changes else raw

    def _is_of_hidden_item(self, kind: str, members: JSONObject) -> bool:
        """Return whether an event without an index belongs to a hidden item: by its id, or by its place."""
        item = as_dict(members.get("item"))
        item_id = members.text("item_id") or as_text(item.get("id"))
        if _is_hidden(item, self.injected) or (item_id and item_id in self._hidden_ids):
            return True
        if not kind.startswith(ARGUMENTS) or item_id in self._unnumbered:
            return False
        return self._hides_last or members.text("name") in self.injected

    def _next_number(self, members: JSONObject) -> int:
        if self._unread is not None:
            _, data = sse.parse(self._unread)
            self._unread = None
            with suppress(NotJSON, Unreadable):
                self._sequence = as_count(event_members(data or b"").get("sequence_number"))
        own = as_count(members.get("sequence_number"))
        self._sequence = own if self._sequence is None else self._sequence + 1
        return self._sequence

    def _without_injected_tools(self, members: JSONObject) -> dict[str, bytes]:
        """Return the change that removes injected tools from an event's response."""
        raw = members.raw("response")
        if not raw.startswith(b"{"):
            return {}
        response = JSONObject(raw)
        tools = response.get("tools")
        own = self._own(tools)
        return {} if own == tools else {"response": response.replaced({"tools": encode(own)})}

    def _own(self, tools: Any) -> Any:
        """Return the client's tools, including those inside namespaces."""
        if not isinstance(tools, list):
            return tools
        own = [tool for tool in tools if as_text(as_dict(tool).get("name")) not in self.injected]
        return [tool | {"tools": self._own(tool["tools"])} if "tools" in as_dict(tool) else tool for tool in own]

    def _take(self, response: dict[str, Any], status: str) -> None:
        self._ended = True
        self._status = status
        self._id = as_text(response.get("id")) or self._id
        self._begun = True
        if not self._last:
            self._first = self._first | response
        self._last = response
        self._work[-1] = as_dict(response.get("usage"))
        done = [item for _, item in sorted(self._items.items())]
        self._output = [as_dict(item) for item in as_list(response.get("output"))] or done

    def large_event(self, beginning: bytes) -> bytes | None:
        head = beginning[:HEAD_SIZE]
        kind, index = _kind_in(head) or name_in(head), _OUTPUT_INDEX.search(head)
        if kind is None:
            return None
        if self._ended or kind[1].decode() in TERMINAL:
            self._is_excerpt = not self._ended
            return b""
        found = _item_type_in(head)
        if index is None or self.shows_call(beginning) or (found is not None and found[1] == b"function_call"):
            return None
        place = int(index[2])
        if place not in self._indexes:
            self._open(place, {})
        number = _NUMBER.search(head)
        if not self._spliced:
            self._pass(sse.event("", b'{"sequence_number":%s}' % number[2]) if number is not None else b"")
            return beginning
        if (visible := self._indexes[place]) is None:
            return b""
        head = _OUTPUT_INDEX.sub(rb"\g<1>%d" % visible, head, count=1)
        if number is not None:
            next_number = self._next_number(JSONObject(b'{"sequence_number":%s}' % number[2]))
            head = _NUMBER.sub(rb"\g<1>%d" % next_number, head, count=1)
        return head + beginning[HEAD_SIZE:]

    def keep_large(self, raw: bytes) -> None:
        _, data = sse.parse(raw)
        try:
            members = event_members(data or b"")
        except (NotJSON, Unreadable):
            return
        if members.text("type") == "response.output_item.done":
            self._items[as_count(members.get("output_index"))] = as_dict(members.get("item"))

    def end_turn(self) -> TurnEnd:
        visible = [item for item in self._output if not _is_hidden(item, self.injected)]
        self._spliced = self._spliced or len(visible) < len(self._output)
        self._visible += visible
        for place, item in enumerate(self._output):
            if _is_hidden(item, self.injected):
                self._output[place] = self._valid(item, place)
        answered = {_call_id(item) for item in self._output if as_text(item.get("type")).endswith("_output")}
        unanswered = [item for item in self._output if not _call_id(item) or _call_id(item) not in answered]
        calls, client_calls = divide_calls(unanswered, self._maybe_call, _maybe_client_call)
        whole = self._status == "completed" and not self._failed
        content = [_for_request(item) for item in self._output]
        return TurnEnd(calls if whole else [], client_calls, content, self._id)

    def finish(self) -> bytes:
        self._finished = self._ended = True
        if self._terminal is None or self._failed:
            return b""
        name, raw, members = self._terminal
        if not self._spliced:
            changes = self._without_injected_tools(members)
            return (sse.event(name, members.replaced(changes)) if changes else raw) + b"".join(self._tail)
        changes = {"response": encode(self._merged())}
        if "sequence_number" in members:
            changes["sequence_number"] = b"%d" % self._next_number(members)
        return sse.event(name, members.replaced(changes)) + b"".join(self._tail)

    def keepalive(self) -> bytes:
        return b": keep-alive\n\n"

    # --- one body ---------------------------------------------------------------------------------------------

    def take_body(self, body: dict[str, Any]) -> TurnEnd:
        self._work.append({})
        self._take(body, as_text(body.get("status")) or "completed")
        return self.end_turn()

    def body(self) -> dict[str, Any]:
        return self._merged() if self._spliced else self._without_tools(self._last)

    def events_of(self, body: dict[str, Any], *, usage: bool) -> Iterable[tuple[str, Any]]:
        return ((as_text(event["type"]), event) for event in events_of(body))

    def body_of(self, events: Sequence[bytes]) -> dict[str, Any]:
        items: dict[int, dict[str, Any]] = {}
        body: dict[str, Any] = {}
        for raw in events:
            name, data = sse.parse(raw)
            try:
                members = event_members(data or b"")
            except (NotJSON, Unreadable):
                continue
            kind = members.text("type") or name
            if kind == "response.output_item.done":
                items[as_count(members.get("output_index"))] = as_dict(members.get("item"))
            elif kind in TERMINAL:
                body = as_dict(members.get("response"))
        done = [item for _, item in sorted(items.items())]
        return body | {"output": as_list(body.get("output")) or done}

    def _merged(self) -> dict[str, Any]:
        merged = {name: value for name, value in self._last.items() if name not in FIRST_MEMBERS or name in self._first}
        merged |= {name: self._first[name] for name in FIRST_MEMBERS if name in self._first}
        merged = self._without_tools(merged) | {"output": self._visible}
        return merged | ({"usage": usage} if (usage := self._usage()) else {})

    def _without_tools(self, response: dict[str, Any]) -> dict[str, Any]:
        own = self._own(response.get("tools"))
        return response if own == response.get("tools") else response | {"tools": own}

    def _usage(self) -> dict[str, Any]:
        return openai.usage_of_turns(self._work, "input_tokens", "output_tokens")

    def _valid(self, item: dict[str, Any], place: int) -> dict[str, Any]:
        """Return a hidden call as a request may contain it: with an id, a valid name, and an object as its input."""
        return item | {
            "call_id": _call_id(item) or call_id_for(self._id, place, item),
            "name": valid_name(as_text(item.get("name"))),
            "arguments": valid_arguments(item.get("arguments")),
        }

    def _maybe_call(self, item: dict[str, Any], anchor: str | None) -> Call | None:
        if not _is_hidden(item, self.injected):
            return None
        tool_input = called_input(arguments(item.get("arguments")))
        return Call(_call_id(item), as_text(item.get("name")), tool_input, item, anchor)


def _for_request(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item without the members that requests with it are refused for."""
    refused = {"created_by"} | {name for name in NOT_NULL if name in item and item[name] is None}
    if item.get("type") == "custom_tool_call_output":
        refused.add("status")
    return item if refused.isdisjoint(item) else {name: v for name, v in item.items() if name not in refused}


def _is_hidden(item: dict[str, Any], injected: Collection[str]) -> bool:
    """Return whether an item calls an injected tool. Its type may be one that is not known here, or no text."""
    return as_text(item.get("name")) in injected and item.get("type") not in OTHER_CALLS


def _call_id(item: dict[str, Any]) -> str:
    return as_text(item.get("call_id"))


def _maybe_client_call(item: dict[str, Any]) -> str | None:
    """Return the id of a call that the client must answer. Unknown kinds count if they have a call id."""
    kind = as_text(item.get("type"))
    if kind == "mcp_approval_request":
        return as_text(item.get("id"))
    return _call_id(item) if kind in CLIENT_CALLS or (_call_id(item) and kind.endswith("_call")) else None
