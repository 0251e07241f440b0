"""Rows of plans' limits: written, read, pruned, purged and moved like all others, in both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from aibridge_addon.config.load import load
from aibridge_addon.config.schema import Recording
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.plan_limits import COLUMNS, latest
from aibridge_addon.recording.preparation import Preparation
from aibridge_addon.recording.pruning import Pace, run
from aibridge_addon.recording.purging import rows_of
from aibridge_addon.records import PlanLimit
from tests.support.databases import Database, SqliteDatabase, prune, write
from tests.support.examples import NOON_TEXT, PLAN_LIMIT, uid
from tests.support.moves import exported, imported
from tests.support.reading import NOON

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def of(name: str, **more: object) -> PlanLimit:
    return replace(PLAN_LIMIT, id=uid(name), **more)  # type: ignore[arg-type]


def found(database: Database, **filters: object) -> list[tuple[object, ...]]:
    with queries(load(None, environ={}, database=database.url)) as rows:
        shown = latest(rows, **filters)  # type: ignore[arg-type]
    assert all(tuple(row) == COLUMNS for row in shown)
    return [(row["credential_hint"], row["window_name"], row["used_ratio"]) for row in shown]


def test_a_row_has_what_the_provider_said(database: Database) -> None:
    write(database, PLAN_LIMIT, PLAN_LIMIT, of("empty", used_ratio=None, limit_value=None, resets_at=None, metadata={}))
    [row, empty] = database.rows("aibridge_plan_limits")
    assert row == {
        "id": uid("limit"),
        "initiator_id": "ada",
        "provider_name": "anthropic",
        "credential_hint": "sk-a...0001",
        "window_name": "5h",
        "used_ratio": 0.42,
        "limit_value": 4_000_000.5,
        "remaining": None,
        "resets_at": "2026-01-02T17:00:00.000000+00:00",
        "observed_at": NOON_TEXT,
        "metadata": {"status": "allowed", "representative": True},
    }
    assert (empty["used_ratio"], empty["resets_at"], empty["metadata"]) == (None, None, {})


def test_the_latest_row_of_each_credential_and_window_is_found(database: Database) -> None:
    write(
        database,
        of("a", observed_at=NOON, used_ratio=0.5),
        of("b", observed_at=NOON - HOUR, used_ratio=0.4, initiator_id="bob"),
        of("c", observed_at=NOON, window_name="7d"),
        of("d", observed_at=NOON - DAY, credential_hint="sk-b...0002", used_ratio=None),
    )
    first, second = "sk-a...0001", "sk-b...0002"
    assert found(database) == [(first, "5h", 0.5), (first, "7d", 0.42), (second, "5h", None)]
    assert found(database, until=NOON) == [(first, "5h", 0.4), (second, "5h", None)]
    assert found(database, since=NOON - HOUR) == [(first, "5h", 0.5), (first, "7d", 0.42)]
    assert found(database, actors=["b*"]) == [(first, "5h", 0.4)]


def test_metadata_that_is_no_object_is_read_as_empty(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "aibridge.db")
    write(database, PLAN_LIMIT)
    for text in ("[1]", "{"):
        database.execute(f"update aibridge_plan_limits set metadata = '{text}'")
        with queries(load(None, environ={}, database=database.url)) as rows:
            assert latest(rows)[0]["metadata"] == {}


def test_a_database_of_an_older_version_has_none(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "aibridge.db")
    write(database)
    database.execute("drop table aibridge_plan_limits")
    assert found(database) == []


def test_rows_expire_by_their_age(database: Database) -> None:
    write(database, of("old", observed_at=NOON - 2 * DAY), of("new"))
    assert prune(database, NOON, rows=DAY).rows == {"aibridge_plan_limits": 1}
    assert [row["id"] for row in database.rows("aibridge_plan_limits")] == [uid("new")]


def test_rows_of_an_actor_are_purged(database: Database) -> None:
    write(database, of("a"), of("b", initiator_id="bob"))
    with database.prunable() as opened:
        assert opened.take_turn()
        run(opened, rows_of("ada", opened.tables()), Pace(clock=lambda: 0.0, wait=lambda _: False))
    assert [row["id"] for row in database.rows("aibridge_plan_limits")] == [uid("b")]


def test_rows_are_exported_and_imported_once(database: Database, tmp_path: Path) -> None:
    write(database, of("a"), of("b", observed_at=NOON - DAY, used_ratio=None, limit_value=1e15))
    there = SqliteDatabase(tmp_path / "there.db")
    assert imported(there, exported(database)) == (2, 2)
    assert imported(there, exported(database)) == (2, 0)
    assert there.rows("aibridge_plan_limits") == database.rows("aibridge_plan_limits")
    assert imported(SqliteDatabase(tmp_path / "new.db"), exported(database, NOON)) == (1, 1)


def test_patterns_of_the_operator_leave_the_names_of_windows() -> None:
    prepare = Preparation(Recording(redact=(r"\d+",)))
    prepared = prepare(replace(PLAN_LIMIT, metadata={"status": "allowed 1"}))
    assert isinstance(prepared, PlanLimit)
    assert (prepared.window_name, prepared.metadata) == ("5h", {"status": "allowed [redacted]"})
