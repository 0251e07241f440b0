"""Tests of `aibridge_addon/records/members.py`."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from aibridge_addon.records import Record
from aibridge_addon.records.members import replace


@pytest.mark.parametrize("kind", get_args(Record), ids=lambda kind: kind.__name__)
def test_a_copy_of_any_record_is_that_of_the_standard_library(kind: type) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    record = kind(*range(len(names)))
    for changes in ({}, *({name: "other"} for name in names), dict.fromkeys(names, "other")):
        copied, expected = replace(record, **changes), dataclasses.replace(record, **changes)
        assert [getattr(copied, name) for name in names] == [getattr(expected, name) for name in names]
        assert type(copied) is kind
