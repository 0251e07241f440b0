"""Usage in a period: token rows in the window of their `created_at`, interceptions in that of their `ended_at`.

Whole hours come from `aibridge_hourly_usage`. What remains of an hour, such as at the end of a day in a time zone with
half an hour, and what the roll-ups do not have, such as sessions and projects, comes from the rows themselves. So the
days, models, users and sessions of a period add up to the same totals.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import batched, islice
from operator import itemgetter
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

from aibridge_addon.recording.conditions import matching, parameter, within
from aibridge_addon.recording.hourly_usage import MAX_NAME, MODEL, TABLE
from aibridge_addon.recording.queries import NO_PARAMETERS, Queries, has_table
from aibridge_addon.recording.rows import timestamp

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_write_input_tokens", "output_tokens")
ROLLED = frozenset({"initiator_id", "provider_name", "model", "client", "billing"})
"""Columns by which the roll-ups are grouped."""
PERIODS = ("date", "week", "month")
"""Keys that are made from the time of a row: a day, the Monday of a week, and a month."""
MEASURES = ("interceptions", "failed", *COUNTS, "cost_usd", "unpriced")
COLUMNS: Mapping[str, str] = MappingProxyType(
    {name: f"interception.{name}" for name in ("provider_name", "session_id", "project", "agent_id", "provider")}
    | {name: f"interception.{name}" for name in ("upstream_host", "route", "request_class", "credential_hint")}
    | {name: f"substr(interception.{name}, 1, {MAX_NAME})" for name in ("initiator_id", "client")}
    | {"billing": "coalesce(interception.billing, '')"}
)
"""Columns of an interception that usage can be grouped by. The model is that of the answer."""
KEYS = (*PERIODS, "model", *COLUMNS)
SPANS_AT_ONCE = 500
"""Spans of one statement, which contains their times."""


@dataclass(frozen=True, slots=True)
class Question:
    """Which usage is wanted, and by what it is grouped."""

    keys: tuple[str, ...]
    """Names of `KEYS`."""
    zone: ZoneInfo
    """Days, weeks and months are those of this time zone."""
    since: datetime | None = None
    until: datetime | None = None
    """The first moment that does not belong to the period."""
    actors: tuple[str, ...] = ()
    """Names or patterns with `*` and `?`. Empty: all."""
    models: tuple[str, ...] = ()


@dataclass(slots=True)
class Usage:
    """Sums, which can be added up. Amounts of money are by who pays: `api`, `subscription`, or empty: not known."""

    interceptions: int = 0
    failed: int = 0
    input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    output_tokens: int = 0
    costs: dict[str, float] = field(default_factory=dict)
    unpriced: dict[str, int] = field(default_factory=dict)
    started_at: str | None = None
    ended_at: str | None = None

    def add(self, other: Usage) -> None:
        for name in ("interceptions", "failed", *COUNTS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for billing, cost in other.costs.items():
            self.costs[billing] = self.costs.get(billing, 0.0) + cost
        for billing, count in other.unpriced.items():
            self.unpriced[billing] = self.unpriced.get(billing, 0) + count
        self.started_at = min(filter(None, (self.started_at, other.started_at)), default=None)
        self.ended_at = max(filter(None, (self.ended_at, other.ended_at)), default=None)

    def __bool__(self) -> bool:
        counts = (getattr(self, name) for name in ("interceptions", *COUNTS))
        return any(counts) or any(self.costs.values()) or any(self.unpriced.values())

    def subtract(self, other: Usage) -> None:
        """Subtract a part. Times stay as they are: those of the rest are not known."""
        for name in ("interceptions", "failed", *COUNTS):
            setattr(self, name, max(0, getattr(self, name) - getattr(other, name)))
        for billing, cost in other.costs.items():
            self.costs[billing] = max(0.0, round(self.costs.get(billing, 0.0) - cost, 9))
        for billing, count in other.unpriced.items():
            self.unpriced[billing] = max(0, self.unpriced.get(billing, 0) - count)

    def cost(self, *billings: str) -> float | None:
        """Return what these payers paid. None: usage without a price, and none with a price. Zero: free, or no usage.

        `billings`: empty for all.
        """
        wanted = billings or tuple(self.costs)
        cost = round(sum(self.costs.get(billing, 0.0) for billing in wanted), 12)
        return None if cost == 0 and any(self.unpriced.get(billing) for billing in wanted) else cost

    def columns(self) -> dict[str, Any]:
        return {
            "interceptions": self.interceptions,
            "failed": self.failed,
            **{name: getattr(self, name) for name in COUNTS},
            "cost_usd": self.cost(),
            "api_cost_usd": self.cost("api"),
            "subscription_cost_usd": self.cost("subscription"),
            "other_cost_usd": self.cost(""),
            "unpriced": sum(self.unpriced.values()),
        }


Key = tuple[Any, ...]


def usage(rows: Queries, asked: Question) -> dict[Key, Usage]:
    """Return the usage of each combination of keys that has any. Raises DatabaseUnavailable."""
    has_hourly = has_table(rows, TABLE)
    dimensions = [key for key in asked.keys if key not in PERIODS]
    hourly, rest = list[Span](), list(_spans(asked, *_bounds(rows, _all_bounds(rows))))
    if has_hourly and ROLLED.issuperset(dimensions):
        hourly, rest = _split(rest)
    found: dict[Key, Usage] = {}
    for source, spans in ((ROLLED_UP, hourly), (TOKENS, rest), (ENDED, rest)):
        for row in _select(rows, source, asked, [*dimensions, "billing"], spans) if spans else ():
            found.setdefault(_key(row, asked.keys), Usage()).add(usage_of(row))
    return found


SESSION = ("session_id", "initiator_id", "client")
"""Keys of a report by session. Clients choose ids of sessions, so two users may have the same."""
OTHERS: Key = (None, None, None)
"""Key of the usage of all sessions that are not listed, or whose rows were deleted."""


def sessions(rows: Queries, asked: Question, limit: int) -> dict[Key, Usage]:
    """Return the usage of the sessions that were used last in the period, and the rest of the period's usage.

    Raises DatabaseUnavailable.
    """
    newest = list(islice(_newest(rows, asked), limit))
    spans = list(_spans(replace(asked, keys=()), *_bounds(rows, _all_bounds(rows))))
    found: dict[Key, Usage] = {}
    for some in batched({key[0] for key in newest}, SPANS_AT_ONCE, strict=False):
        ids = {parameter(number): id for number, id in enumerate(some)}
        listed = f"interception.session_id in ({', '.join(f':{name}' for name in ids)})"
        tokens = replace(SESSION_TOKENS, also=f"{SESSION_TOKENS.also} and {listed}")
        for source in (tokens, replace(ENDED, also=listed)):
            for row in _select(rows, source, asked, [*SESSION, "billing"], spans, ids):
                found.setdefault(_key(row, SESSION), Usage()).add(usage_of(row))
    wanted = set(newest)
    found = {key: sums for key, sums in found.items() if key in wanted}
    rest = total([usage(rows, replace(asked, keys=())).get((), Usage())])
    rest.subtract(total(found.values()))
    if rest:
        found[OTHERS] = rest
    return found


def _newest(rows: Queries, asked: Question) -> Iterator[Key]:
    """Yield the sessions that were used in the period, the last one first."""
    streams = (_used(rows, asked, source) for source in (TOKENS, ENDED))
    seen: set[Key] = set()
    for _, key in heapq.merge(*streams, key=itemgetter(0), reverse=True):
        if key not in seen:
            seen.add(key)
            yield key


def _used(rows: Queries, asked: Question, source: _Source) -> Iterator[tuple[str, Key]]:
    """Yield time and session of each row, the newest first."""
    parameters: dict[str, Any] = {}
    conditions = [source.also] if source.also else []
    conditions.append(f"{source.moment} is not null")
    conditions += within(rows, source.moment, asked.since, asked.until, parameters)
    conditions += matching(rows, source.columns["initiator_id"], asked.actors, parameters)
    conditions += matching(rows, source.columns["model"], asked.models, parameters)
    columns = ", ".join(f"{source.columns[name]} as {name}" for name in SESSION)
    sql = f"""select {source.moment} as moment, {columns} from {source.tables} where {" and ".join(conditions)}
        order by {source.moment} desc"""  # noqa: S608 (names are ours, values are parameters)
    for row in rows.stream(sql, parameters):
        yield row["moment"], _key(row, SESSION)


def tools(rows: Queries, asked: Question) -> dict[Key, dict[str, int]]:
    """Return calls by tool, server and `injected`, and then by the keys. Raises DatabaseUnavailable.

    The model is that of the request.
    """
    keys = ("tool", "server_name", "injected", *asked.keys)
    found: dict[Key, dict[str, int]] = {}
    begin, end = _bounds(rows, CALL_BOUNDS)
    spans = list(_spans(asked, begin, end))
    dimensions = [key for key in keys if key not in PERIODS]
    sources: tuple[_Source, ...] = (CALLED,)
    if len(dimensions) == 3 and not asked.actors and not asked.models:
        sources = (ONLY_CALLED,)
        if len(spans) == 1:
            ((first, last, _),) = spans
            sources = (replace(ALL_CALLS, is_grouped=SHARE * (last - first) > end - begin), FAILED_CALLS)
    for source in sources:
        for row in _select(rows, source, asked, dimensions, spans):
            sums = found.setdefault(_key(row, keys), dict.fromkeys(CALLS, 0))
            for name in CALLS:
                sums[name] += int(row[name] or 0)
    return found


def total(parts: Iterable[Usage]) -> Usage:
    whole = Usage()
    for part in parts:
        whole.add(part)
    return whole


def _key(row: Mapping[str, Any], keys: Iterable[str]) -> Key:
    return tuple(
        _period(row["place"], key) if key in PERIODS else (row[key] or None) if key == "billing" else row[key]
        for key in keys
    )


def usage_of(row: Mapping[str, Any]) -> Usage:
    """Return the sums in a row of a query. Columns that it does not have are zero."""
    found = Usage(started_at=row.get("started_at"), ended_at=row.get("ended_at"))
    for name in ("interceptions", "failed", *COUNTS):
        setattr(found, name, int(row.get(name) or 0))
    found.costs[row["billing"]] = row.get("cost_usd") or 0.0
    found.unpriced[row["billing"]] = int(row.get("unpriced") or 0)
    return found


# --- SQL -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows whose sums are wanted."""

    tables: str
    moment: str
    """The column that decides in which span a row counts."""
    columns: Mapping[str, str]
    """Expressions of the keys."""
    sums: Mapping[str, str]
    """Expressions of what is summed up."""
    first: str = "null"
    """The earliest of these is wanted, too."""
    last: str = "null"
    also: str = ""
    """A condition."""
    is_grouped: bool = False
    """Whether SQLite, which sorts to form groups, is to use an index in the order of the groups and not of times."""


