"""Values and depth of JSON are counted as a decoder would find them, without building anything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aibridge_addon.wire import json_structure
from aibridge_addon.wire.json_structure import has_more_values, is_deeper

DEEP = b"[" * 300 + b"]" * 300


def values_of(value: Any) -> int:
    """Commas and brackets, which is what is counted."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(values_of, value))
    return 0


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


NAMES = st.text(alphabet='"\\[,a', max_size=3)
JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{},"\\ab\n'),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=40,
)


@example(value=["}", []], piece=2, block=1)
@given(value=JSON, piece=st.integers(min_value=2, max_value=40), block=st.integers(min_value=1, max_value=40))
def test_the_count_is_exact(value: Any, piece: int, block: int) -> None:
    data = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_structure, "PIECE", piece)
        patch.setattr(json_structure, "BLOCK", block)
        structure = b"".join(json_structure._structure(data))
        assert len(structure) - structure.count(b"]") - structure.count(b"}") == values_of(value)
        depth = depth_of(value)
        assert not is_deeper(data, depth)
        assert depth == 0 or is_deeper(data, depth - 1)


@pytest.mark.parametrize(
    ("data", "limit", "more"),
    [
        (b"[" + b"0," * 1000 + b"0]", 1000, True),
        (b"[" + b"0," * 998 + b"0]", 1000, False),
        (b'{"a":"' + b"a, b, [c]" * 1000 + b'"}', 1000, False),
        (b'{"a":"\\"' + b"a, b, [c]" * 1000 + b'\\\\"}', 1000, False),
        (b"[" + b"[]," * 400 + b"{}]", 1000, False),
        (b"[" + b"[]," * 600 + b"{}]", 1000, True),
        (b'{"a":0,' + b'"a":0,' * 1200 + b"}", 1000, True),
        (b"[" * 2001, 1000, True),
        (b"\\" * 4000, 1000, False),
        (b'"' * 4000, 1000, False),
    ],
)
def test_more_values_than_allowed_are_seen(data: bytes, limit: int, more: bool) -> None:
    assert has_more_values(data, limit) is more


@pytest.mark.parametrize(
    ("data", "deeper"),
    [
        (DEEP, True),
        (b"[" * 200 + b"]" * 200, False),
        (b'{"a":' * 201 + b"0" + b"}" * 201, True),
        (b'{"a":' * 199 + b"0" + b',"b":[0]}' * 199, False),
        (b"[" + b"[]," * 5000 + b"0]", False),
        (b'["' + b"[" * 5000 + b'"]', False),
        (b'["\\"' + b"[" * 5000 + b'"]', False),
        (b'["", ' + b" " * 40_000 + DEEP + b"]", True),
    ],
)
def test_what_is_nested_too_deeply_is_seen(data: bytes, deeper: bool) -> None:
    assert is_deeper(data, 200) is deeper
