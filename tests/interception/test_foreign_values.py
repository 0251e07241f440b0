"""Members of any JSON type, at any place of what a peer sends: no exception, one end, and no hidden call is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects.turns import Invocation, Result, Text
from aibridge_addon.interception.attempts import outcome_of
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.interception.tool_loop import ToolLoop
from aibridge_addon.records import InterceptionEnded, Record
from aibridge_addon.wire.json_object import JSONObject
from tests.support import fixtures
from tests.support.dialects import INJECTIONS
from tests.support.fixtures import Case
from tests.support.foreign_values import DEEP, ODD, Path, encoded, places, replaced
from tests.support.reading import exchange_for
from tests.support.soak import FUZZ, FUZZ_TIMEOUT
from tests.support.stream_forms import FORMS
from tests.support.streams import INJECTED, Block, Style, Turn

EVENTS, JSON = "text/event-stream", "application/json"
USAGE = {"messages": "plain", "chat_completions": "separate", "responses": "not echoed"}
CALLS = (
    *(Block("text", "0. "), Block("thinking", "hm")),
    *(Block("injected", '{"a":1}', INJECTED[0]), Block("client", "{}", "b")),
)
DONE = (Block("text", "Done."),)
NAMES = re.compile(b"|".join(b'"%s"' % name.encode() for name in INJECTED))
BY_DIALECT = pytest.mark.parametrize("dialect", FORMS)
CASES = [case for case in fixtures.cases() if case.dialect in FORMS and case.status == 200]

Event = tuple[bytes, bytes]
"""The lines before an event's data, and the data."""


def written(dialect: str, blocks: Sequence[Block], number: int) -> tuple[list[Event], dict[str, object]]:
    style = Style(usage=USAGE[dialect], pieces=2)
    turn = FORMS[dialect].write(Turn(tuple(blocks)), number, style)
    return events_of(turn.stream), turn.body


def events_of(stream: bytes) -> list[Event]:
    found = []
    for event in re.split(rb"\r?\n\r?\n", stream):
        head, mark, data = event.partition(b"data:")
        if mark:
            found.append((head, data.strip()))
    return found


def written_out(events: Sequence[Event]) -> list[bytes]:
    return [head + b"data: " + data + b"\n\n" for head, data in events]


def place_in(data: st.DataObject, value: object) -> tuple[Path, bytes]:
    path = data.draw(st.sampled_from(list(places(value))))
    return path, encoded(replaced(value, path, data.draw(st.sampled_from(ODD))))


def is_whole(body: bytes) -> bool:
    """Return whether the data of an event is a JSON object. Some fixtures end within an event."""
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


def with_odd_value(data: st.DataObject, events: Sequence[Event]) -> list[Event]:
    numbers = [number for number, (_, body) in enumerate(events) if is_whole(body)]
    number = data.draw(st.sampled_from(numbers))
    head, body = events[number]
    _, odd = place_in(data, json.loads(body))
    return [*events[:number], (head, odd), *events[number + 1 :]]


def play(dialect: str, turns: Sequence[Sequence[bytes]], *, streaming: bool) -> tuple[bytes, list[Record]]:
    """Play turns as the stream does. Return what the client gets, and the records."""
    emitted: list[Record] = []
    failures: list[Exception] = []
    case = fixtures.case(f"{dialect}/simple/{'streaming' if streaming else 'blocking'}")
    loop = ToolLoop(INJECTIONS[dialect], JSONObject(case.request), INJECTED, max_turns=3)
    exchange = exchange_for(case, emitted)
    exchange._on_partial = lambda _reason, error: failures.append(error) if error is not None else None
    tools = ToolExchange(exchange, loop, lambda _loop: ())
    shown = b""
    for chunks in turns:
        tools.open_answer(200, EVENTS if streaming else JSON, "")
        if streaming:
            tools.streamed = True
            for chunk in chunks:
                if tools.error is None and tools.unreadable is None:
                    shown += tools.feed(chunk)
            shown += tools.stream_ended() if tools.error is None and tools.unreadable is None else b""
        else:
            shown += tools.take_body(b"".join(chunks)) or b""
        if not tools.waiting:
            break
        results = [Result(call, (Text("hi"),)) for call in loop.to_run]
        if tools.tools_ran([Invocation(result, None, None, 1) for result in results]) is None:
            break
    if tools.unreadable is not None:
        exchange.end("undecodable_answer", tools.unreadable)
    elif tools.error is None:
        shown += tools.ending() if streaming else (tools.merged_body() or b"")
    assert failures == []
    return shown, emitted


def check(shown: bytes, emitted: Sequence[Record]) -> None:
    assert not NAMES.search(shown)
    assert len([record for record in emitted if isinstance(record, InterceptionEnded)]) == 1


