"""Keys of results in SQLite: claimed once, by whichever connection comes first."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from aibridge_addon.recording.sqlite.claims import SqliteClaims
from aibridge_addon.recording.sqlite.store import UNFINISHED, SqliteStore
from aibridge_addon.records import Continuation, DatabaseUnavailable
from tests.recording.sqlite.conftest import Open
from tests.support.database import read_table
from tests.support.examples import ENDED, NOON_TEXT, STARTED
from tests.support.reading import NOON

LATER = NOON + timedelta(days=60)


@pytest.fixture
def claims(path: Path, opened: Open) -> Iterator[SqliteClaims]:
    opened()
    made = SqliteClaims(path)
    yield made
    made.close()


def test_a_key_is_claimed_once(claims: SqliteClaims, path: Path) -> None:
    other = SqliteClaims(path)
    assert claims.claim("a", NOON, LATER)
    assert not claims.claim("a", NOON, LATER)
    assert not other.claim("a", NOON, LATER)
    assert other.claim("b", NOON, LATER)
    other.close()


def test_of_claims_at_the_same_time_one_succeeds(claims: SqliteClaims) -> None:
    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(lambda _: claims.claim("a", NOON, LATER), range(32)))
    assert claimed.count(True) == 1


def test_an_expired_key_can_be_claimed_again(claims: SqliteClaims) -> None:
    assert claims.claim("a", NOON, NOON + timedelta(days=1))
    assert claims.claim("a", NOON + timedelta(days=1), LATER)


def test_without_a_database_nothing_is_claimed(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        SqliteClaims(tmp_path / "missing.db").claim("a", NOON, LATER)


def test_a_background_response_without_an_end_fails_when_it_expires(path: Path) -> None:
    store = SqliteStore(path, durable=False, now=lambda: NOON)
    store.open()
    open_one, ended_one = replace(STARTED, id="open"), replace(STARTED, id="ended")
    kept = [Continuation(id, {"background": id, "model": "m"}, NOON) for id in ("open", "ended")]
    store.write([open_one, ended_one, replace(ENDED, interception_id="ended", status="completed"), *kept])
    store.close()
    rows = {row["id"]: row for row in read_table(path, "aibridge_interceptions")}
    assert (rows["open"]["status"], rows["open"]["error_type"]) == ("failed", "background_unfinished")
    assert (rows["open"]["error_message"], rows["open"]["ended_at"]) == (UNFINISHED, NOON_TEXT)
    assert rows["ended"]["status"] == "completed"
