"""Texts for the user: their limit, and readers that keep none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.dialects import CHAT_COMPLETIONS, CONVERSE, CONVERSE_STREAM, MESSAGES, RESPONSES
from aibridge_addon.dialects.base import AnswerReader, AnswerText, Dialect
from aibridge_addon.dialects.output import MAX_ANSWER, KeptText

PIECES = ["é" * 1000] * 50
WHOLE = "".join(PIECES)
BODIES: dict[str, tuple[Dialect, dict[str, Any]]] = {
    "messages": (MESSAGES, {"content": [{"type": "text", "text": WHOLE}]}),
    "chat": (CHAT_COMPLETIONS, {"choices": [{"index": 0, "message": {"content": WHOLE}}]}),
    "responses": (
        RESPONSES,
        {"output": [{"type": "message", "content": [{"type": "output_text", "text": WHOLE}]}], "status": "completed"},
    ),
    "converse": (CONVERSE, {"output": {"message": {"content": [{"text": WHOLE}]}}}),
}


def stream(reader: AnswerReader, *events: tuple[str, dict[str, Any]]) -> int:
    """Feed events as the tap does. Return how many were decoded."""
    decoded = 0
    for name, event in events:
        data = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
        raw = b"event: " + name.encode() + b"\ndata: " + data + b"\n\n" if name else b"data: " + data + b"\n\n"
        if not reader.skip(raw):
            decoded += 1
            reader.event(name, data)
    reader.stream_ended()
    return decoded


def messages_delta(piece: str) -> tuple[str, dict[str, Any]]:
    delta = {"type": "text_delta", "text": piece}
    return "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}


STREAMS: dict[str, tuple[Dialect, list[tuple[str, dict[str, Any]]]]] = {
    "messages": (MESSAGES, [messages_delta(piece) for piece in PIECES]),
    "chat": (
        CHAT_COMPLETIONS,
        [("", {"id": "c", "choices": [{"index": 0, "delta": {"content": piece}}]}) for piece in PIECES],
    ),
    "converse": (
        CONVERSE_STREAM,
        [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}}) for piece in PIECES],
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_long_text_is_cut_at_its_limit(name: str) -> None:
    dialect, body = BODIES[name]
    reader = dialect.answer_reader()
    reader.message(body)
    assert reader.reading.output == [AnswerText(WHOLE[: MAX_ANSWER // 2], truncated=True)]


@pytest.mark.parametrize("name", STREAMS)
def test_a_long_streamed_text_is_cut_alike_and_its_deltas_are_not_decoded(name: str) -> None:
    dialect, events = STREAMS[name]
    reader = dialect.answer_reader()
    assert stream(reader, *events) <= 1
    assert reader.reading.output == [AnswerText(WHOLE[: MAX_ANSWER // 2], truncated=True)]


@pytest.mark.parametrize("name", BODIES)
def test_a_reader_without_texts_keeps_none(name: str) -> None:
    dialect, body = BODIES[name]
    reader = dialect.answer_reader(texts=False)
    reader.message(body)
    assert reader.reading.output == []


@pytest.mark.parametrize("name", STREAMS)
def test_a_reader_without_texts_keeps_none_of_a_stream(name: str) -> None:
    dialect, events = STREAMS[name]
    reader = dialect.answer_reader(texts=False)
    assert stream(reader, *events) <= 1
    assert reader.reading.output == []


def test_a_text_of_exactly_the_limit_is_whole() -> None:
    kept = KeptText(4)
    kept.add("ab")
    kept.add("cd")
    assert kept.answer() == AnswerText("abcd")
    kept.add("e")
    assert kept.answer() == AnswerText("abcd", truncated=True)


def test_a_blank_text_is_no_answer() -> None:
    kept = KeptText()
    kept.add(" \n")
    assert kept.answer() is None
