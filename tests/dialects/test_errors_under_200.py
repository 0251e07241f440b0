"""Errors under status 200 are failures with the provider's words, and what only looks like one is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon import dialects
from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import AnswerReader, Reading
from aibridge_addon.dialects.usage_only.reader import UsageReader
from aibridge_addon.interception.tap import Tap

READERS: dict[str, Any] = {
    "messages": dialects.MESSAGES.answer_reader,
    "chat": dialects.CHAT_COMPLETIONS.answer_reader,
    "responses": dialects.RESPONSES.answer_reader,
    "converse": dialects.CONVERSE.answer_reader,
    "invoke": dialects.INVOKE.answer_reader,
    "usage_only": UsageReader,
}
EVERY = tuple(READERS)
OF_ONE_VENDOR = tuple(name for name in EVERY if name != "invoke")
"""Dialects whose answers have a known member with the output."""


def read(reader: AnswerReader, body: bytes, content_type: str) -> Reading:
    tap = Tap(reader, status=200, content_type=content_type, content_encoding="", limits=Limits())
    reader.head({"content-type": content_type})
    tap.feed(body)
    tap.finish()
    return reader.reading


def body_of(dialect: str, body: Any, content_type: str = "application/json") -> Reading:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read(READERS[dialect](), data, content_type)


def stream_of(dialect: str, *events: Any) -> Reading:
    datas = (event if isinstance(event, bytes) else json.dumps(event).encode() for event in events)
    return read(READERS[dialect](), b"".join(b"data: %b\n\n" % data for data in datas), "text/event-stream")


BUSY = {"message": "The model is busy.", "type": "overloaded"}
BODIES: dict[str, tuple[tuple[str, ...], Any]] = {
    "error": (EVERY, {"error": BUSY}),
    "error as text": (EVERY, {"error": "The model is busy."}),
    "error beside empty members": (
        EVERY,
        {"error": BUSY, "choices": [], "content": [], "output": [], "data": [], "usage": None, "id": "x"},
    ),
    "object error": (EVERY, {"object": "error", "message": "The model is busy.", "code": 40303}),
    "object error beside null": (
        EVERY,
        {"object": "error", "message": "The model is busy.", "choices": None, "content": None, "output": None},
    ),
    "type error beside no content": (
        ("messages", "invoke"),
        {"type": "error", "error": BUSY, "content": [], "id": "msg_1"},
    ),
    "type error without an object": (EVERY, {"type": "error", "message": "The model is busy.", "content": []}),
    "type error whose words are a text": (EVERY, {"type": "error", "error": "The model is busy."}),
    "detail": (EVERY, {"detail": "The model is busy."}),
    "detail beside null": (EVERY, {"detail": "The model is busy.", "choices": None, "content": [], "output": []}),
    "errors": (EVERY, {"errors": [{"message": "The model is busy."}]}),
    "message": (OF_ONE_VENDOR, {"message": "The model is busy.", "choices": [], "content": [], "output": []}),
    "x_groq": (("chat",), {"id": "c", "choices": [], "x_groq": {"error": "The model is busy."}}),
    "a list": (EVERY, [{"error": {"code": 503, "message": "The model is busy.", "status": "UNAVAILABLE"}}]),
    "a page": (EVERY, b"<!DOCTYPE html>\n<html><head><title>The model is busy.</title></head></html>"),
}
PAIRS = [(name, dialect) for name, (names, _) in BODIES.items() for dialect in names]


@pytest.mark.parametrize(("name", "dialect"), PAIRS)
def test_an_error_as_one_body_keeps_its_words(name: str, dialect: str) -> None:
    content_type = "text/html" if name == "a page" else "application/json"
    reading = body_of(dialect, BODIES[name][1], content_type)
    assert reading.error is not None and reading.error.message == "The model is busy."
    assert not reading.finished and reading.usage is None


CHUNK = {"id": "c-1", "model": "m", "choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}]}
LAST_CHUNK = {"id": "c-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
BEGINNING: dict[str, list[Any]] = {
    "messages": [{"type": "message_start", "message": {"id": "msg_1", "model": "m"}}],
    "chat": [CHUNK, CHUNK],
    "responses": [{"type": "response.created", "response": {"id": "r", "status": "in_progress"}}],
    "converse": [],
    "invoke": [],
    "usage_only": [],
}
IN_STREAM = EVERY
EVENTS: dict[str, tuple[tuple[str, ...], Any]] = {
    "error": (IN_STREAM, {"error": BUSY}),
    "error as text": (IN_STREAM, {"error": "The model is busy."}),
    "type error": (IN_STREAM, {"type": "error", "error": BUSY}),
    "type error without an object": (IN_STREAM, {"type": "error", "message": "The model is busy."}),
    "object error": (IN_STREAM, {"object": "error", "message": "The model is busy.", "choices": None}),
    "detail": (IN_STREAM, {"detail": "The model is busy."}),
    "choice": (("chat",), {"id": "c-1", "choices": [{"index": 0, "delta": {}, "error": BUSY}]}),
    "x_groq": (("chat",), {"id": "c-1", "choices": [], "x_groq": {"id": "q", "error": "The model is busy."}}),
    "x_groq beside a choice": (("chat",), LAST_CHUNK | {"x_groq": {"error": BUSY}}),
    "error of a completed response": (
        ("responses",),
        {"type": "response.completed", "response": {"id": "r", "output": [], "error": BUSY}},
    ),
}


@pytest.mark.parametrize("done", [[], [b"[DONE]"]], ids=["cut", "done"])
@pytest.mark.parametrize(("name", "dialect"), [(n, d) for n, (names, _) in EVENTS.items() for d in names])
def test_an_error_in_a_stream_keeps_its_words(name: str, dialect: str, done: list[Any]) -> None:
    for beginning in ([], BEGINNING[dialect]):
        reading = stream_of(dialect, *beginning, EVENTS[name][1], *done)
        assert reading.error is not None and reading.error.message == "The model is busy."
        assert not reading.finished or reading.ended


@pytest.mark.parametrize("dialect", ["messages", "usage_only", "responses"])
def test_the_name_of_an_event_says_that_it_is_an_error(dialect: str) -> None:
    for data in (b'{"message": "The model is busy."}', b'{"type": null, "error": {"message": "The model is busy."}}'):
        reading = read(READERS[dialect](), b"event: error\ndata: %b\n\n" % data, "text/event-stream")
        assert reading.error is not None and reading.error.message == "The model is busy." and reading.ended


QUEUED: dict[str, Any] = {"object": "status", "message": "queued"}


def test_a_status_before_a_good_stream_is_no_error() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    statuses: list[dict[str, Any]] = [QUEUED, QUEUED | {"choices": []}, QUEUED | {"choices": None, "id": "c-1"}]
    for status in statuses:
        reading = stream_of("chat", status, CHUNK, CHUNK, LAST_CHUNK, {"choices": [], "usage": usage}, b"[DONE]")
        assert reading.error is None and reading.finished and reading.ended
        assert reading.usage is not None and reading.usage.output_tokens == 4


@pytest.mark.parametrize("done", [[], [b"[DONE]"]], ids=["cut", "done"])
def test_words_that_nothing_follows_are_an_error(done: list[Any]) -> None:
    reading = stream_of("chat", {"message": "No capacity.", "code": "full"}, *done)
    assert reading.error is not None and (reading.error.type, reading.error.message) == ("full", "No capacity.")
    assert not reading.finished


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("messages", {"type": "message", "id": "m", "content": [], "stop_reason": "end_turn", "error": None}),
        ("chat", {"object": "chat.completion", "id": "c", "choices": [], "error": None}),
        ("chat", {"id": "c", "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "message": "ok"}),
        ("responses", {"object": "response", "id": "r", "status": "completed", "output": [], "error": None}),
        ("responses", {"object": "response", "status": "incomplete", "output": [], "error": None}),
        ("converse", {"output": {"message": {"content": []}}, "stopReason": "end_turn"}),
        ("invoke", {"generation": "Hi", "stop_reason": "stop"}),
        ("usage_only", {"object": "list", "data": [], "usage": {"prompt_tokens": 1, "total_tokens": 1}}),
        ("usage_only", {"text": "We said: error", "task": "transcribe"}),
        ("usage_only", b"1\n00:00:00,000 --> 00:00:02,000\nHello\n"),
        ("usage_only", b"[Music] Hello"),
    ],
)
def test_an_answer_with_little_in_it_is_no_error(dialect: str, body: Any) -> None:
    reading = body_of(dialect, body, "application/json" if isinstance(body, dict) else "text/plain")
    assert reading.error is None and reading.finished and reading.ended


@pytest.mark.parametrize("dialect", ["messages", "chat", "responses", "converse", "invoke"])
@pytest.mark.parametrize("body", [b"", b"[]", b"[1]", b'"x"', b"null", b"7"])
def test_a_body_that_is_no_object_and_has_no_words_fails_with_ours(dialect: str, body: bytes) -> None:
    reading = body_of(dialect, body)
    assert reading.error is not None and reading.error.type == "unreadable_answer"
    assert reading.error.message == "the answer is not a JSON object"


def test_plain_text_instead_of_an_answer_keeps_its_words() -> None:
    reading = body_of("chat", b"upstream connect error or disconnect", "text/plain")
    assert reading.error is not None and reading.error.message == "upstream connect error or disconnect"
