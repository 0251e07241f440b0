"""One response out of several turns (API reference, "Streaming events" of Responses).

What the client sees: the first turn's `response.created`; the visible items of every turn, numbered on, under
increasing sequence numbers; and the last turn's terminal event, whose response has the first one's id, all visible
items, and output tokens summed over turns. A response repeats the request's tools: ours are taken out of it. But for
that, an answer of one turn that hides nothing passes byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from aibridge_addon.dialects.base import DONE, arguments
from aibridge_addon.dialects.responses.reader import CLIENT_CALLS, TERMINAL
from aibridge_addon.dialects.turns import Call, Splice, TurnEnd, divided, told_usage
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

_is_delta = re.compile(rb'(?:event: ?|data: ?\{"type": ?")response\.[a-z_.]+\.delta\b').match
"""Events that grow an item: most of a stream, and nothing in them is of interest but their numbers."""

CONVERSATION = ("input_",)
"""How the members of `usage` begin that describe the conversation, not the work."""
FIRST_MEMBERS = ("id", "created_at", "previous_response_id", "conversation", "tool_choice", "parallel_tool_calls")
"""Members of a response that are the first turn's: what came after is ours, not the client's."""
PREAMBLE = frozenset(("response.created", "response.in_progress", "response.queued"))


class ResponsesSplice(Splice):
    def __init__(self, injected: Collection[str]) -> None:
        super().__init__(injected)
        self._sequence: int | None = None
        """The last sequence number that the client has seen, as far as `_unread` does not say more."""
        self._unread: bytes | None = None
        """The last event with a sequence number that passed as it was."""
        self._next_index = 0
        self._spliced = False
        """Whether the client sees anything else than the first turn, as it is."""
        self._begun = self._failed = self._finished = False
        self._first: dict[str, Any] = {}
        self._visible: list[dict[str, Any]] = []
        self._work: list[dict[str, Any]] = [{}]
        self._last: dict[str, Any] = {}
        """The response of the last turn that ended."""
        self._terminal: tuple[str, bytes, JSONObject] | None = None
        """Its terminal event."""
        self._reset()

    def _reset(self) -> None:
        self._id = ""
        self._indexes: dict[int, int | None] = {}
        """The client's index of each of the turn's items; None: hidden."""
        self._hidden_ids: set[str] = set()
        self._items: dict[int, dict[str, Any]] = {}
        """Items that are done, by their index."""
        self._output: list[dict[str, Any]] = []
        self._status = ""
        self._tail: list[bytes] = []
        """What came after the turn's terminal event, while it may be the answer's."""
        self._ended = False

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
            members = _members(data)
        except (NotJSON, Unreadable):
            return raw
        kind = members.text("type") or name
        if kind in PREAMBLE:
            return self._preamble(raw, name, members)
        if kind in TERMINAL:
            self._terminal = name, raw, members
            self._take(as_dict(members.get("response")), kind.removeprefix("response."))
            return b""
        if kind == "error":
            self._failed = True
        elif kind == "response.output_item.added":
            self._open(as_count(members.get("output_index")), as_dict(members.get("item")))
        elif kind == "response.output_item.done":
            index, item = as_count(members.get("output_index")), as_dict(members.get("item"))
            self._items[index] = item
            if index not in self._indexes:
                self._open(index, item)
        return self._numbered(raw, name, members)

    def _trailing(self, raw: bytes, event: Any) -> bytes:
        """What comes after the terminal event: nothing that a client needs, but some servers end with `[DONE]`."""
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

    def _open(self, index: int, item: dict[str, Any]) -> None:
        if _is_hidden(item, self.injected):
            self._indexes[index] = None
            self._hidden_ids.add(as_text(item.get("id")))
            self._spliced = True
            return
        told = self._next_index if self._spliced else index
        self._indexes[index] = told
        self._next_index = told + 1

    def _numbered(self, raw: bytes, name: str, members: JSONObject) -> bytes:
        """The event with the client's numbers and without our tools; nothing of a hidden item."""
        changes = self._told_response(members)
        if not self._spliced:
            self._pass(raw)
            return sse.event(name, members.replaced(changes)) if changes else raw
        if "output_index" in members:
            index = as_count(members.get("output_index"))
            if index not in self._indexes:
                self._open(index, {})
            if (told := self._indexes[index]) is None:
                return b""
            changes["output_index"] = b"%d" % told
        elif members.text("item_id") in self._hidden_ids:
            return b""
        if "sequence_number" in members:
            changes["sequence_number"] = b"%d" % self._next_number(members)
        return sse.event(name, members.replaced(changes)) if changes else raw

    def _next_number(self, members: JSONObject) -> int:
        if self._unread is not None:
            _, data = sse.parse(self._unread)
            self._unread = None
            self._sequence = as_count(_members(data).get("sequence_number"))
        own = as_count(members.get("sequence_number"))
        self._sequence = own if self._sequence is None else self._sequence + 1
        return self._sequence

    def _told_response(self, members: JSONObject) -> dict[str, bytes]:
        """The change of an event's response, where that repeats a tool of ours."""
        raw = members.raw("response")
        if not raw.startswith(b"{"):
            return {}
        response = JSONObject(raw)
        tools = response.get("tools")
        own = self._own(tools)
        return {} if own == tools else {"response": response.replaced({"tools": encode(own)})}

    def _own(self, tools: Any) -> Any:
        """The tools that are the client's, also inside namespaces."""
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

    def end_turn(self) -> TurnEnd:
        visible = [item for item in self._output if not _is_hidden(item, self.injected)]
        self._spliced = self._spliced or len(visible) < len(self._output)
        self._visible += visible
        answered = {_call_id(item) for item in self._output if as_text(item.get("type")).endswith("_output")}
        unanswered = [item for item in self._output if not _call_id(item) or _call_id(item) not in answered]
        calls, client_calls = divided(unanswered, self._maybe_call, _maybe_client_call)
        whole = self._status == "completed" and not self._failed
        return TurnEnd(calls if whole else [], client_calls, self._output, self._id)

    def finish(self) -> bytes:
        self._finished = self._ended = True
        if self._terminal is None or self._failed:
            return b""
        name, raw, members = self._terminal
        if not self._spliced:
            changes = self._told_response(members)
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

    def _merged(self) -> dict[str, Any]:
        told = {name: value for name, value in self._last.items() if name not in FIRST_MEMBERS or name in self._first}
        told |= {name: self._first[name] for name in FIRST_MEMBERS if name in self._first}
        told = self._without_tools(told) | {"output": self._visible}
        return told | ({"usage": usage} if (usage := self._usage()) else {})

    def _without_tools(self, response: dict[str, Any]) -> dict[str, Any]:
        own = self._own(response.get("tools"))
        return response if own == response.get("tools") else response | {"tools": own}

    def _usage(self) -> dict[str, Any]:
        """The usage that the client is told: the work of all turns, in the conversation of the first."""
        told = told_usage(self._work, CONVERSATION, "output_tokens")
        if "total_tokens" in told:
            told["total_tokens"] = as_count(told.get("input_tokens")) + as_count(told.get("output_tokens"))
        return told

    def _maybe_call(self, item: dict[str, Any], anchor: str | None) -> Call | None:
        if not _is_hidden(item, self.injected):
            return None
        told = arguments(as_text(item.get("arguments")))
        return Call(_call_id(item), as_text(item.get("name")), told, item, anchor)


def _is_hidden(item: dict[str, Any], injected: Collection[str]) -> bool:
    return item.get("type") == "function_call" and as_text(item.get("name")) in injected


def _call_id(item: dict[str, Any]) -> str:
    return as_text(item.get("call_id"))


def _maybe_client_call(item: dict[str, Any]) -> str | None:
    """The id of a call that the client has to answer. Of an unknown kind, it is one that can be answered."""
    kind = as_text(item.get("type"))
    if kind == "mcp_approval_request":
        return as_text(item.get("id"))
    return _call_id(item) if kind in CLIENT_CALLS or (_call_id(item) and kind.endswith("_call")) else None


def _members(data: bytes | None) -> JSONObject:
    # A line end in JSON stands between tokens; in an event it would end a line of data.
    return JSONObject((data or b"").replace(b"\n", b" "))
