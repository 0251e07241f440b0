"""Injected tools in Messages requests of InvokeModel, and one answer out of several turns in AWS's framing.

Source: Amazon Bedrock user guide, "Anthropic Claude Messages API". A stream consists of `chunk` messages, each with a
Messages event as base64. An unchanged message passes byte for byte.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Collection, Mapping
from typing import Any

from aibridge_addon.dialects.base import decode_event, event_members
from aibridge_addon.dialects.bedrock.heads import Heads
from aibridge_addon.dialects.bedrock.invoke import METRICS
from aibridge_addon.dialects.messages.inject import MessagesInjection
from aibridge_addon.dialects.messages.splice import MessagesSplice
from aibridge_addon.dialects.turns import combined_usage
from aibridge_addon.wire.aws_eventstream import CorruptEventStream
from aibridge_addon.wire.framing import AWS_EVENT_STREAM, framing_of_event
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_text

CHUNK = "chunk"
WITHOUT_TOOLS = ("anthropic.claude-v2", "anthropic.claude-instant")
"""Parts of the ids of Anthropic's models that take no tools."""
CONVERSATION = ("inputTokenCount", "cache", "firstByteLatency")
"""Prefixes of the metrics that are the first turn's."""
WORK = "outputTokenCount"
LATENCY = "invocationLatency"


class InvokeInjection(MessagesInjection):
    def __init__(self, model: str = "") -> None:
        self._model = model

    def for_model(self, model: str) -> InvokeInjection:
        return InvokeInjection(model)

    def may_inject(self, body: JSONObject) -> bool:
        """Refuse also requests in the formats of other vendors."""
        is_messages = "anthropic_version" in body and "messages" in body
        return is_messages and not any(part in self._model for part in WITHOUT_TOOLS) and super().may_inject(body)

    def splice(self, injected: Collection[str], own: Collection[str] = ()) -> InvokeSplice:
        return InvokeSplice(injected, own)


class InvokeSplice(MessagesSplice):
    framing = AWS_EVENT_STREAM

    def __init__(self, injected: Collection[str], own: Collection[str] = ()) -> None:
        super().__init__(injected, own)
        self._heads = Heads()
        self._metrics: list[dict[str, Any]] = []
        """Bedrock's metrics of each turn, which its last chunk has."""

    def head(self, headers: Mapping[str, str]) -> None:
        self._heads.add(headers)

    @property
    def headers(self) -> Mapping[str, str]:
        return self._heads.merged()

    def event(self, raw: bytes, name: str, event: Any) -> bytes:
        if name != CHUNK:
            return super().event(raw, name, event)
        try:
            inner = as_dict(decode_event(_content(as_dict(event).get("bytes"))))
        except (NotJSON, Unreadable):
            inner = {}
        if metrics := as_dict(inner.get(METRICS)):
            self._metrics.append(metrics)
        return super().event(raw, "", inner)

    def shows_call(self, data: bytes) -> object:
        try:
            return super().shows_call(self.parse(data)[1] or b"")
        except (NotJSON, Unreadable):
            return super().shows_call(data)

    def parse(self, raw: bytes) -> tuple[str, bytes | None]:
        try:
            name, data = framing_of_event(raw).parse(raw)
        except CorruptEventStream as e:
            raise NotJSON(str(e)) from e
        if name != CHUNK or data is None:
            return name, data
        return "", _content(event_members(data).get("bytes"))

    def changed(self, raw: bytes, name: str, data: bytes) -> bytes:
        framing = framing_of_event(raw)
        _, outer = framing.parse(raw)
        if framing is not AWS_EVENT_STREAM or outer is None:
            return framing.changed(raw, name, data)
        return framing.changed(raw, CHUNK, event_members(outer).replaced({"bytes": encode(b64encode(data).decode())}))

    def last_event(self, raw: bytes, name: str, members: dict[str, Any]) -> bytes:
        if name == "message_stop" and self._metrics:
            merged = combined_usage(self._metrics, CONVERSATION, WORK)
            latency = sum(as_count(metrics.get(LATENCY)) for metrics in self._metrics)
            members = members | {METRICS: merged | ({LATENCY: latency} if LATENCY in merged else {})}
        if raw and framing_of_event(raw) is not AWS_EVENT_STREAM:
            return super().last_event(raw, name, members)
        return self.framed(name, members)

    def framed(self, name: str, event: Any) -> bytes:
        return self.framing.frame(CHUNK, encode({"bytes": b64encode(encode(event)).decode()}))

    def keepalive(self) -> bytes:
        return self.framing.frame("ping", b"{}")


def _content(encoded: object) -> bytes:
    """Return the bytes in a chunk. Raises NotJSON."""
    try:
        return a2b_base64(as_text(encoded))
    except (NotBase64, ValueError) as e:
        raise NotJSON("the bytes of a chunk are not base64") from e
