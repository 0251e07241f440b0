"""Open an SQLite file that is there."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Literal

SECURE_DELETE = "pragma secure_delete = on"
"""Overwrite what is deleted with zeros. Otherwise it can be read in the file until its place is used again."""


def create_private(path: Path) -> None:
    """Create an empty file that only its owner can read, if there is none. SQLite reports it if that is not possible.

    SQLite gives its `-wal`, `-shm` and `-journal` files the rights of the file itself.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def connect(
    path: Path, *, mode: Literal["ro", "rw"], timeout: float, check_same_thread: bool = True
) -> sqlite3.Connection:
    """Connect in autocommit mode. A file that is missing is not created.

    `timeout`: seconds that a statement waits for a lock. Raises sqlite3.Error and OSError.
    """
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=check_same_thread)
