"""The requests of a session of Claude Code: each longer than the one before it, most with the result of a tool."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from benchmarks import traffic
from benchmarks.fleet_model import Assumptions
from benchmarks.traffic import MESSAGES, Answer, Scenario, named

STEP = 16_000
"""Bytes by which prepared histories differ in size."""
RESULT = traffic.LINE * 60
PLACE = "@@place@@"


@dataclass(frozen=True)
class Asked(Scenario):
    """A request whose bytes are made of a history that many share, and of its own end."""

    body: bytes = field(kw_only=True)
    session: str = field(kw_only=True)

    @property
    def request_parts(self) -> tuple[bytes, bytes]:
        head = _head(self.path, len(self.body), self.session)
        return head, b"\r\n\r\n" + self.body


def conversation(assumed: Assumptions, number: int) -> Iterator[Scenario]:
    """Yield the requests of a session, and of those that follow it. All answers but a prompt's last have a call."""
    turns = assumed.tool_calls_per_prompt + 1
    session, call = str(uuid.uuid4()), ""
    for place, size in enumerate(assumed.sizes(number)):
        ending = _result(call) if call else _prompt(place)
        before, after = _history(max(1, round(size / STEP)))
        is_last = int((place + 1) / turns) > int(place / turns)
        call = "" if is_last else f"toolu_{uuid.uuid4().hex[:24]}"
        yield Asked(
            "a session's request",
            MESSAGES.path,
            {},
            _answer(assumed.events_per_answer, call),
            body=before + ending + after,
            session=session,
        )


def _head(path: str, length: int, session: str) -> bytes:
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(length),
        **traffic.ANTHROPIC_HEADERS,
        "User-Agent": "claude-cli/2.1.329 (external, cli)",
        "X-Claude-Code-Session-Id": session,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}X-Exchange: ".encode()


@cache
def _history(steps: int) -> tuple[bytes, bytes]:
    """Return the bytes of a request of so many steps, before and after its last messages."""
    request = traffic.sized(MESSAGES, steps * STEP).request
    body = json.dumps(request | {"messages": [*request["messages"], PLACE]}, separators=(",", ":")).encode()
    before, _, after = body.partition(json.dumps(PLACE).encode())
    return before, after


def _result(call: str) -> bytes:
    asked = {"type": "tool_use", "id": call, "name": "Read", "input": {"file_path": "/src/project/main.py"}}
    said = {"type": "tool_result", "tool_use_id": call, "content": RESULT}
    return _messages({"role": "assistant", "content": [asked]}, {"role": "user", "content": [said]})


def _prompt(number: int) -> bytes:
    answered = {"role": "assistant", "content": [{"type": "text", "text": traffic.TEXT}]}
    return _messages(answered, {"role": "user", "content": f"{number}: {traffic.PROMPT}"})


def _messages(*messages: dict[str, Any]) -> bytes:
    return b",".join(map(traffic.dump, messages))


@cache
def _text(events: int) -> tuple[bytes, ...]:
    return traffic.messages_stream(events).packets


def _answer(events: int, call: str) -> Answer:
    """Return a stream of so many events. With a call, the last of them are its block."""
    packets = _text(events)
    if not call:
        return Answer("text/event-stream", packets)
    block = {"type": "tool_use", "id": call, "name": "Read", "input": {}}
    delta = {"type": "input_json_delta", "partial_json": '{"file_path":"/src/project/main.py"}'}
    stop = {"stop_reason": "tool_use", "stop_sequence": None}
    tail = (
        named("content_block_stop", {"type": "content_block_stop", "index": 0}),
        named("content_block_start", {"type": "content_block_start", "index": 1, "content_block": block}),
        named("content_block_delta", {"type": "content_block_delta", "index": 1, "delta": delta}),
        named("content_block_stop", {"type": "content_block_stop", "index": 1}),
        named("message_delta", {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 295}}),
        named("message_stop", {"type": "message_stop"}),
    )
    return Answer("text/event-stream", (*packets[: events - len(tail)], *tail))
