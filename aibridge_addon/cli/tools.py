"""`aibridge tools`: connect to the configured MCP servers, list their tools and why some are left out, and call one."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import logging
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aibridge_addon.cli import output, tools_logout
from aibridge_addon.cli.database import add_options, settings_of
from aibridge_addon.cli.examples import examples
from aibridge_addon.config.errors import did_you_mean
from aibridge_addon.config.system_user import operating_system_user
from aibridge_addon.recording import database
from aibridge_addon.records import utc_now
from aibridge_addon.records.tool_pins import ToolPin
from aibridge_addon.telemetry.log.text import one_line
from aibridge_addon.wire.printable import printable

if TYPE_CHECKING:
    from aibridge_addon.config.schema import Mcp, Settings
    from aibridge_addon.dialects.turns import Part
    from aibridge_addon.tools.caller import Caller
    from aibridge_addon.tools.catalog import Tool
    from aibridge_addon.tools.servers import Servers

MAX_DESCRIPTION = 100
"""Characters of a description in the list."""
MAX_NAME = 64
"""Characters of a name there: as many as a name may have in requests."""
NOTHING = "No MCP servers are configured. docs/tools.md describes how to add one."
COLUMNS = ("server", "tool", "name", "offered", "reason", "description")

DESCRIPTION = """Connect to the MCP servers of the configuration, as the bridge does, and list their tools: which are
offered to models, under which names, and why others are left out. `call NAME` calls one, and `logout SERVER` ends
logins. The exit code is 1 if a server cannot be reached, or if the call fails."""

EXAMPLES = examples(
    "aibridge tools list --config aibridge.yaml",
    """aibridge tools call bmcp_time_get_current_time '{"timezone": "UTC"}'""",
    "aibridge tools --server time --json",
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "tools", help="list and call the tools of MCP servers", description=DESCRIPTION, **EXAMPLES
    )
    _add_list_options(command)
    command.set_defaults(run=_list)
    actions = command.add_subparsers(title="actions", metavar="ACTION")
    listing = actions.add_parser("list", help="list all tools (the default)", description="List the tools.")
    _add_list_options(listing)
    listing.set_defaults(run=_list)
    call = actions.add_parser("call", help="call a tool", description="Call a tool, and print its result.")
    call.add_argument("name", metavar="NAME", help="bmcp_SERVER_TOOL, SERVER/TOOL, or TOOL if only one server has it")
    call.add_argument(
        "arguments", metavar="JSON", nargs="?", default="{}", help="arguments, a JSON object; `-`: from standard input"
    )
    call.add_argument("--json", action="store_true", help="print JSON")
    _add_actor(call)
    add_options(call)
    approve = actions.add_parser(
        "approve",
        help="accept tools that have changed",
        description="Show the tools of servers with `pin: true` that have changed, and accept those that are named. "
        "Running bridges offer them within 10 seconds.",
    )
    approve.add_argument("names", nargs="*", metavar="NAME", help="as for `call`; none: only show what has changed")
    approve.add_argument("--all", action="store_true", help="accept all that have changed")
    approve.add_argument("--json", action="store_true", help="print JSON")
    _add_actor(approve)
    add_options(approve)
    approve.set_defaults(run=_approve)
    logout = tools_logout.add(actions)
    _add_actor(logout)
    for option in (*listing._actions, *call._actions, *approve._actions, *logout._actions):
        if option.dest in ("servers", "json", "csv", "config", "database", "actor"):
            option.default = argparse.SUPPRESS  # what stands before the action counts, too
    call.set_defaults(run=_call)


def _add_list_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--server", dest="servers", action="append", default=[], metavar="NAME", help="only this one; may be repeated"
    )
    _add_actor(command)
    output.add_options(command)
    add_options(command)


def _add_actor(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--actor", metavar="NAME", help="for servers whose settings name the actor (default: actor.default, or you)"
    )


# --- list -----------------------------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments, quiet=True)
    names = arguments.servers or list(settings.mcp.servers)
    if (wrong := next((name for name in names if name not in settings.mcp.servers), None)) is not None:
        known = list(settings.mcp.servers)
        hint = did_you_mean(wrong, known)
        print(f"there is no MCP server {printable(wrong)}, only: {', '.join(known)}{hint}", file=sys.stderr)
        return 2
    servers, rows = asyncio.run(_listed(settings, names, _caller(arguments, settings))) if names else ([], [])
    if arguments.json:
        totals = {
            "servers": len(servers),
            "up": sum(server["up"] for server in servers),
            "tools": sum(row["offered"] for row in rows),
            "left_out": sum(not row["offered"] for row in rows),
        }
        about = {"timezone": "UTC", "since": None, "until": None, "database": str(settings.database)}
        output.write_json({"rows": rows, "totals": totals, "servers": servers, **about})
    elif arguments.csv:
        output.write_csv([row | {"offered": str(row["offered"]).lower()} for row in rows], COLUMNS)
    elif not servers:
        print(NOTHING)
    else:
        _write(servers, rows)
    return 0 if all(server["up"] for server in servers) else 1


def _write(servers: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
    for server in servers:
        own = [row for row in rows if row["server"] == server["name"]]
        state = f"up, {server['tools']} tools offered" if server["up"] else f"away: {server['problem']}"
        if server["logged_in"] is False:
            state = "not logged in: call a tool to get a link"
        left_out = f", {rest} left out" if (rest := len(own) - server["tools"]) else ""
        required = ", required" if server["required"] else ""
        output.write(one_line(f"{server['name']}: {state}{left_out}{required}") + "\n")
        for row in own:
            about = row["description"] if row["offered"] else f"left out: {row['reason']}"
            name = row["name"] if row["offered"] else row["tool"]
            output.write(
                f"  {one_line(name, MAX_NAME)}  {one_line(' '.join(about.split()), MAX_DESCRIPTION)}".rstrip() + "\n"
            )


async def _listed(
    settings: Settings, names: Sequence[str], caller: Caller
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the servers' states, and a row for each tool."""
    async with _connected(settings, names, caller) as servers:
        rows: list[dict[str, Any]] = [_row(tool) for tool in servers.catalog.tools]
        for name in names:
            rows += (
                {"server": name, "tool": tool, "name": None, "offered": False, "reason": why, "description": None}
                for tool, why in servers.left_out(name)
            )
        states = [
            {
                "name": state.name,
                "up": state.is_up,
                "required": state.required,
                "tools": state.tools,
                "left_out": len(servers.left_out(state.name)),
                "problem": state.problem or (None if state.is_up else "it did not answer in time"),
                "logged_in": state.logged_in,
            }
            for state in servers.states()
        ]
    return states, sorted(rows, key=lambda row: (row["server"], not row["offered"], row["tool"]))


