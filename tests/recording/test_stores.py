"""The records in real databases: the row of every record, and how interceptions belong together."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from datetime import timedelta
from typing import get_args

import psycopg
import pytest

from aibridge_addon import records
from aibridge_addon.recording.expiry import THREADS_KEPT_FOR
from tests.recording.conftest import OpenStore
from tests.support.database import Table
from tests.support.databases import Database, SqliteDatabase, batches, interceptions, prune
from tests.support.examples import (
    CHILD_ROWS,
    COMMON,
    ENDED,
    ENDED_ROW,
    ID,
    PASSTHROUGH,
    PROMPT,
    STARTED,
    STARTED_ROW,
    THOUGHT,
    TOKENS,
    TOOL,
    answered,
    brought,
    called,
    continuing,
    started,
    uid,
)
from tests.support.reading import NOON

# --- rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", CHILD_ROWS)
def test_a_record_is_a_row(database: Database, open_store: OpenStore, table: Table) -> None:
    record, expected = CHILD_ROWS[table]
    open_store().write([STARTED, record])
    (row,) = database.rows(table)
    assert len(row.pop("id")) == 36
    assert row == database.stored(COMMON | expected)


def test_an_interception_under_way_is_a_row_without_its_end(database: Database, open_store: OpenStore) -> None:
    open_store().write([STARTED])
    assert interceptions(database) == {ID: STARTED_ROW}


@pytest.mark.parametrize(
    "batches", [[[STARTED, PROMPT, ENDED]], [[STARTED], [PROMPT], [ENDED]], [[STARTED, PROMPT], [ENDED]]]
)
def test_an_interceptions_end_is_the_same_row_in_whatever_batch_it_comes(
    database: Database, open_store: OpenStore, batches: list[list[records.Record]]
) -> None:
    store = open_store()
    for batch in batches:
        store.write(batch)
    assert interceptions(database) == {ID: ENDED_ROW}
    assert len(database.rows("aibridge_user_prompts")) == 1


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("asked", "answered", "stored"),
    [("claude-1", "claude-1-x", "claude-1"), ("", "gpt-5", "gpt-5"), ("", None, ""), ("claude-1", None, "claude-1")],
)
def test_the_model_that_answered_stands_in_only_where_none_was_named(
    database: Database, open_store: OpenStore, together: bool, asked: str, answered: str | None, stored: str
) -> None:
    store = open_store()
    begin, end = replace(STARTED, model=asked), replace(ENDED, model=answered)
    batches: list[list[records.Record]] = [[begin, end]] if together else [[begin], [end]]
    for batch in batches:
        store.write(batch)
    assert interceptions(database)[ID]["model"] == stored


def test_several_interceptions_in_a_batch_keep_to_their_own_rows(database: Database, open_store: OpenStore) -> None:
    store = open_store()
    store.write(
        [started("a"), started("b"), replace(ENDED, interception_id=uid("b"), status="completed"), started("c")]
    )
    store.write([replace(ENDED, interception_id=uid("c")), replace(ENDED, interception_id=uid("a"), http_status=200)])
    rows = interceptions(database)
    assert {name: (row["status"], row["http_status"]) for name, row in rows.items()} == {
        uid("a"): ("failed", 200),
        uid("b"): ("completed", 529),
        uid("c"): ("failed", 529),
    }


def test_a_passthrough_and_the_end_of_what_never_began_are_no_rows(database: Database, open_store: OpenStore) -> None:
    open_store().write([PASSTHROUGH, ENDED])
    assert all(database.rows(table) == [] for table in get_args(Table))


def test_what_is_not_to_be_recorded_is_null(database: Database, open_store: OpenStore) -> None:
    open_store().write(
        [STARTED, replace(PROMPT, prompt=None), replace(TOOL, input=None), replace(THOUGHT, content=None)]
    )
    assert database.rows("aibridge_user_prompts")[0]["prompt"] is None
    assert database.rows("aibridge_tool_usages")[0]["input"] is None
    assert database.rows("aibridge_tool_usages")[0]["tool"] == "Read"
    assert database.rows("aibridge_model_thoughts")[0]["content"] is None


def test_ids_and_names_of_any_length_are_stored(database: Database, open_store: OpenStore) -> None:
    """An index has a limit for what it can contain, unless texts can be compressed."""
    long = random.Random(1).randbytes(5_000).hex()
    begun = replace(STARTED, model=long, project=long, correlating_tool_call_id=long)
    tool = replace(TOOL, provider_response_id=long, provider_tool_call_id=long, tool=long, server_name=long)
    open_store().write([begun, tool, brought("i1", long)])
    assert interceptions(database)[ID]["correlating_tool_call_id"] == long
    [row] = database.rows("aibridge_tool_usages")
    assert row["provider_tool_call_id"] == long


@pytest.mark.parametrize(
    "refused",
    [replace(TOKENS, input_tokens=2**63), replace(PROMPT, prompt="\ud800")],
    ids=["number out of range", "text that is no Unicode"],
)
def test_a_batch_with_a_record_that_is_refused_leaves_nothing_behind(
    database: Database, open_store: OpenStore, refused: records.Record
) -> None:
    store = open_store()
    store.write([STARTED])
    with pytest.raises((OverflowError, UnicodeEncodeError, psycopg.errors.NumericValueOutOfRange)):
        store.write([PROMPT, started("i2"), refused, ENDED])
    assert interceptions(database) == {ID: STARTED_ROW} and database.rows("aibridge_user_prompts") == []
    store.write([ENDED])
    assert interceptions(database) == {ID: ENDED_ROW}


# --- lineage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in a batch each"])
def test_an_interception_that_brings_a_tools_result_belongs_to_the_one_that_asked(
    database: Database, open_store: OpenStore, together: bool
) -> None:
    store = open_store()
    chain = [
        started("root"),
        called("root", "t1"),
        replace(ENDED, interception_id=uid("root")),
        started("second", after="t1"),
        called("second", "t2"),
        called("second", "t3"),
        started("third", after="t3"),
    ]
    for batch in batches(chain, together=together):
        store.write(batch)
    rows = interceptions(database)
    threads = {name: (row["thread_parent_id"], row["thread_root_id"], row["session_id"]) for name, row in rows.items()}
    root, second, third = map(uid, ("root", "second", "third"))
    assert threads == {root: (None, None, root), second: (root, root, root), third: (second, root, root)}
    assert rows[root]["status"] == "failed" and rows[third]["correlating_tool_call_id"] == "t3"


def test_results_of_calls_of_which_one_is_in_an_earlier_batch_are_all_recorded(
    database: Database, open_store: OpenStore
) -> None:
    store = open_store()
    store.write([started("root"), called("root", "t1")])
    store.write([called("root", "t2"), started("second", after="t1"), brought("second", "t1"), brought("second", "t2")])
    rows = database.rows("aibridge_tool_usages")
    assert all(row["result"] is not None for row in rows) and len(rows) == 2


def test_the_clients_own_session_counts_before_the_thread(database: Database, open_store: OpenStore) -> None:
    open_store().write([started("root"), called("root", "t1"), started("second", after="t1", session="mine")])
    assert interceptions(database)[uid("second")]["session_id"] == "mine"


@pytest.mark.parametrize("together", [True, False])
def test_another_users_call_is_never_linked(database: Database, open_store: OpenStore, together: bool) -> None:
    store = open_store()
    chain = [started("root", who="ada"), called("root", "t1", who="ada"), started("second", after="t1", who="eve")]
    for batch in batches(chain, together=together):
        store.write(batch)
    row = interceptions(database)[uid("second")]
    assert (row["thread_parent_id"], row["thread_root_id"], row["session_id"]) == (None, None, uid("second"))


def test_a_call_that_was_never_made_is_linked_to_nothing(database: Database, open_store: OpenStore) -> None:
    open_store().write([started("second", after="t1")])
    assert interceptions(database)[uid("second")]["thread_parent_id"] is None


def test_the_most_exact_key_of_a_call_counts(database: Database, open_store: OpenStore) -> None:
    exact, broad = called("exact", "t1"), called("broad", "t2", seconds=9)
    chain = [started("exact"), started("broad"), exact, broad]
    nexts = [
        replace(STARTED, id=uid(name), client_session_id=None, thread_keys=keys)
        for name, keys in {"one": ("ada t1", "ada t2"), "two": ("nothing", "ada t2"), "three": ("nothing",)}.items()
    ]
    open_store().write([*chain, *nexts])
    rows = interceptions(database)
    parents = [rows[uid(name)]["thread_parent_id"] for name in ("one", "two", "three")]
    assert parents == [uid("exact"), uid("broad"), None]


def test_calls_are_forgotten_after_a_while(database: Database, open_store: OpenStore) -> None:
    open_store().write([started("root"), called("root", "t1")])
    calls = "select * from aibridge_threads"
    prune(database, NOON + THREADS_KEPT_FOR - timedelta(minutes=1))
    assert len(database.query(calls)) == 1
    prune(database, NOON + THREADS_KEPT_FOR + timedelta(minutes=1))
    assert database.query(calls) == [] and len(interceptions(database)) == 1


def test_of_calls_with_the_same_id_the_latest_one_counts(database: Database, open_store: OpenStore) -> None:
    open_store().write(
        [
            started("new"),
            started("old"),
            called("new", "t1", seconds=9),
            called("old", "t1"),
            started("next", after="t1"),
        ]
    )
    assert interceptions(database)[uid("next")]["thread_parent_id"] == uid("new")


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in a batch each"])
@pytest.mark.parametrize("session", [None, "mine"])
def test_answers_that_continue_each_other_share_a_session(
    database: Database, open_store: OpenStore, together: bool, session: str | None
) -> None:
    store = open_store()
    chain = [
        started("root", session=session),
        answered("root", "resp_1"),
        continuing("second", "resp_1"),
        answered("second", "resp_3"),
        continuing("third", "resp_3"),
    ]
    for batch in batches(chain, together=together):
        store.write(batch)
    rows = interceptions(database)
    threads = {name: (row["thread_parent_id"], row["thread_root_id"], row["session_id"]) for name, row in rows.items()}
    root, second, third = map(uid, ("root", "second", "third"))
    assert threads == {
        root: (None, None, session or root),
        second: (root, root, session or root),
        third: (second, root, session or root),
    }


def test_an_answer_of_another_user_is_never_continued(database: Database, open_store: OpenStore) -> None:
    open_store().write([started("root"), answered("root", "resp_1"), continuing("second", "resp_1", who="eve")])
    row = interceptions(database)[uid("second")]
    assert (row["thread_parent_id"], row["session_id"]) == (None, uid("second"))


# --- results ----------------------------------------------------------------------------------------------------


def results(database: Database) -> dict[tuple[str, str], tuple[str | None, object]]:
    rows = database.rows("aibridge_tool_usages")
    return {(row["interception_id"], row["provider_tool_call_id"]): (row["result"], row["metadata"]) for row in rows}


def own_call(name: str, call_id: str, *, injected: bool = False) -> records.Record:
    """A call in Ada's conversation that begins with `root`, or in one of its own."""
    keys = (f"{'ada' if name == 'root' else name} {call_id}",)
    return replace(
        TOOL,
        interception_id=uid(name),
        provider_tool_call_id=call_id,
        injected=injected,
        result=None,
        metadata={},
        thread_keys=keys,
    )


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in a batch each"])
def test_results_are_added_to_the_calls_of_the_threads_parent(
    database: Database, open_store: OpenStore, together: bool
) -> None:
    store = open_store()
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
    for batch in batches(chain, together=together):
        store.write(batch)
    assert results(database) == {
        (uid("root"), "t1"): ("boom", {"result_is_error": True}),
        (uid("root"), "t2"): ("42", {}),
        (uid("other"), "t1"): (None, {}),
        (uid("other"), "t9"): (None, {}),
    }


