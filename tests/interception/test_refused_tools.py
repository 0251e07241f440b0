"""Which tools a provider has refused, until they change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from aibridge_addon.dialects.bedrock.converse_inject import ConverseInjection
from aibridge_addon.dialects.turns import InjectedTool
from aibridge_addon.interception.refused_tools import MODEL_FOR, RefusedTools, circumstances
from aibridge_addon.wire.json_object import JSONObject
from tests.support.dialects import INJECTIONS

TOOLS = [InjectedTool(f"bmcp_a_{name}", "", {"type": "object", "properties": {}}) for name in "xyz"]


@pytest.mark.parametrize("dialect", INJECTIONS)
def test_a_refused_tool_is_left_out_for_its_provider_until_its_definition_changes(dialect: str) -> None:
    memory, injection = RefusedTools(lambda: 0.0), INJECTIONS[dialect]
    assert memory.accepted("p", injection, TOOLS) == TOOLS
    memory.add("p", injection, TOOLS[1])
    assert memory.names("p") == ("bmcp_a_y",) and memory.names("q") == ()
    assert memory.accepted("p", injection, TOOLS) == [TOOLS[0], TOOLS[2]]
    assert memory.accepted("q", injection, TOOLS) == TOOLS
    changed = [TOOLS[0], replace(TOOLS[1], description="Now."), TOOLS[2]]
    assert memory.accepted("p", injection, changed) == changed
    others = [other for name, other in INJECTIONS.items() if name != dialect]
    assert all(memory.accepted("p", other, TOOLS) == TOOLS for other in others)


def test_a_model_without_tools_is_known_by_its_provider_and_the_circumstances_for_an_hour() -> None:
    seconds = [0.0]
    memory = RefusedTools(lambda: seconds[0])
    memory.add_model("p", "m", b"1")
    keys = (("p", "m", b"1"), ("p", "n", b"1"), ("q", "m", b"1"), ("p", "m", b"2"))
    assert [memory.takes_none(*key) for key in keys] == [True, False, False, False]
    seconds[0] = MODEL_FOR
    assert not memory.takes_none("p", "m", b"1")


@pytest.mark.parametrize(
    ("body", "are_the_same"),
    [
        ({"model": "other", "messages": ["other"], "stream": True}, True),
        ({"model": "m", "messages": [], "stream": True, "tools": [1], "tool_choice": "auto"}, True),
        ({"model": "m", "messages": [], "stream": False}, False),
        ({"model": "m", "messages": []}, False),
        ({"model": "m", "messages": [], "stream": True, "thinking": {"type": "enabled"}}, False),
        ({"model": "m", "messages": [], "stream": True, "response_format": {"type": "json_schema"}}, False),
        ({"model": "m", "messages": [], "stream": True, "provider": {"only": ["x"]}}, False),
    ],
)
def test_circumstances_are_what_may_decide_about_tools(body: dict[str, Any], are_the_same: bool) -> None:
    one = circumstances("/v1/chat", JSONObject(b'{"model": "m", "messages": [], "stream": true}'))
    assert (circumstances("/v1/chat", JSONObject(json.dumps(body).encode())) == one) is are_the_same
    assert circumstances("/v1/other", JSONObject(json.dumps(body).encode())) != one


def test_models_that_take_other_schemas_have_tools_of_their_own() -> None:
    memory, injection = RefusedTools(lambda: 0.0), ConverseInjection(streaming=True)
    nova, claude = injection.for_model("us.amazon.nova-pro-v1:0"), injection.for_model("anthropic.claude-sonnet-5")
    memory.add("p", nova, TOOLS[0])
    assert memory.accepted("p", nova.for_model("amazon.nova-lite-v1:0"), TOOLS) == TOOLS[1:]
    assert memory.accepted("p", claude, TOOLS) == TOOLS


def test_the_memory_is_bounded() -> None:
    memory = RefusedTools(lambda: 0.0, limit=2)
    for model in "abc":
        memory.add_model("p", model, b"")
    assert [memory.takes_none("p", model, b"") for model in "abc"] == [False, True, True]
