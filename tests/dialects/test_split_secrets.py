"""A secret that is split over the events of a stream is recorded as a blocking answer's: redacted."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from aibridge_addon.config.schema import Recording
from aibridge_addon.dialects import CHAT_COMPLETIONS, CONVERSE, CONVERSE_STREAM, MESSAGES, RESPONSES
from aibridge_addon.dialects.base import AnswerReader, AnswerText, Dialect
from aibridge_addon.recording.preparation import Preparation
from aibridge_addon.records import Answer
from tests.dialects.test_output import messages_delta, stream

SECRET = "sk-ant-api03-0123456789abcdefghij"
WHOLE = f"The key is {SECRET}, keep it."
PIECES = list(WHOLE)
OUTPUT = {"output": [{"type": "message", "content": [{"type": "output_text", "text": WHOLE}]}], "status": "completed"}
DELTA = "response.output_text.delta"

BODIES: dict[str, tuple[Dialect, dict[str, Any]]] = {
    "messages": (MESSAGES, {"content": [{"type": "text", "text": WHOLE}]}),
    "chat": (CHAT_COMPLETIONS, {"choices": [{"index": 0, "message": {"content": WHOLE}}]}),
    "responses": (RESPONSES, OUTPUT),
    "converse": (CONVERSE, {"output": {"message": {"content": [{"text": WHOLE}]}}}),
}
STREAMS: dict[str, tuple[Dialect, list[tuple[str, dict[str, Any]]]]] = {
    "messages": (MESSAGES, [messages_delta(piece) for piece in PIECES]),
    "chat": (
        CHAT_COMPLETIONS,
        [("", {"id": "c", "choices": [{"index": 0, "delta": {"content": piece}}]}) for piece in PIECES],
    ),
    "responses": (
        RESPONSES,
        [
            *((DELTA, {"type": DELTA, "output_index": 0, "content_index": 0, "delta": piece}) for piece in PIECES),
            ("response.completed", {"type": "response.completed", "response": OUTPUT}),
        ],
    ),
    "converse": (
        CONVERSE_STREAM,
        [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}}) for piece in PIECES],
    ),
}


def recorded(reader: AnswerReader) -> list[str | None]:
    prepare = Preparation(Recording())
    texts = [text for text in reader.reading.output if isinstance(text, AnswerText)]
    answers = [prepare(Answer("i", "r", t.content, t.truncated, datetime(2026, 1, 2, tzinfo=UTC))) for t in texts]
    return [answer.content for answer in answers if isinstance(answer, Answer)]


@pytest.mark.parametrize("name", BODIES)
def test_a_streamed_and_a_blocking_answer_are_redacted_alike(name: str) -> None:
    blocking, streamed = BODIES[name][0].answer_reader(), STREAMS[name][0].answer_reader()
    blocking.message(BODIES[name][1])
    stream(streamed, *STREAMS[name][1])
    assert recorded(blocking) == recorded(streamed) == ["The key is [redacted], keep it."]
