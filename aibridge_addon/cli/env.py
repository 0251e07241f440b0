"""`aibridge env`: print the variables with which all programs of a shell use a running proxy."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aibridge_addon.cli import authority
from aibridge_addon.cli.database import CONFIG_VARIABLE
from aibridge_addon.cli.examples import examples
from aibridge_addon.wire.printable import printable

DESCRIPTION = """Print shell commands that set the variables for a running proxy, or as a gateway. Every program of this
shell then uses it. For one program, `aibridge run` is enough."""
EXAMPLES = examples(
    'eval "$(aibridge env)"',
    'eval "$(aibridge env --gateway)"',
    "aibridge env --shell fish | source",
    "aibridge env --shell powershell | Out-String | Invoke-Expression",
    'eval "$(aibridge env --unset)"',
)
PROXY = "http://127.0.0.1:8080"
BUNDLE = "aibridge-ca-bundle.pem"
"""Beside the CA: a shell may outlive every temporary file."""
BEFORE = "AIBRIDGE_ENV_BEFORE"
"""The variable with the values before, as JSON. `--unset` restores them."""
FAILED = 1


@dataclass(frozen=True, slots=True)
class Shell:
    set: Callable[[str, str], str]
    unset: Callable[[str], str]
    undo: str
    """How a user takes the variables back."""


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _powershell(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


SHELLS: Mapping[str, Shell] = MappingProxyType(
    {
        "sh": Shell(
            lambda name, value: f"export {name}={shlex.quote(value)}",
            lambda name: f"unset {name}",
            'eval "$(aibridge env --unset)"',
        ),
        "fish": Shell(
            lambda name, value: f"set -gx {name} {_fish(value)}",
            lambda name: f"set -ge {name}",
            "aibridge env --shell fish --unset | source",
        ),
        "powershell": Shell(
            lambda name, value: f"$env:{name} = {_powershell(value)}",
            lambda name: f"Remove-Item Env:{name} -ErrorAction SilentlyContinue",
            "aibridge env --shell powershell --unset | Out-String | Invoke-Expression",
        ),
    }
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "env", help="print the variables for a running proxy", description=DESCRIPTION, **EXAMPLES
    )
    command.add_argument("--shell", choices=[*SHELLS], default=_usual_shell(), help="default: %(default)s")
    command.add_argument("--gateway", action="store_true", help="print base URLs, which need no certificate")
    command.add_argument("--unset", action="store_true", help="take the variables back")
    command.add_argument("--proxy", metavar="URL", default=PROXY, help="where the proxy listens (default: %(default)s)")
    authority.add_options(command)
    command.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get(CONFIG_VARIABLE, ""),
        help=f"the configuration file, for the providers (default: {CONFIG_VARIABLE} in the environment)",
    )
    command.set_defaults(run=run)


def _usual_shell() -> str:
    if os.name == "nt":
        return "powershell"
    return "fish" if Path(os.environ.get("SHELL", "")).name == "fish" else "sh"


def run(arguments: argparse.Namespace) -> int:
    shell = SHELLS[arguments.shell]
    if arguments.unset:
        return _write(_unset(shell))
    url = arguments.proxy if "://" in arguments.proxy else f"http://{arguments.proxy}"
    found = _gateway(arguments, url) if arguments.gateway else _proxy(arguments, url)
    if found is None:
        return FAILED
    values, comments = found
    before = values_before(os.environ)
    before |= {name: os.environ.get(name) for name in values if name not in before}
    lines = [shell.set(name, value) for name, value in values.items()]
    lines.append(shell.set(BEFORE, json.dumps(before)))
    # At the end: without quotes around $(…), a shell takes all of it for one line.
    return _write([*lines, *(f"# {comment}" for comment in comments), f"# Undo: {shell.undo}"])


def _write(lines: Sequence[str]) -> int:
    print("\n".join(lines))
    return 0


def values_before(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the values before the variables were set. None: there was no such variable. Empty: they are not set."""
    try:
        found = json.loads(environ.get(BEFORE, "{}"))
    except ValueError:
        return {}
    is_right = isinstance(found, dict) and all(value is None or isinstance(value, str) for value in found.values())
    return found if is_right else {}


def _unset(shell: Shell) -> list[str]:
    from aibridge_addon.cli.environment import GATEWAY_NAMES, VARIABLES

    before, ours = values_before(os.environ), [*(variable.name for variable in VARIABLES), *GATEWAY_NAMES]
    names = [name for name in ours if name in before] if BEFORE in os.environ else ours
    lines = [shell.unset(name) if (value := before.get(name)) is None else shell.set(name, value) for name in names]
    return [*lines, shell.unset(BEFORE)]


Found = tuple[Mapping[str, str], Sequence[str]]
"""Variables, and comments."""


def _gateway(arguments: argparse.Namespace, url: str) -> Found:
    from aibridge_addon.cli.environment import gateway_variables
    from aibridge_addon.config.load import load

    settings = load(Path(arguments.config) if arguments.config else None, environ=os.environ)
    comments = [
        f"Clients that read these variables send their requests to {url}. They keep their keys.",
        "Codex reads a file instead: see docs/clients.md.",
    ]
    return gateway_variables(url, settings.providers), comments


def _proxy(arguments: argparse.Namespace, url: str) -> Found | None:
    """Write the bundle, and return the variables. None: there is no CA."""
    from aibridge_addon.cli.environment import Route, bundle_files, past_the_proxy, variables
    from aibridge_addon.cli.roots import bundle, write_trusted
    from aibridge_addon.config.load import load

    ca = authority.certificate(arguments)
    route = Route(url, ca.with_name(BUNDLE))
    environ = os.environ | {name: value or "" for name, value in values_before(os.environ).items()}
    try:
        write_trusted(route.bundle, route.trust_store, bundle(ca, bundle_files(environ)))
    except FileNotFoundError:
        print(
            f"no certificate authority at {ca}. Make one with `aibridge certs make`, or start the proxy once",
            file=sys.stderr,
        )
        return None
    except OSError as e:
        print(f"{route.bundle}: the bundle of trusted certificates cannot be written: {e.strerror}", file=sys.stderr)
        return None
    values = variables(route, environ)
    settings = load(Path(arguments.config) if arguments.config else None, environ=os.environ)
    for entry in past_the_proxy(values["NO_PROXY"], settings.providers):
        print(f"aibridge: NO_PROXY contains {printable(entry)}: requests to it go past the proxy", file=sys.stderr)
    if (missing := authority.missing(ca, settings.providers)) is not None:
        print(f"aibridge: {printable(missing)}", file=sys.stderr)
    comments = [
        f"Every program of this shell now uses the proxy at {url}: also git, gh, curl and package managers.",
        "Hosts of no provider are tunnelled, and never decrypted. While the proxy does not run, nothing is reached.",
    ]
    return values, comments
