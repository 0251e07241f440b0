"""What is asked and answered: one small JSON answer, and streams of 300 events in each wire format."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

EVENTS = 300
"""Events of one streamed answer, the ones around the text included."""
PROMPT = "Explain in one sentence what a proxy does, and then in another one why anybody would want to run it."
TEXT = "A proxy stands between a client and a server and passes their messages on. " * 4
TOKEN = " proxies"
"""What one delta adds, like a token of a real answer."""
PREFIXES = ("/anthropic/", "/openai/")
INCLUDE_USAGE = b'"include_usage":true'


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Answer:
    """An answer as the upstream sends it: each of `packets` in a write of its own."""

    content_type: str
    packets: tuple[bytes, ...]

    @property
    def streaming(self) -> bool:
        return self.content_type == "text/event-stream"

    @cached_property
    def body(self) -> bytes:
        return b"".join(self.packets)


@dataclass(frozen=True)
class Scenario:
    name: str
    path: str
    """Below the proxy's own address: the provider's name, then its API's path. Within a tunnel, only the latter."""
    request: dict[str, Any]
    answer: Answer
    """What the client is to receive, byte for byte."""
    asked_answer: Answer | None = None
    """What the upstream sends where the request asks for a chat stream's usage, if the client did not."""
    headers: dict[str, str] = field(default_factory=dict)
    bar: float | None = None
    """Maximum CPU of a chunk, as a ratio to bare mitmdump."""

    @property
    def upstream_path(self) -> str:
        return "/" + self.path.split("/", 2)[2] if self.path.startswith(PREFIXES) else self.path

    def answer_to(self, body: bytes) -> Answer:
        """What the upstream sends to a request with this body."""
        asked = self.asked_answer is not None and INCLUDE_USAGE in body.replace(b" ", b"")
        return self.asked_answer if self.asked_answer is not None and asked else self.answer

    def is_right(self, body: bytes) -> bool:
        """Whether this is what the client is to receive."""
        return body == self.answer.body

    @cached_property
    def request_parts(self) -> tuple[bytes, bytes]:
        """The request's bytes, around the id of its exchange."""
        body = dump(self.request)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}X-Exchange: "
        return head.encode(), b"\r\n\r\n" + body


def named(name: str, data: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + dump(data) + b"\n\n"


def stream(*packets: bytes) -> Answer:
    return Answer("text/event-stream", packets)


def messages_stream(events: int = EVENTS) -> Answer:
    head: dict[str, Any] = {
        "id": "msg_01ouKPrKnUtOONZp0pEcha6i",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 25, "cache_read_input_tokens": 0, "output_tokens": 3, "service_tier": "standard"},
    }
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TOKEN}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 295},
    }
    return stream(
        named("message_start", {"type": "message_start", "message": head}),
        named("content_block_start", block),
        *[named("content_block_delta", delta)] * (events - 5),
        named("content_block_stop", {"type": "content_block_stop", "index": 0}),
        named("message_delta", end),
        named("message_stop", {"type": "message_stop"}),
    )


def _messages_json() -> Answer:
    body = {
        "id": "msg_01ouKPrKnUtOONZp0pEcha6i",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 25, "cache_read_input_tokens": 0, "output_tokens": 64},
    }
    return Answer("application/json", (dump(body),))