def _row(tool: Tool) -> dict[str, Any]:
    return {
        "server": tool.server_name,
        "tool": tool.original_name,
        "name": tool.name,
        "offered": True,
        "reason": None,
        "description": tool.description,
    }


def _caller(arguments: argparse.Namespace, settings: Settings) -> Caller:
    from aibridge_addon.tools.caller import Caller

    actor = arguments.actor or settings.actor.default or operating_system_user()
    return Caller(actor, "aibridge-tools", settings.actor.metadata)


@asynccontextmanager
async def _connected(settings: Settings, names: Sequence[str], caller: Caller) -> AsyncIterator[Servers]:
    """Connect to these servers, until each has answered or failed."""
    from aibridge_addon.tools.servers import Servers

    mcp = settings.mcp
    with _quiet(), tools_logout.logins_of(settings) as logins:
        chosen = {name: mcp.servers[name] for name in names}
        servers = Servers(chosen, pinned=partial(_pinned, settings), logins=logins)
        servers.start()
        try:
            timeout = max(mcp.servers[name].startup_timeout for name in names)
            await servers.connected(timeout)
            await servers.prepare(caller, (), timeout)
            await servers.connected(timeout)  # again: the pins of what was prepared
            yield servers
        finally:
            await servers.close()


async def _pinned(settings: Settings, server_name: str, listed: Sequence[ToolPin]) -> Mapping[str, str]:
    """Return the digests of a server's pins. What has no pin would be pinned as it is; the database is not changed."""
    found = {pin.tool: pin.digest for pin in listed}
    return found | {pin.tool: pin.digest for pin in await asyncio.to_thread(_pins, settings, server_name)}


