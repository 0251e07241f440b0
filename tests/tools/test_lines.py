"""Lines of a program's output."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.tools.lines import Lines, TooLarge


@given(st.lists(st.binary(max_size=20)), st.integers(1, 7))
def test_lines_are_the_same_however_the_bytes_are_cut(parts: list[bytes], size: int) -> None:
    whole = b"\n".join(parts)
    lines = Lines(1 << 20)
    found = [line for start in range(0, len(whole), size) for line in lines.feed(whole[start : start + size])]
    expected = whole.split(b"\n")
    assert found + lines.finish() == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize(
    ("line", "id"),
    [
        ({"jsonrpc": "2.0", "id": 7, "result": "x" * 999}, 7),
        ({"result": "x" * 999, "jsonrpc": "2.0", "id": 7}, 7),
        ({"jsonrpc": "2.0", "result": {"id": 8, "x": "x" * 999}}, None),
        ({"result": "x" * 999, "id": "seven"}, None),
    ],
)
def test_a_line_that_is_too_large_says_whose_answer_it_was(line: object, id: int | None) -> None:
    lines = Lines(100)
    data = json.dumps(line).encode() + b"\nnext\n"
    found = [line for start in range(0, len(data), 30) for line in lines.feed(data[start : start + 30])]
    assert isinstance(found[0], TooLarge)
    assert found[0].id == id
    assert found[1:] == [b"next"]
