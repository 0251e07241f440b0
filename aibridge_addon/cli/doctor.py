"""`aibridge doctor`: check what the proxy and its clients need, and say what to do next."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aibridge_addon.cli import authority, database
from aibridge_addon.cli.diagnosis.check import Check
from aibridge_addon.cli.examples import examples
from aibridge_addon.cli.private_proxy import add_set_option
from aibridge_addon.config.errors import ConfigError
from aibridge_addon.wire.printable import printable

if TYPE_CHECKING:
    from aibridge_addon.config.schema import Settings
    from aibridge_addon.credentials.name_constraints import Limits

DESCRIPTION = """Check the configuration, the database, certificates, addresses and this environment. A real request of
each runtime on this machine shows whether it reaches the proxy. With CMD, that program is run and checked, too."""
EXAMPLES = examples(
    "aibridge doctor",
    "aibridge doctor --config aibridge.yaml --offline",
    'aibridge doctor -- claude -p "say hello"',
    "aibridge doctor --set mode=upstream:http://proxy.example:3128",
    "aibridge doctor --json",
)
FAILED = 1
PORT = 8080
"""mitmproxy's default."""
OWN_OPTIONS = frozenset({"aibridge_config", "aibridge_database", "confdir"})
"""mitmproxy's options that this command has as its own."""
TRUSTED_UPSTREAM = "ssl_verify_upstream_trusted_ca"


def add(commands: Any) -> None:
    command = commands.add_parser(
        "doctor", help="check everything, and say what to do", description=DESCRIPTION, **EXAMPLES
    )
    command.add_argument("program", nargs=argparse.REMAINDER, metavar="-- CMD", help="a program to check")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--port", type=port_number, metavar="PORT", default=PORT, help="the proxy's port (default: %(default)s)"
    )
    command.add_argument("--offline", action="store_true", help="contact no provider and no MCP server")
    authority.add_options(command)
    add_set_option(command)
    database.add_options(command)
    command.set_defaults(run=run, command=command)


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 1 << 16):
        raise argparse.ArgumentTypeError("expected a port from 1 to 65535")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    program = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    for name in OWN_OPTIONS & {each.partition("=")[0].strip() for each in arguments.set}:
        arguments.command.error(f"--set {name}: use --{name.removeprefix('aibridge_')}")
    checks = _checks(arguments, program)
    is_well = all(check.ok for check in checks)
    if arguments.json:
        members = [
            {"name": each.name, "ok": each.ok, "found": each.found, "next_step": each.whole_step} for each in checks
        ]
        print(json.dumps({"ok": is_well, "checks": members}, indent=2))
    else:
        _print(checks)
    return 0 if is_well else FAILED


