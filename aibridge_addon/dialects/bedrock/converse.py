"""Bedrock's Converse: one format for all vendors' models, as of the API reference (`Converse`, `ConverseStream`).

A stream consists of `messageStart`, then for each content block `contentBlockStart` (tools only), deltas and
`contentBlockStop`, then `messageStop` (the reason) and `metadata` (usage). Each is a message of an AWS event stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from aibridge_addon.dialects.base import (
    MAX_WISH,
    RequestReading,
    Thought,
    ToolCall,
    arguments,
    hosted_types,
)
from aibridge_addon.dialects.bedrock.common import BedrockDialect, BedrockReader
from aibridge_addon.dialects.client_results import MAX_ENTRIES, ClientResult, client_result, newest
from aibridge_addon.dialects.context import Shape
from aibridge_addon.dialects.errors import error_instead, error_of_event
from aibridge_addon.dialects.output import MAX_THOUGHT, OutputWriter
from aibridge_addon.dialects.room import PART_COST, Pieces, size_of
from aibridge_addon.dialects.surroundings import surroundings
from aibridge_addon.dialects.usage import INPUT_AND_OUTPUT, facts_beside, facts_in, joined, read_counts
from aibridge_addon.dialects.words import Said, conversation_end
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

COUNTS: Mapping[str, str] = MappingProxyType(
    {
        "input_tokens": "inputTokens",
        "output_tokens": "outputTokens",
        "cache_read_input_tokens": "cacheReadInputTokens",
        "cache_write_input_tokens": "cacheWriteInputTokens",
    }
)


class _Text(msgspec.Struct, gc=False):
    text: str = ""


class _TextDelta(msgspec.Struct, gc=False):
    delta: _Text


_text_delta = msgspec.json.Decoder(_TextDelta)


class Converse(BedrockDialect):
    name = "converse"
    shape = Shape("messages", system=("system",), tools=("toolConfig",))

    def has_tools(self, body: JSONObject) -> bool:
        return bool(as_list(as_dict(body.get("toolConfig")).get("tools")))

    def read_request(self, body: JSONObject) -> RequestReading:
        end = conversation_end(_said(body))
        return RequestReading(
            model="",
            streaming=self.streaming,
            prompt=end.prompt,
            correlating_tool_call_id=end.call_id,
            notice=end.notice,
            side_call=end.side_call or as_dict(body.get("inferenceConfig")).get("maxTokens") == 1,
            tool_results=newest(_results_backwards(body)),
            surroundings=surroundings(body.get("system")),
            requested=_requested(body),
            hosted_tools=_hosted_tools(body),
        )

    def answer_reader(self, *, texts: bool = True) -> ConverseReader:
        return ConverseReader(texts=texts)


def _requested(body: JSONObject) -> dict[str, str]:
    wishes = {
        "service_tier": as_text(as_dict(body.get("serviceTier")).get("type")),
        "performanceConfig.latency": as_text(as_dict(body.get("performanceConfig")).get("latency")),
    }
    return {name: value[:MAX_WISH] for name, value in wishes.items() if value}


def _hosted_tools(body: JSONObject) -> tuple[str, ...]:
    tools = map(as_dict, as_list(as_dict(body.get("toolConfig")).get("tools")))
    return hosted_types(as_text(as_dict(tool.get("systemTool")).get("name")) for tool in tools)


def _said(body: JSONObject) -> Iterator[Said]:
    """Yield the user's messages after the model's last answer, the last one first."""
    for message in map(as_dict, itertools.islice(body.elements_backwards("messages"), MAX_ENTRIES)):
        if message.get("role") == "assistant":
            return
        if message.get("role") == "user":
            parts = [as_dict(part) for part in as_list(message.get("content"))]
            results = [as_dict(part["toolResult"]) for part in parts if "toolResult" in part]
            call_id = as_text(results[-1].get("toolUseId")) if results else ""
            yield Said([as_text(part.get("text")) for part in parts], call_id)


def _results_backwards(body: JSONObject) -> Iterator[ClientResult]:
    """Yield the results that follow the last answer of the model, the last one first."""
    for message in map(as_dict, itertools.islice(body.elements_backwards("messages"), MAX_ENTRIES)):
        if message.get("role") == "assistant":
            return
        for part in map(as_dict, reversed(as_list(message.get("content")))):
            if result := as_dict(part.get("toolResult")):
                is_error = result.get("status") == "error"
                yield client_result(result.get("toolUseId"), result.get("content"), is_error=is_error)


class ConverseReader(BedrockReader):
    """Collects blocks by their index until they stop, so that no incomplete call is recorded."""

    def __init__(self, *, texts: bool = True) -> None:
        super().__init__(texts=texts)
        self._open: dict[int, tuple[dict[str, Any], Pieces, Pieces]] = {}
        """By block: the `toolUse` of its start, the pieces of the input, and the pieces of the reasoning."""
        self._writer = OutputWriter(self.reading.output, texts=texts)

    @property
    def skip(self) -> Callable[[bytes], object]:
        return self._is_read if self._texts else _is_text_delta

    def _is_read(self, raw: bytes) -> bool:
        if not _is_text_delta(raw):
            return False
        if self._writer.full:
            self._writer.drop_text()
            return True
        try:
            self._writer.text(_text_delta.decode(_payload(raw)).delta.text)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
        return True

    def read(self, name: str, event: Any) -> None:
        event = as_dict(event)
        index = as_count(event.get("contentBlockIndex"))
        if name == "contentBlockDelta":
            delta = as_dict(event.get("delta"))
            self._writer.text(as_text(delta.get("text")))
            given = as_text(as_dict(delta.get("toolUse")).get("input"))
            thought = as_text(as_dict(delta.get("reasoningContent")).get("text"))
            if (given or thought) and self.room.take(len(given) + len(thought)):
                if index not in self._open:
                    self._begin(index, {})
                if index in self._open:
                    _, tool_input, reasoning = self._open[index]
                    tool_input.add(given)
                    reasoning.add(thought)
        elif name == "contentBlockStart":
            self._writer.between()
            self._begin(index, as_dict(as_dict(event.get("start")).get("toolUse")))
        elif name == "contentBlockStop":
            tool_use, tool_input, reasoning = self._open.pop(index, ({}, Pieces(), Pieces()))
            if tool_use:
                self._call(tool_use, arguments(tool_input.text()))
            self._think(reasoning.text()[:MAX_THOUGHT])
        elif name == "messageStop":
            self.reading.stop_reason = as_text(event.get("stopReason"))
            self.reading.finished = True
        elif name == "metadata":
            self._count(event)
            self._end()
        elif name in ("error", ""):
            event = event | {"type": name or event.get("type")}
            if error := error_of_event(event, default_type="internalServerException"):
                self.reading.error = error
                self._end()

    def _begin(self, index: int, tool_use: dict[str, Any]) -> None:
        if self.room.take(PART_COST + size_of(tool_use)):
            self._open[index] = (tool_use, Pieces(), Pieces())

    def message(self, body: dict[str, Any]) -> None:
        if error := error_instead(body, "output", default_type="internalServerException"):
            self.reading.error = error
            self._end()
            return
        for block in map(as_dict, as_list(as_dict(as_dict(body.get("output")).get("message")).get("content"))):
            if tool_use := as_dict(block.get("toolUse")):
                self._call(tool_use, tool_use.get("input"))
            elif "text" in block:
                self._writer.text(as_text(block["text"]))
            else:
                self._writer.between()
                text = as_dict(as_dict(block.get("reasoningContent")).get("reasoningText")).get("text")
                self._think(as_text(text))
        self._count(body)
        self.reading.stop_reason = as_text(body.get("stopReason"))
        self.reading.finished = True
        self._end()

    def stream_ended(self) -> None:
        self._writer.between()
        if self.reading.finished:  # some compatible servers omit `metadata`
            self.reading.ended = True

    def _end(self) -> None:
        self._writer.between()
        self.reading.ended = True

    def _call(self, tool_use: dict[str, Any], tool_input: Any) -> None:
        self._writer.part(
            ToolCall(
                call_id=as_text(tool_use.get("toolUseId")),
                name=as_text(tool_use.get("name")),
                input=arguments(tool_input),
                server_side=tool_use.get("type") == "server_tool_use",
            )
        )

    def _think(self, text: str) -> None:
        if text:
            self._writer.part(Thought(text, "thinking"))

    def _count(self, members: dict[str, Any]) -> None:
        """Read the usage of a body or of `metadata`. Its input tokens do not include cached tokens."""
        usage = as_dict(members.get("usage"))
        if not usage:
            return
        details = {
            as_text(d.get("ttl")): d.get("inputTokens") for d in map(as_dict, as_list(usage.get("cacheDetails")))
        }
        tier = as_dict(members.get("serviceTier")).get("type")
        beside = facts_beside({name: value for name, value in members.items() if name != "serviceTier"})
        self.reading.usage = read_counts(usage, COUNTS, INPUT_AND_OUTPUT)
        self.reading.usage.extra = joined(
            beside,
            facts_in(usage | {"cacheDetails": details}, COUNTS.values()),
            {"service_tier": tier} if isinstance(tier, str) else self.tier,
            self.reading.usage.extra,
        )


def _payload(raw: bytes) -> bytes:
    """Return the JSON in a raw message of an AWS event stream, or in a server-sent event."""
    if raw[:1] != b"\0":
        return raw[raw.find(b"{") :]
    # A message has a prelude of 12 bytes with the length of its headers, and a checksum of 4 bytes at its end.
    return raw[12 + int.from_bytes(raw[4:8]) : -4]


def _is_text_delta(raw: bytes) -> bool:
    """Return whether an event is a text delta. Quotes inside strings are escaped, so text cannot match."""
    return b'"delta":{"text":' in raw