ROLLED_UP = _Source(
    f"{TABLE} as h",
    "h.hour",
    {name: f"h.{name}" for name in sorted(ROLLED)},
    {name: f"h.{name}" for name in MEASURES},
)
TOKENS = _Source(
    "aibridge_token_usages as t cross join aibridge_interceptions as interception",
    "t.created_at",
    {**COLUMNS, "model": f"substr(coalesce(t.model, ''), 1, {MAX_NAME})"},
    {name: f"t.{name}" for name in (*COUNTS, "cost_usd")} | {"unpriced": "case when t.cost_usd is null then 1 end"},
    first="t.created_at",
    last="t.created_at",
    also="interception.id = t.interception_id",
)
SESSION_TOKENS = replace(TOKENS, tables="aibridge_interceptions as interception cross join aibridge_token_usages as t")
ENDED = _Source(
    "aibridge_interceptions as interception",
    "interception.ended_at",
    {**COLUMNS, "model": f"substr({MODEL}, 1, {MAX_NAME})"},
    {"interceptions": "1", "failed": "case when interception.status = 'failed' then 1 end"},
    first="interception.started_at",
    last="interception.ended_at",
)
IS_ERROR = "case when json_valid(u.metadata) then json_extract(u.metadata, '$.result_is_error') end"
FAILED = f"(u.invocation_error is not null or u.metadata <> '{{}}' and {IS_ERROR} is not null)"
"""Both databases have an index of these calls."""
CALLED = _Source(
    "aibridge_tool_usages as u cross join aibridge_interceptions as interception",
    "u.created_at",
    {
        **COLUMNS,
        "model": "interception.model",
        "tool": "u.tool",
        "server_name": "u.server_name",
        "injected": "u.injected",
    },
    {
        "calls": "1",
        "failed": f"case when {FAILED} then 1 end",
        "timed": "case when u.duration_ms is not null then 1 end",
        "duration_ms": "u.duration_ms",
    },
    also="interception.id = u.interception_id",
)
CALLS = tuple(CALLED.sums)
"""What is counted of calls. `timed` are those with a known duration, whose sum is `duration_ms`."""
ONLY_CALLED = replace(CALLED, tables="aibridge_tool_usages as u", also="")
"""Without the interception, which takes time to find."""
ALL_CALLS = replace(ONLY_CALLED, sums={name: ONLY_CALLED.sums[name] for name in CALLS if name != "failed"})
FAILED_CALLS = replace(ONLY_CALLED, sums={"failed": "1"}, also=FAILED, is_grouped=True)
"""`ONLY_CALLED` as two queries, each of which needs nothing but an index."""
SHARE = 8
"""A period is long if it is more than this part of the time in which there are calls."""


