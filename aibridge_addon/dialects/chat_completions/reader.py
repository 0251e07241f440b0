"""OpenAI Chat Completions, as of the API reference (`POST /chat/completions`, "chat.completion.chunk").

A stream is a sequence of unnamed events, each with one chunk (`choices[].delta`), and ends with `[DONE]`. The place of
the usage depends on the provider. The last usage in the stream is the right one:

- OpenAI sends it in a last chunk without choices, if `include_usage` is set.
- Copilot sends it in the chunk with the finish reason.
- vLLM sends it in every chunk, cumulatively.
- Groq sends it in `x_groq`, Moonshot in a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

import msgspec

from aibridge_addon.dialects import openai
from aibridge_addon.dialects.base import (
    DONE,
    NOTHING,
    AnswerReader,
    Dialect,
    Output,
    RequestReading,
    ToolCall,
    hosted_tools,
    hosted_types,
    requested,
)
from aibridge_addon.dialects.chat_completions.calls import StreamedCall, StreamedCalls
from aibridge_addon.dialects.chat_completions.frame import Frame
from aibridge_addon.dialects.chat_completions.results import tool_results
from aibridge_addon.dialects.client_results import MAX_ENTRIES
from aibridge_addon.dialects.context import Shape
from aibridge_addon.dialects.errors import AnswerError, answer_error, error_in, error_instead, error_of_event
from aibridge_addon.dialects.output import MAX_ANSWER, MAX_THOUGHT, KeptText
from aibridge_addon.dialects.room import PART_COST, size_of
from aibridge_addon.dialects.surroundings import codex_directory, surroundings, system_messages
from aibridge_addon.dialects.usage import facts_beside, joined
from aibridge_addon.dialects.words import Said, conversation_end, texts_of
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

NO_TIER = b'"service_tier":?'
"""In no chunk, since it is no JSON."""
MAX_CHOICES = 128
"""Maximum number of choices that are kept. OpenAI's `n` is at most 128 (API reference)."""
THOUGHTS = ("reasoning_content", "reasoning", "reasoning_text")
"""Members with the model's reasoning in the answers of compatible servers."""
SEARCHES: Mapping[str, str] = MappingProxyType(
    {"web_search_options": "web_search", "search_parameters": "live_search", "plugins": "plugins"}
)
"""Members of a request that let the provider search, and how the tool is called: OpenAI, xAI, OpenRouter."""


