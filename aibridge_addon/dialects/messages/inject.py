"""Injected tools in Anthropic Messages requests (API reference, "Tool use"; beta "message threads")."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from aibridge_addon.dialects.base import as_dict, as_list, as_text
from aibridge_addon.dialects.messages.splice import MessagesSplice
from aibridge_addon.dialects.turns import (
    IMAGE_TYPES,
    NO_OUTPUT,
    InjectedTool,
    Injection,
    Part,
    Result,
    Text,
    TurnEnd,
    array,
    object_schema,
    own_tools,
    wants_tools,
)
from aibridge_addon.wire.json_object import JSONObject

_encode = msgspec.json.encode

FORCED = frozenset(("any", "tool"))
CREATE_ONLY = ("system", "tools")
"""What a thread keeps from its first request; a later one that has it is refused."""


class MessagesInjection(Injection):
    def may_inject(self, body: JSONObject) -> bool:
        """Not with no tools on purpose, a fixed form of answer, a probe, a summary."""
        return (
            wants_tools(body)
            and as_dict(body.get("tool_choice")).get("type") != "none"
            and body.get("max_tokens") != 1
            and as_dict(body.get("output_config")).get("format") is None
            and body.get("output_format") is None
            and body.get("compaction") is None
        )

    def own_names(self, body: JSONObject) -> set[str]:
        return set(map(_name, as_list(body.get("tools"))))

    def inject(self, body: JSONObject, tools: Sequence[InjectedTool]) -> bytes | None:
        offered = self.offered(body, tools)
        if not offered:
            return None
        if _continues_thread(body):  # it has the tools of its first request, ours among them
            return body.replaced({})
        # In front, so that a client's cache breakpoint keeps meaning "up to here".
        return body.replaced({"tools": body.extended("tools", [], before=[_tool(tool) for tool in offered])})

    def follow_up(
        self,
        body: JSONObject,
        end: TurnEnd,
        results: Sequence[Result],
        *,
        last: bool,
        first: JSONObject | None = None,
        injected: Collection[str] = (),
    ) -> bytes:
        answer = {"role": "user", "content": [tool_result(result) for result in results]}
        in_thread = body.get("thread") is not None
        if in_thread:  # the history is the server's
            body = body.without(CREATE_ONLY)
            thread = {"type": "continue", "previous_message_id": end.response_id}
            changed = {"thread": _encode(thread), "messages": _encode([answer])}
        else:
            said = {"role": "assistant", "content": [block for block in end.content if not _is_blank(block)]}
            changed = {"messages": body.extended("messages", [_encode(said), _encode(answer)])}
        if end.container:
            changed["container"] = _encode(_container(body.get("container"), end.container))
        return body.replaced(changed | _choice(body, last, None if in_thread else first or body, injected))

    def splice(self, injected: Collection[str]) -> MessagesSplice:
        return MessagesSplice(injected)


def _continues_thread(body: JSONObject) -> bool:
    return as_dict(body.get("thread")).get("type") == "continue"


def _choice(body: JSONObject, last: bool, first: JSONObject | None, injected: Collection[str]) -> dict[str, bytes]:
    """What changes about the tools that the next turn may use."""
    choice = as_dict(body.get("tool_choice"))
    if not last:
        if choice.get("type") not in FORCED:
            return {}
        return {"tool_choice": _encode({name: v for name, v in choice.items() if name != "name"} | {"type": "auto"})}
    own = own_tools(first, injected) if first is not None else []
    if not own or first is None:
        # A history with calls needs tools, so where all of them are ours they stay, but cannot be used.
        return {"tool_choice": b'{"type":"none"}'}
    changed = {"tools": array(own)}
    return changed | ({"tool_choice": first.raw("tool_choice")} if "tool_choice" in first else {})


def _name(tool: object) -> str:
    return as_text(as_dict(tool).get("name"))


def _tool(tool: InjectedTool) -> bytes:
    return _encode(
        {
            "name": tool.name,
            "description": tool.description,
            "type": "custom",
            "input_schema": object_schema(tool.input_schema),
        }
    )


def _is_blank(block: dict[str, Any]) -> bool:
    """Models say it, but no request may hold it."""
    return block.get("type") == "text" and not as_text(block.get("text")).strip()


def _container(asked: object, used: str) -> object:
    """Server tools refuse to go on outside the container that they ran in."""
    return asked | {"id": used} if isinstance(asked, dict) else used


def tool_result(result: Result) -> dict[str, Any]:
    """A `tool_result` block. One of an error may hold nothing but text."""
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
