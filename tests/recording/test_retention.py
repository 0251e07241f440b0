"""Old rows are deleted in the background, at intervals, while the bridge runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from aibridge_addon.config.schema import Retention
from aibridge_addon.recording.pruning import Prunable
from aibridge_addon.recording.retention import Pruner
from aibridge_addon.records import DatabaseUnavailable
from tests.recording.test_pruning import fill
from tests.support.databases import Database, interceptions
from tests.support.examples import uid
from tests.support.polling import poll_until
from tests.support.reading import NOON

DAY = timedelta(days=1)


@contextmanager
def running(place: Database, retention: Retention, **options: Any) -> Iterator[Pruner]:
    options = {"now": lambda: NOON, "first_run": 0.0, "interval": 0.01, **options}
    pruner = Pruner(retention, lambda: place.prunable(lambda: NOON), lambda before: 0, **options)
    pruner.start()
    try:
        yield pruner
    finally:
        pruner.close(30)


def test_old_rows_go_and_younger_ones_stay(database: Database) -> None:
    fill(database, [3 * DAY, DAY])
    with running(database, Retention(rows=2 * DAY)):
        poll_until(lambda: interceptions(database).keys() == {uid("1")}, what="the end of the old row")


def test_rows_that_become_old_later_are_deleted_later(database: Database) -> None:
    fill(database, [DAY])
    now = [NOON]
    with running(database, Retention(rows=2 * DAY), now=lambda: now[0]) as pruner:
        assert interceptions(database).keys() == {uid("0")}
        now[0] += 2 * DAY
        poll_until(lambda: not interceptions(database), what="the end of the row")
    assert pruner.backlog == 0


def test_nothing_is_deleted_in_the_first_seconds_or_after_the_end(database: Database) -> None:
    fill(database, [3 * DAY])
    with running(database, Retention(rows=DAY), first_run=60.0):
        pass
    assert interceptions(database).keys() == {uid("0")}


def test_a_process_without_the_turn_only_counts(database: Database) -> None:
    fill(database, [3 * DAY, 3 * DAY, DAY])
    pruner = Pruner(
        Retention(rows=2 * DAY, content=timedelta(hours=1)),
        lambda: database.prunable(lambda: NOON),
        lambda before: 0,
        now=lambda: NOON,
    )
    with database.prunable(lambda: NOON) as other:
        assert other.take_turn()
        assert pruner.prune() is None
    assert pruner.backlog == 3 and len(interceptions(database)) == 3
    assert pruner.prune() is not None
    assert pruner.backlog == 0
    pruner.close(0)


def test_a_database_that_is_away_is_tried_again(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    fill(database, [3 * DAY])
    attempts = list[int]()

    def open_at_the_third_attempt() -> Prunable:
        attempts.append(1)
        if len(attempts) < 3:
            raise DatabaseUnavailable("it restarts")
        return database.prunable(lambda: NOON)

    pruner = Pruner(
        Retention(rows=DAY),
        open_at_the_third_attempt,
        lambda before: 0,
        now=lambda: NOON,
        first_run=0,
        interval=0.01,
    )
    pruner.start()
    poll_until(lambda: not interceptions(database), what="the end of the row")
    pruner.close(30)
    assert "old rows cannot be deleted now, trying again later: it restarts" in caplog.text


@pytest.mark.parametrize(("lifetime", "expected"), [("1d", [NOON - DAY]), (0, [])])
def test_old_files_of_spools_are_removed_when_rows_are(
    database: Database, lifetime: object, expected: list[datetime]
) -> None:
    fill(database, [])
    asked = list[datetime]()

    def remove(before: datetime) -> int:
        asked.append(before)
        return 1

    retention = Retention.model_validate({"rows": lifetime})
    Pruner(retention, lambda: database.prunable(lambda: NOON), remove, now=lambda: NOON).prune()
    assert asked == expected


def test_its_end_does_not_wait_for_the_next_run(database: Database) -> None:
    fill(database, [])
    with running(database, Retention(), interval=600.0):
        pass
    assert not any(thread.name == "aibridge-pruner" for thread in threading.enumerate())