class ChatCompletions(Dialect):
    name = "chat_completions"
    shape = Shape("messages", tools=("tools", "functions"))
    lists_hosted_calls = False

    def read_request(self, body: JSONObject) -> RequestReading:
        end = conversation_end(_said(body))
        streaming = body.get("stream") is True
        include_usage = as_dict(body.get("stream_options")).get("include_usage") is True
        return RequestReading(
            model=body.text("model") or "",
            streaming=streaming,
            prompt=end.prompt,
            correlating_tool_call_id=end.call_id,
            side_call=end.side_call or 1 in (body.get("max_tokens"), body.get("max_completion_tokens")),
            notice=end.notice,
            wants_usage=include_usage or not streaming,
            tool_results=tool_results(body),
            surroundings=surroundings(
                *system_messages(body, "messages", openai.SYSTEM_ROLES), directory=codex_directory(body, "messages")
            ),
            requested=requested(body, "service_tier", "prompt_cache_retention")
            | openai.cache_lifetime(body)
            | openai.modality_in(body, "messages"),
            hosted_tools=_hosted_tools(body),
        )

    def answer_reader(self, *, texts: bool = True) -> ChatCompletionsReader:
        return ChatCompletionsReader(texts=texts)

    def error_body(self, status: int, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return openai.error_body(status, message, details)

    def error_event(self, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return b"data: " + openai.error_body(500, message, details) + b"\n\ndata: [DONE]\n\n"


def _hosted_tools(body: JSONObject) -> tuple[str, ...]:
    searching = [tool for member, tool in SEARCHES.items() if _is_on(body.get(member))]
    return hosted_types((*searching, *hosted_tools(body, openai.CLIENT_TOOLS)))


def _is_on(option: object) -> bool:
    """Return whether a search may run. xAI's `search_parameters` switch it off with `"mode": "off"`."""
    return bool(option) and as_dict(option).get("mode") != "off"


def _said(body: JSONObject) -> Iterator[Said]:
    """Yield the user's messages and the results after the model's last answer, the last one first.

    Messages of other roles are left out, such as `system` and `developer`.
    """
    for message in map(as_dict, islice(body.elements_backwards("messages"), MAX_ENTRIES)):
        role = message.get("role")
        if role in ("assistant", "function"):
            return
        if role == "tool":
            yield Said(call_id=as_text(message.get("tool_call_id")))
        elif role == "user":
            yield Said(texts_of(message.get("content")))


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_text: str | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: tuple[_Choice, ...] = ()


_chunk = msgspec.json.Decoder(_Chunk)


class _Message:
    """The message of one choice, as far as it has arrived."""

    def __init__(self, *, is_first: bool = True) -> None:
        self.text = KeptText()
        self.thought = KeptText(MAX_THOUGHT if is_first else MAX_ANSWER)
        self.calls = StreamedCalls(StreamedCall)
        self.legacy = StreamedCall()
        """The call of a server that still uses `function_call`."""
        self.finished = False

    def say(self, text: str | None, refusal: str | None, *thoughts: str | None) -> None:
        """Add pieces. Some servers repeat a thought under several names: the first one counts."""
        self.text.add(text or "")
        self.text.add(refusal or "")
        self.thought.add(next(filter(None, thoughts), None) or "")

    def grow(self, members: dict[str, Any]) -> None:
        """Add a delta or a whole message, except for its calls."""
        content = members.get("content")
        self.say(as_text(content), as_text(members.get("refusal")), *(as_text(members.get(n)) for n in THOUGHTS))
        for part in map(as_dict, as_list(content)):
            if part.get("type") == "thinking":
                thinking = part.get("thinking")
                self.thought.add(
                    as_text(thinking) or "".join(as_text(as_dict(p).get("text")) for p in as_list(thinking))
                )
            else:
                self.text.add(as_text(part.get("text")) or as_text(part.get("refusal")))
        if members.get("function_call"):
            self.legacy.grow({"function": members["function_call"]})

    def output(self, *, texts: bool, calls: bool) -> Iterator[Output]:
        thought, answer = self.thought.thought("thinking"), self.text.answer() if texts else None
        yield from (part for part in (thought, answer) if part is not None)
        if calls:
            made = [*self.calls.in_order, *([self.legacy] if self.legacy.name else [])]
            yield from (ToolCall(call.id, call.name, call.input) for call in made)


class ChatCompletionsReader(AnswerReader):
    """Collects the message of each choice. Providers interleave tool calls, and some indexes start at 1."""

    def __init__(self, *, texts: bool = True) -> None:
        super().__init__(texts=texts)
        self._messages: dict[int, _Message] = {}
        self._beside: dict[str, Any] = {}
        self._remark: AnswerError | None = None
        """The words of the first chunk that has words instead of choices."""
        self._tier = NO_TIER
        """The service tier as chunks contain it, since OpenAI repeats it in each."""
        self._frame: Frame | None = None
        """What stands around the text of the chunks. None: not known, or what was read since may change it."""
        self._framed = _Message(is_first=False)
        """The choice of these chunks."""
        self._goes_on = False
        """A choice went on after its finish reason: this server sends one in every chunk."""

    @property
    def skip(self) -> Callable[[bytes], object]:
        return self._is_read

    def _is_read(self, raw: bytes) -> bool:
        if self._frame is not None and (text := self._frame.text(raw)) is not None:
            self._framed.text.add(text)
            return True
        if not self._carries_text_only(raw):
            return False
        thinks = b'"reasoning' in raw
        if not thinks and (not self._texts or self._full):
            for message in self._messages.values():
                message.text.truncated = True
            return True
        try:
            chunk = _chunk.decode(raw[raw.find(b"{") :])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
        for choice in chunk.choices:
            delta = choice.delta
            if delta is not None:
                message = self._messages.get(choice.index) or self._message(choice.index)
                self._goes_on = self._goes_on or message.finished
                message.say(
                    delta.content, delta.refusal, delta.reasoning_content, delta.reasoning, delta.reasoning_text
                )
        if len(chunk.choices) == 1 and delta is not None and not thinks and delta.content and not delta.refusal:
            frame = Frame.of(raw)
            if frame is not None and frame.text(raw) == delta.content:
                self._frame, self._framed = frame, message
        return True

    @property
    def _full(self) -> bool:
        return bool(self._messages) and all(message.text.full for message in self._messages.values())

    def _carries_text_only(self, raw: bytes) -> bool:
        # Quotes inside a JSON string are escaped, so these bytes can only be members of the chunk.
        # `_call` matches "tool_calls" and "function_call". A text that contains it is decoded, which is harmless.
        return (
            bool(self.reading.response_id)
            and (b'"finish_reason":null' in raw or b"finish_reason" not in raw)
            and (b'"usage":null' in raw or b'"usage"' not in raw)
            and (b'"service_tier"' not in raw or b'"service_tier":null' in raw or self._tier in raw)
            # The other members of `usage.BESIDE`.
            and b'"cost' not in raw
            and b'_usage"' not in raw
            and b'"speed"' not in raw
            and b'"inference_geo"' not in raw
            and b'"serviceTier"' not in raw
            and b'"performanceConfig"' not in raw
            and b"_call" not in raw
            and b'"error' not in raw
            and b'"detail"' not in raw
            and DONE not in raw
        )

    def _message(self, index: int) -> _Message:
        message = self._messages.get(index)
        if message is None:
            message = _Message(is_first=not self._messages)
            if len(self._messages) < MAX_CHOICES:
                self._messages[index] = message
        return message

    def read(self, name: str, event: Any) -> None:
        self._frame = None
        if event == DONE:
            self._settle_error()
            self.reading.finished = self.reading.error is None
            self._end()
            return
        chunk = as_dict(event)
        self._head(chunk)
        if not chunk.get("choices"):
            self._words_beside(chunk)
        for choice in map(as_dict, as_list(chunk.get("choices"))):
            self._choice(choice, as_dict(choice.get("delta")))

    def _words_beside(self, chunk: dict[str, Any]) -> None:
        """Read the error in a chunk without choices. Words such as a status are one if no choices follow."""
        if self.reading.error is None:
            self.reading.error = error_of_event(chunk, default_type="server_error")
        self._remark = self._remark or error_in(chunk, default_type="server_error")

    def _choice(self, choice: dict[str, Any], delta: dict[str, Any]) -> None:
        message = self._message(as_count(choice.get("index")))
        self._goes_on = self._goes_on or (message.finished and any(delta.values()))
        legacy, calls = delta.get("function_call"), as_list(delta.get("tool_calls"))
        if (legacy or calls) and not self.room.take(size_of(legacy) + size_of(calls)):
            delta, calls = {name: value for name, value in delta.items() if name != "function_call"}, []
        message.grow(delta)
        before = len(message.calls.all)
        for call in map(as_dict, calls):
            message.calls.of(call)
        if begun := len(message.calls.all) - before:
            self.room.take(begun * PART_COST)
        self._finish(choice, message)

    def _finish(self, choice: dict[str, Any], message: _Message) -> None:
        if choice.get("error"):
            self.reading.error = answer_error(choice["error"], default_type="server_error")
        if reason := choice.get("finish_reason"):
            message.finished = self.reading.finished = True
            if as_count(choice.get("index")) == 0:
                self.reading.stop_reason = as_text(reason)

    def message(self, body: dict[str, Any]) -> None:
        self._head(body)
        if self.reading.error is None:
            self.reading.error = error_instead(body, "choices", default_type="server_error")
        for choice in map(as_dict, as_list(body.get("choices"))):
            message = self._message(as_count(choice.get("index")))
            members = as_dict(choice.get("message"))
            message.grow(members)
            for call in map(as_dict, as_list(members.get("tool_calls"))):
                whole = StreamedCall()
                whole.grow(call)
                message.calls.all.append(whole)
            self._finish(choice, message)
        self.reading.finished = self.reading.error is None
        self._end()

    def stream_ended(self) -> None:
        """End after a finish reason, since some servers send no `[DONE]`. A stream that was cut off has no calls."""
        if self.reading.ended:
            return
        self._settle_error()
        finished = self.reading.finished and self.reading.error is None
        if finished and (not self._goes_on or self.reading.usage is not None):
            self._end()
        else:
            self.reading.finished = False
            self._write(calls=False)

    def _settle_error(self) -> None:
        """Read the words of a stream without any choice."""
        if self.reading.error is None and not self._messages and self.reading.usage is None:
            self.reading.error = self._remark

    def _head(self, chunk: dict[str, Any]) -> None:
        """Read the members that every chunk or body has, wherever its provider puts the usage."""
        reading = self.reading
        reading.response_id = reading.response_id or as_text(chunk.get("id"))
        reading.model = as_text(chunk.get("model")) or reading.model
        x_groq = as_dict(chunk.get("x_groq"))
        if x_groq.get("error"):
            reading.error = answer_error(x_groq["error"], default_type="server_error")
        if chunk.get("error"):
            reading.error = error_of_event(chunk, default_type="server_error")
        choices = [*map(as_dict, as_list(chunk.get("choices")))]
        holders = (chunk, x_groq, *choices)
        beside = facts_beside(chunk) | (facts_beside(choices[0]) if choices else {})
        if tier := as_text(chunk.get("service_tier")):
            self._tier = b'"service_tier":' + encode(tier)
        self._beside = joined(self._beside, beside)
        usage = next((usage for holder in holders if (usage := as_dict(holder.get("usage")))), None)
        if usage is not None:
            counted = openai.read_usage(usage, "prompt_tokens", "completion_tokens")
            if reading.usage is None or counted.any or not counted.complete:  # zeros replace nothing
                reading.usage = counted
        if reading.usage is not None and (usage is not None or beside):
            reading.usage.extra = joined(self._beside, reading.usage.extra, beside)

    def _end(self) -> None:
        self._write(calls=True)
        self.reading.ended = True

    def _write(self, *, calls: bool) -> None:
        for _, message in sorted(self._messages.items()):
            self.reading.output += message.output(texts=self._texts, calls=calls)
        self._messages.clear()
