"""The SQLite file: migrations, durability, several that use it at once, and a file that cannot be written to."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast, get_args
from zoneinfo import ZoneInfo

import pytest
from sqlite_utils import Database

from aibridge_addon.recording.reports import Question, tools
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite import store as store_module
from aibridge_addon.recording.sqlite.claims import SqliteLedger
from aibridge_addon.recording.sqlite.migrations import migrate, steps
from aibridge_addon.recording.sqlite.pruning import SqlitePrunable
from aibridge_addon.recording.sqlite.queries import SqliteQueries
from aibridge_addon.recording.sqlite.store import FIND_THREAD, SqliteStore
from aibridge_addon.records import DatabaseUnavailable, Record
from tests.recording.sqlite.conftest import Open
from tests.support.database import Table, query, read_table
from tests.support.databases import SqliteDatabase, prune
from tests.support.examples import (
    CHILD_ROWS,
    COMMON,
    ENDED,
    ID,
    INSTANCE,
    PROMPT,
    STARTED,
    STARTED_ROW,
    TOKENS,
    called,
    interceptions,
    started,
    uid,
)
from tests.support.reading import NOON
from tests.support.together import run_together

STEPS = [
    "001_initial",
    "002_continuations",
    "003_circumstances",
    "004_threads",
    "005_instances",
    "006_hourly_usage",
    "007_budgets",
    "008_retention",
    "009_tokens",
    "010_owners_of_continuations",
    "011_calls",
    "012_plan_limits",
    "013_tool_pins",
    "014_mcp_logins",
]


# --- the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durable", "synchronous"), [(True, 2), (False, 1)], ids=["FULL", "NORMAL"])
def test_the_file_is_in_wal_mode_and_a_commit_is_as_durable_as_wanted(
    path: Path, opened: Open, durable: bool, synchronous: int
) -> None:
    store = opened(durable=durable)
    assert query(path, "pragma journal_mode") == [{"journal_mode": "wal"}]
    assert store._db is not None  # what is asked for is a property of the connection
    assert store._db.execute("pragma synchronous").fetchone() == (synchronous,)


def test_what_is_deleted_is_overwritten(path: Path, opened: Open) -> None:
    store = opened()
    with SqlitePrunable(path) as prunable:
        assert store._db is not None  # what is asked for is a property of the connection
        for connection in (store._db.conn, prunable._db):
            assert connection.execute("pragma secure_delete").fetchone() == (1,)


def test_rows_can_be_read_while_the_store_is_open_and_stay_after_it_is_closed(path: Path, opened: Open) -> None:
    store = opened()
    store.write([STARTED])
    assert interceptions(path) == {ID: STARTED_ROW}
    store.close()
    store.close()
    assert interceptions(path) == {ID: STARTED_ROW}


def test_opening_again_changes_no_schema_and_no_row(path: Path, opened: Open) -> None:
    opened().write([STARTED, PROMPT])
    before = query(path, "select * from sqlite_master") + query(path, "select * from _sqlite_migrations")
    rows = [read_table(path, table) for table in get_args(Table)]
    opened()
    with closing(sqlite3.connect(path)) as connection:
        migrate(Database(connection))
    assert query(path, "select * from sqlite_master") + query(path, "select * from _sqlite_migrations") == before
    assert [read_table(path, table) for table in get_args(Table)] == rows


def test_a_file_that_a_newer_version_has_changed_is_not_written_to(path: Path, opened: Open) -> None:
    opened().write([STARTED])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "insert into _sqlite_migrations (migration_set, name, applied_at) values ('aibridge', '999_more', '')"
        )
    with pytest.raises(DatabaseUnavailable, match=r"newer version .*999_more"):
        SqliteStore(path, durable=True).open()
    with pytest.raises(DatabaseUnavailable, match=r"newer version .*999_more"):
        SqlitePrunable(path)


def test_a_file_that_is_migrated_by_another_process_is_waited_for(
    path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that reads all rows takes longer than a transaction may wait."""
    opened()

    def open_and_close() -> None:
        store = SqliteStore(path, durable=True)
        store.open()
        store.close()

    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("delete from _sqlite_migrations where name = '009_tokens'")
        connection.execute("drop table aibridge_tokens")
        connection.execute("drop table aibridge_token_key")
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_MS", 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(open_and_close)
            with pytest.raises(TimeoutError):
                opening.result(0.2)
            other.execute("commit")
            opening.result(30)


def test_a_continuation_that_sqlite_cannot_read_does_not_keep_a_file_from_being_migrated(path: Path) -> None:
    deep = '{"history":' + "[" * 5_000 + "]" * 5_000 + "}"
    with closing(Database(path)) as db:
        steps.apply(db, stop_before="005_instances")
        for key, value in (("deep", deep), ("background", '{"background":"i1"}')):
            db.execute("insert into aibridge_continuations (key, value) values (?, ?)", (key, value))
        db.conn.commit()
        migrate(db)
    found = query(path, "select key, interception_id from aibridge_continuations order by key")
    assert found == [{"key": "background", "interception_id": "i1"}, {"key": "deep", "interception_id": None}]


