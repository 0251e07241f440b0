"""The form of a body by its first bytes."""

from __future__ import annotations

import pytest

from aibridge_addon.wire import aws_eventstream
from aibridge_addon.wire.aws_eventstream import CONTENT_TYPE
from aibridge_addon.wire.framing import BEDROCK_FRAMINGS, MAX_BLANK, SERVER_SENT, Form, form_of, framing_of

MESSAGE = aws_eventstream.encode({":event-type": "chunk"}, b"{}")
EVENTS = (b"data: x", b"event: x", b"id: 1", b"retry: 5", b": hello", b":\n\n", b"data:x", b"\n\r\n\ndata: x")


@pytest.mark.parametrize("beginning", [*EVENTS, *(b"\xef\xbb\xbf" + events for events in EVENTS)])
def test_fields_and_comments_begin_a_stream_of_events(beginning: bytes) -> None:
    assert form_of(beginning) is Form.SERVER_SENT


@pytest.mark.parametrize("beginning", [b"{", b"[", b" \r\n\t {", b"<html>", b"\xef\xbb\xbf{", b'{"data: x": 1}'])
def test_json_and_html_begin_a_whole_body(beginning: bytes) -> None:
    assert form_of(beginning) is Form.BODY


@pytest.mark.parametrize("beginning", [*EVENTS, b"\xef\xbb\xbf{", b"  {", MESSAGE])
def test_a_beginning_of_any_length_is_open_until_it_is_decided_and_never_decided_otherwise(beginning: bytes) -> None:
    forms = [form_of(beginning[:size]) for size in range(len(beginning) + 1)]
    assert set(forms) == {Form.OPEN, forms[-1]}
    assert forms == sorted(forms, key=lambda form: form is not Form.OPEN)


@pytest.mark.parametrize("beginning", [b"dat ", b"eventually", b"hello", b"\x1f\x8b\x08", b"\0" * 12, b"null"])
def test_other_bytes_fit_no_form(beginning: bytes) -> None:
    assert form_of(beginning) is Form.UNKNOWN


def test_an_aws_message_is_recognised_by_the_checksum_of_its_prelude() -> None:
    assert form_of(MESSAGE[: aws_eventstream.PRELUDE_SIZE]) is Form.AWS
    assert form_of(MESSAGE[:11] + b"?") is Form.UNKNOWN


def test_blank_lines_leave_the_form_open_only_up_to_a_limit() -> None:
    assert form_of(b"\n" * (MAX_BLANK - 1)) is Form.OPEN
    assert form_of(b"\n" * MAX_BLANK) is Form.UNKNOWN


@pytest.mark.parametrize(
    ("label", "streaming", "expected"),
    [
        ("text/event-stream", False, "text/event-stream"),
        ("Text/Event-Stream; charset=utf-8", False, "text/event-stream"),
        (CONTENT_TYPE, False, CONTENT_TYPE),
        ("", True, "text/event-stream"),
        ("text/plain", True, "text/event-stream"),
        ("application/octet-stream", True, "text/event-stream"),
        ("", False, None),
        ("text/plain", False, None),
        ("application/json", True, None),
        ("application/problem+json", True, None),
        ("text/html", True, None),
    ],
)
def test_before_the_first_bytes_the_label_counts_and_then_what_was_requested(
    label: str, streaming: bool, expected: str | None
) -> None:
    framing = framing_of(label, BEDROCK_FRAMINGS, streaming=streaming)
    assert framing is (None if expected is None else BEDROCK_FRAMINGS[expected])
    assert framing_of(CONTENT_TYPE, SERVER_SENT, streaming=False) is None
