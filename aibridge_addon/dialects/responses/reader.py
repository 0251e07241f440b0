"""OpenAI Responses, as of the API reference (`POST /responses`, "Streaming events").

A stream consists of `response.created`, the deltas of each output item followed by `response.output_item.done`, and one
of `response.completed`, `response.incomplete` or `response.failed` with the complete response and its usage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from aibridge_addon.dialects import openai
from aibridge_addon.dialects.base import (
    NOTHING,
    AnswerError,
    AnswerReader,
    Dialect,
    RequestReading,
    Thought,
    ToolCall,
    arguments,
    decode_event,
    hosted_tools,
    requested,
)
from aibridge_addon.dialects.client_results import MAX_ENTRIES
from aibridge_addon.dialects.context import Shape
from aibridge_addon.dialects.errors import answer_error, error_instead, error_of_event
from aibridge_addon.dialects.limits import RATE_LIMITS
from aibridge_addon.dialects.output import OutputWriter
from aibridge_addon.dialects.responses.results import tool_results
from aibridge_addon.dialects.responses.session import client_metadata, conversation
from aibridge_addon.dialects.room import PART_COST, size_of
from aibridge_addon.dialects.surroundings import codex_directory, surroundings, system_messages
from aibridge_addon.dialects.usage import facts_beside, joined
from aibridge_addon.dialects.words import Said, conversation_end, texts_of
from aibridge_addon.records import ThoughtSource
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

TERMINAL = frozenset(
    ("response.completed", "response.incomplete", "response.failed", "response.cancelled", "response.done")
)
RUNNING = ("queued", "in_progress")
"""Values of `status` of a response that the provider still works on."""
CLIENT_CALLS = frozenset(
    (
        "function_call",
        "custom_tool_call",
        "local_shell_call",
        "shell_call",
        "apply_patch_call",
        "computer_call",
    )
)
"""Output items that the client executes, unless they run in a container or the answer has their output.

The provider executes every other `…_call` without `execution: client`.
"""
CONTAINERS = ("container_reference", "container_auto")
"""Environments of a `shell_call` in which the provider executes it (API documentation, "Shell")."""
THOUGHT_PARTS = (None, "summary_text", "reasoning_text", "output_text", "text")

RESULTS = ("_call_output", "tool_search_output")
"""Ends of the types of items that contain a tool's result."""
MODEL_ITEMS = frozenset(("reasoning", "compaction", "item_reference", "mcp_list_tools", "mcp_approval_request"))
"""Items of the model that are neither messages nor calls."""
USER_TEXTS = ("input_text", "text")

# All other events are parts of an item, which `output_item.done` contains completely. Over a WebSocket an event is its
# data alone.
_skip = re.compile(
    rb'(?:event: |(?:data: )?\{"type": ?")response\.'
    rb"(?!(?:created|completed|incomplete|failed|cancelled|done|output_item\.done)\b)"
).match


# Parts of a text for the user. They are read only if the answer is cut off before their item is done.
_part = re.compile(rb'(?:event: |(?:data: )?\{"type": ?")response\.(?:output_text|refusal)\.delta\b').match
MAX_PARTS = 256 * 1024
"""Bytes of events with parts of the current item. Later ones are not kept."""


