"""Open an SQLite file that is there."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

SECURE_DELETE = "pragma secure_delete = on"
"""Overwrite what is deleted with zeros. Otherwise it can be read in the file until its place is used again."""


def connect(
    path: Path, *, mode: Literal["ro", "rw"], timeout: float, check_same_thread: bool = True
) -> sqlite3.Connection:
    """Connect in autocommit mode. A file that is missing is not created.

    `timeout`: seconds that a statement waits for a lock. Raises sqlite3.Error and OSError.
    """
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=check_same_thread)
