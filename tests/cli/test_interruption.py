"""Ctrl-C in a long command: it ends with what was done, with exit code 130, and without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon import cli
from aibridge_addon.cli import deletion
from aibridge_addon.recording.pruning import Batch, Execute, Prunable
from aibridge_addon.records import utc_now
from tests.cli.test_deletion import AGES
from tests.recording.test_pruning import fill
from tests.support.databases import Database, SqliteDatabase

INTERRUPTED = 130
PROGRAM = """
import signal, sys
from aibridge_addon.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored, as in background jobs
sys.exit(main(sys.argv[1:]))
"""
ROOT = Path(cli.__file__).parents[2]


@pytest.fixture
def filled(tmp_path: Path) -> SqliteDatabase:
    place = SqliteDatabase(tmp_path / "aibridge.db")
    fill(place, AGES, utc_now())
    return place


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    program = [sys.executable, "-c", PROGRAM, *arguments]
    with subprocess.Popen(program, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line.decode():
            return
    raise AssertionError(f"the command has ended without: {text}")


def interrupt(process: subprocess.Popen[bytes]) -> str:
    """Return what the command prints to stderr after Ctrl-C."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == INTERRUPTED
    assert b"Traceback" not in err
    return err.decode()


@pytest.mark.parametrize("arguments", [["prune", "--older-than", "1d"], ["purge", "--actor", "ada", "--rows"]])
def test_a_command_that_waits_for_its_turn_has_deleted_nothing(filled: SqliteDatabase, arguments: list[str]) -> None:
    with filled.prunable() as other:
        assert other.take_turn()
        with command(*arguments, "--database", filled.url) as process:
            lines_until(process, "another process deletes rows now")
            assert "interrupted: nothing was deleted" in interrupt(process)
    assert len(filled.query("select id from aibridge_interceptions")) == len(AGES)


@dataclass
class InterruptedLater:
    """A step whose second transaction is interrupted."""

    limit: int = 1
    first: int = 0
    done: list[str] = field(default_factory=list)

    def delete(self, database: Prunable, execute: Execute, limit: int, after: Any) -> Batch:
        [(id,)] = execute("select id from aibridge_token_usages order by id limit 1", {}).fetchall()
        execute("delete from aibridge_token_usages where id = :id", {"id": id})
        if self.done:
            raise KeyboardInterrupt
        self.done.append(str(id))
        return Batch(1, Counter({"aibridge_token_usages": 1}))

    def count(self, read: Execute) -> Batch:
        return Batch(0, Counter())


def test_transactions_before_the_interruption_are_counted_and_stay(database: Database) -> None:
    fill(database, AGES, utc_now())
    step = InterruptedLater()
    with database.prunable() as opened, pytest.raises(KeyboardInterrupt, match=r"rows=1 texts=0; the same command"):
        deletion.delete(opened, [step], dry_run=False)
    left = {row["id"] for row in database.query("select id from aibridge_token_usages")}
    assert len(left) == len(AGES) - 1 and step.done[0] not in left


def test_an_export_that_is_interrupted_leaves_no_file(filled: SqliteDatabase, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    os.mkfifo(f"{file}.part")
    with command("export", str(file), "--database", filled.url) as process:
        lines_until(process, "database: ")  # then it waits for a reader of the pipe
        assert "interrupted: the export is incomplete, rows exported so far: 0" in interrupt(process)
    assert not file.exists()


def test_an_import_that_is_interrupted_can_be_repeated(filled: SqliteDatabase, tmp_path: Path) -> None:
    exported = tmp_path / "out.jsonl"
    assert cli.main(["export", str(exported), "--database", filled.url]) == 0
    target = f"sqlite:///{tmp_path / 'other.db'}"
    with command("import", "--database", target) as process:
        assert process.stdin is not None
        lines = exported.read_bytes().splitlines(keepends=True)
        process.stdin.write(b"".join(lines[:-1]))
        process.stdin.flush()
        lines_until(process, "database: ")  # then it waits for the last line
        said = interrupt(process)
    assert "interrupted: rows read so far: " in said and "the same command inserts the rest" in said
    assert cli.main(["import", str(exported), "--database", target]) == 0
    assert SqliteDatabase(tmp_path / "other.db").query("select count(*) as n from aibridge_interceptions") == [{"n": 3}]
