"""Tokens of the bridge in every database, and how bridges remember them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pytest

from aibridge_addon.credentials.tokens import UNAVAILABLE, UNKNOWN, Grant, Presented, RefusedToken, presented
from aibridge_addon.recording import tokens as module
from aibridge_addon.recording.tokens import FRESH, GRACE, REST, USE_NOTED, TokenCache, TokenStore
from aibridge_addon.records import DatabaseUnavailable
from tests.recording.conftest import OpenStore
from tests.support.databases import Database, PostgresDatabase
from tests.support.polling import poll_until
from tests.support.reading import NOON
from tests.support.tokens import Made, add_token, made_in, unknown_token

SECOND = timedelta(seconds=1)


class Clock:
    """The time of day and a monotonic clock, which go together."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds - 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, open_store: OpenStore) -> Iterator[TokenStore]:
    open_store()
    with closing(database.tokens()) as tokens:
        yield tokens


def found(store: TokenStore, *made: Made) -> list[Grant | None]:
    by_digest = store.find([one.presented.digest for one in made])
    return [by_digest.get(one.presented.digest) for one in made]


def rows(database: Database) -> list[dict[str, Any]]:
    return database.query("select * from aibridge_tokens order by created_at")


# --- the stores


def test_a_token_is_found_with_its_owner(store: TokenStore) -> None:
    expires_at = NOON + timedelta(days=90)
    one = add_token(store, "alice", groups=["team", "ops ü"], expires_at=expires_at)
    other = add_token(store, "bob")
    missing = Made(unknown_token(), "")
    assert found(store, one, missing, other) == [
        Grant(one.id, "alice", ("team", "ops ü"), expires_at),
        None,
        Grant(other.id, "bob"),
    ]


def test_before_the_first_token_none_is_found(store: TokenStore) -> None:
    assert store.find([presented(unknown_token()).digest]) == {}


def test_a_revoked_token_keeps_the_time_when_that_was_done(store: TokenStore) -> None:
    made = add_token(store)
    assert store.revoke(made.id, NOON) == NOON
    assert store.revoke(made.id, NOON + SECOND) == NOON
    assert store.revoke("nonsense", NOON) is None
    [grant] = found(store, made)
    assert grant is not None and grant.revoked_at == NOON


def test_the_last_use_is_noted_once_a_minute(store: TokenStore, database: Database) -> None:
    made, other = add_token(store), add_token(store, created_at=NOON)
    steps = [(timedelta(0), NOON), (USE_NOTED - SECOND, NOON), (USE_NOTED, NOON + USE_NOTED)]
    for later, expected in steps:
        store.note_use([made.id], NOON + later)
        by_id = {row["id"]: row["last_used_at"] for row in rows(database)}
        assert datetime.fromisoformat(by_id[made.id]) == expected
        assert by_id[other.id] is None


def test_neither_a_token_nor_its_digest_is_stored(store: TokenStore, database: Database) -> None:
    made = add_token(store)
    stored = repr([rows(database), database.query("select * from aibridge_token_key")])
    assert made.token not in stored and made.presented.digest not in stored


def test_a_copied_row_is_no_token_of_another_database(store: TokenStore, database: Database) -> None:
    made = add_token(store)
    database.execute(f"update aibridge_token_key set key = '{'00' * 32}'")
    assert found(store, made) == [None]


def test_without_tables_the_database_is_away(database: Database) -> None:
    with closing(database.tokens()) as store, pytest.raises(DatabaseUnavailable):
        store.find([presented(unknown_token()).digest])


def test_tokens_take_one_connection(postgres: PostgresDatabase) -> None:
    with closing(postgres.tokens()) as store, closing(postgres.store()) as other:
        other.open()
        add_token(store)
        postgres.wait_for_connections(2)


# --- two bridges on one database


