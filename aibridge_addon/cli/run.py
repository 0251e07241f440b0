"""`aibridge run`: run one program with a proxy of its own, and report what it used."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aibridge_addon.cli import authority, database
from aibridge_addon.cli.examples import examples
from aibridge_addon.cli.private_proxy import PrivateProxy, StartFailed, add_set_option
from aibridge_addon.records import DatabaseUnavailable, utc_now
from aibridge_addon.wire.printable import printable

if TYPE_CHECKING:
    from aibridge_addon.config.schema import Settings
    from aibridge_addon.recording.runs import RunUsage

# Other modules of ours are imported while the proxy starts: both take about a second.

DESCRIPTION = """Run CMD with a private proxy on a free port. Only CMD and what it starts use the proxy.
Its terminal and its exit code stay as they are. A summary of its AI usage follows on stderr."""
EXAMPLES = examples(
    'aibridge run -- claude -p "say hello"',
    "aibridge run --config aibridge.yaml -- codex",
    "aibridge run --summary-json usage.json --quiet -- make review",
    "aibridge run --proxy http://127.0.0.1:8080 -- claude",
)
FAILED = 1
NOT_EXECUTABLE = 126
NOT_FOUND = 127
STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
CLOCK_MARGIN = timedelta(days=1)
"""Rows that are older than the start by this much are not searched. A clock may have been set back meanwhile."""
NO_SUMMARY = "aibridge: no summary: the proxy of --proxy may serve other programs, too; see aibridge sessions"
CONNECT_TIMEOUT = 5.0
"""Seconds to reach the proxy of `--proxy`."""


def add(commands: Any) -> None:
    command = commands.add_parser(
        "run", help="run a program with a proxy of its own", description=DESCRIPTION, **EXAMPLES
    )
    command.add_argument("program", nargs=argparse.REMAINDER, metavar="-- CMD", help="the program and its arguments")
    command.add_argument("--summary-json", metavar="FILE", help="also write the summary as JSON")
    command.add_argument("--quiet", "-q", action="store_true", help="print no summary and no progress on stderr")
    command.add_argument("--proxy", metavar="URL", help="use this running proxy, without a summary")
    command.add_argument("--log", metavar="FILE", help="keep the log of the private proxy in this file")
    authority.add_options(command)
    add_set_option(command)
    database.add_options(command)
    command.set_defaults(run=run, command=command)


def run(arguments: argparse.Namespace) -> int:
    program = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    if not program:
        arguments.command.error("a program is needed: aibridge run -- CMD")
    if (code := _missing(program[0])) is not None:
        return code
    if arguments.proxy is None:
        return _with_private_proxy(arguments, program)
    if arguments.summary_json:
        arguments.command.error("--summary-json needs a private proxy: another one also serves other programs")
    return _with_running_proxy(arguments, program)


def _with_private_proxy(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    started = utc_now()
    log = Path(arguments.log) if arguments.log else None
    with tempfile.TemporaryDirectory(prefix="aibridge-run-") as folder, PrivateProxy(log) as proxy:
        from aibridge_addon.cli.program import Signals
        from aibridge_addon.cli.program import run as run_program
        from aibridge_addon.cli.upstream_proxy import upstream_of
        from aibridge_addon.recording.database import queries
        from aibridge_addon.recording.runs import of_instance

        settings = database.settings_of(arguments, quiet=True)
        options = [f"aibridge_database={settings.database.get_secret_value()}"]
        upstream = upstream_of(os.environ, arguments.set, Path(folder), authority.certificate(arguments))
        options += arguments.set if upstream is None else upstream.options
        if upstream is not None and not arguments.quiet:
            print(f"aibridge: {upstream.line}", file=sys.stderr)
        options += [f"aibridge_config={arguments.config}"] if arguments.config else []
        options += [f"confdir={arguments.confdir}"] if arguments.confdir else []
        try:
            ready = proxy.listen(options, None if arguments.quiet else _report_slow_start)
        except StartFailed as e:
            print(f"the proxy cannot start:\n{e}", file=sys.stderr)
            return FAILED
        with Signals(proxy.kill) as signals:
            code = run_program(command, ready.url, ready.ca, Path(folder), settings.providers, signals)
            is_well = proxy.stop(settings.drain_timeout)
        if not is_well:
            print(f"the proxy has failed; the end of its log:\n{proxy.log_tail}", file=sys.stderr)
    try:
        with queries(settings) as rows:
            found = of_instance(rows, ready.instance_id, started - CLOCK_MARGIN)
    except DatabaseUnavailable as e:
        print(f"no summary: {e}", file=sys.stderr)
    else:
        _report(arguments, command, found)
        if (waiting := _spooled(settings, started)) is not None:
            print(f"aibridge: some records wait in {waiting}: the summary is without them", file=sys.stderr)
    return code


def _report_slow_start() -> None:
    print("aibridge: the proxy is starting …", file=sys.stderr, flush=True)


def _spooled(settings: Settings, since: datetime) -> Path | None:
    """Return the spool's folder if it has records that were written since then: the database was away."""
    from aibridge_addon.recording.database import spool_folder

    folder = spool_folder(settings).absolute()
    try:
        found = [file.stat() for file in folder.glob("*.log")]
    except OSError:
        return None
    return folder if any(each.st_size and each.st_mtime >= since.timestamp() for each in found) else None


