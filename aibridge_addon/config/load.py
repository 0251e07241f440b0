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
from aibridge_addon.config.errors import ConfigError, Problem, describe, dotted, most_similar, problems_from
from aibridge_addon.config.schema import HttpServer, Settings, StdioServer, server_class
from aibridge_addon.config.source import Document, expand, read_json, read_yaml
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
    _merge_mcp_file(document, environ, problems)
    _merge_groups_file(document, problems)
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


def _merge_mcp_file(document: Document, environ: Mapping[str, str], problems: list[Problem]) -> None:
    """Add the servers of `mcp.config_file`. Servers of the configuration itself take precedence."""
    mcp = document.values.get("mcp")
    name = mcp.get("config_file") if isinstance(mcp, dict) else None
    if not isinstance(mcp, dict) or not isinstance(name, str) or not name:
        return
    own = {} if mcp.get("servers") is None else mcp["servers"]
    if not isinstance(own, dict):
        return  # the field's own validator reports the error
    try:
        mcp["servers"] = {**_servers_of_file(name, document, environ, own=set(own)), **own}
    except ConfigError as error:
        problems += error.problems


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


def _servers_of_file(
    name: str, document: Document, environ: Mapping[str, str], *, own: set[str]
) -> dict[str, HttpServer | StdioServer]:
    key = ("mcp", "config_file")
    file = f"{document.file}: {dotted(key)}"
    if not document.from_environment(key):
        file += f" ({name})"
    try:
        path = Path(document.file).parent / values.parse_path(name)
    except PydanticCustomError:
        return {}  # the field's own validator reports the error
    content = read_json(path, file)
    entries = content.get("mcpServers") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ConfigError([Problem("mcpServers", describe(entries, hidden=False), "a mapping", file)])
    wanted = {server: entry for server, entry in entries.items() if server not in own and not _disabled(entry)}
    part = expand(wanted, file=file, environ=environ, at=("mcpServers",))
    problems = list(part.problems)
    servers = {server: _server(server, entry, part, problems) for server, entry in part.values.items()}
    if problems:
        raise ConfigError(problems)
    return {server: entry for server, entry in servers.items() if entry is not None}


def _disabled(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("disabled") is True


def _server(name: str, entry: object, part: Document, problems: list[Problem]) -> HttpServer | StdioServer | None:
    """Read one entry of a file that other programs read too. Unknown keys are ignored.

    A key that resembles a required one, which is missing, is an error: it is misspelt.
    """
    model = server_class(entry)
    if isinstance(entry, dict):
        missing = [key for key, field in model.model_fields.items() if field.is_required() and key not in entry]
        entry = {k: item for k, item in entry.items() if k in model.model_fields or most_similar(str(k), missing)}
    try:
        values.server_name(name)
        return model.model_validate(entry)
    except PydanticCustomError as error:
        expected = str((error.context or {})["expected"])
        problems.append(Problem(dotted(("mcpServers", name)), "this name", expected, part.file))
    except ValidationError as error:
        found = problems_from(
            error,
            root=model,
            file=part.file,
            from_environment=part.from_environment,
            prefix=("mcpServers", name),
        )
        problems += (problem for problem in found if not part.has_problem_at(problem.path))
    return None
