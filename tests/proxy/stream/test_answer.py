"""What of an answer may be sent at once, and what is held as its end."""

from __future__ import annotations

import json

import pytest

from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.interception.tool_loop import ToolLoop
from aibridge_addon.proxy.stream.answer import Output, Spliced, Tapped
from aibridge_addon.proxy.stream.body import BodyError, Decoded, Pipe
from aibridge_addon.records import InterceptionEnded, Record
from aibridge_addon.wire.codings import decoder_for
from aibridge_addon.wire.json_object import JSONObject
from tests.support import fixtures
from tests.support.codings import encode
from tests.support.dialects import INJECTIONS
from tests.support.reading import exchange_for

MESSAGES = fixtures.case("messages/simple/streaming")
BLOCKING = fixtures.case("messages/simple/blocking")
END = MESSAGES.body.index(b"event: message_stop")


class Upper:
    """A stage that keeps its last byte until the end."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> bytes:
        whole = self._kept + data.upper()
        self._kept = whole[-1:]
        return whole[:-1]

    def finish(self) -> bytes:
        return self._kept


def tapped(emitted: list[Record], unread: int | None = None, *stages: Upper) -> Tapped:
    case = MESSAGES if unread is None else BLOCKING
    exchange = exchange_for(case, emitted)
    exchange.open_answer(200, case.content_type, "")
    return Tapped(exchange, Pipe(*stages), unread)


def spliced(emitted: list[Record], *stages: Upper) -> Spliced:
    exchange = exchange_for(MESSAGES, emitted)
    loop = ToolLoop(INJECTIONS["messages"], JSONObject(MESSAGES.request), ("bmcp_a_look",), max_turns=3)
    tools = ToolExchange(exchange, loop, lambda _loop: ())
    tools.open_answer(200, MESSAGES.content_type, "")
    return Spliced(tools, Pipe(*stages), limit=1_000)


def test_the_bytes_of_a_tapped_answer_pass_up_to_its_terminal_event() -> None:
    emitted: list[Record] = []
    answer = tapped(emitted)
    assert answer.is_verbatim
    assert answer.on_data(MESSAGES.body[:100]) == Output(MESSAGES.body[:100])
    assert answer.on_data(MESSAGES.body[100:]) == Output(MESSAGES.body[100:END], MESSAGES.body[END:])
    assert isinstance(emitted[-1], InterceptionEnded)


def test_the_last_bytes_of_a_body_of_known_length_are_its_end() -> None:
    answer = tapped([], len(BLOCKING.body))
    assert answer.is_verbatim and not answer.can_append
    assert answer.on_data(BLOCKING.body[:20]) == Output(BLOCKING.body[:20])
    assert answer.on_data(BLOCKING.body[20:]) == Output(b"", BLOCKING.body[20:])


def test_converted_bytes_count_as_those_of_a_body_of_known_length() -> None:
    answer = tapped([], len(BLOCKING.body))
    assert answer.convert(BLOCKING.body[:20]) == BLOCKING.body[:20]
    assert answer.convert(BLOCKING.body[20:]) == Output(b"", BLOCKING.body[20:])


def test_a_stream_without_its_terminal_event_has_an_empty_end() -> None:
    emitted: list[Record] = []
    answer = tapped(emitted)
    answer.on_data(MESSAGES.body[:END])
    assert answer.on_end() == Output(b"", b"")
    assert isinstance(emitted[-1], InterceptionEnded)


def test_what_a_stage_still_has_is_sent_before_the_end() -> None:
    answer = tapped([], None, Upper())
    passed = answer.on_data(MESSAGES.body[:END])
    assert passed.now == MESSAGES.body[: END - 1].upper()
    assert answer.on_end() == Output(MESSAGES.body[END - 1 : END].upper(), b"")


def test_an_event_may_be_appended_between_two_events_only() -> None:
    answer = tapped([])
    boundary = MESSAGES.body.index(b"\n\n") + 2
    answer.on_data(MESSAGES.body[: boundary - 1])
    assert not answer.can_append
    answer.on_data(MESSAGES.body[boundary - 1 : boundary])
    assert answer.can_append


def test_a_spliced_answer_that_calls_no_tool_passes_byte_for_byte_with_its_end_held() -> None:
    emitted: list[Record] = []
    answer = spliced(emitted)
    outputs = [answer.on_data(MESSAGES.body[n : n + 37]) for n in range(0, len(MESSAGES.body), 37)]
    outputs.append(answer.on_end())
    (end,) = [output.end for output in outputs if output.end is not None]
    assert b"".join(output.now for output in outputs) + end == MESSAGES.body
    assert end.endswith(MESSAGES.body[END:]) and answer.end_sent
    assert isinstance(emitted[-1], InterceptionEnded)


def test_what_a_stage_still_has_of_a_spliced_answer_is_sent_behind_its_end() -> None:
    answer = spliced([], Upper())
    outputs = [answer.on_data(MESSAGES.body), answer.on_end()]
    assert b"".join(output.now + (output.end or b"") for output in outputs) == MESSAGES.body.upper()
    answer = spliced([], Upper())
    outputs = [answer.on_data(MESSAGES.body[:END]), answer.on_end()]
    assert b"".join(output.now + (output.end or b"") for output in outputs) == MESSAGES.body[:END].upper()


def test_a_keep_alive_is_due_only_when_nothing_was_sent_since_the_last_look() -> None:
    answer = spliced([])
    assert answer.due_keepalive() == answer.keepalive()
    answer.on_data(MESSAGES.body[:END])
    assert answer.due_keepalive() == b""
    assert answer.due_keepalive() == answer.keepalive()


def test_a_later_turns_error_without_a_message_gets_one() -> None:
    answer = spliced([])
    error = answer.failed_turn(json.dumps({"nothing": "known"}).encode())
    assert error.message == "the upstream answered with an error"


# --- pipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_a_pipe_loses_nothing_and_keeps_the_order(stages: int) -> None:
    pipe = Pipe(*(Upper() for _ in range(stages)))
    assert bool(pipe) is (stages > 0)
    passed = b"".join([pipe.feed(b"abc"), pipe.feed(b""), pipe.feed(b"def"), pipe.finish()])
    assert passed == (b"ABCDEF" if stages else b"abcdef")


def test_an_answer_that_cannot_be_decoded_says_so_in_the_words_of_its_row() -> None:
    decoder = decoder_for("gzip", 1_000)
    assert decoder is not None
    stage = Decoded(decoder)
    coded = encode(b"hello", "gzip")
    assert stage.feed(coded[:5]) + stage.feed(coded[5:]) + stage.finish() == b"hello"
    other = decoder_for("gzip", 1_000)
    assert other is not None
    with pytest.raises(BodyError) as caught:
        Decoded(other).feed(b"nonsense, not gzip at all")
    assert caught.value.error_type == "undecodable_answer"
