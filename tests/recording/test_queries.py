"""Queries of reports: one view of the database, and the same SQL and values for all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aibridge_addon.config.load import load
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.queries import Queries
from aibridge_addon.records import DatabaseUnavailable
from tests.support.databases import Database, write
from tests.support.examples import ENDED, NOON_TEXT, STARTED, TOKENS, uid

IDS = "select id from aibridge_interceptions order by id"


def queries_of(url: str) -> Queries:
    return queries(load(None, environ={}, database=url))


def test_values_are_the_same_for_all_databases(database: Database) -> None:
    write(database, STARTED, replace(TOKENS, cost_usd=0.25), ENDED)
    condition = "id = :id and started_at <= :now and '100%' <> 'a:id'"
    values = {"id": STARTED.id, "now": NOON_TEXT}
    with queries_of(database.url) as rows:
        (found,) = rows.select(f"select * from aibridge_interceptions where {condition}", values)
        (usage,) = rows.select("select cost_usd, metadata from aibridge_token_usages")
    assert (found["id"], found["started_at"], found["streaming"], found["ended_at"] > NOON_TEXT) == (
        STARTED.id,
        NOON_TEXT,
        1,
        True,
    )
    assert isinstance(found["metadata"], str) and isinstance(usage["metadata"], str)
    assert usage["cost_usd"] is None or isinstance(usage["cost_usd"], float)


def test_all_queries_see_the_rows_of_the_first(database: Database) -> None:
    write(database, STARTED)
    with queries_of(database.url) as rows:
        before = list(rows.select(IDS))
        write(database, replace(STARTED, id=uid("i2")))
        assert list(rows.select(IDS)) == before == [{"id": STARTED.id}]
    with queries_of(database.url) as rows:
        outer = rows.select(IDS)
        assert [next(outer)["id"], *(row["id"] for row in rows.select(IDS))] == [STARTED.id, STARTED.id, uid("i2")]


def test_nothing_is_written(database: Database) -> None:
    write(database, STARTED)
    with queries_of(database.url) as rows, pytest.raises(DatabaseUnavailable, match=r"read-?only|DECLARE"):
        list(rows.select("delete from aibridge_interceptions returning id"))


def test_a_file_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"missing\.db"):
        queries_of(f"sqlite:///{tmp_path}/missing.db")
    assert not (tmp_path / "missing.db").exists()
