"""What only the PostgreSQL store has: types, migrations by many processes, conflicts, and a server that goes away."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import get_args

import psycopg
import pytest
import trustme
from sqlite_utils import Database as SqliteFile

from aibridge_addon import records
from aibridge_addon.recording.postgres import migrations
from aibridge_addon.recording.postgres import store as store_module
from aibridge_addon.recording.postgres.connection import MAX_CONNECTIONS, refuses
from aibridge_addon.recording.postgres.store import ATTEMPTS, PostgresStore
from aibridge_addon.recording.recorder import Recorder
from aibridge_addon.recording.spool import Spool
from aibridge_addon.recording.sqlite.migrations import migrate as migrate_sqlite
from aibridge_addon.records import DatabaseUnavailable
from tests.support.database import Row, Table
from tests.support.databases import PostgresDatabase, interceptions
from tests.support.examples import ENDED, ID, INSTANCE, PROMPT, STARTED, STARTED_ROW, TOKENS, TOOL, called, started, uid
from tests.support.polling import poll_until
from tests.support.postgres import PASSWORD
from tests.support.reading import NOON
from tests.support.relay import Relay
from tests.support.together import run_together

OUR_IDS = frozenset({"id", "interception_id", "instance_id", "thread_parent_id", "thread_root_id"})
TYPES = {
    "metadata": "jsonb",
    "input": "jsonb",
    "streaming": "boolean",
    "groups": "jsonb",
    "reserved": "jsonb",
    "injected": "boolean",
    "truncated": "boolean",
    "cost_usd": "numeric",
    "hour": "timestamp with time zone",
}
BY_SQLITE_TYPE = {"text": "text", "integer": "bigint", "float": "double precision", "real": "double precision"}


@pytest.fixture
def store(postgres: PostgresDatabase) -> Iterator[PostgresStore]:
    with closing(postgres.store(now=lambda: NOON)) as store:
        store.open()
        yield store


# --- the schema -------------------------------------------------------------------------------------------------


def postgres_type(column: str, sqlite_type: str) -> str:
    if column in OUR_IDS and sqlite_type == "text":
        return "uuid"
    if column.endswith("_at"):
        return "timestamp with time zone"
    return TYPES.get(column) or BY_SQLITE_TYPE[sqlite_type]


def test_the_tables_are_those_of_sqlite_in_postgresqls_own_types(
    postgres: PostgresDatabase, store: PostgresStore
) -> None:
    file = SqliteFile(memory=True)
    migrate_sqlite(file)
    expected = {
        (table.name, column.name, postgres_type(column.name, column.type.lower()))
        for table in file.tables
        if not table.name.startswith("_")
        for column in table.columns
    }
    found = postgres.query(
        "select table_name, column_name, data_type from information_schema.columns"
        " join information_schema.tables using (table_schema, table_name)"
        " where table_schema = 'public' and table_type = 'BASE TABLE' and table_name not like '\\_%'"
    )
    assert {(row["table_name"], row["column_name"], row["data_type"]) for row in found} == expected


def test_values_can_be_used_in_their_types(postgres: PostgresDatabase, store: PostgresStore) -> None:
    store.write([STARTED, replace(TOKENS, cost_usd=0.1), replace(TOKENS, cost_usd=0.2), TOOL, ENDED])
    (row,) = postgres.query(
        "select sum(cost_usd)::text as usd, max(input ->> 'path') as path, bool_or(injected) as injected,"
        " max(ended_at - started_at)::text as took from aibridge_interceptions i"
        " join aibridge_token_usages t on t.interception_id = i.id"
        " join aibridge_tool_usages u on u.interception_id = i.id"
    )
    assert row == {"usd": "0.3", "path": "/é", "injected": False, "took": "00:00:01.5"}


@pytest.mark.parametrize(
    ("sent", "stored"),
    [("a\0b", "a\ufffdb"), ("\\u0000", "\\u0000"), ("\\\0", "\\\ufffd"), ("\\\\\0\\u0000", "\\\\\ufffd\\u0000")],
)
def test_the_character_nul_is_replaced_and_what_looks_like_its_escape_stays(
    postgres: PostgresDatabase, store: PostgresStore, sent: str, stored: str
) -> None:
    chain: list[records.Record] = [
        replace(STARTED, metadata={sent: [sent]}, initiator_id=sent),
        replace(TOOL, input=sent, thread_keys=(sent,)),
        replace(STARTED, id=uid("next"), initiator_id=sent, thread_keys=(sent,)),
    ]
    for record in chain:
        store.write([record])
    rows = interceptions(postgres)
    assert rows[ID]["metadata"] == {stored: [stored]}
    assert postgres.rows("aibridge_tool_usages")[0]["input"] == stored
    assert rows[uid("next")]["thread_parent_id"] == ID


def test_a_continuation_comes_back_byte_for_byte(postgres: PostgresDatabase, store: PostgresStore) -> None:
    """`jsonb` would sort the keys, and a prompt cache would not know the bytes."""
    value = {"z": 1.50, "a": ["\0", 1e22, "ü"], "long": "x" * 100_000}
    store.write([records.Continuation("k", value, NOON + timedelta(hours=1))])
    with closing(postgres.reader()) as reader:
        found = reader.read(["k", "other"], NOON)["k"]
    assert found.value.startswith(b'{"z":1.5,"a":["\\u0000",1e22,"\xc3\xbc"],"long":"xxx')
    assert found.expires_at == NOON + timedelta(hours=1)


# --- migrations -------------------------------------------------------------------------------------------------


def schema(postgres: PostgresDatabase) -> list[Row]:
    return postgres.query(
        "select table_name, column_name from information_schema.columns where table_schema = 'public' order by 1, 2"
    ) + postgres.query("select name, applied_at from _aibridge_migrations order by name")


def test_opening_again_changes_no_schema_and_no_row(postgres: PostgresDatabase, store: PostgresStore) -> None:
    store.write([STARTED, PROMPT])
    before = schema(postgres), [postgres.rows(table) for table in get_args(Table)]
    with closing(postgres.store()) as other:
        other.open()
    assert (schema(postgres), [postgres.rows(table) for table in get_args(Table)]) == before


def test_a_new_step_is_applied_to_a_database_that_has_the_others(
    postgres: PostgresDatabase, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write([STARTED])
    step = (
        "999_more",
        "alter table aibridge_interceptions add column more text; create index on aibridge_answers (id)",
    )
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, step))
    with closing(postgres.store()) as newer:
        newer.open()
        newer.write([ENDED])
    assert interceptions(postgres)[ID]["more"] is None
    assert [row["name"] for row in postgres.query("select name from _aibridge_migrations order by 1")][-1] == step[0]


def test_a_step_that_fails_leaves_nothing_behind(postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        migrations, "STEPS", (*migrations.STEPS, ("002_wrong", "alter table missing add column a text"))
    )
    with pytest.raises(DatabaseUnavailable, match='relation "missing" does not exist'):
        postgres.store().open()
    assert postgres.query("select to_regclass('aibridge_interceptions') as found") == [{"found": None}]


def test_a_database_that_a_newer_version_has_changed_is_not_written_to(
    postgres: PostgresDatabase, store: PostgresStore
) -> None:
    postgres.execute("insert into _aibridge_migrations (name) values ('999_more')")
    with closing(postgres.store()) as older, pytest.raises(DatabaseUnavailable, match=r"newer version .*999_more"):
        older.open()
    with pytest.raises(DatabaseUnavailable, match=r"newer version .*999_more"):
        postgres.prunable()


WRITER = """
import sys, threading
from tests.support.examples import called, started
from aibridge_addon.recording.postgres.store import PostgresStore
url, process = sys.argv[1:]
stores = [PostgresStore(url, durable=True) for _ in range(5)]
print("ready", flush=True); sys.stdin.readline()
written = []
def work(number):
    store = stores[number]
    store.open()
    for batch in range(5):
        keys = ["call-%d" % ((batch * 7 + number + n) % 10) for n in range(3)]
        name = f"p{process}s{number}b{batch}"
        store.write([started(name, after=keys[0]), *(called(name, key) for key in keys)])
        written.append(name)
    store.close()
threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
sys.exit(len(written) != 25)
"""


def test_ten_writers_may_open_an_empty_database_and_write_the_same_keys_at_once(postgres: PostgresDatabase) -> None:
    run_together(WRITER, [[postgres.url, str(number)] for number in range(2)], timeout=100)
    assert len(postgres.query("select name from _aibridge_migrations")) == len(migrations.STEPS)
    assert set(interceptions(postgres)) == {
        uid(f"p{process}s{number}b{batch}") for process in range(2) for number in range(5) for batch in range(5)
    }
    assert len(postgres.rows("aibridge_tool_usages")) == 150


def test_a_user_without_rights_to_create_may_open_a_database_that_is_up_to_date(
    postgres: PostgresDatabase, store: PostgresStore
) -> None:
    administrate = postgres.server.administrate
    administrate(f"create role writer login password '{PASSWORD}'")
    try:
        administrate("grant select, insert, update, delete on all tables in schema public to writer", postgres.name)
        with closing(PostgresStore(postgres.server.url(postgres.name, "writer"), durable=True)) as limited:
            limited.open()
            limited.write([STARTED])
    finally:
        administrate("drop owned by writer", postgres.name)
        administrate("drop role writer")
    assert interceptions(postgres) == {ID: STARTED_ROW}


# --- several processes ------------------------------------------------------------------------------------------


def test_a_call_that_another_process_recorded_is_found(postgres: PostgresDatabase, store: PostgresStore) -> None:
    store.write([started("root"), called("root", "t1")])
    with closing(postgres.store()) as other:
        other.open()
        other.write([started("second", after="t1")])
    assert interceptions(postgres)[uid("second")]["thread_root_id"] == uid("root")


def test_a_deadlock_is_repeated(postgres: PostgresDatabase, store: PostgresStore) -> None:
    later = NOON + timedelta(hours=1)
    store.write([records.Continuation(key, {"n": 0}, later) for key in "ab"])
    update = "update aibridge_continuations set value = 'other' where key = %s"
    waits = f"select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = '{postgres.name}'"
    with psycopg.connect(postgres.url) as other, ThreadPoolExecutor(1) as pool:
        other.execute(update, ["b"])
        written = pool.submit(store.write, [records.Continuation(key, {"n": 1}, later) for key in "ab"])
        poll_until(lambda: postgres.server.administrate(waits), what="the store's wait for `b`")
        try:
            other.execute(update, ["a"])  # the server ends one of the two transactions
        except psycopg.errors.DeadlockDetected:
            other.rollback()
        else:
            other.commit()
        written.result(60)
    values = {row["key"]: row["value"] for row in postgres.query("select key, value from aibridge_continuations")}
    assert values == {"a": '{"n":1}', "b": '{"n":1}'}


def test_many_that_write_the_same_continuations_at_once_do_not_fail(postgres: PostgresDatabase) -> None:
    later = NOON + timedelta(hours=1)
    keys = [f"k{n}" for n in range(40)]
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        with closing(postgres.store(now=lambda: NOON)) as store:
            store.open()
            barrier.wait(30)
            for round_ in range(10):
                order = keys[number * 10 :] + keys[: number * 10]
                store.write([records.Continuation(key, {"n": round_}, later) for key in order])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert {row["value"] for row in postgres.query("select value from aibridge_continuations")} == {'{"n":9}'}


CONFLICT = """
create sequence attempts;
create function conflict() returns trigger language plpgsql as $$
begin
    if nextval('attempts') <= {times} then
        raise exception 'conflict with another transaction' using errcode = '40001';
    end if;
    return new;