def _with_running_proxy(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    from aibridge_addon.cli.program import Signals
    from aibridge_addon.cli.program import run as run_program

    ca = authority.certificate(arguments)
    settings = database.settings_of(arguments, quiet=True)
    url = arguments.proxy if "://" in arguments.proxy else f"http://{arguments.proxy}"
    if (reason := _unreachable(url)) is not None:
        print(f"the proxy of --proxy cannot be reached: {printable(reason)}", file=sys.stderr)
        return FAILED
    if not ca.is_file():
        print(f"no certificate authority at {ca}: --confdir names the folder of the running proxy's", file=sys.stderr)
        return FAILED
    with tempfile.TemporaryDirectory(prefix="aibridge-run-") as folder, Signals() as signals:
        code = run_program(command, url, ca, Path(folder), settings.providers, signals)
    if not arguments.quiet:
        print(
            NO_SUMMARY,
            file=sys.stderr,
        )
    return code


def _missing(name: str) -> int | None:
    """Report a program that is not there, before a proxy is started for it, in the words of a shell."""
    if shutil.which(name) is not None:
        return None
    if os.sep in name and Path(name).exists():
        print(f"aibridge run: {printable(name)}: cannot be executed", file=sys.stderr)
        return NOT_EXECUTABLE
    print(f"aibridge run: {printable(name)}: command not found", file=sys.stderr)
    return NOT_FOUND


def _unreachable(url: str) -> str | None:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 8080), CONNECT_TIMEOUT).close()
    except (OSError, ValueError) as e:
        return f"{parts.hostname}: {e}"
    return None


# --- the report ------------------------------------------------------------------------------------------------------


def _report(arguments: argparse.Namespace, command: Sequence[str], found: RunUsage) -> None:
    from aibridge_addon.cli import summary

    if not arguments.quiet:
        print(summary.text(found), file=sys.stderr)
    files = [(arguments.summary_json, "w", f"{json.dumps(summary.document(found), indent=2)}\n")]
    # Other steps of the job write to the same file.
    files.append((os.environ.get(STEP_SUMMARY), "a", summary.markdown(found, shlex.join(command))))
    for name, mode, content in files:
        if name:
            try:
                with open(name, mode, encoding="utf-8", errors="backslashreplace") as file:
                    file.write(content)
            except OSError as e:
                print(f"the summary cannot be written to {printable(name)}: {e.strerror}", file=sys.stderr)
