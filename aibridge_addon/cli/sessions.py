"""`aibridge sessions`: list the newest sessions, or show one as a timeline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from aibridge_addon.cli import database, output, period
from aibridge_addon.cli.context import bar, legend
from aibridge_addon.cli.examples import examples
from aibridge_addon.cli.output import Column, Row, name
from aibridge_addon.cli.period import Period
from aibridge_addon.recording import sessions
from aibridge_addon.recording.context import last_context
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.reports import COUNTS, total
from aibridge_addon.recording.sessions import Agents, NotFound, Session, events_of
from aibridge_addon.telemetry.log.text import count, duration, local, money, one_line
from aibridge_addon.wire.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = """List the newest sessions, or show one with its prompts, thoughts, calls, answers, tokens and costs.
A session's line in the list has all of its usage, also what was before --since."""

SHOWN = 20
SHORT_TEXT = 240
"""Characters of a text that a timeline shows without `--full`."""
INDENT = 4
LABEL_WIDTH = 8
NOTHING = "There are no sessions in this period."
SEVERAL = "Several users have a session with this id. --actor NAME shows one of them."

EXAMPLES = examples(
    "aibridge sessions --actor alice --limit 5",
    "aibridge sessions show 7c1e",
    "aibridge sessions show 7c1e --full | less -R",
)


def add(commands: Any) -> None:
    command = commands.add_parser("sessions", help="list sessions, or show one", description=DESCRIPTION, **EXAMPLES)
    command.add_argument("action", nargs="?", choices=["show"], help="show one session as a timeline")
    command.add_argument(
        "id", nargs="?", metavar="ID", help="id of the session or of an interception, or its beginning"
    )
    command.add_argument("--full", action="store_true", help="show: do not shorten texts")
    command.add_argument("--limit", type=int, default=SHOWN, metavar="N", help=f"at most N; 0: all (default: {SHOWN})")
    command.add_argument("--actor", metavar="NAME", action="append", default=[], help="only this user; * and ? match")
    command.add_argument("--model", metavar="NAME", action="append", default=[], help="only this model; * and ? match")
    period.add_options(command)
    output.add_options(command)
    database.add_options(command)
    command.set_defaults(run=run, command=command)


def run(arguments: argparse.Namespace) -> int:
    if arguments.action and not arguments.id:
        arguments.command.error("show needs the ID of a session")
    if arguments.limit < 0:
        arguments.command.error("--limit: a number from 0 on is needed")
    if arguments.action and arguments.csv:
        arguments.command.error("show has no CSV: use --json")
    wanted = period.period_of(arguments)
    settings = database.settings_of(arguments)
    place = str(settings.database)
    with queries(settings) as rows:
        if not arguments.action:
            found = sessions.newest(
                rows,
                limit=arguments.limit or None,
                since=wanted.since,
                until=wanted.until,
                actors=arguments.actor,
                models=arguments.model,
            )
            _list(arguments, found, wanted, place)
            return 0
        try:
            session_id = sessions.find(rows, arguments.id)
        except NotFound as e:
            print(printable(str(e)), file=sys.stderr)
            return 1
        whole = sessions.whole(rows, session_id, arguments.actor)
        interceptions = list(sessions.one(rows, session_id, arguments.actor))
    if not whole:
        print(f"no user of session {printable(session_id)} matches --actor", file=sys.stderr)
        return 1
    if arguments.json:
        totals = total(session.usage for session in whole).columns()
        output.write_json({"rows": interceptions, "totals": totals, **wanted.columns(), "database": place})
    else:
        Timeline(output.console(), wanted.zone, full=arguments.full).write(whole, interceptions)
    return 0


# --- the list --------------------------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace, found: list[Session], wanted: Period, place: str) -> None:
    rows = [session.columns() for session in found]
    totals = total(session.usage for session in found).columns()
    if arguments.json:
        return output.write_json({"rows": rows, "totals": totals, **wanted.columns(), "database": place})
    if arguments.csv:
        empty = Session("", "", "", None, 0, None, total(()))
        return output.write_csv(rows, tuple(empty.columns()))
    title = f"Newest sessions, {wanted}, time zone {wanted.zone.key}"
    if not rows:
        print(f"{title}\n\n{NOTHING}")
        return None
    return output.write_table(_columns(wanted, totals, rows), rows, None, title=title)


