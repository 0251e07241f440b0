"""Which requests get injected tools, where they go, and that nothing else of a request changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from aibridge_addon.dialects.turns import InjectedTool
from aibridge_addon.wire.json_object import JSONObject
from tests.support.dialects import INJECTIONS

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"where": {"$ref": "#/$defs/place"}, "n": {"oneOf": [{"type": "integer"}, {"type": "null"}]}},
    "required": ["where"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "string", "minLength": 1}},
}
TOOLS = (
    InjectedTool("bmcp_a_look", "Look.", SCHEMA),
    InjectedTool("bmcp_b_now", "Tell the time.", {"type": "object", "properties": {}}),
)
DIALECTS = tuple(INJECTIONS)

MESSAGES_TOOLS = [
    {"name": tool.name, "description": tool.description, "type": "custom", "input_schema": tool.input_schema}
    for tool in TOOLS
]
CHAT_TOOLS = [
    {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
    }
    for tool in TOOLS
]
RESPONSES_TOOLS = [
    {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": False,
    }
    for tool in TOOLS
]
OURS: Mapping[str, list[dict[str, Any]]] = {
    "messages": MESSAGES_TOOLS,
    "chat_completions": CHAT_TOOLS,
    "responses": RESPONSES_TOOLS,
}
OWN: Mapping[str, dict[str, Any]] = {
    "messages": {"name": "Read", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}},
    "chat_completions": {"type": "function", "function": {"name": "Read", "parameters": {}}},
    "responses": {"type": "function", "name": "Read", "parameters": {}, "strict": True},
}
BASE: Mapping[str, dict[str, Any]] = {
    "messages": {"model": "m", "max_tokens": 9000, "messages": [{"role": "user", "content": "hi"}]},
    "chat_completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "responses": {"model": "m", "input": "hi"},
}


def injected(dialect: str, body: bytes | dict[str, Any], tools: tuple[InjectedTool, ...] = TOOLS) -> bytes | None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    injection, request = INJECTIONS[dialect], JSONObject(data)
    offered = injection.offered(request, tools)
    return injection.inject(request, offered) if offered else None


def offered(dialect: str, body: dict[str, Any]) -> list[str]:
    found = INJECTIONS[dialect].offered(JSONObject(json.dumps(body).encode()), TOOLS)
    return [tool.name for tool in found]


def tools_of(request: bytes | None) -> list[Any]:
    assert request is not None
    tools = json.loads(request)["tools"]
    assert isinstance(tools, list)
    return tools


@pytest.mark.parametrize("dialect", DIALECTS)
class TestEveryDialect:
    def test_a_request_without_tools_gets_ours(self, dialect: str) -> None:
        for none in ({}, {"tools": None}):
            request = injected(dialect, BASE[dialect] | none)
            assert json.loads(request or b"") == BASE[dialect] | {"tools": OURS[dialect]}

    def test_ours_stand_where_the_clients_keep_their_meaning(self, dialect: str) -> None:
        """Before them in Messages: a cache breakpoint at the last of the client's means "up to here"."""
        own = [OWN[dialect], {"type": "web_search"}]
        expected = OURS[dialect] + own if dialect == "messages" else own + OURS[dialect]
        assert tools_of(injected(dialect, BASE[dialect] | {"tools": own})) == expected

    def test_all_else_is_the_same_bytes_in_the_same_order(self, dialect: str) -> None:
        head = b'"zeta" : {"b":1,"a":[1e2, 1.50, 123456789012345678901234567890, -0.0]},"tools": ['
        own = b'{"name":"x", "cache_control":{"type":"ephemeral"},"n":1.0E+2}'
        tail = b'],"text_in":"\\u00e9\xc3\xa9 \\ud83e\\udd8a","messages":[ {"role":"user","content":"a"} ],"model":"m"'
        request = injected(dialect, b"{ " + head + own + b" " + tail + b"}")
        assert request is not None
        for kept in (b'{"b":1,"a":[1e2, 1.50, 123456789012345678901234567890, -0.0]}', own, b'[ {"role":"user"'):
            assert kept in request
        assert b'"\\u00e9\xc3\xa9 \\ud83e\\udd8a"' in request
        assert list(json.loads(request)) == ["zeta", "tools", "text_in", "messages", "model"]

    def test_the_same_request_and_tools_are_the_same_bytes(self, dialect: str) -> None:
        body = BASE[dialect] | {"tools": [OWN[dialect]]}
        assert len({injected(dialect, body) for _ in range(10)}) == 1

    def test_a_clients_tool_of_the_same_name_wins(self, dialect: str) -> None:
        own = {"name": "bmcp_a_look", "input_schema": {}, "mine": True}
        if dialect == "chat_completions":
            own = {"type": "function", "function": own}
        body = BASE[dialect] | {"tools": [own]}
        tools = tools_of(injected(dialect, body))
        assert own in tools and len(tools) == 2
        assert offered(dialect, body) == ["bmcp_b_now"]

    def test_nothing_is_injected_where_there_is_nothing_to_inject(self, dialect: str) -> None:
        assert injected(dialect, BASE[dialect], ()) is None

    def test_a_forced_choice_stays_the_clients(self, dialect: str) -> None:
        choice: Any = {"type": "tool", "name": "Read"} if dialect == "messages" else {"type": "function", "name": "R"}
        request = injected(dialect, BASE[dialect] | {"tools": [OWN[dialect]], "tool_choice": choice})
        assert json.loads(request or b"")["tool_choice"] == choice

    @pytest.mark.parametrize("tools", [[], {}, "no", 0, False])
    def test_an_empty_list_of_tools_is_meant_and_anything_odd_is_the_providers_to_judge(
        self, dialect: str, tools: Any
    ) -> None:
        body = BASE[dialect] | {"tools": tools}
        assert injected(dialect, body) is None
        assert offered(dialect, body) == []


