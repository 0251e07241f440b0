"""Read a file into plain values: read up to a limit, parse YAML 1.2 or JSON, then expand `${VAR}`.

Variables are expanded in parsed values, not in the text, so that a variable cannot add YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
)

from aibridge_addon.config.actor_templates import ActorReference, ActorTemplate
from aibridge_addon.config.errors import ConfigError, Location, Problem, dotted

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
"""Levels of nesting. The schema needs six. The YAML composer recurses and fails at about 300."""

_REFERENCE = re.compile(
    r"""
    (?P<escape> \$\$\{ )
  | \$\{ (?P<actor> actor (?: \.metadata\. [^${}:]+ )? ) \}
  | \$\{ (?P<name> [A-Za-z_][A-Za-z0-9_]* ) (?: :- (?P<default> (?: (?!\$\{) [^}] )* ) )? \}
  | (?P<malformed> \$\{ )
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Document:
    """A file's values, with variables expanded."""

    file: str
    values: Any
    references: frozenset[Location]
    """Locations of values that contain text from the environment."""
    problems: tuple[Problem, ...]

    def from_environment(self, location: Location) -> bool:
        """Return whether the value at this location, or one that contains it, came from the environment."""
        return any(location[: end + 1] in self.references for end in range(len(location)))

    def has_problem_at(self, path: str) -> bool:
        """Return whether this key already has a problem, so that validation does not report a second one."""
        return any(problem.path == path for problem in self.problems)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file with a mapping at the top level. An empty file is an empty mapping."""
    file = str(path)
    text = _read_text(path)
    try:
        _refuse_unsafe_events(text, file)
        values = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        # `from None`: the library's messages quote the file, secrets included.
        raise ConfigError([_syntax_problem(error, file)]) from None
    except (YAMLError, ValueError):
        raise ConfigError(
            [Problem("", "a character, date or number that YAML cannot read", "valid YAML 1.2", file)]
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([Problem("", "no mapping at the top level", "key: value lines", file)])
    return values


def read_json(path: Path, file: str) -> Any:
    """Read a JSON file. `file` is its name in errors."""
    text = _read_text(path, file)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError([Problem(where, error.msg, "valid JSON", file)]) from None
    except (ValueError, RecursionError):
        raise ConfigError([Problem("", "too large numbers or too deep nesting", "valid JSON", file)]) from None


def _read_text(path: Path, file: str | None = None) -> str:
    file = file or str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise ConfigError([Problem("", f"a file that cannot be read ({reason})", "a readable file", file)]) from None
    if len(data) > MAX_BYTES:
        raise ConfigError([Problem("", "a larger file", f"at most {MAX_BYTES} bytes", file)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"a byte that is not UTF-8 at offset {error.start}"
        raise ConfigError([Problem("", found, "text in UTF-8", file)]) from None


def _refuse_unsafe_events(text: str, file: str) -> None:
    """Refuse aliases, tags, deep nesting and YAML 1.1 before any value is built."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        if found := _unsafe(event, depth):
            mark = event.start_mark
            where = f"line {mark.line + 1}, column {mark.column + 1}"
            raise ConfigError([Problem(where, found, "plain YAML 1.2 values", file)])


def _unsafe(event: object, depth: int) -> str | None:
    if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor is not None):
        return "an anchor or alias (& or *; put text that begins so in quotes)"
    if getattr(event, "tag", None) is not None:
        return "a tag (!; put text that begins so in quotes)"
    if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
        return "another YAML version"
    if depth > MAX_DEPTH:
        return f"more than {MAX_DEPTH} levels"
    return None


def _syntax_problem(error: MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = str(error.problem or error.context or "a syntax error")
    if isinstance(error, DuplicateKeyError):
        # The rest of the message quotes both values.
        return Problem(where, problem.partition(" with value")[0].removeprefix("found "), "each key once", file)
    return Problem(where, f"a syntax error ({problem})", "valid YAML 1.2", file)


def expand(values: Any, *, file: str, environ: Mapping[str, str], at: Location = ()) -> Document:
    """Expand `${VAR}` and `${VAR:-default}` in every text. `$${` becomes `${`."""
    expansion = _Expansion(file, environ)
    expanded = expansion.walk(values, at)
    return Document(file, expanded, frozenset(expansion.references), tuple(expansion.problems))


def _may_name_the_actor(at: Location) -> bool:
    """Return whether this is a header or a variable of an MCP server, in this file or in an `.mcp.json`."""
    return at[0] in ("mcp", "mcpServers", "servers") and len(at) >= 4 and at[-2] in ("headers", "env")


class _Expansion:
    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self._file = file
        self._environ = environ
        self.references: set[Location] = set()
        self.problems: list[Problem] = []

    def walk(self, value: Any, at: Location) -> Any:
        match value:
            case dict():
                return {key: self.walk(item, (*at, key)) for key, item in value.items() if self._is_text(key, at)}
            case list():
                return [self.walk(item, (*at, index)) for index, item in enumerate(value)]
            case str():
                return self._text(value, at)
            case _:
                return value

    def _is_text(self, key: object, at: Location) -> bool:
        if isinstance(key, str):
            return True
        self._report(at, f"a key that is a {type(key).__name__}", "keys that are text (put them in quotes)")
        return False

    def _text(self, text: str, at: Location) -> str | ActorTemplate:
        parts: list[str | ActorReference] = []
        end = 0
        for match in _REFERENCE.finditer(text):
            parts += (text[end : match.start()], self._part(match, at))
            end = match.end()
        parts.append(text[end:])
        if any(isinstance(part, ActorReference) for part in parts):
            return ActorTemplate(parts)
        return "".join(map(str, parts))

    def _part(self, match: re.Match[str], at: Location) -> str | ActorReference:
        if match["escape"]:
            return "${"
        if match["malformed"]:
            self._report(at, "a ${ that begins no reference", "${VAR}, ${VAR:-default}, or $${ for a plain ${")
            return match[0]
        if (actor := match["actor"]) is None:
            return self._value(match["name"], match["default"], at)
        if _may_name_the_actor(at):
            return ActorReference(actor)
        if actor in self._environ:
            return self._value(actor, None, at)
        self._report(at, f"${{{actor}}}", "no actor, who is known in headers and env of MCP servers only")
        return ""

    def _value(self, name: str, default: str | None, at: Location) -> str:
        self.references.add(at)
        value = self._environ.get(name)
        if default is not None:
            # As in a shell, `:-` also replaces an empty variable.
            return value or default
        if value is None:
            self._report(
                at,
                f"${{{name}}}, which is not set",
                f"an environment variable {name}, or ${{{name}:-default}}",
            )
            return ""
        return value

    def _report(self, at: Location, found: str, expected: str) -> None:
        self.problems.append(Problem(dotted(at), found, expected, self._file))
