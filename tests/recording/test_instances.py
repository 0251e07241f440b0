"""Interceptions that a process left open are ended by another one, as soon as that process is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from aibridge_addon.recording.instances import SILENCE, Instance
from aibridge_addon.recording.recorder import Store
from aibridge_addon.records import Continuation
from tests.support.databases import Database, interceptions, prune
from tests.support.examples import ENDED, STARTED, uid
from tests.support.reading import NOON

SECOND = timedelta(seconds=1)
HERE = "this-host"


class Clock:
    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> Iterator[Store]:
    with closing(database.store(durable=False, now=clock)) as store:
        store.open()
        yield store


@pytest.fixture(scope="module")
def ended_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def instance(name: str, *, host: str = HERE, pid: int | None = None) -> Instance:
    return Instance(uid(name), host, os.getpid() if pid is None else pid, "1.0", NOON)


def begin(store: Store, of: str, name: str = "i1") -> None:
    store.write([replace(STARTED, id=uid(name), instance_id=uid(of))])


def test_an_instance_is_a_row_with_its_last_sign_of_life(database: Database, store: Store, clock: Clock) -> None:
    store.register(instance("a"))
    clock.now += 20 * SECOND
    store.register(instance("a"))
    assert database.query("select * from aibridge_instances") == [
        {
            "id": uid("a"),
            "host": HERE,
            "pid": os.getpid(),
            "version": "1.0",
            "started_at": "2026-01-02T12:00:00.000000+00:00",
            "heartbeat_at": "2026-01-02T12:00:20.000000+00:00",
        }
    ]


Find = Callable[[int], Instance]
GONE: dict[str, tuple[Find, timedelta]] = {
    "its process has ended": (lambda pid: instance("a", pid=pid), SECOND),
    "another host, silent for too long": (lambda _: instance("a", host="other"), SILENCE + SECOND),
}
LIVING: dict[str, tuple[Find, timedelta]] = {
    "its process runs": (lambda _: instance("a"), SILENCE),
    "another host, no such process here": (lambda pid: instance("a", host="other", pid=pid), SILENCE),
}


@pytest.mark.parametrize(("find", "silent"), GONE.values(), ids=GONE)
def test_what_an_instance_that_is_gone_left_open_is_ended(
    database: Database, store: Store, clock: Clock, ended_pid: int, find: Find, silent: timedelta
) -> None:
    clock.now += 5 * SECOND
    store.register(find(ended_pid))
    begin(store, "a")
    store.write([replace(STARTED, id=uid("done"), instance_id=uid("a")), replace(ENDED, interception_id=uid("done"))])
    clock.now += silent
    assert store.register(instance("b")) == 1
    rows = interceptions(database)
    ended = rows[uid("i1")]
    assert (ended["status"], ended["error_type"]) == ("failed", "process_ended")
    assert ended["ended_at"] == "2026-01-02T12:00:05.000000+00:00", "its last sign of life"
    assert rows[uid("done")]["error_type"] == ENDED.error_type
    assert store.register(instance("b")) == 0


@pytest.mark.parametrize(("find", "silent"), LIVING.values(), ids=LIVING)
def test_what_a_living_instance_has_open_stays_open(
    database: Database, store: Store, clock: Clock, ended_pid: int, find: Find, silent: timedelta
) -> None:
    store.register(find(ended_pid))
    begin(store, "a")
    clock.now += silent
    assert store.register(instance("b")) == 0
    begin(store, "b", "i2")
    assert store.register(instance("b")) == 0
    assert [row["status"] for row in interceptions(database).values()] == [None, None]


def test_an_instance_that_was_silent_itself_judges_others_only_after_its_next_sign_of_life(
    database: Database, store: Store, clock: Clock
) -> None:
    """The machine slept, its clock jumped, or the database was away: no instance could give a sign of life."""
    for name in ("a", "b"):
        store.register(instance(name, host=name))
    begin(store, "a")
    clock.now += timedelta(hours=1)
    assert store.register(instance("b", host="b")) == 0
    store.register(instance("a", host="a"))
    ended = []
    for _ in range(4):
        clock.now += 20 * SECOND
        ended.append(store.register(instance("b", host="b")))
    assert ended == [0, 0, 0, 1]


def test_silence_of_a_process_that_runs_here_counts_from_the_second_sign_of_life_on(
    database: Database, store: Store, clock: Clock
) -> None:
    """An instance that starts cannot know whether the clock has just jumped."""
    store.register(instance("a"))
    begin(store, "a")
    clock.now += timedelta(hours=1)
    assert store.register(instance("b")) == 0
    assert [row["status"] for row in interceptions(database).values()] == [None]
    clock.now += 20 * SECOND
    assert store.register(instance("b")) == 1


def test_a_clock_that_goes_back_ends_nothing_that_lives(store: Store, clock: Clock, ended_pid: int) -> None:
    clock.now += timedelta(hours=1)
    store.register(instance("a"))
    store.register(instance("gone", pid=ended_pid))
    begin(store, "a")
    begin(store, "gone", "i2")
    clock.now -= timedelta(hours=1)
    assert store.register(instance("b")) == 1


@pytest.mark.parametrize("of", [None, uid("unregistered")])
def test_what_no_registered_instance_has_open_is_ended_at_its_own_start(
    database: Database, store: Store, of: str | None
) -> None:
    store.write([replace(STARTED, instance_id=of)])
    assert store.register(instance("b")) == 1
    [row] = interceptions(database).values()
    assert (row["error_type"], row["ended_at"]) == ("process_ended", row["started_at"])


def test_a_background_response_stays_open_for_the_process_that_will_answer_its_end(
    database: Database, store: Store, clock: Clock, ended_pid: int
) -> None:
    store.register(instance("a", pid=ended_pid))
    begin(store, "a")
    store.write([Continuation("key", {"background": uid("i1")}, NOON + timedelta(days=1), uid("i1"))])
    clock.now += SECOND
    assert store.register(instance("b")) == 0
    begin(store, "b", "i2")
    prune(database, NOON + timedelta(days=1))
    rows = interceptions(database)
    assert (rows[uid("i1")]["error_type"], rows[uid("i2")]["status"]) == ("background_unfinished", None)


def test_an_end_never_comes_before_the_start(database: Database, store: Store, clock: Clock, ended_pid: int) -> None:
    store.register(instance("a", pid=ended_pid))
    store.write([replace(STARTED, instance_id=uid("a"), started_at=NOON + 7 * SECOND)])
    clock.now += 10 * SECOND
    store.register(instance("b"))
    [row] = interceptions(database).values()
    assert row["ended_at"] == row["started_at"]


def test_an_end_that_comes_after_all_replaces_it(database: Database, store: Store, ended_pid: int) -> None:
    """It was in the spool of the process, or the process was only away."""
    store.register(instance("a", pid=ended_pid))
    begin(store, "a")
    assert store.register(instance("b")) == 1
    store.write([replace(ENDED, status="completed", error_type=None, error_message=None)])
    [row] = interceptions(database).values()
    assert (row["status"], row["error_type"]) == ("completed", None)
    assert row["ended_at"] == "2026-01-02T12:00:01.500000+00:00"
