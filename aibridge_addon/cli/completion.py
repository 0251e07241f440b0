"""`aibridge completion`: print what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse
from typing import Any

from aibridge_addon.cli.examples import examples

DESCRIPTION = "Print the script that completes the commands and options of aibridge with the tab key."
EXAMPLES = examples(
    'eval "$(aibridge completion bash)"',
    'eval "$(aibridge completion zsh)"',
    "aibridge completion fish | source",
)
SHELLS = ("bash", "zsh", "fish")


def add(commands: Any) -> None:
    command = commands.add_parser("completion", help="print a shell's completion", description=DESCRIPTION, **EXAMPLES)
    command.add_argument("shell", choices=SHELLS)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["aibridge"], shell=arguments.shell))
    return 0
