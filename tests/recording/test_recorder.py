"""The record stream with a recorder: only calls of `committed` wait for the database, nothing is written twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon.recording.recorder import Recorder
from aibridge_addon.recording.sizes import MAX_QUEUED, MAX_QUEUED_BYTES, MAX_TRANSACTION, MAX_TRANSACTION_BYTES
from aibridge_addon.recording.spool import Spool
from aibridge_addon.recording.stream import COMMIT_TIMEOUT, LINGER, OVERDUE, RecordStream
from aibridge_addon.records import DatabaseUnavailable, ModelThought, Readiness, Record
from tests.support.examples import INSTANCE, STARTED
from tests.support.polling import poll_until
from tests.support.reading import NOON
from tests.support.stores import PATIENCE, MemoryStore

Make = Callable[..., RecordStream]


def unchanged(record: Record) -> Record:
    return record


def stream_to(
    store: MemoryStore,
    folder: Path,
    *,
    commit_timeout: float = COMMIT_TIMEOUT,
    overdue: float = OVERDUE,
    max_bytes: int = 2**30,
    **options: Any,
) -> RecordStream:
    """A stream with one sink, which writes to that store. `folder`: of the spool."""
    spool = Spool(folder, "db", max_bytes=max_bytes)
    recorder = Recorder(store, spool, INSTANCE, **options)
    return RecordStream([recorder], unchanged, commit_timeout=commit_timeout, overdue=overdue)


def thought(content: str = "hm") -> ModelThought:
    return ModelThought("i", "r", content, "thinking", NOON)


class Delays(tuple[float, ...]):
    """Waits of no length, which remember in which order they were asked for."""

    asked: list[int]

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return super().__getitem__(index)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The spool's folder."""
    return tmp_path / "spool"


@pytest.fixture
async def make(folder: Path) -> AsyncIterator[Make]:
    """Make started recorders, and end them."""
    started: list[tuple[RecordStream, MemoryStore]] = []

    def start(store: MemoryStore, **options: Any) -> RecordStream:
        recorder = stream_to(
            store, folder, **{"retry_delays": (0.0,), "commit_timeout": PATIENCE, "overdue": PATIENCE, **options}
        )
        recorder.open()
        started.append((recorder, store))
        return recorder

    yield start
    for recorder, store in started:
        store.let_all()
        await recorder.drain(10)
        assert store.closed


async def all_at_once(*waiting: Coroutine[Any, Any, bool], then: Callable[[], None]) -> list[bool]:
    """Begin all of these, then do something, then wait for them."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in waiting]
    asyncio.get_running_loop().call_soon(then)
    return await asyncio.gather(*tasks)


async def emptied(recorder: RecordStream) -> None:
    """Wait until all records have gone to the database."""
    await comes(lambda: not (recorder.depth or recorder._sinks[0].readiness().degraded))


async def comes(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not check():
            await turn()


def spooled(recorder: RecordStream) -> int:
    return sum(sink.readiness().spooled_bytes for sink in recorder._sinks)


def damage(folder: Path) -> None:
    """Change a record, and not its checksum."""
    [file] = folder.glob("*.log")
    file.write_bytes(file.read_bytes().replace(b"spooled", b"damaged"))


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


async def turn() -> None:
    """Let the event loop go round once."""
    await asyncio.sleep(0)


# --- batches ----------------------------------------------------------------------------------------------------


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when the test advances it."""

    now = 1_000.0

    def time(self) -> float:
        return self.now

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(3):  # timers that are due run in the turn after the next
            await turn()


def test_records_wait_for_company_but_not_for_long(folder: Path) -> None:
    async def scenario() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, Clock)
        store = MemoryStore()
        recorder = stream_to(store, folder)
        recorder.open()
        first, second, third = thought("1"), thought("2"), thought("3")
        recorder.emit(first)
        await clock.advance(LINGER * 0.9)
        recorder.emit(second)
        assert recorder.depth == 2 and store.attempts == []
        await clock.advance(LINGER * 0.2)
        await store.attempted(1)
        recorder.emit(third)
        await clock.advance(LINGER * 1.1)
        await store.written(3)
        assert store.attempts == [(first, second), (third,)]
        await recorder.drain(10)

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(scenario())


