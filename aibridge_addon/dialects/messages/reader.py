"""Anthropic Messages, as of the API reference (`POST /v1/messages`, "Streaming Messages").

A stream consists of `message_start`, then for each content block `content_block_start`, deltas and
`content_block_stop`, then `message_delta` (stop reason, cumulative usage) and `message_stop`. `ping` and `error` may
occur anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

import msgspec

from aibridge_addon.dialects.base import (
    NOTHING,
    AnswerReader,
    Dialect,
    Iteration,
    RequestReading,
    Thought,
    ToolCall,
    Usage,
    arguments,
    hosted_tools,
    requested,
)
from aibridge_addon.dialects.client_results import MAX_ENTRIES
from aibridge_addon.dialects.context import Shape
from aibridge_addon.dialects.errors import error_instead, error_of_event
from aibridge_addon.dialects.messages.results import tool_results
from aibridge_addon.dialects.output import MAX_THOUGHT, OutputWriter
from aibridge_addon.dialects.room import PART_COST, Pieces, size_of
from aibridge_addon.dialects.surroundings import surroundings
from aibridge_addon.dialects.usage import (
    INPUT_AND_OUTPUT,
    facts_beside,
    facts_in,
    facts_of_iteration,
    joined,
    read_counts,
)
from aibridge_addon.dialects.words import Said, conversation_end, texts_of
from aibridge_addon.records import LEFT_OUT
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text, maybe_count

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

COUNTS: Mapping[str, str] = MappingProxyType(
    {
        "input_tokens": "input_tokens",
        "output_tokens": "output_tokens",
        "cache_read_input_tokens": "cache_read_input_tokens",
        "cache_write_input_tokens": "cache_creation_input_tokens",
    }
)
INPUT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
FULL_SET = ("input_tokens", "cache_read_input_tokens")
"""Members of a full set of input counts. Servers without caches of their own omit the count of written tokens."""
WRITTEN = "cache_creation_input_tokens"
LIFETIMES = "cache_creation"
"""The written tokens by the lifetime of the cache."""
IN_TOP_LEVEL = frozenset(("message", "fallback_message"))
"""Iterations whose tokens are in the top level already, or belong to a model that declined."""
MAX_ITERATIONS = 64
REST = "rest"
"""Kind of the row for all further iterations. Their models may differ, so it has no price."""
MAX_KIND = 64
"""Characters of an iteration's type."""
CLIENT_TOOLS = frozenset(("", "custom"))
"""Types of tools that are the client's own. The first is that of a tool without a type."""
CONTAINER = "container"
"""Member of an answer whose code ran in a container. Its time is billed, and in no answer."""
TOOL_BLOCKS = frozenset(("tool_use", "server_tool_use", "mcp_tool_use"))

# Deltas of text, signatures and citations are most of a stream. Of these only the text is read. `[^{]*\{` skips from
# the start of the event's object (group 1) to the delta object. Events with another order of members are decoded.
_skip = re.compile(
    rb"event: (?:ping\n|content_block_delta\r?\ndata: ?(\{)[^{]*\{"
    rb'"type": ?"(?:(text)|signature|citations)_delta")'
).match


class _Text(msgspec.Struct, gc=False):
    text: str = ""


class _TextDelta(msgspec.Struct, gc=False):
    delta: _Text


_text_delta = msgspec.json.Decoder(_TextDelta)


