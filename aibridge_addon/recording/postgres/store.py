"""Store records in PostgreSQL: one connection that writes, each batch as one transaction in one pipeline.

PostgreSQL reads every value from its text form: uuid, timestamptz, jsonb, boolean and numeric columns take the same
rows as SQLite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Literal, LiteralString

import psycopg

from aibridge_addon import records
from aibridge_addon.recording import rows
from aibridge_addon.recording.hourly_usage import changed_interceptions
from aibridge_addon.recording.instances import Instance
from aibridge_addon.recording.postgres.connection import (
    CONFLICTS,
    Connection,
    Silence,
    connect,
    parse,
    refuses,
    unavailable,
)
from aibridge_addon.recording.postgres.hourly_usage import counted
from aibridge_addon.recording.postgres.instances import end, register
from aibridge_addon.recording.postgres.migrations import migrate
from aibridge_addon.recording.postgres.text import text_form
from aibridge_addon.recording.postgres.threads import NOTE_THREAD, Threads
from aibridge_addon.recording.rows import KEPT, Row
from aibridge_addon.records import TokenUsage, utc_now

Known = Literal["keep", "replace", "conflict"]

PARAMETERS: Mapping[str, Any] = MappingProxyType(
    {
        "tcp_user_timeout": 30_000,  # milliseconds until a network that is gone is noticed
        "target_session_attrs": "read-write",  # a standby is no place for rows
    }
)
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "lock_timeout": "2500ms",  # less than an answer's end waits for its rows
        "statement_timeout": "60s",
        "idle_in_transaction_session_timeout": "60s",  # a process that hangs must not keep its locks
    }
)
PATIENCE = 3.0
"""Seconds without a byte from or to the server, after which it counts as away. A batch takes less than a second.

An answer's end waits longer for its rows, so they are in the spool when the client sees it.
"""
CONNECT_TIMEOUT = 3
"""The same for a new connection."""
LONG_PATIENCE = 15.0
LONG_CONNECT_TIMEOUT = 10
"""The same until the next batch is written, so that a slow server still takes what was spooled."""
ATTEMPTS = 5
"""Maximum number of times that a transaction is tried before its conflict with others means "away"."""

INTERCEPTIONS = "aibridge_interceptions"

SET_RESULT = """
update aibridge_tool_usages set result = %(result)s, metadata = metadata || %(metadata)s::jsonb
where interception_id = (select thread_parent_id from aibridge_interceptions where id = %(interception_id)s)
and provider_tool_call_id = %(call_id)s and not injected and result is null
and exists (select 1 from aibridge_interceptions where id = interception_id and content_deleted_at is null)
"""
"""Only calls of the thread's parent are updated, unless its texts were deleted."""

KEEP = """
insert into aibridge_continuations (key, value, expires_at, interception_id, initiator_id)
values (%(key)s, %(value)s, %(expires_at)s, %(interception_id)s, %(initiator_id)s)
on conflict (key) do update
set value = excluded.value, expires_at = excluded.expires_at, interception_id = excluded.interception_id,
    initiator_id = excluded.initiator_id
"""
OPENAI = frozenset({"chat_completions", "responses", "openai", "azure", "copilot"})
"""Dialects in which OpenAI counts tokens, and for records without a dialect the types of provider."""
CACHED = frozenset({"cache_read_input", "cache_creation_input", "prompt_cached"})
"""Names in the metadata that Coder's dashboard reads as numbers. A provider's own value would fail its panels."""


