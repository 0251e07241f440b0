"""A Messages request of a provider with a `bedrock` block on its way to Bedrock, and the answer on its way back.

    each attempt ─▶ to_bedrock: path, body and signature
    answer's head ─▶ from_bedrock ─▶ its bytes come through the transcoder before anything of ours sees them

So the tap, the splice and the tool loop read what Anthropic itself would have sent.
"""

from __future__ import annotations

from dataclasses import dataclass

from mitmproxy import http

from aibridge_addon.config.providers import Bedrock
from aibridge_addon.dialects.bedrock.common import REQUEST_ID
from aibridge_addon.messages_on_bedrock.answer import Transcoder, transcoder
from aibridge_addon.messages_on_bedrock.request import choose_model, translate
from aibridge_addon.messages_on_bedrock.signing import NoCredentials, Signer
from aibridge_addon.wire.codings import CodingError, decode_all
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable


class Untranslatable(Exception):
    """The request cannot go to Bedrock: the status and the message that the client gets."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Translation:
    """Of one client request."""

    settings: Bedrock
    signer: Signer
    model: str = ""
    betas: list[str] | None = None
    """The client's `anthropic-beta` headers; none of its headers goes to AWS."""
    path: str = ""
    sent: bytes | None = None
    """The body that was made for the turn under way: another attempt only signs it again."""
    transcoder: Transcoder | None = None
    """What gives on the answer that has begun; None: it is passed on as it comes."""

    def choose(self, asked: str) -> str:
        """The Bedrock model for the one that the client asked for."""
        self.model = choose_model(asked, self.settings.model, self.settings.small_fast_model)
        return self.model


async def to_bedrock(request: http.Request, translation: Translation, limit: int) -> None:
    """Make a Messages request one of Bedrock's, signed. `limit`: decoded bytes. Raises Untranslatable."""
    translation.transcoder = None
    if translation.sent is None or request.raw_content != translation.sent:
        _translate(request, translation, limit)
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
        del signed["host"]  # it is in :authority
    request.scheme, request.host, request.port, request.path = endpoint.scheme, endpoint.host, endpoint.port, path
    fields = (*signed.items(), ("content-length", str(len(body))))
    request.headers = http.Headers([(name.encode(), value.encode()) for name, value in fields])


def _translate(request: http.Request, translation: Translation, limit: int) -> None:
    try:
        content = decode_all(request.raw_content or b"", request.headers.get("content-encoding"), limit)
        body = JSONObject(content)
    except (CodingError, NotJSON, Unreadable) as e:
        raise Untranslatable(400, "the request cannot be read, so it cannot be translated for Bedrock") from e
    if translation.betas is None:
        translation.betas = request.headers.get_all("anthropic-beta")
    streaming = body.get("stream") is True
    made = translate(body, translation.model, streaming=streaming, betas=translation.betas)
    translation.path, translation.sent = made.path, made.body
    request.raw_content = made.body


def from_bedrock(response: http.Response, translation: Translation, max_event: int) -> bool:
    """Prepare an answer whose head has arrived; returns whether its body will be another one than came."""
    headers = response.headers
    if REQUEST_ID in headers:
        headers.setdefault("request-id", headers[REQUEST_ID])
    translation.transcoder = transcoder(response.status_code, headers.get("content-type", ""), max_event=max_event)
    if translation.transcoder is None:
        return False
    headers["content-type"] = "application/json" if response.status_code >= 400 else "text/event-stream; charset=utf-8"
    return True
