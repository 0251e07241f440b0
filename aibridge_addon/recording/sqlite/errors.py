"""What commands say about an SQLite file that cannot be used."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from aibridge_addon.recording.queries import OUTDATED
from aibridge_addon.records import DatabaseUnavailable

MISSING = "there is no such file. The bridge makes it when it starts; --database names another one"


def unavailable(path: Path, error: Exception) -> DatabaseUnavailable:
    return DatabaseUnavailable(f"{path}: {description(error)}")


def description(error: Exception) -> str:
    """Return what is wrong, and what to do if that is known."""
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, sqlite3.OperationalError) and str(error).startswith(("no such table", "no such column")):
        return f"{error}. {OUTDATED}"
    return str(error)
