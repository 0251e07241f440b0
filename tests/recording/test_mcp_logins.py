"""Logins of people at MCP servers in every database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest

from aibridge_addon.recording.mcp_logins import McpLogins
from aibridge_addon.records import DatabaseUnavailable
from aibridge_addon.records.mcp_logins import McpLoginStore, StoredLogin, StoredToken
from tests.support.databases import Database, opened
from tests.support.reading import NOON

TOKEN = StoredToken("s", "ada", "sealed ü", "1")
LATER = NOON + timedelta(minutes=10)


@pytest.fixture
def store(database: Database) -> Iterator[McpLoginStore]:
    with opened(database), closing(database.mcp_logins()) as store:
        yield store


def test_a_token_belongs_to_one_actor_at_one_server(store: McpLoginStore) -> None:
    store.put_token(TOKEN, NOON)
    store.put_token(replace(TOKEN, actor="bob"), NOON)
    store.put_token(replace(TOKEN, version="2", content="new"), NOON)
    assert store.token("s", "ada") == StoredToken("s", "ada", "new", "2")
    assert store.token("other", "ada") is None
    assert [each.actor for each in store.tokens("s")] == ["ada", "bob"]


def test_one_process_at_a_time_renews_a_token(store: McpLoginStore) -> None:
    store.put_token(TOKEN, NOON)
    assert store.claim_refresh(TOKEN, NOON, LATER)
    assert not store.claim_refresh(TOKEN, NOON, LATER)
    assert store.claim_refresh(TOKEN, LATER, LATER + timedelta(minutes=1))  # the other one took too long
    store.release_refresh(TOKEN)
    assert store.claim_refresh(TOKEN, NOON, LATER)
    assert store.replace_token(TOKEN, replace(TOKEN, version="2"), NOON)
    assert not store.claim_refresh(TOKEN, NOON, LATER)
    assert store.claim_refresh(replace(TOKEN, version="2"), NOON, LATER)


def test_only_the_version_that_was_read_is_replaced_or_dropped(store: McpLoginStore) -> None:
    store.put_token(TOKEN, NOON)
    new = replace(TOKEN, version="2")
    assert not store.replace_token(new, TOKEN, NOON)
    assert not store.drop_token(new)
    assert store.drop_token(TOKEN)
    assert not store.drop_token(TOKEN)
    assert not store.replace_token(TOKEN, new, NOON)
    assert store.token("s", "ada") is None


def test_an_actor_has_one_link_which_is_taken_once(store: McpLoginStore) -> None:
    first, second = StoredLogin("s", "ada", "first"), StoredLogin("s", "ada", "second")
    assert store.offer_link(first, "a", NOON, LATER, NOON) == "first"
    assert store.offer_link(second, "b", NOON, LATER, NOON) == "first"
    assert store.find("link", "a", NOON) == first
    assert store.offer_link(second, "b", NOON, LATER, LATER) == "second"
    assert store.take("link", "a", NOON) is None
    assert store.take("login", "b", NOON) is None
    assert store.take("link", "b", NOON) == second
    assert store.take("link", "b", NOON) is None


def test_links_and_logins_expire_and_are_deleted(store: McpLoginStore, database: Database) -> None:
    login = StoredLogin("s", "ada", "x")
    store.offer_link(login, "a", NOON, LATER, NOON)
    assert not store.put_login(login, "b", NOON, LATER)
    assert store.put_login(login, "c", NOON, LATER)
    assert store.find("link", "a", LATER) is None
    assert store.take("login", "b", NOON) is None
    assert not store.put_login(replace(login, actor="bob"), "d", LATER, LATER + timedelta(minutes=1))
    assert [row["actor"] for row in database.query("select actor from aibridge_mcp_logins")] == ["bob"]
    assert store.take("login", "d", LATER + timedelta(minutes=1)) is None


def test_a_server_has_one_client(store: McpLoginStore) -> None:
    assert store.client("s") is None
    store.put_client("s", "first", NOON)
    store.put_client("s", "second", NOON)
    assert store.client("s") == "second"
    store.put_client("s", None, NOON)
    assert store.client("s") is None


async def test_a_database_that_is_away_is_an_error(database: Database) -> None:
    with closing(database.mcp_logins()) as store, pytest.raises(DatabaseUnavailable):
        await McpLogins(store).use(lambda each: each.token("s", "ada"))
