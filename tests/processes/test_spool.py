"""Spools of real processes: two in one folder, and a folder that is read-only for a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import config, whole
from tests.processes.load import LONG, TIMEOUT, Load
from tests.support.database import locked
from tests.support.databases import SqliteDatabase
from tests.support.disks import Disk, mounted
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.upstream import ScriptedUpstream

BACK = "the database can be written to again"
pytestmark = TIMEOUT


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as disk:
        yield disk


def kill(proxy: Mitmdump) -> None:
    proxy.kill()
    assert proxy.wait() == -9


def test_two_processes_with_one_spool_record_each_answer_once(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """One of them is killed while the database is away. The other one writes what that has left."""
    upstream.handler = lambda _: whole()
    database = SqliteDatabase(tmp_path / "aibridge.db")
    spool = tmp_path / "spool"
    place = config(upstream.port, f"database: '{database.url}'\nrecording: {{spool: {{path: '{spool}'}}}}")
    killed, living = mitmdump(config=place), mitmdump(config=place)
    load = Load()
    with locked(database.path):
        with load.on(killed, living):
            load.last(20)
        assert len(list(spool.glob("*.log"))) == 2
        kill(killed)
    living.wait_for_log(BACK, LONG)
    load.assert_recorded(database)
    poll_until(lambda: not list(spool.glob("*.log")), LONG, what="an empty spool")
    assert "records lost" not in killed.log + living.log


def test_no_answer_is_missing_after_the_folder_of_the_spool_was_read_only(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, disk: Disk
) -> None:
    upstream.handler = lambda _: whole()
    place = config(upstream.port, f"recording: {{spool: {{path: '{disk.folder}'}}}}")
    proxy = mitmdump(config=place)
    load = Load()
    with load.on(proxy):
        load.wait_for(5)
        with locked(proxy.database):
            with disk.read_only():
                proxy.wait_for_log("the spool cannot be written to, records wait in memory", LONG)
                load.last()
            poll_until(lambda: list(disk.folder.glob("*.log")), LONG, what="a file of the spool")
            load.wait_for(5)
        proxy.wait_for_log(BACK, LONG)
        load.wait_for(5)
    load.assert_recorded(SqliteDatabase(proxy.database))
    assert "records lost" not in proxy.log