async def test_asking_whether_it_is_committed_waits_for_no_company(make: Make) -> None:
    store = MemoryStore()
    recorder = make(store)
    recorder.emit(thought("1"))
    recorder.emit(thought("2"))
    assert await recorder.committed()
    assert store.attempts == [(thought("1"), thought("2"))] and recorder.depth == 0
    assert await recorder.committed()


async def test_many_answers_that_end_together_are_one_transaction(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    recorder.emit(thought("first"))
    first = asyncio.ensure_future(recorder.committed())
    await store.attempted(1)

    async def answer(number: int) -> bool:
        recorder.emit(thought(str(number)))
        return await recorder.committed()

    assert all(await all_at_once(*map(answer, range(50)), then=store.let_all)) and await first
    assert [len(attempt) for attempt in store.attempts] == [1, 50]


async def test_a_transaction_is_bounded(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    recorder.emit(thought("first"))
    first = asyncio.ensure_future(recorder.committed())
    await store.attempted(1)

    async def answer(number: int) -> bool:
        recorder.emit(thought(str(number)))
        return await recorder.committed()

    count = MAX_TRANSACTION + 7
    assert all(await all_at_once(*map(answer, range(count)), then=store.let_all)) and await first
    assert [len(attempt) for attempt in store.attempts] == [1, MAX_TRANSACTION, 7]


async def test_records_are_written_once_and_in_the_order_in_which_they_were_emitted(make: Make) -> None:
    store = MemoryStore()
    recorder = make(store)
    emitted: list[Record] = []
    for number in range(500):
        emitted.append(thought(str(number)))
        recorder.emit(emitted[-1])
        if number % 7 == 0:
            assert await recorder.committed()
    assert await recorder.committed()
    assert store.records == emitted


async def test_who_cannot_wait_any_longer_is_told_so_and_the_record_is_still_written(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store, commit_timeout=0.01)
    recorder.emit(thought())
    assert not await recorder.committed()
    assert recorder.depth == 1
    store.let_all()
    await store.written(1)
    assert store.records == [thought()]


# --- a database that cannot be written to ---------------------------------------------------------------------------


async def test_a_database_that_does_not_answer_is_tried_again_until_it_does(make: Make) -> None:
    store = MemoryStore(stepped=True)
    delays = Delays((0.0, 0.0, 0.0))
    delays.asked = []
    recorder = make(store, retry_delays=delays)
    store.fail(times=5)
    recorder.emit(thought())
    assert await recorder.committed(), "it is in the spool"
    await store.attempted(6)
    assert recorder.depth == 0 and recorder.lost == 0 and spooled(recorder) > 0
    store.let_all()
    await emptied(recorder)
    assert store.records == [thought()] and recorder.lost == 0
    assert delays.asked == [0, 1, 2, 2, 2]


async def test_records_are_written_in_their_order_when_the_database_is_back(make: Make, folder: Path) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store, retry_delays=(3_600.0,))
    store.fail()
    emitted = [thought(str(number)) for number in range(3 * MAX_TRANSACTION)]
    for number, record in enumerate(emitted):
        recorder.emit(record)
        if number % 1_000 == 0:
            assert await recorder.committed(), "it is in the spool"
    assert await recorder.committed()
    assert store.records == [] and recorder.depth == 0
    assert spooled(recorder) == size(folder)
    store.let_all()
    recorder.close(10)
    assert store.records == emitted
    assert (recorder.lost, recorder.depth, spooled(recorder), size(folder)) == (0, 0, 0, 0)


async def test_records_that_come_during_the_replay_are_written_after_those_before_them(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    store.fail()
    recorder.emit(thought("1"))
    assert await recorder.committed()
    await store.attempted(2)
    recorder.emit(thought("2"))
    assert await recorder.committed()
    store.let_all()
    await emptied(recorder)
    recorder.emit(thought("3"))
    assert await recorder.committed()
    assert store.attempts[1:] == [(thought("1"),), (thought("2"),), (thought("3"),)]


@pytest.mark.parametrize("required", [False, True], ids=["open", "closed"])
async def test_answers_that_wait_are_released_at_the_first_failure(make: Make, required: bool) -> None:
    """Those of the batch that fails, and those of the next one."""
    store = MemoryStore(stepped=True)
    recorder = make(store, required=required, retry_delays=(3_600.0,))
    recorder.emit(thought("in the batch that fails"))
    first = asyncio.ensure_future(recorder.committed())
    await store.attempted(1)
    recorder.emit(thought("in the next one"))
    second = asyncio.ensure_future(recorder.committed())
    await turn()
    store.fail()
    async with asyncio.timeout(PATIENCE / 2):  # well before the time limit of a commit
        assert [await first, await second] == [not required] * 2
        assert await recorder.committed() is not required


@pytest.mark.parametrize("required", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("outcome", [None, DatabaseUnavailable("the disk is full")], ids=["succeeds", "fails"])
def test_what_waits_for_a_write_that_takes_too_long_is_spooled_before_the_answer_ends(
    folder: Path, required: bool, outcome: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Records of the write in progress, and those behind it. In the end, the write succeeds or fails."""

    async def scenario() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, Clock)
        store = MemoryStore(stepped=True)
        recorder = stream_to(store, folder, required=required, retry_delays=(0.0,))
        recorder.open()
        first, second, third = thought("in progress"), thought("behind it"), thought("later")
        recorder.emit(first)
        waiting = [asyncio.ensure_future(recorder.committed())]
        await clock.advance(0)
        await store.attempted(1)
        recorder.emit(second)
        waiting.append(asyncio.ensure_future(recorder.committed()))
        await clock.advance(OVERDUE)
        assert await asyncio.gather(*waiting) == [not required] * 2
        recorder.emit(third)
        assert await recorder.committed() is not required
        assert recorder.depth == 0 and spooled(recorder) > 0
        store.let(outcome, None)
        await emptied(recorder)
        assert store.attempts == [(first,), (first, second, third)]
        assert recorder.lost == 0 and spooled(recorder) == 0
        await recorder.drain(10)

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(scenario())
    assert caplog.text.count("the database cannot be written to, trying again") == 1


def test_a_write_that_takes_too_long_holds_up_no_answer_where_the_spool_cannot_be_written_to(folder: Path) -> None:
    async def scenario() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, Clock)
        store = MemoryStore(stepped=True)
        recorder = stream_to(store, refusing(folder), retry_delays=(0.0,))
        recorder.open()
        recorder.emit(thought())
        waiting = asyncio.ensure_future(recorder.committed())
        await clock.advance(0)
        await store.attempted(1)
        await clock.advance(OVERDUE)
        assert not await waiting
        assert recorder.depth == 1
        store.let_all()
        await emptied(recorder)
        assert thought() in store.records and recorder.lost == 0
        await recorder.drain(10)

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("required", [False, True], ids=["open", "closed"])
async def test_the_state_of_the_database_is_reported(make: Make, required: bool) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store, required=required)
    [sink] = recorder._sinks
    assert (sink.readiness().ready, sink.readiness().degraded) == (True, ())
    store.fail()
    recorder.emit(thought())
    await store.attempted(2)
    state = sink.readiness()
    assert (state.ready, state.degraded, state.details) == (not required, ("database",), {"database": "unavailable"})
    assert state.spooled_bytes > 0
    store.let_all()
    await comes(lambda: sink.readiness() == Readiness(details={"database": "available"}))


async def test_a_database_that_is_away_at_the_start_is_waited_for_where_that_is_allowed(make: Make) -> None:
    store = MemoryStore(cannot_open=DatabaseUnavailable("no route to host"))
    recorder = make(store, needed_at_start=False)
    [sink] = recorder._sinks
    assert sink.readiness().ready
    recorder.emit(thought())
    assert await recorder.committed(), "it is in the spool"
    assert store.attempts == []
    store.cannot_open = None
    await emptied(recorder)
    assert store.records == [thought()]


async def test_a_bridge_without_database_and_spool_is_not_ready(make: Make, folder: Path) -> None:
    refusing(folder)
    store = MemoryStore(cannot_open=DatabaseUnavailable("no route to host"))
    recorder = make(store, needed_at_start=False)
    assert not recorder._sinks[0].readiness().ready
    store.cannot_open = None
    await emptied(recorder)
    assert recorder._sinks[0].readiness().ready


# --- the spool ------------------------------------------------------------------------------------------------------


def refusing(folder: Path) -> Path:
    """Make a folder in which no file can be made."""
    folder.write_text("no folder")
    return folder


def accepting(folder: Path) -> None:
    folder.unlink()


async def test_records_wait_in_memory_where_the_spool_cannot_be_written_to(
    make: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(folder)
    store = MemoryStore(stepped=True)
    recorder = make(store)
    store.fail(times=3)
    for number in range(3):
        recorder.emit(thought(str(number)))
        assert not await recorder.committed()
    assert recorder.depth == 3
    store.let_all()
    await emptied(recorder)
    assert store.records == [thought(str(number)) for number in range(3)] and recorder.lost == 0
    assert len([line for line in caplog.messages if "the spool cannot be written to" in line]) == 1


async def test_records_in_memory_go_to_the_spool_as_soon_as_it_can_be_written_to(make: Make, folder: Path) -> None:
    refusing(folder)
    store = MemoryStore(stepped=True)
    recorder = make(store)
    store.fail()
    recorder.emit(thought("1"))
    assert not await recorder.committed()
    accepting(folder)
    store.fail()
    await store.attempted(2)
    async with asyncio.timeout(PATIENCE):
        while recorder.depth:
            await turn()
    recorder.emit(thought("2"))
    assert await recorder.committed()
    store.let_all()
    await emptied(recorder)
    assert store.records == [thought("1"), thought("2")]


async def test_what_exceeds_the_spool_is_counted_and_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store, max_bytes=2_000)
    store.fail()
    recorder.emit(thought("1"))
    assert await recorder.committed()
    recorder.emit(thought("2" * 2_000))
    recorder.emit(thought("3"))
    assert not await recorder.committed(), "a row is missing"
    assert await recorder.committed(), "none since"
    assert recorder.lost == 1
    assert "aibridge: 1 records lost so far: the spool is full, recording.spool.max_bytes=2000" in caplog.messages
    store.let_all()
    await emptied(recorder)
    assert store.records == [thought("1"), thought("3")]


async def test_records_of_a_process_that_has_ended_are_written_by_the_next_one(make: Make) -> None:
    store = MemoryStore(stepped=True)
    first = make(store, retry_delays=(3_600.0,))
    store.fail(times=2)
    for number in range(10):
        first.emit(thought(str(number)))
    assert await first.committed()
    first.close(10)
    assert store.closed and store.records == [] and (first.lost, first.depth) == (0, 0)
    next_store = MemoryStore()
    second = make(next_store)
    second.emit(thought("of the next one"))
    assert await second.committed()
    await next_store.written(11)
    spooled_first = [record for record in next_store.records if record != thought("of the next one")]
    assert spooled_first == [thought(str(number)) for number in range(10)]


@pytest.mark.parametrize("fault", ["damaged", "refused"])
async def test_a_loss_before_the_first_record_of_a_process_is_logged_as_a_warning(
    make: Make, folder: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """mitmproxy ends if an error is logged before it listens."""
    store = MemoryStore(stepped=True)
    first = make(store, retry_delays=(3_600.0,))
    store.fail(times=2)
    first.emit(thought("spooled"))
    assert await first.committed()
    first.close(10)
    next_store = MemoryStore()
    if fault == "damaged":
        damage(folder)
    else:
        next_store.refused = [thought("spooled")]
    caplog.clear()
    second = make(next_store)
    await asyncio.to_thread(poll_until, lambda: second.lost, PATIENCE, what="a loss")
    assert (second.lost, next_store.records) == (1, [])
    assert {record.levelname for record in caplog.records} == {"WARNING"}


async def test_a_record_keeps_its_rows_id_however_often_it_is_written(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    store.fail(times=2)
    recorder.emit(thought())
    store.let_all()
    await emptied(recorder)
    ids = {record.id for attempt in store.attempts for record in attempt if isinstance(record, ModelThought)}
    assert len(ids) == 1 and len(ids.pop()) == 36


async def test_interceptions_carry_the_instance_that_handles_them(make: Make) -> None:
    store = MemoryStore()
    recorder = make(store)
    recorder.emit(STARTED)
    assert await recorder.committed()
    assert store.records == [replace(STARTED, instance_id=INSTANCE.id)]


async def test_an_instance_gives_signs_of_life_with_and_without_traffic(make: Make) -> None:
    store = MemoryStore()
    recorder = make(store, heartbeat=0.0)
    await store.registered(3)
    recorder.emit(thought())
    assert await recorder.committed()
    await store.registered(len(store.instances) + 3)
    assert set(store.instances) == {INSTANCE}


async def test_an_idle_recorder_notices_that_the_database_is_away(make: Make) -> None:
    store = MemoryStore()
    recorder = make(store, heartbeat=0.0, retry_delays=(3_600.0,))
    await store.registered(2)
    store.cannot_register = DatabaseUnavailable("gone")
    async with asyncio.timeout(PATIENCE):
        while not recorder._sinks[0].readiness().degraded:
            await turn()


# --- records that the database refuses --------------------------------------------------------------------------


async def test_a_record_that_is_refused_is_dropped_alone_and_counted(make: Make) -> None:
    store = MemoryStore()
    recorder = make(store)
    good, bad, better = thought("good"), thought("bad"), thought("better")
    store.refused = [bad]
    for record in (good, bad, better):
        recorder.emit(record)
    assert not await recorder.committed()
    assert store.records == [good, better]
    assert (recorder.lost, recorder.depth) == (1, 0)
    recorder.emit(thought("next"))
    assert await recorder.committed()


async def test_one_refused_record_of_many_costs_few_transactions_and_its_text_is_not_logged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    recorder = make(store)
    records: list[Record] = [thought(str(number)) for number in range(1_000)]
    store.refused = [records[617]]
    for record in records:
        recorder.emit(record)
    assert not await recorder.committed()
    assert store.records == records[:617] + records[618:] and recorder.lost == 1
    assert len(store.attempts) < 30
    assert "the database refuses a record: ModelThought: Refused: out of range" in caplog.text
    assert "the whole row" not in caplog.text


async def test_a_lone_record_that_is_refused_is_tried_once(make: Make) -> None:
    store = MemoryStore()
    recorder = make(store)
    store.refused = [bad := thought("bad")]
    recorder.emit(bad)
    assert not await recorder.committed()
    assert store.attempts == [(bad,)] and recorder.lost == 1


async def test_nothing_is_written_twice_when_the_database_goes_away_between_single_records(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    good, bad, better = thought("good"), thought("bad"), thought("better")
    store.refused = [bad]
    for record in (good, bad, better):
        recorder.emit(record)
    store.let(None, None)  # together: refused; then the first one alone: written
    store.fail()
    assert await recorder.committed(), "those that are left are in the spool"
    store.let_all()
    await emptied(recorder)
    assert store.records == [good, better] and recorder.lost == 1


@pytest.mark.parametrize("replaying", [False, True])
async def test_a_mistake_of_ours_ends_no_recording(
    make: Make, caplog: pytest.LogCaptureFixture, replaying: bool
) -> None:
    """What fails is repeated. Meanwhile, records are spooled."""
    store = MemoryStore()
    if replaying:
        store.cannot_register = DatabaseUnavailable("gone")
    recorder = make(store, heartbeat=0.0, needed_at_start=False)
    if not replaying:
        await store.registered(2)
    store.cannot_register = ValueError("a mistake")
    async with asyncio.timeout(PATIENCE):
        while "the recorder failed, trying again" not in caplog.text:
            await turn()
    recorder.emit(record := thought())
    assert await recorder.committed()
    store.cannot_register = None
    await emptied(recorder)
    assert store.records == [record] and recorder.lost == 0


# --- too many records -------------------------------------------------------------------------------------------


async def test_beyond_its_bound_records_are_dropped_and_counted(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    record = thought()
    for _ in range(MAX_QUEUED + 3):
        recorder.emit(record)
    assert (recorder.depth, recorder.lost) == (MAX_QUEUED, 3)
    store.let_all()
    assert not await recorder.committed(), "rows are missing"
    assert await recorder.committed(), "none since"
    assert (recorder.depth, recorder.lost, len(store.records)) == (0, 3, MAX_QUEUED)
    recorder.emit(record)
    assert recorder.depth == 1 and recorder.lost == 3


async def test_long_texts_count_by_their_size(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    share = MAX_TRANSACTION_BYTES // 4
    record = thought("x" * share)
    fitting = MAX_QUEUED_BYTES // (share + 5_000)
    for _ in range(fitting + 10):
        recorder.emit(record)
    assert await all_at_once(recorder.committed(), then=store.let_all) == [False]
    assert recorder.lost and len(store.records) >= fitting
    assert max(map(len, store.attempts)) == 4, "records of one transaction"
    recorder.emit(record)
    assert await recorder.committed(), "there is room again"


# --- the end ----------------------------------------------------------------------------------------------------


async def test_closing_writes_what_is_left_and_loses_nothing(make: Make) -> None:
    store = MemoryStore()
    recorder = make(store)
    recorder.emit(thought())
    recorder.close(10)
    assert (store.records, store.closed, recorder.lost, recorder.depth) == ([thought()], True, 0, 0)


async def test_draining_writes_what_is_left_and_loses_nothing(make: Make) -> None:
    store = MemoryStore()
    recorder = make(store)
    recorder.emit(thought())
    await recorder.drain(10)
    assert (store.records, store.closed, recorder.lost, recorder.depth) == ([thought()], True, 0, 0)


async def test_closing_does_not_wait_for_a_database_that_does_not_answer(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store, retry_delays=(3_600.0,))
    store.fail(times=2)
    recorder.emit(thought())
    assert await recorder.committed()
    recorder.emit(thought())
    recorder.close(10)
    assert (store.records, store.closed, recorder.lost, recorder.depth) == ([], True, 0, 0)
    assert len(store.attempts) == 2, "it was tried once more"


async def test_what_a_write_that_never_ends_has_taken_goes_to_the_spool(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    recorder.emit(thought("1"))
    waiting = asyncio.ensure_future(recorder.committed())
    await store.attempted(1)
    recorder.emit(thought("2"))
    [sink] = recorder._sinks
    await asyncio.to_thread(poll_until, lambda: sink.readiness().waiting == 2, what="both records in the sink")
    recorder.close(0)
    sink.close(0)
    assert (recorder.lost, recorder.depth) == (0, 0) and spooled(recorder) > 0
    store.let_all()
    await store.ended()
    next_store = MemoryStore()
    make(next_store)
    await next_store.written(2)
    assert next_store.records == [thought("1"), thought("2")]
    waiting.cancel()


async def test_closing_twice_counts_no_loss_twice(make: Make, folder: Path) -> None:
    refusing(folder)
    store = MemoryStore(stepped=True)
    recorder = make(store, retry_delays=(3_600.0,))
    store.fail(times=2)
    recorder.emit(thought())
    assert not await recorder.committed()
    recorder.close(10)
    recorder.close(10)
    assert recorder.lost == 1


async def test_what_is_left_can_be_written_in_the_background(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    recorder.emit(thought())
    await recorder.drain(None)
    await store.attempted(1)
    assert not store.closed
    store.let()
    await store.ended()
    assert store.records == [thought()] and recorder.lost == 0


async def test_a_record_that_comes_after_the_end_is_counted_as_lost_and_logged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = make(MemoryStore())
    recorder.close(10)
    recorder.emit(thought())
    recorder.emit(thought())
    assert not await recorder.committed()
    assert recorder.lost == 2
    assert caplog.messages == ["aibridge: 1 records lost so far: the bridge had ended before they were emitted"]


@pytest.mark.parametrize("error", [DatabaseUnavailable("locked"), ValueError("bug")], ids=repr)
def test_a_database_that_cannot_be_opened_stops_the_start(folder: Path, error: Exception) -> None:
    store = MemoryStore(cannot_open=error)
    with pytest.raises(type(error), match=str(error)):
        stream_to(store, folder).start()
    assert not store.opened and store.attempts == []


async def test_a_recorder_whose_start_failed_can_be_closed(folder: Path) -> None:
    recorder = stream_to(MemoryStore(cannot_open=DatabaseUnavailable("locked")), folder)
    with contextlib.suppress(DatabaseUnavailable):
        recorder.open()
    recorder.close(0)
    assert recorder.lost == 0
