"""What each page shows: values for its template, from the queries that the command line uses, too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

from aibridge_addon.recording import context, plan_limits, recent, reports, sessions
from aibridge_addon.recording.context import CATEGORIES, context_of
from aibridge_addon.recording.queries import Queries
from aibridge_addon.recording.reports import COUNTS, Key, Question, Usage
from aibridge_addon.telemetry.log.text import money
from aibridge_addon.web import plots, texts
from aibridge_addon.web.plots import Bar, Part

PERIODS: Mapping[int, str] = MappingProxyType({1: "today", 7: "7 days", 30: "30 days", 90: "90 days", 365: "a year"})
"""Days that a page can show, today included."""
DEFAULT_DAYS = 30
LISTED = 12
"""Rows of a table on the overview."""
PAGE = 50
"""Sessions of a page."""
SEARCHED = 2_000
"""Sessions of the newest that a search looks at."""
TURNS = 100
"""Requests of a session on one page."""
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "input_tokens": "new input",
        "cache_write_input_tokens": "cache write",
        "cache_read_input_tokens": "cache read",
        "output_tokens": "output",
    }
)
"""Columns of tokens in the order in which plots stack them."""


@dataclass(frozen=True, slots=True)
class View:
    """What a request asks for, beside the page."""

    zone: ZoneInfo
    now: datetime
    days: int = DEFAULT_DAYS

    @property
    def since(self) -> datetime:
        """The midnight at which the period begins."""
        first = self.now.astimezone(self.zone).date() - timedelta(days=self.days - 1)
        return datetime.combine(first, time(), self.zone).astimezone(UTC)


def overview(rows: Queries, view: View) -> dict[str, Any]:
    by_day = reports.usage(rows, Question(("date",), view.zone, since=view.since))
    by_name = reports.usage(rows, Question(("model", "initiator_id", "client"), view.zone, since=view.since))
    total = reports.total(by_name.values())
    tables = [
        (title, _largest(_grouped(by_name, place)), parameter)
        for place, (title, parameter) in enumerate((("Model", "model"), ("User", "actor"), ("Client", "")))
    ]
    return {
        "total": total,
        "costs": _costs(total),
        "spend": plots.columns(_days(view, by_day, _cost_parts), title="US dollars by day"),
        "tokens_by_day": plots.columns(_days(view, by_day, _token_parts), title="Tokens by day"),
        "requests": plots.columns(_days(view, by_day, _request_parts), title="Requests by day"),
        "tables": tables,
        "recent": recent.recent(rows),
    }


def session_list(rows: Queries, view: View, *, search: str, actor: str, model: str, page: int) -> dict[str, Any]:
    """`search`: a part of a session's id, first prompt, project or client."""
    actors, models = ((text,) if text else () for text in (actor, model))
    first = (page - 1) * PAGE
    if search:
        found = sessions.search(rows, search, of=SEARCHED, limit=PAGE + 1, skip=first, actors=actors, models=models)
    else:
        found = sessions.newest(rows, limit=PAGE + 1, skip=first, actors=actors, models=models)
    return {
        "sessions": found[:PAGE],
        "more": len(found) > PAGE,
        "page_number": page,
        "search": search,
        "actor": actor,
        "model": model,
        "searched": SEARCHED if search else None,
    }


def session(rows: Queries, view: View, *, id: str, actor: str, page: int, full: bool) -> dict[str, Any]:
    """Raises NotFound."""
    id = sessions.find(rows, id)
    actors = (actor,) if actor else ()
    first = (page - 1) * TURNS
    agents = sessions.agents_before(rows, id, actors, first)
    found = list(sessions.one(rows, id, actors, skip=first, limit=TURNS + 1))
    shown = [_turn(row, agents.depth(row)) for row in found[:TURNS]]
    return {
        "id": id,
        "actor": actor,
        "whole": sessions.whole(rows, id, actors),
        "interceptions": shown,
        "page_number": page,
        "more": len(found) > TURNS,
        "full": full,
    }


def _turn(row: dict[str, Any], depth: int) -> dict[str, Any]:
    return row | {
        "depth": depth,
        "events": sessions.events_of(row),
        "took": texts.took(row),
        "cost": _sum(item["cost_usd"] for item in row["token_usages"]),
        "context": _context(row["metadata"]),
    }