def _columns(wanted: Period, totals: Row, rows: list[dict[str, Any]]) -> list[Column]:
    def text(title: str, column: str, *, wide_only: bool = False) -> Column:
        return Column(title, lambda row: name(row[column]), kind="name", wide_only=wide_only)

    columns = [
        text("Session", "session_id"),
        output.time_column("Last call", "ended_at", wanted.zone),
        text("User", "initiator_id"),
        text("Client", "client", wide_only=True),
        output.count_column("Requests", "interceptions"),
        *([output.count_column("Failed", "failed", wide_only=True)] if totals["failed"] else []),
        *output.token_columns(wide_only=True),
        *output.cost_columns(totals, rows),
    ]
    if totals["unpriced"]:
        columns.append(output.count_column("Un-\npriced", "unpriced"))
    prompt = Column("First prompt", lambda row: one_line(row["prompt"] or "")[:120], kind="name")
    return [*columns, prompt]


# --- the timeline ----------------------------------------------------------------------------------------------------


class Timeline:
    """Writes a session in the order of time: each request, and below it what it brought, said, called and cost."""

    def __init__(self, console: Console, zone: ZoneInfo, *, full: bool) -> None:
        self._console = console
        self._zone = zone
        self._full = full
        self._agents = Agents()
        self._day = ""

    def write(self, whole: list[Session], interceptions: list[dict[str, Any]]) -> None:
        several = len(whole) > 1
        for session in whole:
            self._head(session)
            if several:
                self._console.print()
        if several:
            self._print(SEVERAL)
        if context := last_context(interceptions):
            self._context(context)
        for interception in interceptions:
            self._interception(interception, several=several)

    def _head(self, session: Session) -> None:
        usage = session.usage
        parts = (session.session_id, session.initiator_id, session.client, session.project)
        self._print(" · ".join(name(part) for part in parts if part), style="bold")
        first = local(usage.started_at, self._zone)
        last = local(usage.ended_at, self._zone)
        said = [f"{first} to {last} ({self._zone.key})", _counted(usage.interceptions, "request")]
        said += [f"{usage.failed:,} failed"] if usage.failed else []
        said += [f"{session.running:,} running"] if session.running else []
        self._print(", ".join(said))
        self._print(", ".join([_tokens(usage.columns()), *_costs(usage.columns())]))

    def _context(self, context: Sequence[tuple[str, int]]) -> None:
        from rich.text import Text

        self._console.print()
        self._print(f"Context of the last request, {sum(count for _, count in context):,} bytes:")
        self._console.print(Text.assemble(*bar(context, self._console.width)))
        self._print(", ".join(legend(context)), style="dim")

    def _interception(self, row: Mapping[str, Any], *, several: bool) -> None:
        day = local(row["started_at"], self._zone, "%A, %Y-%m-%d")
        if day != self._day:
            self._day = day
            self._console.print()
            self._print(day, style="bold underline")
        depth = self._agents.depth(row)
        self._console.print()
        self._line(depth, local(row["started_at"], self._zone, "%H:%M:%S"), _summary(row, several=several), "bold")
        for label, text, style in self._events(row):
            self._line(depth, label, text, style)

    def _events(self, row: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
        """Yield label, text and style of each line below a request."""
        for kind, item in events_of(row):
            match kind:
                case "prompt":
                    yield "prompt", self._text(item["prompt"]), "green"
                case "thought":
                    yield "thought", self._text(item["content"]), "dim"
                case "answer":
                    cut = " (cut when it was recorded)" if item["truncated"] else ""
                    yield "answer", self._text(item["content"]) + cut, None
                case _:
                    yield "call", self._call(item), "cyan"
                    if item["invocation_error"]:
                        yield "", f"failed: {self._text(item['invocation_error'])}", "red"
                    if item["result"] is not None:
                        yield "", f"→ {self._text(item['result'])}", "dim"
        for item in row["token_usages"]:
            yield *_turn(item, of=len(row["token_usages"]), billing=row["billing"]), "magenta"
        if row["error_type"]:
            status = f"{row['http_status']} " if row["http_status"] else ""
            message = f": {self._text(row['error_message'])}" if row["error_message"] else ""
            yield "error", f"{status}{name(row['error_type'])}{message}", "red"

    def _call(self, item: Mapping[str, Any]) -> str:
        marks = []
        if item["injected"]:
            marks.append(f"injected, {name(item['server_name'])}" if item["server_name"] else "injected")
        elif item["server_name"]:
            marks.append(name(item["server_name"]))
        if isinstance(item["metadata"], dict) and item["metadata"].get("server_side"):
            marks.append("run by the provider")
        if isinstance(item["metadata"], dict) and item["metadata"].get("result_is_error"):
            marks.append("failed")
        if item["duration_ms"] is not None:
            marks.append(duration(item["duration_ms"] / 1000))
        marked = f" [{', '.join(marks)}]" if marks else ""
        return f"{name(item['tool'])}{marked} {self._text(output.compact(item['input']))}".rstrip()

    def _text(self, text: str | None) -> str:
        if text is None:
            return "(not recorded)"
        return printable(text.expandtabs(4)) if self._full else one_line(text, SHORT_TEXT)

    def _print(self, text: str, style: str | None = None) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style or ""))

    def _line(self, depth: int, label: str, text: str, style: str | None) -> None:
        """Print a label, and a text beside it that is wrapped to its column."""
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        grid.add_column(width=LABEL_WIDTH, no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text(label, style="bold" if style == "bold" else "dim"), Text(text, style=style or ""))
        self._console.print(Padding(grid, (0, 0, 0, depth * INDENT), expand=False))


