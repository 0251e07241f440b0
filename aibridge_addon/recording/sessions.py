"""Read sessions: a list of the newest ones, and all that is recorded of one."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import batched, islice
from types import MappingProxyType
from typing import Any

from aibridge_addon.recording.conditions import matching, parameter, within
from aibridge_addon.recording.queries import Queries
from aibridge_addon.recording.reports import Usage, usage_of

AT_ONCE = 200
"""Sessions or interceptions of one statement."""
AMBIGUOUS = 10
"""Maximum number of ids that an error lists."""
PROMPT_LENGTH = 400
"""Characters of a session's first prompt that a list has."""
CHILDREN: Mapping[str, str] = MappingProxyType(
    {
        "user_prompts": "aibridge_user_prompts",
        "model_thoughts": "aibridge_model_thoughts",
        "answers": "aibridge_answers",
        "tool_usages": "aibridge_tool_usages",
        "token_usages": "aibridge_token_usages",
    }
)
"""Members of an interception, and the tables that they are from."""
EVENTS: Mapping[str, str] = MappingProxyType(
    {"prompt": "user_prompts", "thought": "model_thoughts", "answer": "answers", "call": "tool_usages"}
)
"""Kinds of what a conversation consists of, and the members that they are from."""
MAX_DEPTH = 5
"""Agents below this one are shown beside it."""
_ID = re.compile(r"[0-9a-f-]{4,36}")
"""The beginning of an interception's id."""


@dataclass(frozen=True, slots=True)
class Session:
    session_id: str
    initiator_id: str
    client: str
    project: str | None
    running: int
    """Interceptions that have not ended."""
    prompt: str | None
    """The beginning of the first prompt."""
    usage: Usage

    def columns(self) -> dict[str, Any]:
        return {
            "session_id": self.session_id,
            "initiator_id": self.initiator_id,
            "client": self.client,
            "project": self.project,
            "started_at": self.usage.started_at,
            "ended_at": self.usage.ended_at,
            "running": self.running,
            **self.usage.columns(),
            "prompt": self.prompt,
        }


class NotFound(Exception):
    """No session has this id, or several begin with it."""


def newest(
    rows: Queries,
    *,
    limit: int | None,
    skip: int = 0,
    since: datetime | None = None,
    until: datetime | None = None,
    actors: Sequence[str] = (),
    models: Sequence[str] = (),
) -> list[Session]:
    """Return the sessions with the newest requests of the period, the newest first, each with all of its usage.

    `limit`: None for all. `skip`: the number of newer ones that are not wanted. `models` are as requested. Raises
    DatabaseUnavailable.
    """
    parameters: dict[str, object] = {}
    conditions = ["session_id is not null", *within(rows, "started_at", since, until, parameters)]
    conditions += _chosen(rows, actors, models, parameters)
    # For all sessions, the database groups the rows. For a few, only the newest rows are read.
    grouped = "group by session_id, initiator_id order by max(started_at) desc, session_id, initiator_id"
    sql = f"""select session_id, initiator_id from aibridge_interceptions where {" and ".join(conditions)}
        {grouped if limit is None else "order by started_at desc, id desc"}"""  # noqa: S608 (names are ours)
    found = (key for key, _ in _first_of_each(rows.stream(sql, parameters)))
    return _sessions(rows, list(islice(found, skip, None if limit is None else skip + limit)))


def search(
    rows: Queries,
    text: str,
    *,
    of: int,
    limit: int,
    skip: int = 0,
    actors: Sequence[str] = (),
    models: Sequence[str] = (),
) -> list[Session]:
    """Return those of the `of` newest sessions that have a text in their id, first prompt, project or client.

    Upper and lower case are the same. Usage is read of the sessions that are returned, and of no other. The rest is as
    in `newest`.
    """
    parameters: dict[str, object] = {}
    conditions = ["session_id is not null", *_chosen(rows, actors, models, parameters)]
    sql = f"""select session_id, initiator_id, client, project from aibridge_interceptions
        where {" and ".join(conditions)} order by started_at desc, id desc"""  # noqa: S608 (names are ours)
    found = islice(_first_of_each(rows.stream(sql, parameters)), of)
    newest = {key: [key[0], row["client"], row["project"]] for key, row in found}
    for some in batched(newest, AT_ONCE, strict=False):
        for key, prompt in _prompts(rows, some).items():
            newest[key].append(prompt)
    wanted = text.casefold()
    having = [key for key, texts in newest.items() if any(each and wanted in each.casefold() for each in texts)]
    return _sessions(rows, having[skip : skip + limit])


