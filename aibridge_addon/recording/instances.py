"""Instances: the processes that write to a database, or that have written to it.

Each registers itself and repeats that every `HEARTBEAT`. An instance is gone when its process is (on the same host), or
when it was silent for `SILENCE`. Interceptions that it left open are ended by another instance. If it returns all the
same, its own end of an interception replaces that one.

An instance that was silent itself judges no other one until its next sign of life: the machine slept, its clock jumped,
or the database was away, so the others could not give a sign of life either. For the same reason, silence of an
instance whose process runs on this host does not count at an instance's first sign of life. On PostgreSQL, the server's
clock counts, because the clocks of hosts differ.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version

HEARTBEAT = 20.0
"""Seconds between two signs of life, and between two searches for instances that are gone."""
SILENCE = timedelta(seconds=60)
"""An instance that gave no sign of life for this long is gone."""
PROCESS_ENDED = "process_ended"
"""Error type of an interception that an instance left open."""
DISTRIBUTION = "aibridge-mitmproxy"


@dataclass(frozen=True, slots=True)
class Instance:
    id: str
    host: str
    pid: int
    version: str
    started_at: datetime

    @classmethod
    def of_this_process(cls, now: datetime) -> Instance:
        """Return a new instance. A process has one for each configuration that it loads."""
        return cls(str(uuid.uuid4()), socket.gethostname(), os.getpid(), _version(), now)


@dataclass(frozen=True, slots=True)
class Seen:
    """An instance as the database has it."""

    id: str
    host: str
    pid: int
    heartbeat_at: datetime


def judges(last: datetime | None, now: datetime) -> bool:
    """Return whether an instance may end what others left open. `last`: its own last sign of life, None: its first."""
    return last is None or now - last <= SILENCE


def living(seen: Iterable[Seen], host: str, now: datetime, *, first: bool) -> list[str]:
    """Return the ids of the instances that are not gone. `first`: the caller gives its first sign of life."""

    def lives(instance: Seen) -> bool:
        here = instance.host == host
        heard = now - instance.heartbeat_at <= SILENCE or (first and here)
        return heard and not (here and not _runs(instance.pid))

    return [instance.id for instance in seen if lives(instance)]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # run from a folder that was not installed
        return ""
