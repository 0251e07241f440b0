"""Register an instance in PostgreSQL, and end what instances that are gone left open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from aibridge_addon.recording.instances import PROCESS_ENDED, SILENCE, Instance, Seen, judges, living
from aibridge_addon.recording.postgres.connection import Connection
from aibridge_addon.recording.postgres.hourly_usage import counted

REGISTER = """
insert into aibridge_instances (id, host, pid, version, started_at, heartbeat_at) values (%s, %s, %s, %s, %s, %s)
on conflict (id) do update set heartbeat_at = excluded.heartbeat_at
"""
LAST = "select now(), (select heartbeat_at from aibridge_instances where id = %s)"
HEARD = "select id::text, host, pid, heartbeat_at from aibridge_instances where heartbeat_at >= %s or host = %s"
LEFT_OPEN = """
select id::text from aibridge_interceptions as open
where ended_at is null and (instance_id is null or instance_id <> all(%s::uuid[]))
and not exists (select 1 from aibridge_continuations as kept where kept.interception_id = open.id)
"""
"""Those that a later request ends stay open: another process may answer it."""
STILL_OPEN = """
select id::text from aibridge_interceptions where id = any(%s::uuid[]) and ended_at is null
order by id for no key update skip locked
"""
"""Rows that another process ends now are left to it."""
END = """
update aibridge_interceptions as interception
set status = 'failed', error_type = %s, ended_at = greatest(started_at, (
    select heartbeat_at from aibridge_instances as instance where instance.id = interception.instance_id
))
where id = any(%s::uuid[])
"""
"""An interception ends at the last sign of life of its instance. Rows without an instance end at their start."""


def register(db: Connection, instance: Instance, clock: Callable[[], datetime] | None) -> list[str]:
    """Register this instance, and return the ids of the interceptions that instances that are gone left open.

    Without a clock, the server's counts.

    All statements see the same snapshot. Otherwise, an instance that registers between two of them would not be found
    among the living, but its first interception would be found open.
    """
    with db.transaction():
        db.execute("set transaction isolation level repeatable read")
        [(now, last)] = db.execute(LAST, (instance.id,)).fetchall()
        if clock is not None:
            now = clock()
        db.execute(REGISTER, (instance.id, instance.host, instance.pid, instance.version, instance.started_at, now))
        if not judges(last, now):
            return []
        heard = db.execute(HEARD, (now - SILENCE, instance.host)).fetchall()
        alive = living((Seen(*row) for row in heard), instance.host, now, first=last is None)
        return [id for (id,) in db.execute(LEFT_OPEN, (alive,)).fetchall()]


def end(db: Connection, left_open: Sequence[str]) -> int:
    """End interceptions that were left open, and return how many of them this process has ended."""
    with db.transaction():
        ids = [id for (id,) in db.execute(STILL_OPEN, (left_open,)).fetchall()]
        with counted(db, ids):
            db.execute(END, (PROCESS_ENDED, ids))
        return len(ids)