def _select(
    rows: Queries,
    source: _Source,
    asked: Question,
    dimensions: Sequence[str],
    spans: Sequence[Span],
    bound: Mapping[str, Any] = NO_PARAMETERS,
) -> Iterator[dict[str, Any]]:
    """Return the sums of a source for each span and each combination of dimensions."""
    parameters = dict(bound)
    conditions = [
        *matching(rows, "initiator_id", asked.actors, parameters),
        *matching(rows, "model", asked.models, parameters),
    ]
    needed = {*dimensions, *(["initiator_id"] if asked.actors else ()), *(["model"] if asked.models else ())}
    columns = [f"{source.columns[name]} as {name}" for name in sorted(needed)]
    measures = {name: source.sums.get(name, "0") for name in (CALLS if "tool" in source.columns else MEASURES)}
    columns += [f"{expression} as {name}" for name, expression in measures.items()]
    # SQLite's sum() fails where integers are too large, which providers can choose. In PostgreSQL they are numeric.
    function = "sum" if rows.postgres else "total"
    sums = ", ".join(f"{function}({name}) as {name}" for name in measures)
    also = f" and {source.also}" if source.also else ""
    groups = list(dict.fromkeys(dimensions))
    type_ = "timestamptz " if rows.postgres else ""
    # With `+`, SQLite finds no index for a condition.
    moment = f"+{source.moment}" if source.is_grouped and not rows.postgres else source.moment
    for some in batched(spans, SPANS_AT_ONCE, strict=False):
        values = [(f"{type_}'{timestamp(a)}'", f"{type_}'{timestamp(b)}'", f"'{place}'") for a, b, place in some]
        if len(values) == 1:  # then SQLite need not sort rows that an index has in the order of the groups
            ((first, last, place),) = values
            listed, tables, selected, grouped = "", source.tables, f"{place} as place", groups
        else:  # `cross join` keeps SQLite from reading tables in another order
            first, last, place = "span.first", "span.last", "span.place"
            listed = f"with span (first, last, place) as (values {', '.join(f'({", ".join(row)})' for row in values)})"
            tables, selected, grouped = f"span cross join {source.tables}", "place", ["place", *groups]
        sql = f"""
            {listed} select {", ".join((selected, *groups))}, {sums},
                min(started_at) as started_at, max(ended_at) as ended_at
            from (
                select {place} as place, {", ".join(columns)}, {source.first} as started_at, {source.last} as ended_at
                from {tables} where {moment} >= {first} and {moment} < {last}{also}
            ) as found where {" and ".join(conditions) or "1 = 1"} group by {", ".join(grouped)}
        """  # noqa: S608 (names are ours, values are parameters)
        if rows.postgres:
            sql = sql.replace(IS_ERROR, "u.metadata ->> 'result_is_error'")
        yield from rows.select(sql, parameters)