async def test_what_is_revoked_by_one_is_refused_by_the_other_within_seconds(
    store: TokenStore, database: Database, clock: Clock
) -> None:
    made = add_token(store)
    with closing(TokenCache(database.tokens(), now=clock.now, clock=clock)) as cache:
        assert isinstance(await cache.check(made.presented), Grant)
        store.revoke(made.id, clock.now())
        clock.seconds += FRESH
        verdict = await cache.check(made.presented)
    assert isinstance(verdict, RefusedToken) and "revoked" in verdict.message and not verdict.unavailable


async def test_what_is_created_by_one_is_known_to_the_other_within_seconds(
    store: TokenStore, database: Database, clock: Clock
) -> None:
    token = unknown_token()
    with closing(TokenCache(database.tokens(), now=clock.now, clock=clock)) as cache:
        assert await cache.check(presented(token)) == UNKNOWN
        made = add_token(store)
        assert isinstance(await cache.check(made.presented), Grant)


async def test_the_use_of_a_token_reaches_its_row(store: TokenStore, database: Database, clock: Clock) -> None:
    made = add_token(store)
    with closing(TokenCache(database.tokens(), now=clock.now, clock=clock)) as cache:
        await cache.check(made.presented)
        await asyncio.to_thread(
            poll_until, lambda: rows(database)[0]["last_used_at"] is not None, what="the use of the token"
        )


async def test_while_the_server_is_stopped_known_tokens_count(postgres: PostgresDatabase, clock: Clock) -> None:
    made = made_in(postgres)
    with closing(TokenCache(postgres.tokens(), now=clock.now, clock=clock)) as cache:
        await cache.check(made.presented)
        postgres.server.stop()
        try:
            clock.seconds += FRESH
            assert isinstance(await cache.check(made.presented), Grant)
            assert await cache.check(presented(unknown_token())) == UNAVAILABLE
        finally:
            postgres.server.start()


# --- what a bridge remembers


class Scripted:
    """Tokens in memory, which count queries and may be away."""

    def __init__(self, *known: Presented) -> None:
        self.grants = {one.digest: Grant(one.digest, "alice") for one in known}
        self.queries: list[Sequence[str]] = []
        self.used: list[Sequence[str]] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def find(self, digests: Sequence[str]) -> Mapping[str, Grant]:
        self.queries.append(digests)
        self.gate.wait(60)
        if self.error is not None:
            raise self.error
        return {digest: self.grants[digest] for digest in digests if digest in self.grants}

    def note_use(self, ids: Sequence[str], now: datetime) -> None:
        self.used.append(ids)

    def add(self, digest: str, row: Mapping[str, Any], key: bytes) -> None:
        raise NotImplementedError

    def revoke(self, id: str, now: datetime) -> datetime | None:
        raise NotImplementedError

    def close(self) -> None:
        self.gate.set()


def several(count: int) -> list[Presented]:
    return [presented(unknown_token()) for _ in range(count)]


@pytest.fixture
def token() -> Presented:
    return presented(unknown_token())


@pytest.fixture
def scripted(token: Presented) -> Scripted:
    return Scripted(token)


@pytest.fixture
def cache(scripted: Scripted, clock: Clock) -> Iterator[TokenCache]:
    with closing(TokenCache(scripted, now=clock.now, clock=clock)) as cache:
        yield cache


async def test_a_known_token_costs_one_query_in_a_few_seconds(
    cache: TokenCache, scripted: Scripted, clock: Clock, token: Presented
) -> None:
    await cache.check(token)
    for _ in range(100):
        assert isinstance(cache.known(token), Grant)
    assert len(scripted.queries) == 1
    clock.seconds += FRESH
    assert cache.known(token) is None
    await cache.check(token)
    assert len(scripted.queries) == 2


async def test_a_malformed_token_costs_no_query(cache: TokenCache, scripted: Scripted, token: Presented) -> None:
    for text in ("aib_", "aib_x", "aib_" + "0" * 49):
        assert await cache.check(presented(text)) == UNKNOWN
    assert scripted.queries == []


