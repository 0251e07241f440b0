"""The snapshot of what is offered."""

import json
import re
from typing import Any

import pytest

from aibridge_addon.dialects.turns import InjectedTool
from aibridge_addon.tools import catalog, schemas
from aibridge_addon.tools.catalog import ListedTool, Listing, Tool

SCHEMA: dict[str, Any] = {
    "type": "object",
    "$defs": {"big": {"const": 12345678901234567890123}},
    "properties": {"n": {"oneOf": [{"$ref": "#/$defs/big"}, {"type": "null"}], "default": 1.0}},
    "additionalProperties": False,
}


EMPTY: dict[str, Any] = {"type": "object", "properties": {}}


def listing(server: str, *names: str, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> Listing:
    offers = [ListedTool(name, f"does {name}", {"type": "object"}) for name in names]
    return Listing(server, None, [re.compile(p) for p in allow], [re.compile(p) for p in deny], offers)


def offered(*listings: Listing) -> list[str]:
    return [tool.original_name for tool in catalog.build(listings).tools]


def test_tools_are_sorted_by_name_whatever_the_order_of_servers_and_lists() -> None:
    one = catalog.build([listing("b", "z", "a"), listing("a", "m")])
    other = catalog.build([listing("a", "m"), listing("b", "a", "z")])
    assert [tool.name for tool in one.tools] == ["bmcp_a_m", "bmcp_b_a", "bmcp_b_z"]
    assert one == other


def test_a_name_leads_back_to_the_server_and_the_original_name() -> None:
    offer = ListedTool("read.all", "Read.", SCHEMA)
    found = catalog.build([Listing("files", "https://host/mcp", tools=[offer])]).get("bmcp_files_read_all")
    assert found == Tool("bmcp_files_read_all", "read.all", "files", "https://host/mcp", "Read.", SCHEMA)


def test_an_unknown_name_leads_nowhere() -> None:
    assert catalog.build([listing("a", "m")]).get("bmcp_a_n") is None


def test_requests_get_the_whole_schema() -> None:
    built = catalog.build([Listing("s", None, tools=[ListedTool("t", "Does.", SCHEMA)])])
    assert built.injected == (InjectedTool("bmcp_s_t", "Does.", SCHEMA),)
    assert built.names == {"bmcp_s_t"}


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        ((), (), ["create_issue", "list_issues", "read.file"]),
        (("issue",), (), ["create_issue", "list_issues"]),
        (("^list", "file$"), (), ["list_issues", "read.file"]),
        ((), ("issue",), ["read.file"]),
        (("issue",), ("^create",), ["list_issues"]),
        (("issue",), ("issue",), []),
        (("ISSUE",), (), []),
        (("bmcp_",), (), []),
    ],
)
def test_patterns_are_searched_in_the_original_name_and_deny_wins(
    allow: tuple[str, ...], deny: tuple[str, ...], expected: list[str]
) -> None:
    assert offered(listing("s", "create_issue", "list_issues", "read.file", allow=allow, deny=deny)) == expected


def test_filters_of_one_server_do_not_touch_another() -> None:
    assert offered(listing("a", "x", deny=("x",)), listing("b", "x")) == ["x"]


@pytest.mark.parametrize(
    ("offer", "problem"),
    [
        (ListedTool("", "", {}), "'' (a name of 0 characters)"),
        (ListedTool("n" * 257, "", {}), f"'{'n' * 60}' (a name of 257 characters)"),
        (ListedTool("ok", "", {}), "'ok' (a second one of this name)"),
        (ListedTool("s", "", {"x": "y" * (256 << 10)}), f"'s' (a schema of {(256 << 10) + 9} bytes)"),
        (ListedTool("t", "", {"x": float("nan"), "y": {1, 2}}), "'t' (a schema that cannot be written)"),
    ],
)
def test_what_no_model_can_use_is_left_out_and_named(offer: ListedTool, problem: str) -> None:
    good = ListedTool("ok", "", EMPTY)
    tools, left_out = catalog.admit([good, offer])
    assert (tools, [str(each) for each in left_out]) == ((good,), [problem])


def test_a_name_and_a_schema_at_their_limits_are_offered() -> None:
    offers = (ListedTool("n" * 256, "", EMPTY | {"x": "y" * ((256 << 10) - len(json.dumps(EMPTY)) - 9)}),)
    assert catalog.admit(offers) == (offers, ())


def test_no_server_can_offer_more_than_a_thousand_tools() -> None:
    offers, left_out = catalog.admit(ListedTool(f"t{n}", "", {}) for n in range(1002))
    assert len(offers) == 1000
    assert left_out == (("t1000", "more than 1000 tools"), ("t1001", "more than 1000 tools"))


def test_a_tool_with_keys_that_providers_refuse_knows_the_servers_own() -> None:
    offers, left_out = catalog.admit([ListedTool("t", "", {"type": "object", "properties": {"filter[id]": {}}})])
    [tool] = catalog.build([Listing("s", None, tools=offers)]).tools
    assert left_out == ()
    assert tool.input_schema["properties"].keys() == tool.original_keys.keys()
    assert list(tool.original_keys.values()) == ["filter[id]"]


def test_a_schema_at_which_an_error_of_ours_shows_costs_its_tool_only(monkeypatch: pytest.MonkeyPatch) -> None:
    mend = schemas.mend

    def fail(schema: dict[str, Any]) -> Any:
        return mend(schema) if "odd" not in schema else 1 / 0

    monkeypatch.setattr(schemas, "mend", fail)
    admitted, left_out = catalog.admit([ListedTool("a", "", {"odd": 1}), ListedTool("b", "", {})])
    assert [tool.name for tool in admitted] == ["b"]
    assert [str(tool) for tool in left_out] == ["'a' (its schema cannot be mended: ZeroDivisionError)"]
