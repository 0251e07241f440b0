"""Move the record between databases: all rows arrive once, with their values, and a torn file is noticed."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from aibridge_addon import cli, records
from aibridge_addon.config.load import load
from aibridge_addon.recording.database import importer
from aibridge_addon.recording.export import ImportFailed, import_
from aibridge_addon.records import Record
from tests.support.databases import Database, SqliteDatabase, write
from tests.support.examples import ANSWER, ENDED, PROMPT, STARTED, THOUGHT, TOKENS, TOOL, uid
from tests.support.moves import exported, imported
from tests.support.reading import NOON

TEXTS = ("", "plain", "Grüße 😀", 'a "quoted"\ttext\\', "two\nlines\r\n", "'; drop table x; --", "\\N", "\x7f\u2028")
VALUES: tuple[Any, ...] = (None, True, 0, -1, 2**53 + 1, 0.1, 1.5e-7, "é", [], {"a": [{"b": None}]}, {"": ""})


def interception(chance: random.Random, number: int) -> list[Record]:
    """Return the records of one interception: some are open, and each has another number of details."""
    id = str(UUID(int=chance.getrandbits(128)))
    at = NOON + timedelta(seconds=chance.randrange(200_000), microseconds=chance.randrange(1_000_000))
    kept: dict[str, Any] = {"interception_id": id, "created_at": at}

    def text() -> str:
        return chance.choice(TEXTS) + str(number)

    def row_id() -> str:
        return str(UUID(int=chance.getrandbits(128)))

    made: list[Record] = [
        replace(
            STARTED,
            id=id,
            initiator_id=chance.choice(["ada", "bob"]),
            started_at=at,
            user_agent=chance.choice([None, text()]),
            billing=chance.choice([None, "api"]),
            metadata={text(): chance.choice(VALUES)},
        )
    ]
    for turn in range(chance.randrange(3)):
        cost = chance.choice([None, 0.1, 1e-7, 12.5])
        made.append(replace(TOKENS, **kept, id=row_id(), turn=turn, cost_usd=cost, output_tokens=chance.randrange(9)))
    for sequence in range(chance.randrange(3)):
        made += [
            replace(PROMPT, **kept, id=row_id(), prompt=chance.choice([None, text()]), sequence=sequence),
            replace(
                TOOL,
                **kept,
                id=row_id(),
                provider_tool_call_id=text(),
                input=chance.choice(VALUES),
                result=chance.choice([None, text()]),
                thread_keys=(text(),),
            ),
            replace(ANSWER, **kept, id=row_id(), content=text(), truncated=chance.random() < 0.5),
            replace(THOUGHT, **kept, id=row_id(), content=text()),
        ]
    if number % 5:
        made.append(replace(ENDED, interception_id=id, ended_at=at + timedelta(seconds=number)))
    return made


def fill(database: Database, seed: int, count: int = 40) -> None:
    chance = random.Random(seed)
    write(database, *(record for number in range(count) for record in interception(chance, number)))


def rows(data: bytes) -> list[str]:
    """Return the rows of an export in an order of their own, with JSON as values.

    Without what only PostgreSQL has, for Coder's dashboard.
    """
    found = []
    for line in data.splitlines()[1:-1]:
        row = json.loads(line)
        for name in ("metadata", "input"):
            if isinstance(row.get(name), str):
                row[name] = json.loads(row[name])
        if row["table"] == "aibridge_token_usages":
            for name in ("prompt_cached", "cache_read_input", "cache_creation_input"):
                row["metadata"].pop(name, None)
        found.append(json.dumps(row, sort_keys=True))
    return sorted(found)


def hours(database: Database) -> list[tuple[Any, ...]]:
    """Return the hourly usage of the interceptions that have ended."""
    table = database.query("select * from aibridge_hourly_usage")
    return sorted(tuple(round(v, 6) if isinstance(v, float) else v for v in row.values()) for row in table)


@pytest.fixture(params=["in SQLite", "in PostgreSQL", "from SQLite", "to SQLite"])
def move(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Database, Database]:
    """Two databases, of which the second is empty."""
    one = SqliteDatabase(tmp_path / "one.db")
    if request.param == "in PostgreSQL":
        return request.getfixturevalue("postgres"), request.getfixturevalue("other_postgres")
    if request.param == "in SQLite":
        return one, SqliteDatabase(tmp_path / "two.db")
    other = request.getfixturevalue("postgres")
    return (one, other) if request.param == "from SQLite" else (other, one)


@pytest.mark.parametrize("seed", range(2))
def test_all_rows_arrive_with_their_values_and_only_once(move: tuple[Database, Database], seed: int) -> None:
    source, target = move
    fill(source, seed)
    data = exported(source)
    read, inserted = imported(target, data)
    assert read == inserted == len(rows(data)) > 100
    assert rows(exported(target)) == rows(data)
    assert imported(target, data) == (read, 0)
    assert rows(exported(target)) == rows(data)


def test_hourly_usage_is_right_after_an_import(move: tuple[Database, Database]) -> None:
    source, target = move
    ended = [replace(ENDED, interception_id=uid(name)) for name in ("i1", "i2")]
    started = [replace(STARTED, id=uid(name)) for name in ("i1", "i2")]
    tokens = replace(TOKENS, kind="answer", model="m", cost_usd=0.25, cache_write_input_tokens=7)
    write(source, *started, replace(tokens, id=uid("t1")), replace(tokens, id=uid("t2"), turn=3), *ended)
    data = exported(source)
    imported(target, data)
    imported(target, data)
    assert hours(target) == hours(source)


def test_a_torn_file_is_noticed_and_the_whole_file_completes_it(database: Database, tmp_path: Path) -> None:
    source = SqliteDatabase(tmp_path / "source.db")
    fill(source, 3)
    data = exported(source)
    for end in (len(data) // 3, data.rindex(b"\n", 0, -1) + 1, len(data) - 1):
        with pytest.raises(ImportFailed, match="the file ends here"):
            imported(database, data[:end])
    read, inserted = imported(database, data)
    assert (read, inserted) == (len(rows(data)), 0)  # the last of the torn files had them all
    assert rows(exported(database)) == rows(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "line 1: the file ends here"),
        (lambda data: b"{}\n" + data, "line 1: not an export"),
        (lambda data: data.replace(b'"version":1', b'"version":9'), "version 9 of the format is not known"),
        (lambda data: data.replace(b"/src/app", b"/src/bpp"), "the checksum or the counts"),
        (lambda data: data.replace(b'"project"', b'"projects"'), "has no column 'projects' here"),
        (
            lambda data: data.replace(b'"table":"aibridge_interceptions"', b'"table":"sqlite_master"'),
            "an unknown table",
        ),
        (lambda data: data.replace(b'"streaming":1', b'"streaming":[1]'), "neither a text nor a number"),
        (lambda data: data.replace(b'"id":', b'"id" '), "line 2: not a JSON object"),
        (lambda data: data.replace(b"\n", b"\n[1]\n", 1), "line 2: not a JSON object"),
        (lambda data: data.replace(b'"table":', b'"tables":'), "line 2: a row without a table"),
        (lambda data: data.replace(b'"interception_id":', b'"of":'), "line 3: a row of aibridge_token_usages without"),
        (gzip.compress, "line 1: the file is compressed"),
        (lambda data: b"SQLite format 3\0" + bytes(100_000), "line 1: not an export"),
        (lambda data: b"\xff\xfe\n", "line 1: not an export"),
        (lambda data: data + b"{}\n", "line 5: not an export"),
        (lambda data: data + data[:-20], "line 8: the file ends here"),
        (lambda data: b"".join(data.splitlines(keepends=True)[:2]) + data, "line 3: another export begins here"),
    ],
)
def test_a_damaged_file_is_refused_with_the_line(database: Database, tmp_path: Path, change: Any, message: str) -> None:
    source = SqliteDatabase(tmp_path / "source.db")
    write(source, STARTED, TOKENS, ENDED)
    with pytest.raises(ImportFailed, match=message):
        imported(database, change(exported(source)))


def test_a_file_may_contain_several_exports(database: Database, tmp_path: Path) -> None:
    """As `cat one.jsonl two.jsonl` and `aibridge export >> all.jsonl` make them."""
    one, two = SqliteDatabase(tmp_path / "one.db"), SqliteDatabase(tmp_path / "two.db")
    for source, id in ((one, uid("i1")), (two, uid("i2"))):
        write(
            source,
            replace(STARTED, id=id),
            replace(TOKENS, id=id, interception_id=id),
            replace(ENDED, interception_id=id),
        )
    parts = [exported(one), exported(two), exported(one)]
    assert imported(database, b"".join(parts)) == (6, 4)
    assert rows(exported(database)) == sorted(rows(parts[0]) + rows(parts[1]))


def test_the_newest_interception_with_the_same_thread_key_counts(move: tuple[Database, Database]) -> None:
    source, target = move
    key = ("a call",)
    for minutes, name in ((0, "i1"), (10, "i2")):
        id, at = uid(name), NOON + timedelta(minutes=minutes)
        write(
            source,
            replace(STARTED, id=id, started_at=at),
            replace(TOOL, id=id, interception_id=id, created_at=at, thread_keys=key),
            replace(ENDED, interception_id=id, ended_at=at),
        )
        imported(target, exported(source))
    imported(target, exported(source))
    [thread] = target.query("select interception_id from aibridge_threads where key = 'a call'")
    assert thread["interception_id"] == uid("i2")


def test_a_row_that_the_database_refuses_is_named_and_those_before_it_are_inserted(
    database: Database, tmp_path: Path
) -> None:
    source = SqliteDatabase(tmp_path / "source.db")
    ids = [uid(f"i{number}") for number in range(5)]
    write(source, *(made for id in ids for made in (replace(STARTED, id=id), replace(ENDED, interception_id=id))))
    lines = exported(source).splitlines(keepends=True)
    changed = [*lines[:4], lines[4].replace(b'"streaming":1', b'"streaming":' + str(10**30).encode()), *lines[5:]]
    with pytest.raises(ImportFailed, match=r"^line 5: the database refuses .* 5 read, 3 inserted"):
        imported(database, b"".join(changed))
    assert {row["id"] for row in database.rows("aibridge_interceptions")} == {json.loads(x)["id"] for x in lines[1:4]}


def test_details_of_an_interception_that_retention_deletes_during_the_import_are_left_out(
    database: Database, tmp_path: Path
) -> None:
    source = SqliteDatabase(tmp_path / "source.db")
    kept: dict[str, Any] = {"interception_id": uid("kept")}
    write(
        source,
        *(STARTED, TOKENS, PROMPT, replace(TOOL, thread_keys=("a call",)), ANSWER, THOUGHT, ENDED),
        *(replace(STARTED, id=uid("kept")), replace(TOKENS, id=uid("t"), **kept), replace(ENDED, **kept)),
    )

    deleted: list[int] = []

    def delete_once(_rows: int) -> None:
        if not deleted:  # the interceptions were inserted, and none of their details
            database.execute(f"delete from aibridge_interceptions where id = '{STARTED.id}'")
            deleted.append(database.query("select count(*) as n from aibridge_token_usages")[0]["n"])

    target = importer(load(None, environ={}, database=database.url))
    target.open()
    try:
        done = import_(target, io.BytesIO(exported(source)), delete_once)
    finally:
        target.close()
    assert deleted == [0]
    assert done == (9, 3, 6)


def test_a_result_that_arrives_after_an_export_is_added_by_the_next(move: tuple[Database, Database]) -> None:
    source, target = move
    write(source, STARTED, replace(TOOL, id=uid("call"), result=None), ENDED)
    imported(target, exported(source))
    source.execute("update aibridge_tool_usages set result = 'late'")
    imported(target, exported(source))
    assert [row["result"] for row in target.rows("aibridge_tool_usages")] == ["late"]


def test_only_what_ended_since_then_is_exported(database: Database) -> None:
    for minutes, name in ((0, "i1"), (10, "i2")):
        at = NOON + timedelta(minutes=minutes)
        write(database, replace(STARTED, id=uid(name)), replace(ENDED, interception_id=uid(name), ended_at=at))
    lines = exported(database, NOON + timedelta(minutes=10)).splitlines()
    assert [json.loads(line)["id"] for line in lines[1:-1]] == [uid("i2")]
    assert len(exported(database, NOON).splitlines()) == 4


# --- commands -----------------------------------------------------------------------------------------------------


def test_the_commands_move_a_record_between_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = SqliteDatabase(tmp_path / "one.db"), SqliteDatabase(tmp_path / "two.db")
    fill(source, 4, 5)
    file = tmp_path / "record.jsonl"
    assert cli.main(["export", "--database", source.url, str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert cli.main(["import", "--database", target.url, str(file)]) == 0
    assert rows(exported(target)) == rows(file.read_bytes())
    assert f"inserted: {len(rows(file.read_bytes()))}, there before: 0" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-20])
    assert cli.main(["import", "--database", target.url, str(file)]) == 1
    assert "the file ends here" in capsys.readouterr().err


def test_an_export_does_not_replace_the_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = SqliteDatabase(tmp_path / "aibridge.db")
    write(source, STARTED, ENDED)
    link = tmp_path / "link.db"
    link.symlink_to(source.path)
    for name in (source.path, link):
        assert cli.main(["export", "--database", source.url, str(name)]) == 2
        assert "this is the database" in capsys.readouterr().err
    assert len(source.rows("aibridge_interceptions")) == 1


def test_an_export_writes_to_a_pipe_or_through_a_link_without_replacing_it(tmp_path: Path) -> None:
    source, pipe, link, file = (tmp_path / name for name in ("aibridge.db", "pipe", "link", "file"))
    write(database := SqliteDatabase(source), STARTED, ENDED)
    os.mkfifo(pipe)
    link.symlink_to(file)
    with open(os.open(pipe, os.O_RDWR), "rb", buffering=0) as reader:
        assert cli.main(["export", "--database", database.url, str(pipe)]) == 0
        assert rows(reader.read(2**16)) == rows(exported(database))
    assert cli.main(["export", "--database", database.url, str(link)]) == 0
    assert link.is_symlink() and rows(file.read_bytes()) == rows(exported(database))


def test_of_two_exports_to_one_file_the_second_fails_and_a_killed_one_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, file = SqliteDatabase(tmp_path / "aibridge.db"), tmp_path / "out.jsonl"
    write(source, STARTED, ENDED)
    arguments = ["export", "--database", source.url, str(file)]
    with open(f"{file}.part", "wb") as other:
        other.write(b"left behind" * 1000)
        fcntl.flock(other, fcntl.LOCK_EX)
        assert cli.main(arguments) == 1
        assert "another export writes this file" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    assert rows(file.read_bytes()) == rows(exported(source))
    assert file.stat().st_mode & 0o777 == 0o600


def test_wrong_use_and_what_is_missing_have_their_exit_codes(tmp_path: Path) -> None:
    missing = f"sqlite:///{tmp_path}/no.db"
    assert cli.main(["export", "--database", missing, str(tmp_path / "out.jsonl")]) == 1
    assert not (tmp_path / "out.jsonl").exists()
    assert cli.main(["import", "--database", missing, str(tmp_path / "no.jsonl")]) == 1
    assert cli.main(["export", "--database", "mysql://x"]) == 2
    with pytest.raises(SystemExit) as exit:
        cli.main(["export", "--since", "yesterday-ish"])
    assert exit.value.code == 2


def test_records_are_of_every_table() -> None:
    """Of the random records above."""
    kinds = {type(record) for number in range(40) for record in interception(random.Random(number), number)}
    assert kinds >= {records.TokenUsage, records.UserPrompt, records.ToolUsage, records.Answer, records.ModelThought}