# --- spans: the parts of a period ------------------------------------------------------------------------------------

Span = tuple[datetime, datetime, str]
"""From, up to and without, and the day that it belongs to: the first one of its week or month."""


def _bounds(rows: Queries, sql: str) -> tuple[datetime, datetime]:
    """Return the time in which there are rows, in whole hours."""
    (found,) = rows.select(sql)
    if found["first"] is None:
        return datetime.min.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
    return _hour(datetime.fromisoformat(found["first"])), _hour(datetime.fromisoformat(found["last"])) + HOUR


def _all_bounds(rows: Queries) -> str:
    return HOURLY_BOUNDS if has_table(rows, TABLE) else RAW_BOUNDS


def _limits(column: str, table: str) -> str:
    """Return the query for the first and the last value. SQLite takes both from an index, but only one at a time."""
    return f"select (select min({column}) from {table}) as first, (select max({column}) from {table}) as last"  # noqa: S608


HOURLY_BOUNDS = _limits("hour", TABLE)
CALL_BOUNDS = _limits("created_at", "aibridge_tool_usages")
RAW_BOUNDS = f"""
select min(first) as first, max(last) as last from (
    {_limits("started_at", "aibridge_interceptions")} union all {_limits("ended_at", "aibridge_interceptions")}
    union all {_limits("created_at", "aibridge_token_usages")}
) as bounds
"""  # noqa: S608 (names are ours)


