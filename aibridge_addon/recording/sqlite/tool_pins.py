"""Pins of tools in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal

from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite.reader import SqliteConnection
from aibridge_addon.records.tool_pins import ToolPin

READ = "select server_name, tool, digest, definition from aibridge_tool_pins where server_name = ? order by tool"
ADD = """
insert into aibridge_tool_pins (server_name, tool, digest, definition, pinned_at) values (?, ?, ?, ?, ?)
on conflict (server_name, tool) do nothing
"""
REPLACE = """
insert into aibridge_tool_pins (server_name, tool, digest, definition, pinned_at) values (?, ?, ?, ?, ?)
on conflict (server_name, tool) do update
set digest = excluded.digest, definition = excluded.definition, pinned_at = excluded.pinned_at
"""


class SqliteToolPins(SqliteConnection):
    """Implements `tool_pins.ToolPinStore` for SQLite."""

    MODE: ClassVar[Literal["ro", "rw"]] = "rw"

    def read(self, server_name: str) -> Sequence[ToolPin]:
        return self.use(lambda db: [ToolPin(*row) for row in db.execute(READ, (server_name,))])

    def add(self, pins: Sequence[ToolPin], now: datetime) -> None:
        self.use(lambda db: _write(db, ADD, pins, now))

    def replace(self, pins: Sequence[ToolPin], now: datetime) -> None:
        self.use(lambda db: _write(db, REPLACE, pins, now))


def _write(db: sqlite3.Connection, statement: str, pins: Sequence[ToolPin], now: datetime) -> None:
    rows: list[tuple[Any, ...]] = [
        (pin.server_name, pin.tool, pin.digest, pin.definition, timestamp(now)) for pin in pins
    ]
    db.execute("begin immediate")
    try:
        db.executemany(statement, rows)
        db.execute("commit")
    except sqlite3.Error:
        db.execute("rollback")
        raise
