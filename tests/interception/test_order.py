"""The places of an interception's rows: in the model's order, and alike for streamed and blocking answers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from aibridge_addon import records
from aibridge_addon.records import Record
from tests.support import fixtures
from tests.support.fixtures import Case
from tests.support.reading import play


def pairs() -> list[tuple[Case, Case]]:
    """The streamed and the blocking answers of the fixtures in which the model says the same in both."""
    by_name: defaultdict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in fixtures.cases():
        if case.body and case.expected["status"] == "completed":
            by_name[case.dialect, case.name].append(case)
    found = [(a, b) for a, b in (cases for cases in by_name.values() if len(cases) == 2)]
    return [(a, b) for a, b in found if said(a) == said(b)]


def said(case: Case) -> tuple[Any, Any]:
    return case.expected.get("tools"), case.expected.get("thoughts")


def placed(case: Case) -> list[tuple[int, str, Any]]:
    return sorted((p for record in play(case, [case.body]) if (p := place(record)) is not None), key=lambda p: p[0])


def place(record: Record) -> tuple[int, str, Any] | None:
    match record:
        case records.UserPrompt():
            return record.sequence, "prompt", record.prompt
        case records.ToolUsage():
            return record.sequence, "call", (record.provider_tool_call_id, record.tool, record.input)
        case records.Answer():
            return record.sequence, "answer", record.content
        case records.ModelThought():
            return record.sequence, "thought", record.content
    return None


@pytest.mark.parametrize(("one", "other"), pairs(), ids=str)
def test_streamed_and_blocking_answers_have_the_same_order(one: Case, other: Case) -> None:
    assert placed(one) == placed(other)


@pytest.mark.parametrize("case", fixtures.cases(), ids=str)
def test_places_are_consecutive_and_the_prompt_is_first(case: Case) -> None:
    ordered = placed(case)
    begin = 0 if any(kind == "prompt" for _, kind, _ in ordered) else 1
    assert [number for number, _, _ in ordered] == list(range(begin, begin + len(ordered)))
    assert [kind for number, kind, _ in ordered if number == 0] == ["prompt"][begin:]


def test_there_are_pairs_in_every_dialect() -> None:
    assert {one.dialect for one, _ in pairs()} == {"messages", "chat_completions", "responses", "converse"}