class PostgresStore:
    """Implements `recorder.Store` for PostgreSQL. A lost connection is made anew by the next write."""

    def __init__(self, url: str, *, durable: bool, now: Callable[[], datetime] | None = None) -> None:
        """Raises psycopg.ProgrammingError if libpq does not accept the URL."""
        self._url = parse(url)
        self._settings = dict(SETTINGS) | ({} if durable else {"synchronous_commit": "off"})
        self._clock = now
        self._now = now or utc_now
        self._connection: Connection | None = None
        self._was_silent = False
        """Whether the server was silent for too long since the last batch that was written."""

    def open(self) -> None:
        try:
            self._connected()
        except psycopg.Error as e:
            raise unavailable(self._url, e) from e

    def write(self, batch: Sequence[records.Record]) -> None:
        self._repeat(lambda connection: self._write_once(connection, batch))
        self._was_silent = False

    def register(self, instance: Instance) -> int:
        left_open = self._repeat(lambda connection: register(connection, instance, self._clock))
        return self._repeat(lambda connection: end(connection, left_open)) if left_open else 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> Connection:
        if self._connection is not None and self._connection.closed:
            self._connection = None
        patience = LONG_PATIENCE if self._was_silent else PATIENCE
        if self._connection is None:
            parameters = {
                **PARAMETERS,
                "connect_timeout": LONG_CONNECT_TIMEOUT if self._was_silent else CONNECT_TIMEOUT,
            }
            connection = connect(self._url, parameters=parameters, settings=self._settings, patience=patience)
            try:
                migrate(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        self._connection.patience = patience
        return self._connection

    def _repeat[Result](self, transaction: Callable[[Connection], Result]) -> Result:
        """Repeat a transaction after a conflict, and once if the connection turns out to be broken.

        Raises:
            DatabaseUnavailable: It may have been committed.
        """
        try:
            for attempt in range(1, ATTEMPTS + 1):
                used_before = self._connection is not None
                connection = self._connected()
                try:
                    return transaction(connection)
                except psycopg.Error as e:
                    broken = used_before and connection.closed and not isinstance(e, Silence)
                    if not (broken or e.sqlstate in CONFLICTS) or attempt == ATTEMPTS:
                        raise
        except psycopg.Error as e:
            if refuses(e):
                raise
            self._was_silent |= isinstance(e, Silence | psycopg.errors.ConnectionTimeout)
            self.close()  # the next connection may be to another server
            raise unavailable(self._url, e) from e
        raise AssertionError

    def _write_once(self, connection: Connection, batch: Sequence[records.Record]) -> None:
        """Write a batch as one transaction, in three round trips at most. `Connection.transaction()` has two more."""
        try:
            with connection.pipeline():
                connection.execute("begin")
                self._write(connection, batch)
                commit = connection.execute("commit")
            if commit.statusmessage != "COMMIT":
                raise psycopg.InternalError(f"the server answered a commit with {commit.statusmessage}")
        except BaseException:
            if not connection.closed:
                connection.rollback()
            raise

    def _write(self, db: Connection, batch: Sequence[records.Record]) -> None:
        threads = Threads(db, batch)
        if changed := changed_interceptions(batch):
            with counted(db, changed) as known:
                self._insert(db, batch, changed - known, threads)
        else:
            self._insert(db, batch, set(), threads)

    def _insert(self, db: Connection, batch: Sequence[records.Record], new: set[str], threads: Threads) -> None:
        """Collect rows by table and insert them. An interception that starts and ends in the batch is one insert."""
        pending = _Pending(new, threads)
        started = pending.started
        for record in batch:
            if isinstance(record, records.InterceptionStarted):
                started[record.id] = rows.started(record, threads.continued_by(record, started))
            elif isinstance(record, records.InterceptionEnded):
                threads.note(record.thread_keys, record.interception_id, record.ended_at)
                if record.interception_id in started:
                    started[record.interception_id] = rows.with_end(started[record.interception_id], record)
                else:
                    pending.ended.append(rows.ended(record) | {"id": record.interception_id, "model": record.model})
            elif isinstance(record, records.ToolResult):
                pending.results.append(rows.tool_result(record))
            elif isinstance(record, records.Continuation):
                pending.continuations.append(rows.continuation(record))
            elif (child := INSERTED.get(type(record))) is not None:
                table, build = child
                pending.children[table].append(build(record))
                if isinstance(record, records.ToolUsage):
                    threads.note(record.thread_keys, record.interception_id, record.created_at)
        pending.flush(db)


@dataclass(slots=True)
class _Pending:
    """Rows that were collected and not sent."""

    new: set[str]
    """Interceptions that count differently afterwards and that are not in the database yet."""
    threads: Threads
    started: dict[str, Row] = field(default_factory=dict)
    ended: list[Row] = field(default_factory=list)
    children: defaultdict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    results: list[Row] = field(default_factory=list)
    continuations: list[Row] = field(default_factory=list)

    def flush(self, db: Connection) -> None:
        """Send a statement for each row without waiting for the answers."""
        together: defaultdict[LiteralString, list[Row]] = defaultdict(list)
        for row in self.started.values():
            known: Known = "replace" if "ended_at" in row else "keep"
            together[_insert(INTERCEPTIONS, tuple(row), "conflict" if row["id"] in self.new else known)].append(row)
        for statement, begun in together.items():
            _execute(db, statement, begun)
        for table, inserted in self.children.items():
            _execute(db, _insert(table, tuple(inserted[0]), "keep"), inserted)
        if self.ended:
            _execute(db, _update(tuple(self.ended[0])), self.ended)
        _execute(db, SET_RESULT, self.results)
        _execute(db, NOTE_THREAD, self.threads.rows)
        # Several processes may write the same keys. They lock them in one order.
        _execute(db, KEEP, sorted(self.continuations, key=itemgetter("key")))


def _token_usage(record: TokenUsage) -> Row:
    """Return the row with cached tokens in its metadata, too, under the names that Coder's dashboard sums up."""
    if (record.dialect or record.provider) in OPENAI:
        cached = {"prompt_cached": record.cache_read_input_tokens}
    else:
        cached = {
            "cache_read_input": record.cache_read_input_tokens,
            "cache_creation_input": record.cache_write_input_tokens,
        }
    said = {name: value for name, value in record.extra.items() if name not in CACHED}
    return rows.token_usage(replace(record, extra={**said, **cached}))


INSERTED: Mapping[type, tuple[str, Callable[[Any], Row]]] = MappingProxyType(
    {**rows.INSERTED, TokenUsage: ("aibridge_token_usages", _token_usage)}
)


def _execute(db: Connection, statement: LiteralString, rows: Sequence[Row]) -> None:
    if rows:
        values = [{column: text_form(column, value) for column, value in row.items()} for row in rows]
        db.cursor().executemany(statement, values)


@lru_cache(maxsize=64)
def _insert(table: str, columns: tuple[str, ...], known: Known) -> LiteralString:
    """Return the statement. Names of tables and columns are ours.

    `known`: a row that was written before is kept, is replaced because this one may have more, or is a conflict with
    another transaction.
    """
    values = ", ".join(f"%({column})s" for column in columns)
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns)
    rule = {
        "keep": " on conflict (id) do nothing",
        "replace": f" on conflict (id) do update set {changes}",
        "conflict": "",
    }
    return f"insert into {table} ({', '.join(columns)}) values ({values}){rule[known]}"  # noqa: S608


@lru_cache(maxsize=64)
def _update(columns: tuple[str, ...]) -> LiteralString:
    assignments = ", ".join(
        f"{column} = coalesce(%({column})s, {column})" if column in KEPT else f"{column} = %({column})s"
        for column in columns
        if column not in ("id", "model")
    )
    return (
        f"update {INTERCEPTIONS} set {assignments},"  # noqa: S608 (names are ours)
        " model = case model when '' then coalesce(%(model)s, '') else model end where id = %(id)s"
    )
