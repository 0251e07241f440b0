"""What has expired is deleted, with all that belongs to it, and nothing else is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aibridge_addon.recording.expiry import INSTANCES_KEPT_FOR, Expiry
from aibridge_addon.recording.instances import Instance
from aibridge_addon.recording.pruning import (
    DELETED,
    MAX_BATCH,
    MAX_BUSY,
    Batch,
    Busy,
    Deleted,
    Execute,
    Interceptions,
    Pace,
    Prunable,
    Selection,
    backlog,
    begun_before,
    count,
    expired,
    run,
)
from aibridge_addon.recording.rows import DETAIL_TABLES
from aibridge_addon.records import Continuation, DatabaseUnavailable, Record, ToolResult
from tests.recording.conftest import OpenStore
from tests.support.databases import Database, PostgresDatabase, interceptions, opened, prune, write
from tests.support.examples import ANSWER, ENDED, PROMPT, STARTED, THOUGHT, TOKENS, TOOL, uid
from tests.support.reading import NOON

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
AT_ONCE = Pace(clock=lambda: 0.0, wait=lambda _: False)
COUNT = {table: f"select count(*) as n from {table}" for table in (*DETAIL_TABLES, "aibridge_interceptions")}


def chain(name: str, at: datetime, *, ended: bool = True) -> list[Record]:
    """Return the records of one interception that has a row in every table."""
    id = uid(name)
    children: list[Record] = [
        replace(TOKENS, id=uid(f"{name}/0"), interception_id=id, created_at=at),
        replace(PROMPT, id=uid(f"{name}/1"), interception_id=id, created_at=at),
        replace(TOOL, id=uid(f"{name}/2"), interception_id=id, created_at=at),
        replace(ANSWER, id=uid(f"{name}/3"), interception_id=id, created_at=at),
        replace(THOUGHT, id=uid(f"{name}/4"), interception_id=id, created_at=at),
    ]
    end = [replace(ENDED, interception_id=id, ended_at=at)] if ended else []
    return [replace(STARTED, id=id, started_at=at), *children, *end]


def remembered(waits: list[float]) -> Callable[[float], bool]:
    """Return what remembers for how long a run wants to wait, and does not wait."""

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return False

    return wait


def fill(place: Database, ages: Sequence[timedelta], now: datetime = NOON) -> None:
    write(place, *[record for n, age in enumerate(ages) for record in chain(str(n), now - age)])


def number(place: Database, table: str) -> int:
    return int(place.query(COUNT.get(table, f"select count(*) as n from {table}"))[0]["n"])


def orphans(place: Database) -> int:
    """Return the number of rows whose interception is gone."""
    gone = "interception_id not in (select id from aibridge_interceptions)"
    return sum(len(place.query(f"select id from {table} where {gone}")) for table in DETAIL_TABLES)


def with_texts(place: Database) -> set[str]:
    """Return the interceptions that have a text in any table."""
    found: set[str] = set()
    for table, condition in {
        "aibridge_user_prompts": "prompt is not null",
        "aibridge_tool_usages": f"input is not null or result is not null or invocation_error <> '{DELETED}'",
        "aibridge_answers": "content is not null",
        "aibridge_model_thoughts": "content is not null",
    }.items():
        found |= {row["interception_id"] for row in place.query(f"select * from {table} where {condition}")}
    return found | {
        row["id"] for row in place.query("select * from aibridge_interceptions where error_message is not null")
    }


AGES = st.timedeltas(timedelta(0), 20 * DAY)
LIFETIMES = st.none() | st.timedeltas(HOUR, 20 * DAY)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(AGES, st.booleans()), max_size=12), LIFETIMES, LIFETIMES)
def test_nothing_older_remains_and_nothing_younger_is_gone(
    database: Database, sample: list[tuple[timedelta, bool]], rows: timedelta | None, content: timedelta | None
) -> None:
    write(database)
    for table in (*DETAIL_TABLES, "aibridge_interceptions"):
        database.execute(f"delete from {table}")
    records = [record for n, (age, ended) in enumerate(sample) for record in chain(str(n), NOON - age, ended=ended)]
    write(database, *records)
    before = Expiry.after(NOON, rows=rows, content=content)
    with database.prunable(lambda: NOON) as opened:
        announced = count(opened, expired(before, opened.tables()))
        left = backlog(opened, before)
    deleted = prune(database, NOON, rows=rows, content=content)
    assert (announced.rows, announced.texts) == (deleted.rows, deleted.texts)

    stays = {uid(str(n)) for n, (age, ended) in enumerate(sample) if not ended or rows is None or age <= rows}
    legible = {uid(str(n)) for n, (age, ended) in enumerate(sample) if not ended or content is None or age <= content}
    assert interceptions(database).keys() == stays
    for table in DETAIL_TABLES:
        assert {row["interception_id"] for row in database.query(f"select * from {table}")} == stays
    assert with_texts(database) == stays & legible
    assert left == len(sample) - len(stays & legible)
    assert prune(database, NOON, rows=rows, content=content) == Deleted()


def test_texts_go_and_their_numbers_stay(database: Database) -> None:
    write(database, *chain("old", NOON - 2 * DAY), *chain("new", NOON))
    numbers = [database.rows("aibridge_token_usages"), number(database, "aibridge_tool_usages")]
    deleted = prune(database, NOON, content=DAY)
    assert deleted.texts.total() == 5 and deleted.rows.total() == 0
    assert [database.rows("aibridge_token_usages"), number(database, "aibridge_tool_usages")] == numbers
    [old, new] = sorted(database.rows("aibridge_tool_usages"), key=lambda row: str(row["created_at"]))
    assert (old["input"], old["result"], old["invocation_error"]) == (None, None, DELETED)
    assert old["tool"] == new["tool"] and new["input"] and new["result"]
    rows = interceptions(database)
    assert rows[uid("old")]["content_deleted_at"] and rows[uid("old")]["error_type"] == ENDED.error_type
    assert rows[uid("new")]["content_deleted_at"] is None and rows[uid("new")]["error_message"]


def test_a_result_that_comes_after_its_call_lost_its_texts_is_not_stored(
    database: Database, open_store: OpenStore
) -> None:
    store = open_store()
    call = replace(TOOL, interception_id=uid("old"), result=None, thread_keys=("call",), created_at=NOON - 2 * DAY)
    began = replace(STARTED, id=uid("old"), started_at=NOON - 2 * DAY)
    store.write([began, call, replace(ENDED, interception_id=uid("old"), ended_at=NOON - 2 * DAY)])
    prune(database, NOON, content=DAY)
    late = ToolResult(uid("next"), "toolu_1", "late", is_error=False, truncated=False, created_at=NOON)
    store.write([replace(STARTED, id=uid("next"), thread_keys=("call",)), late])
    assert interceptions(database)[uid("next")]["thread_parent_id"] == uid("old")
    assert [row["result"] for row in database.rows("aibridge_tool_usages")] == [None]


def test_what_running_sessions_continue_with_has_its_own_expiry(database: Database) -> None:
    kept = Continuation("kept", {"turn": "text"}, NOON + HOUR, uid("old"))
    write(database, *chain("old", NOON - 2 * DAY), kept, replace(kept, key="gone", expires_at=NOON))
    prune(database, NOON, rows=DAY, content=HOUR)
    assert database.query("select key from aibridge_continuations") == [{"key": "kept"}]
    assert interceptions(database) == {}


def test_threads_and_instances_are_deleted_with_the_rows_they_are_for(
    database: Database, open_store: OpenStore
) -> None:
    store = open_store()
    for name, at in {"old": NOON - 5 * DAY, "open": NOON - 5 * DAY, "new": NOON}.items():
        store.register(Instance(uid(name), "host", 1, "1.0", at))
    store.write([replace(STARTED, id=uid("1"), instance_id=uid("open"))])
    for name in ("old", "open"):
        database.execute(
            f"update aibridge_instances set heartbeat_at = '{(NOON - 5 * DAY).isoformat()}' where id = '{uid(name)}'"
        )
    for name, at in {"old": NOON - 2 * DAY, "new": NOON}.items():
        store.write([replace(TOOL, id=uid(name), interception_id=uid("1"), thread_keys=(name,), created_at=at)])
    prune(database, NOON, rows=DAY)
    assert database.query("select key from aibridge_threads") == [{"key": "new"}]
    assert {row["id"] for row in database.query("select id from aibridge_instances")} == {uid("open"), uid("new")}
    assert Expiry.after(NOON, rows=HOUR, content=None).instances == NOON - INSTANCES_KEPT_FOR


def test_without_a_limit_nothing_is_deleted(database: Database) -> None:
    fill(database, [1000 * DAY])
    assert prune(database, NOON) == Deleted()
    assert number(database, "aibridge_interceptions") == 1


# --- transactions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A step whose transactions are counted, and may fail after what they did."""

    inner: Interceptions
    sizes: list[int]
    fail_at: int = 0

    @property
    def limit(self) -> int:
        return self.inner.limit

    @property
    def first(self) -> datetime:
        return self.inner.first

    def delete(self, database: Prunable, execute: Execute, limit: int, after: datetime) -> Batch:
        batch = self.inner.delete(database, execute, limit, after)
        self.sizes.append(batch.rows["aibridge_interceptions"])
        if len(self.sizes) == self.fail_at:
            raise KeyboardInterrupt
        return batch

    def count(self, read: Execute) -> Batch:
        return self.inner.count(read)


