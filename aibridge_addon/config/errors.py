"""Errors of the configuration: the key, what was found there, and what is allowed.

    ConfigError        the only exception that `config.load` raises; contains every Problem
    rejected()         builds the exception of a validator, which stays inside this package

Errors must not reveal secrets on a terminal or in a log. A value is shown only if it is written in the file itself and
its key contains no secret. Otherwise only its type is named.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

Location = tuple[str | int, ...]

SECRET_KEYS = frozenset(
    {
        *("api_key", "access_key", "secret_key", "client_secret", "token_key"),
        *("headers", "env", "args", "url", "database"),
    }
)
"""Values of these keys are named by their type only. MCP servers' URLs often contain keys."""

MIN_ABBREVIATION = 3
"""Letters. Shorter texts abbreviate too many names."""
MAX_SHOWN = 60
"""Characters of a value that an error shows."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error in the configuration."""

    path: str
    """The key's path, as in `providers[0].name`. If the file cannot be parsed, line and column."""
    found: str
    expected: str
    file: str = ""

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.path) if part)
        return f"{where}: found {self.found}; allowed: {self.expected}"


class ConfigError(Exception):
    """The configuration is invalid. `str()` has one line for each problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def rejected(expected: str, *, found: str = "", shown: str = "", at: Location = ()) -> PydanticCustomError:
    """Build the error for a value that is not allowed.

    `found` replaces the description of the value and must not quote it. `shown` may quote it, and is dropped if the
    value is secret. `at` is a location relative to the validated value.
    """
    return PydanticCustomError(
        "aibridge", "not allowed", {"expected": expected, "found": found, "shown": shown, "at": at}
    )


def dotted(location: Location) -> str:
    """Return a location as text, for example `providers[0].name`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += ("." if path else "") + _key(part)
    return path


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]{1,60}", key) else json.dumps(key[:MAX_SHOWN])


def describe(value: object, *, hidden: bool) -> str:
    """Return a value's type and, unless it is hidden, the value."""
    match value:
        case None:
            return "nothing"
        case bool():
            kind, text = "a boolean", json.dumps(value)
        case int():
            # str() of a huge integer raises ValueError.
            kind, text = "a whole number", str(value) if abs(value) < 10**18 else ""
        case float():
            kind, text = "a number", str(value)
        case str():
            kind, text = "text", f'"{_cut(_without_credentials(value))}"'
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return f"a {type(value).__name__}"
    return kind if hidden or not text else f"{kind}: {text}"


def _without_credentials(text: str) -> str:
    return re.sub(r"\S+(?=@)|(?<=\?)\S+", "***", text)


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _cut(text: str) -> str:
    line = _one_line(text[: MAX_SHOWN + 1])
    return line if len(line) <= MAX_SHOWN else line[:MAX_SHOWN] + "…"


def problems_from(
    error: ValidationError,
    *,
    root: type[BaseModel],
    file: str,
    from_environment: Callable[[Location], bool],
    prefix: Location = (),
) -> list[Problem]:
    """Convert pydantic's errors."""
    problems = []
    for details in error.errors(include_url=False):
        if details["type"] == "default_factory_not_called":
            continue  # the key that this default depends on has a problem of its own
        location = prefix + _real(details["loc"])
        location += details.get("ctx", {}).get("at", ())
        hidden = not SECRET_KEYS.isdisjoint(location) or from_environment(location)
        problems.append(Problem(dotted(location), _found(details, hidden=hidden), _expected(details, root), file))
    return problems


def _real(location: Location) -> Location:
    """Drop the parts that are not keys of the file: a union's tag (`<HttpServer>`) and pydantic's `[key]`."""
    return tuple(part for part in location if not (isinstance(part, str) and re.match(r"<\w+>$|\[key\]$", part)))


def _found(details: ErrorDetails, *, hidden: bool) -> str:
    if details["type"] == "extra_forbidden":
        return "an unknown key"
    if details["type"] == "missing":
        return "nothing"
    context = details.get("ctx", {}) if details["type"] == "aibridge" else {}
    shown = "" if hidden else _one_line(context.get("shown", ""))
    return context.get("found") or shown or describe(details["input"], hidden=hidden)


_EXPECTED = MappingProxyType(
    {
        "bool_parsing": "true or false",
        "bool_type": "true or false",
        "dict_type": "a mapping (key: value)",
        "finite_number": "a finite number",
        "float_parsing": "a number",
        "float_type": "a number",
        "greater_than": "a number greater than {gt}",
        "greater_than_equal": "a number of at least {ge}",
        "int_from_float": "a whole number",
        "int_parsing": "a whole number",
        "int_parsing_size": "a whole number",
        "int_type": "a whole number",
        "less_than_equal": "a number of at most {le}",
        "literal_error": "{expected}",
        "mapping_type": "a mapping (key: value)",
        "missing": "a value: this key is required",
        "model_type": "a mapping (key: value)",
        "string_type": "text (put it in quotes if it looks like something else)",
        "tuple_type": "a list",
    }
)


def _expected(details: ErrorDetails, root: type[BaseModel]) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "aibridge":
            return str(context["expected"])
        case "extra_forbidden":
            return _allowed_keys(details["loc"], root)
        case kind:
            # Kinds outside the table use pydantic's own message, which never quotes the input.
            template = _EXPECTED.get(kind)
            return details["msg"] if template is None else template.format_map(context)


def _allowed_keys(location: Location, root: type[BaseModel]) -> str:
    allowed = sorted({key for model in _models_at(location[:-1], root) for key in model.model_fields})
    return f"one of {', '.join(allowed)}{did_you_mean(str(location[-1]), allowed)}"


def did_you_mean(name: str, allowed: Sequence[str]) -> str:
    """Return a hint at the most similar name, or "" if none is similar."""
    nearest = most_similar(name, allowed)
    return f' (did you mean "{nearest}"?)' if nearest else ""


def most_similar(name: str, allowed: Iterable[str]) -> str | None:
    short, names = name.lower()[:MAX_SHOWN], list(allowed)  # difflib's time grows with the square of the length
    whole = [each for each in names if len(short) >= MIN_ABBREVIATION and _abbreviates(short, each)]
    return whole[0] if len(whole) == 1 else next(iter(difflib.get_close_matches(short, names, n=1)), None)


def _abbreviates(short: str, name: str) -> bool:
    """Return whether a text has letters of a name, in their order, from its first to its last: `cmd`, `command`."""
    letters = iter(name)
    return (short[0], short[-1]) == (name[0], name[-1]) and all(letter in letters for letter in short)


def _models_at(location: Location, root: type[BaseModel]) -> Sequence[type[BaseModel]]:
    models: Sequence[type[BaseModel]] = [root]
    for part in location:
        fields = [model.model_fields[str(part)] for model in models if part in model.model_fields]
        if fields:
            models = [inner for field in fields for inner in models_in(field.annotation)]
        else:
            # An index or a mapping's key keeps the candidates. A union's tag selects one of them.
            models = [model for model in models if part == f"<{model.__name__}>"] or models
    return models


def models_in(annotation: object) -> list[type[BaseModel]]:
    """Return the models that a field's type contains."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    arguments: tuple[Any, ...] = get_args(annotation)
    for argument in arguments:
        found += models_in(argument)
    return found
