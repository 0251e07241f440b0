"""The hourly usage is what a plain sum over the rows gives, whatever was written in whatever order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aibridge_addon.recording.hourly_usage import AMOUNTS, MAX_AMOUNT, MAX_NAME
from aibridge_addon.recording.recorder import Store
from aibridge_addon.records import Continuation, InterceptionEnded, InterceptionStarted, Record, TokenUsage
from tests.recording.conftest import OpenStore
from tests.support.database import Row
from tests.support.databases import Database, SqliteDatabase, opened, prune
from tests.support.examples import ENDED, ID, INSTANCE, STARTED, TOKENS, uid
from tests.support.hourly_usage import hourly, summed
from tests.support.reading import NOON

HOUR = timedelta(hours=1)
USAGE = replace(TOKENS, kind="answer", model="claude-2", cache_write_input_tokens=4, cost_usd=0.5, id=uid("t1"))
DONE = replace(ENDED, status="completed", error_type=None)


# --- examples ---------------------------------------------------------------------------------------------------


def test_token_rows_count_when_they_are_written_and_an_interception_when_it_ends(
    database: Database, open_store: OpenStore
) -> None:
    store = open_store()
    usage = replace(USAGE, created_at=NOON + HOUR, model="claude-2")
    unpriced = replace(usage, cost_usd=None, model="claude-3", turn=3, id=uid("t2"))
    store.write([STARTED, usage, unpriced])
    store.write([replace(ENDED, ended_at=NOON + 2.5 * HOUR)])
    names = {"initiator_id": "ada", "provider_name": "anthropic-eu", "client": "Claude Code", "billing": "api"}
    nothing = dict.fromkeys(AMOUNTS, 0)
    tokens = {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3, "cache_write_input_tokens": 4}
    at = "2026-01-02T{}:00:00.000000+00:00".format
    assert hourly(database) == [
        {"hour": at(13), "model": "claude-2", **names, **nothing, **tokens, "cost_usd": 0.5},
        {"hour": at(13), "model": "claude-3", **names, **nothing, **tokens, "unpriced": 1},
        {"hour": at(14), "model": "claude-3", **names, **nothing, "interceptions": 1, "failed": 1},
    ]


@dataclass(frozen=True)
class Case:
    batches: Sequence[Sequence[Record]]
    interceptions: Sequence[tuple[int, str, int]]
    """Hour, model and number of failed ones, of each row with an interception."""
    cost: float = 0.5


UNKNOWN = replace(STARTED, billing=None)
LATER = replace(DONE, ended_at=NOON + 3 * HOUR)
SECOND = replace(USAGE, turn=3, model="claude-3", id=uid("t2"))
CASES = {
    "all in one batch": Case([[STARTED, USAGE, DONE]], [(12, "claude-2", 0)]),
    "no answer": Case([[STARTED, ENDED]], [(12, "claude-1", 1)], 0),
    "no answer, the model is known at the end": Case(
        [[replace(STARTED, model="")], [DONE]], [(12, "claude-1-20260101", 0)], 0
    ),
    "written twice": Case([[STARTED, USAGE, DONE]] * 2, [(12, "claude-2", 0)]),
    "written twice in one batch": Case([[STARTED, USAGE, DONE] * 2], [(12, "claude-2", 0)]),
    "the beginning was written before": Case([[STARTED, USAGE], [STARTED, USAGE, DONE]], [(12, "claude-2", 0)]),
    "two ends": Case([[STARTED, USAGE, ENDED], [LATER]], [(15, "claude-2", 0)]),
    "two ends in one batch": Case([[STARTED, USAGE], [ENDED, LATER]], [(15, "claude-2", 0)]),
    "a late token row of an earlier turn": Case([[STARTED, SECOND, DONE], [USAGE]], [(12, "claude-3", 0)], 1),
    "a late token row of the last turn": Case([[STARTED, USAGE, DONE], [SECOND]], [(12, "claude-3", 0)], 1),
    "an iteration beside the last turn": Case(
        [[STARTED, USAGE, replace(SECOND, kind="compaction"), DONE]], [(12, "claude-2", 0)], 1
    ),
    "unknown billing": Case([[UNKNOWN, USAGE, DONE]], [(12, "claude-2", 0)]),
    "the end of what never began": Case(
        [[STARTED, DONE], [replace(DONE, interception_id=uid("?"))]], [(12, "claude-1", 0)], 0
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_row_counts_once(database: Database, open_store: OpenStore, case: Case) -> None:
    store = open_store()
    for batch in case.batches:
        store.write(batch)
    rows = hourly(database)
    assert rows == summed(database)
    ended = [(int(row["hour"][11:13]), row["model"], row["failed"]) for row in rows if row["interceptions"]]
    assert ended == case.interceptions
    assert sum(row["cost_usd"] for row in rows) == case.cost


def test_an_end_that_replaces_that_of_an_ended_process_moves_the_count(
    database: Database, open_store: OpenStore
) -> None:
    store = open_store()
    store.write([STARTED, USAGE])
    assert store.register(INSTANCE) == 1
    assert [(row["hour"][11:13], row["failed"]) for row in hourly(database)] == [("12", 1)]
    store.write([replace(DONE, ended_at=NOON + HOUR)])
    assert [(row["hour"][11:13], row["interceptions"], row["failed"]) for row in hourly(database)] == [
        ("12", 0, 0),
        ("13", 1, 0),
    ]
    assert hourly(database) == summed(database)


def test_a_background_response_that_expires_counts_as_failed(database: Database) -> None:
    with opened(database) as store:
        store.write([STARTED, Continuation("key", {"background": ID}, NOON - HOUR, ID)])
    prune(database, NOON)
    assert [(row["interceptions"], row["failed"], row["model"]) for row in hourly(database)] == [(1, 1, "claude-1")]
    assert hourly(database) == summed(database)


def test_what_a_refused_batch_would_have_counted_is_not_counted(database: Database, open_store: OpenStore) -> None:
    store = open_store()
    with pytest.raises(Exception, match=r"(?i)range|too large"):
        store.write([STARTED, USAGE, replace(SECOND, input_tokens=2**63), DONE])
    assert hourly(database) == []
    store.write([STARTED, USAGE, DONE])
    assert hourly(database) == summed(database)


def test_counts_and_names_beyond_all_bounds_are_limited(database: Database, open_store: OpenStore) -> None:
    store = open_store()
    usage = replace(USAGE, model="m" * 10_000, input_tokens=2**62)
    store.write([replace(STARTED, initiator_id="é" * 1_000), usage, DONE])
    for name in ("t2", "t3"):
        store.write([replace(usage, id=uid(name))])
    [row] = hourly(database)
    assert (row["input_tokens"], row["model"], row["initiator_id"]) == (MAX_AMOUNT, "m" * MAX_NAME, "é" * MAX_NAME)
    assert row["output_tokens"] == 6


def test_rows_that_are_deleted_stay_counted(database: Database, open_store: OpenStore) -> None:
    store = open_store()
    store.write([STARTED, USAGE, DONE])
    before = hourly(database)
    for table in ("aibridge_token_usages", "aibridge_interceptions"):
        database.execute(f"delete from {table}")
    store.write([replace(STARTED, id=uid("i2"))])
    assert hourly(database) == before


# --- any sequence -----------------------------------------------------------------------------------------------

MOMENTS = st.sampled_from([NOON, NOON + HOUR - timedelta(microseconds=1), NOON + HOUR, NOON + 36 * HOUR])
MODELS = st.sampled_from(["", "claude-1", "claude-2"])


@st.composite
def beginnings(draw: st.DrawFn, name: str) -> InterceptionStarted:
    return replace(
        STARTED,
        id=uid(name),
        initiator_id=draw(st.sampled_from(["ada", "bob"])),
        model=draw(MODELS),
        billing=draw(st.sampled_from(["api", "subscription", None])),
        started_at=draw(MOMENTS),
    )


@st.composite
def usages(draw: st.DrawFn, names: Sequence[str]) -> TokenUsage:
    return replace(
        USAGE,
        interception_id=uid(draw(st.sampled_from(names))),
        id=uid(f"t{draw(st.integers(0, 99))}"),
        model=draw(MODELS),
        turn=draw(st.integers(1, 2)),
        kind=draw(st.sampled_from(["answer", "answer", "compaction"])),
        cost_usd=draw(st.sampled_from([None, 0.0, 0.25])),
        input_tokens=draw(st.integers(0, 3)),
        created_at=draw(MOMENTS),
    )


@st.composite
def ends(draw: st.DrawFn, names: Sequence[str]) -> InterceptionEnded:
    end = replace(DONE, interception_id=uid(draw(st.sampled_from(names))), ended_at=draw(MOMENTS))
    return replace(end, status=draw(st.sampled_from(["completed", "failed"])), model=draw(MODELS) or None)


Step = Sequence[Record] | None
"""A batch. None: the search for what processes that are gone left open."""


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Return batches in which everything comes after its beginning, some of them twice."""
    names = ["i1", "i2", "i3"]
    parts = draw(st.lists(st.one_of(usages(names), ends(names)), max_size=12))
    records: list[Record] = [*parts]
    for name in names:
        mine = [n for n, record in enumerate(records) if getattr(record, "interception_id", "") == uid(name)]
        at = draw(st.integers(0, min(mine, default=len(records))))
        records.insert(at, draw(beginnings(name)))
    cuts = sorted(draw(st.lists(st.integers(0, len(records)), max_size=6)))
    steps: list[Step] = [records[a:b] for a, b in zip([0, *cuts], [*cuts, len(records)], strict=True) if a < b]
    for _ in range(draw(st.integers(0, 3))):
        again = draw(st.integers(0, len(steps) - 1))
        steps.insert(draw(st.integers(again, len(steps))), draw(st.sampled_from([steps[again], None])))
    return steps


