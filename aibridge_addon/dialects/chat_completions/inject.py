"""Injected tools in Chat Completions requests (API reference, "Function calling")."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from aibridge_addon.dialects.base import as_dict, as_list, as_text
from aibridge_addon.dialects.chat_completions.splice import ChatSplice
from aibridge_addon.dialects.turns import (
    NO_OUTPUT,
    InjectedTool,
    Injection,
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


class ChatInjection(Injection):
    def may_inject(self, body: JSONObject) -> bool:
        """Not with no tools on purpose, a fixed form of answer, several choices."""
        choice = body.get("tool_choice")
        return (
            wants_tools(body)
            and choice != "none"
            and as_dict(choice).get("type") != "allowed_tools"
            and "functions" not in body
            and body.get("prediction") is None  # the API does not take both
            and body.get("n") in (None, 1)
            and 1 not in (body.get("max_tokens"), body.get("max_completion_tokens"))
            and as_dict(body.get("response_format")).get("type") in (None, "text")
        )

    def own_names(self, body: JSONObject) -> set[str]:
        return set(map(_name, as_list(body.get("tools"))))

    def inject(self, body: JSONObject, tools: Sequence[InjectedTool]) -> bytes | None:
        offered = self.offered(body, tools)
        return body.replaced({"tools": body.extended("tools", [_tool(tool) for tool in offered])}) if offered else None

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
        said = [*end.content, *map(tool_message, results)]
        changed = {"messages": body.extended("messages", [_encode(message) for message in said])}
        return body.replaced(changed | _choice(body, last, first or body, injected))

    def splice(self, injected: Collection[str]) -> ChatSplice:
        return ChatSplice(injected)


def _choice(body: JSONObject, last: bool, first: JSONObject, injected: Collection[str]) -> dict[str, bytes]:
    """What changes about the tools that the next turn may use."""
    if not last:
        choice = body.get("tool_choice")
        return {"tool_choice": b'"auto"'} if choice == "required" or isinstance(choice, dict) else {}
    own = own_tools(first, injected, _name)
    if not own:
        # The history has calls of our tools, so they stay defined, but cannot be used.
        return {"tool_choice": b'"none"'}
    changed = {"tools": array(own)}
    return changed | ({"tool_choice": first.raw("tool_choice")} if "tool_choice" in first else {})


def _name(tool: object) -> str:
    members = as_dict(tool)
    return as_text((as_dict(members.get("function")) or as_dict(members.get("custom"))).get("name"))


def _tool(tool: InjectedTool) -> bytes:
    parameters = object_schema(tool.input_schema)
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return _encode({"type": "function", "function": function})


def tool_message(result: Result) -> dict[str, Any]:
    """A `tool` message. It can hold nothing but text, and has no flag for errors."""
    texts = [part.text if isinstance(part, Text) else part.note for part in result.parts]
    text = "\n".join(texts) or NO_OUTPUT
    return {
        "role": "tool",
        "tool_call_id": result.call.id,
        "content": f"Error: {text}" if result.is_error and not text.startswith("Error") else text,
    }
