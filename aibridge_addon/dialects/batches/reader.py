"""Results of batches, when they are fetched: JSON lines, one for each request of the batch.

- Anthropic, "Retrieve Message Batch results": `{"custom_id", "result": {"type": "succeeded", "message": {…}}}`.
- OpenAI, "Batch API", the output file: `{"custom_id", "response": {"status_code": 200, "body": {…}}, "error"}`.

OpenAI's route also returns files that are no results of a batch. The first line decides, and such a file is not read.
No line is kept. Of a line too long to be kept for the moment, the usage is searched at its end.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from aibridge_addon.dialects.base import (
    NOTHING,
    UNREAD,
    UNREAD_USAGE,
    AnswerReader,
    Dialect,
    Reading,
    RequestReading,
    Usage,
    hosted_types,
)
from aibridge_addon.dialects.batches.sums import Sums
from aibridge_addon.dialects.chat_completions.reader import ChatCompletionsReader
from aibridge_addon.dialects.hosted_calls import count_hosted
from aibridge_addon.dialects.messages.reader import MessagesReader
from aibridge_addon.dialects.responses.reader import ResponsesReader
from aibridge_addon.dialects.usage_only.members import members_in
from aibridge_addon.dialects.usage_only.reader import UsageReader
from aibridge_addon.wire.body_edges import BodyEdges
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode
from aibridge_addon.wire.json_values import as_dict, as_list, as_text

UNREAD_CALLS = "tool: calls not readable"
"""Why a line has no cost that is too long to be kept and contains a call of a hosted tool."""
_hosted_call = re.compile(
    rb'"type"\s*:\s*"(?!function_call|custom_tool_call)\w{1,64}_call"|"name"\s*:\s*"\w{0,64}code_execution"'
).search


class BatchReader(AnswerReader):
    in_pieces = True

    def __init__(self) -> None:
        super().__init__()
        self._line = BodyEdges()
        self._sums = Sums()
        self._is_first = True
        self._missed = False
        """Something that may be billed could not be read."""

    @abstractmethod
    def is_result(self, line: Mapping[str, Any]) -> bool:
        """Return whether a line is a result of a batch."""

    @abstractmethod
    def answer_in(self, line: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the provider's answer in a line. Empty if the request did not succeed."""

    @abstractmethod
    def reader_of(self, answer: Mapping[str, Any]) -> AnswerReader:
        """Return the reader for an answer."""

    @property
    def skip(self) -> Callable[[bytes], object]:
        return bool

    def read(self, name: str, event: Any) -> None:
        """Ignore events: results are no event stream."""

    def message(self, body: dict[str, Any]) -> None:
        """Read one line."""
        if self._is_first and not self.is_result(body):
            self.reading.foreign = True
            return
        self._is_first = False
        if answer := self.answer_in(body):
            self._add(answer)

    def piece(self, data: bytes) -> None:
        if self.reading.foreign:
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._line.feed(line)
            self._line_ended()
        self._line.feed(rest)

    def body_ended(self, *, cut: bool) -> None:
        reading = self.reading
        if not cut:
            self._line_ended()
        first, *others = [*self._sums] or [None]
        if first is not None:
            reading.model, reading.usage = first.model, first.usage
        reading.iterations = [other for other in others if other is not None]
        reading.foreign = reading.foreign or self._is_first
        reading.ended = not cut
        reading.finished = not cut and not self._missed

    def _line_ended(self) -> None:
        line, self._line = self._line, BodyEdges()
        if self.reading.foreign:
            return
        whole = line.whole
        if whole is None:
            self._long_line(line)
        elif whole.strip():
            try:
                self.message(as_dict(decode(whole)))
            except (NotJSON, Unreadable):
                self._unreadable()

    def _long_line(self, line: BodyEdges) -> None:
        tail, head = line.windows
        found = members_in(tail, head)
        if self._is_first and not (line.is_object and b'"custom_id"' in head[:4096]):
            self.reading.foreign = True
        elif "usage" in found:
            self._is_first = False
            self._add(found, UNREAD_CALLS if _hosted_call(tail) or _hosted_call(head) else None)
        else:
            self._unreadable()

    def _unreadable(self) -> None:
        if self._is_first:
            self.reading.foreign = True
            return
        self._missed = True
        self._sums.add(Reading(usage=Usage(unpriced=UNREAD_USAGE, complete=False)))

    def _add(self, answer: Mapping[str, Any], unpriced: str | None = None) -> None:
        """Add an answer. `unpriced`: why it has no price."""
        reader = self.reader_of(answer)
        reader.message(dict(answer))
        reading = reader.reading
        if reading.usage is not None:
            offered = [as_text(as_dict(tool).get("type")) for tool in as_list(answer.get("tools"))]
            reading.usage.hosted_calls = count_hosted(reading.tool_calls, hosted_types(offered))
            if unpriced is not None:
                reading.usage.unpriced = reading.usage.unpriced or unpriced
        elif reading.error is None:
            reading.usage = Usage(unpriced=UNREAD_USAGE, complete=False)
        if not self._sums.add(reading):
            self._missed = True


class MessageBatchReader(BatchReader):
    def is_result(self, line: Mapping[str, Any]) -> bool:
        return "custom_id" in line and "result" in line

    def answer_in(self, line: Mapping[str, Any]) -> Mapping[str, Any]:
        result = as_dict(line.get("result"))
        return as_dict(result.get("message")) if result.get("type") == "succeeded" else {}

    def reader_of(self, answer: Mapping[str, Any]) -> AnswerReader:
        return MessagesReader(texts=False)


class FileOfResultsReader(BatchReader):
    def is_result(self, line: Mapping[str, Any]) -> bool:
        return "custom_id" in line and "response" in line

    def answer_in(self, line: Mapping[str, Any]) -> Mapping[str, Any]:
        response = as_dict(line.get("response"))
        return as_dict(response.get("body")) if response.get("status_code") == 200 else {}

    def reader_of(self, answer: Mapping[str, Any]) -> AnswerReader:
        kind = as_text(answer.get("object"))
        if kind == "chat.completion":
            return ChatCompletionsReader(texts=False)
        return ResponsesReader(texts=False) if kind == "response" else UsageReader()


class BatchResults(Dialect):
    name = "batch_results"

    def __init__(self, errors: Dialect, reader: Callable[[], BatchReader]) -> None:
        """`errors` is the provider's dialect, whose errors are used."""
        super().__init__()
        self._errors = errors
        self._reader = reader

    def read_request(self, body: JSONObject) -> RequestReading:
        return UNREAD

    def answer_reader(self, *, texts: bool = True) -> AnswerReader:
        return self._reader()

    def error_body(self, status: int, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return self._errors.error_body(status, message, details)

    def error_event(self, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return self._errors.error_event(message, details)
