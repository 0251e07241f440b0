"""Bedrock's InvokeModel: each vendor's own format in AWS's framing. Anthropic's models use Messages.

A request is a Messages body without `model` and `stream`. A stream consists of `chunk` messages. Their payload contains
the vendor's event as base64: `{"bytes": …}`. For every model, Bedrock adds `amazon-bedrock-invocationMetrics` to the
last one. For other vendors' models only these metrics, and the token headers of blocking answers, are read.
"""

from __future__ import annotations

import re
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aibridge_addon.dialects.base import RequestReading, Usage, counts_beside, decode_event
from aibridge_addon.dialects.bedrock.common import BedrockDialect, BedrockReader
from aibridge_addon.dialects.messages.reader import Messages, MessagesReader
from aibridge_addon.wire.json_object import JSONObject, NotJSON
from aibridge_addon.wire.json_values import as_count, as_dict, as_text

METRICS = "amazon-bedrock-invocationMetrics"
NOT_TOKENS = frozenset(("invocationLatency", "firstByteLatency"))
"""Members of the metrics that are durations in milliseconds."""
COLUMNS = frozenset(("inputTokenCount", "outputTokenCount", "cacheReadInputTokenCount", "cacheWriteInputTokenCount"))

# As in Messages: these deltas contain nothing to record and are most of a stream.
_skip = re.compile(
    rb'\{"type": ?"content_block_delta"[^{]*\{"type": ?"(?:text|signature|citations)_delta"',
).match

_messages = Messages()


class Invoke(BedrockDialect):
    name = "invoke"

    def read_request(self, body: JSONObject) -> RequestReading:
        return replace(_messages.read_request(body), model="", streaming=self.streaming)

    def answer_reader(self) -> InvokeReader:
        return InvokeReader()


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
        if _skip(raw):
            return
        members = as_dict(decode_event(raw))
        if isinstance(members.get("type"), str):
            super().read("", members)
        if metrics := as_dict(members.get(METRICS)):
            self._measured(metrics)

    def message(self, body: dict[str, Any]) -> None:
        if body.get("type") == "message":
            super().message(body)
        self.reading.finished = self.reading.ended = True
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
        self._complete(
            Usage(
                input_tokens=as_count(metrics.get("inputTokenCount")),
                output_tokens=as_count(metrics.get("outputTokenCount")),
                cache_read_input_tokens=as_count(metrics.get("cacheReadInputTokenCount")),
                cache_write_input_tokens=as_count(metrics.get("cacheWriteInputTokenCount")),
                extra=counts_beside(metrics, COLUMNS | NOT_TOKENS),
            )
        )

    def _complete(self, counted: Usage | None) -> None:
        usage = self.reading.usage
        if usage is None or counted is None:
            self.reading.usage = usage or counted
            return
        usage.cache_read_input_tokens = usage.cache_read_input_tokens or counted.cache_read_input_tokens
        usage.cache_write_input_tokens = usage.cache_write_input_tokens or counted.cache_write_input_tokens


def _never(_raw: bytes) -> bool:
    return False
