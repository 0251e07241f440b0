"""Where the context of requests went, read from the metadata of interceptions in both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aibridge_addon.config.load import load
from aibridge_addon.dialects import context
from aibridge_addon.recording.context import CATEGORIES, Schemas, context_of, last_context, schemas
from aibridge_addon.recording.database import queries
from aibridge_addon.records import Record
from tests.support.databases import Database, write
from tests.support.examples import STARTED, uid
from tests.support.reading import NOON

HOUR = timedelta(hours=1)


def begun(name: str, *, hours: int = 0, actor: str = "ada", **metadata: Any) -> Record:
    return replace(STARTED, id=uid(name), initiator_id=actor, started_at=NOON + hours * HOUR, metadata=metadata)


def found(database: Database, **filters: Any) -> list[Schemas]:
    with queries(load(None, environ={}, database=database.url)) as rows:
        return schemas(rows, **filters)


def test_the_categories_are_those_that_requests_are_divided_into() -> None:
    assert CATEGORIES == context.CATEGORIES


def test_categories_are_in_their_order() -> None:
    counts = {"history": 3, "system": 1, "unknown": 5}
    assert context_of({"context_bytes": counts}) == [("system", 1), ("history", 3)]


@pytest.mark.parametrize(
    "metadata",
    [None, "x", [], {}, {"context_bytes": None}, {"context_bytes": {"system": "1", "history": True, "other": -1}}],
)
def test_what_is_no_context_is_none(metadata: object) -> None:
    assert context_of(metadata) == []


def test_the_last_request_of_the_main_agent_counts() -> None:
    rows: list[dict[str, Any]] = [
        {"request_class": "prompt", "metadata": {"context_bytes": {"system": 1}}},
        {"request_class": "tool_result", "metadata": {"context_bytes": {"system": 2}}},
        {"request_class": "subagent", "metadata": {"context_bytes": {"system": 3}}},
        {"request_class": "auxiliary", "metadata": {"context_bytes": {"system": 4}}},
        {"request_class": None, "metadata": {}},
    ]
    assert last_context(rows) == [("system", 2)]
    assert last_context([]) == ()


def test_schemas_are_the_mean_of_the_requests_that_have_them(database: Database) -> None:
    write(
        database,
        begun("1", schema_bytes={"time": 400, "files": 4000}),
        begun("2", hours=1, schema_bytes={"time": 600}),
        begun("3", hours=2, actor="bob", schema_bytes={"time": 500}),
        begun("4", hours=3, context_bytes={"system": 9}),
        begun("5", note='"schema_bytes":1'),
    )
    assert found(database) == [Schemas("files", 1, 4000), Schemas("time", 3, 500)]
    assert found(database, since=NOON + HOUR) == [Schemas("time", 2, 550)]
    assert found(database, until=NOON + HOUR) == [Schemas("files", 1, 4000), Schemas("time", 1, 400)]
    assert found(database, actors=["b*"], models=["claude-*"]) == [Schemas("time", 1, 500)]
    assert found(database)[1].columns() == {
        "server_name": "time",
        "requests": 3,
        "schema_bytes": 500,
        "schema_tokens": 125,
    }