async def test_requests_that_wait_share_one_query(cache: TokenCache, scripted: Scripted, token: Presented) -> None:
    scripted.gate.clear()
    first = asyncio.create_task(cache.check(token))
    await asyncio.to_thread(poll_until, lambda: scripted.queries, what="the first query")
    unknown = several(50)
    others = [asyncio.create_task(cache.check(one)) for one in (token, *unknown, *unknown)]
    await asyncio.sleep(0)
    scripted.gate.set()
    assert isinstance(await first, Grant)
    verdicts = await asyncio.gather(*others)
    assert isinstance(verdicts[0], Grant) and verdicts[1:] == [UNKNOWN] * 100
    assert [len(query) for query in scripted.queries] == [1, 50]


async def test_a_token_expires_between_two_queries(cache: TokenCache, scripted: Scripted, clock: Clock) -> None:
    [token] = several(1)
    scripted.grants[token.digest] = Grant("id", "alice", expires_at=NOON + SECOND)
    assert isinstance(await cache.check(token), Grant)
    clock.seconds += 1
    verdict = cache.known(token)
    assert isinstance(verdict, RefusedToken) and "expired" in verdict.message
    assert len(scripted.queries) == 1


async def test_its_use_is_noted_once_a_minute(
    cache: TokenCache, scripted: Scripted, clock: Clock, token: Presented
) -> None:
    for _ in range(int(3 * USE_NOTED / SECOND)):
        await cache.check(token)
        clock.seconds += 1
    await asyncio.to_thread(poll_until, lambda: len(scripted.used) == 3, what="three uses")


async def test_a_flood_of_unknown_tokens_is_bounded_and_displaces_no_known_one(
    cache: TokenCache, scripted: Scripted, token: Presented, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 50)
    monkeypatch.setattr(module, "MAX_UNKNOWN", 20)
    monkeypatch.setattr(module, "MAX_KNOWN", 1)
    assert isinstance(await cache.check(token), Grant)
    verdicts = await asyncio.gather(*(cache.check(one) for one in several(80)))
    assert (verdicts.count(UNKNOWN), verdicts.count(UNAVAILABLE)) == (50, 30)
    assert len(cache._unknown) == 20
    assert isinstance(cache.known(token), Grant)


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), ValueError("a broken row")])
async def test_while_the_database_is_away_known_tokens_count_for_a_while(
    cache: TokenCache, scripted: Scripted, clock: Clock, token: Presented, error: Exception
) -> None:
    revoked, [unknown] = presented(unknown_token()), several(1)
    scripted.grants[revoked.digest] = Grant("id", "bob", revoked_at=NOON)
    for one in (token, revoked):
        await cache.check(one)
    scripted.error = error
    for step in (FRESH, GRACE - FRESH - 1):
        clock.seconds += step
        assert isinstance(await cache.check(token), Grant)
        refused = await cache.check(revoked)
        assert isinstance(refused, RefusedToken) and not refused.unavailable
        assert await cache.check(unknown) == UNAVAILABLE
    clock.seconds += REST + 1
    assert await cache.check(token) == UNAVAILABLE
    scripted.error = None
    clock.seconds += REST
    assert isinstance(await cache.check(token), Grant)
    assert await cache.check(unknown) == UNKNOWN


async def test_while_the_database_is_away_requests_do_not_wait_for_it(
    cache: TokenCache, scripted: Scripted, clock: Clock, token: Presented
) -> None:
    await cache.check(token)
    scripted.error = DatabaseUnavailable("away")
    clock.seconds += FRESH
    await cache.check(token)
    asked = len(scripted.queries)
    assert isinstance(cache.known(token), Grant)
    assert [cache.known(one) for one in several(10)] == [UNAVAILABLE] * 10
    assert len(scripted.queries) == asked


async def test_a_database_that_hangs_is_away(
    cache: TokenCache, scripted: Scripted, clock: Clock, token: Presented, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.check(token)
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    scripted.gate.clear()
    clock.seconds += FRESH
    assert isinstance(await cache.check(token), Grant)
    assert await cache.check(presented(unknown_token())) == UNAVAILABLE
