"""Injected tools in Converse requests (Amazon Bedrock API reference, "Converse"; user guide, "Call a tool with …").

Tools are in `toolConfig`. It has no choice that forbids calls, and a history with calls is refused without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aibridge_addon.dialects.bedrock.converse_splice import ConverseSplice
from aibridge_addon.dialects.turns import (
    IMAGE_TYPES,
    NO_OUTPUT,
    FollowUp,
    InjectedTool,
    Injection,
    Media,
    Part,
    Result,
    Text,
    members_of,
    wants_tools,
)
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, array, encode
from aibridge_addon.wire.json_values import as_dict, as_text

FORCED = frozenset(("any", "tool"))
AUTO = b'{"auto":{}}'
WITH_STATUS = ("anthropic.", "amazon.nova")
"""Parts of the ids of models that take `toolResult.status` and media in results. Others refuse the request for them."""
NO_TOOLS = (
    *("anthropic.claude-v2", "anthropic.claude-instant", "amazon.titan", "ai21.j2", "ai21.jamba-instruct"),
    *("cohere.command-text", "cohere.command-light", "meta.llama2", "meta.llama3-8b", "meta.llama3-70b"),
    *("mistral.mistral-7b", "mistral.mixtral", "deepseek.r1", ":prompt/"),
)
"""Parts of the ids of models that take no tools, and of prompts, which have their own (user guide, "Supported models
and model features")."""
NOT_STREAMED = ("meta.llama",)
"""Parts of the ids of models that take tools only in requests for a blocking answer."""
SIMPLE_SCHEMAS = ("amazon.nova",)
"""Parts of the ids of models whose schemas have only `ROOT` at their root, and no references."""
ROOT = ("type", "properties", "required")
DOCUMENTS: Mapping[str, str] = MappingProxyType({"application/pdf": "pdf"})
"""Formats of documents, by media type."""


class ConverseInjection(Injection):
    def __init__(self, *, streaming: bool, model: str = "") -> None:
        """`model` is the id in the path. Empty: not known."""
        self._streaming = streaming
        self._model = model

    def for_model(self, model: str) -> ConverseInjection:
        return ConverseInjection(streaming=self._streaming, model=model)

    @property
    def form(self) -> str:
        return f"{super().form} with simple schemas" if self._is(SIMPLE_SCHEMAS) else super().form

    def may_inject(self, body: JSONObject) -> bool:
        """Refuse requests to models without tools, requests that demand a fixed output format, and probes."""
        config = _config(body)
        return (
            config is not None
            and not self._is(NO_TOOLS)
            and not (self._streaming and self._is(NOT_STREAMED))
            and as_dict(body.get("inferenceConfig")).get("maxTokens") != 1
            and as_dict(body.get("outputConfig")).get("textFormat") is None
            and "promptVariables" not in body
        )

    def offered(self, body: JSONObject, tools: Sequence[InjectedTool]) -> list[InjectedTool]:
        if self._is(SIMPLE_SCHEMAS):
            tools = [tool for tool in tools if b'"$ref":' not in encode(tool.input_schema)]
        return super().offered(body, tools)

    def demands_call(self, body: JSONObject) -> bool:
        config = _config(body)
        return config is not None and _demands_call(config)

    def can_meet_demand(self, body: JSONObject) -> bool:
        return any(self.own_names(body))

    def _is(self, parts: Sequence[str]) -> bool:
        return any(part in self._model for part in parts)

    def own_definitions(self, body: JSONObject) -> Sequence[Any]:
        config = _config(body)
        return [] if config is None else list(map(members_of, config.elements("tools")))

    def tool_name(self, tool: object) -> str:
        members = as_dict(tool)
        return as_text((as_dict(members.get("toolSpec")) or as_dict(members.get("systemTool"))).get("name"))

    def definition(self, tool: InjectedTool) -> bytes:
        schema = tool.input_schema
        if self._is(SIMPLE_SCHEMAS):
            schema = {name: schema[name] for name in ROOT if name in schema}
        spec = {"name": tool.name, "description": tool.description or tool.name, "inputSchema": {"json": schema}}
        return encode({"toolSpec": spec})

    def inject(self, body: JSONObject, offered: Sequence[InjectedTool]) -> bytes:
        config = _config(body) or JSONObject(b"{}")
        # Injected tools come first, so that a client's cache point still covers everything before it.
        tools = config.extended("tools", [], before=[self.definition(tool) for tool in offered])
        return body.replaced({"toolConfig": config.replaced({"tools": tools})})

    def without(self, body: JSONObject, names: Collection[str]) -> bytes:
        config = _config(body) or JSONObject(b"{}")
        left = self._tools_without(config, names)
        if not left:  # an empty configuration is refused
            return body.without(("toolConfig",)).replaced({})
        return body.replaced({"toolConfig": config.replaced({"tools": array(left)})})

    def follow_up(self, turn: FollowUp) -> bytes:
        said = [block for block in turn.end.content if not (_is_blank(block) or _is_unsigned(block))]
        answers = [self.tool_result(result) for result in turn.results]
        messages = [{"role": "assistant", "content": said}, {"role": "user", "content": answers}]
        changes = {"messages": turn.body.extended("messages", list(map(encode, messages)))}
        return turn.body.replaced(changes | self._tools(turn))

    def _tools(self, turn: FollowUp) -> dict[str, bytes]:
        """Return the changes to the tools of the next turn."""
        config = _config(turn.body)
        if config is None:
            return {}
        changes: dict[str, bytes] = {}
        if _demands_call(config) and any(map(_is_server_call, turn.end.content)):
            changes = {"toolChoice": AUTO}
        first = _config(turn.first) if turn.last else None
        own = self.own_tools(first, turn.injected) if first is not None else []
        if any(self.tool_name(members_of(tool)) for tool in own):
            changes["tools"] = array(own)
        # A history with calls requires tools, so injected ones stay defined if there are no others.
        return {"toolConfig": config.replaced(changes)} if changes else {}

    def tool_result(self, result: Result) -> dict[str, Any]:
        """Return a `toolResult` block. If it reports an error, only text is allowed."""
        parts = [part for part in result.parts if not isinstance(part, Text) or part.text.strip()]
        shown = [*enumerate(parts)] or [(0, Text(NO_OUTPUT))]
        as_text_only = result.is_error or not self._has_status
        content = [_note(part) if as_text_only else _part(part, place) for place, part in shown]
        block = {"toolUseId": result.call.id, "content": content}
        if result.is_error and self._has_status:
            block["status"] = "error"
        elif result.is_error and not content[0]["text"].startswith("Error"):
            content[0] = {"text": f"Error: {content[0]['text']}"}
        return {"toolResult": block}

    @property
    def _has_status(self) -> bool:
        return self._is(WITH_STATUS)

    def splice(self, injected: Collection[str], own: Collection[str] = ()) -> ConverseSplice:
        return ConverseSplice(injected, own)


def _config(body: JSONObject) -> JSONObject | None:
    """Return the request's `toolConfig`, empty if it has none. None: no tool may be added to it."""
    if body.get("toolConfig") is None:
        return JSONObject(b"{}") if body.raw("toolConfig") == b"null" else None
    try:
        config = JSONObject(body.raw("toolConfig"))
    except (NotJSON, Unreadable):
        return None
    return config if wants_tools(config) and config.verbatim else None


def _demands_call(config: JSONObject) -> bool:
    return not as_dict(config.get("toolChoice")).keys().isdisjoint(FORCED)


def _is_server_call(block: dict[str, Any]) -> bool:
    return as_dict(block.get("toolUse")).get("type") == "server_tool_use"


def _is_blank(block: dict[str, Any]) -> bool:
    """Return whether a block is blank text. Models produce such blocks, but requests with them are refused."""
    return block.keys() == {"text"} and not as_text(block["text"]).strip()


def _is_unsigned(block: dict[str, Any]) -> bool:
    """Return whether a block is reasoning without a signature. The models that write it do not take it back."""
    text = as_dict(block.get("reasoningContent")).get("reasoningText")
    return text is not None and not as_dict(text).get("signature")


def _part(part: Part, place: int) -> dict[str, Any]:
    if isinstance(part, Media):
        source = {"bytes": part.data}
        if part.kind in IMAGE_TYPES:
            return {"image": {"format": part.kind.removeprefix("image/"), "source": source}}
        if part.kind in DOCUMENTS:
            # Names may have letters, digits, blanks, hyphens and brackets only, and must differ.
            return {"document": {"format": DOCUMENTS[part.kind], "name": f"file {place + 1}", "source": source}}
    return _note(part)


def _note(part: Part) -> dict[str, Any]:
    return {"text": part.text if isinstance(part, Text) else part.note}
