"""How many file descriptors the process may still open.

The kernel gives the lowest free descriptor. So if that one is high, nearly all below it are in use, whatever uses them:
clients, upstreams, databases, tool servers, logs.
"""

from __future__ import annotations

import errno
import os
import sys

if sys.platform != "win32":
    import resource

OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of a system that has no descriptor or no memory for another connection."""
SHARE = 4
"""One in so many descriptors is kept free of clients: for upstreams, databases, and connections that are closing."""
MAX_RESERVE = 512
"""Descriptors. As many are enough, however many there are."""


def for_clients() -> int | None:
    """Return how many descriptors there are without the reserve. None: as many as needed."""
    limit = _limit()
    return None if limit is None else limit - _reserve(limit)


def are_short(*, for_upstream: bool = False) -> bool:
    """Return whether there are too few for another connection. An upstream may use half of the reserve."""
    limit = _limit()
    if limit is None:
        return False
    reserve = _reserve(limit)
    try:
        lowest_free = os.open(os.devnull, os.O_RDONLY)
    except OSError as e:
        if e.errno in OUT_OF_FILES:
            return True
        raise
    os.close(lowest_free)
    return lowest_free >= limit - (reserve // 2 if for_upstream else reserve)


def _limit() -> int | None:
    """The present limit of the process (`ulimit -n`)."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _reserve(limit: int) -> int:
    return min(MAX_RESERVE, limit // SHARE)