def test_the_first_result_of_a_call_stays(database: Database, open_store: OpenStore) -> None:
    store = open_store()
    store.write([started("root"), own_call("root", "t1"), own_call("root", "i1", injected=True)])
    for number in ("second", "third"):
        store.write([started(number, after="t1"), brought(number, "t1", number), brought(number, "i1", number)])
    assert {name: result for (_, name), (result, _) in results(database).items()} == {"t1": "second", "i1": None}


def test_a_result_that_is_not_to_be_recorded_is_null(database: Database, open_store: OpenStore) -> None:
    store = open_store()
    store.write([started("root"), own_call("root", "t1"), started("second", after="t1")])
    store.write([brought("second", "t1", None, is_error=True)])
    assert results(database) == {(uid("root"), "t1"): (None, {"result_is_error": True})}


@pytest.mark.parametrize("who", ["eve", "ada"])
def test_a_result_of_no_thread_changes_nothing(database: Database, open_store: OpenStore, who: str) -> None:
    open_store().write(
        [
            started("root"),
            own_call("root", "t1"),
            started("second", who=who),
            brought("second", "t1"),
            brought("?", "t1"),
        ]
    )
    assert results(database) == {(uid("root"), "t1"): (None, {})}


# --- indexes ----------------------------------------------------------------------------------------------------

