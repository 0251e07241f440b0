"""Which servers' tools an actor may use: patterns of names, groups behind @, deny before allow."""

from __future__ import annotations

from typing import Any

import pytest

from aibridge_addon.config.tool_actors import ToolActors
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.tool_access import ToolAccess

ADA = ("ada@corp.test", ("ops", "team-red"))


@pytest.mark.parametrize(
    ("rules", "permitted"),
    [
        ({}, True),
        ({"allow": [], "deny": []}, True),
        ({"allow": ["ada@corp.test"]}, True),
        ({"allow": "ada@*"}, True),
        ({"allow": ["*@corp.test"]}, True),
        ({"allow": ["bob@corp.test"]}, False),
        ({"allow": ["ADA@corp.test"]}, False),
        ({"allow": ["ada"]}, False),
        ({"allow": ["bob", "@ops"]}, True),
        ({"allow": ["@team-*"]}, True),
        ({"allow": ["@dev"]}, False),
        ({"allow": ["ops"]}, False),
        ({"allow": ["@ada@corp.test"]}, False),
        ({"deny": ["ada@*"]}, False),
        ({"deny": ["@ops"]}, False),
        ({"deny": ["bob"]}, True),
        ({"deny": ["@dev"]}, True),
        ({"allow": ["*"], "deny": ["@ops"]}, False),
        ({"allow": ["@ops"], "deny": ["@dev"]}, True),
        ({"allow": ["@ops"], "deny": ["*"]}, False),
    ],
)
def test_an_actor_may_use_a_server(rules: dict[str, Any], permitted: bool) -> None:
    access = ToolAccess({"s": ToolActors.model_validate(rules), "open": ToolActors()})
    for _ in range(2):
        assert access.hidden(Actor(ADA[0], {}, ADA[1])) == (frozenset() if permitted else {"s"})


def test_groups_of_one_request_do_not_count_for_another() -> None:
    access = ToolAccess({"s": ToolActors(allow=("@ops",))})
    assert access.hidden(Actor("ada", {}, ("ops",))) == frozenset()
    assert access.hidden(Actor("ada", {})) == {"s"}


def test_an_actor_whose_name_begins_with_the_mark_of_groups_is_no_group() -> None:
    access = ToolAccess({"s": ToolActors(allow=("@ops",)), "t": ToolActors(allow=("[@]ops",))})
    assert access.hidden(Actor("@ops", {})) == {"s"}
