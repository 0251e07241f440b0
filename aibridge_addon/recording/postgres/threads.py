"""Find the threads that the interceptions of a batch continue: in PostgreSQL, and in the batch itself.

All that the database knows of them is read in one pipeline, so a batch waits once for all of its threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

from aibridge_addon import records
from aibridge_addon.recording.postgres.connection import Connection
from aibridge_addon.recording.postgres.text import plain
from aibridge_addon.recording.rows import Row, Thread, timestamp

NOTED = "select key, interception_id::text, created_at from aibridge_threads where key = any(%(keys)s)"
PLACES = """
select id::text, coalesce(thread_root_id, id)::text, session_id from aibridge_interceptions
where id = any(array(select interception_id from aibridge_threads where key = any(%(keys)s)) || %(ids)s::uuid[])
"""
"""Return interceptions with their roots and their sessions."""
NOTE_THREAD = """
insert into aibridge_threads (key, interception_id, created_at)
values (%(key)s, %(interception_id)s, %(created_at)s)
on conflict (key) do update set interception_id = excluded.interception_id, created_at = excluded.created_at
where excluded.created_at >= aibridge_threads.created_at
"""
"""Ids repeat. The newest interception with the same key counts."""


class Threads:
    """The keys under which interceptions are found, and under which those of the batch will be found."""

    def __init__(self, db: Connection, batch: Sequence[records.Record]) -> None:
        """Send the queries. In a pipeline, this does not wait for the answers."""
        keys = {
            plain(key) for each in batch if isinstance(each, records.InterceptionStarted) for key in each.thread_keys
        }
        ids = {
            each.interception_id
            for each in batch
            if isinstance(each, records.InterceptionEnded | records.ToolUsage) and each.thread_keys
        }
        self._rows: list[Row] = []
        self._known: dict[str, tuple[str, datetime]] | None = None
        """The interception of each key, and since when."""
        self._places: dict[str, Thread] = {}
        self._queries: tuple[Iterable[Any], Iterable[Any]] = ((), ())
        if keys:
            parameters = {"keys": sorted(keys), "ids": sorted(ids)}
            self._queries = (db.execute(NOTED, parameters), db.execute(PLACES, parameters))

    @property
    def rows(self) -> Sequence[Row]:
        """The keys of the batch. Several processes may write the same ones, so all of them lock in this order."""
        return sorted(self._rows, key=itemgetter("key"))

    def note(self, keys: Sequence[str], interception_id: str, at: datetime) -> None:
        """Keep the keys under which a later request finds an interception."""
        for key in keys:
            self._rows.append({"key": key, "interception_id": interception_id, "created_at": timestamp(at)})
            _, before = self._noted.get(plain(key), ("", at))
            if at >= before:
                self._noted[plain(key)] = (interception_id, at)

    def continued_by(self, record: records.InterceptionStarted, started: Mapping[str, Row]) -> Thread:
        """Return the place in a thread, by the first key under which an interception is found.

        `started`: the rows of the interceptions that the batch started before.
        """
        for key in record.thread_keys:
            id, _ = self._noted.get(plain(key), ("", None))
            if id in started:
                return Thread(id, started[id]["thread_root_id"] or id, started[id]["session_id"])
            if id in self._places:
                return self._places[id]
        return Thread()

    @property
    def _noted(self) -> dict[str, tuple[str, datetime]]:
        if self._known is None:
            noted, places = self._queries
            self._known = {key: (id, at) for key, id, at in noted}
            self._places = {place[0]: Thread(*place) for place in places}
        return self._known
