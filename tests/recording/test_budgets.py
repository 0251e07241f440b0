"""What budgets read from a database and publish there, for several processes that share it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon.config.budgets import Budget
from aibridge_addon.config.schema import Settings
from aibridge_addon.interception.accounts import Sums
from aibridge_addon.interception.budgets import Budgets, Party
from aibridge_addon.recording.budgets import RECOUNT, SILENT, SLACK, BudgetSink, BudgetStore, BudgetSync
from aibridge_addon.recording.database import budget_store
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.records import DatabaseUnavailable, Record, Spent
from tests.support.databases import Database, write
from tests.support.examples import ENDED, STARTED, TOKENS, uid
from tests.support.reading import NOON

MINE, YOURS = uid("instance-1"), uid("instance-2")
PARTY = Party("ada", (), "anthropic", "claude-1")
SECOND = timedelta(seconds=1)
COUNTS = {"input_tokens": 1, "output_tokens": 20, "cache_read_input_tokens": 300, "cache_write_input_tokens": 4000}
TOKENS_OF_ONE = 4321


def store_of(place: Database, instance_id: str = MINE) -> BudgetStore:
    return budget_store(Settings.model_validate({"database": place.url}), instance_id)


def interception(name: str, at: datetime = NOON, *, instance: str | None = YOURS, **members: Any) -> list[Record]:
    """Return the records of an interception with one token row, which costs 0.5 US dollars."""
    id = uid(name)
    metadata = members.pop("metadata", {})
    ended = {"turns": members.pop("turns", 1)}
    begun: dict[str, Any] = {"model": "claude-1", "provider_name": "anthropic", "initiator_id": "ada"}
    begun |= {name: members.pop(name) for name in begun if name in members}
    begun |= {"started_at": at - SECOND, "instance_id": instance, "metadata": metadata}
    usage: dict[str, Any] = {"cost_usd": 0.5, "id": id, "created_at": at} | COUNTS | members
    return [
        replace(STARTED, id=id, **begun),
        replace(TOKENS, interception_id=id, model="claude-1-20260101", **usage),
        replace(ENDED, interception_id=id, ended_at=at, model=None, **ended),
    ]


def spent(store: BudgetStore, **options: bool) -> list[Spent]:
    return list(store.spent(NOON, None, requests=options.get("requests", False), groups=options.get("groups", False)))


def test_usage_is_summed_up_by_actor_provider_and_the_model_of_the_request(database: Database) -> None:
    write(
        database,
        *interception("a"),
        *interception("b", NOON + SECOND, cost_usd=None),
        *interception("c", model="claude-2"),
        *interception("d", initiator_id="bob"),
        *interception("e", provider_name="other"),
    )
    with closing(store_of(database)) as store:
        found = sorted(spent(store), key=lambda part: (part.actor, part.provider, part.model))
    assert found == [
        Spent("ada", None, "anthropic", "claude-1", usd=0.5, tokens=2 * TOKENS_OF_ONE, unpriced=1),
        Spent("ada", None, "anthropic", "claude-2", usd=0.5, tokens=TOKENS_OF_ONE),
        Spent("ada", None, "other", "claude-1", usd=0.5, tokens=TOKENS_OF_ONE),
        Spent("bob", None, "anthropic", "claude-1", usd=0.5, tokens=TOKENS_OF_ONE),
    ]


def test_the_rows_of_the_own_instance_are_left_out_and_those_of_old_versions_are_not(database: Database) -> None:
    write(database, *interception("a", instance=MINE), *interception("b", instance=None), *interception("c"))
    with closing(store_of(database)) as store:
        assert spent(store) == [Spent("ada", None, "anthropic", "claude-1", usd=1.0, tokens=2 * TOKENS_OF_ONE)]


def test_the_start_of_a_time_is_part_of_it_and_its_end_is_not(database: Database) -> None:
    later = NOON + SECOND
    write(database, *interception("a", NOON - SECOND), *interception("b"), *interception("c", later))
    with closing(store_of(database)) as store:
        for until, usd in ((later, 0.5), (later + SECOND, 1.0), (None, 1.0)):
            [found] = store.spent(NOON, until, requests=False, groups=False)
            assert found.usd == usd


def test_missing_rows_and_nulls_are_zero(database: Database) -> None:
    write(database, interception("a")[0])
    with closing(store_of(database)) as store:
        assert spent(store, requests=True) == []
        write(database, *interception("b"))
        database.execute("update aibridge_token_usages set cost_usd = null, input_tokens = null, output_tokens = null")
        [found] = spent(store)
    assert (found.usd, found.unpriced) == (0.0, 1)
    assert found.tokens == 4300


def test_counts_that_exceed_every_sum_do_not_keep_the_others_from_being_read(database: Database) -> None:
    huge: dict[str, Any] = dict.fromkeys(COUNTS, 2**62)
    write(database, *interception("a", **huge), *interception("b", **huge))
    with closing(store_of(database)) as store:
        [found] = spent(store)
    assert found.usd == 1.0 and found.tokens == pytest.approx(2**65)


def test_requests_that_went_upstream_are_counted_at_their_end(database: Database) -> None:
    write(database, *interception("a"), *interception("b", turns=0), *interception("c", NOON - SECOND))
    with closing(store_of(database)) as store:
        assert sum(part.requests for part in spent(store, requests=True)) == 1


def test_groups_that_requests_named_are_kept_apart(database: Database) -> None:
    write(database, *interception("a", metadata={"actor_groups": "red,blue"}), *interception("b"))
    with closing(store_of(database)) as store:
        assert {part.groups for part in spent(store, groups=True)} == {"red,blue", None}
        assert {part.groups for part in spent(store)} == {None}


def test_reservations_of_other_instances_are_summed_up_while_they_are_repeated(database: Database) -> None:
    write(database)
    with closing(store_of(database)) as mine, closing(store_of(database, YOURS)) as yours:
        with closing(store_of(database, uid("instance-3"))) as third:
            third.publish({("b", "ada"): 0.25}, NOON - SECOND)
        yours.publish({("b", "ada"): 0.5, ("c", "all \0 'x'"): 3.0}, NOON - SECOND)
        yours.publish({("b", "ada"): 0.5, ("c", "all"): 2.0}, NOON)
        assert mine.reserved(NOON - SECOND) == {("b", "ada"): 0.75, ("c", "all"): 2.0}
        assert mine.reserved(NOON) == {("b", "ada"): 0.5, ("c", "all"): 2.0}
        assert yours.reserved(NOON - SECOND) == {("b", "ada"): 0.25}
        mine.publish({}, NOON + timedelta(hours=2))
        assert database.query("select count(*) as n from aibridge_budget_reservations") == [{"n": 1}]


def test_a_database_that_is_away_is_reported(tmp_path: Path) -> None:
    store = budget_store(Settings.model_validate({"database": f"sqlite:///{tmp_path / 'nowhere.db'}"}), MINE)
    with closing(store), pytest.raises(DatabaseUnavailable):
        spent(store)


# --- processes ----------------------------------------------------------------------------------------------------


class Process:
    """The budgets of one process, whose clock the test owns, and which looks into the database when the test says."""

    def __init__(self, place: Database, instance_id: str, budget: dict[str, Any]) -> None:
        self.now = NOON
        self.instance_id = instance_id
        self.store = store_of(place, instance_id)
        whole = {"name": "b", "per": "all", "period": "day"} | budget
        self.accounts = Budgets(
            [Budget.model_validate(whole)],
            lambda _: (),
            now=lambda: self.now,
            emit=lambda _: None,
            warn=lambda _event, _state: None,
        )
        self.sync: BudgetSync[Sums] = BudgetSync(self.accounts, self.store, groups=False, now=lambda: self.now)

    def look(self) -> None:
        self.sync._publish(self.accounts.reserved(), self.now)
        self.sync._apply(self.sync._read(self.accounts.windows(), self.now))

    def admit(self, id: str, cost: float = 0.25) -> bool:
        return self.accounts.admit(uid(id), PARTY, 0, None, lambda *_: cost) is None

    def count(self, *emitted: Record) -> None:
        for record in emitted:
            self.accounts.count(record)


@pytest.fixture
def start(database: Database) -> Iterator[Callable[..., Process]]:
    write(database)
    started: list[Process] = []

    def start(instance_id: str = MINE, **budget: Any) -> Process:
        process = Process(database, instance_id, budget or {"usd": 1.0})
        started.append(process)
        process.look()
        return process

    yield start
    for process in started:
        process.store.close()


def test_two_processes_share_what_is_spent_and_reserved(database: Database, start: Callable[..., Process]) -> None:
    one, other = start(MINE), start(YOURS)
    assert all(one.admit(id) for id in "abc")
    one.look()
    other.look()
    assert other.admit("d") and not other.admit("e")
    ended = interception("a", instance=MINE, cost_usd=0.75)
    write(database, *ended)
    one.count(*ended)
    one.look()
    other.look()
    assert not one.admit("f") and not other.admit("g")


class CountedStore:
    """A store that counts its queries."""

    def __init__(self, store: BudgetStore) -> None:
        self._store = store
        self.queries = 0

    def spent(self, since: datetime, until: datetime | None, *, requests: bool, groups: bool) -> Iterable[Spent]:
        self.queries += 1
        return self._store.spent(since, until, requests=requests, groups=groups)

    def publish(self, reserved: Mapping[tuple[str, str], float], now: datetime) -> None:
        self.queries += 1
        self._store.publish(reserved, now)

    def reserved(self, since: datetime) -> Mapping[tuple[str, str], float]:
        self.queries += 1
        return self._store.reserved(since)

    def close(self) -> None:
        self._store.close()


def test_the_number_of_queries_does_not_depend_on_the_number_of_requests(start: Callable[..., Process]) -> None:
    process = start(requests=10**6)
    process.sync._store = counted = CountedStore(process.store)
    queries: list[int] = []
    for requests in (1, 100):
        for n in range(requests):
            assert process.admit(f"{requests}-{n}")
            process.count(*interception(f"{requests}-{n}", instance=MINE)[:2])
        assert counted.queries == sum(queries)
        process.look()
        queries.append(counted.queries - sum(queries))
    assert queries[0] == queries[1] > 0


def test_rows_of_this_process_count_once_whether_they_are_read_or_not(
    database: Database, start: Callable[..., Process]
) -> None:
    process = start()
    own = interception("a", instance=MINE)
    process.count(*own)
    write(database, *own)
    for _ in range(3):
        process.look()
        assert process.admit("b", cost=0.0)
    process.count(*interception("c", instance=MINE))
    assert not process.admit("d")


def test_a_restarted_process_counts_what_it_had_spent(database: Database, start: Callable[..., Process]) -> None:
    write(database, *interception("a", instance=MINE), *interception("b", instance=MINE))
    assert not start(uid("instance-3")).admit("c")


def test_the_last_known_state_counts_while_the_database_is_away(
    database: Database, start: Callable[..., Process]
) -> None:
    write(database, *interception("a"))
    process = start()
    database.execute("alter table aibridge_token_usages rename to away")
    process.look()
    process.count(*interception("b", instance=MINE, cost_usd=0.25))
    assert process.admit("c") and not process.admit("d")
    database.execute("alter table away rename to aibridge_token_usages")


def test_rows_are_counted_once_as_time_goes_on(database: Database, start: Callable[..., Process]) -> None:
    process = start(tokens=10**9)
    for n in range(12):
        at = NOON + n * SLACK / 3
        process.now = at
        write(database, *interception(f"row-{n}", at))
        process.look()
        [account] = process.accounts._accounts.values()
        assert account.spent == (n + 1) * TOKENS_OF_ONE


def test_rows_that_come_late_are_counted_within_the_time_of_a_recount(
    database: Database, start: Callable[..., Process]
) -> None:
    process = start()
    process.now = NOON + 4 * SLACK
    process.look()
    process.now += 2 * SLACK
    process.look()
    write(database, *interception("late", cost_usd=2.0))
    process.look()
    assert process.admit("a", cost=0.0)
    process.now += RECOUNT
    process.look()
    assert not process.admit("b")


def test_rows_are_counted_once_when_the_clock_is_set_back(database: Database, start: Callable[..., Process]) -> None:
    process = start(tokens=10**9)
    for n, minutes in enumerate((1, 5, 2, 1, 3)):  # within one window, and within the time of a recount
        process.now = NOON + timedelta(minutes=minutes)
        write(database, *interception(f"row-{n}", process.now))
        process.look()
        [account] = process.accounts._accounts.values()
        assert account.spent == (n + 1) * TOKENS_OF_ONE


def test_reservations_are_repeated_when_the_clock_is_set_back(
    database: Database, start: Callable[..., Process]
) -> None:
    one, other = start(MINE), start(YOURS)
    assert one.admit("a", cost=1.0)
    one.look()
    one.now = other.now = NOON - timedelta(minutes=30)
    one.look()
    [row] = database.query("select updated_at from aibridge_budget_reservations")
    assert row["updated_at"] == timestamp(one.now)
    other.look()
    assert not other.admit("b")


def test_the_reservations_of_a_process_that_was_killed_expire(start: Callable[..., Process]) -> None:
    killed, process = start(YOURS), start(MINE)
    assert killed.admit("a", cost=1.0)
    killed.look()
    process.look()
    assert not process.admit("b")
    process.now += SILENT + SECOND
    process.look()
    assert process.admit("c")


def test_records_are_counted_and_the_database_is_read_in_the_background(database: Database) -> None:
    write(database, *interception("before", cost_usd=0.5))

    async def run() -> None:
        process = Process(database, MINE, {"usd": 1.0})
        sink = BudgetSink(process.accounts)
        sink.start()
        process.sync.open()
        process.sync.start()
        assert process.admit("a", cost=0.0)
        sink.emit(interception("own", instance=MINE, cost_usd=0.25))
        await asyncio.sleep(0)
        assert process.admit("b", cost=0.25) and not process.admit("c")
        process.sync.want()
        await until(lambda: bool(database.query("select * from aibridge_budget_reservations")))
        await asyncio.to_thread(write, database, *interception("other", cost_usd=0.5))
        await until(lambda: not process.admit("d", cost=0.0))
        await asyncio.to_thread(process.sync.close, 5.0)
        assert database.query("select reserved from aibridge_budget_reservations")[0]["reserved"] in ("[]", [])

    asyncio.run(run())


def test_an_end_while_the_database_is_about_to_be_read_logs_nothing(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    write(database)

    async def run() -> None:
        process = Process(database, MINE, {"usd": 1.0})
        process.sync.open()
        process.sync.start()
        task, process.sync._task = process.sync._task, None  # its cancellation comes too late
        assert task is not None
        await asyncio.sleep(0)
        process.sync.close(5.0)
        process.sync.want()
        await asyncio.wait_for(task, 30)

    asyncio.run(run())
    assert not caplog.records


class HangingStore:
    """A store whose queries do not return before `answer`."""

    def __init__(self, store: BudgetStore) -> None:
        self._store = store
        self.asked, self.answer = threading.Event(), threading.Event()

    def spent(self, since: datetime, until: datetime | None, *, requests: bool, groups: bool) -> Iterable[Spent]:
        self.asked.set()
        self.answer.wait()
        return self._store.spent(since, until, requests=requests, groups=groups)

    def publish(self, reserved: Mapping[tuple[str, str], float], now: datetime) -> None:
        self._store.publish(reserved, now)

    def reserved(self, since: datetime) -> Mapping[tuple[str, str], float]:
        return self._store.reserved(since)

    def close(self) -> None:
        self._store.close()


def test_a_start_does_not_wait_for_a_database_that_hangs_and_counts_its_answer_later(database: Database) -> None:
    write(database, *interception("before", cost_usd=2.0))

    async def run() -> None:
        process = Process(database, MINE, {"usd": 1.0})
        process.sync._store = store = HangingStore(process.store)
        process.sync._start_wait = 0.0
        process.sync.open()
        process.sync.start()
        assert process.admit("a", cost=0.0)
        store.answer.set()
        await until(lambda: not process.admit("b", cost=0.0))
        await asyncio.to_thread(process.sync.close, 30.0)

    asyncio.run(run())


def test_an_end_does_not_wait_longer_than_allowed_for_a_database_that_hangs(database: Database) -> None:
    write(database)

    async def run() -> None:
        process = Process(database, MINE, {"usd": 1.0})
        process.sync._store = store = HangingStore(process.store)
        process.sync._start_wait = 0.0
        process.sync.open()
        process.sync.start()
        assert store.asked.wait(30)
        process.sync.close(0.01)
        store.answer.set()
        await asyncio.to_thread(process.sync.close, 30.0)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(condition):
            pass
