"""Responses: what a terminal event says, and what is read of an answer without one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.dialects import RESPONSES
from aibridge_addon.dialects.base import AnswerText, Output, Reading
from aibridge_addon.dialects.responses.reader import MAX_PARTS

USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


def read(kind: str, response: dict[str, Any]) -> Reading:
    reader = RESPONSES.answer_reader()
    reader.event(
        "", json.dumps({"type": "response.created", "response": {"id": "r", "status": "in_progress"}}).encode()
    )
    reader.event("", json.dumps({"type": kind, "response": {"id": "r", "usage": USAGE, **response}}).encode())
    reader.stream_ended()
    return reader.reading


@pytest.mark.parametrize("status", ["in_progress", "queued", None, ""])
@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed", "cancelled", "done"])
def test_the_name_of_a_terminal_event_ends_the_response(kind: str, status: str | None) -> None:
    reading = read(f"response.{kind}", {"status": status})
    assert reading.ended and reading.finished and not reading.running
    assert reading.stop_reason == ("completed" if kind == "done" else kind)
    assert (reading.error is not None) == (kind in ("failed", "cancelled"))
    assert reading.usage is not None and reading.usage.output_tokens == 4


@pytest.mark.parametrize(
    ("kind", "status", "stop_reason"),
    [("completed", "incomplete", "incomplete"), ("done", "failed", "failed"), ("done", "completed", "completed")],
)
def test_a_final_status_in_the_response_counts(kind: str, status: str, stop_reason: str) -> None:
    reading = read(f"response.{kind}", {"status": status})
    assert reading.stop_reason == stop_reason and reading.finished
    assert (reading.error is not None) == (status == "failed")


@pytest.mark.parametrize("status", ["in_progress", "queued"])
def test_a_whole_body_that_runs_is_not_finished(status: str) -> None:
    reader = RESPONSES.answer_reader()
    reader.message({"id": "r", "object": "response", "status": status, "output": []})
    assert reader.reading.running and not reader.reading.finished


def cut_text(*deltas: dict[str, Any], before: tuple[dict[str, Any], ...] = (), texts: bool = True) -> list[Output]:
    """What is read of an answer that ends after these events, each with its data alone."""
    reader = RESPONSES.answer_reader(texts=texts)
    for event in (*before, *deltas):
        data = json.dumps(event).encode()
        if not reader.skip(data):
            reader.event("", data)
    reader.stream_ended()
    return reader.reading.output


def delta(text: str, kind: str = "output_text") -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "output_index": 0, "delta": text}


def done(text: str) -> dict[str, Any]:
    item = {"type": "message", "content": [{"type": "output_text", "text": text}]}
    return {"type": "response.output_item.done", "item": item}


def test_the_text_of_an_answer_that_is_cut_off_is_read() -> None:
    assert cut_text(delta("Hel"), delta("lo.", "refusal")) == [AnswerText("Hello.")]
    assert cut_text(delta("Again."), before=(delta("Hello. "), done("Hello. "))) == [AnswerText("Hello. Again.")]
    assert cut_text(delta("Hello."), texts=False) == []


def test_reasoning_and_arguments_that_are_cut_off_are_not_read() -> None:
    assert cut_text(delta("{", "function_call_arguments"), delta("Hm.", "reasoning_summary_text")) == []


def test_a_cut_text_is_kept_within_a_bound_and_a_delta_that_cannot_be_read_is_left_out() -> None:
    [text] = cut_text(*[delta("x" * 1000)] * 1000)
    assert isinstance(text, AnswerText) and text.truncated and len(text.content) <= MAX_PARTS
    assert cut_text(delta("a"), {"type": "response.output_text.delta", "delta": 1}, delta("b")) == [AnswerText("ab")]
