"""Translate Messages requests of a provider with a `bedrock` block, and the answers to them.

    each attempt ─▶ to_bedrock: path, body and signature
    answer's head ─▶ from_bedrock ─▶ the transcoder converts all bytes of the body

The transcoder runs first. So the tap, the splice and the tool loop read what Anthropic itself would have sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mitmproxy import http

from aibridge_addon.config.providers import Bedrock
from aibridge_addon.dialects.bedrock.common import REQUEST_ID
from aibridge_addon.messages_on_bedrock.answer import Transcoder, transcoder
from aibridge_addon.messages_on_bedrock.request import BedrockRequest, choose_model, translate
from aibridge_addon.messages_on_bedrock.signing import NoCredentials, Signer
from aibridge_addon.wire.aws_eventstream import CONTENT_TYPE
from aibridge_addon.wire.codings import CodingError, decode_all
from aibridge_addon.wire.framing import media_type
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable

LARGE = 256 * 1024
"""Bytes. A larger request, and one with a content coding, is translated beside the event loop."""


class Untranslatable(Exception):
    """The request cannot be translated for Bedrock. Carries the status and message for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Translation:
    """The translation of one client request."""

    settings: Bedrock
    signer: Signer
    model: str = ""
    betas: list[str] | None = None
    """The client's `anthropic-beta` headers. AWS receives none of the client's headers."""
    path: str = ""
    sent: bytes | None = None
    """The translated body of the current turn. A further attempt only signs it again."""
    transcoder: Transcoder | None = None
    """Converts the body of the current answer. None: the body is forwarded unchanged."""

    def choose(self, asked: str) -> str:
        """Return the Bedrock model for the model in the client's request."""
        self.model = choose_model(asked, self.settings.model, self.settings.small_fast_model)
        return self.model


async def to_bedrock(request: http.Request, translation: Translation, limit: int) -> None:
    """Translate and sign a Messages request. `limit`: maximum decoded bytes. Raises Untranslatable."""
    translation.transcoder = None
    if translation.sent is None or request.raw_content != translation.sent:
        await _translate(request, translation, limit)
    body = translation.sent or b""
    endpoint = translation.settings.endpoint
    path = endpoint.path + translation.path
    host = endpoint.origin.partition("://")[2]
    headers = {"host": host, "content-type": "application/json"}
    try:
        signed = await translation.signer.sign("POST", endpoint.origin + path, headers, body)
    except NoCredentials as e:
        raise Untranslatable(503, str(e)) from e
    if request.is_http2 or request.is_http3:
        del signed["host"]  # HTTP/2 has it in :authority
    request.scheme, request.host, request.port, request.path = endpoint.scheme, endpoint.host, endpoint.port, path
    fields = (*signed.items(), ("content-length", str(len(body))))
    request.headers = http.Headers([(name.encode(), value.encode()) for name, value in fields])


async def _translate(request: http.Request, translation: Translation, limit: int) -> None:
    if translation.betas is None:
        translation.betas = request.headers.get_all("anthropic-beta")
    content, coding = request.raw_content or b"", request.headers.get("content-encoding")
    make = partial(_translated, content, coding, translation.model, translation.betas, limit)
    made = await asyncio.to_thread(make) if coding or len(content) > LARGE else make()
    translation.path, translation.sent = made.path, made.body
    request.raw_content = made.body


def _translated(content: bytes, coding: str | None, model: str, betas: Sequence[str], limit: int) -> BedrockRequest:
    try:
        body = JSONObject(decode_all(content, coding, limit))
    except (CodingError, NotJSON, Unreadable) as e:
        raise Untranslatable(400, "the request cannot be read, so it cannot be translated for Bedrock") from e
    return translate(body, model, streaming=body.get("stream") is True, betas=betas)


def from_bedrock(response: http.Response, translation: Translation, max_event: int, *, streaming: bool) -> None:
    """Prepare an answer whose head has arrived. `streaming` says whether a stream was requested."""
    headers, status = response.headers, response.status_code
    if REQUEST_ID in headers:
        headers.setdefault("request-id", headers[REQUEST_ID])
    content_type = headers.get("content-type", "")
    translation.transcoder = transcoder(status, content_type, max_event=max_event, streaming=streaming)
    if status >= 400:
        headers["content-type"] = "application/json"
    elif media_type(content_type) == CONTENT_TYPE:
        headers["content-type"] = "text/event-stream; charset=utf-8"
