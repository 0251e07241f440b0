"""What commands say about an SQLite file that cannot be used."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from aibridge_addon.recording.queries import OUTDATED
from aibridge_addon.records import DatabaseUnavailable

MISSING = "there is no such file. The bridge makes it when it starts; --database names another one"


def open_error(path: Path, error: Exception) -> str:
    """Return why a file cannot be opened or created. SQLite itself gives no reason."""
    if not str(error).startswith("unable to open database file"):
        return str(error)
    folder = path.resolve().parent
    if path.is_dir():
        reason = "it is a folder"
    elif not folder.exists():
        reason = f"the folder {folder} does not exist; create it, or change the key database"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"this user may not write into {folder}"
    elif path.exists() and not os.access(path, os.R_OK | os.W_OK):
        reason = "this user may not read and write it"
    else:
        reason = "the system gives no reason"
    return f"{error}: {reason}"


def unavailable(path: Path, error: Exception) -> DatabaseUnavailable:
    return DatabaseUnavailable(f"{path}: {description(error)}")


def description(error: Exception) -> str:
    """Return what is wrong, and what to do if that is known."""
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, sqlite3.OperationalError) and str(error).startswith(("no such table", "no such column")):
        return f"{error}. {OUTDATED}"
    return str(error)
