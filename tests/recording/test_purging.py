"""One person's texts or rows are deleted, and those of others stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from aibridge_addon.recording.pruning import MAX_CONTINUATIONS, Busy, Deleted, Pace, Step, count, run
from aibridge_addon.recording.purging import PURGED, rows_of, running, texts_of
from aibridge_addon.recording.rows import DETAIL_TABLES
from aibridge_addon.records import Continuation, InterceptionStarted, Record
from tests.recording.test_pruning import DAY, chain, orphans, with_texts
from tests.support.databases import Database, PostgresDatabase, interceptions, write
from tests.support.examples import TOOL, uid
from tests.support.reading import NOON

SUMS = "interceptions, failed, input_tokens, output_tokens, cache_read_input_tokens, cache_write_input_tokens, unpriced"


def chain_of(actor: str, name: str, *, ended: bool = True) -> list[Record]:
    return [
        replace(record, initiator_id=actor) if isinstance(record, InterceptionStarted) else record
        for record in chain(name, NOON - DAY, ended=ended)
    ]


def purge(place: Database, steps: Sequence[Step]) -> Deleted:
    with place.prunable() as database:
        announced = count(database, steps)
        assert database.take_turn()
        deleted = run(database, steps, Pace(clock=lambda: 0.0, wait=lambda _: False))
    # Keys of threads are not announced: they have an interception until that is deleted.
    assert announced.rows == deleted.rows - Counter({"aibridge_threads": deleted.rows["aibridge_threads"]})
    assert announced.texts == deleted.texts
    return deleted


def tables(place: Database) -> frozenset[str]:
    with place.prunable() as database:
        return database.tables()


def test_texts_of_one_actor_go_and_their_numbers_stay(database: Database) -> None:
    records = [*chain_of("ada", "a1"), *chain_of("ada", "a2"), *chain_of("ada@x", "b")]
    write(database, *records)
    tokens = database.rows("aibridge_token_usages")
    deleted = purge(database, texts_of("ada", NOON))
    assert deleted.texts.total() == 10 and deleted.rows.total() == 0
    assert with_texts(database) == {uid("b")}
    assert database.rows("aibridge_token_usages") == tokens and len(interceptions(database)) == 3
    assert purge(database, texts_of("ada", NOON)) == Deleted()


def test_rows_of_one_actor_go_from_every_table(database: Database) -> None:
    call = replace(TOOL, id=uid("t"), interception_id=uid("a"), thread_keys=("of ada",))
    other = replace(call, id=uid("u"), interception_id=uid("b"), thread_keys=("of bob",))
    kept = Continuation("kept", {"text": "of ada"}, NOON + DAY, uid("a"))
    write(database, *chain_of("ada", "a"), call, kept, *chain_of("bob", "b"), other)
    purge(database, rows_of("ada", tables(database)))
    assert interceptions(database).keys() == {uid("b")}
    assert orphans(database) == 0
    assert all(database.query(f"select id from {table}") for table in DETAIL_TABLES)
    assert database.query("select key from aibridge_threads") == [{"key": "of bob"}]
    assert database.query("select key from aibridge_continuations") == []


@pytest.mark.parametrize("what", ["texts", "rows"])
def test_what_later_requests_of_the_actor_need_goes_with_texts_and_with_rows(database: Database, what: str) -> None:
    of_ada = [
        Continuation(f"ada{n}", {"kept": ["text"]}, NOON + DAY, None, "ada") for n in range(MAX_CONTINUATIONS + 1)
    ]
    open_one = Continuation("open", {"background": uid("o")}, NOON + DAY, uid("o"), "ada")
    others = [Continuation("bob", {}, NOON + DAY, None, "bob"), Continuation("claim", {}, NOON + DAY)]
    write(database, *chain_of("ada", "a"), *chain_of("ada", "o", ended=False), *of_ada, open_one, *others)
    deleted = purge(database, texts_of("ada", NOON) if what == "texts" else rows_of("ada", tables(database)))
    assert deleted.rows["aibridge_continuations"] == len(of_ada)
    left = database.query("select key from aibridge_continuations order by key")
    assert [row["key"] for row in left] == ["bob", "claim", "open"]


def test_rows_that_another_transaction_has_locked_are_waited_for(postgres: PostgresDatabase) -> None:
    write(postgres, *chain_of("ada", "a1"), *chain_of("ada", "a2"))
    [step, *_] = rows_of("ada", frozenset())
    with postgres.prunable() as holder, postgres.prunable() as opened, holder.transaction() as execute:
        execute("select id from aibridge_interceptions where id = :id for no key update", {"id": uid("a1")})
        with pytest.raises(Busy), opened.transaction() as other:
            step.delete(opened, other, 10, step.first)
    assert len(interceptions(postgres)) == 2


def test_of_an_unknown_actor_nothing_is_deleted(database: Database) -> None:
    write(database, *chain_of("ada", "a"))
    for steps in (rows_of("a%", tables(database)), texts_of("ADA", NOON)):
        assert purge(database, steps) == Deleted()
    assert with_texts(database) == {uid("a")}


def test_what_is_in_progress_stays_and_is_counted(database: Database) -> None:
    write(database, *chain_of("ada", "a", ended=False), *chain_of("ada", "b"))
    purge(database, rows_of("ada", tables(database)))
    assert interceptions(database).keys() == {uid("a")}
    with database.prunable() as opened:
        assert (running(opened, "ada"), running(opened, "bob")) == (1, 0)


def test_sums_by_hour_stay_for_the_bill_without_the_actor(database: Database) -> None:
    write(database)
    hours = ["2026-01-02T10:00:00.000000+00:00", "2026-01-02T11:00:00.000000+00:00"]
    for actor, hour, number in (
        ("ada", hours[0], 1),
        ("ada", hours[1], 2),
        ("bob", hours[0], 4),
        (PURGED, hours[0], 8),
    ):
        database.execute(
            f"insert into aibridge_hourly_usage (hour, initiator_id, provider_name, model, client, billing, cost_usd,"
            f" {SUMS}) values ('{hour}', '{actor}', 'openai', 'm', 'c', 'api', {number}.5,"
            f" {', '.join([str(number)] * 7)})"
        )
    deleted = purge(database, rows_of("ada", tables(database)))
    assert deleted.rows == {"aibridge_hourly_usage": 2}
    rows = database.query("select * from aibridge_hourly_usage order by initiator_id, hour")
    found = {(row["initiator_id"], row["hour"]): (row["output_tokens"], row["cost_usd"]) for row in rows}
    assert found == {(PURGED, hours[0]): (9, 10.0), (PURGED, hours[1]): (2, 2.5), ("bob", hours[0]): (4, 4.5)}
    assert purge(database, rows_of(PURGED, tables(database))) == Deleted()
