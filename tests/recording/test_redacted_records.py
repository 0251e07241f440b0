"""No member of any record carries a secret to a sink, at any depth, and members that are added later do neither."""

from __future__ import annotations

import sqlite3
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from prometheus_client import generate_latest

from aibridge_addon import records
from aibridge_addon.config import schema
from aibridge_addon.recording.preparation import Preparation
from aibridge_addon.recording.sqlite.store import SqliteStore
from aibridge_addon.records import Record
from aibridge_addon.telemetry.prometheus.metrics import Metrics
from tests.support.examples import ID, STARTED
from tests.support.reading import NOON

SECRET = "sk-ant-api03-0123456789abcdefghij"
OWN = "patient-4711"
"""What the operator's pattern finds."""
KINDS = tuple(kind for kind in get_args(Record) if kind is not records.Continuation)
RECORDING = schema.Recording.model_validate({"redact": [r"patient-\d+"]})


def filled(kind: Any, name: str) -> Any:
    """Return a value of a type, with a secret and a match of the operator's pattern in each of its texts."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return filled(next(argument for argument in arguments if argument is not type(None)), name)
    if origin is Literal:
        return arguments[0]
    if origin is tuple:
        return (filled(arguments[0], name),) * 2
    if kind is Any or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {"a": f"x {SECRET}", f"{name}_{SECRET}": [{"b": [f"{OWN} {SECRET}"]}], f"other_{SECRET}": 1}
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{field.name: filled(hints[field.name], field.name) for field in fields(kind)})
    if kind is str:
        return ID if name in ("id", "interception_id") else f"{name} {OWN} key{SECRET}"
    values: dict[Any, Any] = {bool: True, int: 1, float: 1.0, datetime: NOON}
    return values[kind]


def texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list() | tuple():
            for element in value:
                yield from texts(element)
        case dict():
            for name, member in value.items():
                yield from texts(name)
                yield from texts(member)
        case _ if is_dataclass(value):
            for field in fields(value):
                yield from texts(getattr(value, field.name))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_member_of_a_prepared_record_has_a_secret(kind: type) -> None:
    record = filled(kind, "")
    assert not typing.get_type_hints(kind) or kind in (records.Tunnelled,) or SECRET in "\n".join(texts(record))
    prepared = Preparation(RECORDING)(record)
    assert not [text for text in texts(prepared) if SECRET in text]


def test_the_operators_patterns_change_all_but_our_own_names() -> None:
    prepared = Preparation(RECORDING)(filled(records.InterceptionStarted, ""))
    assert isinstance(prepared, records.InterceptionStarted)
    assert (OWN in prepared.initiator_id, OWN in prepared.model, OWN in str(prepared.metadata)) == (True, False, False)
    numbers = schema.Recording.model_validate({"redact": ["[0-9]+", "[a-z]+"]})
    same = Preparation(numbers)(STARTED)
    assert isinstance(same, records.InterceptionStarted)
    assert (same.id, same.initiator_id, same.credential_kind) == (ID, STARTED.initiator_id, "byok")


def test_ids_that_link_rows_still_do_after_redaction() -> None:
    prepare = Preparation(RECORDING)
    calls = [prepare(tool_usage(f"call_{SECRET}{end}")) for end in ("a", "b")]
    results = [prepare(tool_result(f"call_{SECRET}{end}")) for end in ("a", "b")]
    ids = [getattr(record, "provider_tool_call_id", "") for record in (*calls, *results)]
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]
    assert all(id.startswith("call_[redacted:") for id in ids)


def tool_usage(call_id: str) -> records.ToolUsage:
    return records.ToolUsage(ID, "msg_1", call_id, "Read", None, injected=False, created_at=NOON)


def tool_result(call_id: str) -> records.ToolResult:
    return records.ToolResult(ID, call_id, "done", is_error=False, truncated=False, created_at=NOON)


def test_no_row_and_no_metric_has_a_secret(tmp_path: Path) -> None:
    prepare = Preparation(RECORDING)
    prepared = [prepare(filled(kind, "")) for kind in KINDS]
    store = SqliteStore(tmp_path / "aibridge.db", durable=False, now=lambda: NOON)
    store.open()
    store.write(prepared)
    store.close()
    with closing(sqlite3.connect(tmp_path / "aibridge.db")) as connection:
        stored = "\n".join(connection.iterdump())
    metrics = Metrics(schema.Metrics())
    for record in prepared:
        metrics.emit(record)
    shown = generate_latest(metrics.registry).decode()
    assert "msg" not in shown
    assert all(stored.count(f'INSERT INTO "{table}"') == 1 for table in ("aibridge_interceptions", "aibridge_answers"))
    assert SECRET not in stored
    assert SECRET not in shown
    assert "[redacted" in stored
    assert "[redacted" in shown
