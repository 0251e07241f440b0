"""Pins of tools in the database, which all processes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Protocol

from aibridge_addon.recording.reader import answer_of
from aibridge_addon.records import utc_now
from aibridge_addon.records.tool_pins import ToolPin

MAX_PINS = 5_000
"""Rows of one server. A server that lists ever new tools cannot fill the database: further ones are not pinned."""
TIMEOUT = 10.0
"""Seconds. Maximum time of a query."""


class ToolPinStore(Protocol):
    """Blocks the calling thread. Every method raises DatabaseUnavailable."""

    def read(self, server_name: str) -> Sequence[ToolPin]:
        """Return all pins of a server."""

    def add(self, pins: Sequence[ToolPin], now: datetime) -> None:
        """Insert pins. Those that are there already stay as they are."""

    def replace(self, pins: Sequence[ToolPin], now: datetime) -> None:
        """Insert pins, or replace those of the same tools."""

    def close(self) -> None: ...


class ToolPins:
    """Used on one event loop."""

    def __init__(self, store: ToolPinStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="aibridge-tool-pins")

    async def pinned(self, server_name: str, listed: Sequence[ToolPin]) -> Mapping[str, str]:
        """Pin those tools that have no pin, and return the digests of all. Raises DatabaseUnavailable."""
        return await answer_of(lambda: self._pinned(server_name, listed), self._threads, TIMEOUT)

    def _pinned(self, server_name: str, listed: Sequence[ToolPin]) -> Mapping[str, str]:
        found = {pin.tool: pin.digest for pin in self._store.read(server_name)}
        new = [pin for pin in listed if pin.tool not in found][: max(0, MAX_PINS - len(found))]
        if not new:
            return found
        self._store.add(new, utc_now())
        return {pin.tool: pin.digest for pin in self._store.read(server_name)}

    def close(self) -> None:
        self._store.close()