@pytest.mark.parametrize("length", [1024, 1025])
def test_a_description_is_cut_where_the_api_refuses_longer_ones(length: int) -> None:
    tools = (InjectedTool("bmcp_a_b", "d" * length, SCHEMA),)
    sent = {dialect: tools_of(injected(dialect, BASE[dialect], tools))[0] for dialect in DIALECTS}
    assert sent["messages"]["description"] == sent["responses"]["description"] == "d" * length
    description = sent["chat_completions"]["function"]["description"]
    assert description == ("d" * 1024 if length == 1024 else "d" * 1018 + " [cut]")


@pytest.mark.parametrize(
    ("dialect", "own", "ours"),
    [
        ("chat_completions", 25, 103),
        ("responses", 25, 103),
        ("chat_completions", 18, 110),
        ("chat_completions", 127, 1),
        ("chat_completions", 128, 0),
        ("responses", 200, 0),
        ("messages", 128, 110),
    ],
)
def test_no_more_tools_are_offered_than_the_api_takes(dialect: str, own: int, ours: int) -> None:
    tools = tuple(InjectedTool(f"bmcp_a_{n:03}", "", SCHEMA) for n in range(110))
    body = BASE[dialect] | {"tools": [OWN[dialect]] * own}
    found = INJECTIONS[dialect].offered(JSONObject(json.dumps(body).encode()), tools)
    assert found == list(tools[:ours])


def test_tools_in_codexs_own_place_count_as_well() -> None:
    items = [{"type": "additional_tools", "tools": [OWN["responses"]] * 127}, {"role": "user", "content": "hi"}]
    assert offered("responses", BASE["responses"] | {"input": items}) == ["bmcp_a_look"]


