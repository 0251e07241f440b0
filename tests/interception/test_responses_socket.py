"""A WebSocket of the Responses API, message by message: the same records as over HTTP, one interception per request."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon import records
from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import RequestReading
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.responses_socket import MAX_OPEN, MAX_STEERED, ResponsesSocket
from aibridge_addon.records import Record
from tests.support import fixtures, frames
from tests.support.fixtures import Case
from tests.support.reading import NOON, exchange_of, play

CASES = [
    case
    for case in fixtures.cases()
    if case.dialect == "responses" and case.body and (case.content_type == "text/event-stream" or case.status >= 400)
    if "html" not in case.name and "cut" not in case.name
]
SIMPLE = fixtures.case("responses/simple/streaming")
TOOLS = fixtures.case("responses/parallel_tools/streaming")
CREATED, COMPLETED = b'"type":"response.created"', b'"type":"response.completed"'


class Socket:
    """A socket whose records are kept."""

    def __init__(self, case: Case = SIMPLE, limits: Limits | None = None) -> None:
        self.emitted: list[Record] = []
        self._case = case
        self._limits = limits or Limits()
        self.limits: list[Any] = []
        """Events about the limits of the plan."""
        self.reader = ResponsesSocket(self._begin, self._limits, self.limits.append)

    def _begin(self, reading: RequestReading, has_tools: bool) -> Exchange:
        return exchange_of(self._case, reading, self.emitted, self._limits, has_tools=has_tools)

    def answer(self, *messages: bytes) -> list[Exchange]:
        return [ended for message in messages if (ended := self.reader.from_server(message)) is not None]

    def of[R](self, kind: type[R]) -> list[R]:
        return [record for record in self.emitted if isinstance(record, kind)]

    @property
    def ends(self) -> list[tuple[str, str | None]]:
        return [(end.status, end.error_type) for end in self.of(records.InterceptionEnded)]


def anonymous(emitted: list[Record]) -> list[dict[str, Any]]:
    """The same records, whatever the ids of their interceptions, and whether the request said that it streams.

    Over HTTP, the flow measures the time to the first byte, and where the context goes.
    """
    left_out = {"id", "interception_id", "streaming", "time_to_first_byte_ms"}
    found = [{k: v for k, v in asdict(record).items() if k not in left_out} for record in emitted]
    for record in found:
        if record.get("metadata"):
            record["metadata"].pop("context_bytes", None)
    return found


def message(**members: Any) -> bytes:
    return json.dumps(members).encode()


def in_lane(lane: str, *messages: bytes) -> list[bytes]:
    return [json.dumps(json.loads(raw) | {"stream_id": lane}).encode() for raw in messages]


# --- as over HTTP -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_records_are_those_of_the_same_events_over_http(case: Case) -> None:
    socket = Socket(case)
    socket.reader.from_client(frames.create(case))
    ended = socket.answer(*frames.events(case))
    over_http = play(case, [case.body])
    assert len(ended) == 1
    assert anonymous(socket.emitted) == anonymous(over_http)
    assert socket.reader.idle


@pytest.mark.parametrize("name", ["cut", "cut_in_event"])
def test_an_answer_that_is_cut_is_told_as_over_http_but_for_who_cut_it(name: str) -> None:
    case = fixtures.case(f"responses/{name}/streaming")
    socket = Socket(case)
    socket.reader.from_client(frames.create(case))
    assert socket.answer(*frames.events(case)) == []
    socket.reader.cut("client_disconnected", "1006")
    over_http = play(case, [case.body])
    assert anonymous(socket.emitted)[:-1] == anonymous(over_http)[:-1]
    assert socket.ends == [("failed", "client_disconnected")]


def test_records_are_emitted_with_the_last_message_and_not_before() -> None:
    socket = Socket()
    begun = socket.reader.from_client(frames.create(SIMPLE))
    *events, last = frames.events(SIMPLE)
    assert COMPLETED in last
    assert socket.answer(*events) == []
    assert socket.ends == []
    assert socket.answer(last) == [begun]
    assert socket.ends == [("completed", None)]


def test_the_time_to_the_first_byte_runs_from_the_request_to_the_answers_first_event() -> None:
    socket = Socket()
    begun = socket.reader.from_client(frames.create(SIMPLE))
    assert begun is not None
    begun.now = lambda: NOON + timedelta(milliseconds=100)
    socket.reader.from_server(message(type="codex.rate_limits"))
    begun.now = lambda: NOON + timedelta(milliseconds=250)
    first, *events = frames.events(SIMPLE)
    socket.reader.from_server(first)
    begun.now = lambda: NOON + timedelta(milliseconds=900)
    socket.answer(*events)
    assert [end.time_to_first_byte_ms for end in socket.of(records.InterceptionEnded)] == [250]


# --- several requests -------------------------------------------------------------------------------------------------


def test_each_request_on_a_connection_is_an_interception() -> None:
    socket = Socket()
    for _ in range(3):
        socket.reader.from_client(frames.create(SIMPLE))
        assert len(socket.answer(*frames.events(SIMPLE))) == 1
        assert socket.reader.idle
    assert len({start.id for start in socket.of(records.InterceptionStarted)}) == 3
    assert len(socket.of(records.TokenUsage)) == len(socket.of(records.UserPrompt)) == 3


def test_a_later_request_that_sends_only_a_tools_result_names_its_call() -> None:
    socket = Socket()
    result = {"type": "function_call_output", "call_id": "call_7", "output": "42"}
    socket.reader.from_client(message(type="response.create", model="m", previous_response_id="resp_1", input=[result]))
    [start] = socket.of(records.InterceptionStarted)
    assert start.correlating_tool_call_id == "call_7"


def test_requests_that_do_not_wait_are_answered_in_their_order() -> None:
    socket = Socket()
    first = socket.reader.from_client(frames.create(SIMPLE))
    second = socket.reader.from_client(frames.create(SIMPLE))
    assert socket.answer(*frames.events(SIMPLE)) == [first]
    assert socket.answer(*frames.events(SIMPLE)) == [second]


@given(st.randoms(use_true_random=False))
def test_lanes_do_not_mix(dice: Any) -> None:
    socket = Socket()
    cases = {"a": SIMPLE, "b": TOOLS, "c": fixtures.case("responses/thinking/streaming")}
    queues = {lane: in_lane(lane, *frames.events(case)) for lane, case in cases.items()}
    for lane, case in cases.items():
        socket.reader.from_client(frames.create(case, stream_id=lane))
    while left := [lane for lane, queue in queues.items() if queue]:
        socket.answer(queues[dice.choice(left)].pop(0))
    reported = {usage.provider_response_id: usage.input_tokens for usage in socket.of(records.TokenUsage)}
    assert reported == {
        usage.provider_response_id: usage.input_tokens
        for case in cases.values()
        for usage in play(case, [case.body])
        if isinstance(usage, records.TokenUsage)
    }
    assert {call.provider_response_id for call in socket.of(records.ToolUsage)} == {
        call.provider_response_id for call in play(TOOLS, [TOOLS.body]) if isinstance(call, records.ToolUsage)
    }


def test_an_answer_that_follows_a_steering_is_an_interception_with_the_steering_for_a_prompt() -> None:
    socket = Socket()
    socket.reader.from_client(frames.create(SIMPLE))
    socket.answer(*frames.events(SIMPLE)[:3])
    said = [{"role": "user", "content": "In French, please."}]
    assert socket.reader.from_client(message(type="response.steer", previous_response_id="resp_1", input=said)) is None
    socket.answer(frames.events(SIMPLE)[-1])
    successor = {"id": "resp_2", "model": "m2", "previous_response_id": "resp_1"}
    usage = {"input_tokens": 3, "output_tokens": 4}
    socket.answer(
        message(type="response.steer.accepted", steer={"id": "s"}),
        message(type="response.created", response=successor),
        message(type="response.completed", response=successor | {"status": "completed", "usage": usage}),
    )
    assert [(prompt.provider_response_id, prompt.prompt) for prompt in socket.of(records.UserPrompt)][1:] == [
        ("resp_2", "In French, please.")
    ]
    assert [usage.output_tokens for usage in socket.of(records.TokenUsage)][1:] == [4]
    assert socket.of(records.InterceptionStarted)[1].model == "m2"


def test_what_is_kept_is_bounded() -> None:
    """Ours: a client may ask as often as it likes, and steer what never was."""
    socket = Socket()
    for number in range(MAX_OPEN + 10):
        socket.reader.from_client(frames.create(SIMPLE, stream_id=str(number)))
        socket.reader.from_client(message(type="response.steer", previous_response_id=str(number), input="x"))
    assert len(socket.of(records.InterceptionStarted)) == MAX_OPEN
    assert len(socket.reader._steered) == MAX_STEERED
    assert len(socket.reader.cut("client_disconnected", "")) == MAX_OPEN


# --- errors -----------------------------------------------------------------------------------------------------------


BUSY = {"type": "server_error", "message": "Busy"}


@pytest.mark.parametrize("begun", [0, 3])
@pytest.mark.parametrize(
    "error",
    [
        {"error": BUSY},
        {"status": 503, "error": BUSY},
        {"type": "error", "status": 503, "error": BUSY},
        {"status": 503, "type": "error", "error": BUSY},
        {"event_id": "e", "type": "error", "error": BUSY},
    ],
)
def test_an_error_of_any_shape_ends_its_row(error: dict[str, Any], begun: int) -> None:
    socket = Socket()
    asked = socket.reader.from_client(frames.create(SIMPLE))
    socket.answer(*frames.events(SIMPLE)[:begun])
    assert socket.answer(message(**error)) == [asked]
    assert socket.ends == [("failed", "server_error")] and socket.reader.idle
    [end] = socket.of(records.InterceptionEnded)
    assert end.error_message == "Busy"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"status": 429, "type": "error", "error": BUSY}, 429),
        ({"event_id": "e", "type": "error", "status": 429, "error": BUSY}, 429),
        ({"type": "error", "status_code": 429, "error": BUSY}, 429),
        ({"type": "error", "status": "429", "error": BUSY}, 429),
        ({"type": "error", "error": {**BUSY, "status": 429}}, 429),
        ({"type": "error", "error": {**BUSY, "code": 429}}, 429),
        ({"error": BUSY, "status_code": 429}, 429),
        ({"type": "response.error", "status": 429, "error": BUSY}, 429),
        ({"type": "error", "status": 200, "error": BUSY}, 200),
        ({"type": "error", "status": [], "error": BUSY}, 200),
    ],
    ids=repr,
)
def test_the_status_in_an_error_is_found_wherever_it_stands(error: dict[str, Any], status: int) -> None:
    socket = Socket()
    asked = socket.reader.from_client(frames.create(SIMPLE))
    assert socket.answer(message(**error)) == [asked]
    [end] = socket.of(records.InterceptionEnded)
    assert (end.http_status, end.error_type, end.error_message) == (status, "server_error", "Busy")


@pytest.mark.parametrize("begun", [0, 3])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"detail": "Unauthorized"}, "Unauthorized"),
        ({"detail": [{"loc": ["body", "model"], "msg": "required"}]}, "body.model: required"),
        ({"message": "Unauthorized"}, "Unauthorized"),
        ({"error": "Unauthorized"}, "Unauthorized"),
        ([{"error": {"message": "Unauthorized"}}], "Unauthorized"),
        ({"type": "response.error", "error": {"message": "Unauthorized"}}, "Unauthorized"),
        ({"sequence_number": 3, "type": "response.error", "message": "Unauthorized"}, "Unauthorized"),
        ({"sequence_number": 3, "type": "error", "message": "Unauthorized"}, "Unauthorized"),
    ],
    ids=repr,
)
def test_an_error_in_the_words_of_any_server_ends_its_row(error: Any, words: str, begun: int) -> None:
    socket = Socket()
    asked = socket.reader.from_client(frames.create(SIMPLE))
    socket.answer(*frames.events(SIMPLE)[:begun])
    assert socket.answer(json.dumps(error).encode()) == [asked]
    [end] = socket.of(records.InterceptionEnded)
    assert (end.status, end.error_message) == ("failed", words)


def test_events_whose_type_is_not_their_first_member_are_read_alike() -> None:
    socket = Socket()
    asked = socket.reader.from_client(frames.create(SIMPLE))
    last_first = [dict(reversed(json.loads(raw).items())) for raw in frames.events(SIMPLE)]
    assert socket.answer(message(rate_limits={}, type="codex.rate_limits")) == []
    assert socket.answer(*(message(**event) for event in last_first)) == [asked]
    assert socket.ends == [("completed", None)]
    assert [usage.completeness for usage in socket.of(records.TokenUsage)] == ["complete"]


def test_an_error_without_a_lane_ends_the_oldest_answer() -> None:
    socket = Socket()
    first = socket.reader.from_client(frames.create(SIMPLE, stream_id="a"))
    socket.reader.from_client(frames.create(SIMPLE, stream_id="b"))
    assert socket.answer(message(type="error", error=BUSY)) == [first]


def test_an_error_before_the_answer_tells_its_status() -> None:
    socket = Socket()
    socket.reader.from_client(frames.create(SIMPLE))
    error = {"type": "usage_limit_reached", "message": "later"}
    assert len(socket.answer(message(type="error", status=429, error=error))) == 1
    [end] = socket.of(records.InterceptionEnded)
    assert (end.status, end.http_status, end.error_type, end.error_message) == (
        "failed",
        429,
        "usage_limit_reached",
        "later",
    )


@pytest.mark.parametrize("begun", [False, True])
def test_an_error_without_a_status_ends_the_answer(begun: bool) -> None:
    socket = Socket()
    socket.reader.from_client(frames.create(SIMPLE))
    socket.answer(*frames.events(SIMPLE)[: 4 if begun else 0], message(type="error", code="boom", message="no"))
    assert socket.ends == [("failed", "boom")]
    assert socket.reader.idle


def test_a_request_that_nobody_gets_is_not_answered() -> None:
    socket = Socket()
    refused = socket.reader.from_client(frames.create(SIMPLE))
    assert refused is not None
    socket.reader.withdraw(refused)
    next_one = socket.reader.from_client(frames.create(SIMPLE))
    assert socket.answer(*frames.events(SIMPLE)) == [next_one]


# --- what is not known ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"[]",
        b"\xff",
        b'{"type":"response.cancel"}',
        b'{"type":"response.processed","response_id":"resp_1"}',
        b'{"type":7}',
        b'{"type":"response.create"',
        b"[" * 10_000,
    ],
    ids=lambda data: repr(data[:30]),
)
def test_a_clients_message_that_is_no_request_begins_nothing(data: bytes) -> None:
    socket = Socket()
    assert socket.reader.from_client(data) is None
    assert socket.emitted == []


def test_messages_about_the_connection_are_no_part_of_an_answer() -> None:
    socket = Socket()
    limits = message(type="codex.rate_limits", rate_limits={})
    socket.reader.from_client(frames.create(SIMPLE))
    assert socket.answer(limits, message(type="error", status=400, error={"code": "previous_response_not_found"}))
    assert [end.http_status for end in socket.of(records.InterceptionEnded)] == [400]
    assert socket.answer(limits) == []


def test_a_message_that_cannot_be_read_makes_the_record_partial() -> None:
    socket = Socket()
    socket.reader.from_client(frames.create(SIMPLE))
    *events, last = frames.events(SIMPLE)
    socket.answer(*events, b"no JSON", last)
    assert [usage.completeness for usage in socket.of(records.TokenUsage)] == ["partial"]
    assert socket.ends == [("completed", None)]


def test_a_message_above_the_limit_makes_the_record_partial() -> None:
    *events, last = frames.events(SIMPLE)
    socket = Socket(limits=Limits(sse_event=len(last)))
    socket.reader.from_client(frames.create(SIMPLE))
    socket.answer(*events, message(type="response.output_item.done", item={"text": "x" * len(last)}), last)
    assert [usage.completeness for usage in socket.of(records.TokenUsage)] == ["partial"]


def test_a_last_message_above_the_limit_ends_the_answer_all_the_same() -> None:
    *events, last = frames.events(SIMPLE)
    socket = Socket(limits=Limits(sse_event=len(last) - 1))
    socket.reader.from_client(frames.create(SIMPLE))
    assert len(socket.answer(*events, last)) == 1
    [usage] = socket.of(records.TokenUsage)
    assert usage.output_tokens and usage.completeness == "complete"  # its end says the tokens
    assert socket.ends == [("completed", None)]


def test_a_request_above_the_limit_is_an_interception_of_which_less_is_known() -> None:
    request = frames.create(SIMPLE)
    socket = Socket(limits=Limits(request_body=len(request) - 1))
    assert socket.reader.from_client(request) is not None
    assert len(socket.answer(*frames.events(SIMPLE))) == 1
    [start], [end] = socket.of(records.InterceptionStarted), socket.of(records.InterceptionEnded)
    assert (start.model, start.streaming, end.model) == ("", True, "gpt-5.1-2025-11-13")
    assert socket.of(records.UserPrompt) == []
    assert [usage.completeness for usage in socket.of(records.TokenUsage)] == ["complete"]


@given(st.lists(st.binary(max_size=60) | st.sampled_from([*frames.events(SIMPLE), frames.create(SIMPLE)]), max_size=30))
def test_nothing_that_is_said_breaks_the_reading(said: list[bytes]) -> None:
    socket = Socket()
    for number, data in enumerate(said):
        if number % 2:
            socket.reader.from_server(data)
        else:
            socket.reader.from_client(data)
    socket.reader.cut("client_disconnected", "")
    assert len(socket.ends) == len(socket.of(records.InterceptionStarted))


def test_limits_of_the_plan_are_read_between_answers_and_within_them() -> None:
    socket = Socket()
    said = {"type": "codex.rate_limits", "rate_limits": {"primary": {"used_percent": 12}}}
    event = json.dumps(said).encode()
    assert socket.answer(event) == []
    socket.reader.from_client(frames.create(SIMPLE))
    first, *rest = frames.events(SIMPLE)
    assert len(socket.answer(first, event, *rest)) == 1
    assert socket.limits == [said, said]
    assert socket.ends == [("completed", None)]
    socket.answer(b'{"type":"codex.rate_limits",')
    assert socket.limits[2:] == [None]
