"""Fixtures for the tests of SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aibridge_addon.recording.sqlite.store import SqliteStore
from tests.support.reading import NOON

Open = Callable[..., SqliteStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "aibridge.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    """Open stores, each on a connection of its own, and close them."""
    stores: list[SqliteStore] = []

    def make(*, durable: bool = True) -> SqliteStore:
        store = SqliteStore(path, durable=durable, now=lambda: NOON)
        store.open()
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.close()
