"""Keys of results: claimed once, by whichever connection comes first."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from aibridge_addon.recording.expiry import UNFINISHED
from aibridge_addon.recording.reader import BlockingLedger
from aibridge_addon.recording.sqlite.claims import SqliteLedger
from aibridge_addon.records import Continuation, DatabaseUnavailable
from tests.recording.conftest import OpenStore
from tests.support.databases import Database, PostgresDatabase, interceptions, prune
from tests.support.examples import ENDED, NOON_TEXT, STARTED, uid
from tests.support.polling import poll_until
from tests.support.reading import NOON
from tests.support.relay import Relay

LATER = NOON + timedelta(days=60)


@pytest.fixture
def ledger(database: Database, open_store: OpenStore) -> Iterator[BlockingLedger]:
    open_store()
    with closing(database.ledger()) as ledger:
        yield ledger


def test_a_key_is_claimed_once(database: Database, ledger: BlockingLedger) -> None:
    with closing(database.ledger()) as other:
        assert ledger.claim("a", NOON, LATER)
        assert not ledger.claim("a", NOON, LATER)
        assert not other.claim("a", NOON, LATER)
        assert other.claim("b", NOON, LATER)


def test_of_claims_at_the_same_time_one_succeeds(database: Database, ledger: BlockingLedger) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(8) as threads:
        ledgers = [ledger, *(stack.enter_context(closing(database.ledger())) for _ in range(3))] * 8
        claimed = list(threads.map(lambda one: one.claim("a", NOON, LATER), ledgers))
    assert claimed.count(True) == 1


def test_an_expired_key_can_be_claimed_again(ledger: BlockingLedger) -> None:
    assert ledger.claim("a", NOON, NOON + timedelta(days=1))
    assert ledger.claim("a", NOON + timedelta(days=1), LATER)


def test_what_is_kept_is_read_until_its_key_is_claimed(ledger: BlockingLedger, open_store: OpenStore) -> None:
    open_store().write([Continuation("a", {"background": "x"}, LATER)])
    assert ledger.read(["a"], NOON)["a"].value == b'{"background":"x"}'
    assert not ledger.claim("a", NOON, LATER)
    assert ledger.claim("a", LATER, LATER + timedelta(days=1))
    assert b"background" not in ledger.read(["a"], LATER)["a"].value


def test_without_a_file_nothing_is_claimed(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        SqliteLedger(tmp_path / "missing.db").claim("a", NOON, LATER)


def test_without_tables_nothing_is_claimed(postgres: PostgresDatabase) -> None:
    with closing(postgres.ledger()) as ledger, pytest.raises(DatabaseUnavailable, match="does not exist"):
        ledger.claim("a", NOON, LATER)


def test_a_claim_whose_answer_is_lost_succeeds(postgres: PostgresDatabase) -> None:
    """Otherwise, the first one to read a result would drop it as recorded before."""
    with closing(postgres.store()) as store, Relay(postgres.server.port) as relay, ThreadPoolExecutor(1) as pool:
        store.open()
        with closing(postgres.via(relay.port).ledger()) as ledger:
            ledger.read(["a"], NOON)
            relay.lose_answers()
            claimed = pool.submit(ledger.claim, "a", NOON, LATER)
            poll_until(lambda: postgres.query("select * from aibridge_continuations"), what="the claim")
            relay.cut()
            assert claimed.result(60)
        with closing(postgres.ledger()) as other:
            assert not other.claim("a", NOON, LATER)


def test_a_background_response_without_an_end_fails_when_it_expires(database: Database, open_store: OpenStore) -> None:
    open_one, ended_one = replace(STARTED, id=uid("open")), replace(STARTED, id=uid("ended"))
    kept = [Continuation(name, {"background": uid(name)}, NOON, uid(name)) for name in ("open", "ended")]
    ended = replace(ENDED, interception_id=uid("ended"), status="completed")
    open_store().write([open_one, ended_one, ended, *kept])
    prune(database, NOON)
    rows = interceptions(database)
    unfinished = rows[uid("open")]
    assert (unfinished["status"], unfinished["error_type"]) == ("failed", "background_unfinished")
    assert (unfinished["error_message"], unfinished["ended_at"]) == (UNFINISHED, NOON_TEXT)
    assert rows[uid("ended")]["status"] == "completed"
    assert database.query("select * from aibridge_continuations") == []
