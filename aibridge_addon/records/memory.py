"""The one budget for bytes that wait in memory (`limits.buffered`): requests, answers, and records.

Memory ─┬─▶ Part   requests and answers     one for each bridge: after a reload, two share the budget
        ├─▶ Part   records to be prepared
        └─▶ Part   records to be written
"""

from __future__ import annotations

import weakref

RESERVED = 8
"""One in so many bytes is for records: requests that fill the memory must not cost the rows of others."""


class Memory:
    """The sum of its parts. A part that is not used any more counts no longer."""

    def __init__(self, limit: int) -> None:
        """`limit`: in bytes. It may be changed at any time."""
        self.limit = limit
        self._parts: tuple[weakref.ref[Part], ...] = ()

    @property
    def used(self) -> int:
        """Bytes of all parts. May be read on any thread."""
        used = 0  # a plain loop, without the part's property: each record, body and piece of an answer is counted
        for ref in self._parts:
            if (part := ref()) is not None:
                used += part._taken - part._given
        return used

    def part(self, *, of_records: bool = False) -> Part:
        """Return a new, empty part. Only one of records may use the reserve."""
        made = Part(self, of_records=of_records)
        alive = (ref for ref in self._parts if ref() is not None)
        self._parts = (*alive, weakref.ref(made))
        return made


class Part:
    """Bytes that one thread adds, and one thread, which may be another one, gives back. So it needs no lock."""

    __slots__ = ("__weakref__", "_given", "_memory", "_of_records", "_taken")

    def __init__(self, memory: Memory, *, of_records: bool) -> None:
        self._memory = memory
        self._of_records = of_records
        self._taken = self._given = 0

    @property
    def used(self) -> int:
        return self._taken - self._given

    @property
    def limit(self) -> int:
        """Bytes that all parts may have together, before this one gets no more."""
        whole = self._memory.limit
        return whole if self._of_records else whole - whole // RESERVED

    def add(self, size: int) -> bool:
        """Add bytes. Returns False, and stays as it is, if the budget has no room for them."""
        if size > 0 and self._memory.used + size > self.limit:
            return False
        self._taken += size
        return True

    def give_back(self, size: int) -> None:
        self._given += size