def old_ones(limit: int = MAX_BATCH) -> Interceptions:
    return Interceptions(begun_before(NOON - DAY), limit=limit)


def test_a_transaction_deletes_a_bounded_number_of_interceptions_with_their_children(database: Database) -> None:
    fill(database, [2 * DAY + n * HOUR for n in range(25)] + [HOUR])
    step, orphaned = Recorded(old_ones(limit=10), []), list[int]()
    with database.prunable() as opened:
        assert opened.take_turn()
        run(opened, [step], replace(AT_ONCE, report=lambda _: orphaned.append(orphans(database))))
    assert step.sizes == [10, 10, 5] and orphaned == [0, 0, 0]
    assert number(database, "aibridge_interceptions") == 1


def test_interceptions_that_began_at_the_same_time_are_all_deleted(database: Database) -> None:
    fill(database, [2 * DAY] * 25)
    with database.prunable() as opened:
        assert opened.take_turn()
        run(opened, [old_ones(limit=10)], AT_ONCE)
    assert number(database, "aibridge_interceptions") == 0


def test_transactions_that_take_long_become_smaller_and_pauses_longer(database: Database) -> None:
    fill(database, [2 * DAY] * 40)
    moment, waits = [0.0], list[float]()

    def clock() -> float:
        moment[0] += 1  # each transaction takes a second
        return moment[0]

    step = Recorded(old_ones(limit=16), [])
    with database.prunable() as opened:
        assert opened.take_turn()
        run(opened, [step], Pace(clock=clock, wait=remembered(waits)))
    assert step.sizes[:5] == [16, 8, 4, 2, 1]
    assert waits[:3] == [0, 1, 1]


