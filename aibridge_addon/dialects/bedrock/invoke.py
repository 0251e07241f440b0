"""Bedrock's InvokeModel: each vendor's own format in AWS's framing. Anthropic's models use Messages.

A request is a Messages body without `model` and `stream`. A stream consists of `chunk` messages. Their payload contains
the vendor's event as base64: `{"bytes": …}`. For every model, Bedrock adds `amazon-bedrock-invocationMetrics` to the
last one. For other vendors' models only these metrics, and the token headers of blocking answers, are read.
"""

from __future__ import annotations

import re
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from aibridge_addon.dialects.base import RequestReading, Usage, decode_event
from aibridge_addon.dialects.bedrock.common import BedrockDialect, BedrockReader
from aibridge_addon.dialects.errors import error_of_event
from aibridge_addon.dialects.messages.reader import Messages, MessagesReader
from aibridge_addon.dialects.usage import facts_in, read_counts
from aibridge_addon.wire.json_object import JSONObject, NotJSON
from aibridge_addon.wire.json_values import as_dict, as_text

METRICS = "amazon-bedrock-invocationMetrics"
NOT_TOKENS = frozenset(("invocationLatency", "firstByteLatency"))
"""Members of the metrics that are durations in milliseconds."""
COUNTS: Mapping[str, str] = MappingProxyType(
    {
        "input_tokens": "inputTokenCount",
        "output_tokens": "outputTokenCount",
        "cache_read_input_tokens": "cacheReadInputTokenCount",
        "cache_write_input_tokens": "cacheWriteInputTokenCount",
    }
)

# As in Messages: these deltas are most of a stream, and only their text (group 1) is read.
_skip = re.compile(
    rb'\{"type": ?"content_block_delta"[^{]*\{"type": ?"(?:(text)|signature|citations)_delta"',
).match

_messages = Messages()


class Invoke(BedrockDialect):
    name = "invoke"
    shape = Messages.shape

    def read_request(self, body: JSONObject) -> RequestReading:
        return replace(_messages.read_request(body), model="", streaming=self.streaming)

    def answer_reader(self, *, texts: bool = True) -> InvokeReader:
        return InvokeReader(texts=texts)


class InvokeReader(BedrockReader, MessagesReader):
    @property
    def skip(self) -> Callable[[bytes], object]:
        return _never

    def read(self, name: str, event: Any) -> None:
        if name != "chunk":
            super().read(name, event)
            return
        try:
            raw = a2b_base64(as_text(as_dict(event).get("bytes")))
        except (NotBase64, ValueError) as e:
            raise NotJSON("the bytes of a chunk are not base64") from e
        found = _skip(raw)
        if found is not None and (found[1] is None or self._text_read(raw)):
            return
        members = as_dict(decode_event(raw))
        if isinstance(members.get("type"), str):
            super().read("", members)
        if metrics := as_dict(members.get(METRICS)):
            self._measured(metrics)

    def message(self, body: dict[str, Any]) -> None:
        if body.get("type") in ("message", "error"):
            super().message(body)
        else:
            self.reading.error = error_of_event(body, default_type="api_error")
        self.reading.finished = self.reading.error is None
        self.reading.ended = True
        self._complete(self.counted)

    def _head(self, message: dict[str, Any]) -> None:
        request_id = self.reading.response_id
        super()._head(message)
        self.reading.response_id = self.reading.response_id or request_id
        # Prices depend on the prefix of the model id (`us.`, `global.`), which only the request's id has.
        self.reading.model = ""

    def _measured(self, metrics: dict[str, Any]) -> None:
        """Read the metrics of the last chunk. They complete the vendor's usage."""
        self.reading.finished = self.reading.ended = True
        counted = read_counts(metrics, COUNTS)
        counted.extra = facts_in(metrics, (*COUNTS.values(), *NOT_TOKENS)) | counted.extra
        self._complete(counted)

    def _count(self, usage: dict[str, Any]) -> None:
        super()._count({**usage, **self.tier} if usage else usage)

    def _complete(self, counted: Usage | None) -> None:
        usage = self.reading.usage
        if usage is None or counted is None:
            usage = self.reading.usage = usage or counted
            if usage is not None:
                usage.extra |= self.tier
            return
        usage.cache_read_input_tokens = usage.cache_read_input_tokens or counted.cache_read_input_tokens
        usage.cache_write_input_tokens = usage.cache_write_input_tokens or counted.cache_write_input_tokens


def _never(_raw: bytes) -> bool:
    return False
