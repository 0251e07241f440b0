"""Write a batch of which the database may refuse some records: they are found by halving, and left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from aibridge_addon.records import DatabaseUnavailable, Record

logger = logging.getLogger(__name__)


def write_all(
    write: Callable[[Sequence[Record]], None], left: list[Record], refused: list[Record], *, alarm: int
) -> None:
    """Write these records, in ever smaller parts if the database refuses them. Removes settled ones from `left`.

    `refused` gets those that cannot be written. The first one is logged, at the level `alarm`.

    Raises:
        DatabaseUnavailable: What is in `left` was not written.
    """
    sizes = [len(left)]
    while left:
        size = sizes.pop()
        try:
            write(left[:size])
        except DatabaseUnavailable:
            raise
        except Exception as e:  # noqa: BLE001 (a record is refused)
            if size > 1:
                sizes += [size - size // 2, size // 2]
                continue
            if not refused:
                kind = type(left[0]).__name__
                logger.log(alarm, "aibridge: the database refuses a record: %s: %s", kind, _first_line(e))
            refused.append(left[0])
        del left[:size]


def _first_line(error: Exception) -> str:
    """Return what is wrong. The lines after the first one may quote the row."""
    return f"{type(error).__name__}: {str(error).partition('\n')[0]}"
