"""Kept values come back from every database: to other processes, until they expire, and not too many at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import datetime, timedelta

import psycopg
import pytest

from aibridge_addon.recording import reader as reading
from aibridge_addon.recording.postgres import reader as postgres_reader
from aibridge_addon.recording.postgres.reader import REST, PostgresReader
from aibridge_addon.recording.pruning import MAX_CONTINUATIONS
from aibridge_addon.recording.reader import BlockingReader
from aibridge_addon.recording.recorder import Store
from aibridge_addon.recording.sqlite import reader as sqlite_reader
from aibridge_addon.records import Continuation, DatabaseUnavailable, Record, Stored
from tests.support.databases import Database, PostgresDatabase, opened, prune
from tests.support.reading import NOON
from tests.support.relay import Relay

HOUR = timedelta(hours=1)
FAR = NOON + timedelta(days=365_000)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> Iterator[Store]:
    store = database.store(now=clock)
    store.open()
    yield store
    store.close()


@pytest.fixture
def reader(database: Database) -> Iterator[BlockingReader]:
    with closing(database.reader()) as reader:
        yield reader


def kept(key: str, text: str = "x", *, until: datetime = NOON + HOUR) -> Record:
    return Continuation(key, {"text": text}, until)


def test_values_come_back_with_the_time_when_they_expire(store: Store, reader: BlockingReader) -> None:
    store.write([kept("a", "Grüße 😀 \0"), kept("b"), kept("c")])
    found = reader.read(["a", "c", "missing"], NOON)
    assert {key: value.expires_at for key, value in found.items()} == {"a": NOON + HOUR, "c": NOON + HOUR}
    assert found["a"].value == '{"text":"Grüße 😀 \\u0000"}'.encode()


def test_the_last_value_of_a_key_counts(store: Store, reader: BlockingReader) -> None:
    store.write([kept("a", "1"), kept("a", "2")])
    assert reader.read(["a"], NOON)["a"].value == b'{"text":"2"}'
    store.write([kept("a", "3", until=NOON + 2 * HOUR)])
    found = reader.read(["a"], NOON)["a"]
    assert (found.value, found.expires_at) == (b'{"text":"3"}', NOON + 2 * HOUR)


def test_what_has_expired_is_not_read(store: Store, reader: BlockingReader) -> None:
    store.write([kept("a"), kept("b", until=NOON + 2 * HOUR)])
    assert set(reader.read(["a", "b"], NOON + HOUR)) == {"b"}


def test_one_read_is_bounded(store: Store, reader: BlockingReader, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sqlite_reader, postgres_reader):
        monkeypatch.setattr(module, "MAX_READ", 2_500)
    store.write([kept(key, "x" * 1_000) for key in "abc"])
    assert len(reader.read(["a", "b", "c"], NOON)) == 2


def test_expired_values_are_deleted_and_no_others(database: Database, store: Store, reader: BlockingReader) -> None:
    store.write([*[kept(f"old{n}") for n in range(MAX_CONTINUATIONS + 1)], kept("new", until=NOON + 2 * HOUR)])
    deleted = prune(database, NOON + HOUR, rows=timedelta(0), content=timedelta(0))
    assert deleted.rows == {"aibridge_continuations": MAX_CONTINUATIONS + 1}
    assert set(reader.read(["old0", "new"], NOON)) == {"new"}


def test_a_reader_may_be_closed_twice_and_reads_again(store: Store, reader: BlockingReader) -> None:
    store.write([kept("a")])
    for _ in range(2):
        assert set(reader.read(["a"], NOON)) == {"a"}
        reader.close()
        reader.close()


def test_a_database_without_tables_is_unavailable(database: Database, reader: BlockingReader) -> None:
    with pytest.raises(DatabaseUnavailable):
        reader.read(["a"], NOON)


# --- threads ----------------------------------------------------------------------------------------------------


class Hanging:
    """A reader whose reads last until it is closed."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        self._closed.wait(60)
        return {}

    def close(self) -> None:
        self._closed.set()


async def test_a_request_waits_for_a_database_that_hangs_for_a_few_seconds_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "TIMEOUT", 0.01)
    with closing(reading.AsyncReader(Hanging())) as reader:
        for _ in range(reading.THREADS + 1):
            with pytest.raises(DatabaseUnavailable, match="longer than"):
                await reader.read(["a"], NOON)


# --- PostgreSQL -------------------------------------------------------------------------------------------------


def test_a_reader_of_postgresql_cannot_write(postgres: PostgresDatabase) -> None:
    with opened(postgres), closing(postgres.reader()) as reader:
        reader.read(["a"], NOON)
        assert reader._connection is not None
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reader._connection.execute("delete from aibridge_continuations")


def test_a_restart_of_the_server_between_two_reads_is_not_noticed(postgres: PostgresDatabase) -> None:
    with opened(postgres) as store, closing(postgres.reader()) as reader:
        store.write([kept("a", until=FAR)])
        reader.read(["a"], NOON)
        postgres.server.restart()
        assert set(reader.read(["a"], NOON)) == {"a"}


def test_while_the_server_is_stopped_requests_do_not_wait_for_it(postgres: PostgresDatabase) -> None:
    now = 100.0
    with ExitStack() as stack:
        stack.enter_context(opened(postgres)).write([kept("a", until=FAR)])
        reader = stack.enter_context(closing(PostgresReader(postgres.url, clock=lambda: now)))
        postgres.server.stop()
        try:
            with pytest.raises(DatabaseUnavailable, match="refused"):
                reader.read(["a"], NOON)
        finally:
            postgres.server.start()
        now += REST / 2
        with pytest.raises(DatabaseUnavailable, match="no new attempt within 5 seconds"):
            reader.read(["a"], NOON)
        now += REST
        assert set(reader.read(["a"], NOON)) == {"a"}


def test_a_server_that_does_not_answer_is_unavailable(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_reader.PostgresConnection, "PATIENCE", 0.3)
    with opened(postgres), Relay(postgres.server.port) as relay, closing(postgres.via(relay.port).ledger()) as ledger:
        ledger.read(["a"], NOON)
        relay.lose_answers()
        with pytest.raises(DatabaseUnavailable, match=r"has not answered for 0\.3 seconds"):
            ledger.claim("a", NOON, FAR)