@pytest.mark.parametrize("how", ["the time is over", "it is stopped"])
def test_a_run_that_ends_early_leaves_whole_interceptions_to_the_next(database: Database, how: str) -> None:
    fill(database, [2 * DAY] * 30)
    moments, waits = iter(range(100)), iter([False, False, True])
    pace = (
        Pace(budget=5, clock=lambda: next(moments), wait=lambda _: False)
        if how == "the time is over"
        else Pace(wait=lambda _: next(waits))
    )
    with database.prunable() as opened:
        assert opened.take_turn()
        deleted = run(opened, [old_ones(limit=10)], pace)
    assert not deleted.complete
    assert 0 < number(database, "aibridge_interceptions") < 30 and orphans(database) == 0
    assert prune(database, NOON, rows=DAY).complete
    assert number(database, "aibridge_interceptions") == 0


def test_a_run_that_is_cut_in_the_middle_of_a_transaction_has_not_begun_it(database: Database) -> None:
    fill(database, [2 * DAY] * 25)
    with suppress(KeyboardInterrupt), database.prunable() as opened:
        assert opened.take_turn()
        run(opened, [Recorded(old_ones(limit=10), [], fail_at=2)], AT_ONCE)
    assert [number(database, table) for table in COUNT] == [15] * len(COUNT)
    assert prune(database, NOON, rows=DAY).rows["aibridge_interceptions"] == 15


def test_a_lock_that_is_not_free_is_waited_for_and_not_for_ever(database: Database) -> None:
    fill(database, [2 * DAY])
    waits = list[float]()

    class Locked:
        """Locks are free at the third attempt."""

        def __init__(self, inner: Prunable) -> None:
            self._inner = inner
            self.failures = 2

        def __getattr__(self, name: str) -> object:
            if name == "transaction" and self.failures:
                self.failures -= 1
                raise Busy("locked")
            return getattr(self._inner, name)

    with database.prunable() as inner:
        assert inner.take_turn()
        locked: Prunable = Locked(inner)  # type: ignore[assignment]
        pace = Pace(wait=remembered(waits))
        assert run(locked, [old_ones()], pace).complete
        assert waits[:3] == [0, 1, 1]
        never = Locked(inner)
        never.failures = MAX_BUSY
        with pytest.raises(Busy):
            run(never, [old_ones()], AT_ONCE)  # type: ignore[arg-type]