NOT_MEANT: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"tool_choice": {"type": "none"}}),
    ("messages", {"tool_choice": {"type": "any"}}),  # no tool but ours could be called
    ("messages", {"tool_choice": {"type": "tool", "name": "Read"}, "tools": None}),
    ("messages", {"max_tokens": 1}),
    ("messages", {"output_config": {"format": {"type": "json_schema", "schema": {}}}}),
    ("messages", {"output_format": {"type": "json_schema", "schema": {}}}),
    ("messages", {"compaction": {"type": "summary"}}),
    ("chat_completions", {"tool_choice": "none"}),
    ("chat_completions", {"tool_choice": "required"}),
    ("chat_completions", {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}),
    ("chat_completions", {"functions": [{"name": "old"}]}),
    ("chat_completions", {"prediction": {"type": "content", "content": "x"}}),
    ("chat_completions", {"n": 2}),
    ("chat_completions", {"max_tokens": 1}),
    ("chat_completions", {"max_completion_tokens": 1}),
    ("chat_completions", {"response_format": {"type": "json_object"}}),
    ("chat_completions", {"response_format": {"type": "json_schema", "json_schema": {}}}),
    ("responses", {"tool_choice": "none"}),
    ("responses", {"tool_choice": "required"}),
    ("responses", {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}),
    ("responses", {"background": True}),
    ("responses", {"generate": False, "input": []}),
    ("responses", {"input": [{"role": "user", "content": "a"}, {"type": "compaction_trigger"}]}),
    ("responses", {"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}}),
    ("responses", {"text": {"format": {"type": "json_object"}}}),
    ("responses", {"max_output_tokens": 16}),
    ("responses", {"prompt": {"id": "pmpt_1"}}),
    ("responses", {"input": [{"type": "additional_tools", "tools": []}, {"role": "user", "content": "a"}]}),
]
MEANT: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
    ("messages", {"tool_choice": {"type": "any"}, "tools": [OWN["messages"]]}),
    ("messages", {"max_tokens": 0}),  # fills the prompt cache for the requests that follow
    ("messages", {"output_config": {"effort": "high"}}),
    ("messages", {"thread": {"type": "create"}}),
    ("chat_completions", {"tool_choice": "required", "n": 1, "tools": [OWN["chat_completions"]]}),
    ("chat_completions", {"tool_choice": "auto", "response_format": {"type": "text"}}),
    ("chat_completions", {"parallel_tool_calls": False, "max_completion_tokens": 100}),
    ("responses", {"tool_choice": "auto", "background": False, "text": {"format": {"type": "text"}}}),
    ("responses", {"previous_response_id": "resp_1", "max_output_tokens": 100}),
    ("responses", {"conversation": "conv_1", "generate": True}),
    ("responses", {"prompt": {"id": "pmpt_1"}, "tools": [OWN["responses"]]}),
    ("responses", {"input": [{"type": "compaction_trigger"}, {"role": "user", "content": "a"}]}),
]


@pytest.mark.parametrize(("dialect", "members"), NOT_MEANT, ids=str)
def test_nothing_is_injected_where_it_cannot_be_meant(dialect: str, members: dict[str, Any]) -> None:
    body = BASE[dialect] | members
    assert injected(dialect, body) is None
    assert offered(dialect, body) == []


@pytest.mark.parametrize(("dialect", "members"), MEANT, ids=str)
def test_tools_are_injected_and_only_tools_change(dialect: str, members: dict[str, Any]) -> None:
    body = BASE[dialect] | members
    request = json.loads(injected(dialect, body) or b"")
    assert {name: value for name, value in request.items() if name != "tools"} == {
        name: value for name, value in body.items() if name != "tools"
    }
    assert len(request["tools"]) == len(members.get("tools", ())) + len(TOOLS)
    assert offered(dialect, body) == [tool.name for tool in TOOLS]


