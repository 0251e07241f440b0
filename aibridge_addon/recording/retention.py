"""Delete what has expired in the background, on a thread of its own.

Every process does so. On one database, one process at a time has the turn; the others only count what is left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime

from aibridge_addon.config.schema import Retention
from aibridge_addon.recording.expiry import Expiry
from aibridge_addon.recording.pruning import Deleted, Pace, Prunable, backlog, expired, run
from aibridge_addon.records import DatabaseUnavailable, utc_now

logger = logging.getLogger(__name__)

FIRST_RUN = 30.0
"""Seconds after the start, which has other things to do."""
INTERVAL = 600.0
"""Seconds between two runs."""
BUDGET = 120.0
"""Seconds. Maximum time of a run. The next one goes on."""


class Pruner:
    """Deletes by the configured lifetimes, at intervals."""

    def __init__(
        self,
        retention: Retention,
        open_database: Callable[[], Prunable],
        remove_old_spools: Callable[[datetime], int],
        *,
        now: Callable[[], datetime] = utc_now,
        first_run: float = FIRST_RUN,
        interval: float = INTERVAL,
        budget: float = BUDGET,
    ) -> None:
        """
        Args:
            open_database: Opens the database for one run.
            remove_old_spools: Removes files of the spool that no process writes, and that are older than a time.
        """
        self.backlog = 0
        """Interceptions of which rows or texts have expired, when they were last counted."""
        self._retention = retention
        self._open_database = open_database
        self._remove_old_spools = remove_old_spools
        self._now = now
        self._first_run = first_run
        self._interval = interval
        self._budget = budget
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aibridge-pruner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the transaction in progress. Does not block."""
        self._stopping.set()

    def close(self, timeout: float | None) -> None:
        """Stop, and wait for at most `timeout` seconds. None: do not wait. May be called before the start."""
        self.stop()
        if timeout is not None and self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        wait = self._first_run
        while not self._stopping.wait(wait):
            wait = self._interval
            try:
                self.prune()
            except DatabaseUnavailable as e:
                logger.warning("aibridge: old rows cannot be deleted now, trying again later: %s", e)
            except Exception:
                logger.exception("aibridge: deleting old rows failed, trying again later")

    def prune(self) -> Deleted | None:
        """Delete what has expired. None: another process does. Raises DatabaseUnavailable."""
        expiry = Expiry.after(self._now(), rows=self._retention.rows, content=self._retention.content)
        if expiry.rows is not None and (removed := self._remove_old_spools(expiry.rows)):
            logger.warning("aibridge: removed old files of spools that no process writes to its database: %d", removed)
        with self._open_database() as database:
            self.backlog = backlog(database, expiry)
            if not database.take_turn():
                return None
            pace = Pace(self._budget, time.monotonic, self._stopping.wait)
            deleted = run(database, expired(expiry, database.tables()), pace)
            self.backlog = backlog(database, expiry)
        if deleted.rows or deleted.texts:
            logger.info(
                "aibridge: deleted old rows: rows=%d texts=%d complete=%s",
                *(deleted.rows.total(), deleted.texts.total(), str(deleted.complete).lower()),
            )
        return deleted
