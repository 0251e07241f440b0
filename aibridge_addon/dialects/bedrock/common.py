"""What Bedrock's own two dialects, Converse and InvokeModel, share: framing, headers and errors.

Sources: Amazon Bedrock API reference (`bedrock-runtime`), "Common errors", and botocore's model of the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from aibridge_addon.dialects.base import NOTHING, AnswerError, AnswerReader, Dialect, Usage
from aibridge_addon.wire import aws_eventstream
from aibridge_addon.wire.framing import BY_AWS, Framing
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_text

ERROR_TYPES = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    407: "UnrecognizedClientException",
    408: "ModelTimeoutException",
    413: "ValidationException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}
"""Error types by status; anything else is an `InternalServerException`."""

REQUEST_ID = "x-amzn-requestid"
ERROR_TYPE = "x-amzn-errortype"
SERVICE_TIER = "x-amzn-bedrock-service-tier"
TOKEN_COUNTS = {
    "input_tokens": "x-amzn-bedrock-input-token-count",
    "output_tokens": "x-amzn-bedrock-output-token-count",
    "cache_read_input_tokens": "x-amzn-bedrock-cache-read-input-token-count",
    "cache_write_input_tokens": "x-amzn-bedrock-cache-write-input-token-count",
}
"""Where a body's tokens are counted, whatever model wrote it."""


class BedrockDialect(Dialect):
    """Requests name neither the model nor whether they stream: the path says both."""

    def __init__(self, *, streaming: bool) -> None:
        super().__init__()
        self.streaming = streaming

    def error_body(self, status: int, message: str) -> bytes:
        return encode({"message": message})

    def error_headers(self, status: int) -> Mapping[str, str]:
        return {ERROR_TYPE: ERROR_TYPES.get(status, "InternalServerException")}

    def error_event(self, message: str, told: Mapping[str, Any] = NOTHING) -> bytes:
        headers = {
            ":message-type": "exception",
            ":exception-type": "internalServerException",
            ":content-type": "application/json",
        }
        return aws_eventstream.encode(headers, encode({"message": message, **told}))


class BedrockReader(AnswerReader):
    framings: ClassVar[Mapping[str, Framing]] = BY_AWS

    def __init__(self) -> None:
        super().__init__()
        self.counted: Usage | None = None
        """What the headers say of the tokens."""
        self._error_type = ""

    def head(self, headers: Mapping[str, str]) -> None:
        self.reading.response_id = headers.get(REQUEST_ID, "")
        # `ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/`
        self._error_type = headers.get(ERROR_TYPE, "").partition(":")[0]
        counts = {name: _count(headers.get(header, "")) for name, header in TOKEN_COUNTS.items()}
        if any(counts.values()):
            tier = headers.get(SERVICE_TIER)
            self.counted = Usage(**counts, extra={"service_tier": tier} if tier else {})

    def failure(self, status: int, body: bytes) -> None:
        try:
            told = as_dict(decode(body))
        except (NotJSON, Unreadable):
            told = {}
        if "error" in told:  # a gateway between us and Bedrock, in its own vendor's shape
            super().failure(status, body)
            return
        kind = self._error_type or as_text(told.get("__type")).rpartition("#")[2] or f"http_{status}"
        self.reading.error = AnswerError(kind, as_text(told.get("message")) or as_text(told.get("Message")))


def _count(value: str) -> int:
    return as_count(int(value)) if value.isascii() and value.isdigit() and len(value) < 20 else 0
