"""Injected tools in Chat Completions requests (API reference, "Function calling")."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from aibridge_addon.dialects import openai
from aibridge_addon.dialects.chat_completions.splice import ChatSplice
from aibridge_addon.dialects.turns import (
    NO_OUTPUT,
    FollowUp,
    InjectedTool,
    Injection,
    Result,
    Text,
    wants_tools,
)
from aibridge_addon.wire.json_object import JSONObject, array, encode
from aibridge_addon.wire.json_values import as_dict, as_text

MAX_DESCRIPTION = 1024
"""Characters. The API refuses longer descriptions of tools with `string_above_max_length`."""
CUT = " [cut]"


class ChatInjection(Injection):
    MAX_TOOLS = openai.MAX_TOOLS

    def may_inject(self, body: JSONObject) -> bool:
        """Refuse requests that exclude tools, demand a fixed output format or ask for several choices."""
        choice = body.get("tool_choice")
        return (
            wants_tools(body)
            and choice != "none"
            and as_dict(choice).get("type") != "allowed_tools"
            and "functions" not in body
            and body.get("prediction") is None  # the API refuses both together
            and body.get("n") in (None, 1)
            and 1 not in (body.get("max_tokens"), body.get("max_completion_tokens"))
            and as_dict(body.get("response_format")).get("type") in (None, "text")
        )

    def demands_call(self, body: JSONObject) -> bool:
        return openai.demands_call(body)

    def tool_name(self, tool: object) -> str:
        members = as_dict(tool)
        return as_text((as_dict(members.get("function")) or as_dict(members.get("custom"))).get("name"))

    def definition(self, tool: InjectedTool) -> bytes:
        return _tool(tool)

    def inject(self, body: JSONObject, offered: Sequence[InjectedTool]) -> bytes:
        return body.replaced({"tools": body.extended("tools", [_tool(tool) for tool in offered])})

    def follow_up(self, turn: FollowUp) -> bytes:
        said = [*turn.end.content, *map(tool_message, turn.results)]
        changed = {"messages": turn.body.extended("messages", [encode(message) for message in said])}
        return turn.body.replaced(changed | self._choice(turn))

    def _choice(self, turn: FollowUp) -> dict[str, bytes]:
        """Return the changes to the tools and the `tool_choice` of the next turn."""
        if not turn.last:
            return {}
        if own := self.own_tools(turn.first, turn.injected):
            return {"tools": array(own)}
        # The history contains calls of injected tools, so these must stay defined. `none` forbids new calls.
        return {"tool_choice": b'"none"'}

    def splice(self, injected: Collection[str], own: Collection[str] = ()) -> ChatSplice:
        return ChatSplice(injected, own)


def _tool(tool: InjectedTool) -> bytes:
    description = tool.description
    if len(description) > MAX_DESCRIPTION:
        description = description[: MAX_DESCRIPTION - len(CUT)] + CUT
    function = {"name": tool.name, "description": description, "parameters": tool.input_schema}
    return encode({"type": "function", "function": function})


def tool_message(result: Result) -> dict[str, Any]:
    """Return a `tool` message. Its content is always text, and it has no error flag."""
    texts = [part.text if isinstance(part, Text) else part.note for part in result.parts]
    text = "\n".join(texts) or NO_OUTPUT
    return {
        "role": "tool",
        "tool_call_id": result.call.id,
        "content": f"Error: {text}" if result.is_error and not text.startswith("Error") else text,
    }
