"""OpenAI routes of which only the model and the usage are recorded: embeddings, images, audio and so on.

As of the API reference, an answer has its `usage` at the top level. Streams have it in their last event:
`image_generation.completed`, `transcript.text.done`, `speech.audio.done`, or a chunk of legacy completions before
`[DONE]`. Answers can be large (images, vectors) or no JSON (audio, subtitles), so they are read piece by piece.

Some models are not billed by tokens: whisper by the minute, speech by the character, older image models by the image.
Their answers have no token counts. The token row then says what is known in its metadata, and why it has no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from aibridge_addon.dialects import openai
from aibridge_addon.dialects.base import (
    DONE,
    MAX_WISH,
    NOTHING,
    AnswerReader,
    Dialect,
    RequestReading,
    Usage,
)
from aibridge_addon.dialects.errors import error_of_event
from aibridge_addon.dialects.usage import facts_in, joined
from aibridge_addon.dialects.usage_only.members import error_in_edges, members_of, plain
from aibridge_addon.wire import sse
from aibridge_addon.wire.body_edges import BodyEdges
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_count, as_dict, as_text

UNCOUNTED = "usage: no token counts"
"""Why an answer has no price, unless it states its cost or its model is free."""
WISHES = ("service_tier", "prompt_cache_retention")
"""Members of a request that may decide the price. `/v1/responses/compact` has both."""
CIRCUMSTANCES = ("size", "quality", "output_format", "service_tier")
"""Members of an answer on which its price may depend."""
READ = (b'"usage"', b'"error', b"event: error", b'"detail"', b".completed", b".done", DONE)
"""Parts of the events that are read."""
END_OF_STREAM = (".completed", ".done")
"""Suffixes of the last event's type."""


class UsageOnly(Dialect):
    name = "usage_only"
    takes_forms = True
    may_stream_without_usage: ClassVar[bool] = False
    """Streams have usage only if the request asks for it, as for chat completions."""
    file_modality: ClassVar[str] = "audio"

    def __init__(self, *, side_call: bool = False) -> None:
        super().__init__()
        self._side_call = side_call

    def read_request(self, body: JSONObject) -> RequestReading:
        return self._read(body.get)

    def read_form(self, fields: Mapping[str, str]) -> RequestReading:
        """Read a form. Its file is audio or a picture, which may be billed otherwise than text."""
        reading = self._read(fields.get)
        return replace(reading, requested={**reading.requested, "modality": self.file_modality})

    def _read(self, member: Callable[[str], Any]) -> RequestReading:
        streaming = member("stream") in (True, "true") or member("stream_format") == "sse"
        asked = as_dict(member("stream_options")).get("include_usage") is True
        return RequestReading(
            model=as_text(member("model")),
            streaming=streaming,
            prompt=None,
            correlating_tool_call_id=None,
            side_call=self._side_call,
            wants_usage=asked or not (streaming and self.may_stream_without_usage),
            billed_by=self.billed_by(member),
            requested={name: value[:MAX_WISH] for name in WISHES if (value := as_text(member(name)))},
        )

    def billed_by(self, member: Callable[[str], Any]) -> Mapping[str, Any]:
        """Return what a request says about its price, other than the model."""
        return NOTHING

    def answer_reader(self, *, texts: bool = True) -> AnswerReader:
        return UsageReader()

    def error_body(self, status: int, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return openai.error_body(status, message, details)

    def error_event(self, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return sse.event("", openai.error_body(500, message, details))


class Completions(UsageOnly):
    """Legacy completions."""

    may_stream_without_usage = True


class Images(UsageOnly):
    file_modality = "image"

    def read_request(self, body: JSONObject) -> RequestReading:
        reading = super().read_request(body)
        if "image" not in body and "images" not in body:
            return reading
        return replace(reading, requested={**reading.requested, "modality": self.file_modality})

    def billed_by(self, member: Callable[[str], Any]) -> Mapping[str, Any]:
        count = member("n")  # a text in a form
        if isinstance(count, str):
            count = int(count) if count.isascii() and count.isdigit() and len(count) < 4 else 1
        return {"images": as_count(count) or 1} | plain({name: member(name) for name in ("size", "quality")})


class Speech(UsageOnly):
    def billed_by(self, member: Callable[[str], Any]) -> Mapping[str, Any]:
        return {"input_characters": len(as_text(member("input")))}


class UsageReader(AnswerReader):
    in_pieces = True

    def __init__(self) -> None:
        super().__init__()
        self._edges = BodyEdges()
        self._body_is_text = True

    def head(self, headers: Mapping[str, str]) -> None:
        self._body_is_text = not headers.get("content-type", "").startswith(("audio/", "image/", "video/"))

    @property
    def skip(self) -> Callable[[bytes], object]:
        return _has_no_usage

    def read(self, name: str, event: Any) -> None:
        reading = self.reading
        if event == DONE:
            reading.finished = reading.error is None
            reading.ended = True
            return
        members = as_dict(event)
        kind = as_text(members.get("type")) or name
        if error := error_of_event(members | {"type": kind}, default_type="server_error"):
            reading.error = error
            reading.ended = True
            return
        self._members(members)
        if kind.endswith(END_OF_STREAM):
            reading.finished = reading.ended = True

    def stream_ended(self) -> None:
        self._settle()

    def message(self, body: dict[str, Any]) -> None:
        self._members(body)

    def piece(self, data: bytes) -> None:
        if self._body_is_text:
            self._edges.feed(data)

    def body_ended(self, *, cut: bool) -> None:
        members = members_of(self._edges) if self._edges.is_object else {}
        if not members.get("usage") and (error := error_in_edges(self._edges, default_type="server_error")):
            self.reading.error = error
            self.reading.ended = True
            return
        self.message(members)
        self.reading.finished = self.reading.ended = not cut
        self._settle()

    def _members(self, members: Mapping[str, Any]) -> None:
        reading = self.reading
        reading.response_id = as_text(members.get("id")) or reading.response_id
        reading.model = as_text(members.get("model")) or reading.model
        usage = as_dict(members.get("usage"))
        circumstances = plain({name: members.get(name) for name in CIRCUMSTANCES})
        if "prompt_tokens" in usage:
            reading.usage = openai.read_usage(usage, "prompt_tokens", "completion_tokens")
        elif "input_tokens" in usage:
            reading.usage = openai.read_usage(usage, "input_tokens", "output_tokens")
        elif usage or "duration" in members:
            seconds = usage.get("seconds", members.get("duration"))
            reading.usage = Usage(unpriced=UNCOUNTED, extra=joined(facts_in(usage), plain({"seconds": seconds})))
        if reading.usage is not None:
            reading.usage.extra.update(circumstances)

    def _settle(self) -> None:
        """Complete the usage of an answer without any."""
        reading = self.reading
        if reading.usage is None and reading.error is None:
            reading.usage = Usage(unpriced=UNCOUNTED)


def _has_no_usage(raw: bytes) -> bool:
    # Quotes inside a JSON string are escaped, so these bytes can only be names of members.
    return not any(name in raw for name in READ)
