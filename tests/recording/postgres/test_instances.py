"""Instances that register, end and write at the same time on one PostgreSQL server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest

from aibridge_addon.recording.instances import Instance
from aibridge_addon.recording.postgres.store import PostgresStore
from tests.support.databases import PostgresDatabase, interceptions
from tests.support.examples import ENDED, ID, STARTED, uid
from tests.support.polling import poll_until
from tests.support.reading import NOON

OTHER_HOST = "other-host"
GONE = replace(STARTED, instance_id=uid("gone"))


def instance(name: str) -> Instance:
    return Instance(uid(name), OTHER_HOST, 4711, "1.0", NOON)


@pytest.fixture
def store(postgres: PostgresDatabase) -> Iterator[PostgresStore]:
    with closing(postgres.store(now=lambda: NOON)) as store:
        store.open()
        yield store


def registered_while(postgres: PostgresDatabase, store: PostgresStore, happens: Callable[[], object]) -> int:
    """Have something happen between the search for living instances and the end of what the others left open."""
    waits = f"select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = '{postgres.name}'"
    with psycopg.connect(postgres.url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("lock table aibridge_continuations in access exclusive mode")
        ended: Future[int] = pool.submit(store.register, instance("b"))
        poll_until(lambda: postgres.server.administrate(waits), what="the search for open interceptions")
        happens()
        other.rollback()
        return ended.result(60)


def test_what_an_instance_that_registers_meanwhile_has_begun_stays_open(
    postgres: PostgresDatabase, store: PostgresStore
) -> None:
    def begin() -> None:
        postgres.execute(
            "insert into aibridge_instances (id, host, pid, started_at, heartbeat_at)"
            f" values ('{uid('a')}', '{OTHER_HOST}', 1, '{NOON}', '{NOON}')"
        )
        postgres.execute(
            "insert into aibridge_interceptions"
            " (id, initiator_id, provider, provider_name, model, client, started_at, metadata, instance_id)"
            f" values ('{ID}', 'ada', 'openai', 'openai', 'gpt', 'curl', '{NOON}', '{{}}', '{uid('a')}')"
        )

    assert registered_while(postgres, store, begin) == 0
    assert interceptions(postgres)[ID]["status"] is None
    assert store.register(instance("b")) == 0


def test_an_end_that_is_written_meanwhile_stays(postgres: PostgresDatabase, store: PostgresStore) -> None:
    store.write([GONE])

    def end() -> None:
        postgres.execute(f"update aibridge_interceptions set status = 'completed', ended_at = '{NOON}'")

    assert registered_while(postgres, store, end) == 0
    assert interceptions(postgres)[ID]["status"] == "completed"


def test_what_another_process_ends_now_is_left_to_it(postgres: PostgresDatabase, store: PostgresStore) -> None:
    store.write([GONE])
    with psycopg.connect(postgres.url) as other:
        other.execute("update aibridge_interceptions set status = 'completed'")
        assert store.register(instance("b")) == 0
        other.rollback()
    assert store.register(instance("b")) == 1


def test_of_many_instances_one_ends_what_was_left_open(postgres: PostgresDatabase, store: PostgresStore) -> None:
    names = [f"left{number}" for number in range(50)]
    store.write([replace(GONE, id=uid(name)) for name in names])
    stores = [postgres.store(now=lambda: NOON) for _ in range(5)]
    with ThreadPoolExecutor(len(stores)) as pool:
        ended = pool.map(lambda number: stores[number].register(instance(f"n{number}")), range(len(stores)))
        assert sum(ended) == len(names)
    for other in stores:
        other.close()
    assert {row["error_type"] for row in interceptions(postgres).values()} == {"process_ended"}
    store.write([replace(ENDED, interception_id=uid(name), status="completed") for name in names])
    assert {row["status"] for row in interceptions(postgres).values()} == {"completed"}
