"""The records in real SQLite files: the row of every record, and how interceptions belong together."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from aibridge_addon import records
from aibridge_addon.recording.sqlite.store import FIND_THREAD, PURGE_INTERVAL, THREADS_KEPT_FOR, SqliteStore
from tests.recording.sqlite.conftest import Open
from tests.support.database import Table, query, read_table
from tests.support.examples import (
    CHILD_ROWS,
    COMMON,
    ENDED,
    ENDED_ROW,
    PASSTHROUGH,
    PROMPT,
    STARTED,
    STARTED_ROW,
    THOUGHT,
    TOOL,
    answered,
    brought,
    called,
    continuing,
    interceptions,
    started,
)
from tests.support.reading import NOON

# --- rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", get_args(Table)[1:])
def test_a_record_is_a_row(path: Path, opened: Open, table: Table) -> None:
    record, expected = CHILD_ROWS[table]
    opened().write([STARTED, record])
    (row,) = read_table(path, table)
    assert len(row.pop("id")) == 36
    assert row == COMMON | expected


def test_an_interception_under_way_is_a_row_without_its_end(path: Path, opened: Open) -> None:
    opened().write([STARTED])
    assert interceptions(path) == {"i1": STARTED_ROW}


@pytest.mark.parametrize(
    "batches", [[[STARTED, PROMPT, ENDED]], [[STARTED], [PROMPT], [ENDED]], [[STARTED, PROMPT], [ENDED]]]
)
def test_an_interceptions_end_is_the_same_row_in_whatever_batch_it_comes(
    path: Path, opened: Open, batches: list[list[records.Record]]
) -> None:
    store = opened()
    for batch in batches:
        store.write(batch)
    assert interceptions(path) == {"i1": ENDED_ROW}
    assert len(read_table(path, "aibridge_user_prompts")) == 1


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("asked", "answered", "stored"),
    [("claude-1", "claude-1-x", "claude-1"), ("", "gpt-5", "gpt-5"), ("", None, ""), ("claude-1", None, "claude-1")],
)
def test_the_model_that_answered_stands_in_only_where_none_was_named(
    path: Path, opened: Open, together: bool, asked: str, answered: str | None, stored: str
) -> None:
    store = opened()
    begin, end = replace(STARTED, model=asked), replace(ENDED, model=answered)
    batches: list[list[records.Record]] = [[begin, end]] if together else [[begin], [end]]
    for batch in batches:
        store.write(batch)
    assert interceptions(path)["i1"]["model"] == stored


def test_several_interceptions_in_a_batch_keep_to_their_own_rows(path: Path, opened: Open) -> None:
    store = opened()
    store.write([started("a"), started("b"), replace(ENDED, interception_id="b", status="completed"), started("c")])
    store.write([replace(ENDED, interception_id="c"), replace(ENDED, interception_id="a", http_status=200)])
    rows = interceptions(path)
    assert {name: (row["status"], row["http_status"]) for name, row in rows.items()} == {
        "a": ("failed", 200),
        "b": ("completed", 529),
        "c": ("failed", 529),
    }


def test_a_passthrough_and_the_end_of_what_never_began_are_no_rows(path: Path, opened: Open) -> None:
    opened().write([PASSTHROUGH, ENDED])
    assert all(read_table(path, table) == [] for table in get_args(Table))


def test_what_is_not_to_be_recorded_is_null(path: Path, opened: Open) -> None:
    opened().write([STARTED, replace(PROMPT, prompt=None), replace(TOOL, input=None), replace(THOUGHT, content=None)])
    assert read_table(path, "aibridge_user_prompts")[0]["prompt"] is None
    assert read_table(path, "aibridge_tool_usages")[0]["input"] is None
    assert read_table(path, "aibridge_tool_usages")[0]["tool"] == "Read"
    assert read_table(path, "aibridge_model_thoughts")[0]["content"] is None


def test_a_batch_with_a_record_that_is_refused_leaves_nothing_behind(path: Path, opened: Open) -> None:
    store = opened()
    store.write([STARTED])
    with pytest.raises(sqlite3.IntegrityError):
        store.write([PROMPT, started("i2"), STARTED, ENDED])
    assert interceptions(path) == {"i1": STARTED_ROW} and read_table(path, "aibridge_user_prompts") == []
    store.write([ENDED])
    assert interceptions(path) == {"i1": ENDED_ROW}


# --- lineage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in a batch each"])
def test_an_interception_that_brings_a_tools_result_belongs_to_the_one_that_asked(
    path: Path, opened: Open, together: bool
) -> None:
    store = opened()
    chain = [
        started("root"),
        called("root", "t1"),
        replace(ENDED, interception_id="root"),
        started("second", after="t1"),
        called("second", "t2"),
        called("second", "t3"),
        started("third", after="t3"),
    ]
    for batch in [chain] if together else [[record] for record in chain]:
        store.write(batch)
    rows = interceptions(path)
    threads = {name: (row["thread_parent_id"], row["thread_root_id"], row["session_id"]) for name, row in rows.items()}
    assert threads == {
        "root": (None, None, "root"),
        "second": ("root", "root", "root"),
        "third": ("second", "root", "root"),
    }
    assert rows["root"]["status"] == "failed" and rows["third"]["correlating_tool_call_id"] == "t3"


def test_the_clients_own_session_counts_before_the_thread(path: Path, opened: Open) -> None:
    opened().write([started("root"), called("root", "t1"), started("second", after="t1", session="mine")])
    assert interceptions(path)["second"]["session_id"] == "mine"


@pytest.mark.parametrize("together", [True, False])
def test_another_users_call_is_never_linked(path: Path, opened: Open, together: bool) -> None:
    store = opened()
    chain = [started("root", who="ada"), called("root", "t1", who="ada"), started("second", after="t1", who="eve")]
    for batch in [chain] if together else [[record] for record in chain]:
        store.write(batch)
    row = interceptions(path)["second"]
    assert (row["thread_parent_id"], row["thread_root_id"], row["session_id"]) == (None, None, "second")


def test_a_call_that_nobody_made_is_linked_to_nothing(path: Path, opened: Open) -> None:
    opened().write([started("second", after="t1")])
    assert interceptions(path)["second"]["thread_parent_id"] is None


def test_the_most_exact_key_of_a_call_counts(path: Path, opened: Open) -> None:
    exact, broad = called("exact", "t1"), called("broad", "t2", seconds=9)
    chain = [started("exact"), started("broad"), exact, broad]
    nexts = [
        replace(STARTED, id=name, client_session_id=None, thread_keys=keys)
        for name, keys in {"one": ("ada t1", "ada t2"), "two": ("nothing", "ada t2"), "three": ("nothing",)}.items()
    ]
    opened().write([*chain, *nexts])
    rows = interceptions(path)
    assert [rows[name]["thread_parent_id"] for name in ("one", "two", "three")] == ["exact", "broad", None]


def test_a_call_is_found_by_primary_keys_whatever_the_number_of_rows(path: Path, opened: Open) -> None:
    opened()
    plan = [row["detail"] for row in query(path, f"explain query plan {FIND_THREAD.replace('?', repr('key'))}")]
    assert len(plan) == 2 and all(step.startswith("SEARCH") for step in plan)
    assert "PRIMARY KEY (key=?)" in plan[0] and "(id=?)" in plan[1]


def test_calls_are_forgotten_after_a_while(path: Path) -> None:
    now = [NOON]
    store = SqliteStore(path, durable=False, now=lambda: now[0])
    store.open()
    store.write([started("root"), called("root", "t1")])
    assert len(query(path, "select * from aibridge_threads")) == 1
    now[0] += THREADS_KEPT_FOR + PURGE_INTERVAL
    store.write([started("later")])
    store.close()
    assert query(path, "select * from aibridge_threads") == [] and len(interceptions(path)) == 2


def test_of_calls_with_the_same_id_the_latest_one_counts(path: Path, opened: Open) -> None:
    opened().write(
        [
            started("new"),
            started("old"),
            called("new", "t1", seconds=9),
            called("old", "t1"),
            started("next", after="t1"),
        ]
    )
    assert interceptions(path)["next"]["thread_parent_id"] == "new"


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in a batch each"])
@pytest.mark.parametrize("session", [None, "mine"])
def test_answers_that_continue_each_other_share_a_session(
    path: Path, opened: Open, together: bool, session: str | None
) -> None:
    store = opened()
    chain = [
        started("root", session=session),
        answered("root", "resp_1"),
        continuing("second", "resp_1"),
        answered("second", "resp_3"),
        continuing("third", "resp_3"),
    ]
    for batch in [chain] if together else [[record] for record in chain]:
        store.write(batch)
    rows = interceptions(path)
    threads = {name: (row["thread_parent_id"], row["thread_root_id"], row["session_id"]) for name, row in rows.items()}
    assert threads == {
        "root": (None, None, session or "root"),
        "second": ("root", "root", session or "root"),
        "third": ("second", "root", session or "root"),
    }


def test_an_answer_of_another_user_is_never_continued(path: Path, opened: Open) -> None:
    opened().write([started("root"), answered("root", "resp_1"), continuing("second", "resp_1", who="eve")])
    row = interceptions(path)["second"]
    assert (row["thread_parent_id"], row["session_id"]) == (None, "second")


# --- results ----------------------------------------------------------------------------------------------------


def results(path: Path) -> dict[tuple[str, str], tuple[str | None, object]]:
    rows = read_table(path, "aibridge_tool_usages")
    return {(row["interception_id"], row["provider_tool_call_id"]): (row["result"], row["metadata"]) for row in rows}


def own_call(name: str, call_id: str, *, injected: bool = False) -> records.Record:
    """A call in Ada's conversation that begins with `root`, or in one of its own."""
    keys = (f"{'ada' if name == 'root' else name} {call_id}",)
    return replace(
        TOOL,
        interception_id=name,
        provider_tool_call_id=call_id,
        injected=injected,
        result=None,
        metadata={},
        thread_keys=keys,
    )


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in a batch each"])
def test_results_are_added_to_the_calls_of_the_threads_parent(path: Path, opened: Open, together: bool) -> None:
    store = opened()
    chain = [
        started("root"),
        own_call("root", "t1"),
        own_call("root", "t2"),
        started("other"),
        own_call("other", "t1"),
        own_call("other", "t9"),
        started("second", after="t2"),
        brought("second", "t1", "boom", is_error=True),
        brought("second", "t2", "42"),
        brought("second", "t9", "not its own"),
    ]
    for batch in [chain] if together else [[record] for record in chain]:
        store.write(batch)
    assert results(path) == {
        ("root", "t1"): ("boom", {"result_is_error": True}),
        ("root", "t2"): ("42", {}),
        ("other", "t1"): (None, {}),
        ("other", "t9"): (None, {}),
    }


def test_the_first_result_of_a_call_stays(path: Path, opened: Open) -> None:
    store = opened()
    store.write([started("root"), own_call("root", "t1"), own_call("root", "i1", injected=True)])
    for number in ("second", "third"):
        store.write([started(number, after="t1"), brought(number, "t1", number), brought(number, "i1", number)])
    assert {name: result for (_, name), (result, _) in results(path).items()} == {"t1": "second", "i1": None}


def test_a_result_that_is_not_to_be_recorded_is_null(path: Path, opened: Open) -> None:
    store = opened()
    store.write([started("root"), own_call("root", "t1"), started("second", after="t1")])
    store.write([brought("second", "t1", None, is_error=True)])
    assert results(path) == {("root", "t1"): (None, {"result_is_error": True})}


@pytest.mark.parametrize("who", ["eve", "ada"])
def test_a_result_of_no_thread_changes_nothing(path: Path, opened: Open, who: str) -> None:
    opened().write(
        [
            started("root"),
            own_call("root", "t1"),
            started("second", who=who),
            brought("second", "t1"),
            brought("?", "t1"),
        ]
    )
    assert results(path) == {("root", "t1"): (None, {})}
