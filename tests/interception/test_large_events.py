"""Events above `limits.sse_event`: they pass unread, hide no call, and still end an answer with its tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.config.schema import Limits
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.tap import Tap
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.interception.tool_loop import ToolLoop
from aibridge_addon.records import InterceptionEnded, Record, TokenUsage
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import JSONObject
from tests.support import fixtures
from tests.support.dialects import INJECTIONS
from tests.support.reading import exchange_for
from tests.support.stream_forms import FORMS

LIMIT = 2_000
LIMITS = Limits(sse_event=LIMIT)
IMAGE = "a" * 10_000
CALL = "bmcp_a_look"
USAGE = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
CHAT_USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def stream(*events: Any) -> list[bytes]:
    return [
        sse.event("" if isinstance(event, str) else event.get("type", ""), event.encode())
        if isinstance(event, str)
        else sse.event(event.get("type", ""), json.dumps(event).encode())
        for event in events
    ]


RESULT = {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"encrypted_content": IMAGE}]}
ITEM = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": IMAGE}
RESPONSE = {"id": "resp_1", "model": "gpt-5.5", "status": "in_progress", "output": []}
DELTA = {"role": "assistant", "content": "", "images": [{"image_url": {"url": IMAGE}}]}
CHUNK = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
LARGE: dict[str, list[bytes]] = {
    "messages": stream(
        {"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": {"input_tokens": 7}}},
        {"type": "content_block_start", "index": 0, "content_block": RESULT},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": IMAGE}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ),
    "chat_completions": stream(
        CHUNK | {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]},
        CHUNK | {"choices": [{"index": 0, "delta": DELTA, "finish_reason": None}]},
        CHUNK | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        CHUNK | {"choices": [], "usage": CHAT_USAGE},
        "[DONE]",
    ),
    "responses": stream(
        {"type": "response.created", "response": RESPONSE, "sequence_number": 0},
        {"type": "response.output_item.added", "output_index": 0, "item": ITEM | {"result": ""}, "sequence_number": 1},
        {
            "type": "response.image_generation_call.partial_image",
            "output_index": 0,
            "item_id": "ig_1",
            "sequence_number": 2,
            "partial_image_b64": IMAGE,
        },
        {"type": "response.output_item.done", "output_index": 0, "item": ITEM, "sequence_number": 3},
        {
            "type": "response.completed",
            "sequence_number": 4,
            "response": RESPONSE | {"status": "completed", "output": [ITEM], "usage": USAGE, "metadata": {}},
        },
    ),
}
BY_DIALECT = pytest.mark.parametrize("dialect", LARGE)


def chunkings(events: list[bytes]) -> list[list[bytes]]:
    whole = b"".join(events)
    return [
        [whole],
        events,
        [whole[n : n + 1] for n in range(len(whole))],
        [whole[n : n + 777] for n in range(0, len(whole), 777)],
    ]


def exchange(dialect: str, emitted: list[Record]) -> Exchange:
    made = exchange_for(fixtures.case(f"{dialect}/simple/streaming"), emitted)
    made.limits = LIMITS
    return made


def spliced(dialect: str, emitted: list[Record]) -> ToolExchange:
    case = fixtures.case(f"{dialect}/simple/streaming")
    loop = ToolLoop(INJECTIONS[dialect], JSONObject(case.request), (CALL,), max_turns=3)
    tools = ToolExchange(exchange(dialect, emitted), loop, lambda _loop: ())
    tools.streamed = True
    tools.open_answer(200, "text/event-stream", "")
    return tools


@BY_DIALECT
def test_without_tools_the_tokens_of_an_answer_with_large_events_are_complete(dialect: str) -> None:
    for chunks in chunkings(LARGE[dialect]):
        emitted: list[Record] = []
        made = exchange(dialect, emitted)
        made.open_answer(200, "text/event-stream", "")
        ends = [end for chunk in chunks if (end := made.feed(chunk)) is not None]
        assert len(ends) == 1
        [usage] = [record for record in emitted if isinstance(record, TokenUsage)]
        assert (usage.input_tokens, usage.output_tokens, usage.completeness) == (7, 5, "complete")


def test_a_terminal_event_that_does_not_say_its_tokens_leaves_a_partial_row() -> None:
    *events, last = LARGE["responses"]
    emitted: list[Record] = []
    made = exchange("responses", emitted)
    made.open_answer(200, "text/event-stream", "")
    for event in (*events, last.replace(b'"usage"', b'"elsewhere"')):
        made.feed(event)
    [usage] = [record for record in emitted if isinstance(record, TokenUsage)]
    assert (usage.output_tokens, usage.completeness, usage.price_list) == (0, "partial", None)
    [end] = [record for record in emitted if isinstance(record, InterceptionEnded)]
    assert end.status == "completed"


@BY_DIALECT
def test_with_tools_what_cannot_hide_a_call_passes_and_the_answer_ends(dialect: str) -> None:
    events = LARGE[dialect]
    for chunks in chunkings(events):
        emitted: list[Record] = []
        tools = spliced(dialect, emitted)
        shown = b""
        for chunk in chunks:
            shown += tools.feed(chunk)
            assert tools.unreadable is None
        assert tools.exchange.ended and not tools.within_event
        shown += tools.ending()
        if dialect == "responses":  # the last event is made of the earlier ones
            assert shown.startswith(b"".join(events[:-1]))
            last = json.loads(shown.removeprefix(b"".join(events[:-1])).split(b"data: ")[1])
            assert last["type"] == "response.completed" and last["response"]["usage"] == USAGE
            assert last["response"]["output"] == [ITEM] and last["response"]["id"] == "resp_1"
        else:
            assert shown == b"".join(events)
        [usage] = [record for record in emitted if isinstance(record, TokenUsage)]
        assert (usage.input_tokens, usage.output_tokens, usage.completeness) == (7, 5, "complete")


HIDING: dict[str, list[Any]] = {
    "messages": [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": IMAGE, "name": CALL}},
        {
            "padding": IMAGE,
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "tool_use", "name": CALL},
        },
    ],
    "chat_completions": [
        CHUNK | {"choices": [{"index": 0, "delta": DELTA | {"tool_calls": [{"id": "c", "function": {"name": CALL}}]}}]},
        {"padding": IMAGE} | CHUNK | {"choices": []},
    ],
    "responses": [
        {
            "type": "response.output_item.done",
            "output_index": 0,
            "item": {"type": "function_call", "arguments": IMAGE, "name": CALL},
        },
        {"padding": IMAGE, "type": "response.output_item.done"},
    ],
}


@BY_DIALECT
def test_an_event_that_may_hide_a_call_is_stopped_before_the_call_is_shown(dialect: str) -> None:
    for hiding in HIDING[dialect]:
        events = [LARGE[dialect][0], *stream(hiding)]
        for chunks in chunkings(events):
            tools = spliced(dialect, [])
            shown = b"".join(map(tools.feed, chunks))
            assert tools.unreadable == "a part with a call cannot be read"
            assert CALL.encode() not in shown


@BY_DIALECT
def test_a_large_event_of_a_later_turn_is_renumbered(dialect: str) -> None:
    splice = FORMS[dialect].injection.splice((CALL,))
    out: list[bytes] = []
    for turn in (1, 2):
        splice.begin_turn()
        tap = Tap(
            FORMS[dialect].dialect.answer_reader(),
            status=200,
            content_type="text/event-stream",
            content_encoding="",
            limits=Limits(),
            on_event=lambda raw, name, event: out.append(splice.event(raw, name, event)),
        )
        if turn == 1:
            tap.feed(b"".join(hidden_turn(dialect)))
            splice.end_turn()
        else:
            large = {"messages": 1, "chat_completions": 1, "responses": 2}[dialect]
            *before, event = LARGE[dialect][: large + 1]
            tap.feed(b"".join(before).replace(b'"c1"', b'"c2"'))
            shown = splice.large_event(event.replace(b'"c1"', b'"c2"'))
    assert shown is not None
    data = json.loads(shown.split(b"data: ")[1])
    if dialect == "messages":
        assert data["index"] == 0
    elif dialect == "chat_completions":
        assert data["id"] == "c1"
    else:
        assert (data["output_index"], data["sequence_number"]) == (0, 2)


def hidden_turn(dialect: str) -> list[bytes]:
    """A turn with nothing but a call of an injected tool."""
    if dialect == "messages":
        block = {"type": "tool_use", "id": "t", "name": CALL, "input": {}}
        return stream(
            {"type": "message_start", "message": {"id": "msg_0", "usage": {"input_tokens": 1}}},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 1}},
            {"type": "message_stop"},
        )
    if dialect == "chat_completions":
        delta = {"tool_calls": [{"index": 0, "id": "t", "function": {"name": CALL, "arguments": "{}"}}]}
        return stream(CHUNK | {"choices": [{"index": 0, "delta": delta, "finish_reason": "tool_calls"}]}, "[DONE]")
    item = {"type": "function_call", "id": "f", "call_id": "t", "name": CALL, "arguments": "{}"}
    ended = RESPONSE | {"status": "completed", "output": [item]}
    return stream(
        {"type": "response.created", "response": RESPONSE, "sequence_number": 0},
        {"type": "response.output_item.added", "output_index": 0, "item": item, "sequence_number": 1},
        {"type": "response.output_item.done", "output_index": 0, "item": item, "sequence_number": 2},
        {"type": "response.completed", "sequence_number": 3, "response": ended},
    )


@pytest.mark.parametrize("order", ["type last", "type second"])
def test_a_large_event_is_known_by_its_event_line(order: str) -> None:
    """Its type is behind what is read of it, or not its first member."""
    *events, _ = LARGE["responses"]
    response = RESPONSE | {"status": "completed", "output": [ITEM], "usage": USAGE}
    kind = {"type": "response.completed"}
    data: dict[str, Any] = {"sequence_number": 4, **kind, "response": response}
    if order == "type last":
        data = {"sequence_number": 4, "response": response} | kind
    last = sse.event("response.completed", json.dumps(data).encode())
    for chunks in ([*events, last], [b"".join([*events, last])]):
        emitted: list[Record] = []
        tools = spliced("responses", emitted)
        shown = b"".join(map(tools.feed, chunks))
        assert tools.unreadable is None and tools.exchange.ended
        ended = json.loads((shown + tools.ending()).rsplit(b"data: ", 1)[1])
        assert ended["type"] == "response.completed" and ended["response"]["usage"] == USAGE
        [usage] = [record for record in emitted if isinstance(record, TokenUsage)]
        assert (usage.output_tokens, usage.completeness) == (5, "complete")
