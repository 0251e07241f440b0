"""Tests of `aibridge_addon/recording/sizes.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest

from aibridge_addon.recording.sizes import size_of
from aibridge_addon.records import PriceTerms, Record
from tests.support.examples import PROMPT, STARTED, TOKENS, TOOL


@pytest.mark.parametrize(
    "record",
    [
        lambda text: replace(PROMPT, prompt=text),
        lambda text: replace(STARTED, thread_keys=("a", text)),
        lambda text: replace(STARTED, metadata={text: 1}),
        lambda text: replace(TOOL, input=[[MappingProxyType({"a": [{"b": text}]})]]),
        lambda text: replace(TOKENS, terms=PriceTerms(requested={"a": text})),
    ],
    ids=["text", "key of a thread", "name", "value of a value", "member of a member"],
)
def test_each_character_of_a_record_counts(record: Callable[[str], Record]) -> None:
    assert size_of(record("x" * 1_000)) - size_of(record("x")) == 999


def test_what_is_nested_very_deep_is_counted() -> None:
    deep: list[object] = ["x" * 1_000]
    for _ in range(100_000):
        deep = [deep]
    assert size_of(replace(TOOL, input=deep)) - size_of(replace(TOOL, input=[])) == 1_000