def test_metadata_that_is_no_json_does_not_keep_a_file_from_being_migrated(path: Path) -> None:
    with closing(Database(path)) as db:
        steps.apply(db, stop_before="011_calls")
        insert = "insert into aibridge_tool_usages (id, metadata, created_at) values (?, ?, ?)"
        for id, metadata in (("c1", "{"), ("c2", '{"result_is_error":true}')):
            db.execute(insert, (id, metadata, timestamp(NOON)))
        db.conn.commit()
        migrate(db)
    with SqliteQueries(path) as rows:
        assert [sums["failed"] for sums in tools(rows, Question((), ZoneInfo("UTC"))).values()] == [1]


def test_the_columns_are_those_that_dashboards_know(path: Path, opened: Open) -> None:
    opened()
    for table in ("aibridge_interceptions", *CHILD_ROWS):
        columns = {row["name"] for row in query(path, f"pragma table_info({table})")}
        expected = (
            STARTED_ROW if table == "aibridge_interceptions" else {"id": 0} | COMMON | CHILD_ROWS[cast(Table, table)][1]
        )
        assert columns == set(expected)


def test_many_threads_may_open_a_new_file_at_once(path: Path) -> None:
    threads = 8
    barrier = threading.Barrier(threads)

    def work(number: int) -> None:
        store = SqliteStore(path, durable=True)
        barrier.wait(30)
        store.open()
        store.write([started(f"i{number}")])
        store.close()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert set(interceptions(path)) == {uid(f"i{number}") for number in range(threads)}
    assert [row["name"] for row in query(path, "select name from _sqlite_migrations order by name")] == STEPS


def test_several_processes_may_open_a_new_file_at_once(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from aibridge_addon.recording.sqlite.store import SqliteStore;"
        "store = SqliteStore(Path(sys.argv[1]), durable=True);"
        "print('ready', flush=True); sys.stdin.readline(); store.open(); store.close()"
    )
    run_together(program, [[str(path)]] * 3, timeout=60)
    assert [row["name"] for row in query(path, "select name from _sqlite_migrations order by name")] == STEPS


def test_two_who_write_at_the_same_time_wait_for_each_other(path: Path) -> None:
    """A transaction that begins with a read and then writes would fail at once, however long it may wait."""

    def work(name: str) -> None:
        store = SqliteStore(path, durable=False, now=lambda: NOON)
        store.open()
        for number in range(150):
            store.write(
                [started(f"{name}{number}", after=f"{name}{number - 1}"), called(f"{name}{number}", f"{name}{number}")]
            )
        store.close()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ("a", "b")))
    rows = interceptions(path)
    assert len(rows) == 300
    assert all(rows[uid(f"{name}149")]["thread_root_id"] == uid(f"{name}0") for name in "ab")


def test_a_call_is_found_by_primary_keys_whatever_the_number_of_rows(path: Path, opened: Open) -> None:
    opened()
    plan = [row["detail"] for row in query(path, f"explain query plan {FIND_THREAD.replace('?', repr('key'))}")]
    assert len(plan) == 2 and all(step.startswith("SEARCH") for step in plan)
    assert "PRIMARY KEY (key=?)" in plan[0] and "(id=?)" in plan[1]


# --- a file that cannot be written to ---------------------------------------------------------------------------


def test_a_locked_file_is_unavailable_until_it_is_free_again(
    path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_MS", 0)
    store = opened()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(DatabaseUnavailable, match="locked"):
            store.write([STARTED])
        other.execute("rollback")
    store.write([STARTED])
    assert interceptions(path) == {ID: STARTED_ROW}


def test_a_full_disk_is_unavailable_until_there_is_room_again(path: Path, opened: Open) -> None:
    store = opened()
    assert store._db is not None
    store._db.execute("pragma max_page_count = 1")
    batch: list[Record] = [STARTED, replace(PROMPT, prompt="long " * 100_000)]
    with pytest.raises(DatabaseUnavailable, match="full"):
        store.write(batch)
    store._db.execute("pragma max_page_count = 1000000")
    store.write(batch)
    assert interceptions(path) == {ID: STARTED_ROW}


def test_a_file_that_is_locked_or_no_database_cannot_be_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_MS", 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin exclusive")
        with pytest.raises(DatabaseUnavailable, match=r"aibridge\.db: .*locked"):
            SqliteStore(path, durable=True).open()
    path.write_bytes(b"this is no database\n" * 100)
    with pytest.raises(DatabaseUnavailable, match="not a database"):
        SqliteStore(path, durable=True).open()