def _summary(row: Mapping[str, Any], *, several: bool) -> str:
    """Return what a request was, who sent it, and how it ended."""
    metadata = row["metadata"] if isinstance(row["metadata"], dict) else {}
    parts = [name(row["model"])]
    parts += [name(row["initiator_id"])] if several else []
    if row["request_class"] in ("subagent", "auxiliary"):
        kind = metadata.get("agent_type")
        parts.append(f"{row['request_class']} {name(kind)}" if isinstance(kind, str) else str(row["request_class"]))
    if row["agent_id"]:
        parts.append(f"agent {name(row['agent_id'])[:12]}")
    parts.append(str(row["status"] or "running"))
    if row["ended_at"] is not None:
        took = datetime.fromisoformat(row["ended_at"]) - datetime.fromisoformat(row["started_at"])
        parts.append(duration(max(took.total_seconds(), 0.0)))
    if (row["turns"] or 0) > 1:
        parts.append(f"{row['turns']} turns")
    return " · ".join(parts)


def _turn(item: Mapping[str, Any], *, of: int, billing: str | None) -> tuple[str, str]:
    """Return the label and the text of a token row."""
    parts = [name(item["kind"])] if item["kind"] not in (None, "answer") else []
    parts.append(_tokens({column: item[column] or 0 for column in COUNTS}))
    parts.append(f"{'subscription ' if billing == 'subscription' else ''}USD {money(item['cost_usd'])}")
    if item["unpriced"]:
        parts.append(f"unpriced: {name(item['unpriced'])}")
    if item["completeness"] == "partial":
        parts.append("partial")
    return f"turn {item['turn']}" if of > 1 and item["turn"] else "tokens", ", ".join(parts)


def _tokens(row: Mapping[str, Any]) -> str:
    return (
        f"input {count(row['input_tokens'])}, cache read {count(row['cache_read_input_tokens'])}, "
        f"cache write {count(row['cache_write_input_tokens'])}, output {count(row['output_tokens'])}"
    )


def _costs(row: Mapping[str, Any]) -> list[str]:
    """Return the amounts by who pays, and the number of rows without one."""
    payers = (("API", "api_cost_usd"), ("subscription", "subscription_cost_usd"), ("other", "other_cost_usd"))
    amounts = [f"{payer} USD {money(row[column])}" for payer, column in payers if row[column] != 0]
    return (amounts or ["USD 0"]) + ([f"{_counted(row['unpriced'], 'token row')} unpriced"] if row["unpriced"] else [])


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
