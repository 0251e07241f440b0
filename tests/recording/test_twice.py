"""Records that are written once more, after a commit whose outcome was unknown or from a spool, change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aibridge_addon import records
from aibridge_addon.records import Record
from tests.recording.conftest import OpenStore
from tests.support.database import Table
from tests.support.databases import Database, batches, interceptions, opened
from tests.support.examples import (
    ANSWER,
    ENDED,
    PLAN_LIMIT,
    PROMPT,
    STARTED,
    THOUGHT,
    TOKENS,
    TOOL,
    brought,
    called,
    started,
    uid,
)
from tests.support.reading import NOON

WHOLE: tuple[Record, ...] = (
    STARTED,
    replace(PROMPT, id=uid("1")),
    replace(TOKENS, id=uid("2")),
    replace(TOOL, id=uid("3")),
    replace(ANSWER, id=uid("4")),
    replace(THOUGHT, id=uid("5")),
    PLAN_LIMIT,
    records.Continuation("key", {"last": "resp_1"}, NOON.replace(year=9000)),
    ENDED,
)


def with_id(record: Record, id: str) -> Record:
    assert isinstance(record, records.ToolUsage)
    return replace(record, id=id)


def all_rows(database: Database) -> list[object]:
    rows: list[object] = [sorted(map(str, database.rows(table))) for table in get_args(Table)]
    return [*rows, database.query("select * from aibridge_continuations")]


def empty(database: Database) -> None:
    for table in (*reversed(get_args(Table)), "aibridge_continuations", "aibridge_threads"):
        database.execute(f"delete from {table}")


def test_a_batch_that_is_written_twice_is_there_once(database: Database, open_store: OpenStore) -> None:
    store = open_store()
    store.write(WHOLE)
    once = all_rows(database)
    store.write(WHOLE)
    assert all_rows(database) == once


@pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
def test_a_replay_from_the_beginning_completes_what_was_written_before(
    database: Database, open_store: OpenStore, cut: int
) -> None:
    """The spool's file is written anew from its beginning, whatever the killed process had written of it."""
    store = open_store()
    store.write(WHOLE[:cut])
    store.write(WHOLE)
    replayed = all_rows(database)
    empty(database)
    store.write(WHOLE)
    assert all_rows(database) == replayed
    assert [len(database.rows(table)) for table in get_args(Table)] == [1] * 7


CHAIN: tuple[Record, ...] = (
    started("root"),
    with_id(called("root", "t1"), uid("1")),
    replace(ENDED, interception_id=uid("root")),
    started("next", after="t1"),
    with_id(called("next", "t2"), uid("2")),
    brought("next", "t1"),
    replace(ENDED, interception_id=uid("next")),
    started("last", after="t2"),
    replace(ENDED, interception_id=uid("last")),
)


@given(cuts=st.lists(st.integers(0, len(CHAIN)), max_size=3), together=st.booleans())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batches_any_number_of_times_give_the_same_rows(
    database: Database, cuts: list[int], together: bool
) -> None:
    rows = []
    with opened(database) as store:
        for parts in ([CHAIN], [*(CHAIN[:cut] for cut in sorted(cuts)), CHAIN]):
            empty(database)
            for part in parts:
                for batch in batches(part, together=together):
                    store.write(batch)
            rows.append(all_rows(database))
    assert rows[0] == rows[1] and len(interceptions(database)) == 3