class Responses(Dialect):
    name = "responses"
    shape = Shape("input", system=("instructions",))

    def read_request(self, body: JSONObject) -> RequestReading:
        end = conversation_end(_said(body), joined=True)
        return RequestReading(
            model=body.text("model") or "",
            streaming=body.get("stream") is True,
            prompt=end.prompt,
            correlating_tool_call_id=end.call_id,
            side_call=end.side_call or body.get("generate") is False,
            notice=end.notice,
            tool_results=tool_results(body),
            previous_response_id=body.text("previous_response_id") or None,
            conversation=conversation(body),
            client_metadata=client_metadata(body),
            surroundings=surroundings(
                body.get("instructions"),
                *system_messages(body, "input", openai.SYSTEM_ROLES),
                directory=codex_directory(body, "input"),
            ),
            background=body.get("background") is True,
            requested=requested(body, "service_tier", "prompt_cache_retention")
            | openai.cache_lifetime(body)
            | openai.modality_in(body, "input"),
            hosted_tools=hosted_tools(body, openai.CLIENT_TOOLS),
        )

    def answer_reader(self, *, texts: bool = True) -> ResponsesReader:
        return ResponsesReader(texts=texts)

    def error_body(self, status: int, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return openai.error_body(status, message, details)

    def error_event(self, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        code = details.get("code") or details.get("type") or "server_error"
        event = {"message": message, "param": None, **details, "type": "error", "code": code}
        return sse.event("error", encode(event))


def error_message(status: int, message: str, details: Mapping[str, Any] = NOTHING, *, stream_id: str = "") -> bytes:
    """Return an error as one WebSocket message: the HTTP error body with its status, and the lane that it is for."""
    lane = b'"stream_id":%s,' % encode(stream_id) if stream_id else b""
    return b'{"type":"error","status":%d,' % status + lane + openai.error_body(status, message, details)[1:]


def _said(body: JSONObject) -> Iterator[Said]:
    """Yield the user's messages and the results after the model's last answer, the last one first.

    Instructions and unknown items are left out, such as Codex's `configuration_update`.
    """
    text = body.get("input")
    if isinstance(text, str):
        yield Said((text,))
        return
    for item in map(as_dict, islice(body.elements_backwards("input"), MAX_ENTRIES)):
        kind = as_text(item.get("type"))
        if kind == "compaction_trigger":
            yield Said(compaction=True)
        elif kind.endswith(RESULTS):
            yield Said(call_id=as_text(item.get("call_id")))
        elif item.get("role") == "user":
            yield Said(texts_of(item.get("content"), USER_TEXTS))
        elif item.get("role") == "assistant" or kind in MODEL_ITEMS or kind.endswith("_call"):
            return


class ResponsesReader(AnswerReader):
    """Collects completed items. A non-empty list in the terminal event replaces them."""

    def __init__(self, *, texts: bool = True) -> None:
        super().__init__(texts=texts)
        self._items: list[tuple[int, dict[str, Any]]] = []
        """Items by their index in the output. Without an index: after those that are already complete."""
        self._parts: list[bytes] = []
        """Events with parts of a text, since an item was done last."""
        self._left = MAX_PARTS
        self._beside: dict[str, Any] = {}
        self._writer = OutputWriter(self.reading.output, texts=texts)

    @property
    def skip(self) -> Callable[[bytes], object]:
        return self._is_skipped if self._writer.texts else _skip

    def _is_skipped(self, raw: bytes) -> bool:
        if not _skip(raw):
            return False
        if self._left > 0 and _part(raw):
            self._parts.append(bytes(raw))
            self._left -= len(raw)
        return True

    def read(self, name: str, event: Any) -> None:
        event = as_dict(event)
        kind = as_text(event.get("type")) or name
        self._beside = joined(self._beside, facts_beside(event))
        if kind == "response.output_item.done":
            index = event.get("output_index")
            place = len(self._items) if index is None else as_count(index)
            item = as_dict(event.get("item"))
            if self.room.take(PART_COST + size_of(item)):
                self._items.append((place, item))
            self._drop_parts()
        elif kind in TERMINAL:
            status = status_of(kind, event.get("response"))
            self._complete(as_dict(event.get("response")) | {"status": status}, status)
        elif kind == "response.created":
            self._head(as_dict(event.get("response")))
        elif kind == "error":
            self.reading.error = answer_error(event.get("error") or event, default_type="server_error")
            if self.reading.error.type == "error":  # the type of the event, not of the error
                self.reading.error.type = as_text(event.get("code")) or "server_error"
            self.reading.ended = True
        elif kind == RATE_LIMITS:
            self.reading.limits = event
        elif not kind and (error := error_of_event(event, default_type="server_error")):
            self.reading.error = error
            self.reading.ended = True

    def message(self, body: dict[str, Any]) -> None:
        if body.get("object") != "response":
            self.reading.error = error_instead(body, "output", "status", default_type="server_error")
        if self.reading.error is not None:
            self.reading.ended = True
            return
        self._complete(body, as_text(body.get("status")))

    def _complete(self, response: dict[str, Any], status: str) -> None:
        self._head(response)
        reading = self.reading
        self._items = [*enumerate(map(as_dict, as_list(response.get("output"))))] or self._items
        if reading.error is None and (status == "failed" or response.get("error")):
            error = as_dict(response.get("error"))
            kind = error.get("code") or error.get("type")
            reading.error = answer_error(
                {"type": kind, "message": error.get("message")} if error else response.get("error"),
                default_type="server_error",
            )
        elif reading.error is None and status == "cancelled":
            reading.error = AnswerError("response_cancelled", "the response was cancelled")
        reason = as_text(as_dict(response.get("incomplete_details")).get("reason"))
        reading.stop_reason = reason or status or reading.stop_reason
        reading.finished, reading.ended = not reading.running, True
        self._drop_parts()
        self.stream_ended()

    def _drop_parts(self) -> None:
        self._parts.clear()
        self._left = MAX_PARTS

    def stream_ended(self) -> None:
        """Read texts, calls and thoughts from the completed items, and the text of an item that was cut off."""
        items = [item for _, item in sorted(self._items, key=lambda placed: placed[0])]
        done = {as_text(item.get("call_id")) for item in items if as_text(item.get("type")).endswith("_call_output")}
        for item in items:
            self._item(item, done)
        self._items = []
        for raw in self._parts:
            self._cut_text(raw)
        if self._left <= 0:
            self._writer.drop_text()
        self._drop_parts()
        self._writer.between()

    def _cut_text(self, raw: bytes) -> None:
        data = raw if raw.startswith(b"{") else sse.parse(raw)[1]
        with suppress(NotJSON, Unreadable):
            self._writer.text(as_text(as_dict(decode_event(data or b"")).get("delta")))

    def _head(self, response: dict[str, Any]) -> None:
        reading = self.reading
        reading.response_id = as_text(response.get("id")) or reading.response_id
        reading.model = as_text(response.get("model")) or reading.model
        reading.running = response.get("status") in RUNNING
        self._beside = joined(self._beside, facts_beside(response))
        if usage := as_dict(response.get("usage")):
            reading.usage = openai.read_usage(usage, "input_tokens", "output_tokens")
        if reading.usage is not None:
            reading.usage.extra = joined(self._beside, reading.usage.extra, self._beside)

    def _item(self, item: dict[str, Any], done: Collection[str]) -> None:
        """Read an item. `done`: ids of the calls whose output the answer has."""
        kind = as_text(item.get("type"))
        if kind == "message" and item.get("phase") != "commentary":
            for part in map(as_dict, as_list(item.get("content"))):
                self._writer.text(as_text(part.get("text")) or as_text(part.get("refusal")))
            return
        self._writer.between()
        if kind == "reasoning":
            self._think(item.get("summary"), "reasoning_summary")
            self._think(item.get("content"), "thinking")
        elif kind == "message":
            self._think(item.get("content"), "commentary")
        elif kind.endswith("_call"):
            call = read_call(item)
            call.server_side = call.server_side or call.call_id in done
            self._writer.part(call)

    def _think(self, parts: object, source: ThoughtSource) -> None:
        for part in map(as_dict, as_list(parts)):
            if part.get("type") in THOUGHT_PARTS and (text := as_text(part.get("text"))):
                self._writer.part(Thought(text, source))


def status_of(kind: str, response: object) -> str:
    """Return the status that a terminal event says.

    The name of the event is right if the response still has the status of one that runs. `response.done` of compatible
    servers names no status.
    """
    status = as_text(as_dict(response).get("status"))
    named = "completed" if kind == "response.done" else kind.removeprefix("response.")
    return named if not status or status in RUNNING else status


def read_call(item: dict[str, Any]) -> ToolCall:
    """Read a call, in an answer or in a request."""
    kind = as_text(item.get("type"))
    return ToolCall(
        call_id=as_text(item.get("call_id")) or as_text(item.get("id")),
        name=as_text(item.get("name")) or kind,
        input=_call_input(item),
        server_side=_is_hosted(kind, item),
        server_name=as_text(item.get("server_label")) or None,
    )


def _is_hosted(kind: str, item: dict[str, Any]) -> bool:
    if kind == "shell_call" and as_dict(item.get("environment")).get("type") in CONTAINERS:
        return True
    return kind not in CLIENT_CALLS and item.get("execution") != "client"


def _call_input(item: dict[str, Any]) -> Any:
    """Return the input of a call. The name of the member depends on the kind of call."""
    if item.get("arguments") is not None:
        return arguments(item["arguments"])
    for name in ("input", "action", "operation"):
        if name in item:
            return item[name]
    return {name: item[name] for name in ("queries", "code") if name in item}
