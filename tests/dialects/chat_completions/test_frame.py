"""Texts that are found by what stands around them are those that JSON has."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects.chat_completions.frame import Frame
from aibridge_addon.dialects.chat_completions.reader import ChatCompletionsReader
from tests.support.soak import MANY


def chunk(delta: dict[str, Any], padding: str | None = None, *, index: int = 0, **members: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": members.pop("finish_reason", None)}
    added = {} if padding is None else {"obfuscation": padding}
    whole = {"id": "chatcmpl-1", "model": "m", "choices": [choice], **members, **added}
    return b"data: " + json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@pytest.mark.parametrize("paddings", [(None, None), ("x7", "Ab3kQ"), ("x7", "")])
def test_a_text_is_found(paddings: tuple[str | None, str | None]) -> None:
    frame = Frame.of(chunk({"content": " a"}, paddings[0]))
    assert frame is not None
    found = frame.text(chunk({"content": " größer"}, paddings[1]))
    assert found == (None if paddings[1] == "" else " größer")


@pytest.mark.parametrize(
    "raw",
    [
        chunk({"content": 'a "quoted" word'}),
        chunk({"content": "two\nlines"}),
        chunk({"content": "a"}, index=1),
        chunk({"content": "a"}, finish_reason="stop"),
        chunk({"content": "a", "tool_calls": []}),
        chunk({"content": None}),
        chunk({"content": "a"}, "x7"),
        chunk({"content": "a"})[:-2],
        chunk({"content": "a"}).replace(b'"a"', b'"\xff"'),
        chunk({"content": "a"}).replace(b'"a"', b'"\t"'),
        b'data: {"content":"a"}\n\n',
        b"data: [DONE]\n\n",
    ],
)
def test_what_differs_otherwise_is_left_to_json(raw: bytes) -> None:
    frame = Frame.of(chunk({"content": " a"}))
    assert frame is not None and frame.text(raw) is None


@pytest.mark.parametrize(
    "raw", [chunk({}), chunk({"content": "\\"}), chunk({"content": "a"}, x={"content": "b"}), b'{"content":"a']
)
def test_an_ambiguous_chunk_has_no_frame(raw: bytes) -> None:
    assert Frame.of(raw) is None


TEXTS = st.text(max_size=4) | st.sampled_from(["", "_call", '"content":"', "[DONE]", '"error', " a", "é"])
DELTAS = (
    st.fixed_dictionaries({"content": TEXTS})
    | st.fixed_dictionaries({"content": TEXTS, "refusal": st.none() | TEXTS})
    | st.fixed_dictionaries({"reasoning": TEXTS})
    | st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none() | TEXTS})
)
CHUNKS = st.builds(
    chunk,
    DELTAS,
    st.none() | st.none() | st.sampled_from(["x7", "Ab3", ""]),
    index=st.sampled_from([0, 0, 0, 1]),
    service_tier=st.sampled_from(["default", "default", "priority", None]),
    finish_reason=st.sampled_from([None] * 6 + ["stop"]),
)


@MANY
@given(events=st.lists(CHUNKS, max_size=12))
def test_a_stream_is_read_as_if_every_chunk_was_decoded(events: list[bytes]) -> None:
    readings = []
    for may_skip in (True, False):
        reader = ChatCompletionsReader()
        for raw in events:
            if not (may_skip and reader.skip(raw)):
                reader.read("", json.loads(raw[len(b"data: ") :]))
        reader.read("", b"[DONE]")
        readings.append(reader.reading)
    assert readings[0] == readings[1]
