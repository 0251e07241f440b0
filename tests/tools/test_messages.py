"""Messages as servers send them, and what the library and the models get."""

from __future__ import annotations

import json
from typing import Any

import mcp_types as types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.tools import catalog, listing, messages
from aibridge_addon.tools.catalog import Listing
from aibridge_addon.tools.messages import Asked, Requests
from aibridge_addon.wire.json_object import NotJSON, Unreadable

CALL, LIST = Asked(3, "tools/call"), Asked(3, "tools/list")


def listed(result: str) -> tuple[dict[str, Any], list[str]]:
    """Return the schemas that go upstream by tool, and what is left out, for the bytes of a list."""
    body = b'{"jsonrpc": "2.0", "id": 3, "result": %s}' % result.encode("utf-8", "surrogatepass")
    [(message, _)] = messages.mend(body, [LIST])
    answer = types.jsonrpc_message_adapter.validate_json(message, by_name=False)
    assert isinstance(answer, types.JSONRPCResponse)
    page = types.ListToolsResult.model_validate(answer.result, by_name=False)
    read, odd = listing.read(messages.result_of(page))
    admitted, refused = catalog.admit(read)
    built = catalog.build([Listing("s", None, tools=admitted)])
    return {tool.original_name: tool.input_schema for tool in built.tools}, [*map(str, odd), *map(str, refused)]


OBJECT: dict[str, Any] = {"type": "object", "properties": {}}
X = {"type": "object", "properties": {"x": {"type": "string"}}}


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ('[{"name": "t", "inputSchema": {"type": "object"}}]', OBJECT),
        ('[{"name": "t"}]', OBJECT),
        ('[{"name": "t", "inputSchema": null}]', OBJECT),
        ('[{"name": "t", "inputSchema": {}}]', OBJECT),
        ('[{"name": "t", "inputSchema": []}]', OBJECT),
        ('[{"name": "t", "inputSchema": true}]', OBJECT),
        ('[{"name": "t", "inputSchema": {"properties": []}}]', OBJECT),
        ('[{"name": "t", "inputSchema": {"type": "object", "properties": null, "required": null}}]', OBJECT),
        ('[{"name": "t", "inputSchema": "{\\"properties\\": {\\"x\\": {\\"type\\": \\"string\\"}}}"}]', X),
        ('[{"name": "t", "input_schema": {"properties": {"x": {"type": "string"}}}}]', X),
        ('[{"name": "t", "inputSchema": {"properties": {"x": {"type": "string"}}}, "outputSchema": "bad"}]', X),
        ('[{"name": "t", "outputSchema": {"type": "array"}, "icons": 7, "annotations": [], "execution": "x"}]', OBJECT),
        ('[{"name": "t", "title": {}, "description": null, "_meta": 3}]', OBJECT),
        ('[{"name": "t", "inputSchema": {"properties": {"x": {"type": "string", "maxLength": 1e999}}}}]', X),
        ('[{"name": "t", "inputSchema": {"properties": {"x": {"type": "string", "minLength": NaN}}}}]', X),
        ('[null, {"name": "t"}, null]', OBJECT),
    ],
)
def test_a_tool_whose_meaning_is_plain_is_offered(tools: str, expected: dict[str, Any]) -> None:
    assert listed(f'{{"tools": {tools}}}') == ({"t": expected}, [])


@pytest.mark.parametrize("result", ['{"tools": null}', "{}", '{"tools": {}}', "null", "[]", '{"tools": [null]}'])
def test_a_list_of_nothing_is_no_error(result: str) -> None:
    assert listed(result) == ({}, [])


@pytest.mark.parametrize("result", ['[{"name": "t"}]', '{"tools": [{"name": "t"}], "nextCursor": [], "ttlMs": "x"}'])
def test_a_list_in_another_form_is_read(result: str) -> None:
    assert listed(result) == ({"t": OBJECT}, [])


@pytest.mark.parametrize(
    ("tool", "why"),
    [
        ("7", "'tools[1]' (not an object)"),
        ('"text"', "'tools[1]' (not an object)"),
        ("{}", "'tools[1]' (name: missing)"),
        ('{"name": null}', "'tools[1]' (name: not a text)"),
        ('{"name": ["a"]}', "'tools[1]' (name: not a text)"),
        ('{"name": ""}', "'' (a name of 0 characters)"),
        ('{"name": "odd", "inputSchema": 7}', "'odd' (inputSchema: not an object)"),
        ('{"name": "odd", "inputSchema": "text"}', "'odd' (inputSchema: not an object)"),
        ('{"name": "odd", "inputSchema": ["a"]}', "'odd' (inputSchema: not an object)"),
        ('{"name": "odd", "inputSchema": false}', "'odd' (inputSchema: not an object)"),
        ('{"name": "odd", "inputSchema": {"a": %s}}' % ("[" * 250 + "]" * 250), "'odd' (inputSchema: not an object)"),
        ('{"name": "fine"}', "'fine' (a second one of this name)"),
    ],
)
def test_one_odd_tool_is_one_tool_less_and_named(tool: str, why: str) -> None:
    assert listed(f'{{"tools": [{{"name": "fine"}}, {tool}]}}') == ({"fine": OBJECT}, [why])


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["name", "inputSchema", "properties", "type", "annotations", "x"]), inner)
), max_leaves=10))  # fmt: skip
def test_no_tool_costs_another_one(odd: Any) -> None:
    offered, _ = listed(json.dumps({"tools": [{"name": "fine!"}, odd]}))
    assert offered["fine!"] == OBJECT