def follow(store: Store, steps: Sequence[Step]) -> None:
    for step in steps:
        if step is None:
            store.register(INSTANCE)
        else:
            store.write(step)


def empty(database: Database) -> None:
    for table in ("aibridge_hourly_usage", "aibridge_token_usages", "aibridge_interceptions"):
        database.execute(f"delete from {table}")


@given(steps=histories())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_history_the_table_is_the_sum_of_the_rows(database: Database, steps: list[Step]) -> None:
    with opened(database) as store:
        empty(database)
        follow(store, steps)
    assert without_empty(hourly(database)) == without_empty(summed(database))


def without_empty(rows: list[Row]) -> list[Row]:
    """Leave out rows of zeros. They stand for free answers without tokens, or are not there."""
    return [row for row in rows if any(row[column] for column in AMOUNTS)]


@given(steps=histories())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_migration_counts_the_rows_that_are_there(database: Database, steps: list[Step]) -> None:
    with opened(database) as store:
        empty(database)
        follow(store, steps)
    forget_step(database)
    with opened(database):
        assert hourly(database) == summed(database)


def forget_step(database: Database) -> None:
    """Make the database one that was written before there was an hourly usage."""
    if isinstance(database, SqliteDatabase):
        made = "select name from sqlite_master where type = 'index' and sql is not null"
        for row in database.query(f"{made} and not name glob '*open' and not name glob '*_interception_id'"):
            database.execute(f"drop index {row['name']}")
        for column in ("initiator_id", "session_id"):
            database.execute(f"create index idx_aibridge_interceptions_{column} on aibridge_interceptions ({column})")
        database.execute("delete from _sqlite_migrations where name = '006_hourly_usage'")
    else:
        for column in ("ended_at", "provider", "client"):
            database.execute(f"drop index aibridge_interceptions_{column}_idx")
        database.execute("delete from _aibridge_migrations where name = '006_hourly_usage'")
    database.execute("drop table aibridge_hourly_usage")
