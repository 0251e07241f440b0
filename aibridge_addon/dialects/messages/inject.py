"""Injected tools in Anthropic Messages requests (API reference, "Tool use"; beta "message threads")."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from aibridge_addon.dialects.messages.splice import SERVER_CALLS, MessagesSplice
from aibridge_addon.dialects.turns import (
    IMAGE_TYPES,
    NO_OUTPUT,
    FollowUp,
    InjectedTool,
    Injection,
    Part,
    Result,
    Text,
    wants_tools,
)
from aibridge_addon.wire.json_object import JSONObject, array, encode
from aibridge_addon.wire.json_values import as_dict, as_text

FORCED = frozenset(("any", "tool"))
CREATE_ONLY = ("system", "tools")
"""Members that a thread keeps from its first request. Later requests with them are refused."""


class MessagesInjection(Injection):
    def may_inject(self, body: JSONObject) -> bool:
        """Refuse requests that exclude tools or demand a fixed output format, probes and summaries."""
        return (
            wants_tools(body)
            and as_dict(body.get("tool_choice")).get("type") != "none"
            and body.get("max_tokens") != 1
            and as_dict(body.get("output_config")).get("format") is None
            and body.get("output_format") is None
            and body.get("compaction") is None
        )

    def demands_call(self, body: JSONObject) -> bool:
        return as_text(as_dict(body.get("tool_choice")).get("type")) in FORCED

    def can_meet_demand(self, body: JSONObject) -> bool:
        return super().can_meet_demand(body) or _continues_thread(body)

    def definition(self, tool: InjectedTool) -> bytes:
        return _tool(tool)

    def inject(self, body: JSONObject, offered: Sequence[InjectedTool]) -> bytes:
        if _continues_thread(body):  # the thread keeps the tools of its first request, including injected ones
            return body.replaced({})
        # Injected tools come first, so that a client's cache breakpoint still covers everything before it.
        return body.replaced({"tools": body.extended("tools", [], before=[_tool(tool) for tool in offered])})

    def follow_up(self, turn: FollowUp) -> bytes:
        body, end = turn.body, turn.end
        answer = {"role": "user", "content": [tool_result(result) for result in turn.results]}
        in_thread = body.get("thread") is not None
        if in_thread:  # the server has the history
            body = body.without(CREATE_ONLY)
            thread = {"type": "continue", "previous_message_id": end.response_id}
            changed = {"thread": encode(thread), "messages": encode([answer])}
        else:
            said = {"role": "assistant", "content": [block for block in end.content if not _is_blank(block)]}
            changed = {"messages": body.extended("messages", [encode(said), encode(answer)])}
        if end.container:
            changed["container"] = encode(_container(body.get("container"), end.container))
        return body.replaced(changed | self._choice(turn, in_thread=in_thread))

    def _choice(self, turn: FollowUp, *, in_thread: bool) -> dict[str, bytes]:
        """Return the changes to the tools and the `tool_choice` of the next turn."""
        choice, demands = as_dict(turn.body.get("tool_choice")), self.demands_call(turn.body)
        changed: dict[str, bytes] = {}
        if demands and any(block.get("type") in SERVER_CALLS for block in turn.end.content):
            auto = {name: value for name, value in choice.items() if name != "name"} | {"type": "auto"}
            changed, demands = {"tool_choice": encode(auto)}, False
        if not turn.last or (in_thread and demands):
            return changed
        own = self.own_tools(turn.first, turn.injected) if not in_thread else []  # a thread keeps its first tools
        if own:
            return {"tools": array(own)} | changed
        # A history with calls requires tools, so the injected ones stay defined. `none` forbids new calls.
        return {"tool_choice": b'{"type":"none"}'}

    def splice(self, injected: Collection[str], own: Collection[str] = ()) -> MessagesSplice:
        return MessagesSplice(injected, own)


def _continues_thread(body: JSONObject) -> bool:
    return as_dict(body.get("thread")).get("type") == "continue"


def _tool(tool: InjectedTool) -> bytes:
    return encode(
        {
            "name": tool.name,
            "description": tool.description,
            "type": "custom",
            "input_schema": tool.input_schema,
        }
    )


def _is_blank(block: dict[str, Any]) -> bool:
    """Return whether a block is blank text. Models produce such blocks, but requests with them are refused."""
    return block.get("type") == "text" and not as_text(block.get("text")).strip()


def _container(requested: object, used: str) -> object:
    """Return the `container` for the next turn: server tools require the one in which they ran."""
    return requested | {"id": used} if isinstance(requested, dict) else used


def tool_result(result: Result) -> dict[str, Any]:
    """Return a `tool_result` block. If it reports an error, only text is allowed."""
    parts = [part for part in result.parts if not isinstance(part, Text) or part.text.strip()]
    content = [_note(part) if result.is_error else _part(part) for part in parts or [Text(NO_OUTPUT)]]
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": result.call.id, "content": content}
    return block | {"is_error": True} if result.is_error else block


def _part(part: Part) -> dict[str, Any]:
    if not isinstance(part, Text):
        source = {"type": "base64", "media_type": part.kind, "data": part.data}
        if part.kind in IMAGE_TYPES:
            return {"type": "image", "source": source}
        if part.kind == "application/pdf":
            return {"type": "document", "source": source}
    return _note(part)


def _note(part: Part) -> dict[str, Any]:
    return {"type": "text", "text": part.text if isinstance(part, Text) else part.note}
