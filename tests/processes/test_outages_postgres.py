"""A PostgreSQL database that is away, or disagrees, under load: no answer is broken, missing or doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import psycopg
import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import config, whole
from tests.processes.load import LONG, TIMEOUT, Load
from tests.support.databases import PostgresDatabase
from tests.support.outages import OUTAGES
from tests.support.polling import poll_until
from tests.support.postgres import ADMINISTRATOR
from tests.support.upstream import ScriptedUpstream

AWAY = "the database cannot be written to"
BACK = "the database can be written to again"
pytestmark = TIMEOUT


def test_no_answer_is_missing_after_terminated_connections_a_restart_and_all_outages_in_a_row(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, postgres: PostgresDatabase
) -> None:
    upstream.handler = lambda _: whole()
    proxy = mitmdump(config=config(upstream.port, f"database: {postgres.url}"))
    load = Load()
    with load.on(proxy):
        for _ in range(5):
            load.wait_for(3)
            postgres.server.disconnect(postgres.name)
        load.wait_for(3)
        postgres.server.restart()
        poll_until(lambda: proxy.log.count(BACK) == proxy.log.count(AWAY), LONG, what="the end of a restart")
        for name, outage in OUTAGES.items():
            load.wait_for(5)
            away = proxy.log.count(AWAY)
            with outage(postgres):
                poll_until(lambda: proxy.log.count(AWAY) > away, LONG, what=f"notice of: {name}")  # noqa: B023
                load.last(5)
            poll_until(
                lambda: proxy.log.count(BACK) == proxy.log.count(AWAY),
                LONG,
                what=f"the end of: {name}",
            )
        load.wait_for(5)
    load.assert_recorded(postgres)
    assert "records lost" not in proxy.log


Go = Callable[[psycopg.Connection[Any]], object]


def deadlock(other: psycopg.Connection[Any]) -> None:
    """Wait for what the transaction has locked that waits for us."""
    other.execute("lock table aibridge_interceptions in exclusive mode")


def change(other: psycopg.Connection[Any]) -> None:
    """Change the row that the transaction waits for."""
    other.execute("update aibridge_hourly_usage set interceptions = interceptions")


CONFLICTS: Mapping[str, tuple[str, Go, str]] = MappingProxyType(
    {
        "40P01": ("read committed", deadlock, "ERROR:  deadlock detected"),
        "40001": ("repeatable read", change, "ERROR:  could not serialize access due to concurrent update"),
    }
)


@contextmanager
def settings(postgres: PostgresDatabase, **values: str) -> Iterator[None]:
    """Set parameters of all sessions that begin meanwhile."""
    for name, value in values.items():
        postgres.server.administrate(f"alter database {postgres.name} set {name} = '{value}'")
    try:
        yield
    finally:
        postgres.server.administrate(f"alter database {postgres.name} reset all")


@pytest.mark.parametrize(("isolation", "go_on", "logged"), CONFLICTS.values(), ids=CONFLICTS)
def test_no_answer_is_missing_after_a_conflict_with_another_transaction(
    mitmdump: StartMitmdump,
    upstream: ScriptedUpstream,
    postgres: PostgresDatabase,
    isolation: str,
    go_on: Go,
    logged: str,
) -> None:
    """The other transaction has locked the hourly usage, for which the proxy's waits. That one fails."""
    upstream.handler = lambda _: whole()
    server = postgres.server
    before = server.log.count(logged)

    def conflict() -> bool:
        with psycopg.connect(server.url(postgres.name, ADMINISTRATOR), options="-c deadlock_timeout=1h") as other:
            other.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            other.execute("select from aibridge_hourly_usage for update")
            poll_until(postgres.waits, LONG, what="a transaction that waits")
            go_on(other)
        return server.log.count(logged) > before

    load = Load()
    with settings(postgres, deadlock_timeout="100ms", default_transaction_isolation=isolation):
        proxy = mitmdump(config=config(upstream.port, f"database: {postgres.url}"))
        with load.on(proxy):
            load.wait_for(5)
            poll_until(conflict, LONG, what=logged)
            load.wait_for(5)
        load.assert_recorded(postgres)
    assert "records lost" not in proxy.log
