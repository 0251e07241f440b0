"""Injected tools in Responses requests (API reference, "Function calling", "Conversation state")."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from aibridge_addon.dialects import openai
from aibridge_addon.dialects.responses.splice import ResponsesSplice
from aibridge_addon.dialects.turns import (
    IMAGE_TYPES,
    NO_OUTPUT,
    FollowUp,
    InjectedTool,
    Injection,
    Part,
    Result,
    Text,
    TurnEnd,
    members_of,
    wants_tools,
)
from aibridge_addon.wire.json_object import JSONObject, array, encode
from aibridge_addon.wire.json_values import as_dict, as_list, as_text

PROBE_TOKENS = 16
"""Tokens. The smallest `max_output_tokens` that the API accepts; a request with it is a probe."""


class ResponsesInjection(Injection):
    MAX_TOOLS = openai.MAX_TOOLS

    def may_inject(self, body: JSONObject) -> bool:
        """Refuse requests that exclude tools or demand a fixed output format, background requests and probes."""
        choice, most = body.get("tool_choice"), body.get("max_output_tokens")
        text_format = as_dict(as_dict(body.get("text")).get("format")).get("type")
        last_item = as_dict(next(body.elements_backwards("input"), None))
        elsewhere = _additional_tools(body.elements("input", 1))
        return (
            wants_tools(body)
            and (elsewhere is None or wants_tools(elsewhere))
            and (body.get("prompt") is None or "tools" in body)  # `tools` would replace the stored prompt's own
            and choice != "none"
            and as_dict(choice).get("type") != "allowed_tools"
            and body.get("background") is not True
            and (body.get("generate") is not False or _in_socket(body))
            and text_format in (None, "text")
            and not (isinstance(most, int) and most <= PROBE_TOKENS)
            and last_item.get("type") != "compaction_trigger"
        )

    def demands_call(self, body: JSONObject) -> bool:
        return openai.demands_call(body)

    def own_definitions(self, body: JSONObject) -> list[Any]:
        elsewhere = _additional_tools(body.elements("input", 1))
        return [*as_list(body.get("tools")), *(as_list(elsewhere.get("tools")) if elsewhere else ())]

    def own_names(self, body: JSONObject) -> set[str]:
        return _names(self.own_definitions(body))

    def definition(self, tool: InjectedTool) -> bytes:
        return _tool(tool)

    def inject(self, body: JSONObject, offered: Sequence[InjectedTool]) -> bytes:
        tools = [_tool(tool) for tool in offered]
        items = body.elements("input")
        elsewhere = _additional_tools(items)
        if elsewhere is None:
            return body.replaced({"tools": body.extended("tools", tools)})
        items[0] = elsewhere.replaced({"tools": elsewhere.extended("tools", tools)})
        return body.replaced({"input": array(items)})

    def without(self, body: JSONObject, names: Collection[str]) -> bytes:
        items = body.elements("input")
        elsewhere = _additional_tools(items)
        if elsewhere is None:
            return super().without(body, names)
        items[0] = elsewhere.replaced({"tools": array(self._tools_without(elsewhere, names))})
        return body.replaced({"input": array(items)})

    def follow_up(self, turn: FollowUp) -> bytes:
        body, end = turn.body, turn.end
        outputs = [encode(function_call_output(result)) for result in turn.results]
        stored = body.get("store") is not False
        has_answer = stored or _in_socket(body)
        elsewhere: JSONObject | None = None
        if body.get("conversation") is not None:  # the server has the history
            changed = {"input": array(outputs)}
        elif body.get("previous_response_id") is not None and has_answer:
            changed = {"previous_response_id": encode(end.response_id), "input": array(outputs)}
        else:
            items = _as_items(body).elements("input")
            elsewhere = self._without(_additional_tools(items), turn.injected) if turn.last else None
            if elsewhere is not None:
                items[0] = elsewhere.replaced({})
            changed = {"input": array([*items, *_said(end, stored=stored), *outputs])}
        return body.replaced(changed | self._choice(turn, own_elsewhere=elsewhere is not None))

    def _choice(self, turn: FollowUp, *, own_elsewhere: bool) -> dict[str, bytes]:
        """Return the changes to the tools and the `tool_choice` of the next turn."""
        is_met = openai.demands_call(turn.body) and any(map(_is_hosted_call, turn.end.content))
        changed = {"tool_choice": b'"auto"'} if is_met else {}
        if not turn.last:
            return changed
        own = self.own_tools(turn.first, turn.injected)
        if not own and not own_elsewhere:
            return {"tool_choice": b'"none"'}
        return ({"tools": array(own)} if own else {}) | changed

    def _without(self, holder: JSONObject | None, injected: Collection[str]) -> JSONObject | None:
        """Return a request or item with the client's tools only, or None if there are none."""
        if holder is None or not (own := self.own_tools(holder, injected)):
            return None
        return JSONObject(holder.replaced({"tools": array(own)}))

    def splice(self, injected: Collection[str], own: Collection[str] = ()) -> ResponsesSplice:
        return ResponsesSplice(injected, own)