def _sum(costs: Iterable[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


def _context(metadata: object) -> Any:
    """Return the plot of a request's bytes by category. None: they are not known."""
    found = context_of(metadata)
    parts = [
        Part(f"c{CATEGORIES.index(name)}", size, f"{name.replace('_', ' ')}: {size:,} bytes") for name, size in found
    ]
    legend = [(part.kind, part.text) for part in parts]
    return {"plot": plots.stack(parts, title="Where the context goes"), "legend": legend} if parts else None


def tools(rows: Queries, view: View) -> dict[str, Any]:
    found = reports.tools(rows, Question((), view.zone, since=view.since))
    most = max((sums["calls"] for sums in found.values()), default=0)
    calls = [
        {
            "tool": key[0],
            "server": key[1],
            "injected": bool(key[2]),
            **sums,
            "mean": sums["duration_ms"] / sums["timed"] / 1000 if sums["timed"] else None,
            "bar": plots.stack(
                [
                    Part("ok", sums["calls"] - sums["failed"], f"{sums['calls']:,} calls"),
                    Part("bad", sums["failed"], f"{sums['failed']:,} failed"),
                ],
                title=f"{sums['calls']:,} calls, {sums['failed']:,} failed",
                whole=most,
            ),
        }
        for key, sums in found.items()
    ]
    schemas = context.schemas(rows, since=view.since)
    return {"calls": sorted(calls, key=lambda call: -call["calls"])[:500], "schemas": schemas}


def providers(rows: Queries, view: View) -> dict[str, Any]:
    found = reports.usage(rows, Question(("provider_name",), view.zone, since=view.since))
    limits = [row | {"bar": _used(row["used_ratio"])} for row in plan_limits.latest(rows, since=view.since)]
    return {"providers": _largest({key[0]: usage for key, usage in found.items()}, limit=None), "limits": limits}


def budgets(current: Callable[[], Sequence[dict[str, Any]]]) -> dict[str, Any]:
    return {"budgets": [row | {"bar": _used(row["used"])} for row in current()]}


def unpriced(rows: Queries, view: View) -> dict[str, Any]:
    found = recent.unpriced(rows, since=view.since)
    return {"unpriced": found, "steps": texts.unpriced_steps(row["reason"] for row in found)}


def _used(ratio: float | None) -> Any:
    if ratio is None:
        return ""
    kind = "bad" if ratio >= 1 else "warn" if ratio >= 0.85 else "ok"
    return plots.stack([Part(kind, min(1.0, ratio), f"{ratio:.0%}")], title=f"{ratio:.0%} used", whole=1.0)


def _grouped(found: Mapping[Key, Usage], place: int) -> dict[str | None, Usage]:
    """Sum up usage by one of its keys."""
    groups: defaultdict[str | None, Usage] = defaultdict(Usage)
    for key, usage in found.items():
        groups[key[place]].add(usage)
    return groups


def _largest(groups: Mapping[str | None, Usage], limit: int | None = LISTED) -> list[dict[str, Any]]:
    """Return the groups with most cost, then tokens, each with a bar of its tokens; and the sum of all others."""
    ordered = sorted(groups.items(), key=lambda item: (-(item[1].cost() or 0.0), -_tokens(item[1]), str(item[0])))
    shown, others = ordered[:limit], ordered[limit:] if limit is not None else []
    most = max((_tokens(usage) for _, usage in shown), default=0)
    lines: list[dict[str, Any]] = [
        {"name": name, "usage": usage, "bar": plots.stack(_token_parts(usage), title=_said(usage), whole=most)}
        for name, usage in shown
    ]
    if others:
        usage = reports.total(usage for _, usage in others)
        lines.append({"name": None, "others": len(others), "usage": usage, "bar": ""})
    return lines


def _tokens(usage: Usage) -> int:
    return sum(getattr(usage, name) for name in COUNTS)


def _said(usage: Usage) -> str:
    return ", ".join(f"{getattr(usage, name):,} {title}" for name, title in KINDS.items())


def _costs(usage: Usage) -> list[tuple[str, float | None]]:
    """Return the amounts by who pays, as far as there are any."""
    amounts = (("API", usage.cost("api")), ("subscription", usage.cost("subscription")), ("other", usage.cost("")))
    return [(title, amount) for title, amount in amounts if amount != 0]


def _days(view: View, found: Mapping[Key, Usage], parts: Callable[[Usage], list[Part]]) -> list[Bar]:
    """Return a column for each day of the period; of a long one, for each week."""
    first = view.since.astimezone(view.zone).date()
    size = 7 if view.days > 90 else 1
    bars = []
    for start in range(0, view.days, size):
        days = [first + timedelta(days=day) for day in range(start, min(start + size, view.days))]
        usage = reports.total(found[key] for day in days if (key := (day.isoformat(),)) in found)
        bars.append(Bar(days[0].strftime("%m-%d"), parts(usage)))
    return bars


def _token_parts(usage: Usage) -> list[Part]:
    return [Part(name.split("_tokens")[0], getattr(usage, name), _said(usage)) for name in KINDS]


def _cost_parts(usage: Usage) -> list[Part]:
    titles = (("api", "API"), ("subscription", "subscription"), ("", "other"))
    return [
        Part(f"pay-{billing or 'other'}", cost, f"{title} USD {money(cost)}")
        for billing, title in titles
        if (cost := usage.cost(billing) or 0.0)
    ]


def _request_parts(usage: Usage) -> list[Part]:
    well = max(0, usage.interceptions - usage.failed)
    text = f"{usage.interceptions:,} requests, {usage.failed:,} failed"
    return [Part("ok", well, text), Part("bad", usage.failed, text)]