def test_a_thread_that_goes_on_has_its_tools_already() -> None:
    """They were injected into the request that created it: nothing is sent again, but calls have to be hidden."""
    body = BASE["messages"] | {"thread": {"type": "continue", "previous_message_id": "msg_1"}}
    assert json.loads(injected("messages", body) or b"") == body
    assert offered("messages", body) == [tool.name for tool in TOOLS]


def test_cache_breakpoints_of_the_client_are_untouched() -> None:
    own = [OWN["messages"] | {"name": str(n)} for n in range(3)]
    body = BASE["messages"] | {"tools": own, "system": [{"type": "text", "text": "a", "cache_control": {}}]}
    request = json.loads(injected("messages", body) or b"")
    assert request["tools"][2:] == own and request["system"] == body["system"]
    assert not any("cache_control" in tool for tool in request["tools"][:2])


class TestCodex:
    """Its default model keeps its tools in the first item of the input."""

    FIRST = (
        b'{"type":"additional_tools", "role":"developer","x":1.0E+2,'
        b'"tools":[{"type":"namespace","name":"functions","tools":[{"name":"bmcp_b_now","n":1e2}]}]}'
    )

    def request(self, first: bytes) -> bytes:
        rest = b'{"role":"user","content":"a","big":123456789012345678901234567890}'
        return b'{"model":"m","input":[' + first + b"," + rest + b'],"store":false}'

    def test_ours_go_there(self) -> None:
        request = injected("responses", self.request(self.FIRST))
        assert request is not None
        told = json.loads(request)
        assert "tools" not in told
        assert told["input"][0]["tools"][1:] == RESPONSES_TOOLS[:1]
        assert list(told["input"][0]) == ["type", "role", "x", "tools"]
        for kept in (b'"x":1.0E+2', b'{"name":"bmcp_b_now","n":1e2}', b"123456789012345678901234567890"):
            assert kept in request

    def test_a_tool_inside_a_namespace_has_its_name_too(self) -> None:
        body = json.loads(self.request(self.FIRST))
        assert offered("responses", body) == ["bmcp_a_look"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"tools":[1,null,"x",{"name":["bmcp_a_look"]},{"function":3}]}',
        b'{"input":[1e999],"messages":[1e999],"tools":[{"n":1e999}]}',
        b'{"input":["a",[]],"messages":7,"tool_choice":{"type":["none"]},"text":[],"thread":1,"output_config":"x"}',
        b'{"input":{"type":"additional_tools"},"tool_choice":[],"max_tokens":true,"max_output_tokens":"a"}',
        b'{"input":[{"type":"additional_tools","tools":"x"}]}',
        b'{"messages":"\\ud83d","input":"\\ud83d"}',
    ],
)
def test_no_request_is_too_odd(dialect: str, body: bytes) -> None:
    """What is wrong with it is the provider's to say."""
    request = injected(dialect, body)
    assert request is None or isinstance(json.loads(request), dict)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tools_are_taken_out_again_byte_for_byte(dialect: str) -> None:
    own = json.dumps(OWN[dialect]).encode()
    for tools in (b"", b',"tools":[' + own + b"]"):
        body = b'{"model":"m","seed": 1.0E+2' + tools + b"}"
        request = injected(dialect, body)
        names = [tool.name for tool in TOOLS]
        without = INJECTIONS[dialect].without(JSONObject(request or b""), names)
        assert without == JSONObject(body).replaced({})
        assert tools_of(INJECTIONS[dialect].without(JSONObject(request or b""), names[:1]))


def test_tools_are_taken_out_of_codexs_own_place() -> None:
    own = {"type": "function", "name": "Read", "parameters": {}}
    body = {"model": "m", "input": [{"type": "additional_tools", "tools": [own]}, {"role": "user", "content": "a"}]}
    request = JSONObject(injected("responses", body) or b"")
    assert INJECTIONS["responses"].sent_names(request) == ["Read", *(tool.name for tool in TOOLS)]
    assert json.loads(INJECTIONS["responses"].without(request, [tool.name for tool in TOOLS])) == body