class Messages(Dialect):
    name = "messages"
    shape = Shape("messages", system=("system",))

    def read_request(self, body: JSONObject) -> RequestReading:
        end = conversation_end(_said(body))
        user_id = as_dict(body.get("metadata")).get("user_id")
        return RequestReading(
            model=body.text("model") or "",
            streaming=body.get("stream") is True,
            prompt=end.prompt,
            correlating_tool_call_id=end.call_id,
            side_call=end.side_call or _is_side_call(body),
            notice=end.notice,
            metadata_user_id=user_id if isinstance(user_id, str) else None,
            tool_results=tool_results(body),
            surroundings=surroundings(body.get("system")),
            requested=requested(body, "service_tier", "speed", "inference_geo"),
            hosted_tools=hosted_tools(body, CLIENT_TOOLS),
        )

    def answer_reader(self, *, texts: bool = True) -> MessagesReader:
        return MessagesReader(texts=texts)

    def error_body(self, status: int, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return encode(_error(ERROR_TYPES.get(status, "api_error"), message, details))

    def error_event(self, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return sse.event("error", encode(_error("api_error", message, details)))


def _error(kind: str, message: str, details: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, **details}}


def _said(body: JSONObject) -> Iterator[Said]:
    """Yield the user's messages after the model's last answer, the last one first.

    Messages of other roles are left out, such as `system` with Claude Code's reminders.
    """
    for message in map(as_dict, islice(body.elements_backwards("messages"), MAX_ENTRIES)):
        role, content = message.get("role"), message.get("content")
        if role == "assistant":
            return
        if role == "user":
            results = [b for b in map(as_dict, as_list(content)) if b.get("type") == "tool_result"]
            yield Said(texts_of(content), as_text(results[-1].get("tool_use_id")) if results else "")


def _is_side_call(body: JSONObject) -> bool:
    """Return whether this is a one-token probe, or Claude Code's title call (empty tools and a JSON schema)."""
    if body.get("max_tokens") == 1:
        return True
    output_format = as_dict(as_dict(body.get("output_config")).get("format"))
    return body.get("tools") == [] and output_format.get("type") == "json_schema"


class MessagesReader(AnswerReader):
    """Collects blocks by their index until they stop, so that no incomplete call is recorded."""

    def __init__(self, *, texts: bool = True) -> None:
        super().__init__(texts=texts)
        self._open: dict[int, tuple[dict[str, Any], Pieces]] = {}
        self._abandoned = 0
        """Length of the output when a model declined last. The client's calls before it were removed."""
        self._usage: dict[str, Any] = {}
        self._beside: dict[str, Any] = {}
        self._writer = OutputWriter(self.reading.output, texts=texts)

    @property
    def skip(self) -> Callable[[bytes], object]:
        return self._is_read if self._texts else _skip

    def _is_read(self, raw: bytes) -> bool:
        found = _skip(raw)
        return found is not None and (found[2] is None or self._text_read(raw[found.start(1) :]))

    def _text_read(self, event: bytes) -> bool:
        """Keep the text of a delta. Return whether it could be read."""
        if self._writer.full:
            self._writer.drop_text()
            return True
        try:
            self._writer.text(_text_delta.decode(event).delta.text)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
        return True

    def read(self, name: str, event: Any) -> None:
        event = as_dict(event)
        kind = as_text(event.get("type")) or name
        if kind == "content_block_delta":
            self._delta(event)
        elif kind == "content_block_start":
            self._start(as_count(event.get("index")), as_dict(event.get("content_block")))
        elif kind == "content_block_stop":
            self._stop(as_count(event.get("index")))
        elif kind == "message_start":
            self._head(as_dict(event.get("message")))
        elif kind == "message_delta":
            delta = as_dict(event.get("delta"))
            self._beside = joined(self._beside, facts_beside(event), facts_beside(delta))
            self._count(as_dict(event.get("usage")))
            if delta.get("stop_reason"):  # a delta without one only reports progress
                self.reading.stop_reason = as_text(delta["stop_reason"])
                self._finish()
        elif kind == "message_stop":
            self._finish()
            self._end()
        elif kind in ("error", "") and (error := error_of_event(event | {"type": kind}, default_type="api_error")):
            self.reading.error = error
            self._end()

    def message(self, body: dict[str, Any]) -> None:
        if error := error_instead(body, "content", default_type="api_error"):
            self.reading.error = error
            self._end()
            return
        self._head(body)
        for block in map(as_dict, as_list(body.get("content"))):
            self._block(block, block.get("input"), as_text(block.get("thinking")))
        self.reading.stop_reason = as_text(body.get("stop_reason"))
        self.reading.finished = True
        self._end()

    def stream_ended(self) -> None:
        """Keep the text that was sent before a stream was cut off."""
        self._writer.between()

    def _finish(self) -> None:
        self.reading.finished = True
        for index in list(self._open):  # the token limit cut them
            self._stop(index)

    def _end(self) -> None:
        self._writer.between()
        self.reading.ended = True

    def _head(self, message: dict[str, Any]) -> None:
        self.reading.response_id = as_text(message.get("id"))
        self.reading.model = as_text(message.get("model"))
        self._beside = joined(self._beside, facts_beside(message))
        self._count(as_dict(message.get("usage")))

    def _start(self, index: int, block: dict[str, Any]) -> None:
        if block.get("type") == "text":
            self._writer.text(as_text(block.get("text")))
        elif block.get("type") == "fallback":
            self._fall_back(block)
        else:
            self._writer.between()
        if self.room.take(PART_COST + size_of(block)):
            self._open[index] = (block, Pieces())

    def _delta(self, event: dict[str, Any]) -> None:
        delta = as_dict(event.get("delta"))
        if delta.get("type") == "text_delta":
            self._writer.text(as_text(delta.get("text")))
            return
        block, pieces = self._open.get(as_count(event.get("index")), (None, None))
        if block is None or pieces is None:
            return
        given = delta.get("partial_json")
        text = as_text(given) or as_text(delta.get("thinking"))
        if not self.room.take(size_of(given) if isinstance(given, dict) else len(text)):
            return
        if isinstance(given, dict):
            block["input"] = given  # some servers send the object instead of its text
        pieces.add(text)

    def _stop(self, index: int) -> None:
        block, pieces = self._open.pop(index, ({}, Pieces()))
        if block.get("type") not in ("text", "fallback"):
            text = pieces.text()
            self._block(block, arguments(text) if text else block.get("input"), as_text(block.get("thinking")) + text)

    def _block(self, block: dict[str, Any], tool_input: Any, thinking: str) -> None:
        kind = as_text(block.get("type"))
        if _shows_container(kind, block) and CONTAINER not in self._beside:
            self._beside[CONTAINER] = True
            self._count({})
        if kind in TOOL_BLOCKS:
            self._writer.part(
                ToolCall(
                    call_id=as_text(block.get("id")),
                    name=as_text(block.get("name")),
                    input=arguments(tool_input),
                    server_side=kind != "tool_use",
                    server_name=as_text(block.get("server_name")) or None,
                )
            )
        elif kind == "thinking" and thinking:
            self._writer.part(Thought(thinking[:MAX_THOUGHT], "thinking"))
        elif kind == "text":
            self._writer.text(as_text(block.get("text")))
        elif kind == "fallback":
            self._fall_back(block)
        else:
            self._writer.between()

    def _fall_back(self, block: dict[str, Any]) -> None:
        """Read where a model declined and another one continues. The client's calls before it are abandoned."""
        self._writer.between()
        self._open.clear()
        output = self.reading.output
        kept = [part for part in output[self._abandoned :] if not isinstance(part, ToolCall) or part.server_side]
        output[self._abandoned :] = kept
        self._abandoned = len(output)
        self.reading.model = as_text(as_dict(block.get("to")).get("model")) or self.reading.model

    def _count(self, usage: dict[str, Any]) -> None:
        """Merge a usage object. Counts are cumulative: the last one is valid (see `fold`)."""
        if usage:
            fold(self._usage, usage)
        if not self._usage:
            return
        counted = read_counts(self._usage, COUNTS, INPUT_AND_OUTPUT)
        counted.extra = joined(self._beside, facts_in(self._usage, COUNTS.values()), counted.extra)
        self.reading.usage = counted
        self.reading.iterations = _iterations(self._usage.get("iterations"), counted.extra)


def _iterations(parts: object, answer: Mapping[str, Any]) -> list[Iteration]:
    """Read the iterations that are billed beside the top level. The last row has the sum of those beyond the bound."""
    billed = (
        part
        for part in map(as_dict, as_list(parts))
        if (kind := as_text(part.get("type"))) and kind not in IN_TOP_LEVEL
    )
    found = [_iteration(part, answer) for part in islice(billed, MAX_ITERATIONS)]
    rest = [read_counts(part, COUNTS, INPUT_AND_OUTPUT) for part in billed]
    if rest:
        total = Usage(
            input_tokens=sum(usage.input_tokens for usage in rest),
            output_tokens=sum(usage.output_tokens for usage in rest),
            cache_read_input_tokens=sum(usage.cache_read_input_tokens for usage in rest),
            cache_write_input_tokens=sum(usage.cache_write_input_tokens for usage in rest),
            extra=facts_of_iteration(answer, {LEFT_OUT: len(rest)}),
            complete=False,
        )
        found.append(Iteration(REST, "", total))
    return found


def _iteration(part: dict[str, Any], answer: Mapping[str, Any]) -> Iteration:
    """Read an iteration. `answer` has the facts about the whole answer."""
    kind = as_text(part.get("type")).removesuffix("_message")
    usage = read_counts(part, COUNTS, INPUT_AND_OUTPUT)
    usage.extra = facts_of_iteration(answer, facts_in(part, (*COUNTS.values(), "type", "model")) | usage.extra)
    return Iteration(kind[:MAX_KIND], as_text(part.get("model")), usage)


def _shows_container(kind: str, block: Mapping[str, Any]) -> bool:
    """Return whether a block is of code that runs in a container of Anthropic's, or a call that such code made."""
    caller = as_text(as_dict(block.get("caller")).get("type"))
    return kind.endswith("code_execution_tool_result") or caller.startswith("code_execution")


def fold(known: dict[str, Any], usage: Mapping[str, Any]) -> None:
    """Merge a later usage object of a stream into the known one.

    Counts are cumulative, so the last one is valid. Some servers repeat counts of the input as zeros, which replace
    nothing. The zeros of a full set are meant if one of its counts of the input is not zero.
    """
    meant = _meant_zeros(known, usage)
    _merge(known, usage, meant)
    if WRITTEN in meant and not as_count(known.get(WRITTEN)) and LIFETIMES in known:
        known[LIFETIMES] = dict.fromkeys(as_dict(known[LIFETIMES]), 0)


def _meant_zeros(known: Mapping[str, Any], usage: Mapping[str, Any]) -> Collection[str]:
    """Return the names of counts that a later usage object replaces even if they are zero."""
    counts = {name: as_count(usage.get(name)) for name in INPUT}
    if not any(counts.values()) or any(usage.get(name) is None for name in FULL_SET):
        return ()
    if counts[WRITTEN] and counts[WRITTEN] == as_count(known.get(WRITTEN)):
        # A cache is written behind what is read from it, so the same write follows the same read.
        return ("input_tokens", "output_tokens")
    return (*INPUT, "output_tokens")


def _merge(known: dict[str, Any], later: Mapping[str, Any], meant: Collection[str]) -> None:
    for name, value in later.items():
        before = known.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            _merge(before, value, value.keys() if any(map(as_count, value.values())) else ())
        elif (value and maybe_count(value) != 0) or before is None or (name in meant and value is not None):
            known[name] = dict(value) if isinstance(value, dict) else value
