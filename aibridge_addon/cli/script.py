"""`aibridge script`: print the path of the file that mitmproxy loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import aibridge_addon
from aibridge_addon.cli.examples import examples

DESCRIPTION = 'Print the path of the script that mitmproxy loads: mitmdump -s "$(aibridge script)"'

EXAMPLES = examples('mitmdump -s "$(aibridge script)"', 'mitmweb -s "$(aibridge script)"')


def add(commands: Any) -> None:
    command = commands.add_parser("script", help="print the path for mitmdump -s", description=DESCRIPTION, **EXAMPLES)
    command.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    # Do not import it: the script changes `sys.path`.
    print(Path(aibridge_addon.__file__).resolve().with_name("main.py"))
    return 0
