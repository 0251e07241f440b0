"""Move the record from one database to another: what the commands `export` and `import` do, in memory."""

from __future__ import annotations

import io
from datetime import datetime

from aibridge_addon.config.load import load
from aibridge_addon.recording.database import importer, queries
from aibridge_addon.recording.export import export, import_
from tests.support.databases import Database


def exported(database: Database, since: datetime | None = None) -> bytes:
    file = io.BytesIO()
    export(queries(load(None, environ={}, database=database.url)), file, since, lambda _: None)
    return file.getvalue()


def imported(database: Database, data: bytes) -> tuple[int, int]:
    """Return the numbers of rows read and inserted."""
    target = importer(load(None, environ={}, database=database.url))
    target.open()
    try:
        return import_(target, io.BytesIO(data), lambda _: None)[:2]
    finally:
        target.close()
