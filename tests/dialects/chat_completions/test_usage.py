"""Asking a chat stream for its usage, and giving the client the stream that it asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects.chat_completions.usage import (
    UsageChunkFilter,
    UsageRefusals,
    ask_for_usage,
    may_refuse_usage,
    refuses_usage,
)
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.sse import SSEScanner, parse
from tests.support import fixtures
from tests.support.fixtures import Case

LIMIT = 1 << 20
DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
USAGE_CHUNK = b'data: {"id":"c","choices":[],"usage":' + json.dumps(USAGE).encode() + b"}\n\n"


# --- the request ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "asking"),
    [
        (b'{"stream": true}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"stream_options":null,"a":1}', b'{"stream_options":{"include_usage":true},"a":1}'),
        (b'{"stream_options":{}}', b'{"stream_options":{"include_usage":true}}'),
        (b'{"stream_options":{"include_usage":false}}', b'{"stream_options":{"include_usage":true}}'),
        (
            b'{"stream_options":{"include_obfuscation":false},"a":1.50}',
            b'{"stream_options":{"include_obfuscation":false,"include_usage":true},"a":1.50}',
        ),
        (
            rb'{"a": "\u00e9 ", "stream": true}',
            rb'{"a":"\u00e9 ","stream":true,"stream_options":{"include_usage":true}}',
        ),
    ],
)
def test_the_request_asks_for_usage_and_is_otherwise_as_it_was(body: bytes, asking: bytes) -> None:
    assert ask_for_usage(JSONObject(body)) == asking


@pytest.mark.parametrize("body", [rb'{"messages": ["\ud83d"]}', b'{"stream_options": 7}', b'{"stream_options": []}'])
def test_a_request_that_cannot_be_kept_as_it_is_or_is_wrong_by_itself_is_left_alone(body: bytes) -> None:
    assert ask_for_usage(JSONObject(body)) is None


@pytest.mark.parametrize(
    ("error", "refuses"),
    [
        (b'{"error":{"message":"Unrecognized request argument supplied: stream_options"}}', True),
        (b'{"detail":[{"loc":["body","stream_options"],"msg":"extra fields not permitted"}]}', True),
        (b"unknown field `include_usage`", True),
        (b'{"error":{"message":"max_tokens is too large"}}', False),
        (b"", False),
    ],
)
def test_a_refusal_names_what_was_added(error: bytes, refuses: bool) -> None:
    assert refuses_usage(error) is refuses


@pytest.mark.parametrize(
    ("error", "may_refuse"),
    [
        (b'{"detail":"Extra inputs are not permitted"}', True),
        (b'{"error":{"message":"Unknown parameter"}}', True),
        (b'{"error":"Unrecognized request argument"}', True),
        (b'{"message":"additional properties are not allowed"}', True),
        (b'{"error":{"message":"no such model"}}', False),
        (b'{"error":{"message":"max_tokens is too large"}}', False),
        (b"", False),
    ],
)
def test_a_refusal_in_other_words_is_about_an_unknown_member(error: bytes, may_refuse: bool) -> None:
    assert may_refuse_usage(error) is may_refuse


def test_refusals_are_remembered_by_provider_and_model_up_to_a_limit() -> None:
    refusals = UsageRefusals(limit=2)
    for model in ("a", "b", "b", "c"):
        refusals.add("openai", model)
    assert [("openai", model) in refusals for model in "abc"] == [False, True, True]
    assert ("azure", "b") not in refusals


@pytest.mark.parametrize("choices", ["", '"choices":null,', '"choices":[],'])
def test_a_chunk_of_nothing_but_usage_is_taken_out_with_or_without_choices(choices: str) -> None:
    usage = f'data: {{{choices}"id":"c","usage":{{"prompt_tokens":1}}}}\n\n'.encode()
    text = b'data: {"id":"c","choices":[{"delta":{}}],"usage":{"prompt_tokens":1}}\n\n'
    error = b'data: {"error":{"message":"no"},"usage":{"prompt_tokens":1}}\n\n'
    filter = UsageChunkFilter(1000)
    assert filter.feed(text + usage + error) + filter.finish() == text + error


# --- the answer -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Streams:
    """The stream that a provider sends when it is asked for usage, and the one that it sends when it is not."""

    asked: bytes
    unasked: bytes


@st.composite
def streams(draw: st.DrawFn, line_end: bytes = b"\n") -> Streams:
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    events: list[tuple[bytes, bytes]] = []
    contents: list[str] = draw(st.lists(st.text(max_size=12) | st.just(',"usage":null'), max_size=5))
    for content in contents:
        chunk: dict[str, Any] = {"id": "c", "choices": [{"index": 0, "delta": {"content": content}}]}
        ascii_only: bool = draw(st.booleans())
        unasked, asked = (
            b"data: " + json.dumps(body, separators=separators, ensure_ascii=ascii_only).encode()
            for body in (chunk, chunk | {"usage": None})
        )
        events.append((asked, unasked))
    if draw(st.booleans()):
        events.append((b": keep-alive",) * 2)
    place = draw(st.integers(0, len(events)))
    usage = json.dumps({"id": "c", "choices": [], "usage": USAGE}, separators=separators).encode()
    events.insert(place, (b"data: " + usage, b""))
    if draw(st.booleans()):
        events.append((b"data: [DONE]",) * 2)
    end = line_end * 2
    return Streams(
        asked=b"".join(asked + end for asked, _ in events),
        unasked=b"".join(unasked + end for _, unasked in events if unasked),
    )


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place for place in places if place < len(data))})
    return [data[a:b] for a, b in pairwise(edges)]


def filtered(chunks: Iterable[bytes], limit: int = LIMIT) -> bytes:
    usage_filter = UsageChunkFilter(limit)
    return b"".join([*map(usage_filter.feed, chunks), usage_filter.finish()])


def events_of(stream: bytes) -> list[tuple[str, bytes | None]]:
    scanner = SSEScanner()
    return [parse(raw) for raw, _ in scanner.feed(stream)] + [parse(scanner.finish())]


PLACES = st.lists(st.integers(0, 600), max_size=20)


@given(both=streams(), places=PLACES)
def test_the_client_sees_the_stream_that_it_asked_for_however_it_is_cut(both: Streams, places: list[int]) -> None:
    assert filtered(cut(both.asked, places)) == both.unasked
    assert filtered(both.asked[i : i + 1] for i in range(len(both.asked))) == both.unasked


@given(both=streams(line_end=b"\r\n"), places=PLACES)
def test_with_cr_lf_the_client_sees_the_same_events(both: Streams, places: list[int]) -> None:
    """A cut in the middle of the last CR LF of the extra chunk leaves its LF behind, which means nothing."""
    assert filtered([both.asked]) == both.unasked
    assert events_of(filtered(cut(both.asked, places))) == events_of(both.unasked)


@given(data=st.lists(st.binary(max_size=12) | st.sampled_from([b"\n\n", b"\r\n\r\n", b"data: ", DONE])))
def test_bytes_that_name_no_usage_pass_as_they_are(data: list[bytes]) -> None:
    assert filtered(data) == b"".join(data)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":7}}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":7}}\n\n',
        b'data: {"choices":[],"usage":{}}\n\n',
        b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
        b'data: {"choices":[{"delta":{"content":"say \\"usage\\" or ,\\"usage\\":null"}}]}\n\n',
        b'data: {"error":{"message":"no \\"usage\\""}}\n\n',
        b'data: "usage"\n\n',
        b'data: {"usage"\n\n',
        b': "usage"\n\n',
    ],
)
def test_any_other_event_that_speaks_of_usage_passes_as_it_is(event: bytes) -> None:
    assert filtered([event + DONE]) == event + DONE
    assert filtered([event.rstrip(b"\n")]) == event.rstrip(b"\n")


def test_an_extra_chunk_at_the_very_end_without_its_blank_line_is_taken_out() -> None:
    assert filtered([DONE, USAGE_CHUNK.rstrip(b"\n")]) == DONE


def test_an_event_passes_as_soon_as_it_is_whole() -> None:
    usage_filter = UsageChunkFilter(LIMIT)
    first, second = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', DONE
    assert usage_filter.feed(first + second[:5]) == first
    assert usage_filter.feed(second[5:]) == second
    assert usage_filter.feed(USAGE_CHUNK) == b""


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
def test_an_event_that_is_too_large_to_be_looked_at_is_not_lost(step: int) -> None:
    large = b'data: {"choices":[{"delta":{"content":"' + b"a" * 500 + b'"}}]}\n\n'
    stream = DONE + large + DONE
    assert filtered((stream[i : i + step] for i in range(0, len(stream), step)), limit=100) == stream


def test_no_more_is_held_than_one_event_may_be_large() -> None:
    usage_filter = UsageChunkFilter(100)
    fed = passed = 0
    for _ in range(1_000):
        fed += 10
        passed += len(usage_filter.feed(b"a" * 10))
        assert fed - passed <= 110
    assert passed + len(usage_filter.finish()) == fed


CHAT_STREAMS = [case for case in fixtures.cases() if case.streaming and case.dialect == "chat_completions"]


@pytest.mark.parametrize("case", CHAT_STREAMS, ids=str)
def test_of_a_real_stream_only_the_extra_chunk_is_taken_out(case: Case) -> None:
    left = events_of(filtered([case.body]))
    taken = [event for event in events_of(case.body) if event not in left]
    for _, data in taken:
        assert data is not None
        chunk = json.loads(data)
        assert chunk.get("usage", 0) is None or (chunk["choices"] == [] and chunk["usage"])