def _chat_stream(*, usage: bool) -> Answer:
    """300 events that the client sees; where usage was only asked for by us, a chunk more, with the end."""
    chunk = {
        "id": "chatcmpl-CouKPrKnUtOONZp0pEcha6iJZFRzK",
        "object": "chat.completion.chunk",
        "created": 1767225600,
        "model": "gpt-4.1-2025-04-14",
    }

    def event(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + dump(chunk | {"choices": [choice]} | ({"usage": None} if usage else {})) + b"\n\n"

    counts = {"prompt_tokens": 25, "completion_tokens": 297, "total_tokens": 322}
    total = b"data: " + dump(chunk | {"choices": [], "usage": counts}) + b"\n\n"
    return stream(
        event({"role": "assistant", "content": ""}),
        *[event({"content": TOKEN})] * (EVENTS - 3),
        event({}, "stop"),
        (total if usage else b"") + b"data: [DONE]\n\n",
    )


def _responses_stream() -> Answer:
    item_id = "msg_ce021797b3988db2a6267a9a2dce36dda019a60cc782a43203"
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    text = TOKEN * (EVENTS - 8)
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    item = {"id": item_id, "type": "message", "status": "completed", "content": [part], "role": "assistant"}
    response = {
        "id": "resp_ed1f489cb48c425702a45ea3264d478ddc950f933daeb10122",
        "object": "response",
        "created_at": 1767225600,
        "status": "in_progress",
        "model": "gpt-5.1-2025-11-13",
        "output": [],
        "usage": None,
    }
    usage = {"input_tokens": 25, "output_tokens": 292, "total_tokens": 317}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": response}),
        ("response.in_progress", {"response": response}),
        ("response.output_item.added", {"output_index": 0, "item": item | {"content": [], "status": "in_progress"}}),
        ("response.content_part.added", place | {"part": part | {"text": ""}}),
        *[("response.output_text.delta", place | {"delta": TOKEN, "logprobs": []})] * (EVENTS - 8),
        ("response.output_text.done", place | {"text": text, "logprobs": []}),
        ("response.content_part.done", place | {"part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": response | {"status": "completed", "output": [item], "usage": usage}}),
    ]
    return stream(*(named(kind, {"type": kind, "sequence_number": n} | more) for n, (kind, more) in enumerate(events)))


ANTHROPIC_HEADERS = {
    "User-Agent": "Anthropic/Python 0.125.0",
    "X-Api-Key": "test-key",
    "Anthropic-Version": "2023-06-01",
}
OPENAI_HEADERS = {"User-Agent": "OpenAI/Python 2.49.0", "Authorization": "Bearer test-key"}
_QUESTION = [{"role": "user", "content": PROMPT}]
_MESSAGES = {"model": "claude-sonnet-4-5-20250929", "max_tokens": 1024, "messages": _QUESTION}
_CHAT = {"model": "gpt-4.1", "messages": _QUESTION, "stream": True}

SMALL = Scenario(
    "messages, not streamed", "/anthropic/v1/messages", _MESSAGES, _messages_json(), headers=ANTHROPIC_HEADERS
)
MESSAGES = Scenario(
    "messages",
    "/anthropic/v1/messages",
    _MESSAGES | {"stream": True},
    messages_stream(),
    headers=ANTHROPIC_HEADERS,
    bar=0.75,
)
CHAT = Scenario(
    "chat completions",
    "/openai/v1/chat/completions",
    _CHAT | {"stream_options": {"include_usage": True}},
    _chat_stream(usage=True),
    headers=OPENAI_HEADERS,
    bar=0.80,
)
CHAT_UNASKED = Scenario(
    "chat, usage asked for by us",
    "/openai/v1/chat/completions",
    _CHAT,
    _chat_stream(usage=False),
    asked_answer=_chat_stream(usage=True),
    headers=OPENAI_HEADERS,
    bar=0.90,
)
RESPONSES = Scenario(
    "responses",
    "/openai/v1/responses",
    {"model": "gpt-5.1", "input": PROMPT, "stream": True},
    _responses_stream(),
    headers=OPENAI_HEADERS,
    bar=0.75,
)
STREAMS = (MESSAGES, CHAT, CHAT_UNASKED, RESPONSES)


LINE = '    def answer(self, request: Request) -> Answer:  # reads "the body", and returns it\n'


def sized(scenario: Scenario, size: int) -> Scenario:
    """Return the scenario of Messages with a request of about so many bytes: a conversation with calls and results."""
    messages: list[dict[str, Any]] = list(_QUESTION)
    block = max(1, min(100, size // 1_000))
    result = LINE * block
    length, number = len(dump(scenario.request)), 0
    while length < size:
        number += 1
        id = f"toolu_{number:024}"
        call = {"type": "tool_use", "id": id, "name": "Read", "input": {"file_path": f"/src/project/part{number}.py"}}
        said = {"type": "tool_result", "tool_use_id": id, "content": result}
        added = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [said]}]
        messages += added
        length += len(dump(added))
    name = f"{length / 1e6:.0f} MB" if length >= 1e6 else f"{length / 1e3:.0f} KB"
    return replace(scenario, name=f"{name} request", request=scenario.request | {"messages": messages}, bar=None)


def long_messages(events: int) -> Scenario:
    """Return the scenario of streamed Messages with an answer of so many events."""
    return replace(MESSAGES, name=f"messages of {events} events", answer=messages_stream(events), bar=None)