@pytest.mark.parametrize("name", [".", "missing/aibridge.db"])
def test_a_path_where_no_file_can_be_is_unavailable(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="unable to open"):
        SqliteStore(tmp_path / name, durable=True).open()


# --- a file that is deleted or replaced ---------------------------------------------------------------------------


def deleted(path: Path) -> None:
    path.unlink()


def deleted_with_its_log(path: Path) -> None:
    for file in path.parent.glob("aibridge.db*"):
        file.unlink()


def replaced_by_an_empty_file(path: Path) -> None:
    (path.parent / "empty").touch()
    (path.parent / "empty").rename(path)


def replaced_by_a_backup(path: Path) -> None:
    backup = path.parent / "backup.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("vacuum into ?", (str(backup),))
    with closing(sqlite3.connect(backup)) as connection:
        connection.execute("update aibridge_interceptions set client = 'backup'")
        connection.commit()
    backup.rename(path)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "change", [deleted, deleted_with_its_log, replaced_by_an_empty_file, replaced_by_a_backup, emptied]
)
@pytest.mark.parametrize("how", ["a write", "a sign of life"])
def test_a_file_that_is_deleted_or_replaced_in_use_is_noticed(
    path: Path, opened: Open, change: Callable[[Path], None], how: str
) -> None:
    """What was not reported as written goes to the new file, with the interceptions that have not ended.

    The others of the old file are gone with it.
    """
    store = opened()
    store.write([STARTED, started("done"), replace(ENDED, interception_id=uid("done"))])
    change(path)
    for _ in range(2):  # the second attempt opens the file anew
        with contextlib.suppress(DatabaseUnavailable):
            if how == "a write":
                store.write([started("i2")])
            else:
                store.register(INSTANCE)
    store.write([started("i2"), PROMPT])
    rows = interceptions(path)
    # SQLite restores an emptied file from its log.
    kept = {uid("done")} if change in (replaced_by_a_backup, emptied) else set[str]()
    assert set(rows) == {ID, uid("i2"), *kept}
    if change is replaced_by_a_backup:
        assert rows[ID]["client"] == "backup", "the old file's log was not applied to the new one"
    assert query(path, "pragma integrity_check") == [{"integrity_check": "ok"}]
    assert len(read_table(path, "aibridge_user_prompts")) == 1
    store.write([ENDED])
    assert interceptions(path)[ID]["status"] == ENDED.status


def test_a_claim_goes_to_the_file_that_is_there(path: Path, opened: Open) -> None:
    opened().write([STARTED])
    with closing(SqliteLedger(path)) as ledger:
        assert ledger.claim("a", NOON, NOON + timedelta(days=1))
        deleted_with_its_log(path)
        opened()
        assert ledger.claim("b", NOON, NOON + timedelta(days=1))
        assert [row["key"] for row in query(path, "select key from aibridge_continuations")] == ["b"]


def test_a_file_that_turns_into_something_else_is_unavailable_and_no_record_is_refused(
    path: Path, opened: Open
) -> None:
    store = opened()
    store.write([STARTED])
    path.unlink()
    path.write_bytes(b"This is a letter, and no database at all. " * 100)
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            store.write([PROMPT])
    deleted_with_its_log(path)
    store.write([PROMPT])
    assert len(read_table(path, "aibridge_user_prompts")) == 1


def test_a_report_over_a_month_reads_that_month_only(path: Path, opened: Open) -> None:
    """Without statistics, SQLite would read all token rows to group them by their interceptions' model."""
    store = opened()
    ids = [uid(f"i{number}") for number in range(500)]
    store.write([replace(STARTED, id=id, started_at=NOON + timedelta(hours=n)) for n, id in enumerate(ids)])
    store.write([replace(TOKENS, interception_id=id, cache_write_input_tokens=0) for id in ids])
    prune(SqliteDatabase(path), NOON)
    grouped = "select provider, i.model, sum(t.input_tokens) from aibridge_interceptions i"
    join = "join aibridge_token_usages t on t.interception_id = i.id"
    where = "where i.started_at between '2026-02-01' and '2026-03-01'"
    plan = query(path, f"explain query plan {grouped} {join} {where} group by 1, 2")
    assert not any("SCAN" in row["detail"] for row in plan), plan


# --- who may read it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_read_the_files_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = SqliteStore(path, durable=True)
        store.open()
        store.write([STARTED])
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("aibridge.db*")}
        store.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("aibridge.db", "aibridge.db-wal", "aibridge.db-shm"), 0o600)


def test_the_rights_of_an_existing_file_stay(path: Path) -> None:
    """A group may be meant to read it."""
    path.touch()
    path.chmod(0o640)
    store = SqliteStore(path, durable=True)
    store.open()
    store.write([STARTED])
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("aibridge.db*")} == {0o640}
    store.close()
