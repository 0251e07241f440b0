"""Spools of real processes: damaged by a crash, shared, beside files of others, and in a folder that is read-only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import ask, config, whole
from tests.processes.load import LONG, TIMEOUT, Load
from tests.support.database import locked, query
from tests.support.databases import SqliteDatabase
from tests.support.disks import Disk, mounted
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.upstream import ScriptedUpstream

ANSWERS = 6
BACK = "the database can be written to again"
pytestmark = TIMEOUT


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as disk:
        yield disk


def kill(proxy: Mitmdump) -> None:
    proxy.kill()
    assert proxy.wait() == -9


def token_rows(database: Path) -> int:
    return len(query(database, "select id from aibridge_token_usages"))


def test_what_is_damaged_in_a_spool_is_counted_and_all_else_is_recorded(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream
) -> None:
    """Of the token rows in the spool, one has a flipped bit, and one was cut in its middle by the crash."""
    upstream.handler = lambda _: whole()
    place = config(upstream.port, "recording: {spool: {path: spool}}")
    first = mitmdump(config=place)
    with locked(first.database):
        ask(first, ANSWERS)
        kill(first)
    spool = first.folder / "spool"
    [file] = spool.glob("*.log")
    lines = file.read_bytes().splitlines(keepends=True)
    usages = [number for number, line in enumerate(lines) if b'"TokenUsage"' in line]
    flipped, torn = usages[1], usages[-1]
    middle = len(lines[flipped]) // 2
    lines[flipped] = lines[flipped][:middle] + bytes([lines[flipped][middle] ^ 1]) + lines[flipped][middle + 1 :]
    file.write_bytes(b"".join(lines[:torn]) + lines[torn][: len(lines[torn]) // 2])
    empty = file.with_name(re.sub(r"\d+(?=\.log$)", "00000002", file.name))
    empty.touch()
    others = [spool / "notes.txt", spool / "notes.log", spool / "a.b.c.log", spool / "folder"]
    for other in others[:-1]:
        other.write_text("This is a letter, and no record at all.\n")
    others[-1].mkdir()

    second = mitmdump(config=place, folder=first.folder)
    poll_until(lambda: not file.exists(), LONG, what="the end of the spool's file")
    assert token_rows(second.database) == ANSWERS - 2
    second.wait_for_log("1 records lost so far: they are damaged in the spool", LONG)
    poll_until(lambda: not empty.exists(), LONG, what="the end of the empty file")
    assert all(other.exists() for other in others)
    ask(second)
    poll_until(lambda: token_rows(second.database) == ANSWERS - 1, LONG, what="the next answer")


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
