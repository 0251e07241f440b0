"""An SQLite file that is locked, moved away or without space under load: no answer is broken, missing or doubled."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import ask, begin, config, held, whole
from tests.integration.exchanges import ANTHROPIC, wait_for_ended
from tests.processes.load import LONG, TIMEOUT, Load
from tests.support.client import RawHttp1
from tests.support.database import locked, query
from tests.support.databases import SqliteDatabase
from tests.support.disks import Disk, mounted
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.upstream import Gate, ScriptedUpstream

AWAY = "the database cannot be written to"
BACK = "the database can be written to again"
IN_MEMORY = "the spool cannot be written to, records wait in memory"
pytestmark = TIMEOUT


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as disk:
        yield disk


def spooled(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.log"))


def test_no_answer_is_missing_after_a_lock(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    upstream.handler = lambda _: whole()
    proxy = mitmdump(config=config(upstream.port))
    load = Load()
    with load.on(proxy):
        load.wait_for(10)
        with locked(proxy.database):
            load.last(20)
            proxy.wait_for_log(AWAY, LONG)
        proxy.wait_for_log(BACK, LONG)
        load.wait_for(10)
    load.assert_recorded(SqliteDatabase(proxy.database))
    assert "records lost" not in proxy.log


# --- a disk that stalls


@pytest.mark.parametrize("place", ["database", "database and spool"])
def test_an_answer_whose_end_was_seen_while_the_disk_stalled_is_there_after_a_kill(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, tmp_path: Path, place: str
) -> None:
    """No lock times out: the writer is in the middle of a write. Only a spool on another disk is then of use."""
    upstream.handler = lambda _: whole()
    with mounted(tmp_path / "disk", image=tmp_path / "image") as disk:
        database = SqliteDatabase(disk.folder / "aibridge.db")
        spool = (tmp_path if place == "database" else disk.folder) / "spool"
        options = config(upstream.port, f"database: '{database.url}'\nrecording: {{spool: {{path: '{spool}'}}}}")
        proxy = mitmdump(config=options)
        ask(proxy, 2)
        with disk.frozen():
            ask(proxy, 2)
            stored = spooled(spool)
            proxy.kill()
        assert proxy.wait() == -9
        mitmdump(config=options)
        if place == "database":
            assert stored
            poll_until(lambda: len(completed(database.path)) == 4, LONG, what="four completed interceptions")
            assert len(used(database.path)) == len(set(used(database.path))) == 4
        else:
            assert not stored and len(completed(database.path)) >= 2


# --- a file that goes


def move_away(proxy: Mitmdump, place: Path) -> None:
    """Move the database's files to another folder, where they can be read."""
    place.mkdir()
    for file in sorted(proxy.folder.glob("aibridge.db*"), reverse=True):
        file.rename(place / file.name)


def completed(database: Path) -> set[object]:
    rows = query(database, "select id from aibridge_interceptions where status = 'completed'")
    return {row["id"] for row in rows}


def used(database: Path) -> list[object]:
    return [row["interception_id"] for row in query(database, "select interception_id from aibridge_token_usages")]


