"""The places of an interception's rows: in the model's order, and alike for streamed and blocking answers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from aibridge_addon import records
from aibridge_addon.dialects import CHAT_COMPLETIONS, RESPONSES
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


def item(call_id: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def done(call_id: str, index: Any = None) -> dict[str, Any]:
    event = {"type": "response.output_item.done", "item": item(call_id)}
    return event if index is None else event | {"output_index": index}


RESPONSES_CALLS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "in order": ([done("a", 0), done("b", 1)], ["a", "b"]),
    "out of order": ([done("c", 2), done("a", 0), done("b", 1)], ["a", "b", "c"]),
    "without an index": ([done("a"), done("b"), done("c")], ["a", "b", "c"]),
    "with one index": ([done("a", 0), done("b", 0)], ["a", "b"]),
    "with indexes as texts": ([done("b", "1"), done("a", "0")], ["a", "b"]),
}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("case", RESPONSES_CALLS)
def test_items_of_a_response_are_in_the_order_of_its_output(case: str, cut: bool) -> None:
    events, order = RESPONSES_CALLS[case]
    reader = RESPONSES.answer_reader()
    for event in [*events, *([] if cut else [{"type": "response.completed", "response": {"output": []}}])]:
        reader.read("", event)
    reader.stream_ended()
    assert [call.call_id for call in reader.reading.tool_calls] == order


def begun(call_id: str, index: Any = None) -> dict[str, Any]:
    call = {"id": call_id, "function": {"name": "f", "arguments": "{}"}}
    return call if index is None else call | {"index": index}


CHAT_CALLS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "in order": ([begun("a", 0), begun("b", 1)], ["a", "b"]),
    "out of order": ([begun("c", 2), begun("b", 1), begun("a", 0)], ["a", "b", "c"]),
    "from one on": ([begun("b", 2), begun("a", 1)], ["a", "b"]),
    "without an index": ([begun("a"), begun("b"), begun("c")], ["a", "b", "c"]),
    "with one index": ([begun("a", 0), begun("b", 0)], ["a", "b"]),
    "without an index after one with": ([begun("a", 3), begun("b")], ["a", "b"]),
}


@pytest.mark.parametrize("case", CHAT_CALLS)
def test_calls_of_a_chat_message_are_in_the_order_of_their_indexes(case: str) -> None:
    deltas, order = CHAT_CALLS[case]
    reader = CHAT_COMPLETIONS.answer_reader()
    for delta in deltas:
        reader.read("", {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]})
    reader.read("", {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    reader.stream_ended()
    assert [call.call_id for call in reader.reading.tool_calls] == order


def test_there_are_pairs_in_every_dialect() -> None:
    assert {one.dialect for one, _ in pairs()} == {"messages", "chat_completions", "responses", "converse"}
