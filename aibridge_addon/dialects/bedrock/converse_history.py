"""Kept turns in Converse requests (Amazon Bedrock API reference, "Message").

Messages have the shape that they have in Anthropic's Messages, with other blocks. So calls and results are restored at
the same places: see `dialects/messages/history.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from aibridge_addon.dialects.bedrock.converse_inject import ConverseInjection
from aibridge_addon.dialects.history import maybe_decode
from aibridge_addon.dialects.messages.blocks import EMPTY, Block, Message, MessageForm, content_of
from aibridge_addon.dialects.messages.history import MessagesHistory
from aibridge_addon.dialects.turns import Result
from aibridge_addon.wire.json_object import encode
from aibridge_addon.wire.json_values import as_dict, as_list, as_text

NO_ATTACHMENTS = frozenset(("text", "toolResult", "cachePoint"))
"""Kinds of blocks of a user message that are not attachments. Clients move cache points between two requests."""


class _ToolUse(msgspec.Struct, frozen=True, gc=False):
    toolUseId: str = ""
    name: Any = ""
    input: msgspec.Raw = EMPTY
    type: Any = None


class _ToolResult(msgspec.Struct, frozen=True, gc=False):
    toolUseId: str = ""
    content: msgspec.Raw = EMPTY


class _ReasoningText(msgspec.Struct, frozen=True, gc=False):
    signature: Any = None


class _Reasoning(msgspec.Struct, frozen=True, gc=False):
    reasoningText: _ReasoningText | None = None
    redactedContent: Any = None


class _Block(msgspec.Struct, frozen=True, gc=False):
    text: Any = None
    toolUse: _ToolUse | None = None
    toolResult: _ToolResult | None = None
    reasoningContent: _Reasoning | None = None

    def read(self) -> Block:
        """Return the block that Messages would have in its place. Others are empty."""
        use, result, reasoning = self.toolUse, self.toolResult, self.reasoningContent
        if use is not None:
            kind = "server_tool_use" if use.type == "server_tool_use" else "tool_use"
            return Block(kind, id=use.toolUseId, name=use.name, input=use.input)
        if result is not None:
            return Block("tool_result", tool_use_id=result.toolUseId, content=result.content)
        if reasoning is not None and reasoning.reasoningText is not None:
            return Block("thinking", signature=reasoning.reasoningText.signature)
        if reasoning is not None:
            return Block("redacted_thinking", data=reasoning.redactedContent)
        return Block("text", text=self.text) if isinstance(self.text, str) else Block()


class _Message(msgspec.Struct, frozen=True, gc=False):
    role: str = ""
    content: tuple[_Block, ...] = ()


_block = msgspec.json.Decoder(_Block)
_message = msgspec.json.Decoder(_Message)
_blocks = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


class ConverseForm(MessageForm):
    BESIDE: ClassVar[Sequence[str]] = ("system", "requestMetadata")

    def message(self, raw: bytes) -> Message | None:
        message = maybe_decode(raw, _message)
        return Message(message.role, [block.read() for block in message.content]) if message is not None else None

    def block(self, value: Mapping[str, Any]) -> Block:
        block = maybe_decode(encode(value), _block)
        return block.read() if block is not None else Block()

    def attachments(self, raw: bytes) -> Iterator[bytes]:
        for block in maybe_decode(content_of(raw), _blocks) or ():
            for name in sorted(block.keys() - NO_ATTACHMENTS):
                yield hashlib.sha256(encode(name) + bytes(block[name])).digest()


class ConverseHistory(MessagesHistory):
    form = ConverseForm()

    def result(self, result: Result) -> dict[str, Any]:
        # The model is not known here, so the result is one that every model takes.
        return ConverseInjection(streaming=False).tool_result(result)

    def maybe_call(self, element: dict[str, Any], call_id: str) -> tuple[str, Any] | None:
        for block in map(as_dict, as_list(element.get("content"))):
            use = as_dict(block.get("toolUse"))
            if use.get("toolUseId") == call_id and use.get("type") != "server_tool_use":
                return as_text(use.get("name")), use.get("input")
        return None
