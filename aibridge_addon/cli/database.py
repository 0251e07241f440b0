"""What commands that use the database share: which one it is, and what is said about it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aibridge_addon.config.schema import Settings

CONFIG_VARIABLE = "AIBRIDGE_CONFIG"
DATABASE_VARIABLE = "AIBRIDGE_DATABASE"


def add_config_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get(CONFIG_VARIABLE, ""),
        help=f"the configuration file (default: {CONFIG_VARIABLE} in the environment)",
    )


def add_options(command: argparse.ArgumentParser) -> None:
    """Add `--config` and `--database`."""
    add_config_option(command)
    command.add_argument(
        "--database",
        metavar="URL",
        default="",
        help="sqlite:///FILE or postgresql://… (default: that of the configuration file, else "
        f"{DATABASE_VARIABLE} in the environment, else sqlite:///aibridge.db)",
    )


def settings_of(arguments: argparse.Namespace, *, quiet: bool = False) -> Settings:
    """Return the configuration with the database that a command uses. Raises ConfigError.

    `quiet`: do not name the database on stderr.
    """
    # It takes a quarter of a second to import.
    from aibridge_addon.config.load import load

    file = Path(arguments.config) if arguments.config else None
    settings = load(file, environ=os.environ, database=arguments.database or None, database_from="--database")
    variable = os.environ.get(DATABASE_VARIABLE)
    if variable and "database" not in settings.model_fields_set:
        settings = load(
            file, environ=os.environ, database=variable, database_from=f"{DATABASE_VARIABLE} in the environment"
        )
    if not quiet:
        print(f"database: {settings.database}", file=sys.stderr)
    return settings
