"""Where the context of requests went, as interceptions have it in their metadata. For the command line and pages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aibridge_addon.recording.conditions import matching, within
from aibridge_addon.recording.queries import Queries

CONTEXT = "context_bytes"
SCHEMAS = "schema_bytes"
CATEGORIES = ("system", "client_tools", "our_tools", "user_text", "tool_results", "images", "history", "other")
"""Members of `CONTEXT`, in the order in which they are shown."""
BYTES_PER_TOKEN = 4
"""What providers document as the mean of English text and JSON. It decides no price."""
NEWEST = 1_000
"""Requests that the mean size of schemas is taken of."""
SEARCHED = 20_000
"""The newest requests of a period, among which those with injected tools are looked for."""


def context_of(metadata: object) -> Sequence[tuple[str, int]]:
    """Return the bytes of a request by category, in the order of `CATEGORIES`. Empty: they are not known."""
    counts = _counts(metadata, CONTEXT)
    return [(category, counts[category]) for category in CATEGORIES if counts.get(category)]


def last_context(interceptions: Iterable[Mapping[str, Any]]) -> Sequence[tuple[str, int]]:
    """Return the context of a session's last request that its main agent has sent.

    `interceptions`: rows with decoded metadata, in the order in which they began.
    """
    found: Sequence[tuple[str, int]] = ()
    for row in interceptions:
        if row["request_class"] not in ("subagent", "auxiliary"):
            found = context_of(row["metadata"]) or found
    return found


def _counts(metadata: object, name: str) -> dict[str, int]:
    value = metadata.get(name) if isinstance(metadata, dict) else None
    members = value.items() if isinstance(value, dict) else ()
    return {key: count for key, count in members if type(count) is int and count > 0}


@dataclass(frozen=True, slots=True)
class Schemas:
    """What the definitions of a server's tools cost in each request that has them."""

    server_name: str
    requests: int
    bytes: int
    """Mean of these requests."""

    @property
    def tokens(self) -> int:
        return round(self.bytes / BYTES_PER_TOKEN)

    def columns(self) -> dict[str, Any]:
        return {
            "server_name": self.server_name,
            "requests": self.requests,
            "schema_bytes": self.bytes,
            "schema_tokens": self.tokens,
        }


def schemas(
    rows: Queries,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    actors: Sequence[str] = (),
    models: Sequence[str] = (),
) -> list[Schemas]:
    """Return each server's mean of newest requests with injected tools, the largest one first.

    Raises DatabaseUnavailable.
    """
    parameters: dict[str, Any] = {}
    has_schemas = f"metadata ? '{SCHEMAS}'" if rows.postgres else f"metadata like '%\"{SCHEMAS}\":%'"
    conditions = within(rows, "started_at", since, until, parameters)
    conditions += matching(rows, "initiator_id", actors, parameters)
    conditions += matching(rows, "model", models, parameters)
    where = f"where {' and '.join(conditions)}" if conditions else ""
    sql = f"""
        select metadata from (
            select metadata from aibridge_interceptions {where} order by started_at desc limit {SEARCHED}
        ) as newest where {has_schemas} limit {NEWEST}
    """  # noqa: S608 (names are ours)
    requests, sizes = Counter[str](), Counter[str]()
    for row in rows.stream(sql, parameters):
        counts = _counts(_decoded(row["metadata"]), SCHEMAS)
        sizes.update(counts)
        requests.update(counts.keys())
    found = [Schemas(server, number, round(sizes[server] / number)) for server, number in requests.items()]
    return sorted(found, key=lambda each: (-each.bytes, each.server_name))


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
