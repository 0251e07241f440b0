"""Common parts of Bedrock's own dialects, Converse and InvokeModel: framing, headers and errors.

Sources: Amazon Bedrock API reference (`bedrock-runtime`), "Common errors", and botocore's model of the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from aibridge_addon.dialects.base import NOTHING, AnswerReader, Dialect, Usage
from aibridge_addon.dialects.history import History
from aibridge_addon.dialects.turns import Injection
from aibridge_addon.dialects.usage import MAX_TEXT, read_counts
from aibridge_addon.wire import aws_eventstream
from aibridge_addon.wire.framing import BEDROCK_FRAMINGS, Framing
from aibridge_addon.wire.json_object import encode
from aibridge_addon.wire.json_values import maybe_count

ERROR_TYPES: Mapping[int, str] = MappingProxyType(
    {
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
)
"""Error types by status. Any other status is an `InternalServerException`."""

REQUEST_ID = "x-amzn-requestid"
ERROR_TYPE = "x-amzn-errortype"
SERVICE_TIER = "x-amzn-bedrock-service-tier"
TOKEN_COUNTS: Mapping[str, str] = MappingProxyType(
    {
        "input_tokens": "x-amzn-bedrock-input-token-count",
        "output_tokens": "x-amzn-bedrock-output-token-count",
        "cache_read_input_tokens": "x-amzn-bedrock-cache-read-input-token-count",
        "cache_write_input_tokens": "x-amzn-bedrock-cache-write-input-token-count",
    }
)
"""Headers with the token counts of a blocking answer, for every model."""


class BedrockDialect(Dialect):
    """A dialect whose requests name the model, and whether they stream, in the path only."""

    def __init__(self, *, streaming: bool, injection: Injection | None = None, history: History | None = None) -> None:
        super().__init__(injection=injection, history=history)
        self.streaming = streaming

    def error_body(self, status: int, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        return encode({"message": message, **details})

    def error_headers(self, status: int) -> Mapping[str, str]:
        return {ERROR_TYPE: ERROR_TYPES.get(status, "InternalServerException")}

    def error_event(self, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        headers = {
            ":message-type": "exception",
            ":exception-type": "internalServerException",
            ":content-type": "application/json",
        }
        return aws_eventstream.encode(headers, encode({"message": message, **details}))


class BedrockReader(AnswerReader):
    framings: ClassVar[Mapping[str, Framing]] = BEDROCK_FRAMINGS

    def __init__(self, *, texts: bool = True) -> None:
        super().__init__(texts=texts)
        self.counted: Usage | None = None
        """The token counts in the headers."""
        self.tier: Mapping[str, str] = NOTHING
        """The service tier in the headers, as a fact about the answer. AWS bills it, so it replaces the body's."""
        self._error_type = ""

    def head(self, headers: Mapping[str, str]) -> None:
        self.reading.response_id = headers.get(REQUEST_ID, "")
        # `ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/`
        self._error_type = headers.get(ERROR_TYPE, "").partition(":")[0]
        if tier := headers.get(SERVICE_TIER):
            self.tier = {"service_tier": tier[:MAX_TEXT]}
        counts = {name: count for name in TOKEN_COUNTS.values() if maybe_count(count := headers.get(name) or None) != 0}
        if any(count is not None for count in counts.values()):
            self.counted = read_counts(counts, TOKEN_COUNTS)

    def failure(self, status: int, body: bytes) -> None:
        super().failure(status, body)
        error = self.reading.error
        # An error object is from a gateway before Bedrock, in another vendor's format.
        if error is not None and self._error_type and not error.details:
            error.type = self._error_type