def _additional_tools(items: Sequence[bytes]) -> JSONObject | None:
    """Return the first item if it has the tools. Codex sends them there for its default model."""
    first = members_of(items[0]) if items else {}
    return JSONObject(items[0]) if first.get("type") == "additional_tools" else None


def brings_tools(body: JSONObject) -> bool:
    """Return whether a request has tools as a member or, as Codex's requests, as the first item of its input."""
    return "tools" in body or brings_tools_as_item(body)


def brings_tools_as_item(body: JSONObject) -> bool:
    return _additional_tools(body.elements("input", 1)) is not None


def conversation(
    first: JSONObject, hidden: Sequence[tuple[TurnEnd, Sequence[Result]]], end: TurnEnd
) -> Iterator[bytes]:
    """Yield the items that the turns of an answer add to a conversation which is not stored.

    Args:
        first: The request of the first turn.
        hidden: The turns whose calls were all run, each with their results.
        end: The last turn.
    """
    yield from _as_items(first).elements("input")
    for turn, results in hidden:
        yield from _said(turn, stored=False)
        yield from (encode(function_call_output(result)) for result in results)
    if not hidden or hidden[-1][0] is not end:
        yield from _said(end, stored=False)


def with_conversation(request: JSONObject, before: Sequence[bytes]) -> JSONObject:
    """Return a request with the items of the conversation before it, in place of the name of its last answer."""
    items = [*before, *_as_items(request).elements("input")]
    return JSONObject(request.replaced({"input": array(items), "previous_response_id": b"null"}))


def _said(end: TurnEnd, *, stored: bool) -> list[bytes]:
    """Return the items of a turn as a request contains them."""
    return [encode(item) for item in end.content if stored or not _is_reference(item)]


def _in_socket(body: JSONObject) -> bool:
    """Return whether a request is a message of a WebSocket.

    The connection has its last answer even if that is not stored, and no earlier one (guide "WebSocket mode"). Without
    an answer (`generate: false`), a client prepares its next request, which needs the same tools.
    """
    return body.text("type") == "response.create"


def _names(tools: list[Any]) -> set[str]:
    """Return the names of tools, including those inside namespaces."""
    members = [as_dict(tool) for tool in tools]
    inner = [name for tool in members for name in _names(as_list(tool.get("tools")))]
    return {*inner, *(as_text(tool.get("name")) for tool in members)}


def _tool(tool: InjectedTool) -> bytes:
    return encode(
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
            "strict": False,
        }
    )


def _as_items(body: JSONObject) -> JSONObject:
    """Return the request with an `input` that is a string replaced by the equivalent message."""
    text = body.text("input")
    if text is None:
        return body
    message = {"type": "message", "role": "user", "content": text}
    return JSONObject(body.replaced({"input": encode([message])}))


def _is_hosted_call(item: dict[str, Any]) -> bool:
    """Return whether the provider has run this call. A turn that is followed by another has no calls of the client."""
    return as_text(item.get("type")).endswith("_call") and item.get("type") != "function_call"


def _is_reference(item: dict[str, Any]) -> bool:
    """Return whether an item refers to stored content. With `store: false` the server does not have it."""
    return item.get("type") == "reasoning" and not item.get("encrypted_content")


def function_call_output(result: Result) -> dict[str, Any]:
    """Return a `function_call_output` item. Its output is a string, or a list of parts if it is not only text."""
    parts = list(result.parts or [Text(NO_OUTPUT)])
    if result.is_error and not (isinstance(parts[0], Text) and parts[0].text.startswith("Error")):
        parts[:1] = [Text(f"Error: {parts[0].text}")] if isinstance(parts[0], Text) else [Text("Error:"), parts[0]]
    texts = [part.text for part in parts if isinstance(part, Text)]
    output = "\n".join(texts) if len(texts) == len(parts) else [_part(part) for part in parts]
    item: dict[str, Any] = {"type": "function_call_output", "call_id": result.call.id, "output": output}
    caller = result.call.item.get("caller")
    return item | ({"caller": caller} if caller is not None else {})


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "input_text", "text": part.text}
    url = f"data:{part.kind};base64,{part.data}"
    if part.kind in IMAGE_TYPES:
        return {"type": "input_image", "image_url": url}
    if part.kind == "application/pdf":
        return {"type": "input_file", "filename": "file.pdf", "file_data": url}
    return {"type": "input_text", "text": part.note}
