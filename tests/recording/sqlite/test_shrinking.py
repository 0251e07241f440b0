"""The file of a database gets smaller when rows are deleted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from aibridge_addon.recording.pruning import Pace, run
from aibridge_addon.recording.sqlite import pruning as sqlite_pruning
from aibridge_addon.recording.sqlite.pruning import SqlitePrunable, vacuum
from aibridge_addon.recording.sqlite.store import SqliteStore
from aibridge_addon.records import DatabaseUnavailable, Record
from tests.recording.sqlite.conftest import Open
from tests.support.databases import SqliteDatabase, prune
from tests.support.examples import ENDED, PROMPT, STARTED, uid
from tests.support.reading import NOON

DAY = timedelta(days=1)
TEXT = "long " * 2_000


def fill(store: SqliteStore) -> None:
    for n in range(100):
        batch: list[Record] = [
            replace(STARTED, id=uid(str(n))),
            replace(PROMPT, id=uid(f"p{n}"), interception_id=uid(str(n)), prompt=TEXT),
            replace(ENDED, interception_id=uid(str(n))),
        ]
        store.write(batch)


def size(path: Path) -> int:
    """Return the size of the file with everything that is in its log."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma wal_checkpoint(truncate)").fetchall()
    return path.stat().st_size


@pytest.mark.parametrize("what", ["rows", "content"])
def test_a_file_shrinks_while_the_proxy_has_it_open(path: Path, opened: Open, what: str) -> None:
    store = opened()
    fill(store)
    before = size(path)
    prune(SqliteDatabase(path), NOON + 2 * DAY, **{what: DAY})
    assert size(path) < before / 2
    store.write([replace(STARTED, id=uid("later"))])


def test_free_pages_are_given_back_in_bounded_steps(path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_pruning, "PORTION", 100)
    fill(opened())
    prune(SqliteDatabase(path), NOON)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("delete from aibridge_user_prompts")
    with SqlitePrunable(path) as database:
        left = [database.give_back() for _ in range(4)]
    assert left[-1] == 0 and left[0] - left[1] == 100


def test_a_run_whose_time_is_over_leaves_free_pages_to_the_next(path: Path, opened: Open) -> None:
    fill(opened())
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("delete from aibridge_user_prompts")
    with SqlitePrunable(path) as database:
        assert database.take_turn()
        assert not run(database, [], Pace(wait=lambda _: True)).complete
        assert run(database, [], Pace(wait=lambda _: False)).complete
        assert database.give_back() == 0


def test_a_file_of_an_earlier_version_shrinks_from_one_vacuum_on(path: Path, opened: Open) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table before_us (a)")
    store = opened()
    fill(store)
    place = SqliteDatabase(path)
    before = size(path)
    with SqlitePrunable(path) as database:
        assert not database.shrinks
    prune(place, NOON + DAY, content=timedelta(hours=1))
    assert size(path) >= before
    vacuum(path)
    assert size(path) < before / 2
    with SqlitePrunable(path) as database:
        assert database.shrinks
    store.write([replace(STARTED, id=uid("later"))])


def test_a_file_in_use_is_not_vacuumed(path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_pruning, "VACUUM_TIMEOUT", 0)
    opened()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(DatabaseUnavailable, match="locked"):
            vacuum(path)
