"""Pins of tools in every database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from aibridge_addon.recording import tool_pins as module
from aibridge_addon.recording.tool_pins import ToolPins, ToolPinStore
from aibridge_addon.records import DatabaseUnavailable
from aibridge_addon.records.tool_pins import ToolPin
from tests.support.databases import Database, opened
from tests.support.reading import NOON


def pin(tool: str, digest: str = "first", server: str = "s") -> ToolPin:
    return ToolPin(server, tool, digest, f'{{"description": "{digest} \\u00fc"}}')


@pytest.fixture
def store(database: Database) -> Iterator[ToolPinStore]:
    with opened(database), closing(database.tool_pins()) as store:
        yield store


def test_the_first_pin_stays_until_it_is_replaced(store: ToolPinStore) -> None:
    store.add([pin("b"), pin("a"), pin("a", server="other")], NOON)
    store.add([pin("a", "second"), pin("c")], NOON)
    assert store.read("s") == [pin("a"), pin("b"), pin("c")]
    store.replace([pin("a", "second"), pin("d")], NOON)
    assert store.read("s") == [pin("a", "second"), pin("b"), pin("c"), pin("d")]
    assert store.read("other") == [pin("a", server="other")]
    assert store.read("nothing") == []


async def test_what_has_no_pin_is_pinned_as_it_is(store: ToolPinStore) -> None:
    first, second = ToolPins(store), ToolPins(store)  # two processes
    assert await first.pinned("s", [pin("a"), pin("b")]) == {"a": "first", "b": "first"}
    assert await second.pinned("s", [pin("a", "second"), pin("c", "second")]) == {
        "a": "first",
        "b": "first",
        "c": "second",
    }


async def test_a_server_cannot_fill_the_database(store: ToolPinStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PINS", 3)
    pins = ToolPins(store)
    assert len(await pins.pinned("s", [pin("a"), pin("b")])) == 2
    assert set(await pins.pinned("s", [pin("c"), pin("d")])) == {"a", "b", "c"}
    assert set(await pins.pinned("s", [pin("e")])) == {"a", "b", "c"}


async def test_a_database_that_is_away_is_an_error(database: Database) -> None:
    with closing(database.tool_pins()) as store, pytest.raises(DatabaseUnavailable):
        await ToolPins(store).pinned("s", [pin("a")])
