"""What expires, and when: rows, their texts, and what is kept for later requests.

`recording.pruning` deletes it, in every database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

THREADS_KEPT_FOR = timedelta(days=30)
"""Results come within a session."""
INSTANCES_KEPT_FOR = timedelta(days=1)
"""At least: an instance that was only away registers again."""

BACKGROUND_UNFINISHED = "background_unfinished"
"""Error type of a background response that expired without its end."""
UNFINISHED = "the end of the background response was not read in time"


@dataclass(frozen=True, slots=True)
class Expiry:
    """What has expired at a moment: everything before these times. None: nothing has."""

    now: datetime
    rows: datetime | None = None
    content: datetime | None = None
    """Texts. Those of expired rows are deleted with them."""

    @classmethod
    def after(cls, now: datetime, *, rows: timedelta | None, content: timedelta | None) -> Expiry:
        """Return what has expired if it is kept this long. None: for ever."""
        return cls(now, *(None if lifetime is None else now - lifetime for lifetime in (rows, content)))

    @property
    def threads(self) -> datetime:
        kept = self.now - THREADS_KEPT_FOR
        return kept if self.rows is None else max(kept, self.rows)

    @property
    def instances(self) -> datetime | None:
        return None if self.rows is None else min(self.rows, self.now - INSTANCES_KEPT_FOR)
