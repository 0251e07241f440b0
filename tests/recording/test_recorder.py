"""The record stream with a recorder: only calls of `committed` wait for the database, nothing is written twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from aibridge_addon.recording.recorder import MAX_QUEUED, MAX_TRANSACTION, Recorder
from aibridge_addon.recording.stream import COMMIT_TIMEOUT, LINGER, RecordStream
from aibridge_addon.records import DatabaseUnavailable, ModelThought, Record
from tests.support.reading import NOON
from tests.support.stores import PATIENCE, MemoryStore

Make = Callable[..., RecordStream]


def unchanged(record: Record) -> Record:
    return record


def stream_to(store: MemoryStore, *, commit_timeout: float = COMMIT_TIMEOUT, **options: Any) -> RecordStream:
    """A stream with one sink, which writes to that store."""
    return RecordStream([Recorder(store, **options)], unchanged, commit_timeout=commit_timeout)


def thought(content: str = "hm") -> ModelThought:
    return ModelThought("i", "r", content, "thinking", NOON)


class Delays(tuple[float, ...]):
    """Waits of no length, which remember in which order they were asked for."""

    asked: list[int]

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return super().__getitem__(index)


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Make started recorders, and end them."""
    started: list[tuple[RecordStream, MemoryStore]] = []

    def start(store: MemoryStore, **options: Any) -> RecordStream:
        recorder = stream_to(store, **{"retry_delays": (0.0,), "commit_timeout": PATIENCE, **options})
        recorder.start()
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


async def available(recorder: RecordStream) -> None:
    """Wait until the recorder has noticed that the database can be written to, and has written everything."""
    async with asyncio.timeout(PATIENCE):
        while not await recorder.committed():
            await turn()


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


def test_records_wait_for_company_but_not_for_long() -> None:
    async def scenario() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, Clock)
        store = MemoryStore()
        recorder = stream_to(store)
        recorder.start()
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
    assert await recorder.committed()
    assert store.records == [thought()]


# --- a database that cannot be written to ---------------------------------------------------------------------------


async def test_a_database_that_does_not_answer_is_tried_again_until_it_does(make: Make) -> None:
    store = MemoryStore(stepped=True)
    delays = Delays((0.0, 0.0, 0.0))
    delays.asked = []
    recorder = make(store, retry_delays=delays)
    store.fail(times=5)
    recorder.emit(thought())
    assert not await recorder.committed()
    await store.attempted(6)
    assert recorder.depth == 1 and recorder.lost == 0
    store.let_all()
    await available(recorder)
    assert store.records == [thought()] and recorder.depth == 0 and recorder.lost == 0
    assert delays.asked == [0, 1, 2, 2, 2]


async def test_while_it_cannot_be_written_to_nobody_waits_in_vain(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    store.fail()
    recorder.emit(thought("1"))
    assert not await recorder.committed()
    recorder.emit(thought("2"))
    assert not await recorder.committed()
    store.let_all()
    await available(recorder)
    assert store.records == [thought("1"), thought("2")]


async def test_everybody_who_waits_is_told_at_the_first_failure(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    recorder.emit(thought())
    first = asyncio.ensure_future(recorder.committed())
    await store.attempted(1)
    store.fail()
    assert not await first


async def test_answers_that_wait_for_the_next_batch_are_released_at_the_first_failure_too(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store)
    recorder.emit(thought("in the batch that fails"))
    first = asyncio.ensure_future(recorder.committed())
    await store.attempted(1)
    recorder.emit(thought("in the next one"))
    second = asyncio.ensure_future(recorder.committed())
    await turn()
    store.fail()
    assert not await first
    async with asyncio.timeout(PATIENCE / 2):  # well before the time limit of a commit
        assert not await second


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
    assert not await recorder.committed()
    await store.attempted(4)
    store.let_all()
    await available(recorder)
    assert store.records == [good, better] and recorder.lost == 1


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
    store.fail()
    recorder.emit(thought())
    assert not await recorder.committed()
    recorder.emit(thought())
    recorder.close(0)
    assert (store.records, store.closed, recorder.lost, recorder.depth) == ([], True, 2, 0)


async def test_closing_twice_counts_no_loss_twice(make: Make) -> None:
    store = MemoryStore(stepped=True)
    recorder = make(store, retry_delays=(3_600.0,))
    store.fail()
    recorder.emit(thought())
    assert not await recorder.committed()
    recorder.close(0)
    recorder.close(0)
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
def test_a_database_that_cannot_be_opened_stops_the_start(error: Exception) -> None:
    store = MemoryStore(cannot_open=error)
    with pytest.raises(type(error), match=str(error)):
        stream_to(store).start()
    assert not store.opened and store.attempts == []


async def test_a_recorder_whose_start_failed_can_be_closed() -> None:
    recorder = stream_to(MemoryStore(cannot_open=DatabaseUnavailable("locked")))
    with contextlib.suppress(DatabaseUnavailable):
        recorder.start()
    recorder.close(0)
    assert recorder.lost == 0
