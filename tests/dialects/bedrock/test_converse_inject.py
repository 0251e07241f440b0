"""Converse requests with injected tools: who gets them, where they go, and what the next turn's request has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from aibridge_addon.dialects.bedrock.converse_inject import ConverseInjection
from aibridge_addon.dialects.turns import Call, FollowUp, InjectedTool, Media, Part, Result, Text, TurnEnd
from aibridge_addon.wire.json_object import JSONObject

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"where": {"$ref": "#/$defs/place"}},
    "required": ["where"],
    "$defs": {"place": {"type": "string"}},
}
TOOLS = (InjectedTool("bmcp_a_look", "Look.", SCHEMA), InjectedTool("bmcp_b_now", "", {"type": "object"}))
NAMES = tuple(tool.name for tool in TOOLS)
OURS = [
    {"toolSpec": {"name": "bmcp_a_look", "description": "Look.", "inputSchema": {"json": SCHEMA}}},
    # An empty description is refused.
    {"toolSpec": {"name": "bmcp_b_now", "description": "bmcp_b_now", "inputSchema": {"json": {"type": "object"}}}},
]
OWN = {"toolSpec": {"name": "Read", "inputSchema": {"json": {"type": "object"}}}}
POINT = {"cachePoint": {"type": "default"}}
HISTORY = [{"role": "user", "content": [{"text": "hi"}]}]
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
LLAMA = "us.meta.llama3-3-70b-instruct-v1:0"


def body_of(**members: Any) -> JSONObject:
    return JSONObject(json.dumps({"messages": HISTORY} | members).encode())


def injected(body: JSONObject, model: str = CLAUDE, *, streaming: bool = True) -> bytes | None:
    injection = ConverseInjection(streaming=streaming).for_model(model)
    offered = injection.offered(body, TOOLS)
    return injection.inject(body, offered) if offered else None


@pytest.mark.parametrize("none", [{}, {"toolConfig": None}, {"toolConfig": {}}, {"toolConfig": {"tools": None}}])
def test_a_request_without_tools_gets_ours(none: dict[str, Any]) -> None:
    assert json.loads(injected(body_of(**none)) or b"") == {"messages": HISTORY, "toolConfig": {"tools": OURS}}


def test_ours_stand_before_the_clients_so_that_a_cache_point_keeps_its_meaning() -> None:
    own = [OWN, POINT, {"systemTool": {"name": "nova_grounding"}}]
    request = json.loads(injected(body_of(toolConfig={"tools": own, "toolChoice": {"any": {}}})) or b"")
    assert request["toolConfig"] == {"tools": [*OURS, *own], "toolChoice": {"any": {}}}


def test_all_else_is_the_same_bytes_in_the_same_order() -> None:
    own = b'{"toolSpec": {"name":"x", "n":1.0E+2, "big":123456789012345678901234567890}}'
    before, after = (
        b'"zeta":{"a":[1e2, -0.0]}',
        b'"messages":[ {"role":"user","content":[{"text":"\\u00e9\xc3\xa9"}]} ]',
    )
    request = injected(JSONObject(b"{" + before + b',"toolConfig":{"x":1.50,"tools":[' + own + b"]}," + after + b"}"))
    assert request is not None and before in request and after in request and own in request and b'"x":1.50' in request
    assert list(json.loads(request)) == ["zeta", "toolConfig", "messages"]


def test_a_clients_tool_of_the_same_name_wins() -> None:
    own = {"toolSpec": {"name": "bmcp_a_look", "inputSchema": {"json": {}}}}
    request = json.loads(injected(body_of(toolConfig={"tools": [own]})) or b"")
    assert request["toolConfig"]["tools"] == [OURS[1], own]
    system = {"systemTool": {"name": "bmcp_a_look"}}
    request = json.loads(injected(body_of(toolConfig={"tools": [system]})) or b"")
    assert request["toolConfig"]["tools"] == [OURS[1], system]


@pytest.mark.parametrize(
    "members",
    [
        {"toolConfig": {"tools": []}},
        {"toolConfig": {"tools": {}}},
        {"toolConfig": {"tools": "no"}},
        {"toolConfig": []},
        {"toolConfig": "no"},
        {"inferenceConfig": {"maxTokens": 1}},
        {"outputConfig": {"textFormat": {"type": "json_schema"}}},
        {"promptVariables": {"a": {"text": "b"}}},
    ],
    ids=str,
)
def test_nothing_is_injected_where_it_cannot_be_meant(members: dict[str, Any]) -> None:
    assert injected(body_of(**members)) is None


@pytest.mark.parametrize(
    "members",
    [
        {"inferenceConfig": {"maxTokens": 100}},
        {"outputConfig": {"effort": "high"}},
        {"additionalModelRequestFields": {"thinking": {"type": "adaptive"}}},
        {"toolConfig": {"tools": [OWN], "toolChoice": {"auto": {}}}},
    ],
    ids=str,
)
def test_tools_are_injected_and_only_tools_change(members: dict[str, Any]) -> None:
    request = json.loads(injected(body_of(**members)) or b"")
    config = request.pop("toolConfig")
    assert request == {"messages": HISTORY} | {name: v for name, v in members.items() if name != "toolConfig"}
    assert config["tools"][:2] == OURS


@pytest.mark.parametrize(
    ("model", "blocking", "streaming"),
    [
        (CLAUDE, True, True),
        ("amazon.nova-pro-v1:0", True, True),
        ("openai.gpt-oss-120b-1:0", True, True),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc", True, True),
        (LLAMA, True, False),
        ("us.meta.llama4-scout-17b-instruct-v1:0", True, False),
        ("amazon.titan-text-express-v1", False, False),
        ("anthropic.claude-v2:1", False, False),
        ("mistral.mixtral-8x7b-instruct-v0:1", False, False),
        ("us.deepseek.r1-v1:0", False, False),
        ("arn:aws:bedrock:us-east-1:123456789012:prompt/ABCDEFGHIJ:1", False, False),
    ],
)
def test_models_that_take_no_tools_get_none(model: str, blocking: bool, streaming: bool) -> None:
    assert (injected(body_of(), model, streaming=False) is not None) is blocking
    assert (injected(body_of(), model, streaming=True) is not None) is streaming


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"toolConfig":{"tools":[1,null,"x",{"toolSpec":3},{"toolSpec":{"name":["bmcp_a_look"]}}]}}',
        b'{"toolConfig":{"tools":[{"n":1e999}]},"messages":[1e999]}',
        b'{"messages":7,"inferenceConfig":[],"outputConfig":"x","toolConfig":{"toolChoice":[]}}',
        b'{"messages":"\\ud83d","toolConfig":{"tools":["\\ud83d"]}}',
    ],
)
def test_no_request_is_too_odd(body: bytes) -> None:
    request = injected(JSONObject(body))
    assert request is None or isinstance(json.loads(request), dict)


def test_nova_gets_no_more_than_its_schemas_have() -> None:
    plain = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tools = (InjectedTool("bmcp_a_plain", "Count.", plain | {"additionalProperties": False, "title": "T"}), *TOOLS)
    for model, expected in (("us.amazon.nova-pro-v1:0", plain), (CLAUDE, tools[0].input_schema)):
        injection, body = ConverseInjection(streaming=True).for_model(model), body_of()
        offered = injection.offered(body, tools)
        request = json.loads(injection.inject(body, offered))
        sent = {tool["toolSpec"]["name"]: tool["toolSpec"]["inputSchema"] for tool in request["toolConfig"]["tools"]}
        assert sent["bmcp_a_plain"] == {"json": expected}
        assert ("bmcp_a_look" in sent) is (model == CLAUDE), "a schema with references"


# --- the next turn's request


def called(*ids: str) -> list[Call]:
    return [Call(id_, "bmcp_a_look", {}, {"toolUse": {"toolUseId": id_}}) for id_ in ids]


def follow_up(
    body: JSONObject, *said: dict[str, Any], last: bool = False, first: JSONObject | None = None
) -> dict[str, Any]:
    end = TurnEnd(called("c1", "c2"), [], list(said), "request-1")
    results = [Result(call, (Text(f"of {call.id}"),)) for call in end.calls]
    turn = FollowUp(body, end, results, last, first or body, NAMES)
    request = json.loads(ConverseInjection(streaming=True, model=CLAUDE).follow_up(turn))
    assert isinstance(request, dict)
    return request


def test_what_was_said_and_the_results_follow_the_history_and_all_else_stays() -> None:
    said = {"hologram": {"odd": 123456789012345678901234567890}}
    body = body_of(toolConfig={"tools": [*OURS, OWN]}, inferenceConfig={"temperature": 1.0})
    answers = [{"toolResult": {"toolUseId": id_, "content": [{"text": f"of {id_}"}]}} for id_ in ("c1", "c2")]
    added = [{"role": "assistant", "content": [said]}, {"role": "user", "content": answers}]
    assert follow_up(body, {"text": " \n"}, said) == json.loads(body.replaced({})) | {"messages": HISTORY + added}


def test_reasoning_without_a_signature_does_not_go_back() -> None:
    signed = {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "s"}}}
    bare = {"reasoningContent": {"reasoningText": {"text": "Hm."}}}
    redacted = {"reasoningContent": {"redactedContent": "cmVk"}}
    request = follow_up(body_of(), signed, bare, redacted)
    assert request["messages"][-2]["content"] == [signed, redacted]


@pytest.mark.parametrize("choice", [{"any": {}}, {"tool": {"name": "Read"}}])
def test_a_demand_for_a_call_holds_until_one_of_the_clients_or_bedrocks_tools_is_called(choice: dict[str, Any]) -> None:
    config = {"tools": [*OURS, OWN], "toolChoice": choice}
    body = body_of(toolConfig=config)
    assert follow_up(body)["toolConfig"] == config
    server = {"toolUse": {"toolUseId": "s", "name": "nova_grounding", "type": "server_tool_use", "input": {}}}
    assert follow_up(body, server)["toolConfig"] == config | {"toolChoice": {"auto": {}}}


@pytest.mark.parametrize("own", [[], [POINT]])
def test_without_tools_of_its_own_a_client_that_demands_a_call_gets_none(own: list[Any]) -> None:
    assert injected(body_of(toolConfig={"tools": own or None, "toolChoice": {"any": {}}})) is None


def test_the_last_turn_goes_back_to_the_clients_own_tools() -> None:
    config = {"tools": [*OURS, OWN, POINT], "toolChoice": {"any": {}}}
    request = follow_up(body_of(toolConfig=config), last=True)
    assert request["toolConfig"] == {"tools": [OWN, POINT], "toolChoice": {"any": {}}}


@pytest.mark.parametrize("own", [[], [POINT]])
def test_where_all_tools_are_ours_they_stay(own: list[Any]) -> None:
    """A history with calls is only valid with tools, and Converse has no choice that forbids calls."""
    body = body_of(toolConfig={"tools": [*OURS, *own]})
    assert follow_up(body, last=True)["toolConfig"] == {"tools": [*OURS, *own]}


PNG, PDF, WAV = Media("image/png", "aGk="), Media("application/pdf", "aGk="), Media("audio/wav", "aGk=", "file:///a")
JPG = Media("image/JPG; q=1", "aGk=")
A = Text("a")
SOURCE = {"bytes": "aGk="}


def result(parts: Sequence[Part], *, is_error: bool, model: str) -> dict[str, Any]:
    (call,) = called("c1")
    injection = ConverseInjection(streaming=False, model=model)
    block: dict[str, Any] = injection.tool_result(Result(call, tuple(parts), is_error))["toolResult"]
    assert block.pop("toolUseId") == "c1"
    return block


@pytest.mark.parametrize(
    ("parts", "is_error", "expected"),
    [
        ((A, Text(" \n"), Text("b")), False, {"content": [{"text": "a"}, {"text": "b"}]}),
        ((), False, {"content": [{"text": "(no output)"}]}),
        ((PNG, A), False, {"content": [{"image": {"format": "png", "source": SOURCE}}, {"text": "a"}]}),
        ((JPG,), False, {"content": [{"image": {"format": "jpeg", "source": SOURCE}}]}),
        (
            (PDF, PDF),
            False,
            {"content": [{"document": {"format": "pdf", "name": f"file {n}", "source": SOURCE}} for n in (1, 2)]},
        ),
        ((WAV,), False, {"content": [{"text": WAV.note}]}),
        ((A,), True, {"content": [{"text": "a"}], "status": "error"}),
        ((), True, {"content": [{"text": "(no output)"}], "status": "error"}),
        ((PNG,), True, {"content": [{"text": PNG.note}], "status": "error"}),
    ],
)
def test_a_result_for_claude(parts: Sequence[Part], is_error: bool, expected: dict[str, Any]) -> None:
    assert result(parts, is_error=is_error, model=CLAUDE) == expected


@pytest.mark.parametrize(
    ("parts", "is_error", "text"),
    [
        ((A,), False, "a"),
        ((PNG,), False, PNG.note),
        ((A,), True, "Error: a"),
        ((Text("Error calling tool"),), True, "Error calling tool"),
    ],
)
def test_a_result_for_models_that_refuse_a_status_and_images(parts: Sequence[Part], is_error: bool, text: str) -> None:
    assert result(parts, is_error=is_error, model=LLAMA) == {"content": [{"text": text}]}


@pytest.mark.parametrize("config", [{}, {"toolConfig": {"tools": [OWN, POINT], "toolChoice": {"auto": {}}}}])
def test_tools_are_taken_out_again(config: dict[str, Any]) -> None:
    body, injection = body_of(**config), ConverseInjection(streaming=True)
    request = JSONObject(injected(body) or b"")
    assert json.loads(injection.without(request, NAMES)) == json.loads(body.replaced({}))
    left = json.loads(injection.without(request, NAMES[:1]))["toolConfig"]
    assert left == config.get("toolConfig", {}) | {"tools": [OURS[1], *config.get("toolConfig", {}).get("tools", ())]}
