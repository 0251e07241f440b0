"""Anthropic Messages, as of the API reference (`POST /v1/messages`, "Streaming Messages").

A stream consists of `message_start`, then for each content block `content_block_start`, deltas and
`content_block_stop`, then `message_delta` (stop reason, cumulative usage) and `message_stop`. `ping` and `error` may
occur anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from aibridge_addon.dialects.base import (
    NOTHING,
    AnswerReader,
    Dialect,
    RequestReading,
    Thought,
    ToolCall,
    Usage,
    answer_error,
    arguments,
    counts_beside,
    prompt_in,
)
from aibridge_addon.dialects.messages.results import tool_results
from aibridge_addon.dialects.surroundings import surroundings
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

ERROR_TYPES: Mapping[int, str] = MappingProxyType(
    {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        407: "authentication_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
        529: "overloaded_error",
    }
)
"""Error types by status (API reference, "Errors"). Any other status is an `api_error`."""

COLUMNS = frozenset(
    ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
)
TOOL_BLOCKS = frozenset(("tool_use", "server_tool_use", "mcp_tool_use"))

# Deltas of text, signatures and citations contain nothing to record and are most of a stream. `[^{]*\{` skips from the
# start of the event's object to the delta object. Events with another order of members are decoded instead.
_skip = re.compile(
    rb"event: (?:ping\n|content_block_delta\r?\ndata: ?\{[^{]*\{"
    rb'"type": ?"(?:text|signature|citations)_delta")'
).match


class Messages(Dialect):
    name = "messages"

    def read_request(self, body: JSONObject) -> RequestReading:
        prompt, tool_call_id = _conversation_end(body)
        user_id = as_dict(body.get("metadata")).get("user_id")
        return RequestReading(
            model=body.text("model") or "",
            streaming=body.get("stream") is True,
            prompt=prompt,
            correlating_tool_call_id=tool_call_id,
            side_call=_is_side_call(body),
            metadata_user_id=user_id if isinstance(user_id, str) else None,
            tool_results=tool_results(body),
            surroundings=surroundings(body.get("system")),
        )

    def answer_reader(self) -> MessagesReader:
        return MessagesReader()

    def error_body(self, status: int, message: str) -> bytes:
        return encode(_error(ERROR_TYPES.get(status, "api_error"), message))

    def error_event(self, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return sse.event("error", encode(_error("api_error", message, details)))


def _error(kind: str, message: str, details: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, **details}}


def _conversation_end(body: JSONObject) -> tuple[str | None, str | None]:
    """Return the user's prompt, or the id of the tool result, at the end of the conversation.

    `system` entries at the end are skipped. Claude Code adds reminders there.
    """
    for entry in body.elements_backwards("messages"):
        message = as_dict(entry)
        if message.get("role") == "system":
            continue
        content = message.get("content")
        results = [b for b in map(as_dict, as_list(content)) if b.get("type") == "tool_result"]
        if results:
            return None, as_text(results[-1].get("tool_use_id")) or None
        return (prompt_in(content) if message.get("role") == "user" else None), None
    return None, None


def _is_side_call(body: JSONObject) -> bool:
    """Return whether this is a one-token probe, or Claude Code's title call (empty tools and a JSON schema)."""
    if body.get("max_tokens") == 1:
        return True
    output_format = as_dict(as_dict(body.get("output_config")).get("format"))
    return body.get("tools") == [] and output_format.get("type") == "json_schema"


class MessagesReader(AnswerReader):
    """Collects blocks by their index until they stop, so that no incomplete call is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[int, tuple[dict[str, Any], list[str]]] = {}
        self._usage: dict[str, Any] = {}

    @property
    def skip(self) -> Callable[[bytes], object]:
        return _skip

    def read(self, name: str, event: Any) -> None:
        event = as_dict(event)
        kind = event.get("type", name)
        if kind == "content_block_delta":
            self._delta(event)
        elif kind == "content_block_start":
            self._open[as_count(event.get("index"))] = (as_dict(event.get("content_block")), [])
        elif kind == "content_block_stop":
            self._stop(as_count(event.get("index")))
        elif kind == "message_start":
            self._head(as_dict(event.get("message")))
        elif kind == "message_delta":
            self._count(as_dict(event.get("usage")))
            self.reading.finished = True
        elif kind == "message_stop":
            self.reading.ended = True
        elif kind == "error":
            self.reading.error = answer_error(event.get("error"), default_type="api_error")
            self.reading.ended = True

    def message(self, body: dict[str, Any]) -> None:
        self._head(body)
        for block in map(as_dict, as_list(body.get("content"))):
            self._block(block, block.get("input"), as_text(block.get("thinking")))
        self.reading.finished = self.reading.ended = True

    def _head(self, message: dict[str, Any]) -> None:
        self.reading.response_id = as_text(message.get("id"))
        self.reading.model = as_text(message.get("model"))
        self._count(as_dict(message.get("usage")))

    def _delta(self, event: dict[str, Any]) -> None:
        delta = as_dict(event.get("delta"))
        _, pieces = self._open.get(as_count(event.get("index")), ({}, []))
        pieces.append(as_text(delta.get("partial_json")) or as_text(delta.get("thinking")))

    def _stop(self, index: int) -> None:
        block, pieces = self._open.pop(index, ({}, []))
        text = "".join(pieces)
        self._block(block, arguments(text) if text else block.get("input"), as_text(block.get("thinking")) + text)

    def _block(self, block: dict[str, Any], tool_input: Any, thinking: str) -> None:
        kind = as_text(block.get("type"))
        if kind in TOOL_BLOCKS:
            self.reading.output.append(
                ToolCall(
                    call_id=as_text(block.get("id")),
                    name=as_text(block.get("name")),
                    input={} if tool_input is None else tool_input,
                    server_side=kind != "tool_use",
                    server_name=as_text(block.get("server_name")) or None,
                )
            )
        elif kind == "thinking" and thinking:
            self.reading.output.append(Thought(thinking, "thinking"))

    def _count(self, usage: dict[str, Any]) -> None:
        """Merge a usage object. Counts are cumulative: the last one is valid, and zeros do not replace a count."""
        if not usage:
            return
        _fold(self._usage, usage)
        tier = self._usage.get("service_tier")
        self.reading.usage = Usage(
            input_tokens=as_count(self._usage.get("input_tokens")),
            output_tokens=as_count(self._usage.get("output_tokens")),
            cache_read_input_tokens=as_count(self._usage.get("cache_read_input_tokens")),
            cache_write_input_tokens=as_count(self._usage.get("cache_creation_input_tokens")),
            extra=counts_beside(self._usage, COLUMNS) | ({"service_tier": tier} if isinstance(tier, str) else {}),
        )


def _fold(known: dict[str, Any], usage: dict[str, Any]) -> None:
    for name, value in usage.items():
        if isinstance(value, dict) and isinstance(known.get(name), dict):
            _fold(known[name], value)
        elif value or name not in known:
            known[name] = value
