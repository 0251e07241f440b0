"""A PostgreSQL primary that is killed under load, and its standby that takes its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import StartMitmdump
from tests.integration.answers import config, whole
from tests.processes.load import LONG, Load
from tests.support.databases import PostgresDatabase
from tests.support.polling import poll_until
from tests.support.postgres import PostgresServer
from tests.support.upstream import ScriptedUpstream


@contextmanager
def synchronous(primary: PostgresServer) -> Iterator[None]:
    """Have each commit of the primary wait until the standby has it."""
    state = "select 1 from pg_stat_replication where sync_state = 'sync'"
    primary.administrate("alter system set synchronous_standby_names = '*'")
    try:
        primary.administrate("select pg_reload_conf()")
        poll_until(lambda: primary.administrate(state), LONG, what="synchronous replication")
        yield
    finally:
        primary.administrate("alter system reset synchronous_standby_names")
        primary.administrate("select pg_reload_conf()")


def test_no_answer_is_missing_or_doubled_after_the_primary_was_killed_and_the_standby_promoted(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, postgres: PostgresDatabase
) -> None:
    upstream.handler = lambda _: whole()
    primary = postgres.server
    with primary.standby() as standby:
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = postgres.url.replace(f"127.0.0.1:{primary.port}", hosts) + "?target_session_attrs=read-write"
        load = Load()
        with synchronous(primary):
            proxy = mitmdump(config=config(upstream.port, f"database: '{url}'"))
            with load.on(proxy):
                load.wait_for(20)
                primary.crash()
                try:
                    load.last()
                    proxy.wait_for_log("cannot be written to", LONG)
                    standby.administrate("select pg_promote()")
                    proxy.wait_for_log("can be written to again", LONG)
                    load.wait_for(10)
                finally:
                    primary.start()
        load.assert_recorded(PostgresDatabase(standby, postgres.name))
        assert "records lost" not in proxy.log
        proxy.close()
