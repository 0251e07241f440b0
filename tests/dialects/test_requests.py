"""What the record needs of a request: prompt, lineage and side calls, as a table for each dialect; and odd shapes.

A request is read leniently: whatever JSON it is, reading it raises nothing. So are answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aibridge_addon.dialects import CHAT_COMPLETIONS, CONVERSE, INVOKE, MESSAGES, RESPONSES
from aibridge_addon.dialects.base import AnswerReader, Dialect, RequestReading
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable

DIALECTS = {dialect.name: dialect for dialect in (MESSAGES, CHAT_COMPLETIONS, RESPONSES)}
ALL = DIALECTS | {dialect.name: dialect for dialect in (INVOKE, CONVERSE)}
"""`test_bedrock.py` has the tables of the last two."""
REMINDER = "<system-reminder>\nToday is a day.\n</system-reminder>"


@dataclass(frozen=True)
class Ends:
    """How a conversation ends."""

    prompt: str | None = None
    tool: str | None = None
    side_call: bool = False


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def text(value: Any, kind: str = "text") -> dict[str, Any]:
    return {"type": kind, "text": value}


def result(call_id: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": "ok"}


NOVEL: dict[str, Any] = {"type": "novel", "level": "high"}
ASSISTANT = {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}

MESSAGES_CASES: dict[str, tuple[dict[str, Any], Ends]] = {
    "a text": ({"messages": [user("hi")]}, Ends("hi")),
    "text blocks: the last one": ({"messages": [user([text("a"), text("b")])]}, Ends("b")),
    "reminders do not count": ({"messages": [user([text("b"), text(REMINDER)])]}, Ends("b")),
    "reminders only": ({"messages": [user([text(REMINDER), text("  " + REMINDER)])]}, Ends()),
    "a reminder as a text": ({"messages": [user(REMINDER)]}, Ends()),
    "a reminder quoted by a person": ({"messages": [user("what is " + REMINDER)]}, Ends("what is " + REMINDER)),
    "blank text": ({"messages": [user([text("b"), text(" \n")])]}, Ends("b")),
    "an empty text": ({"messages": [user("")]}, Ends()),
    "an image after the text": ({"messages": [user([text("see"), {"type": "image", "source": {}}])]}, Ends("see")),
    "an image only": ({"messages": [user([{"type": "image", "source": {}}])]}, Ends()),
    "an earlier prompt does not count": ({"messages": [user("old"), ASSISTANT, user("new")]}, Ends("new")),
    "it ends in the assistant (a prefill)": ({"messages": [user("old"), ASSISTANT]}, Ends()),
    "system entries after the prompt": ({"messages": [user("hi"), SYSTEM, SYSTEM]}, Ends("hi")),
    "system entries only": ({"messages": [SYSTEM]}, Ends()),
    "a tool result": ({"messages": [user("old"), ASSISTANT, user([result("t1")])]}, Ends(tool="t1")),
    "parallel tool results: the last one": ({"messages": [user([result("t1"), result("t2")])]}, Ends(tool="t2")),
    "text beside a tool result": ({"messages": [user([result("t1"), text("and?")])]}, Ends("and?", "t1")),
    "text before a tool result": ({"messages": [user([text("and?"), result("t1")])]}, Ends("and?", "t1")),
    "a reminder beside a tool result": ({"messages": [user([result("t1"), text(REMINDER)])]}, Ends(tool="t1")),
    "an unknown block after the text": ({"messages": [user([text("hi"), NOVEL])]}, Ends("hi")),
    "an unknown block after a tool result": ({"messages": [user([result("t1"), NOVEL])]}, Ends(tool="t1")),
    "a message of unknown blocks": ({"messages": [user("hi"), user([NOVEL])]}, Ends("hi")),
    "a message of unknown blocks after a result": (
        {"messages": [user([result("t1")]), user([NOVEL])]},
        Ends(tool="t1"),
    ),
    "an unknown role after the prompt": ({"messages": [user("hi"), {"role": "novel", "content": "x"}]}, Ends("hi")),
    "an entry that is no message": ({"messages": [user("hi"), 7, {}]}, Ends("hi")),
    "system entries after a tool result": ({"messages": [user([result("t1")]), SYSTEM]}, Ends(tool="t1")),
    "a tool result without an id": ({"messages": [user([{"type": "tool_result"}])]}, Ends()),
    "no messages": ({"messages": []}, Ends()),
    "messages missing": ({}, Ends()),
    "a probe of one token": ({"messages": [user("quota")], "max_tokens": 1}, Ends("quota", side_call=True)),
    "two tokens are no probe": ({"messages": [user("x")], "max_tokens": 2}, Ends("x")),
    "a title call": (
        {"messages": [user("x")], "tools": [], "output_config": {"format": {"type": "json_schema", "schema": {}}}},
        Ends("x", side_call=True),
    ),
    "a fixed form alone is no title call": (
        {"messages": [user("x")], "output_config": {"format": {"type": "json_schema"}}},
        Ends("x"),
    ),
    "no tools alone is no title call": ({"messages": [user("x")], "tools": []}, Ends("x")),
}

TOOL = {"role": "tool", "tool_call_id": "c1", "content": "ok"}

CHAT_CASES: dict[str, tuple[dict[str, Any], Ends]] = {
    "a text": ({"messages": [SYSTEM, user("hi")]}, Ends("hi")),
    "text parts: the last one": ({"messages": [user([text("a"), text("b")])]}, Ends("b")),
    "reminders do not count": ({"messages": [user([text("b"), text(REMINDER)])]}, Ends("b")),
    "a reminder as a text": ({"messages": [user(REMINDER)]}, Ends()),
    "an image after the text": ({"messages": [user([text("see"), {"type": "image_url"}])]}, Ends("see")),
    "an earlier prompt does not count": ({"messages": [user("old"), ASSISTANT, user("new")]}, Ends("new")),
    "it ends in the assistant": ({"messages": [user("old"), ASSISTANT]}, Ends()),
    "system entries after the prompt": ({"messages": [user("hi"), SYSTEM]}, Ends("hi")),
    "developer entries after the prompt": ({"messages": [user("hi"), SYSTEM | {"role": "developer"}]}, Ends("hi")),
    "a tool result": ({"messages": [user("old"), ASSISTANT, TOOL]}, Ends(tool="c1")),
    "parallel tool results: the last one": ({"messages": [TOOL, TOOL | {"tool_call_id": "c2"}]}, Ends(tool="c2")),
    "system entries after a tool result": ({"messages": [TOOL, SYSTEM]}, Ends(tool="c1")),
    "a prompt after a tool result": ({"messages": [TOOL, user("and?")]}, Ends("and?")),
    "a tool result without an id": ({"messages": [{"role": "tool"}]}, Ends()),
    "an unknown role after the prompt": ({"messages": [user("hi"), {"role": "novel", "content": "x"}]}, Ends("hi")),
    "an unknown role after a tool result": ({"messages": [TOOL, {"role": "novel"}]}, Ends(tool="c1")),
    "an unknown part after the text": ({"messages": [user([text("hi"), NOVEL])]}, Ends("hi")),
    "a message of unknown parts": ({"messages": [user("hi"), user([NOVEL])]}, Ends("hi")),
    "an entry that is no message": ({"messages": [TOOL, 7, {}]}, Ends(tool="c1")),
    "a function's result": ({"messages": [{"role": "function", "name": "f", "content": "1"}]}, Ends()),
    "no messages": ({"messages": []}, Ends()),
    "messages missing": ({}, Ends()),
    "a probe of one token": ({"messages": [user("x")], "max_tokens": 1}, Ends("x", side_call=True)),
    "a probe, the newer way": ({"messages": [user("x")], "max_completion_tokens": 1}, Ends("x", side_call=True)),
}


def parts(*texts: Any) -> list[Any]:
    return [text(value, "input_text") for value in texts]


CONFIGURATION = {"type": "configuration_update", "reasoning": {"effort": "high"}}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "ok"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}

RESPONSES_CASES: dict[str, tuple[dict[str, Any], Ends]] = {
    "a text as the input": ({"input": "hi"}, Ends("hi")),
    "a blank input": ({"input": " "}, Ends()),
    "a reminder as the input": ({"input": REMINDER}, Ends()),
    "a message with a text": ({"input": [user("hi")]}, Ends("hi")),
    "a message's parts together": ({"input": [user(parts("a", "b"))]}, Ends("a\nb")),
    "reminders do not count": ({"input": [user(parts(REMINDER, "b"))]}, Ends("b")),
    "an image beside the text": ({"input": [user([*parts("see"), {"type": "input_image"}])]}, Ends("see")),
    "an image only": ({"input": [user([{"type": "input_image"}])]}, Ends()),
    "an earlier prompt does not count": ({"input": [user("old"), ASSISTANT, user("new")]}, Ends("new")),
    "it ends in the assistant": ({"input": [user("old"), ASSISTANT]}, Ends()),
    "it ends in a call": ({"input": [user("old"), CALL]}, Ends()),
    "developer entries after the prompt": ({"input": [user("hi"), SYSTEM | {"role": "developer"}]}, Ends("hi")),
    "a tool result": ({"input": [user("old"), CALL, OUTPUT]}, Ends(tool="c1")),
    "parallel tool results: the last one": ({"input": [OUTPUT, OUTPUT | {"call_id": "c2"}]}, Ends(tool="c2")),
    "a custom tool's result": ({"input": [OUTPUT | {"type": "custom_tool_call_output"}]}, Ends(tool="c1")),
    "a shell's result": ({"input": [OUTPUT | {"type": "local_shell_call_output"}]}, Ends(tool="c1")),
    "system entries after a tool result": ({"input": [OUTPUT, SYSTEM]}, Ends(tool="c1")),
    "a prompt after a tool result": ({"input": [OUTPUT, user("and?")]}, Ends("and?")),
    "a tool result without an id": ({"input": [{"type": "function_call_output"}]}, Ends()),
    "a configuration update": ({"input": [user("hi"), CONFIGURATION]}, Ends("hi")),
    "a configuration update after a result": ({"input": [CALL, OUTPUT, CONFIGURATION]}, Ends(tool="c1")),
    "unknown items after the prompt": ({"input": [user("hi"), NOVEL, 7, CONFIGURATION]}, Ends("hi")),
    "a message of unknown parts": ({"input": [user("hi"), user([NOVEL])]}, Ends("hi")),
    "an unknown role after the prompt": ({"input": [user("hi"), {"role": "novel", "content": "x"}]}, Ends("hi")),
    "the model's reasoning after the prompt": ({"input": [user("old"), {"type": "reasoning"}]}, Ends()),
    "a compaction trigger before an unknown item": (
        {"input": [user("old"), {"type": "compaction_trigger"}, CONFIGURATION]},
        Ends(side_call=True),
    ),
    "a tool search's result": ({"input": [OUTPUT | {"type": "tool_search_output"}]}, Ends(tool="c1")),
    "a compaction": ({"input": [user("old"), {"type": "compaction_trigger"}]}, Ends(side_call=True)),
    "a prewarm": ({"input": [], "generate": False}, Ends(side_call=True)),
    "a prewarm with its input": ({"input": [user("hi")], "generate": False}, Ends("hi", side_call=True)),
    "no input": ({"input": []}, Ends()),
    "input missing": ({}, Ends()),
}

CASES = [
    pytest.param(dialect, body, ends, id=f"{dialect.name}: {name}")
    for dialect, table in ((MESSAGES, MESSAGES_CASES), (CHAT_COMPLETIONS, CHAT_CASES), (RESPONSES, RESPONSES_CASES))
    for name, (body, ends) in table.items()
]


def read(dialect: Dialect, body: Any) -> RequestReading:
    return dialect.read_request(JSONObject(json.dumps(body).encode()))


@pytest.mark.parametrize(("dialect", "body", "ends"), CASES)
def test_a_request_ends_as_the_table_says(dialect: Dialect, body: dict[str, Any], ends: Ends) -> None:
    reading = read(dialect, body)
    assert Ends(reading.prompt, reading.correlating_tool_call_id, reading.side_call) == ends


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_model_and_streaming_are_what_the_request_says(dialect: Dialect) -> None:
    assert (read(dialect, {}).model, read(dialect, {}).streaming) == ("", False)
    reading = read(dialect, {"model": "m-1", "stream": True})
    assert (reading.model, reading.streaming) == ("m-1", True)
    odd = read(dialect, {"model": 7, "stream": "true"})
    assert (odd.model, odd.streaming) == ("", False)


@pytest.mark.parametrize(
    ("tools", "offered"),
    [
        ([{"name": "f"}], True),
        ({"f": {}}, True),
        ([], False),
        ({}, False),
        (None, False),
        ("f", False),
        (7, False),
    ],
)
def test_an_empty_list_of_tools_offers_none(tools: object, offered: bool) -> None:
    for dialect in (MESSAGES, INVOKE, CHAT_COMPLETIONS, RESPONSES):
        assert dialect.has_tools(JSONObject(json.dumps({"tools": tools}, indent=1).encode())) is offered
        assert not dialect.has_tools(JSONObject(b"{}"))
    as_list = tools if isinstance(tools, list) else []
    assert CONVERSE.has_tools(JSONObject(json.dumps({"toolConfig": {"tools": tools}}).encode())) is bool(as_list)


def test_a_request_that_was_decoded_leniently_offers_its_tools() -> None:
    assert MESSAGES.has_tools(JSONObject(b'{"x":"\\ud83d","tools":[{"name":"\\ud83d"}]}'))
    assert not MESSAGES.has_tools(JSONObject(b'{"x":"\\ud83d","tools":[ ]}'))


@pytest.mark.parametrize(
    ("body", "wants_usage"),
    [
        ({}, True),
        ({"stream": False}, True),
        ({"stream": True}, False),
        ({"stream": True, "stream_options": None}, False),
        ({"stream": True, "stream_options": []}, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, False),
        ({"stream": True, "stream_options": {"include_usage": "true"}}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True),
    ],
)
def test_only_a_chat_stream_that_does_not_ask_lacks_usage(body: dict[str, Any], wants_usage: bool) -> None:
    assert read(CHAT_COMPLETIONS, body).wants_usage is wants_usage
    assert read(MESSAGES, body).wants_usage
    assert read(RESPONSES, body).wants_usage


@pytest.mark.parametrize(
    ("metadata", "user_id"),
    [({"user_id": "u"}, "u"), ({"user_id": 7}, None), ({}, None), ([], None), (None, None), ("u", None)],
)
def test_anthropics_user_id_is_read_where_it_is_a_text(metadata: object, user_id: str | None) -> None:
    assert read(MESSAGES, {"metadata": metadata}).metadata_user_id == user_id


# --- any JSON at all --------------------------------------------------------------------------------------------

# Names and values that the readers look for, so that odd values stand where they look.
VOCABULARY = (
    "type role content text id index model usage error message code stream messages input output item response choices"
    " delta tool_calls function function_call name arguments finish_reason content_block partial_json thinking"
    " server_name status summary phase metadata stream_options include_usage tools max_tokens output_config format"
    " call_id tool_call_id tool_use_id service_tier prompt_tokens completion_tokens prompt_tokens_details cached_tokens"
    " input_tokens output_tokens input_tokens_details cache_creation action operation queries custom generate"
    " user assistant system tool tool_result tool_use server_tool_use function_call_output compaction_trigger"
    " message_start content_block_start content_block_delta content_block_stop message_delta message_stop ping"
    " response.created response.completed response.failed response.cancelled response.output_item.done reasoning"
    " commentary failed cancelled web_search_call mcp_call output_text input_text json_schema"
    " amazon-bedrock-invocationMetrics inputTokenCount inferenceConfig maxTokens toolConfig toolResult"
    " toolUseId toolUse reasoningContent reasoningText contentBlockIndex contentBlockStart contentBlockDelta start"
    " contentBlockStop messageStop metadata inputTokens outputTokens cacheReadInputTokens cacheDetails ttl serviceTier"
)
WORDS = st.sampled_from(VOCABULARY.split())
SCALARS = st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False) | st.text(max_size=5)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=5),
    max_leaves=20,
)
OBJECTS = st.dictionaries(WORDS, JSON, max_size=6)
ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys(("type", "role", "content", "text", "call_id"), JSON))
CONVERSATIONS = st.fixed_dictionaries(
    {"messages": st.lists(ENTRY, max_size=3), "input": st.lists(ENTRY, max_size=3)},
    optional=dict.fromkeys(("tools", "metadata", "stream", "stream_options", "output_config", "max_tokens"), JSON),
)


def encode(value: Any) -> bytes:
    return json.dumps(value).replace("Infinity", "1").encode()


@pytest.mark.parametrize("dialect", ALL.values(), ids=ALL)
@given(body=OBJECTS | CONVERSATIONS)
def test_no_request_that_is_a_json_object_makes_reading_fail(dialect: Dialect, body: dict[str, Any]) -> None:
    reading = dialect.read_request(JSONObject(encode(body)))
    assert isinstance(reading.model, str)
    for maybe in (reading.prompt, reading.correlating_tool_call_id, reading.metadata_user_id):
        assert maybe is None or (isinstance(maybe, str) and (maybe.strip() or maybe is reading.metadata_user_id))


def check(reader: AnswerReader) -> None:
    """Whatever was read has the types that rows need, and can be stored."""
    reader.stream_ended()
    reading = reader.reading
    assert isinstance(reading.response_id, str) and isinstance(reading.model, str)
    for call in reading.tool_calls:
        assert isinstance(call.call_id, str) and isinstance(call.name, str)
        assert call.server_name is None or isinstance(call.server_name, str)
        msgspec.json.encode(call.input)
    assert all(isinstance(thought.content, str) and thought.content for thought in reading.thoughts)
    if reading.error is not None:
        assert isinstance(reading.error.type, str) and reading.error.type
        assert isinstance(reading.error.message, str)
    if reading.usage is not None:
        usage = reading.usage
        counts = (
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_input_tokens,
            usage.cache_write_input_tokens,
        )
        assert all(type(count) is int and 0 <= count < 2**63 for count in counts)
        msgspec.json.encode(usage.extra)


@pytest.mark.parametrize("dialect", ALL.values(), ids=ALL)
@given(events=st.lists(st.tuples(WORDS, JSON), max_size=5))
def test_no_event_that_is_json_makes_reading_fail(dialect: Dialect, events: list[tuple[str, Any]]) -> None:
    reader = dialect.answer_reader()
    for name, value in events:
        reader.skip(encode(value))
        reader.event(name, encode(value))
    check(reader)


MEMBERS = (
    *("message", "index", "content_block", "delta", "usage", "error", "item", "response", "choices"),
    *("amazon-bedrock-invocationMetrics", "contentBlockIndex", "start", "serviceTier"),
)
EVENTS = st.fixed_dictionaries({"type": WORDS | JSON}, optional=dict.fromkeys(MEMBERS, JSON | OBJECTS))


@pytest.mark.parametrize("dialect", ALL.values(), ids=ALL)
@example(events=[{"type": "content_block_start", "content_block": {"type": []}}, {"type": "content_block_stop"}])
@example(events=[{"type": "response.completed", "response": {"output": [{"type": {}}], "status": []}}])
@example(
    events=[{"type": {}, "choices": [{"index": [], "delta": {"tool_calls": [{"index": {}}]}, "finish_reason": []}]}]
)
@given(events=st.lists(EVENTS, max_size=5))
def test_no_event_that_looks_right_makes_reading_fail(dialect: Dialect, events: list[dict[str, Any]]) -> None:
    reader = dialect.answer_reader()
    for event in events:
        name = event["type"] if isinstance(event["type"], str) else ""
        reader.event(name, encode(event))
    check(reader)


@pytest.mark.parametrize("dialect", ALL.values(), ids=ALL)
@given(body=OBJECTS)
def test_no_body_that_is_a_json_object_makes_reading_fail(dialect: Dialect, body: dict[str, Any]) -> None:
    reader = dialect.answer_reader()
    reader.message(json.loads(encode(body)))
    check(reader)


@pytest.mark.parametrize("dialect", ALL.values(), ids=ALL)
@given(data=st.binary(max_size=60), status=st.integers(400, 599))
def test_no_bytes_make_reading_fail_otherwise(dialect: Dialect, data: bytes, status: int) -> None:
    reader = dialect.answer_reader()
    reader.skip(data)
    try:
        reader.event("message_start", data)
    except (NotJSON, Unreadable):
        pass
    reader.failure(status, data)
    assert reader.reading.error is not None
    check(reader)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (413, None), (502, None), (503, None), (599, None)]
)
def test_an_error_of_ours_is_read_as_one(dialect: Dialect, status: int, kind: str | None) -> None:
    reader = dialect.answer_reader()
    reader.failure(status, dialect.error_body(status, 'a "message"'))
    assert reader.reading.error is not None
    assert reader.reading.error.message == 'a "message"'
    assert kind is None or reader.reading.error.type == kind
