"""Register an instance in SQLite, and end what instances that are gone left open."""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime

from aibridge_addon.recording.instances import PROCESS_ENDED, SILENCE, Instance, Seen, judges, living
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite.hourly_usage import counted

REGISTER = """
insert into aibridge_instances (id, host, pid, version, started_at, heartbeat_at) values (?, ?, ?, ?, ?, ?)
on conflict (id) do update set heartbeat_at = excluded.heartbeat_at
"""
LAST = "select heartbeat_at from aibridge_instances where id = ?"
HEARD = "select id, host, pid, heartbeat_at from aibridge_instances where heartbeat_at >= ? or host = ?"
LEFT_OPEN = """
select id from aibridge_interceptions as interception
where ended_at is null and (instance_id is null or instance_id not in (select value from json_each(?)))
and not exists (select 1 from aibridge_continuations as kept where kept.interception_id = interception.id)
"""
"""Those that a later request ends stay open: another process may answer it."""
END = """
update aibridge_interceptions as interception
set status = 'failed', error_type = ?, ended_at = max(started_at, coalesce(
    (select heartbeat_at from aibridge_instances as instance where instance.id = interception.instance_id), started_at
))
where id in (select value from json_each(?))
"""
"""An interception ends at the last sign of life of its instance. Rows of versions without instances have none."""


def register(db: sqlite3.Connection, instance: Instance, now: datetime) -> int:
    """Within a transaction, register this instance, and return how many interceptions of others were ended."""
    started_at = timestamp(instance.started_at)
    last = db.execute(LAST, (instance.id,)).fetchone()
    db.execute(REGISTER, (instance.id, instance.host, instance.pid, instance.version, started_at, timestamp(now)))
    if not judges(last and datetime.fromisoformat(last[0]), now):
        return 0
    heard = db.execute(HEARD, (timestamp(now - SILENCE), instance.host)).fetchall()
    seen = (Seen(id, host, pid, datetime.fromisoformat(heartbeat)) for id, host, pid, heartbeat in heard)
    alive = living(seen, instance.host, now, first=last is None)
    left_open = [id for (id,) in db.execute(LEFT_OPEN, (json.dumps(alive),))]
    if left_open:
        with counted(db, left_open):
            db.execute(END, (PROCESS_ENDED, json.dumps(left_open)))
    return len(left_open)