INDEXES = {
    ("aibridge_interceptions", "started_at"),
    ("aibridge_interceptions", "ended_at"),
    ("aibridge_interceptions", "initiator_id, started_at"),
    ("aibridge_interceptions", "session_id, started_at"),
    ("aibridge_interceptions", "thread_root_id"),
    ("aibridge_interceptions", "thread_parent_id"),
    ("aibridge_interceptions", "client"),
    ("aibridge_token_usages", "interception_id"),
    ("aibridge_token_usages", "created_at"),
    ("aibridge_user_prompts", "interception_id"),
    ("aibridge_user_prompts", "created_at"),
    ("aibridge_tool_usages", "interception_id"),
    ("aibridge_tool_usages", "created_at"),
    ("aibridge_answers", "interception_id"),
    ("aibridge_model_thoughts", "interception_id"),
    ("aibridge_continuations", "expires_at"),
    ("aibridge_threads", "created_at"),
}
"""What reports, dashboards and retention select by."""


def test_what_reports_and_retention_select_by_has_an_index(database: Database, open_store: OpenStore) -> None:
    open_store()
    if isinstance(database, SqliteDatabase):
        found = database.query(
            "select tbl_name as place, sql from sqlite_master where type = 'index' and sql is not null"
        )
    else:
        found = database.query("select tablename as place, indexdef as sql from pg_indexes where schemaname = 'public'")
    columns = {(row["place"], re.sub(r'["\[\]\n]|  +', "", row["sql"].split("(")[1].split(")")[0])) for row in found}
    columns = {(place, ", ".join(part.strip() for part in names.split(","))) for place, names in columns}
    assert columns >= INDEXES
