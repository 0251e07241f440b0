"""Load the configuration from a file or the defaults, environment variables and an `.mcp.json`.

All errors are reported at once. Everything is parsed here, once, into the values of `schema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from aibridge_addon.config import values
from aibridge_addon.config.errors import ConfigError, Problem, describe, problems_from
from aibridge_addon.config.mcp_file import merge_client_file
from aibridge_addon.config.oauth import add_key
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.source import Document, expand, read_yaml
from aibridge_addon.config.urls import DatabaseUrl

DATABASE_OPTION = "mitmproxy's options: aibridge_database"


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    database: str | None = None,
    database_from: str = DATABASE_OPTION,
    metrics: str | None = None,
) -> Settings:
    """Load a configuration file, or the defaults. Raises ConfigError.

    `database` and `metrics` (mitmproxy's options) override the file. `metrics` may be `off`. `database_from` is where
    the user has named the database, for errors.
    """
    path = path and path.expanduser()
    problems: list[Problem] = []
    raw = {} if path is None else read_yaml(path)
    if database:
        raw["database"] = _database_option(database, database_from, problems)
    if metrics:
        raw["metrics"] = {**_section(raw, "metrics"), "listen": _metrics_option(metrics, problems)}
    document = expand(raw, file=str(path or "configuration"), environ=environ)
    problems += document.problems
    merge_client_file(document, environ, problems)
    _merge_groups_file(document, problems)
    add_key(document.values.get("mcp"), environ)
    settings = _validated(document, problems)
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def log_format(path: Path | None) -> Literal["text", "json"]:
    """Return the format of the log before the configuration is checked, so that its errors have it, too."""
    if path is None:
        return "text"
    with suppress(ConfigError):
        log = read_yaml(path.expanduser()).get("log")
        return "json" if isinstance(log, dict) and log.get("format") == "json" else "text"
    return "text"


def _database_option(url: str, named: str, problems: list[Problem]) -> DatabaseUrl | None:
    try:
        return DatabaseUrl.parse(url)
    except PydanticCustomError as error:
        expected = str((error.context or {})["expected"])
        found = describe(url, hidden=True)
        problems.append(Problem(named, found, expected))
        return None


def _section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    found = raw.get(name)
    return found if isinstance(found, dict) else {}


def _metrics_option(address: str, problems: list[Problem]) -> values.Listen | None:
    if address == "off":
        return None
    try:
        return values.parse_listen(address)
    except PydanticCustomError as error:
        expected = f"{(error.context or {})['expected']}, or off"
        problems.append(Problem("aibridge_metrics", describe(address, hidden=False), expected, "mitmproxy's options"))
        return None


def _validated(document: Document, problems: list[Problem]) -> Settings | None:
    try:
        return Settings.model_validate(document.values)
    except ValidationError as error:
        found = problems_from(error, root=Settings, file=document.file, from_environment=document.from_environment)
        problems += (problem for problem in found if not document.has_problem_at(problem.path))
    # Outside the handler: pydantic's error contains the inputs, and a chained traceback would print them.
    return None


def _merge_groups_file(document: Document, problems: list[Problem]) -> None:
    """Add the groups of `actor.groups.file`. Groups of the configuration itself take precedence."""
    actor = document.values.get("actor")
    groups = actor.get("groups") if isinstance(actor, dict) else None
    name = groups.get("file") if isinstance(groups, dict) else None
    if not isinstance(actor, dict) or not isinstance(groups, dict) or not isinstance(name, str) or not name:
        return
    try:
        path = Path(document.file).parent / values.parse_path(name)
        actor["groups"] = {**read_yaml(path), **groups}
    except PydanticCustomError:
        pass  # the field's own validator reports the error
    except ConfigError as error:
        problems += error.problems
