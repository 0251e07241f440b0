"""`aibridge prune` and `aibridge purge`: what they delete, print and return."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon import cli
from aibridge_addon.cli import deletion
from aibridge_addon.records import utc_now
from tests.recording.test_pruning import fill, with_texts
from tests.support.databases import Database, SqliteDatabase, interceptions
from tests.support.examples import uid

DAY = timedelta(days=1)
AGES = [90 * DAY, 20 * DAY, timedelta(0)]


@pytest.fixture
def now() -> datetime:
    return utc_now()


@pytest.fixture
def filled(database: Database, now: datetime) -> Database:
    fill(database, AGES, now)
    return database


def run(capsys: pytest.CaptureFixture[str], place: Database, *arguments: str, code: int = 0) -> Any:
    """Run a command on a database, and return what it prints as JSON."""
    assert cli.main([*arguments, "--database", place.url, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def stays(place: Database) -> list[int]:
    return [n for n in range(len(AGES)) if uid(str(n)) in interceptions(place)]


def test_without_options_the_configured_retention_counts(
    filled: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "aibridge.yaml"
    file.write_text("recording: {retention: {content: 10d, rows: 80d}}\n")
    printed = run(capsys, filled, "prune", "--config", str(file))
    assert stays(filled) == [1, 2] and with_texts(filled) == {uid("2")}
    assert {"table": "aibridge_interceptions", "rows": 1, "texts": 1} in printed["rows"]
    assert printed["totals"] == {"rows": 6, "texts": 5}
    assert printed["dry_run"] is False and printed["rows_before"] < printed["content_before"]


def test_a_retention_of_0_deletes_nothing(filled: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "aibridge.yaml"
    file.write_text("recording: {retention: 0}\n")
    assert run(capsys, filled, "prune", "--config", str(file))["rows"] == []
    assert stays(filled) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "left", "texts"),
    [
        (["--older-than", "30d"], [1, 2], [1, 2]),
        (["--older-than", "2w"], [2], [2]),
        (["--content-older-than", "1h"], [0, 1, 2], [2]),
        (["--older-than", "30d", "--content-older-than", "1d"], [1, 2], [2]),
    ],
)
def test_options_replace_the_configured_retention(
    filled: Database, capsys: pytest.CaptureFixture[str], options: list[str], left: list[int], texts: list[int]
) -> None:
    announced = run(capsys, filled, "prune", *options, "--dry-run")
    assert stays(filled) == [0, 1, 2] and announced["dry_run"]
    done = run(capsys, filled, "prune", *options)
    assert done["rows"] == announced["rows"] and done["totals"] == announced["totals"]
    assert stays(filled) == left
    assert with_texts(filled) == {uid(str(n)) for n in texts}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "--older-than", "30"], "30d for days"),
        (["prune", "--older-than", "0"], "0 means for ever"),
        (["prune", "--older-than", "soon"], "such as 60d"),
        (["prune", "--database", "postgresql://127.0.0.1:1/x", "--vacuum"], "--vacuum is for SQLite"),
        (["purge", "--texts"], "--actor"),
        (["purge", "--actor", "ada"], "--texts --rows"),
        (["purge", "--actor", "ada", "--texts", "--rows"], "not allowed with"),
    ],
)
def test_wrong_use_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["prune"], ["purge", "--actor", "ada", "--rows"]], ids=lambda words: words[0])
def test_a_file_that_is_not_there_is_a_failure_and_is_not_made(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing.db"
    assert cli.main([*arguments, "--database", f"sqlite:///{path}"]) == 1
    assert "missing.db" in capsys.readouterr().err
    assert not path.exists()


def test_a_command_waits_for_another_process_and_not_for_ever(
    filled: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "WAIT", 0.1)
    monkeypatch.setattr(deletion, "POLL", 0.01)
    with filled.prunable() as other:
        assert other.take_turn()
        assert cli.main(["prune", "--older-than", "1d", "--database", filled.url]) == 1
    assert "another process deletes rows now: try again later" in capsys.readouterr().err
    assert stays(filled) == [0, 1, 2]


def test_progress_and_a_table_are_printed(
    filled: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "PROGRESS", 0.0)
    assert cli.main(["prune", "--older-than", "1d", "--database", filled.url]) == 0
    printed = capsys.readouterr()
    assert "deleted so far: rows=12 texts=0" in printed.err
    assert printed.out.splitlines()[-1].split() == ["total", "12", "0"]
    assert cli.main(["prune", "--older-than", "1d", "--dry-run", "--database", filled.url]) == 0
    assert capsys.readouterr().out == "nothing would be deleted\n"


def test_a_file_of_an_earlier_version_is_vacuumed_on_demand(
    tmp_path: Path, now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    place = SqliteDatabase(tmp_path / "aibridge.db")
    place.execute("create table before_us (a)")
    fill(place, AGES, now)
    assert cli.main(["prune", "--older-than", "30d", "--database", place.url]) == 0
    assert "aibridge prune --vacuum" in capsys.readouterr().err
    assert cli.main(["prune", "--older-than", "1d", "--vacuum", "--database", place.url]) == 0
    assert "aibridge prune --vacuum" not in capsys.readouterr().err
    assert place.query("pragma auto_vacuum") == [{"auto_vacuum": 2}]


@pytest.mark.parametrize(("what", "left"), [("--texts", [0, 1, 2]), ("--rows", [])])
def test_purge_deletes_what_it_announced(
    filled: Database, capsys: pytest.CaptureFixture[str], what: str, left: list[int]
) -> None:
    announced = run(capsys, filled, "purge", "--actor", "ada", what, "--dry-run")
    assert stays(filled) == [0, 1, 2] and len(with_texts(filled)) == 3
    done = run(capsys, filled, "purge", "--actor", "ada", what)
    assert done["totals"] == announced["totals"] and done["actor"] == "ada"
    assert stays(filled) == left and with_texts(filled) == set()


def test_purging_an_unknown_actor_is_no_failure(filled: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["purge", "--actor", "bob", "--rows", "--database", filled.url]) == 0
    printed = capsys.readouterr()
    assert "nothing is recorded of the actor 'bob' that could be deleted" in printed.err
    assert printed.out == "nothing deleted\n"
    assert stays(filled) == [0, 1, 2]
