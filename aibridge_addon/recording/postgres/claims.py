"""Claim keys in PostgreSQL: the first process that claims a key gets it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import ClassVar

from aibridge_addon.recording.postgres.reader import PostgresReader

CLAIM = """
insert into aibridge_continuations (key, value, expires_at) values (%(key)s, %(value)s, %(expires_at)s)
on conflict (key) do update set expires_at = excluded.expires_at, value = excluded.value
where aibridge_continuations.expires_at <= %(now)s or aibridge_continuations.value = excluded.value
"""
"""The value is another one for each claim. So a claim that is repeated, as its answer was lost, succeeds again."""


class PostgresLedger(PostgresReader):
    """Reads and claims with one connection."""

    SETTINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"statement_timeout": "1s"})

    def claim(self, key: str, now: datetime, expires_at: datetime) -> bool:
        value = json.dumps({"claim": str(uuid.uuid4())})
        values = {"key": key, "value": value, "now": now, "expires_at": expires_at}
        return self.use(lambda connection: connection.execute(CLAIM, values).rowcount == 1)
