"""`aibridge config`: check a configuration and print the settings in effect, without secrets.

The output is a configuration again. If it had no secrets, it loads to the same settings.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, SecretStr
from ruamel.yaml import YAML

from aibridge_addon.cli.database import CONFIG_VARIABLE
from aibridge_addon.cli.examples import examples
from aibridge_addon.config.budgets import Groups
from aibridge_addon.config.load import load
from aibridge_addon.config.schema import HttpServer, Retention, StdioServer
from aibridge_addon.config.values import Listen
from aibridge_addon.wire.printable import printable

MASK = "***"

DESCRIPTION = """Print the configuration in effect as YAML, with defaults and with secrets masked.
Each problem is one line on stderr, and the exit code is 2."""

EXAMPLES = examples(
    "aibridge config --config aibridge.yaml --check",
    "aibridge config --json",
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "config", help="check and print the configuration", description=DESCRIPTION, **EXAMPLES
    )
    command.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get(CONFIG_VARIABLE, ""),
        help=f"the configuration file (default: {CONFIG_VARIABLE} in the environment, else the built-in defaults)",
    )
    command.add_argument("--check", action="store_true", help="only say whether it is right")
    command.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    settings = load(Path(arguments.config) if arguments.config else None, environ=os.environ)
    if arguments.check:
        print(f"ok: {printable(arguments.config) if arguments.config else 'the built-in defaults'}")
        return 0
    values = plain(settings)
    if arguments.json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        write_yaml(values, sys.stdout)
    return 0


def write_yaml(values: dict[str, Any], stream: TextIO) -> None:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 2**16  # lines are not folded
    yaml.representer.sort_base_mapping_type_on_output = False
    yaml.dump(_escaped(values), stream)


def plain(value: Any) -> Any:
    """Convert settings to the values of a configuration file, in the order of the schema."""
    match value:
        case Retention():
            lifetimes = {name: plain(lifetime) or 0 for name, lifetime in value}  # 0: for ever
            return lifetimes["rows"] if value.content == value.rows else lifetimes
        case BaseModel():
            return _members(value)
        case Mapping():
            return {key: plain(item) for key, item in value.items()}
        case Listen():
            host = f"[{value.host}]" if ":" in value.host else value.host
            return f"{host}:{value.port}"
        case tuple():
            return [plain(item) for item in value]
        case SecretStr():
            return MASK
        case timedelta():
            hours = value // timedelta(hours=1)
            return f"{hours}h" if hours % 24 else f"{hours // 24}d"
        case re.Pattern():
            return value.pattern
        case float() if value.is_integer():
            return int(value)
        case None | bool() | int() | float() | str():
            return value
        case _:  # addresses, networks, paths, and URLs, whose `str` masks the password
            return str(value)


def _members(section: BaseModel) -> dict[str, Any]:
    members = {name: plain(getattr(section, name)) for name in type(section).model_fields}
    match section:
        case Groups():
            options = {name: value for name in ("header", "file") if (value := members[name]) is not None}
            members = options | members["patterns"]
        case HttpServer():
            members["url"] = section.public_url
        case StdioServer():
            members["args"] = [MASK for _ in section.args]  # arguments may contain keys
    return members


def _escaped(value: Any) -> Any:
    """Escape `${`, so that loading the output does not replace it as a variable."""
    match value:
        case dict():
            return {key: _escaped(item) for key, item in value.items()}
        case list():
            return [_escaped(item) for item in value]
        case str():
            return value.replace("${", "$${")
        case _:
            return value