def test_no_answer_is_missing_after_the_file_was_moved_away(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Each answer is in the old file or in the new one. Those of the last write are in both."""
    upstream.handler = lambda _: whole()
    proxy = mitmdump(config=config(upstream.port))
    load = Load()
    with load.on(proxy):
        load.wait_for(20)
        move_away(proxy, tmp_path / "old")
        load.last(20)
        proxy.wait_for_log("deleted or replaced", LONG)
        proxy.wait_for_log(BACK, LONG)
        load.wait_for(20)
    assert not load.broken
    files = (tmp_path / "old" / "aibridge.db", proxy.database)

    def all_completed() -> bool:
        return len(set[object]().union(*map(completed, files))) == len(load.answers)

    poll_until(all_completed, LONG, what=f"{len(load.answers)} completed interceptions")
    for file in files:
        assert len(used(file)) == len(set(used(file))) and set(used(file)) == completed(file)
    assert "records lost" not in proxy.log


def test_an_answer_that_began_in_a_file_that_was_moved_away_ends_in_the_new_one(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    upstream.answer(held(gate), whole())
    proxy = mitmdump(config=config(upstream.port))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        begin(client)
        proxy.wait_for_rows("aibridge_interceptions", 1)
        move_away(proxy, tmp_path / "old")
        ask(proxy)
        wait_for_ended(proxy, 1, LONG)
        gate.open()
        client.read_body()
    rows = wait_for_ended(proxy, 2, LONG)
    assert [row["status"] for row in rows] == ["completed"] * 2
    assert len(set(used(proxy.database))) == 2


# --- no space


def test_no_answer_is_missing_after_the_disk_of_the_database_was_full(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, disk: Disk, tmp_path: Path
) -> None:
    upstream.handler = lambda _: whole()
    database = SqliteDatabase(disk.folder / "aibridge.db")
    spool = tmp_path / "spool"
    more = f"database: '{database.url}'\nrecording: {{spool: {{path: '{spool}'}}}}"
    proxy = mitmdump(config=config(upstream.port, more))
    load = Load()
    with load.on(proxy):
        for round in range(1, 3):
            load.wait_for(10)
            with disk.full():
                load.last()
                poll_until(lambda: proxy.log.count(AWAY) == round, LONG, what="a full disk")  # noqa: B023
                load.wait_for(10)
                assert spooled(spool)
            poll_until(lambda: proxy.log.count(BACK) == round, LONG, what="a disk with space")  # noqa: B023
        load.wait_for(10)
    load.assert_recorded(database)
    assert not spooled(spool)
    assert "records lost" not in proxy.log


def test_no_answer_is_missing_after_the_disk_of_the_database_and_the_spool_was_full(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, disk: Disk
) -> None:
    upstream.handler = lambda _: whole()
    database = SqliteDatabase(disk.folder / "aibridge.db")
    proxy = mitmdump(config=config(upstream.port, f"database: '{database.url}'"))
    load = Load()
    with load.on(proxy):
        load.wait_for(10)
        with disk.full():
            proxy.wait_for_log(IN_MEMORY, LONG)
            load.last()
        proxy.wait_for_log(BACK, LONG)
        load.wait_for(10)
    load.assert_recorded(database)
    assert "records lost" not in proxy.log


def test_what_is_in_memory_at_the_end_is_counted_and_logged_where_the_disk_is_full(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, disk: Disk
) -> None:
    upstream.handler = lambda _: whole()
    database = SqliteDatabase(disk.folder / "aibridge.db")
    place = config(upstream.port, f"database: '{database.url}'")
    proxy = mitmdump(config=place)
    load = Load()
    with disk.full():
        with load.on(proxy):
            proxy.wait_for_log(IN_MEMORY, LONG)
            load.wait_for(10)
        assert not load.broken
        proxy.terminate()
        assert proxy.wait(LONG) == 0
    lost = proxy.wait_for_log(r"(\d+) records lost so far: neither the database nor the spool could be written to")
    assert int(lost[1]) > 0
    again = mitmdump(config=place)
    ask(again)
    poll_until(lambda: completed(database.path), LONG, what="a completed interception")


def test_no_answer_is_missing_after_a_quota_of_the_disk(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    """A limit of a file's size fails writes in the middle, as a quota does, and with an error that is not ENOSPC."""
    upstream.handler = lambda _: whole()
    proxy = mitmdump(config=config(upstream.port))
    load = Load()
    with load.on(proxy):
        load.wait_for(10)
        size = max(file.stat().st_size for file in proxy.folder.glob("aibridge.db*"))
        _, hard = resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (size + 10_000, hard))
        try:
            proxy.wait_for_log(AWAY, LONG)
            load.last()
        finally:
            resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (hard, hard))
        proxy.wait_for_log(BACK, LONG)
        load.wait_for(10)
    load.assert_recorded(SqliteDatabase(proxy.database))
    assert "records lost" not in proxy.log
