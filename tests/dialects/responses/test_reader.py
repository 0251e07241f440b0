"""Responses: what a terminal event says, whatever status the response in it still has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.dialects import RESPONSES
from aibridge_addon.dialects.base import Reading

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
