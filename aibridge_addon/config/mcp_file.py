"""Merge the servers of `mcp.config_file`, a file of another MCP client, into the configuration.

What is wrong with the file as a whole is an error. What is wrong with one entry costs that entry, with a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from aibridge_addon.config import client_files, values
from aibridge_addon.config.client_files import Refused, Root
from aibridge_addon.config.errors import ConfigError, Problem, describe, dotted, most_similar, problems_from
from aibridge_addon.config.oauth import KEY_VARIABLE, NEEDS_KEY
from aibridge_addon.config.schema import HttpServer, StdioServer, server_class
from aibridge_addon.config.source import Document, expand, read_json

logger = logging.getLogger(__name__)

Server = HttpServer | StdioServer
EDITOR_FOLDERS = (".vscode", ".cursor", ".gemini", ".kiro", ".roo", ".amazonq", ".idea")
"""Folders of editors in a project. `${workspaceFolder}` of a file there is the folder above."""


def merge_client_file(document: Document, environ: Mapping[str, str], problems: list[Problem]) -> None:
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


def _servers_of_file(name: str, document: Document, environ: Mapping[str, str], *, own: set[str]) -> dict[str, Server]:
    key = ("mcp", "config_file")
    file = f"{document.file}: {dotted(key)}"
    if not document.from_environment(key):
        file += f" ({name})"
    try:
        path = Path(document.file).parent / values.parse_path(name)
    except PydanticCustomError:
        return {}  # the field's own validator reports the error
    content = read_json(path, file)
    root = client_files.root(content)
    if root is None:
        found = content.get("mcpServers") if isinstance(content, dict) else content
        raise ConfigError([Problem("mcpServers", describe(found, hidden=False), "a mapping", file)])
    mcp = document.values["mcp"]
    reader = _Reader(
        file, root, _places(path), environ, has_key=bool(mcp.get("token_key") or environ.get(KEY_VARIABLE))
    )
    servers: dict[str, Server] = {}
    for given, entry in root.entries.items():
        wanted = re.sub(r"[^A-Za-z0-9_-]+", "_", given)
        if given in own or wanted in own:
            continue
        server = reader.maybe_server(given, entry)
        if server is None:
            continue
        if wanted in servers:
            reader.warn(
                Problem(reader.path(given), "a second server of this name", f"another name than {wanted}", file)
            )
            continue
        if wanted != given:
            logger.warning("%s: %s is called %s", file, reader.path(given), wanted)
        servers[wanted] = server
    return servers


def _places(path: Path) -> Mapping[str, str]:
    folder = path.parent.absolute()
    if folder.name in EDITOR_FOLDERS:
        folder = folder.parent
    whole = str(folder)
    return {
        "workspaceFolder": whole,
        "workspaceRoot": whole,
        "workspaceFolderBasename": folder.name,
        "userHome": str(Path("~").expanduser()),
        "pathSeparator": "/",
        "/": "/",
    }


class _Reader:
    """Reads entries of one file."""

    def __init__(
        self, file: str, root: Root, places: Mapping[str, str], environ: Mapping[str, str], *, has_key: bool
    ) -> None:
        """`has_key`: whether tokens of people who log in can be encrypted."""
        self._file = file
        self._root = root
        self._places = places
        self._environ = environ
        self._has_key = has_key

    def path(self, *keys: str | int) -> str:
        return dotted((*self._root.at, *keys))

    def warn(self, problem: Problem) -> None:
        logger.warning("%s; the server is left out", problem)

    def maybe_server(self, name: str, entry: Any) -> Server | None:
        """Return the server of an entry. None: it is turned off, or cannot be used, which is logged."""
        if self._root.banned(name):
            return None
        if not isinstance(entry, dict):
            self._refuse(Problem(self.path(name), describe(entry, hidden=True), "a mapping", self._file))
            return None
        try:
            if client_files.is_off(entry):
                return None
            entry = client_files.own_variables(entry, self._places, self._environ)
            part = expand(entry, file=self._file, environ=self._environ, at=(*self._root.at, name))
            if part.problems:
                self._refuse(*part.problems)
                return None
            if client_files.is_off(part.values):
                return None
            return self._server(name, part)
        except Refused as error:
            self._refuse(Problem(self.path(name, *error.key), error.found, error.expected, self._file))
            return None

    def _server(self, name: str, part: Document) -> Server | None:
        known = {*HttpServer.model_fields, *StdioServer.model_fields} - {
            "type",
            "url",
            "command",
            "allow",
            "deny",
            "oauth",
        }
        own, unknown = client_files.own_entry(name, part.values, known, self._root)
        model = server_class(own | {key: part.values[key] for key in unknown})
        missing = [key for key, field in model.model_fields.items() if field.is_required() and key not in own]
        misspelt = {key: part.values[key] for key in unknown if most_similar(key, missing)}
        try:
            server = model.model_validate(own | misspelt)
        except ValidationError as error:
            found = problems_from(
                error,
                root=model,
                file=self._file,
                from_environment=lambda _: bool(part.references),
                prefix=(*self._root.at, name),
            )
            self._refuse(*found)
            return None
        if isinstance(server, HttpServer) and server.oauth is not None and not self._has_key:
            self._refuse(Problem(self.path(name, "oauth"), "a login, and mcp.token_key is null", NEEDS_KEY, self._file))
            return None
        if unknown:
            logger.warning("%s: %s: keys that are not understood: %s", self._file, self.path(name), _listed(unknown))
        return server

    def _refuse(self, *problems: Problem) -> None:
        for problem in problems:
            self.warn(problem)


def _listed(keys: list[str]) -> str:
    return ", ".join(dotted((key,)) for key in keys[:10])