def test_a_transaction_gives_up_when_another_one_has_the_locks(postgres: PostgresDatabase) -> None:
    fill(postgres, [2 * DAY])
    with postgres.prunable() as holder, postgres.prunable() as opened, holder.transaction() as execute:
        execute("lock table aibridge_token_usages in access exclusive mode", {})
        with pytest.raises(Busy, match="lock timeout"), opened.transaction() as other:
            old_ones().delete(opened, other, 10, old_ones().first)
    assert number(postgres, "aibridge_interceptions") == 1


def test_rows_that_another_transaction_has_locked_are_left_to_the_next_run(postgres: PostgresDatabase) -> None:
    fill(postgres, [2 * DAY, 2 * DAY])
    with postgres.prunable() as holder, postgres.prunable() as opened:
        assert opened.take_turn()
        with holder.transaction() as execute:
            execute("select id from aibridge_interceptions where id = :id for update", {"id": uid("0")})
            run(opened, [old_ones()], AT_ONCE)
        assert interceptions(postgres).keys() == {uid("0")}


# --- several processes --------------------------------------------------------------------------------------------


def test_one_process_at_a_time_deletes_rows(database: Database) -> None:
    fill(database, [2 * DAY])
    with database.prunable(lambda: NOON) as one:
        with database.prunable(lambda: NOON) as other:
            assert one.take_turn() and not other.take_turn()
            assert one.take_turn()
        assert one.take_turn(), "the other one gave nothing back that it did not have"
    with database.prunable(lambda: NOON) as later:
        assert later.take_turn()


def test_the_turn_of_a_process_that_was_killed_ends(database: Database) -> None:
    fill(database, [2 * DAY])
    killed = database.prunable(lambda: NOON)
    assert killed.take_turn()
    if isinstance(database, PostgresDatabase):
        database.server.disconnect(database.name)  # the system closes its connections
    with database.prunable(lambda: NOON + timedelta(seconds=61)) as other:
        assert other.take_turn()
        if not isinstance(database, PostgresDatabase):
            with pytest.raises(Busy, match="another process"), killed.transaction():
                pass
    killed.__exit__()


def test_a_turn_that_ends_too_far_in_the_future_is_not_waited_for(database: Database) -> None:
    """The clock of the process that was killed was wrong."""
    fill(database, [2 * DAY])
    killed = database.prunable(lambda: NOON + 1000 * DAY)
    assert killed.take_turn()
    if isinstance(database, PostgresDatabase):
        killed.__exit__()
    with database.prunable(lambda: NOON) as other:
        assert other.take_turn()
    killed.__exit__()


def test_two_that_start_at_once_delete_everything_once(database: Database) -> None:
    fill(database, [2 * DAY] * 60)
    together, results = threading.Barrier(2), list[Deleted]()

    def one() -> None:
        with database.prunable() as opened:
            together.wait()
            if opened.take_turn():
                results.append(run(opened, [old_ones(limit=10)], AT_ONCE))
            together.wait()

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(deleted.rows["aibridge_interceptions"] for deleted in results) == 60
    assert number(database, "aibridge_interceptions") == 0


def test_a_proxy_writes_meanwhile(database: Database) -> None:
    fill(database, [2 * DAY] * 200)
    done, written = threading.Event(), list[str]()

    def write_on() -> None:
        with opened(database) as store:
            while not done.wait(0.02) or len(written) < 5:  # the lock is free in between
                name = f"new{len(written)}"
                store.write(chain(name, NOON))
                written.append(uid(name))

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        with database.prunable() as pruned:
            assert pruned.take_turn()
            assert run(pruned, [old_ones(limit=10)], Pace()).complete
    finally:
        done.set()
        writer.join()
    assert interceptions(database).keys() == set(written)
    assert orphans(database) == 0


def test_a_database_that_is_away_is_unavailable(database: Database) -> None:
    missing = replace(database)
    if isinstance(missing, PostgresDatabase):
        missing.url = missing.url.replace(f":{missing.server.port}/", ":1/")
    else:
        missing.path = missing.path.with_name("missing.db")
    with pytest.raises(DatabaseUnavailable):
        missing.prunable()


def test_a_selection_names_interceptions_that_have_ended(database: Database) -> None:
    write(database, *chain("1", NOON), *chain("2", NOON, ended=False))
    with database.prunable() as opened:
        found = opened.read(Selection("initiator_id = :actor", {"actor": "ada"}).sql("id"), {"actor": "ada"}).fetchall()
    assert [str(id) for (id,) in found] == [uid("1")]
