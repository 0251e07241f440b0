"""Sizes of the records that wait in memory: how many fit there, and how many into one transaction."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import datetime
from itertools import islice

from aibridge_addon.records import Answer, Continuation, ModelThought, Record, ToolResult, ToolUsage, UserPrompt
from aibridge_addon.records.members import members
from aibridge_addon.records.memory import Memory

MAX_QUEUED = 100_000
"""Maximum number of records that wait in memory. Later ones are dropped."""
MAX_QUEUED_BYTES = 512 * 2**20
"""Maximum size of these records, because prompts and arguments of tools may be long. Default of `limits.buffered`."""
MAX_TRANSACTION = 2_000
"""Maximum number of records in one transaction."""
MAX_TRANSACTION_BYTES = 16 * 2**20
"""Bytes of records from which on a transaction gets no more."""
RECORD_BYTES = 1_000
"""About the size of a record without its texts."""
PLAIN = frozenset({type(None), bool, int, float, datetime})
"""Types of values without a text."""


class Sizes:
    """The sizes of records in the order in which they were accepted."""

    def __init__(self, memory: Memory) -> None:
        self._part = memory.part(of_records=True)
        self._sizes: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return self._part.used

    def accept(self, record: Record) -> bool:
        """Add the size of a record. Returns False if there is no room for the record."""
        size = size_of(record)
        if len(self._sizes) >= MAX_QUEUED or not self._part.add(size):
            return False
        self._sizes.append(size)
        return True

    def remove(self, count: int) -> None:
        """Remove the oldest sizes."""
        for _ in range(count):
            self._part.give_back(self._sizes.popleft())

    def of_transaction(self, limit: int) -> int:
        """Return how many of the oldest records make one transaction, at most `limit`."""
        count = size = 0
        for added in islice(self._sizes, min(limit, MAX_TRANSACTION)):
            if size >= MAX_TRANSACTION_BYTES:
                break
            count, size = count + 1, size + added
        return count


def weight_of(record: Record) -> int:
    """Return about how many bytes a record takes, faster than `size_of`: only what may be long is measured."""
    match record:
        case UserPrompt(prompt=str(text)) | Answer(content=str(text)) | ModelThought(content=str(text)):
            return RECORD_BYTES + len(text)
        case ToolUsage() | Continuation() | ToolResult():
            return size_of(record)
    return RECORD_BYTES


def size_of(record: Record) -> int:
    """Return about how many bytes a record takes in memory. Its values may be nested at any depth."""
    size = RECORD_BYTES
    kind: type = type(record)
    found: list[object] = [*members(kind).of(record)]
    for value in found:  # which grows meanwhile
        if value.__class__ in PLAIN:
            size += 8
        elif isinstance(value, str):
            size += len(value)
        elif not value:
            continue
        elif isinstance(value, Mapping):
            found += value.keys()
            found += value.values()
        elif isinstance(value, list | tuple):
            found += value
        else:  # a member with members of its own
            found += [getattr(value, name) for name in getattr(value, "__slots__", ())]
    return size
