"""The vendors' own SDKs read an answer: their stream decoders and accumulators, over a transport without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anthropic
import httpx2
import openai
from openai.lib.streaming.chat import ChatCompletionStreamState

_answer, _content_type = b"", ""


def _respond(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": _content_type}, content=_answer)


_http = httpx2.Client(transport=httpx2.MockTransport(_respond))
_anthropic = anthropic.Anthropic(api_key="k", base_url="http://provider", http_client=_http, max_retries=0)
_openai = openai.OpenAI(api_key="k", base_url="http://provider/v1", http_client=_http, max_retries=0)


def _set(answer: bytes, content_type: str = "text/event-stream") -> None:
    global _answer, _content_type
    _answer, _content_type = answer, content_type


def messages(answer: bytes) -> dict[str, Any]:
    _set(answer)
    with _anthropic.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as stream:
        return stream.get_final_message().to_dict(mode="json", warnings=False)


def chat(answer: bytes) -> dict[str, Any]:
    _set(answer)
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in _openai.chat.completions.create(model="m", messages=[], stream=True):
        list(state.handle_chunk(chunk))
    return state.get_final_completion().to_dict(mode="json", warnings=False)


def responses(answer: bytes) -> dict[str, Any]:
    _set(answer)
    with _openai.responses.stream(model="m", input="hi") as stream:
        return stream.get_final_response().to_dict(mode="json", warnings=False)


def messages_body(answer: bytes) -> dict[str, Any]:
    _set(answer, "application/json")
    message = _anthropic.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
    return message.to_dict(mode="json", warnings=False)


def chat_body(answer: bytes) -> dict[str, Any]:
    _set(answer, "application/json")
    return _openai.chat.completions.create(model="m", messages=[]).to_dict(mode="json", warnings=False)


def responses_body(answer: bytes) -> dict[str, Any]:
    _set(answer, "application/json")
    return _openai.responses.create(model="m", input="hi").to_dict(mode="json", warnings=False)


PARSERS: Mapping[str, Callable[[bytes], dict[str, Any]]] = {
    "messages": messages,
    "chat_completions": chat,
    "responses": responses,
}
"""The final object, as a dictionary, of an answer that streamed."""
BODY_PARSERS: Mapping[str, Callable[[bytes], dict[str, Any]]] = {
    "messages": messages_body,
    "chat_completions": chat_body,
    "responses": responses_body,
}
"""The object, as a dictionary, of an answer in one piece."""