def _chosen(
    rows: Queries, actors: Sequence[str], models: Sequence[str], parameters: dict[str, object]
) -> Iterator[str]:
    yield from matching(rows, "initiator_id", actors, parameters)
    yield from matching(rows, "model", models, parameters)


def _first_of_each(found: Iterable[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield the first row of each session of each user."""
    seen: set[tuple[str, str]] = set()
    for row in found:
        if (key := (row["session_id"], row["initiator_id"])) not in seen:
            seen.add(key)
            yield key, row


def _sessions(rows: Queries, wanted: Sequence[tuple[str, str]]) -> list[Session]:
    usage: defaultdict[tuple[str, str], Usage] = defaultdict(Usage)
    about: dict[tuple[str, str], dict[str, Any]] = {}
    prompts: dict[tuple[str, str], str | None] = {}
    for some in batched(wanted, AT_ONCE, strict=False):
        values, parameters = _list({session_id for session_id, _ in some})
        for row in rows.select(INTERCEPTIONS.format(values=values), parameters):
            key = row["session_id"], row["initiator_id"]
            about[key] = row
            usage[key].add(
                Usage(row["interceptions"], row["failed"], started_at=row["first"], ended_at=row["last"]),
            )
        for row in rows.select(TOKENS.format(values=values, sum="sum" if rows.postgres else "total"), parameters):
            usage[row["session_id"], row["initiator_id"]].add(usage_of(row))
        prompts |= _prompts(rows, some)
    return [
        Session(
            *key,
            client=about[key]["client"],
            project=about[key]["project"],
            running=about[key]["running"],
            prompt=prompts.get(key),
            usage=usage[key],
        )
        for key in wanted
    ]


def _prompts(rows: Queries, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str | None]:
    """Return the beginnings of the first prompts of sessions."""
    values, parameters = _list({session_id for session_id, _ in wanted})
    found = _first_of_each(rows.select(PROMPTS.format(values=values), parameters))
    keys = set(wanted)
    return {key: row["prompt"] for key, row in found if key in keys}


INTERCEPTIONS = """
select
    session_id, initiator_id, max(client) as client, max(project) as project, count(*) as interceptions,
    count(case when status = 'failed' then 1 end) as failed, count(case when ended_at is null then 1 end) as running,
    min(started_at) as first, max(coalesce(ended_at, started_at)) as last
from aibridge_interceptions where session_id in ({values}) group by session_id, initiator_id
"""
TOKENS = """
select
    i.session_id, i.initiator_id, coalesce(i.billing, '') as billing,
    {sum}(t.input_tokens) as input_tokens, {sum}(t.cache_read_input_tokens) as cache_read_input_tokens,
    {sum}(t.cache_write_input_tokens) as cache_write_input_tokens, {sum}(t.output_tokens) as output_tokens,
    {sum}(t.cost_usd) as cost_usd, count(*) - count(t.cost_usd) as unpriced
from aibridge_interceptions as i cross join aibridge_token_usages as t
where i.session_id in ({values}) and t.interception_id = i.id
group by i.session_id, i.initiator_id, coalesce(i.billing, '')
"""
PROMPTS = f"""
select i.session_id, i.initiator_id, substr(p.prompt, 1, {PROMPT_LENGTH}) as prompt
from aibridge_interceptions as i cross join aibridge_user_prompts as p
where i.session_id in ({{values}}) and p.interception_id = i.id order by i.started_at, p.sequence
"""  # noqa: S608 (a number of ours)


# --- one session -----------------------------------------------------------------------------------------------------


def find(rows: Queries, id: str) -> str:
    """Return the session with this id, or the only one whose id, or one of whose interceptions' ids, begins so.

    Raises:
        NotFound: The message says why.
        DatabaseUnavailable: The database cannot be read.
    """
    if any(rows.select("select 1 from aibridge_interceptions where session_id = :id limit 1", {"id": id})):
        return id
    found = {row["session_id"] for row in _beginning(rows, "session_id", id)}
    if not found and _ID.fullmatch(id.lower()):
        found = {row["session_id"] for row in _beginning(rows, "cast(id as text)", id.lower())}
    found.discard(None)
    if not found:
        raise NotFound(f"no session or interception has an id that begins with {id!r}")
    if len(found) > 1:
        some = ", ".join(map(repr, sorted(found)[:AMBIGUOUS]))
        more = ", …" if len(found) > AMBIGUOUS else ""
        raise NotFound(f"{id!r} is not unique: {some}{more}. Write more of the id")
    return str(found.pop())


def _beginning(rows: Queries, column: str, start: str) -> Iterator[dict[str, Any]]:
    if rows.postgres:
        condition, parameters = f"starts_with({column}, :first)", {"first": start}
    else:
        column = "id" if column.startswith("cast") else column  # a range of an index
        condition = f"{column} >= :first and {column} < :last"
        parameters = {"first": start, "last": start + "\U0010ffff"}
    sql = f"select distinct session_id from aibridge_interceptions where {condition} limit {AMBIGUOUS + 1}"  # noqa: S608
    return rows.select(sql, parameters)


def whole(rows: Queries, session_id: str, actors: Sequence[str]) -> list[Session]:
    """Return what is to be said of a session as a whole, for each of its users. Raises DatabaseUnavailable.

    `actors`: names or patterns, as in `newest`.
    """
    found, parameters = _of(rows, session_id, actors)
    sql = f"select distinct initiator_id {found} order by initiator_id"
    return _sessions(rows, [(session_id, row["initiator_id"]) for row in rows.select(sql, parameters)])


def one(
    rows: Queries, session_id: str, actors: Sequence[str], *, skip: int = 0, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the interceptions of a session as they began, with their rows of other tables, in their order.

    JSON columns are decoded. Raises DatabaseUnavailable. `actors`: names or patterns, as in `newest`. `skip`: the
    number of first ones that are not wanted. `limit`: None for all.
    """
    found, wanted = _of(rows, session_id, actors)
    part = "" if limit is None else f" limit {limit:d} offset {skip:d}"
    sql = f"select * {found} order by started_at, id{part}"
    for some in batched(rows.stream(sql, wanted), AT_ONCE, strict=False):
        interceptions = {row["id"]: _decoded(row) | {name: [] for name in CHILDREN} for row in some}
        values, parameters = _list(interceptions)
        if rows.postgres:
            values = ", ".join(f"cast({value} as uuid)" for value in values.split(", "))
        for name, table in CHILDREN.items():
            order = "turn, created_at" if name == "token_usages" else "sequence, created_at"
            sql = f"select * from {table} where interception_id in ({values}) order by {order}, id"  # noqa: S608
            for row in rows.select(sql, parameters):
                interceptions[row["interception_id"]][name].append(_decoded(row))
        yield from interceptions.values()


def _of(rows: Queries, session_id: str, actors: Sequence[str]) -> tuple[str, Mapping[str, object]]:
    """Return the end of a query for a session's interceptions, with its parameters."""
    parameters: dict[str, object] = {"id": session_id}
    conditions = ["session_id = :id", *matching(rows, "initiator_id", actors, parameters)]
    return f"from aibridge_interceptions where {' and '.join(conditions)}", parameters


def _decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    return dict(row) | {name: _json(row[name]) for name in ("metadata", "input") if row.get(name) is not None}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _list(values: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the parameters of a list in SQL, and their values."""
    parameters = {parameter(index): value for index, value in enumerate(values)}
    return ", ".join(f":{name}" for name in parameters), parameters


# --- one session as a conversation ------------------------------------------------------------------------------------


def agents_before(rows: Queries, session_id: str, actors: Sequence[str], number: int) -> Agents:
    """Return the agents of the first interceptions of a session, without reading texts. Raises DatabaseUnavailable."""
    found, wanted = _of(rows, session_id, actors)
    sql = f"""
        select agent_id, request_class, metadata from (select * {found} order by started_at, id limit {number:d}) as i
        where request_class = 'subagent' order by started_at, id
    """  # noqa: S608 (names are ours)
    agents = Agents()
    for row in rows.stream(sql, wanted) if number else ():
        agents.depth(_decoded(row))
    return agents


class Agents:
    """How deep each agent of a session is below the main one. Its interceptions are given in their order."""

    def __init__(self) -> None:
        self._depths: dict[str, int] = {}

    def depth(self, interception: Mapping[str, Any]) -> int:
        """Return 0 for the main agent, and for a subagent one more than for the agent that started it."""
        agent = interception["agent_id"]
        if interception["request_class"] != "subagent" and agent not in self._depths:
            return 0
        metadata = interception["metadata"] if isinstance(interception["metadata"], dict) else {}
        depth = min(self._depths.get(str(metadata.get("parent_agent_id")), 0) + 1, MAX_DEPTH)
        return self._depths.setdefault(agent, depth) if agent else depth


def events_of(interception: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return what an interception of `one` has of a conversation, in its order.

    The kinds are `prompt`, `thought`, `answer` and `call`, each with its row.
    """
    events = [(kind, item) for kind, name in EVENTS.items() for item in interception[name]]
    # Rows of a version without `sequence` are in the order of their kinds.
    events.sort(key=lambda event: event[1]["sequence"] if event[1]["sequence"] is not None else 0)
    return events