end $$;
create trigger conflict before insert on aibridge_user_prompts for each row execute function conflict();
"""


@pytest.mark.parametrize("times", [ATTEMPTS - 1, ATTEMPTS])
def test_a_serialization_failure_is_repeated_a_few_times(
    postgres: PostgresDatabase, store: PostgresStore, times: int
) -> None:
    postgres.execute(CONFLICT.format(times=times))
    if times == ATTEMPTS:
        with pytest.raises(DatabaseUnavailable, match="conflict with another transaction"):
            store.write([STARTED, PROMPT])
        assert interceptions(postgres) == {}
    store.write([STARTED, PROMPT])
    assert interceptions(postgres) == {ID: STARTED_ROW}
    assert len(postgres.rows("aibridge_user_prompts")) == 1


# --- a server that goes away ------------------------------------------------------------------------------------


@pytest.mark.parametrize("crash", [False, True], ids=["restart", "crash"])
@pytest.mark.parametrize("registers", [False, True], ids=["then a batch", "then a sign of life"])
def test_a_restart_between_two_transactions_is_not_noticed(
    postgres: PostgresDatabase, store: PostgresStore, crash: bool, registers: bool
) -> None:
    instance = replace(INSTANCE, pid=os.getpid())
    store.register(instance)
    store.write([replace(STARTED, instance_id=instance.id)])
    if crash:
        postgres.server.crash()
        postgres.server.start()
    else:
        postgres.server.restart()
    if registers:
        assert store.register(instance) == 0
    store.write([ENDED])
    assert interceptions(postgres)[ID]["status"] == "failed"


def test_a_stopped_server_is_unavailable_until_it_runs_again(postgres: PostgresDatabase, store: PostgresStore) -> None:
    store.write([STARTED])
    postgres.server.stop()
    try:
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable, match=r"PostgreSQL 127\.0\.0\.1/test_\d+: .*refused"):
                store.write([PROMPT, ENDED])
        with pytest.raises(DatabaseUnavailable, match="refused"):
            postgres.store().open()
    finally:
        postgres.server.start()
    store.write([PROMPT, ENDED])
    assert interceptions(postgres)[ID]["status"] == "failed" and len(postgres.rows("aibridge_user_prompts")) == 1


def test_a_store_that_could_not_be_opened_migrates_when_it_writes(postgres: PostgresDatabase) -> None:
    postgres.server.administrate(f"alter database {postgres.name} connection limit 0")
    with closing(postgres.store()) as store:
        try:
            with pytest.raises(DatabaseUnavailable, match="too many connections"):
                store.open()
            with pytest.raises(DatabaseUnavailable, match="too many connections"):
                store.write([STARTED])
        finally:
            postgres.server.administrate(f"alter database {postgres.name} connection limit -1")
        store.write([STARTED])
    assert interceptions(postgres) == {ID: STARTED_ROW}


def test_a_server_that_has_become_read_only_is_unavailable_until_it_is_not(
    postgres: PostgresDatabase, store: PostgresStore
) -> None:
    assert store._connection is not None
    store._connection.execute("set default_transaction_read_only = on")
    postgres.server.administrate(f"alter database {postgres.name} set default_transaction_read_only = on")
    try:
        with pytest.raises(DatabaseUnavailable, match="read-only transaction"):
            store.write([STARTED])
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            store.write([STARTED])
    finally:
        postgres.server.administrate(f"alter database {postgres.name} reset default_transaction_read_only")
    store.write([STARTED])
    assert interceptions(postgres) == {ID: STARTED_ROW}


def test_after_a_standby_was_promoted_rows_go_there(postgres: PostgresDatabase) -> None:
    primary = postgres.server
    with primary.standby() as standby:
        hosts = f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}"
        url = postgres.url.replace(f"127.0.0.1:{primary.port}", hosts)
        with closing(PostgresStore(url, durable=True)) as store:
            store.open()
            store.write([STARTED])
            primary.stop()
            try:
                with pytest.raises(DatabaseUnavailable, match=r"read-only|refused"):
                    store.write([ENDED])
                standby.administrate("select pg_promote()")
                store.write([ENDED])
                promoted = PostgresDatabase(standby, postgres.name)
                assert interceptions(promoted)[ID]["status"] == "failed"
            finally:
                primary.start()


def test_a_lock_of_another_program_is_unavailable_and_not_a_refusal(
    postgres: PostgresDatabase, store: PostgresStore
) -> None:
    assert store._connection is not None
    store._connection.execute("set lock_timeout = '10ms'")
    with psycopg.connect(postgres.url) as other:
        other.execute("lock table aibridge_interceptions in access exclusive mode")
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            store.write([STARTED])
    store.write([STARTED])
    assert interceptions(postgres) == {ID: STARTED_ROW}


def test_a_batch_whose_commit_was_not_confirmed_is_not_stored_twice(postgres: PostgresDatabase) -> None:
    batch: list[records.Record] = [STARTED, *(replace(r, id=uid("1")) for r in (PROMPT, TOKENS, TOOL)), ENDED]
    with (
        Relay(postgres.server.port) as relay,
        ThreadPoolExecutor(1) as pool,
        closing(postgres.via(relay.port).store()) as store,
    ):
        store.open()
        with psycopg.connect(postgres.url) as other:
            other.execute("lock table aibridge_hourly_usage in access exclusive mode")
            written = pool.submit(store.write, batch)
            poll_until(lambda: postgres.waits(), what="the last statement before the commit")
            relay.lose_answers()
        poll_until(lambda: interceptions(postgres), what="the commit")
        relay.cut()
        written.result(60)
    assert [len(postgres.rows(table)) for table in get_args(Table)[:4]] == [1, 1, 1, 1]


def test_a_server_that_does_not_answer_is_unavailable_until_it_does(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PATIENCE", 0.3)
    with Relay(postgres.server.port) as relay, closing(postgres.via(relay.port).store()) as store:
        store.open()
        relay.lose_answers()
        with pytest.raises(DatabaseUnavailable, match=r"has not answered for 0\.3 seconds"):
            store.write([STARTED])
        store.write([STARTED])
    assert interceptions(postgres) == {ID: STARTED_ROW}


def wait_for_interceptions(postgres: PostgresDatabase, n: int) -> None:
    count = "select count(*) as n from aibridge_interceptions"
    poll_until(lambda: postgres.query(count)[0]["n"] >= n, 60, what=f"{n} interceptions")


def test_crashes_while_records_are_written_lose_nothing_and_double_nothing(
    postgres: PostgresDatabase, tmp_path: Path
) -> None:
    spool = Spool(tmp_path, "database", max_bytes=2**30)
    recorder = Recorder(postgres.store(now=lambda: NOON), spool, INSTANCE, retry_delays=(0.05,))
    recorder.open()
    answers = 300

    def work() -> None:
        for number in range(answers):
            name = f"n{number}"
            recorder.emit([started(name), called(name, name)])
            recorder.emit([replace(TOKENS, interception_id=uid(name)), replace(ENDED, interception_id=uid(name))])
            poll_until(lambda: recorder.readiness().waiting < 20, 60, what="room")  # so that there are many batches

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        for seen in (50, 120, 200):
            wait_for_interceptions(postgres, seen)
            postgres.server.crash()
            postgres.server.start()
        working.result(60)
    recorder.close(60)
    assert recorder.lost == 0
    rows = interceptions(postgres)
    assert set(rows) == {uid(f"n{number}") for number in range(answers)}
    assert {row["status"] for row in rows.values()} == {"failed"}
    tables: tuple[Table, ...] = ("aibridge_token_usages", "aibridge_tool_usages")
    for table in tables:
        assert sorted(row["interception_id"] for row in postgres.rows(table)) == sorted(rows)


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("22003", True),  # numeric value out of range
        ("22P02", True),  # invalid text representation
        ("23503", True),  # foreign key violation
        ("54000", True),  # program limit exceeded
        ("08006", False),  # connection failure
        ("25006", False),  # read only
        ("28P01", False),  # invalid password
        ("3D000", False),  # no such database
        ("40001", False),  # serialization failure
        ("40P01", False),  # deadlock
        ("42501", False),  # insufficient privilege
        ("42P01", False),  # undefined table
        ("53100", False),  # disk full
        ("53300", False),  # too many connections
        ("55P03", False),  # lock not available
        ("57014", False),  # statement timeout
        ("57P01", False),  # the server is shut down
        ("57P03", False),  # the server starts up
        ("58030", False),  # input/output error
        ("XX000", False),
    ],
)
def test_only_errors_of_the_data_are_refusals(code: str, refused: bool) -> None:
    assert refuses(psycopg.errors.lookup(code)()) is refused


def test_an_error_without_a_code_is_no_refusal() -> None:
    assert not refuses(psycopg.OperationalError("connection is bad"))


def test_a_database_that_cannot_store_every_text_is_not_opened(postgres: PostgresDatabase) -> None:
    postgres.server.administrate("create database latin1 encoding LATIN1 template template0")
    try:
        with pytest.raises(DatabaseUnavailable, match="the encoding LATIN1, it has to be UTF8"):
            PostgresStore(postgres.server.url("latin1"), durable=True).open()
    finally:
        postgres.server.administrate("drop database latin1")


# --- connections ------------------------------------------------------------------------------------------------


def test_a_store_a_reader_a_ledger_the_tokens_and_a_pruner_have_one_connection_each(
    postgres: PostgresDatabase, store: PostgresStore
) -> None:
    later = NOON + timedelta(days=1)
    with (
        closing(postgres.reader()) as reader,
        closing(postgres.ledger()) as ledger,
        closing(postgres.tokens()) as tokens,
        ThreadPoolExecutor(8) as pool,
    ):
        for _ in range(3):
            store.write([STARTED])
            list(pool.map(lambda _: tokens.find(["x"]), range(8)))
            list(pool.map(lambda _: (reader.read(["x"], NOON), ledger.claim("x", NOON, later)), range(8)))
        with postgres.prunable():
            postgres.wait_for_connections(MAX_CONNECTIONS)
    store.close()
    postgres.wait_for_connections(0)


@pytest.mark.parametrize(("durable", "expected"), [(True, "on"), (False, "off")])
def test_a_commit_is_as_durable_as_wanted(postgres: PostgresDatabase, durable: bool, expected: str) -> None:
    with closing(postgres.store(durable=durable)) as store:
        store.open()
        assert store._connection is not None
        assert store._connection.execute("show synchronous_commit").fetchone() == (expected,)


def test_the_url_sets_tls_and_its_parameters_count_before_ours(postgres: PostgresDatabase) -> None:
    server = postgres.server
    options = f"?sslmode=verify-full&sslrootcert={server.ca}&application_name=mine&connect_timeout=7"
    with closing(PostgresStore(server.url(postgres.name, host="localhost", options=options), durable=True)) as store:
        store.open()
        assert store._connection is not None
        assert store._connection.pgconn.ssl_in_use
        assert store._connection.info.get_parameters()["connect_timeout"] == "7"
        assert store._connection.execute("show application_name").fetchone() == ("mine",)


def test_of_several_hosts_the_one_that_can_be_written_to_is_used(postgres: PostgresDatabase) -> None:
    hosts = f"127.0.0.1:1,127.0.0.1:{postgres.server.port}"
    url = postgres.url.replace(f"127.0.0.1:{postgres.server.port}", hosts)
    with closing(PostgresStore(url, durable=True)) as store:
        store.open()
        store.write([STARTED])
    assert interceptions(postgres) == {ID: STARTED_ROW}


def test_a_server_whose_certificate_is_not_trusted_gets_no_password(
    postgres: PostgresDatabase, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("ca") / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    url = postgres.server.url(postgres.name, options=f"?sslmode=verify-full&sslrootcert={other}")
    with pytest.raises(DatabaseUnavailable, match="certificate verify failed"):
        PostgresStore(url, durable=True).open()


@pytest.mark.parametrize("part", ["user", "database", "host"])
def test_no_message_contains_the_password(postgres: PostgresDatabase, part: str) -> None:
    url = {
        "user": postgres.server.url(postgres.name, "unknown"),
        "database": postgres.server.url("unknown"),
        "host": postgres.server.url(postgres.name, host="unknown.invalid"),
    }[part]
    with pytest.raises(DatabaseUnavailable, match=r"^PostgreSQL ") as raised:
        PostgresStore(url, durable=True).open()
    assert PASSWORD not in str(raised.value) and "p%40ss" not in str(raised.value)
    assert "unknown" in str(raised.value)