def _pins(settings: Settings, server_name: str) -> Sequence[ToolPin]:
    with closing(database.tool_pin_store(settings)) as store:
        return store.read(server_name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep log lines about the servers off the terminal: the list has what they say."""
    logger = logging.getLogger("aibridge_addon.tools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


# --- call -----------------------------------------------------------------------------------------------------------


class _NotFound(Exception):
    """There is no such tool, or it cannot be called."""


def _call(arguments: argparse.Namespace) -> int:
    text = sys.stdin.read() if arguments.arguments == "-" else arguments.arguments
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as e:
        print(f"the arguments are not valid JSON: {e}", file=sys.stderr)
        return 2
    if not isinstance(given, dict):
        print("""the arguments are not a JSON object, such as '{"city": "Berlin"}'""", file=sys.stderr)
        return 2
    settings = settings_of(arguments, quiet=True)
    if not settings.mcp.servers:
        print(NOTHING, file=sys.stderr)
        return 1
    try:
        result = asyncio.run(_called(settings, arguments.name, given, _caller(arguments, settings)))
    except _NotFound as e:
        print(printable(str(e)), file=sys.stderr)
        return 1
    if arguments.json:
        output.write_json(result)
    else:
        for part in result["result"]:
            output.write(printable(part["text"]) + "\n")
        state = "failed" if result["is_error"] else "done"
        print(f"{result['server']}/{result['tool']}: {state}, {result['duration_ms']} ms", file=sys.stderr)
    return 1 if result["is_error"] else 0


async def _called(settings: Settings, name: str, given: dict[str, Any], caller: Caller) -> dict[str, Any]:
    from aibridge_addon.dialects.turns import Call
    from aibridge_addon.tools.calls import invoke

    async with _connected(settings, _candidates(settings.mcp, name), caller) as servers:
        tool = _found(servers, name)
        made = await invoke(servers, tool, Call("", tool.name, given, {}), settings.mcp, caller=caller)
    return {
        "name": tool.name,
        "server": tool.server_name,
        "tool": tool.original_name,
        "result": [_shown(part) for part in made.result.parts],
        "is_error": made.error is not None,
        "error": made.error,
        "error_kind": made.error_kind,
        "duration_ms": made.duration_ms,
    }


def _candidates(mcp: Mcp, name: str) -> list[str]:
    """Return the servers that the tool may belong to."""
    named = [server for server in mcp.servers if name.startswith((f"bmcp_{server}_", f"{server}/"))]
    return named or list(mcp.servers)


def _found(servers: Servers, name: str) -> Tool:
    tools = servers.catalog.tools
    found = [
        tool for tool in tools if name in (tool.name, f"{tool.server_name}/{tool.original_name}", tool.original_name)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise _NotFound(f"several servers have a tool {name}: use one of {', '.join(tool.name for tool in found)}")
    for state in servers.states():
        for tool, why in servers.left_out(state.name):
            if name in (tool, f"{state.name}/{tool}", f"bmcp_{state.name}_{tool}"):
                raise _NotFound(f"the tool {tool} of {state.name} is left out: {why}")
    away = [f"{state.name} is away: {state.problem}" for state in servers.states() if not state.is_up]
    hint = did_you_mean(name, [known for tool in tools for known in (tool.name, tool.original_name)])
    raise _NotFound("; ".join([f"there is no tool {name}{hint}", *away]))


def _shown(part: Part) -> dict[str, Any]:
    from aibridge_addon.dialects.turns import Text

    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "media", "mime_type": part.mime_type, "data": part.data, "text": part.note}


# --- approve --------------------------------------------------------------------------------------------------------


class _Change(NamedTuple):
    before: ToolPin
    now: ToolPin


def _approve(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    names = [name for name, server in settings.mcp.servers.items() if server.pin]
    changed, away = asyncio.run(_changed(settings, names, _caller(arguments, settings))) if names else ([], [])
    unknown = [name for name in arguments.names if not any(name in _names(change.now) for change in changed)]
    wanted = [
        change for change in changed if arguments.all or any(name in _names(change.now) for name in arguments.names)
    ]
    if wanted and not unknown:
        with closing(database.tool_pin_store(settings)) as store:
            store.replace([change.now for change in wanted], utc_now())
    approved = [] if unknown else wanted
    if arguments.json:
        rows = [
            {
                "server": change.now.server_name,
                "tool": change.now.tool,
                "approved": change in approved,
                "before": change.before.definition,
                "now": change.now.definition,
            }
            for change in changed
        ]
        output.write_json({"rows": rows, "totals": {"changed": len(changed), "approved": len(approved)}})
    else:
        for change in approved if arguments.names or arguments.all else changed:
            _write_change(change)
        _say_what_was_done(names, changed, approved)
    for problem in (*(f"there is no changed tool {name}; nothing is approved" for name in unknown), *away):
        print(printable(problem), file=sys.stderr)
    return 1 if unknown or away else 0


def _say_what_was_done(names: Sequence[str], changed: Sequence[_Change], approved: Sequence[_Change]) -> None:
    if not names:
        print("No MCP server has pin: true.")
    elif not changed:
        print("No tool has changed since it was pinned.")
    elif approved:
        print(f"approved: {len(approved)} of {len(changed)} changed tools")
    else:
        print("Approve tools by their names, or all of them with --all.")


async def _changed(settings: Settings, names: Sequence[str], caller: Caller) -> tuple[list[_Change], list[str]]:
    """Return the tools that differ from their pins, and which servers are away."""
    from aibridge_addon.tools.pins import pin_of

    async with _connected(settings, names, caller) as servers:
        listed = [pin_of(name, tool) for name in names for tool in servers.listed(name)]
        away = [f"{state.name} is away: {state.problem}" for state in servers.states() if not state.is_up]
    pins = {(pin.server_name, pin.tool): pin for name in names for pin in _pins(settings, name)}
    both = [_Change(pins[key], pin) for pin in listed if (key := (pin.server_name, pin.tool)) in pins]
    return [change for change in both if change.before.digest != change.now.digest], away


def _names(pin: ToolPin) -> tuple[str, ...]:
    return pin.tool, f"{pin.server_name}/{pin.tool}", f"bmcp_{pin.server_name}_{pin.tool}"


def _write_change(change: _Change) -> None:
    """Write the lines of a definition that differ."""
    print(one_line(f"{change.now.server_name}/{change.now.tool}"))
    lines = difflib.unified_diff(_lines(change.before), _lines(change.now), lineterm="", n=1)
    for line in list(lines)[3:]:  # behind the heads
        print(f"  {printable(line)}")


def _lines(pin: ToolPin) -> list[str]:
    try:
        return json.dumps(json.loads(pin.definition), indent=1, ensure_ascii=False).splitlines()
    except ValueError:  # it was cut
        return textwrap.wrap(pin.definition, 100)
