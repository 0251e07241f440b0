"""Fixtures for tests that are the same for every database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from aibridge_addon.recording.recorder import Store
from tests.support.databases import Database, opened


class OpenStore(Protocol):
    def __call__(self) -> Store: ...


@pytest.fixture
def open_store(database: Database) -> Iterator[OpenStore]:
    """Open stores of the database, each on a connection of its own, and close them."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(opened(database))
