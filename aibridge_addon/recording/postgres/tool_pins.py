"""Pins of tools in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import ClassVar

from aibridge_addon.recording.postgres.connection import Connection
from aibridge_addon.recording.postgres.reader import PostgresConnection
from aibridge_addon.records.tool_pins import ToolPin

READ = "select server_name, tool, digest, definition from aibridge_tool_pins where server_name = %s order by tool"
INSERT = """
insert into aibridge_tool_pins (server_name, tool, digest, definition, pinned_at)
select server_name, tool, digest, definition, %(now)s
from unnest(%(servers)s::text[], %(tools)s::text[], %(digests)s::text[], %(definitions)s::text[])
    as listed (server_name, tool, digest, definition)
on conflict (server_name, tool) """
ADD = INSERT + "do nothing"
REPLACE = INSERT + (
    "do update set digest = excluded.digest, definition = excluded.definition, pinned_at = excluded.pinned_at"
)


class PostgresToolPins(PostgresConnection):
    """Implements `tool_pins.ToolPinStore` for PostgreSQL."""

    SETTINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"statement_timeout": "5s"})

    def read(self, server_name: str) -> Sequence[ToolPin]:
        return self.use(lambda connection: [ToolPin(*row) for row in connection.execute(READ, [server_name])])

    def add(self, pins: Sequence[ToolPin], now: datetime) -> None:
        self.use(lambda connection: _write(connection, ADD, pins, now))

    def replace(self, pins: Sequence[ToolPin], now: datetime) -> None:
        self.use(lambda connection: _write(connection, REPLACE, pins, now))


def _write(connection: Connection, statement: str, pins: Sequence[ToolPin], now: datetime) -> None:
    by_key = {(pin.server_name, pin.tool): pin for pin in pins}
    pins = [by_key[key] for key in sorted(by_key)]  # one order, so no deadlock
    values = {
        "now": now,
        "servers": [pin.server_name for pin in pins],
        "tools": [pin.tool for pin in pins],
        "digests": [pin.digest for pin in pins],
        "definitions": [pin.definition for pin in pins],
    }
    connection.execute(statement, values)
