"""Kill `aibridge export` and `aibridge import` in the middle, run them again, and measure the memory of an import."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from aibridge_addon import cli
from tests.recording.test_export import hours, rows
from tests.support.databases import Database, SqliteDatabase, write
from tests.support.examples import ENDED, PROMPT, STARTED, TOKENS
from tests.support.moves import exported, imported
from tests.support.polling import poll_until

ROOT = Path(cli.__file__).parents[2]
PROGRAM = "import sys; from aibridge_addon.cli import main; sys.exit(main(sys.argv[1:]))"
TABLES = ("aibridge_interceptions", "aibridge_token_usages", "aibridge_user_prompts")
KILLED = -9


def start(*arguments: str, stdin: int | None = None) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, stdin=stdin, stderr=pipe)


def run(*arguments: str) -> str:
    """Run a command that succeeds, and return what it reports."""
    with start(*arguments) as process:
        _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err.decode()
    return err.decode()


def kill_import(file: Path, database: Database) -> int:
    """Kill an import that has half of the file, and return how many rows it has inserted."""
    with start("import", "--database", database.url, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        lines = file.read_bytes().splitlines(keepends=True)
        process.stdin.writelines(lines[: len(lines) // 2])
        process.stdin.flush()
        poll_until(lambda: count_of(database, TABLES[1]) > 0, 60, what="a row of the second table")
        process.kill()
    assert process.returncode == KILLED
    return sum(count_of(database, table) for table in TABLES)


def kill_export(file: Path, database: Database) -> None:
    """Kill an export that has begun to write."""

    def has_begun() -> bool:
        with suppress(FileNotFoundError):
            return os.stat(f"{file}.part").st_size > 0
        return process.poll() is not None

    with start("export", str(file), "--database", database.url) as process:
        poll_until(has_begun, 60, what="a row")
        process.kill()
    assert file.exists() == (process.returncode == 0)  # it may have been faster


def count_of(database: Database, table: str) -> int:
    with suppress(sqlite3.Error, psycopg.Error):  # the import has not created the table yet
        return len(database.query(f"select 1 from {table}"))
    return 0


def lines_of(example: bytes, count: int) -> Iterator[bytes]:
    """Yield an export of `count` interceptions, made from one with a single interception, with ids of their own."""
    head, *rows, _ = example.splitlines(keepends=True)
    digest = hashlib.sha256(head)
    yield head
    for number, row in enumerate(rows):
        [id] = {json.loads(row).get("interception_id", json.loads(row)["id"])}
        for copy in range(count):
            line = row.replace(id.encode(), str(UUID(int=copy)).encode())
            if number:
                line = line.replace(json.loads(row)["id"].encode(), str(UUID(int=(number << 64) + copy)).encode())
            digest.update(line)
            yield line
    last = {"end": True, "rows": dict.fromkeys(TABLES, count), "sha256": digest.hexdigest()}
    yield json.dumps(last).encode() + b"\n"


def make_export(file: Path, count: int, prompt: str = "Hello") -> None:
    """Write an export with three rows for each interception."""
    source = SqliteDatabase(file.with_name(f"example-{count}.db"))
    write(source, STARTED, TOKENS, replace(PROMPT, prompt=prompt), ENDED)
    with file.open("wb") as opened:
        opened.writelines(lines_of(exported(source), count))


@pytest.mark.timeout(300)
def test_all_rows_arrive_exactly_once_although_the_import_and_the_export_are_killed(
    database: Database, tmp_path: Path
) -> None:
    count = 1_200
    made, file, last = tmp_path / "made.jsonl", tmp_path / "out.jsonl", SqliteDatabase(tmp_path / "last.db")
    make_export(made, count)
    partly = kill_import(made, database)
    assert count < partly < 3 * count
    assert f"there before: {partly}\n" in run("import", str(made), "--database", database.url)
    kill_export(file, database)
    assert f"rows exported: {3 * count}\n" in run("export", str(file), "--database", database.url)
    assert rows(file.read_bytes()) == rows(made.read_bytes())
    assert imported(last, file.read_bytes()) == (3 * count, 3 * count)
    assert hours(last) == hours(database)


def peak(*arguments: str) -> int:
    """Return the most memory that a command used, in bytes."""
    with start(*arguments) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("prompt", "small", "large"),
    [("Hello", 600, 4_000), ("x" * 2**16, 150, 700)],
    ids=["many rows", "long rows"],
)
def test_the_memory_of_a_move_does_not_depend_on_the_size_of_the_record(
    database: Database, tmp_path: Path, prompt: str, small: int, large: int
) -> None:
    file, out = tmp_path / "made.jsonl", tmp_path / "out.jsonl"
    peaks = []
    for count in (small, large):
        make_export(file, count, prompt)
        place = ("--database", database.url)
        peaks.append((peak("import", str(file), *place), peak("export", str(out), *place)))
    assert out.stat().st_size > 4 * small * len(prompt)
    grown = [large_peak - small_peak for small_peak, large_peak in zip(*peaks, strict=True)]
    assert max(grown) < 20 * 2**20, grown
