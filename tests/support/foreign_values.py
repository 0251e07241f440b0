"""JSON values of other types at any place of a message: what a broken or hostile peer may send."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]

DEEP = "\x00deep\x00"
"""Stands for an array that is nested deeper than any decoder follows."""
LONG_NUMBER = "\x00long\x00"
"""Stands for an integer of more digits than Python converts."""
DEPTH = 3_000
DIGITS = 5_000
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    1e308,
    "",
    "x",
    "bmcp_ours_x",
    [],
    ["x", ["y"]],
    {},
    {"type": [], "id": {}, "index": "0"},
    [{}],
    DEEP,
    LONG_NUMBER,
)


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of each value in a JSON value, the whole one first."""
    yield path
    if isinstance(value, dict):
        for name, member in value.items():
            yield from places(member, (*path, name))
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from places(element, (*path, index))


def replaced(value: Any, path: Path, by: Any) -> Any:
    """Return the value with another one at a place."""
    if not path:
        return by
    result = copy.copy(value)
    result[path[0]] = replaced(value[path[0]], path[1:], by)
    return result


def encoded(value: Any) -> bytes:
    """Return the JSON of a value that may contain `DEEP` and `LONG_NUMBER`."""
    text = json.dumps(value)
    text = text.replace(json.dumps(DEEP), "[" * DEPTH + "]" * DEPTH)
    return text.replace(json.dumps(LONG_NUMBER), "9" * DIGITS).encode()


def mutants(value: Any) -> Iterator[tuple[Path, Any, bytes]]:
    """Yield the JSON of the value with each odd value at each of its places."""
    for path in places(value):
        for odd in ODD:
            yield path, odd, encoded(replaced(value, path, odd))
