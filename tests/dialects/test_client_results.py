"""The results of a client's own calls, as its next request brings them: only the new ones, as bounded texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from aibridge_addon.dialects import CHAT_COMPLETIONS, CONVERSE, INVOKE, MESSAGES, RESPONSES
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.client_results import MAX_READ, MAX_RESULTS, ClientResult
from aibridge_addon.wire.json_object import JSONObject

USER = {"role": "user", "content": "and?"}
ASSISTANT = {"role": "assistant", "content": "Let me see."}


def of_messages(call_id: str, content: Any, **more: Any) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": call_id, "content": content, **more}
    return {"role": "user", "content": [block]}


def of_chat(call_id: str, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def of_responses(call_id: str, output: Any, kind: str = "function_call_output", **more: Any) -> dict[str, Any]:
    return {"type": kind, "call_id": call_id, "output": output, **more}


def of_converse(call_id: str, *content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"toolResult": {"toolUseId": call_id, "content": list(content), **more}}]}


def ok(call_id: str, text: str = "42", *, is_error: bool = False, truncated: bool = False) -> ClientResult:
    return ClientResult(call_id, text, is_error, truncated)


CALL = {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"}
REASONING = {"type": "reasoning", "summary": []}
IMAGE = {"type": "image", "source": {"data": "AAAA"}}
IN_CONVERSE = {"role": "assistant", "content": [{"text": "Let me see."}]}

# dialect, member of the request, its entries, results
CASES: dict[str, tuple[Dialect, str, list[Any], list[ClientResult]]] = {
    "messages: a text": (MESSAGES, "messages", [of_messages("t1", "42")], [ok("t1")]),
    "messages: blocks": (
        MESSAGES,
        "messages",
        [of_messages("t1", [{"type": "text", "text": "4"}, IMAGE, {"type": "text", "text": "2"}])],
        [ok("t1", "4\n[image]\n2")],
    ),
    "messages: an error": (
        MESSAGES,
        "messages",
        [of_messages("t1", "no", is_error=True)],
        [ok("t1", "no", is_error=True)],
    ),
    "messages: nothing": (MESSAGES, "messages", [of_messages("t1", None)], [ok("t1", "")]),
    "messages: parallel ones": (
        MESSAGES,
        "messages",
        [{"role": "user", "content": of_messages("t1", "42")["content"] + of_messages("t2", "42")["content"]}],
        [ok("t1"), ok("t2")],
    ),
    "messages: in several entries, and words after them": (
        MESSAGES,
        "messages",
        [ASSISTANT, of_messages("t1", "42"), of_messages("t2", "42"), USER, {"role": "system", "content": "x"}],
        [ok("t1"), ok("t2")],
    ),
    "messages: only the newest": (
        MESSAGES,
        "messages",
        [of_messages("t1", "42"), ASSISTANT, of_messages("t2", "42")],
        [ok("t2")],
    ),
    "messages: none at the end": (MESSAGES, "messages", [of_messages("t1", "42"), ASSISTANT, USER], []),
    "messages: without an id": (MESSAGES, "messages", [{"role": "user", "content": [{"type": "tool_result"}]}], []),
    "invoke: as messages": (INVOKE, "messages", [of_messages("t1", "42")], [ok("t1")]),
    "chat: a text": (CHAT_COMPLETIONS, "messages", [ASSISTANT, of_chat("c1", "42")], [ok("c1")]),
    "chat: parts": (CHAT_COMPLETIONS, "messages", [of_chat("c1", [{"type": "text", "text": "42"}])], [ok("c1")]),
    "chat: parallel ones and words": (
        CHAT_COMPLETIONS,
        "messages",
        [of_chat("c0", "old"), ASSISTANT, of_chat("c1", "42"), of_chat("c2", "42"), USER],
        [ok("c1"), ok("c2")],
    ),
    "responses: a text": (RESPONSES, "input", [of_responses("c1", "42")], [ok("c1")]),
    "responses: parts": (
        RESPONSES,
        "input",
        [
            of_responses(
                "c1", [{"type": "input_text", "text": "42"}, {"type": "input_image"}], "custom_tool_call_output"
            )
        ],
        [ok("c1", "42\n[input_image]")],
    ),
    "responses: an object": (
        RESPONSES,
        "input",
        [of_responses("c1", {"type": "computer_screenshot"}, "computer_call_output")],
        [ok("c1", '{"type":"computer_screenshot"}')],
    ),
    "responses: a failure": (
        RESPONSES,
        "input",
        [of_responses("c1", "no", "apply_patch_call_output", status="failed")],
        [ok("c1", "no", is_error=True)],
    ),
    "responses: each after its call": (
        RESPONSES,
        "input",
        [USER, REASONING, CALL | {"call_id": "c1"}, of_responses("c1", "42"), CALL, of_responses("c2", "42"), USER],
        [ok("c1"), ok("c2")],
    ),
    "messages: an id twice": (
        MESSAGES,
        "messages",
        [of_messages("t1", "one"), of_messages("t1", "two")],
        [ok("t1", "two")],
    ),
    "chat: an id twice": (
        CHAT_COMPLETIONS,
        "messages",
        [of_chat("t1", "one"), of_chat("t1", "two")],
        [ok("t1", "two")],
    ),
    "responses: an id twice": (
        RESPONSES,
        "input",
        [CALL, of_responses("c2", "one"), CALL, of_responses("c2", "two")],
        [ok("c2", "two")],
    ),
    "responses: only the newest": (
        RESPONSES,
        "input",
        [of_responses("c0", "old"), REASONING, CALL, of_responses("c2", "42"), {"type": "configuration_update"}],
        [ok("c2")],
    ),
    "responses: not those before a prompt": (RESPONSES, "input", [of_responses("c0", "old"), ASSISTANT, USER], []),
    "converse: a text and JSON": (
        CONVERSE,
        "messages",
        [IN_CONVERSE, of_converse("t1", {"text": "4"}, {"json": {"a": 2}}, {"image": {}})],
        [ok("t1", '4\n{"a":2}\n[image]')],
    ),
    "converse: an error": (
        CONVERSE,
        "messages",
        [of_converse("t0", {"text": "old"}), IN_CONVERSE, of_converse("t1", {"text": "no"}, status="error")],
        [ok("t1", "no", is_error=True)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_new_results_are_read_in_their_order(case: str) -> None:
    dialect, member, entries, results = CASES[case]
    reading = dialect.read_request(JSONObject(json.dumps({"model": "m", member: entries}).encode()))
    assert list(reading.tool_results) == results


BUILD: dict[Dialect, tuple[str, Callable[[str, Any], dict[str, Any]]]] = {
    MESSAGES: ("messages", of_messages),
    CHAT_COMPLETIONS: ("messages", of_chat),
    RESPONSES: ("input", of_responses),
}


@pytest.mark.parametrize("dialect", BUILD, ids=lambda dialect: str(dialect.name))
def test_results_are_bounded_in_number_and_in_length(dialect: Dialect) -> None:
    member, result = BUILD[dialect]
    entries = [result(f"c{number}", "x" * (2 * MAX_READ)) for number in range(2 * MAX_RESULTS)]
    read = dialect.read_request(JSONObject(json.dumps({member: entries}).encode())).tool_results
    assert [one.call_id for one in read] == [f"c{number}" for number in range(MAX_RESULTS, 2 * MAX_RESULTS)]
    assert {(len(one.text), one.truncated) for one in read} == {(MAX_READ, True)}
    longest = {member: [result("c1", ["x" * (MAX_READ - 3), "yy"])]}
    [one] = dialect.read_request(JSONObject(json.dumps(longest).encode())).tool_results
    assert (len(one.text), one.truncated) == (MAX_READ, False)
