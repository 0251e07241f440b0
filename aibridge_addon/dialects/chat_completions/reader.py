"""OpenAI Chat Completions, as of the API reference (`POST /chat/completions`, "chat.completion.chunk").

A stream is a sequence of unnamed events, each with one chunk (`choices[].delta`), and ends with `[DONE]`. The place of
the usage depends on the provider. The last usage in the stream is the right one:

- OpenAI sends it in a last chunk without choices, if `include_usage` is set.
- Copilot sends it in the chunk with the finish reason.
- vLLM sends it in every chunk, cumulatively.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aibridge_addon.dialects import openai
from aibridge_addon.dialects.base import (
    DONE,
    NOTHING,
    AnswerReader,
    Dialect,
    RequestReading,
    ToolCall,
    answer_error,
    arguments,
    prompt_in,
)
from aibridge_addon.dialects.chat_completions.results import tool_results
from aibridge_addon.dialects.surroundings import surroundings, system_messages
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text


class ChatCompletions(Dialect):
    name = "chat_completions"

    def read_request(self, body: JSONObject) -> RequestReading:
        prompt, tool_call_id = _conversation_end(body)
        streaming = body.get("stream") is True
        include_usage = as_dict(body.get("stream_options")).get("include_usage") is True
        return RequestReading(
            model=body.text("model") or "",
            streaming=streaming,
            prompt=prompt,
            correlating_tool_call_id=tool_call_id,
            side_call=1 in (body.get("max_tokens"), body.get("max_completion_tokens")),
            wants_usage=include_usage or not streaming,
            tool_results=tool_results(body),
            surroundings=surroundings(*system_messages(body, "messages", openai.SYSTEM_ROLES)),
        )

    def answer_reader(self) -> ChatCompletionsReader:
        return ChatCompletionsReader()

    def error_body(self, status: int, message: str) -> bytes:
        return openai.error_body(status, message)

    def error_event(self, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return b"data: " + openai.error_body(500, message, details) + b"\n\ndata: [DONE]\n\n"


def _conversation_end(body: JSONObject) -> tuple[str | None, str | None]:
    """Return the user's prompt, or the id of the tool result, at the end of the conversation."""
    for entry in body.elements_backwards("messages"):
        message = as_dict(entry)
        role, content = as_text(message.get("role")), message.get("content")
        if role in openai.SYSTEM_ROLES:
            continue
        if role == "tool":
            return None, as_text(message.get("tool_call_id")) or None
        return (prompt_in(content) if role == "user" else None), None
    return None, None


class ChatCompletionsReader(AnswerReader):
    """Collects tool calls by (choice, index). Providers interleave them, and some indexes start at 1."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[tuple[int, int], tuple[ToolCall, list[str]]] = {}

    @property
    def skip(self) -> Callable[[bytes], object]:
        return self._carries_text_only

    def _carries_text_only(self, raw: bytes) -> bool:
        # Quotes inside a JSON string are escaped, so these bytes can only be members of the chunk.
        # `_call` matches "tool_calls" and "function_call". A text that contains it is decoded, which is harmless.
        return (
            bool(self.reading.response_id)
            and (b'"finish_reason":null' in raw or b"finish_reason" not in raw)
            and (b'"usage":null' in raw or b'"usage"' not in raw)
            and b"_call" not in raw
            and b'"error"' not in raw
            and DONE not in raw
        )

    def read(self, name: str, event: Any) -> None:
        if event == DONE:
            self._end()
            return
        chunk = as_dict(event)
        if chunk.get("error"):
            self.reading.error = answer_error(chunk["error"], default_type="server_error")
        self._head(chunk)
        for choice in map(as_dict, as_list(chunk.get("choices"))):
            delta = as_dict(choice.get("delta"))
            for call in map(as_dict, as_list(delta.get("tool_calls"))):
                self._call_delta((as_count(choice.get("index")), as_count(call.get("index"))), call)
            if delta.get("function_call"):
                self._call_delta((as_count(choice.get("index")), -1), {"function": delta["function_call"]})
            if choice.get("finish_reason"):
                self.reading.finished = True

    def message(self, body: dict[str, Any]) -> None:
        self._head(body)
        for choice in map(as_dict, as_list(body.get("choices"))):
            message = as_dict(choice.get("message"))
            for number, call in enumerate(map(as_dict, as_list(message.get("tool_calls")))):
                self._call_delta((as_count(choice.get("index")), number), call)
            if message.get("function_call"):
                self._call_delta((as_count(choice.get("index")), -1), {"function": message["function_call"]})
        self.reading.finished = True
        self._end()

    def stream_ended(self) -> None:
        """End after a finish reason, since some servers send no `[DONE]`."""
        if self.reading.finished and not self.reading.ended:
            self._end()

    def _head(self, chunk: dict[str, Any]) -> None:
        reading = self.reading
        reading.response_id = reading.response_id or as_text(chunk.get("id"))
        reading.model = as_text(chunk.get("model")) or reading.model
        usage = as_dict(chunk.get("usage"))
        tier = chunk.get("service_tier")
        if usage:
            reading.usage = openai.read_usage(usage, "prompt_tokens", "completion_tokens")
        if reading.usage and isinstance(tier, str):
            reading.usage.extra["service_tier"] = tier

    def _call_delta(self, key: tuple[int, int], call: dict[str, Any]) -> None:
        function = as_dict(call.get("function")) or as_dict(call.get("custom"))
        tool_call, pieces = self._calls.setdefault(key, (ToolCall("", "", {}), []))
        tool_call.call_id = tool_call.call_id or as_text(call.get("id"))
        piece = as_text(function.get("name"))
        tool_call.name += "" if piece == tool_call.name else piece  # some servers repeat the name in every delta
        pieces.append(as_text(function.get("arguments")) or as_text(function.get("input")))

    def _end(self) -> None:
        for tool_call, pieces in self._calls.values():
            tool_call.input = arguments("".join(pieces))
            self.reading.output.append(tool_call)
        self._calls.clear()
        self.reading.ended = True
