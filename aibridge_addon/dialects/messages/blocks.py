"""The messages of a history and their blocks, as far as the places of calls and results depend on them. Sans-io."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from aibridge_addon.dialects.history import maybe_decode
from aibridge_addon.dialects.place import call_digest
from aibridge_addon.dialects.trail import TEXTS, attachments, by_a_person
from aibridge_addon.wire.json_object import JSONObject, encode

EMPTY = msgspec.Raw(b"null")
NO_ATTACHMENTS = frozenset((*TEXTS, "tool_result"))
"""Types of the blocks of a user message that are not attachments."""


class Block(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    id: str = ""
    tool_use_id: str = ""
    name: Any = ""
    input: msgspec.Raw = EMPTY
    text: Any = None
    signature: Any = None
    data: Any = None
    content: msgspec.Raw = EMPTY

    @property
    def thinking(self) -> str | None:
        """The name of a thinking block; None for other blocks."""
        name = {"thinking": self.signature, "redacted_thinking": self.data}.get(self.type)
        return name if isinstance(name, str) and name else None

    @property
    def call_id(self) -> str:
        """The id of the call in the block. Empty for other blocks."""
        return self.id if self.type == "tool_use" else ""

    @property
    def digest(self) -> str:
        return call_digest(self.name, self.input)


class Message(msgspec.Struct, frozen=True, gc=False):
    role: str = ""
    content: str | list[Block] = ""

    @property
    def blocks(self) -> Sequence[Block]:
        return () if isinstance(self.content, str) else self.content

    @property
    def texts(self) -> Iterator[str]:
        if isinstance(self.content, str):
            return iter((self.content,))
        return (block.text for block in self.content if block.type == "text" and isinstance(block.text, str))

    @property
    def results(self) -> list[str]:
        """The ids of the calls whose results are in the message."""
        return [block.tool_use_id for block in self.blocks if block.type == "tool_result" and block.tool_use_id]


class _RawMessage(msgspec.Struct, frozen=True, gc=False):
    content: msgspec.Raw = EMPTY


_block = msgspec.json.Decoder(Block)
_message = msgspec.json.Decoder(Message)
_raw_message = msgspec.json.Decoder(_RawMessage)


class MessageForm:
    """How a dialect writes messages. This is the form of Messages."""

    BESIDE: ClassVar[Sequence[str]] = ("system", "metadata")
    """Members beside the messages that belong to a whole trail."""

    def message(self, raw: bytes) -> Message | None:
        """Read a message. None if it has another form."""
        return maybe_decode(raw, _message)

    def block(self, value: Mapping[str, Any]) -> Block:
        """Read a block. Empty if it has another form."""
        return maybe_decode(encode(value), _block) or Block()

    def said(self, message: Message, raw: bytes) -> Iterator[str | bytes]:
        """Yield the texts by a person in a user message, and digests of its attachments."""
        yield from by_a_person(message.texts)
        if any(block.type not in NO_ATTACHMENTS for block in message.blocks):
            yield from self.attachments(raw)

    def attachments(self, raw: bytes) -> Iterator[bytes]:
        """Yield the digests of the attachments in a user message."""
        return attachments(content_of(raw), NO_ATTACHMENTS)


def content_of(raw: bytes) -> msgspec.Raw:
    """Return the content of a message, undecoded."""
    message = maybe_decode(raw, _raw_message)
    return EMPTY if message is None else message.content


def text_block(message: JSONObject) -> bytes:
    """Return the text block that is equivalent to a content that is a string."""
    return b'{"type":"text","text":' + message.raw("content") + b"}"
