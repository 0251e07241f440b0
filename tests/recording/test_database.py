"""The URL of the configuration chooses the database."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue

import pytest

from aibridge_addon.config.errors import ConfigError
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.urls import DatabaseUrl
from aibridge_addon.recording.database import continuation_reader, database_sink
from aibridge_addon.records import Continuation, Readiness, Sink
from tests.support.databases import Database, PostgresDatabase, interceptions
from tests.support.examples import ENDED, ENDED_ROW, ID, STARTED
from tests.support.outages import stopped
from tests.support.polling import poll_until
from tests.support.reading import NOON

LATER = NOON + timedelta(days=365_000)


def settings(url: str) -> Settings:
    return Settings(database=DatabaseUrl.parse(url))


async def test_rows_are_written_to_it_and_read_from_it(database: Database) -> None:
    sink = database_sink(settings(database.url), Readiness)
    sink.open()
    sink.emit([STARTED, ENDED, Continuation("key", {"a": 1}, LATER)])
    sink.close(60)
    assert sink.ended and sink.readiness().lost == 0
    [instance] = database.query("select id from aibridge_instances")
    assert interceptions(database) == {ID: ENDED_ROW | {"instance_id": str(instance["id"])}}
    with closing(continuation_reader(settings(database.url))) as reader:
        assert {key: kept.value for key, kept in (await reader.read(["key"], NOON)).items()} == {"key": b'{"a":1}'}


@pytest.mark.parametrize("query", ["unknown=1", "options=%zz", "sslmode"])
def test_a_url_that_libpq_does_not_accept_is_reported_without_its_password(query: str) -> None:
    wrong = settings(f"postgresql://ann:hunter2@localhost/x?{query}")
    for make in (lambda: database_sink(wrong, Readiness), lambda: continuation_reader(wrong)):
        with pytest.raises(ConfigError, match=r"database: found postgresql://ann:.*; allowed: a URL") as raised:
            make()
        assert "hunter2" not in str(raised.value)


def test_postgresql_without_its_driver_is_reported_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"psycopg is not installed.*\[postgres\]"):
        database_sink(settings("postgresql://localhost/x"), Readiness)


def flushed(sink: Sink) -> bool:
    done: SimpleQueue[bool] = SimpleQueue()
    sink.flush(done.put)
    return done.get(timeout=60)


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_without_a_home_folder_the_spool_needs_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    with pytest.raises(ConfigError, match=r"recording\.spool\.path: found null, and no home folder"):
        database_sink(settings("postgresql://localhost/x"), Readiness)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    database_sink(settings("postgresql://localhost/x"), Readiness)


def test_records_in_the_spool_go_to_the_same_database_with_other_parameters(
    postgres: PostgresDatabase,
) -> None:
    sink = database_sink(settings(postgres.url), Readiness)
    sink.open()
    with stopped(postgres):
        sink.emit([STARTED, ENDED])
        assert flushed(sink)
        sink.close(5)
    next_sink = database_sink(settings(f"{postgres.url}?application_name=next"), Readiness)
    next_sink.open()
    poll_until(lambda: interceptions(postgres), what="the interception")
    next_sink.close(60)
    assert interceptions(postgres)[ID]["status"] == "failed"