def _print(checks: Sequence[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for place, check in enumerate(checks, 1):
        mark = "warn" if check.is_warning else "ok  " if check.ok else "FAIL"
        print(f"{mark} {printable(check.name):{width}} {printable(check.found)}")
        if check.next_step:
            print(f"     {'':{width}} → {printable(check.next_step)}")
        if check.advice and all(later.advice != check.advice for later in checks[place:]):
            print(f"     {'':{width}} → {check.advice}")


def _checks(arguments: argparse.Namespace, program: Sequence[str]) -> list[Check]:
    from aibridge_addon.cli.diagnosis import files, network, traps
    from aibridge_addon.records import utc_now

    try:
        settings = database.settings_of(arguments, quiet=True)
    except ConfigError as e:
        first, *more = str(e).splitlines()
        rest = f" (and {len(more)} more lines)" if more else ""
        step = "mend the file: `aibridge config --check` lists all problems"
        return [Check("configuration", False, printable(first) + rest, step)]
    now = utc_now()
    stored, newest = files.database(settings)
    certificate = authority.certificate(arguments)
    signing, begins = files.authority(certificate, now)
    limits = authority.limits(certificate)
    jobs = [
        lambda: network.proxy_port(arguments.port),
        lambda: network.metrics(settings.metrics.listen, settings.metrics.prefix),
        *network.mcp_servers(settings, offline=arguments.offline),
    ]
    through_proxies: list[Callable[[], list[Check]]] = []
    if signing.ok:
        through_proxies.append(lambda: _runtimes(arguments, limits))
        if not arguments.offline:
            through_proxies.append(lambda: _providers(arguments, settings))
    return [
        Check("configuration", True, str(arguments.config or "the built-in defaults")),
        stored,
        files.spool(settings),
        signing,
        *files.permitted_hosts(limits, settings.providers),
        files.clock(now, (newest, begins)),
        *network.in_parallel(jobs),
        *traps.traps(os.environ, Path.home(), Path.cwd(), settings.providers),
        *(check for found in network.in_parallel(through_proxies) for check in found),
        *(_program(arguments, settings, program) if program else ()),
    ]


def _runtimes(arguments: argparse.Namespace, limits: Limits | None) -> list[Check]:
    """Check runtimes with a private proxy that writes nothing to the user's database."""
    from aibridge_addon.cli.diagnosis import runtimes
    from aibridge_addon.cli.environment import Route, bundle_files, variables
    from aibridge_addon.cli.private_proxy import PrivateProxy, StartFailed
    from aibridge_addon.cli.roots import bundle, write_trusted

    with (
        tempfile.TemporaryDirectory(prefix="aibridge-doctor-") as name,
        runtimes.Target(runtimes.host(limits)) as target,
        PrivateProxy() as proxy,
    ):
        try:
            ready = proxy.listen(_options(arguments, Path(name), target.configuration))
        except StartFailed as e:
            return [Check("private proxy", False, " ".join(str(e).split()), "see the reason")]
        route = Route(ready.url, Path(name) / "ca-bundle.pem")
        write_trusted(route.bundle, route.trust_store, bundle(ready.ca, bundle_files(os.environ)))
        return runtimes.check_all(target, os.environ, variables(route, os.environ))


def _providers(arguments: argparse.Namespace, settings: Settings) -> list[Check]:
    """Check the hosts of providers with a private proxy that has mitmproxy's options of `--set`."""
    from aibridge_addon.cli.diagnosis import network
    from aibridge_addon.cli.private_proxy import PrivateProxy, StartFailed

    given = dict(each.split("=", 1) for each in arguments.set if "=" in each)
    with tempfile.TemporaryDirectory(prefix="aibridge-doctor-") as name, PrivateProxy() as proxy:
        try:
            ready = proxy.listen([*arguments.set, *_options(arguments, Path(name), network.TUNNELS_ALL)])
        except StartFailed as e:
            return [Check("private proxy", False, " ".join(str(e).split()), "see the reason")]
        try:
            jobs = network.providers(settings, ready.port, given.get(TRUSTED_UPSTREAM))
        except OSError as e:
            return [
                Check(TRUSTED_UPSTREAM, False, f"{given[TRUSTED_UPSTREAM]}: {e.strerror}", "name a file in PEM form")
            ]
        return network.summed_up(network.in_parallel(jobs))


def _options(arguments: argparse.Namespace, folder: Path, configuration: str) -> list[str]:
    """Return options for a private proxy with this configuration, and with a database of its own."""
    config = folder / "aibridge.yaml"
    config.write_text(configuration)
    database_url = f"sqlite:///{folder / 'doctor.db'}"
    confdir = authority.folder(arguments)
    return [f"aibridge_config={config}", f"aibridge_database={database_url}", f"confdir={confdir}"]


def _program(arguments: argparse.Namespace, settings: Settings, program: Sequence[str]) -> list[Check]:
    """Run a program as `aibridge run` does, and look whether its requests were recorded."""
    from aibridge_addon.cli.environment import Route, bundle_files, variables
    from aibridge_addon.cli.private_proxy import PrivateProxy, StartFailed
    from aibridge_addon.cli.roots import bundle, write_trusted
    from aibridge_addon.cli.upstream_proxy import upstream_of
    from aibridge_addon.recording.database import queries
    from aibridge_addon.recording.runs import of_instance
    from aibridge_addon.records import DatabaseUnavailable, utc_now

    name, began = f"program {printable(program[0])}", utc_now()
    if shutil.which(program[0]) is None:
        return [Check(name, False, "command not found", "install it, or name its path")]
    options = [f"aibridge_database={settings.database.get_secret_value()}"]
    options += [f"aibridge_config={arguments.config}"] if arguments.config else []
    options += [f"confdir={authority.folder(arguments)}"]
    with tempfile.TemporaryDirectory(prefix="aibridge-doctor-") as folder, PrivateProxy() as proxy:
        upstream = upstream_of(os.environ, arguments.set, Path(folder), authority.certificate(arguments))
        options += arguments.set if upstream is None else upstream.options
        if upstream is not None:
            print(f"aibridge: {upstream.line}", file=sys.stderr)
        try:
            ready = proxy.listen(options)
        except StartFailed as e:
            return [Check(name, False, f"the proxy cannot start: {' '.join(str(e).split())}", "see the reason")]
        route = Route(ready.url, Path(folder) / "ca-bundle.pem")
        write_trusted(route.bundle, route.trust_store, bundle(ready.ca, bundle_files(os.environ)))
        environ = {**os.environ, **variables(route, os.environ)}
        try:
            done = subprocess.run(list(program), env=environ, stdout=sys.stderr)  # noqa: S603 (what the user asks for)
        except OSError as e:
            return [Check(name, False, f"cannot be executed: {e.strerror}", "name another program")]
        proxy.stop(settings.drain_timeout)
        log = proxy.log_tail
    try:
        with queries(settings) as rows:
            requests = of_instance(rows, ready.instance_id, began).whole.interceptions
    except DatabaseUnavailable as e:
        return [Check(name, False, f"its requests cannot be counted: {e}", "see the reason")]
    return [_verdict(name, done.returncode, requests, log)]


def _verdict(name: str, code: int, requests: int, log: str) -> Check:
    found = f"exit code {code}, {requests} {'request' if requests == 1 else 'requests'} recorded"
    if requests:
        return Check(name, True, found)
    if "handshake failed" in log:
        step = "it trusts neither the variables of `aibridge run` nor the system's store: see docs/clients.md"
        return Check(name, False, f"{found}; it refuses the proxy's certificate", step)
    if "client connect" in log:
        return Check(name, False, f"{found}; it used the proxy for other hosts only", "see docs/clients.md")
    return Check(name, False, f"{found}; it went past the proxy", "set the proxy in its own configuration")
