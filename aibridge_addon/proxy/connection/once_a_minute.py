"""Log what clients can repeat without end at most once a minute."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

PAUSE = 60.0
"""Seconds in which a subject has one line."""
MAX_REMEMBERED = 1_000
"""Subjects that are remembered. Clients choose them."""


class OnceAMinute:
    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: returns seconds, and never goes back."""
        self._clock = clock
        self._logged: OrderedDict[Hashable, float] = OrderedDict()

    def is_due(self, subject: Hashable) -> bool:
        """Return whether the subject was not logged within the last minute. If so, it counts as logged now."""
        now, before = self._clock(), self._logged.get(subject)
        if before is not None and now - before < PAUSE:
            return False
        self._logged[subject] = now
        self._logged.move_to_end(subject)
        if len(self._logged) > MAX_REMEMBERED:
            self._logged.popitem(last=False)
        return True
