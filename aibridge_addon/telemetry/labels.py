"""Labels of metrics with a bounded number of values."""

from __future__ import annotations

import threading

from aibridge_addon.wire.printable import UNSAFE

OTHER = "other"
UNKNOWN = "unknown"
"""For an empty value, and for an interception whose start was not seen. Prometheus drops an empty label."""

REPLACED = "\N{REPLACEMENT CHARACTER}"
MAX_LABEL_LENGTH = 128
"""Characters of a label's value. What is longer is cut."""


def _shown(value: str) -> str:
    """Return a value that the text format can have, and that controls no terminal."""
    return UNSAFE.sub(REPLACED, value.replace("\n", REPLACED).replace("\t", REPLACED))


class Bounded:
    """Maps the values of one label to at most `limit` different ones, the first that are seen, and `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()

    def __call__(self, value: str) -> str:
        value = value[:MAX_LABEL_LENGTH]  # first: the value may be megabytes, and a dictionary hashes all of it
        return self._known.get(value) or self._admit(value)

    def _admit(self, value: str) -> str:
        if not value:
            return UNKNOWN
        with self._lock:
            if value not in self._known and len(self._known) >= self._limit:
                return OTHER
            return self._known.setdefault(value, _shown(value))