@pytest.mark.parametrize("kind", ["response.output_item.added", "response.output_item.done"])
def test_an_item_that_is_nested_too_deeply_shows_no_hidden_call(kind: str) -> None:
    events, _ = written("responses", CALLS[:3], 0)
    second, _ = written("responses", DONE, 1)
    odd = [
        (head, encoded(replaced(json.loads(data), ("item", "id"), DEEP)) if kind.encode() in data else data)
        for head, data in events
    ]
    check(*play("responses", [written_out(odd), written_out(second)], streaming=True))


@pytest.mark.parametrize("kind", ["x", "response.finished", "bmcp_ours_x"])
def test_a_whole_response_in_an_event_of_an_unknown_kind_shows_no_hidden_call(kind: str) -> None:
    events, _ = written("responses", CALLS[:3], 0)
    second, _ = written("responses", DONE, 1)
    odd = [
        (head, encoded(json.loads(data) | {"type": kind}) if b'"response.completed"' in data else data)
        for head, data in events
    ]
    assert odd != events
    check(*play("responses", [written_out(odd), written_out(second)], streaming=True))


@BY_DIALECT
@FUZZ_TIMEOUT
@FUZZ
@given(data=st.data())
def test_an_odd_member_of_an_event_shows_no_hidden_call(dialect: str, data: st.DataObject) -> None:
    events, _ = written(dialect, CALLS[: data.draw(st.sampled_from([3, 4]))], 0)
    second, _ = written(dialect, DONE, 1)
    odd = with_odd_value(data, events)
    check(*play(dialect, [written_out(odd), written_out(second)], streaming=True))


@BY_DIALECT
@FUZZ_TIMEOUT
@FUZZ
@given(data=st.data())
def test_an_odd_member_of_a_body_shows_no_hidden_call(dialect: str, data: st.DataObject) -> None:
    _, body = written(dialect, CALLS[: data.draw(st.sampled_from([3, 4]))], 0)
    _, second = written(dialect, DONE, 1)
    _, odd = place_in(data, body)
    check(*play(dialect, [[odd], [json.dumps(second).encode()]], streaming=False))


@FUZZ_TIMEOUT
@FUZZ
@given(data=st.data(), case=st.sampled_from(CASES))
def test_an_odd_member_of_an_answer_is_read(data: st.DataObject, case: Case) -> None:
    """Without tools, where every byte passes unchanged."""
    emitted: list[Record] = []
    failures: list[Exception] = []
    exchange = exchange_for(case, emitted)
    exchange._on_partial = lambda _reason, error: failures.append(error) if error is not None else None
    exchange.open_answer(200, case.content_type, "")
    if case.content_type == EVENTS:
        events = events_of(case.body)
        odd = with_odd_value(data, events) if any(is_whole(body) for _, body in events) else events
        for chunk in written_out(odd):
            exchange.feed(chunk)
    elif is_whole(case.body):
        _, body = place_in(data, json.loads(case.body))
        exchange.feed(body)
    exchange.answer_ended()
    assert failures == []
    assert len([record for record in emitted if isinstance(record, InterceptionEnded)]) == 1


@FUZZ_TIMEOUT
@FUZZ
@given(data=st.data(), case=st.sampled_from(CASES))
def test_an_odd_member_of_a_request_is_read(data: st.DataObject, case: Case) -> None:
    """Its reading, its history, and the injection of tools."""
    _, raw = place_in(data, json.loads(case.request))
    try:
        body = JSONObject(raw)
    except ValueError:
        return  # not an object: forwarded unread, or refused
    case.wire_format.read(body)
    case.wire_format.has_tools(body)
    case.wire_format.context_bytes(body, 0)
    if case.wire_format.history is not None:
        case.wire_format.history.read(body, whole=True)


DATES = [
    "Wed, 21 Oct 2015 07:28:00 +99999999999999999999",
    "Wed, 21 Oct 2015 07:28:00 -9999",
    "Wed, 21 Oct 9999 23:59:59 -2359",
    "Wed, 21 Oct 0001 00:00:00 +2359",
    "Wed, 21 Oct 99999 07:28:00 GMT",
    "Wed, 99 Oct 2015 07:28:00 GMT",
    "Wed, 21 Oct 2015 99:99:99 GMT",
    "0" * 5_000,
    "9" * 5_000,
    "1e999",
    "-1",
    "nan",
    "inf",
    "\x00",
    ",",
]


@pytest.mark.parametrize("value", DATES)
@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms"])
def test_an_odd_time_to_retry_is_ignored_or_a_number(name: str, value: str) -> None:
    found = outcome_of(429, {name: value}, datetime(2026, 1, 1, tzinfo=UTC)).retry_after
    assert found is None or 0 <= found < float("inf")


@FUZZ_TIMEOUT
@FUZZ
@given(st.text())
def test_any_text_to_retry_is_ignored_or_a_number(value: str) -> None:
    found = outcome_of(429, {"retry-after": value}, datetime(2026, 1, 1, tzinfo=UTC)).retry_after
    assert found is None or 0 <= found < float("inf")
