"""Where the context of requests goes: the categories, and that they add up to the body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects import CHAT_COMPLETIONS, MESSAGES, RESPONSES
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.bedrock.converse import Converse
from aibridge_addon.dialects.context import CATEGORIES
from aibridge_addon.wire.json_object import JSONObject
from tests.support import fixtures

CONVERSE = Converse(streaming=True)
DIALECTS = (MESSAGES, CHAT_COMPLETIONS, RESPONSES, CONVERSE)
IMAGE = "i" * 1000


def size(*values: Any) -> int:
    return sum(len(encoded(value)) for value in values)


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def counted(dialect: Dialect, request: dict[str, Any], ours: int = 0) -> dict[str, int]:
    """The categories but `other`, after a check of their sum."""
    data = encoded(request)
    counts = dialect.context_bytes(JSONObject(data), ours)
    assert sum(counts.values()) == len(data)
    assert list(counts) == [category for category in CATEGORIES if category in counts]
    return {category: count for category, count in counts.items() if category != "other"}


CASES = [case for case in fixtures.cases() if case.dialect != "usage_only"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.dialect}/{case.name}/{case.streaming}")
def test_the_categories_of_real_requests_add_up(case: fixtures.Case) -> None:
    body = JSONObject(case.request)
    counts = case.wire_format.context_bytes(body)
    if case.wire_format.shape is not None:
        assert sum(counts.values()) == len(case.request)
        assert all(count > 0 for count in counts.values())


def test_messages_are_counted_from_the_last_prompt_on() -> None:
    system = [{"type": "text", "text": "Be brief."}]
    tools = [{"name": "Read", "input_schema": {"type": "object"}}]
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    text, picture = {"type": "text", "text": "Look at it"}, {"type": "image", "source": {"data": IMAGE}}
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Read", "input": {}}]}
    shown = {"type": "image", "source": {"data": IMAGE}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x" * 500}, shown]}
    reminder = {"role": "system", "content": "Remember."}
    request = {
        "model": "m",
        "system": system,
        "messages": [
            *before,
            {"role": "user", "content": [text, picture]},
            call,
            {"role": "user", "content": [result]},
            reminder,
        ],
        "tools": tools,
    }
    assert counted(MESSAGES, request) == {
        "system": size(system, reminder),
        "client_tools": size(tools),
        "user_text": size(text),
        "tool_results": size(result) - size(shown),
        "images": size(picture, shown),
        "history": size(*before),
    }


def test_our_tools_are_taken_from_all_tools() -> None:
    request = {"messages": [], "tools": [{"name": "a"}, {"name": "bmcp_x"}]}
    assert counted(MESSAGES, request, ours=10) == {"client_tools": size(request["tools"]) - 10, "our_tools": 10}
    assert counted(MESSAGES, {"messages": []}, ours=10) == {}


def test_chat_completions_have_system_messages_and_results_among_the_messages() -> None:
    system = {"role": "developer", "content": "Be brief."}
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    prompt = {"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "image_url", "image_url": {}}]}
    call = {"role": "assistant", "tool_calls": [{"id": "c"}]}
    result = {"role": "tool", "tool_call_id": "c", "content": "x" * 100}
    functions = [{"name": "old"}]
    request = {"messages": [system, *before, prompt, call, result], "functions": functions}
    assert counted(CHAT_COMPLETIONS, request) == {
        "system": size(system),
        "client_tools": size(functions),
        "user_text": size(prompt["content"][0]),
        "tool_results": size(result),
        "images": size(prompt["content"][1]),
        "history": size(*before),
    }


def test_responses_have_items() -> None:
    tools = {"type": "additional_tools", "role": "developer", "tools": [{"name": "shell"}]}
    system = {"type": "message", "role": "developer", "content": "Be brief."}
    before = [{"role": "user", "content": "Hi"}, {"type": "reasoning", "summary": []}]
    part = {"type": "input_text", "text": "Why?"}
    call = {"type": "function_call", "call_id": "c", "name": "shell", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": IMAGE}]}
    items = [tools, system, *before, {"role": "user", "content": [part]}, call, result]
    assert counted(RESPONSES, {"instructions": "You are.", "input": items}) == {
        "system": size("You are.", system),
        "client_tools": size(tools),
        "user_text": size(part),
        "tool_results": size(result) - size(result["output"][0]),
        "images": size(result["output"][0]),
        "history": size(*before),
    }
    assert counted(RESPONSES, {"input": "Why?"}) == {"user_text": size("Why?")}


def test_converse_names_blocks_by_their_members() -> None:
    system = [{"text": "Be brief."}]
    tools = {"tools": [{"toolSpec": {"name": "Read"}}]}
    document = {"document": {"source": {"bytes": IMAGE}}}
    result = {"toolResult": {"toolUseId": "t", "content": [{"text": "x"}, document]}}
    messages = [
        {"role": "user", "content": [{"text": "Why?"}, document]},
        {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t"}}]},
        {"role": "user", "content": [result]},
    ]
    request = {"system": system, "messages": messages, "toolConfig": tools}
    assert counted(CONVERSE, request) == {
        "system": size(system),
        "client_tools": size(tools),
        "user_text": size({"text": "Why?"}),
        "tool_results": size(result) - size(document),
        "images": size(document) * 2,
    }


def test_a_request_without_a_prompt_of_its_own_has_no_history() -> None:
    result = {"type": "function_call_output", "call_id": "c", "output": "done"}
    assert counted(RESPONSES, {"previous_response_id": "r", "input": [result]}) == {"tool_results": size(result)}


KINDS = ("text", "image", "tool_result", "input_text", "input_file", "function_call_output", "additional_tools")
WORDS = st.sampled_from(["user", "assistant", "system", "tool", "developer", *KINDS, '"Grüße"\\', ""])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "type", "content", "output", "text", "toolResult", "image", "tools"]), inner
        )
    ),
    max_leaves=20,
)
REQUESTS = st.dictionaries(
    st.sampled_from(["messages", "input", "system", "instructions", "tools", "functions", "toolConfig", "model"]),
    st.lists(JSON, max_size=6) | JSON,
)


@given(st.sampled_from(DIALECTS), REQUESTS, st.integers(0, 100), st.booleans())
def test_the_categories_of_any_request_add_up(
    dialect: Dialect, request: dict[str, Any], ours: int, spaced: bool
) -> None:
    data = json.dumps(request, indent=2 if spaced else None).encode()
    counts = dialect.context_bytes(JSONObject(data), ours)
    assert sum(counts.values()) == len(data)
    assert all(count > 0 for count in counts.values())
