"""The blocks of a Converse answer in the events of a stream, and back (Amazon Bedrock API reference, "ContentBlock").

Only calls, results of the provider's own tools and images begin with a `contentBlockStart`. What the deltas of other
blocks contain says what the block is.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Iterator
from typing import Any

from aibridge_addon.dialects.base import arguments, decode_event
from aibridge_addon.dialects.room import Pieces
from aibridge_addon.wire.aws_eventstream import CorruptEventStream
from aibridge_addon.wire.framing import framing_of_event
from aibridge_addon.wire.json_object import NotJSON, Unreadable, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

IN_STOP = ("stopReason", "additionalModelResponseFields")
IN_METADATA = ("usage", "metrics", "trace", "performanceConfig", "serviceTier")
"""Members of a blocking answer that a stream has in `messageStop` and in `metadata`."""


def events_of(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of a stream with this answer, each with its name."""
    message = as_dict(as_dict(body.get("output")).get("message"))
    yield "messageStart", {"role": as_text(message.get("role")) or "assistant"}
    for index, block in enumerate(map(as_dict, as_list(message.get("content")))):
        begun, deltas = _divided(block)
        if begun:
            yield "contentBlockStart", {"start": begun, "contentBlockIndex": index}
        for delta in deltas:
            yield "contentBlockDelta", {"delta": delta, "contentBlockIndex": index}
        yield "contentBlockStop", {"contentBlockIndex": index}
    yield "messageStop", {name: body[name] for name in IN_STOP if name in body}
    yield "metadata", {name: body[name] for name in IN_METADATA if name in body}


def _divided(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return how a block begins, and the deltas that complete it. Blocks of an unknown kind begin complete."""
    if "text" in block:
        return {}, [{"text": block["text"]}]
    if use := as_dict(block.get("toolUse")):
        given = {"toolUse": {"input": encode(use.get("input")).decode()}}
        return {"toolUse": {name: value for name, value in use.items() if name != "input"}}, [given]
    if reasoning := as_dict(block.get("reasoningContent")):
        parts = as_dict(reasoning.get("reasoningText")) or reasoning
        return {}, [{"reasoningContent": {name: value}} for name, value in parts.items()]
    if cited := as_dict(block.get("citationsContent")):
        texts = [{"text": as_text(as_dict(part).get("text"))} for part in as_list(cited.get("content"))]
        return {}, [*texts, *({"citation": citation} for citation in as_list(cited.get("citations")))]
    if result := as_dict(block.get("toolResult")):
        begun = {name: value for name, value in result.items() if name != "content"}
        return {"toolResult": begun}, [{"toolResult": as_list(result.get("content"))}]
    if image := as_dict(block.get("image")):
        begun = {name: value for name, value in image.items() if name == "format"}
        return {"image": begun}, [{"image": {name: value for name, value in image.items() if name != "format"}}]
    return block, []


def decoded(events: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the data of raw events. Unreadable ones are skipped."""
    for raw in events:
        try:
            name, data = framing_of_event(raw).parse(raw)
            yield name, as_dict(decode_event(data or b"null"))
        except (NotJSON, Unreadable, CorruptEventStream):
            continue


def content_of(events: Iterable[bytes]) -> list[dict[str, Any]]:
    """Return a turn's blocks, merged from its events."""
    blocks: dict[int, _Block] = {}
    for _, event in decoded(events):
        if "contentBlockIndex" in event:
            index = as_count(event["contentBlockIndex"])
            if index not in blocks:
                blocks[index] = _Block()
            blocks[index].begin(as_dict(event.get("start")))
            blocks[index].grow(as_dict(event.get("delta")))
    return [block.whole() for block in blocks.values()]


class _Block:
    """A block whose deltas are still arriving. It grows in linear time."""

    def __init__(self) -> None:
        self._begun: dict[str, Any] = {}
        self._text, self._input, self._reasoning, self._signature = Pieces(), Pieces(), Pieces(), Pieces()
        self._redacted: list[str] = []
        self._citations: list[Any] = []
        self._results: list[Any] = []
        self._is_reasoning = False

    def begin(self, start: dict[str, Any]) -> None:
        self._begun |= start

    def grow(self, delta: dict[str, Any]) -> None:
        self._text.add(as_text(delta.get("text")))
        self._input.add(as_text(as_dict(delta.get("toolUse")).get("input")))
        self._results += as_list(delta.get("toolResult"))
        if "citation" in delta:
            self._citations.append(delta["citation"])
        if reasoning := as_dict(delta.get("reasoningContent")):
            self._is_reasoning = True
            self._reasoning.add(as_text(reasoning.get("text")))
            self._signature.add(as_text(reasoning.get("signature")))
            if redacted := as_text(reasoning.get("redactedContent")):
                self._redacted.append(redacted)
        if image := as_dict(delta.get("image")):
            self._begun["image"] = as_dict(self._begun.get("image")) | image

    def whole(self) -> dict[str, Any]:
        if use := as_dict(self._begun.get("toolUse")):
            return {"toolUse": use | {"input": arguments(self._input.text())}}
        if result := as_dict(self._begun.get("toolResult")):
            return {"toolResult": result | {"content": self._results}}
        if self._begun:
            return self._begun
        if self._redacted:
            return {"reasoningContent": {"redactedContent": _joined(self._redacted)}}
        if self._is_reasoning:
            signature = {"signature": self._signature.text()} if self._signature else {}
            return {"reasoningContent": {"reasoningText": {"text": self._reasoning.text()} | signature}}
        if self._citations:
            return {"citationsContent": {"content": [{"text": self._text.text()}], "citations": self._citations}}
        return {"text": self._text.text()}


def _joined(pieces: list[str]) -> str:
    """Return the base64 of bytes that came in pieces."""
    if len(pieces) == 1:
        return pieces[0]
    try:
        return b64encode(b"".join(map(b64decode, pieces))).decode()
    except (NotBase64, ValueError):
        return "".join(pieces)
