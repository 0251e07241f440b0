"""Bedrock's binary stream as Anthropic's, however it is cut into pieces; frames are encoded by AWS's own code."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.messages_on_bedrock.answer import ErrorToMessages, EventsToSSE, TranscodingError, transcoder
from tests.support import aws_frames, fixtures

CASE = fixtures.case("messages/simple/streaming")
FRAMES = b"".join(aws_frames.invoke_frames(CASE.body))
MAX = 1024 * 1024


def told(*pieces: bytes) -> bytes:
    stream = EventsToSSE(MAX)
    return b"".join(map(stream.feed, pieces)) + stream.finish()


def data_of(stream: bytes) -> list[object]:
    return [json.loads(event.split(b"data: ", 1)[1]) for event in stream.split(b"\n\n") if b"data: " in event]


def test_every_event_becomes_one_of_the_same_name_and_data() -> None:
    assert data_of(told(FRAMES)) == data_of(CASE.body)
    assert told(FRAMES).startswith(b"event: message_start\ndata: {") and told(FRAMES).endswith(b"}\n\n")


@given(st.lists(st.integers(0, len(FRAMES)), max_size=12))
def test_however_it_is_cut_it_reads_the_same(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(FRAMES)]
    assert told(*(FRAMES[a:b] for a, b in itertools.pairwise(places))) == told(FRAMES)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("throttlingException", "rate_limit_error"),
        ("validationException", "invalid_request_error"),
        ("modelStreamErrorException", "api_error"),
        ("serviceUnavailableException", "overloaded_error"),
    ],
)
def test_an_exception_in_the_stream_is_an_error_event(kind: str, expected: str) -> None:
    [event] = data_of(told(aws_frames.exception(kind, {"message": "Too much"})))
    assert event == {"type": "error", "error": {"type": expected, "message": "Too much"}}


def test_an_error_that_has_no_name_is_one_too() -> None:
    [event] = data_of(told(aws_frames.error("InternalFailure", "Oh")))
    assert event == {"type": "error", "error": {"type": "api_error", "message": "Oh"}}


def test_other_events_say_nothing_to_the_client() -> None:
    assert told(aws_frames.event("initial-response", b"{}")) == b""


@pytest.mark.parametrize(
    "bytes_",
    [
        FRAMES[:8] + b"\xff" + FRAMES[9:],
        aws_frames.event("chunk", b'{"bytes":"***"}'),
        aws_frames.event("chunk", b"no"),
    ],
    ids=["checksum", "base64", "JSON"],
)
def test_what_is_no_event_is_not_given_on(bytes_: bytes) -> None:
    with pytest.raises(TranscodingError):
        told(bytes_)


def test_an_event_over_several_lines_is_one_line() -> None:
    assert told(aws_frames.chunk(b'{\r\n"type":"ping"\n}')) == b'event: ping\ndata: {  "type":"ping" }\n\n'


@pytest.mark.parametrize("event", [b"[1]", b"7", b'{"type":7}'])
def test_json_that_is_no_event_does_not_end_the_stream(event: bytes) -> None:
    assert told(aws_frames.chunk(event) + aws_frames.chunk(b'{"type":"ping"}')).startswith(b"event: ping\n")


def test_an_error_that_a_gateway_has_put_into_anthropics_shape_stays_as_it_is() -> None:
    body = b'{"type": "error", "error": {"type": "a", "message": "b", "more": 1}}'
    errors = ErrorToMessages(400)
    errors.feed(body)
    assert errors.finish() == body


def test_an_event_that_is_too_large_is_not_left_out() -> None:
    stream = EventsToSSE(100)
    with pytest.raises(TranscodingError, match="too large"):
        stream.feed(aws_frames.chunk(b"x" * 1000))


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, b'{"message":"Malformed input"}', "invalid_request_error", "Malformed input"),
        (403, b'{"Message":"No access"}', "permission_error", "No access"),
        (429, b'{"message":"Too many"}', "rate_limit_error", "Too many"),
        (500, b"<html>", "api_error", "Bedrock answered 500"),
        (503, b"[]", "overloaded_error", "Bedrock answered 503"),
    ],
)
def test_an_error_body_becomes_anthropics(status: int, body: bytes, kind: str, message: str) -> None:
    errors = ErrorToMessages(status)
    assert errors.feed(body[:3]) + errors.feed(body[3:]) == b""
    assert json.loads(errors.finish()) == {"type": "error", "error": {"type": kind, "message": message}}


def test_a_body_of_messages_is_given_on_as_it_is() -> None:
    assert transcoder(200, "application/json", max_event=MAX) is None