def _spans(asked: Question, first: datetime, last: datetime) -> Iterator[Span]:
    """Yield the parts of the wanted period. There are rows from `first` to `last`."""
    first = first if asked.since is None else max(first, asked.since)
    last = last if asked.until is None else min(last, asked.until)
    periods = [key for key in asked.keys if key in PERIODS]
    if not periods:
        if first < last:
            yield first, last, ""
        return
    if first >= last:
        return
    unit = periods[0] if len(periods) == 1 else "date"
    day = _first_day(first.astimezone(asked.zone).date(), unit)
    start = _midnight(day, asked.zone)
    while start < last:
        next_day = _next(day, unit)
        end = _midnight(next_day, asked.zone)
        if max(start, first) < min(end, last):
            yield max(start, first), min(end, last), day.isoformat()
        day, start = next_day, end


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    """Return the moment when a day begins. If clocks change at midnight, that is the moment of the change."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _first_day(day: date, unit: str) -> date:
    if unit == "week":
        return day - day.weekday() * DAY
    return day.replace(day=1) if unit == "month" else day


def _next(day: date, unit: str) -> date:
    if unit == "month":
        return (day.replace(day=28) + 4 * DAY).replace(day=1)
    return day + (7 * DAY if unit == "week" else DAY)


def _period(place: str, unit: str) -> str:
    day = _first_day(date.fromisoformat(place), unit)
    return day.isoformat()[:7] if unit == "month" else day.isoformat()


def _split(spans: Iterable[Span]) -> tuple[list[Span], list[Span]]:
    """Return the whole hours of spans, and what is left of them."""
    whole: list[Span] = []
    rest: list[Span] = []
    for first, last, place in spans:
        begin, end = _hour(first + HOUR - timedelta.resolution), _hour(last)
        if begin < end:
            whole.append((begin, end, place))
            rest += [span for span in ((first, begin, place), (end, last, place)) if span[0] < span[1]]
        else:
            rest.append((first, last, place))
    return whole, rest


def _hour(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
