"""Which tools a provider has refused, until they change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aibridge_addon.dialects.turns import InjectedTool
from aibridge_addon.interception.refused_tools import RefusedTools
from tests.support.dialects import INJECTIONS

TOOLS = [InjectedTool(f"bmcp_a_{name}", "", {"type": "object", "properties": {}}) for name in "xyz"]


@pytest.mark.parametrize("dialect", INJECTIONS)
def test_a_refused_tool_is_left_out_for_its_provider_until_its_definition_changes(dialect: str) -> None:
    memory, injection = RefusedTools(), INJECTIONS[dialect]
    assert memory.accepted("p", injection, TOOLS) == TOOLS
    memory.add("p", injection, TOOLS[1])
    assert memory.names("p") == ("bmcp_a_y",) and memory.names("q") == ()
    assert memory.accepted("p", injection, TOOLS) == [TOOLS[0], TOOLS[2]]
    assert memory.accepted("q", injection, TOOLS) == TOOLS
    changed = [TOOLS[0], replace(TOOLS[1], description="Now."), TOOLS[2]]
    assert memory.accepted("p", injection, changed) == changed
    others = [other for name, other in INJECTIONS.items() if name != dialect]
    assert all(memory.accepted("p", other, TOOLS) == TOOLS for other in others)


def test_a_model_without_tools_is_known_by_its_provider() -> None:
    memory = RefusedTools()
    memory.add_model("p", "m")
    assert [memory.takes_none(*key) for key in (("p", "m"), ("p", "n"), ("q", "m"))] == [True, False, False]


def test_the_memory_is_bounded() -> None:
    memory = RefusedTools(limit=2)
    for model in "abc":
        memory.add_model("p", model)
    assert [memory.takes_none("p", model) for model in "abc"] == [False, True, True]
