"""Bedrock's Converse: one format for all vendors' models, as of the API reference (`Converse`, `ConverseStream`).

A stream consists of `messageStart`, then for each content block `contentBlockStart` (tools only), deltas and
`contentBlockStop`, then `messageStop` (the reason) and `metadata` (usage). Each is a message of an AWS event stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from aibridge_addon.dialects.base import (
    RequestReading,
    Thought,
    ToolCall,
    Usage,
    answer_error,
    arguments,
    counts_beside,
    written_by_person,
)
from aibridge_addon.dialects.bedrock.common import BedrockDialect, BedrockReader
from aibridge_addon.dialects.client_results import MAX_ENTRIES, ClientResult, client_result, newest
from aibridge_addon.dialects.surroundings import surroundings
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

COLUMNS = frozenset(("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens"))


class Converse(BedrockDialect):
    name = "converse"
    tools_member: ClassVar[str] = "toolConfig"

    def read_request(self, body: JSONObject) -> RequestReading:
        prompt, tool_call_id = _conversation_end(body)
        return RequestReading(
            model="",
            streaming=self.streaming,
            prompt=prompt,
            correlating_tool_call_id=tool_call_id,
            side_call=as_dict(body.get("inferenceConfig")).get("maxTokens") == 1,
            tool_results=newest(_results_backwards(body)),
            surroundings=surroundings(body.get("system")),
        )

    def answer_reader(self) -> ConverseReader:
        return ConverseReader()


def _conversation_end(body: JSONObject) -> tuple[str | None, str | None]:
    """Return the user's prompt, or the id of the tool result, at the end of the conversation."""
    for entry in body.elements_backwards("messages"):
        message = as_dict(entry)
        if message.get("role") == "system":
            continue
        parts = [as_dict(part) for part in as_list(message.get("content"))]
        results = [as_dict(part["toolResult"]) for part in parts if "toolResult" in part]
        if results:
            return None, as_text(results[-1].get("toolUseId")) or None
        if message.get("role") != "user":
            return None, None
        texts = (as_text(part.get("text")) for part in reversed(parts))
        return next(filter(written_by_person, texts), None), None
    return None, None


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

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[int, tuple[dict[str, Any], list[str], list[str]]] = {}
        """By block: the `toolUse` of its start, the pieces of the input, and the pieces of the reasoning."""

    @property
    def skip(self) -> Callable[[bytes], object]:
        return _is_text_delta

    def read(self, name: str, event: Any) -> None:
        event = as_dict(event)
        index = as_count(event.get("contentBlockIndex"))
        if name == "contentBlockDelta":
            delta = as_dict(event.get("delta"))
            _, tool_input, reasoning = self._open.setdefault(index, ({}, [], []))
            tool_input.append(as_text(as_dict(delta.get("toolUse")).get("input")))
            reasoning.append(as_text(as_dict(delta.get("reasoningContent")).get("text")))
        elif name == "contentBlockStart":
            self._open[index] = (as_dict(as_dict(event.get("start")).get("toolUse")), [], [])
        elif name == "contentBlockStop":
            tool_use, tool_input, reasoning = self._open.pop(index, ({}, [], []))
            if tool_use:
                self._call(tool_use, arguments("".join(tool_input)))
            self._think("".join(reasoning))
        elif name == "messageStop":
            self.reading.finished = True
        elif name == "metadata":
            self._count(event)
            self.reading.ended = True
        elif name == "error":
            self.reading.error = answer_error(event.get("error"), default_type="internalServerException")
            self.reading.ended = True

    def message(self, body: dict[str, Any]) -> None:
        for block in map(as_dict, as_list(as_dict(as_dict(body.get("output")).get("message")).get("content"))):
            if tool_use := as_dict(block.get("toolUse")):
                self._call(tool_use, tool_use.get("input"))
            self._think(as_text(as_dict(as_dict(block.get("reasoningContent")).get("reasoningText")).get("text")))
        self._count(body)
        self.reading.finished = self.reading.ended = True

    def stream_ended(self) -> None:
        if self.reading.finished:  # some compatible servers omit `metadata`
            self.reading.ended = True

    def _call(self, tool_use: dict[str, Any], tool_input: Any) -> None:
        self.reading.output.append(
            ToolCall(
                call_id=as_text(tool_use.get("toolUseId")),
                name=as_text(tool_use.get("name")),
                input={} if tool_input is None else tool_input,
                server_side=tool_use.get("type") == "server_tool_use",
            )
        )

    def _think(self, text: str) -> None:
        if text:
            self.reading.output.append(Thought(text, "thinking"))

    def _count(self, members: dict[str, Any]) -> None:
        """Read the usage of a body or of `metadata`. Its input tokens do not include cached tokens."""
        usage = as_dict(members.get("usage"))
        if not usage:
            return
        details = {
            as_text(d.get("ttl")): d.get("inputTokens") for d in map(as_dict, as_list(usage.get("cacheDetails")))
        }
        tier = as_dict(members.get("serviceTier")).get("type")
        self.reading.usage = Usage(
            input_tokens=as_count(usage.get("inputTokens")),
            output_tokens=as_count(usage.get("outputTokens")),
            cache_read_input_tokens=as_count(usage.get("cacheReadInputTokens")),
            cache_write_input_tokens=as_count(usage.get("cacheWriteInputTokens")),
            extra=counts_beside(usage | {"cacheDetails": details}, COLUMNS)
            | ({"service_tier": tier} if isinstance(tier, str) else {}),
        )


def _is_text_delta(raw: bytes) -> bool:
    """Return whether an event is a text delta. Quotes inside strings are escaped, so text cannot match."""
    return b'"delta":{"text":' in raw
