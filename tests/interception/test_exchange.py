"""One interception: which records it emits, in which order, and that it ends only once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon import records
from aibridge_addon.config.schema import Limits
from aibridge_addon.interception.exchange import MAX_ERROR_LENGTH, Exchange
from aibridge_addon.records import Record
from tests.support import fixtures
from tests.support.codings import encode_stream
from tests.support.fixtures import Case
from tests.support.reading import NOON, exchange_for

EVENT_STREAM = "text/event-stream"
THINKING = fixtures.case("messages/thinking/streaming")
TOOLS = fixtures.case("messages/parallel_tools/streaming")
BLOCKING = fixtures.case("messages/simple/blocking")
STREAMS = [
    fixtures.case(f"{name}/streaming") for name in ("messages/simple", "chat_completions/simple", "responses/simple")
]


class Emitted(list[Record]):
    """What was emitted, and by which kinds of records."""

    @property
    def kinds(self) -> list[str]:
        return [type(record).__name__ for record in self]

    def of[R](self, kind: type[R]) -> list[R]:
        return [record for record in self if isinstance(record, kind)]

    @property
    def ended(self) -> records.InterceptionEnded:
        (record,) = self.of(records.InterceptionEnded)
        assert self[-1] is record
        return record


def started(case: Case, limits: Limits | None = None) -> tuple[Exchange, Emitted]:
    emitted = Emitted()
    return exchange_for(case, emitted, limits), emitted


def answering(case: Case, limits: Limits | None = None, coding: str = "") -> tuple[Exchange, Emitted]:
    exchange, emitted = started(case, limits)
    exchange.open_answer(case.status, case.content_type, coding)
    return exchange, emitted


def test_an_interception_that_starts_says_who_asks_what_of_whom() -> None:
    exchange, emitted = started(THINKING)
    (record,) = emitted
    assert isinstance(record, records.InterceptionStarted)
    assert (record.id, record.initiator_id, record.started_at) == (exchange.id, "ada", NOON)
    assert (record.provider, record.provider_name, record.route) == ("anthropic", "anthropic", "/route")
    assert (record.model, record.streaming) == (THINKING.expected["model"], True)
    assert not exchange.ended and exchange.turns == 0 and not exchange.streaming


def test_no_two_interceptions_have_the_same_id() -> None:
    assert started(THINKING)[0].id != started(THINKING)[0].id


def test_the_clock_is_utc() -> None:
    assert records.utc_now().utcoffset() == timedelta(0)
    assert abs(records.utc_now() - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("case", "kinds"),
    [
        (THINKING, ["TokenUsage", *["ModelThought"] * len(THINKING.expected["thoughts"])]),
        (TOOLS, ["TokenUsage", *["ToolUsage"] * len(TOOLS.expected["tools"])]),
        (BLOCKING, ["TokenUsage"]),
    ],
    ids=str,
)
def test_records_come_in_this_order_start_prompt_tokens_tools_thoughts_end(case: Case, kinds: list[str]) -> None:
    exchange, emitted = answering(case)
    exchange.feed(case.body)
    exchange.answer_ended()
    assert [kind for kind in emitted.kinds if kind != "Answer"] == [
        "InterceptionStarted",
        "UserPrompt",
        *kinds,
        "InterceptionEnded",
    ]
    assert {getattr(record, "interception_id", exchange.id) for record in emitted} == {exchange.id}
    ids = {getattr(record, "provider_response_id", None) for record in emitted} - {None}
    assert ids == {case.expected["response_id"]}


@pytest.mark.parametrize("case", [THINKING, TOOLS, BLOCKING], ids=str)
def test_no_record_is_older_than_one_before_it_after_the_clock_was_set_back(case: Case) -> None:
    """The clock is set back after each look at it."""
    minutes = itertools.count()
    emitted = Emitted()
    exchange = exchange_for(case, emitted, now=lambda: NOON - timedelta(minutes=next(minutes)))
    exchange.open_answer(case.status, case.content_type, "")
    exchange.first_byte_came()
    exchange.feed(case.body)
    exchange.answer_ended()
    assert exchange.time_to_first_byte_ms == 0
    names = ("started_at", "created_at", "ended_at")
    assert {getattr(record, name) for record in emitted for name in names if hasattr(record, name)} == {NOON}


@pytest.mark.parametrize("case", [THINKING, TOOLS, BLOCKING], ids=str)
def test_no_record_is_older_than_one_before_it_while_time_passes(case: Case) -> None:
    minutes = itertools.count()
    emitted = Emitted()
    exchange = exchange_for(case, emitted, now=lambda: NOON + timedelta(minutes=next(minutes)))
    exchange.open_answer(case.status, case.content_type, "")
    exchange.feed(case.body)
    exchange.answer_ended()
    names = ("started_at", "created_at", "ended_at")
    times = [getattr(record, name) for record in emitted for name in names if hasattr(record, name)]
    assert times == sorted(times)


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_an_answers_records_are_emitted_with_its_terminal_event_and_not_before(case: Case) -> None:
    exchange, emitted = answering(case)
    end = next(offset for offset in range(len(case.body)) if exchange.feed(case.body[offset : offset + 1]) is not None)
    assert exchange.ended and emitted.ended.status == "completed"
    other, before = answering(case)
    assert other.feed(case.body[:end]) is None
    assert before.kinds == ["InterceptionStarted"] and not other.ended


OVERS: dict[str, Callable[[Exchange], object]] = {
    "the client hangs up": lambda exchange: exchange.end("client_disconnected", "gone"),
    "the upstream breaks off": lambda exchange: exchange.end("upstream_disconnected", "gone"),
    "the answer ends": lambda exchange: exchange.answer_ended(),
    "bytes follow": lambda exchange: exchange.feed(b"event: message_stop\ndata: {}\n\n"),
    "the last bytes follow": lambda exchange: exchange.feed(b"", last=True),
}


@pytest.mark.parametrize("after", OVERS)
@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_whatever_happens_after_the_terminal_event_changes_nothing(case: Case, after: str) -> None:
    exchange, emitted = answering(case)
    assert exchange.feed(case.body) is not None
    before = list(emitted)
    assert OVERS[after](exchange) is None
    assert list(emitted) == before and emitted.ended.status == "completed"


def test_of_two_ends_the_first_one_counts() -> None:
    exchange, emitted = started(THINKING)
    exchange.end("upstream_unreachable", "no route")
    exchange.end("client_disconnected", "gone")
    assert (emitted.ended.error_type, emitted.ended.error_message) == ("upstream_unreachable", "no route")


def test_an_end_before_any_answer_keeps_the_prompt_and_knows_no_status() -> None:
    exchange, emitted = started(THINKING)
    exchange.end("upstream_unreachable", "no route")
    assert emitted.kinds == ["InterceptionStarted", "UserPrompt", "InterceptionEnded"]
    assert emitted.of(records.UserPrompt)[0].provider_response_id == ""
    ended = emitted.ended
    assert (ended.status, ended.http_status, ended.turns, ended.model) == ("failed", None, 0, None)


def test_an_answer_that_is_cut_keeps_what_was_read_as_partial() -> None:
    exchange, emitted = answering(TOOLS)
    exchange.feed(TOOLS.body[: TOOLS.body.index(b"event: message_delta")])
    exchange.end("upstream_disconnected", "reset")
    ended, (tokens,) = emitted.ended, emitted.of(records.TokenUsage)
    assert (ended.status, ended.error_type, ended.http_status, ended.turns) == (
        "failed",
        "upstream_disconnected",
        200,
        1,
    )
    assert tokens.completeness == "partial"
    assert len(emitted.of(records.ToolUsage)) == len(TOOLS.expected["tools"])


def test_a_client_that_hangs_up_after_the_last_byte_of_an_unbounded_body_was_answered() -> None:
    exchange, emitted = answering(BLOCKING)
    assert exchange.feed(BLOCKING.body) is None
    exchange.end("client_disconnected", "gone")
    assert (emitted.ended.status, emitted.ended.error_type) == ("completed", None)


def test_a_client_that_hangs_up_in_the_middle_of_a_body_was_not_answered() -> None:
    exchange, emitted = answering(BLOCKING)
    exchange.feed(BLOCKING.body[:-3])
    exchange.end("client_disconnected", "gone")
    assert (emitted.ended.status, emitted.ended.error_type) == ("failed", "client_disconnected")


def test_a_client_that_hangs_up_after_a_chats_finish_was_answered() -> None:
    """Some servers send no `[DONE]`."""
    case = fixtures.case("chat_completions/no_done/streaming")
    exchange, emitted = answering(case)
    assert exchange.feed(case.body) is None
    exchange.end("client_disconnected", "gone")
    assert emitted.ended.status == "completed"


def test_a_terminal_event_without_its_blank_line_is_read_at_the_end() -> None:
    case = STREAMS[0]
    exchange, emitted = answering(case)
    assert exchange.feed(case.body.rstrip(b"\n")) is None
    exchange.end("client_disconnected", "gone")
    assert emitted.ended.status == "completed"


def test_the_last_byte_of_a_body_whose_length_is_known_ends_the_answer() -> None:
    exchange, emitted = answering(BLOCKING)
    assert exchange.feed(BLOCKING.body[:10]) is None
    assert exchange.feed(BLOCKING.body[10:], last=True) == 0
    assert emitted.ended.status == "completed"


def test_the_last_byte_of_a_stream_whose_length_is_known_is_held_with_its_terminal_event() -> None:
    case = STREAMS[0]
    exchange, emitted = answering(case)
    assert exchange.feed(case.body, last=True) == case.body.index(b"event: message_stop")
    assert emitted.ended.status == "completed"


def test_a_stream_that_ends_properly_without_its_terminal_event_has_failed() -> None:
    case = STREAMS[0]
    exchange, emitted = answering(case)
    exchange.feed(case.body[: case.body.index(b"event: message_stop")])
    exchange.answer_ended()
    assert (emitted.ended.status, emitted.ended.error_type) == ("failed", "incomplete_stream")


def test_an_answer_that_cannot_be_read_is_not_called_failed_but_partial() -> None:
    """How it ended is unknown: the client may have read it."""
    exchange, emitted = answering(THINKING, Limits(decoded_body=2_000), "gzip")
    for piece in encode_stream([THINKING.body[:1_500], b": x\n\n" * 1_000], "gzip"):
        exchange.feed(piece)
    exchange.answer_ended()
    assert (emitted.ended.status, emitted.ended.error_type) == ("completed", None)
    assert [tokens.completeness for tokens in emitted.of(records.TokenUsage)] == ["partial"]


def test_an_error_answer_is_told_with_its_type_and_a_message_of_bounded_length() -> None:
    case = replace(
        fixtures.case("messages/error_before_529/blocking"),
        body=b'{"type":"error","error":{"type":"overloaded_error","message":"' + b"x" * 10_000 + b'"}}',
    )
    exchange, emitted = answering(case)
    exchange.feed(case.body, last=True)
    ended = emitted.ended
    assert (ended.status, ended.http_status, ended.error_type) == ("failed", 529, "overloaded_error")
    assert ended.error_message == "x" * MAX_ERROR_LENGTH
    assert emitted.of(records.TokenUsage) == []


def test_the_model_that_answered_stands_in_where_the_request_names_none() -> None:
    case = fixtures.case("chat_completions/azure_deployment/streaming")
    exchange, emitted = answering(case)
    exchange.feed(case.body)
    begin = emitted.of(records.InterceptionStarted)[0]
    assert begin.model == "" and emitted.ended.model == case.expected["model"]
    assert emitted.of(records.TokenUsage)[0].model == case.expected["model"]


# --- answers that are not for the client ------------------------------------------------------------------------

REFUSAL = b'{"error":{"message":"Unknown parameter: stream_options","type":"invalid_request_error"}}'


def test_an_answer_that_is_discarded_leaves_no_trace() -> None:
    case = fixtures.case("chat_completions/simple/streaming")
    exchange, emitted = started(case)
    exchange.open_answer(400, "application/json", "")
    seen = [exchange.streaming]
    exchange.discard_answer()
    assert emitted.kinds == ["InterceptionStarted"] and exchange.turns == 0 and not exchange.ended
    exchange.open_answer(200, EVENT_STREAM, "")
    seen.append(exchange.streaming)
    assert seen == [False, True]
    exchange.feed(case.body)
    plain, expected = answering(case)
    plain.feed(case.body)
    assert [replace(r, **own_id(r, "x")) for r in emitted] == [replace(r, **own_id(r, "x")) for r in expected]


def own_id(record: Record, value: str) -> dict[str, Any]:
    return {"id" if isinstance(record, records.InterceptionStarted) else "interception_id": value}


def test_an_end_after_a_discarded_answer_is_one_before_any_answer() -> None:
    exchange, emitted = started(STREAMS[1])
    exchange.open_answer(400, "application/json", "")
    exchange.discard_answer()
    exchange.end("upstream_unreachable", "no route")
    assert (emitted.ended.error_type, emitted.ended.turns) == ("upstream_unreachable", 0)


def test_a_refusal_that_is_not_discarded_is_the_answer() -> None:
    exchange, emitted = started(STREAMS[1])
    exchange.open_answer(400, "application/json", "")
    assert exchange.feed(REFUSAL, last=True) == 0
    assert (emitted.ended.http_status, emitted.ended.error_type) == (400, "invalid_request_error")


# --- any order of events ----------------------------------------------------------------------------------------

STEPS = st.lists(
    st.sampled_from(["end", "answer_ended", "feed", "feed last"]) | st.integers(1, 400), min_size=1, max_size=12
)


@given(case=st.sampled_from(STREAMS), steps=STEPS)
def test_in_any_order_of_events_there_is_one_end_and_nothing_after_it(case: Case, steps: list[str | int]) -> None:
    exchange, emitted = answering(case)
    rest = case.body
    for step in steps:
        if step == "end":
            exchange.end("client_disconnected", "gone")
        elif step == "answer_ended":
            exchange.answer_ended()
        else:
            size = step if isinstance(step, int) else 50
            exchange.feed(rest[:size], last=step == "feed last")
            rest = rest[size:]
    exchange.end("shutdown", "over")
    assert emitted.kinds[0] == "InterceptionStarted" and emitted.kinds.count("InterceptionStarted") == 1
    assert emitted.ended and exchange.ended
    assert emitted.kinds.count("UserPrompt") == 1 and emitted.kinds.count("TokenUsage") <= 1
