"""Streams of servers that break the rules: their bytes pass if nothing is hidden, and hidden calls stay hidden."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from aibridge_addon.wire import sse
from tests.dialects.test_splice import INJECTED, answer, block, call, end, message, played, read, splice_of, start
from tests.dialects.test_splice import stream as stream_of
from tests.support import aws_frames
from tests.support.bedrock_forms import ALL_FORMS, BEDROCK_FORMS
from tests.support.stream_forms import FORMS
from tests.support.streams import Block, Style, Turn, play

ODD = [b"NaN", b"-Infinity", b"1e999", b'"\xff\xfe"', b'"\\ud83d"', b'{"a":[NaN]}', b"123456789012345678901234567890"]
BLOCKS = (Block("text", "0. "), Block("injected", '{"n": 1}', INJECTED[0]))


def written(dialect: str, *blocks: Block) -> list[bytes]:
    made = ALL_FORMS[dialect].write(Turn(blocks), 0, Style(usage="plain" if dialect != "responses" else "not echoed"))
    if dialect in BEDROCK_FORMS:
        return aws_frames.split(made.stream)
    return [event + b"\n\n" for event in made.stream.split(b"\n\n") if event]


def mangled(event: bytes, odd: bytes, place: str) -> bytes:
    """The event with an odd value as its first or last member, or within its first object."""
    if event[:1] == b"\0":
        message = aws_frames.read(event)
        if message.kind == "chunk":
            return aws_frames.chunk(_mangled(message.inner, odd, place))
        return aws_frames.event(message.kind, _mangled(message.payload, odd, place))
    if b"[DONE]" in event:
        return event
    head, data = event.split(b"data: ", 1)
    return head + b"data: " + _mangled(data.rstrip(), odd, place) + b"\n\n"


def _mangled(data: bytes, odd: bytes, place: str) -> bytes:
    return {
        "first": b'{"odd":%s,' % odd + data[1:],
        "last": data[:-1] + b',"odd":%s}' % odd,
        "within": re.sub(rb":\s?{", b':{"odd":%s,' % odd.replace(b"\\", b"\\\\"), data, count=1).replace(b",}", b"}"),
    }[place]


@pytest.mark.parametrize("place", ["first", "last", "within"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("dialect", ALL_FORMS)
def test_a_hidden_call_in_odd_json_is_run_and_not_shown(dialect: str, odd: bytes, place: str) -> None:
    given = [mangled(event, odd, place) for event in written(dialect, *BLOCKS)]
    seen = play(ALL_FORMS[dialect].dialect, ALL_FORMS[dialect].injection.splice(INJECTED), [given])
    assert [(call.name, call.input) for call in seen.ends[0].calls] == [(INJECTED[0], {"n": 1})]
    assert b"bmcp_" not in seen.client


@pytest.mark.parametrize("place", ["first", "last", "within"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("dialect", ALL_FORMS)
def test_odd_json_passes_byte_for_byte_if_nothing_is_hidden(dialect: str, odd: bytes, place: str) -> None:
    given = [mangled(event, odd, place) for event in written(dialect, Block("text", "Done."))]
    assert play(ALL_FORMS[dialect].dialect, ALL_FORMS[dialect].injection.splice(INJECTED), [given]).client == b"".join(
        given
    )


# --- Chat Completions


def chunk(delta: dict[str, Any], reason: str | None = "stop") -> bytes:
    data = {"id": "c1", "created": 1, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return sse.event("", json.dumps(data).encode())


CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": INJECTED[0], "arguments": "{}"}}
SAID = [chunk({"role": "assistant", "content": "a"}), chunk({"content": "b"}), chunk({"content": "c"})]
DONE = b"data: [DONE]\n\n"


def shown_at_once(given: list[bytes]) -> list[bytes]:
    splice = splice_of("chat_completions")
    splice.begin_turn()
    return [splice.event(raw, "", json.loads(raw[6:]) if raw != DONE else b"[DONE]") for raw in given]


def test_chunks_that_all_have_a_finish_reason_are_streamed_one_behind() -> None:
    assert shown_at_once([*SAID, DONE]) == [b"", SAID[0], SAID[1], b""]
    seen = play(FORMS["chat_completions"].dialect, splice_of("chat_completions"), [[*SAID, DONE]])
    assert seen.client == b"".join([*SAID, DONE])


def test_text_before_a_hidden_call_is_shown_if_all_chunks_have_a_finish_reason() -> None:
    first = [*SAID, chunk({"tool_calls": [CALL]}, "tool_calls"), DONE]
    second = [chunk({"content": "d"}), DONE]
    seen = play(FORMS["chat_completions"].dialect, splice_of("chat_completions"), [first, second])
    chunks = [data["choices"][0]["delta"].get("content", "") for data in read(seen.client) if data != "[DONE]"]
    assert "".join(chunks) == "abcd" and b"bmcp_" not in seen.client and len(seen.ends[0].calls) == 1


# --- Messages


def test_an_early_message_delta_is_not_the_end() -> None:
    early = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1}}
    words = block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "a"})
    given = [start(), early, *words, early, *block(1, {"type": "text", "text": ""}), *end("end_turn")]
    whole = stream_of(*given)
    assert play(FORMS["messages"].dialect, splice_of("messages"), [[whole]]).client == whole
    splice = splice_of("messages")
    splice.begin_turn()
    at_once = [splice.event(stream_of(event), event["type"], event) for event in given]
    assert at_once[2] == stream_of(early, given[2]) and all(at_once[3:5])
    use = block(1, {"type": "tool_use", "id": "t", "name": INJECTED[0], "input": {}})
    seen, ends = played("messages", [start(), early, *words, *use, *end("tool_use")], [start(2), *end("end_turn")])
    assert [event["type"] for event in seen].count("content_block_delta") == 1 and len(ends[0].calls) == 1


# --- Responses


def without(event: dict[str, Any], *names: str) -> dict[str, Any]:
    item = {n: v for n, v in event.get("item", {}).items() if n != "id" or n not in names}
    return {n: v for n, v in event.items() if n not in names} | ({"item": item} if item else {})


@pytest.mark.parametrize("status", [{}, {"status": "completed"}])
def test_a_completed_response_without_its_output_passes_byte_for_byte(status: dict[str, str]) -> None:
    events = answer(1, message(1), tools=[])
    events[-1] = events[-1] | {"response": {"id": "resp_1"} | status}
    whole = stream_of(*events)
    assert play(FORMS["responses"].dialect, splice_of("responses"), [[whole]]).client == whole


@pytest.mark.parametrize("names", [("output_index",), ("output_index", "id"), ("output_index", "id", "item_id")])
def test_arguments_of_a_hidden_item_without_number_and_id_are_hidden(names: tuple[str, ...]) -> None:
    first = answer(1, message(1), call(1))
    kind, place = "response.function_call_arguments", {"item_id": "fc_1", "output_index": 1}
    pieces = [
        {"type": f"{kind}.delta", **place, "delta": '{"secret":'},
        {"type": f"{kind}.done", **place, "name": INJECTED[0], "arguments": '{"secret":1}'},
    ]
    first[4:4] = pieces
    seen, ends = played("responses", [without(event, *names) for event in first], answer(2, message(2)))
    assert "secret" not in json.dumps(seen) and "bmcp_" not in json.dumps(seen) and len(ends[0].calls) == 1


def test_arguments_of_the_clients_own_item_after_a_hidden_one_are_shown() -> None:
    first = answer(1, call(1), call(2, "Read"))
    kind = "response.function_call_arguments.delta"
    first.insert(4, {"type": kind, "item_id": "fc_2", "delta": "{}"})
    seen, _ = played("responses", [without(event, "output_index") for event in first])
    assert kind in [event["type"] for event in seen]
