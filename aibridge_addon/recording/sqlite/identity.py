"""Notice that the file of an open connection is not the one at its path any more.

SQLite goes on with the file that it has opened, so rows would be written to a file without a name.
"""

from __future__ import annotations

import os
from pathlib import Path


class Identity:
    """The file at a path, with its write-ahead log, as they are now. Raises OSError if there is no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.stat()
        self._log = _stat(_log(path))

    def is_at_path(self) -> bool:
        """Return False if the file was deleted, replaced or emptied."""
        now = _stat(self._path)
        return now is not None and now.st_size > 0 and os.path.samestat(now, self._file)

    def remove_log(self) -> None:
        """Remove the old file's log. SQLite would apply it to the new file at the same path, which destroys that."""
        now = _stat(_log(self._path))
        if now is not None and self._log is not None and os.path.samestat(now, self._log):
            _log(self._path).unlink(missing_ok=True)


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
