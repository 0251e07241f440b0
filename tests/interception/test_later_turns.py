"""A later turn that says nothing whole is an error for the client: no end is made up, and none of an earlier turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from aibridge_addon.dialects.base import AnswerError
from aibridge_addon.dialects.turns import Invocation, Result, Text
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.interception.tool_loop import ToolLoop
from aibridge_addon.records import InterceptionEnded, Record
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import JSONObject
from tests.support import aws_frames, fixtures
from tests.support.bedrock_forms import ALL_FORMS
from tests.support.reading import exchange_for
from tests.support.stream_forms import FORMS
from tests.support.streams import INJECTED, Block, Style, Turn

EVENTS, JSON = "text/event-stream", "application/json"
FORMS_OF_CLIENT = pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])
DIALECTS = (*FORMS, "converse")
BY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS)
USAGE = {"messages": "plain", "chat_completions": "separate", "responses": "not echoed", "converse": "plain"}
ENDS: dict[str, tuple[bytes, ...]] = {
    "messages": (b"message_stop", b'"stop_reason":"end_turn"', b'"stop_reason":"tool_use"'),
    "chat_completions": (b"[DONE]", b'"finish_reason":"stop"', b'"finish_reason":"tool_calls"'),
    "responses": (b"response.completed", b"response.incomplete", b"response.done"),
    "converse": (b"messageStop", b'"stopReason":"end_turn"', b'"stopReason":"tool_use"'),
}
"""What says that an answer has ended."""


@dataclass
class Got:
    shown: bytes
    """What the client gets, without the error."""
    error: AnswerError | None
    ended: InterceptionEnded


def got(dialect: str, turns: Sequence[tuple[str, Sequence[bytes]]], *, streaming: bool) -> Got:
    """Play turns, each with its content type and its chunks, and return what the client gets."""
    emitted: list[Record] = []
    case = fixtures.case(f"{dialect}/simple/{'streaming' if streaming else 'blocking'}")
    loop = ToolLoop(ALL_FORMS[dialect].injection, JSONObject(case.request), INJECTED, max_turns=3)
    tools = ToolExchange(exchange_for(case, emitted), loop, lambda _loop: ())
    shown = b""
    for content_type, chunks in turns:
        is_aws = content_type == EVENTS and dialect == "converse"
        tools.open_answer(200, aws_frames.CONTENT_TYPE if is_aws else content_type, "")
        if streaming and content_type == EVENTS:
            tools.streamed = True
            for chunk in chunks:
                if tools.error is None:
                    shown += tools.feed(chunk)
            shown += b"" if tools.error else tools.stream_ended()
        else:
            shown += tools.take_body(b"".join(chunks)) or b""
        if tools.waiting:
            results = [Result(call, (Text("hi"),)) for call in loop.to_run]
            assert tools.tools_ran([Invocation(result, None, None, 1) for result in results]) is not None
    assert tools.exchange.ended
    if tools.error is None and streaming:
        shown += tools.ending()
    elif tools.error is None:
        shown += tools.merged_body() or b""
    [ended] = [record for record in emitted if isinstance(record, InterceptionEnded)]
    return Got(shown, tools.error, ended)


def events(dialect: str, number: int) -> list[bytes]:
    """The events of a turn: the first calls an injected tool, the second is the answer."""
    blocks = (Block("text", "0. "), Block("injected", "{}", INJECTED[0])) if number == 0 else (Block("text", "Done."),)
    written = ALL_FORMS[dialect].write(Turn(blocks), number, Style(usage=USAGE[dialect], pieces=1))
    if dialect == "converse":
        return aws_frames.split(written.stream)
    return [event + b"\n\n" for event in written.stream.split(b"\n\n") if event]


def body(dialect: str, number: int) -> bytes:
    blocks = (Block("text", "0. "), Block("injected", "{}", INJECTED[0])) if number == 0 else (Block("text", "Done."),)
    return json.dumps(ALL_FORMS[dialect].write(Turn(blocks), number, Style(usage=USAGE[dialect])).body).encode()


def check(dialect: str, answer: Got, sent: bytes) -> None:
    """No end reaches the client that the last turn has not sent, and nothing of an injected call."""
    assert b"bmcp_" not in answer.shown
    compact = sent.replace(b'": ', b'":')
    for end in ENDS[dialect]:
        assert end in compact or end not in answer.shown.replace(b'": ', b'":')
    if answer.error is not None:
        assert answer.ended.status == "failed" and ENDS[dialect][0] not in answer.shown


@BY_DIALECT
def test_a_later_stream_that_is_cut_between_any_two_events_shows_no_end_that_it_has_not_sent(dialect: str) -> None:
    first, second = events(dialect, 0), events(dialect, 1)
    for form in (True, False):
        for cut in range(len(second) + 1):
            for part in (second[:cut], second[cut:], second[:cut] + second[cut + 1 :]):
                answer = got(dialect, [(EVENTS, first), (EVENTS, part)], streaming=form)
                check(dialect, answer, b"".join(part))
                if part == second:
                    assert answer.error is None and b"Done." in answer.shown


NOTHING_WHOLE: dict[str, list[Any]] = {
    "messages": [
        [{"type": "message_stop"}],
        [{"type": "message_start", "message": {"id": "m2"}}, {"type": "message_stop"}],
        [{"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1}}, {"type": "message_stop"}],
        [{"type": "message_delta", "delta": {"stop_reason": None}}, {"type": "message_stop"}],
        [{"type": "message_delta", "delta": {"stop_reason": {}}}, {"type": "message_stop"}],
    ],
    "chat_completions": [
        ["[DONE]"],
        [{"id": "c2", "choices": []}, "[DONE]"],
        [{"id": "c2", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}]}, "[DONE]"],
        [{"id": "c2", "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}],
        [{"id": "c2", "choices": [{"index": 0, "delta": {}, "finish_reason": {}}]}, "[DONE]"],
        [{"id": "c2", "choices": [{"index": 0, "delta": {}, "finish_reason": [1]}]}, "[DONE]"],
    ],
    "responses": [["[DONE]"], [{"type": "response.created", "response": {"id": "r2"}}], [{"type": "response.odd"}]],
    "converse": [
        [{"type": "messageStart", "role": "assistant"}],
        [{"type": "metadata", "usage": {"inputTokens": 1}}],
        [{"type": "messageStop"}, {"type": "metadata"}],
        [{"type": "messageStop", "stopReason": None}, {"type": "metadata"}],
        [{"type": "messageStop", "stopReason": {}}],
    ],
}


@FORMS_OF_CLIENT
@BY_DIALECT
def test_a_later_stream_that_says_nothing_whole_is_an_error(dialect: str, streaming: bool) -> None:
    for given in NOTHING_WHOLE[dialect]:
        datas = [(d.get("type", ""), json.dumps(d).encode()) if isinstance(d, dict) else ("", b"[DONE]") for d in given]
        frame = aws_frames.event if dialect == "converse" else sse.event
        second = [frame(name, data) for name, data in datas]
        answer = got(dialect, [(EVENTS, events(dialect, 0)), (EVENTS, second)], streaming=streaming)
        assert answer.error is not None and answer.ended.turns == 2, given
        check(dialect, answer, b"")


@FORMS_OF_CLIENT
def test_a_chat_answer_that_is_done_without_a_reason_ends_without_one(streaming: bool) -> None:
    chunk = {"id": "c2", "choices": [{"index": 0, "delta": {"content": "Done."}, "finish_reason": None}]}
    second = [sse.event("", json.dumps(chunk).encode()), sse.event("", b"[DONE]")]
    answer = got("chat_completions", [(EVENTS, events("chat_completions", 0)), (EVENTS, second)], streaming=streaming)
    assert answer.error is None and answer.ended.status == "completed"
    assert b"Done." in answer.shown and (b"[DONE]" in answer.shown) == streaming
    assert not any(end in answer.shown for end in ENDS["chat_completions"][1:])


@FORMS_OF_CLIENT
@pytest.mark.parametrize(
    "second",
    [
        "{}",
        '{"id": "x", "usage": {}}',
        '{"choices": []}',
        '{"choices": null}',
        '{"choices": [{}]}',
        '{"choices": [null]}',
        '{"choices": [{"message": null, "finish_reason": null}]}',
        '{"choices": [{"message": {"role": "assistant", "content": null}}]}',
        '{"content": []}',
        '{"content": null, "stop_reason": null}',
        '{"content": [], "stop_reason": {}}',
        '{"output": []}',
        '{"output": null, "status": null}',
        '{"output": [], "status": "in_progress"}',
        '{"output": [], "status": "queued"}',
        '{"output": {"message": {"content": []}}}',
        '{"output": {"message": null}, "stopReason": {}}',
    ],
)
@BY_DIALECT
def test_a_later_body_that_says_nothing_whole_is_an_error(dialect: str, second: str, streaming: bool) -> None:
    first = (EVENTS, events(dialect, 0)) if streaming else (JSON, [body(dialect, 0)])
    for label in (JSON, EVENTS):
        answer = got(dialect, [first, (label, [second.encode()])], streaming=streaming)
        assert answer.error is not None and answer.ended.turns == 2
        check(dialect, answer, b"")


@FORMS_OF_CLIENT
@BY_DIALECT
def test_a_whole_later_turn_ends_the_answer_in_either_form(dialect: str, streaming: bool) -> None:
    for first in ((EVENTS, events(dialect, 0)), (JSON, [body(dialect, 0)])):
        for second in ((EVENTS, events(dialect, 1)), (JSON, [body(dialect, 1)])):
            answer = got(dialect, [first, second], streaming=streaming)
            assert answer.error is None and answer.ended.status == "completed"
            assert b"Done." in answer.shown and b"bmcp_" not in answer.shown
