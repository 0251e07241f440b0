"""The hourly usage while several processes write to one PostgreSQL server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from aibridge_addon.recording.postgres import store as store_module
from aibridge_addon.records import Record
from tests.support.databases import PostgresDatabase, write
from tests.support.examples import ENDED, STARTED, TOKENS, uid
from tests.support.hourly_usage import hourly, summed
from tests.support.polling import poll_until
from tests.support.reading import NOON

USAGE = replace(TOKENS, kind="answer", cache_write_input_tokens=4, cost_usd=0.25, id=uid("t1"))


def written_at_once(postgres: PostgresDatabase, *batches: Sequence[Record]) -> None:
    """Write each batch on a connection of its own. The first one commits when all the others wait for it."""

    def work(batch: Sequence[Record]) -> None:
        with closing(postgres.store(now=lambda: NOON)) as store:
            store.open()
            assert store._connection is not None
            store._connection.execute("set lock_timeout = '60s'")
            store.write(batch)

    waits = f"select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = '{postgres.name}'"
    with psycopg.connect(postgres.url) as other, ThreadPoolExecutor(len(batches)) as pool:
        other.execute("lock table aibridge_hourly_usage in access exclusive mode")
        written = []
        for number, batch in enumerate(batches, 1):
            written.append(pool.submit(work, batch))
            poll_until(lambda n=number: postgres.server.administrate(waits)[0][0] >= n, 30, what=f"batch {number}")  # type: ignore[misc]
        other.rollback()
        for each in written:
            each.result(60)


def test_a_batch_whose_first_attempt_is_still_under_way_counts_once(postgres: PostgresDatabase) -> None:
    """The connection broke during the commit, and the server has not noticed it."""
    write(postgres)
    batch: list[Record] = [STARTED, USAGE, ENDED]
    written_at_once(postgres, batch, batch)
    assert hourly(postgres) == summed(postgres)
    assert sum(row["interceptions"] for row in hourly(postgres)) == 1


def test_of_two_ends_at_once_the_last_one_counts(postgres: PostgresDatabase) -> None:
    write(postgres, STARTED)
    later = replace(ENDED, ended_at=NOON + timedelta(hours=2))
    written_at_once(postgres, [USAGE, ENDED], [replace(USAGE, id=uid("t2")), later], [later, USAGE])
    assert hourly(postgres) == summed(postgres)
    assert sum(row["interceptions"] for row in hourly(postgres)) == 1


def test_processes_that_count_in_the_same_rows_do_not_block_each_other_for_ever(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "ATTEMPTS", 1)  # a deadlock fails the test
    write(postgres)
    processes, rounds, actors = 4, 5, 8
    barrier = threading.Barrier(processes)

    def work(process: int) -> None:
        with closing(postgres.store(now=lambda: NOON)) as store:
            store.open()
            barrier.wait(60)
            for round_ in range(rounds):
                names = [f"{process}.{round_}.{(actor + process) % actors}" for actor in range(actors)]
                for name in names:
                    begun = replace(STARTED, id=uid(name), initiator_id=f"actor {name[-1]}")
                    store.write([begun])
                usages = [replace(USAGE, interception_id=uid(name), id=uid(f"t{name}")) for name in names]
                store.write([*usages, *(replace(ENDED, interception_id=uid(name)) for name in names)])

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(work, range(processes)))
    assert hourly(postgres) == summed(postgres)
    assert [row["interceptions"] for row in hourly(postgres) if row["interceptions"]] == [processes * rounds] * actors