# --- which request an answer belongs to ------------------------------------------------------------------------------


def answered(data: str, *waiting: int, guess: bool = True) -> list[Any]:
    asked = [Asked(id, "ping") for id in waiting]
    return [id for _, id in messages.mend(data.encode(), asked, guess=guess)]


@pytest.mark.parametrize("id", ["3", "3.0", '"3"', '"3.0"', '" 3 "', "3e0"])
def test_an_id_in_any_spelling_is_that_id(id: str) -> None:
    assert answered(f'{{"jsonrpc": "2.0", "id": {id}, "result": {{}}}}', 2, 3, 4) == [3]


@pytest.mark.parametrize("id", ["null", '"abc"', "true", "3.5", "[]", "{}"])
def test_an_answer_without_a_usable_id_belongs_to_the_only_request(id: str) -> None:
    data = f'{{"jsonrpc": "2.0", "id": {id}, "result": {{}}}}'
    assert answered(data, 3) == [3]
    assert answered(data, 3, 4) == []
    assert answered(data, 3, guess=False) == []


def test_a_late_answer_belongs_to_no_other_request() -> None:
    assert answered('{"jsonrpc": "2.0", "id": 2, "result": {}}', 3) == []


@pytest.mark.parametrize("line", ['{"level": "error", "error": "no database"}', '{"result": "ok"}', '{"no": 1}', "7"])
def test_what_a_program_writes_for_people_answers_no_request(line: str) -> None:
    try:
        assert answered(line, 3) == []
    except Unreadable:
        pass


def test_after_a_request_was_given_up_no_answer_is_guessed() -> None:
    requests = Requests()
    for id in (1, 2):
        requests.sent(types.JSONRPCRequest(jsonrpc="2.0", id=id, method="ping"))
    assert requests.under_way(None) is None
    cancelled = {"requestId": 1}
    requests.sent(types.JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params=cancelled))
    assert requests.read(b'{"jsonrpc": "2.0", "id": null, "result": {}}') == []
    assert requests.under_way(None) is None
    assert len(requests.read(b'{"jsonrpc": "2.0", "id": 2, "result": {}}')) == 1
    assert requests.read(b'{"jsonrpc": "2.0", "id": 2, "result": {}}') == []


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        ('{"code": -32602, "message": "bad"}', -32602, "bad"),
        ('{"code": -32602.0, "message": "bad"}', -32602, "bad"),
        ('{"message": "bad"}', types.INTERNAL_ERROR, "bad"),
        ('{"code": "E1", "message": "bad"}', types.INTERNAL_ERROR, "bad"),
        ('{"code": -32000, "message": "bad"}', types.INTERNAL_ERROR, "bad"),
        ('{"code": -32001, "message": "bad"}', types.INTERNAL_ERROR, "bad"),
        ('{"code": -99002, "message": "bad"}', types.INTERNAL_ERROR, "bad"),
        ('{"code": 1}', 1, "an error without a message (code 1)"),
        ('{"code": 1, "message": null, "data": "why"}', 1, "why"),
        ('"bad"', types.INTERNAL_ERROR, "bad"),
        ("7", types.INTERNAL_ERROR, "7"),
    ],
)
def test_an_error_in_any_form_is_its_text_with_a_code_that_is_not_one_of_ours(error: str, code: int, text: str) -> None:
    [(message, _)] = messages.mend(f'{{"jsonrpc": "2.0", "id": 3, "error": {error}}}'.encode(), [CALL])
    assert json.loads(message)["error"] | {"data": 0} == {"code": code, "message": text, "data": 0}


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b"7", b"[7]", b"{" * 999, b"\xff\xfe"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises((NotJSON, Unreadable)):
        messages.mend(data, [CALL])


@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,0123456789.eE-nulltrefasidro ', max_size=60).map(str.encode))
def test_no_bytes_are_too_odd(data: bytes) -> None:
    try:
        found = messages.mend(data, [CALL], whole=True)
    except (NotJSON, Unreadable):
        return
    for message, _ in found:
        types.jsonrpc_message_adapter.validate_json(message, by_name=False)
