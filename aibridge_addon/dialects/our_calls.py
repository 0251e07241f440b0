"""Decide by their names which calls are the bridge's own, and write such calls as a history may contain them. Sans-io.

The bridge runs calls of injected tools. A model may also call a tool that is gone, or one that it has made up. Clients
cannot run these either, so every name with the bridge's prefix is ours, unless the client itself has such a tool.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode, encode

PREFIX = "bmcp_"
"""Every injected tool has a name with this prefix."""
MAX_LENGTH = 64
"""Characters. The smallest limit of all providers: https://platform.openai.com/docs/api-reference (function names)."""
INVALID_INPUT = "INVALID_JSON"
"""Member that wraps an input that is not a JSON object (Anthropic API reference, "Fine-grained tool streaming")."""

_invalid = re.compile(r"[^A-Za-z0-9_-]")


class OurNames(Collection[str]):
    """The names of calls that the bridge runs. Iterates over those of the injected tools."""

    def __init__(self, injected: Collection[str], own: Collection[str] = ()) -> None:
        """`own`: names of the client's own tools."""
        self._injected = frozenset(injected)
        self._own = frozenset(name for name in own if name.startswith(PREFIX)) - self._injected

    def __contains__(self, name: object) -> bool:
        if name in self._injected:
            return True
        return isinstance(name, str) and name.startswith(PREFIX) and name not in self._own

    def __iter__(self) -> Iterator[str]:
        return iter(self._injected)

    def __len__(self) -> int:
        return len(self._injected)

    def may_begin_with(self, beginning: str) -> bool:
        """Return whether a name that begins so may become one of ours."""
        if beginning.startswith(PREFIX) or PREFIX.startswith(beginning):
            return True
        return any(name.startswith(beginning) for name in self._injected)

    @property
    def pattern(self) -> bytes:
        """A pattern of one of the names, as it is followed by a quote."""
        names = [re.escape(name.encode()) for name in sorted(self._injected) if not name.startswith(PREFIX)]
        own = b"|".join(re.escape(name.encode()) for name in sorted(self._own))
        others = (b'(?!(?:%s)")' % own if own else b"") + PREFIX.encode() + rb'[^"]{0,256}'
        return b"|".join((*names, others))


def valid_name(name: str) -> str:
    """Return a name that a model has made up, as every provider takes it."""
    return _invalid.sub("_", name)[:MAX_LENGTH]


def arguments(given: object) -> Any:
    """Return the arguments of a call: the decoded text, or the object that some servers send instead.

    Empty text results in `{}`; text that is not JSON is returned unchanged.
    """
    if not isinstance(given, str):
        return {} if given is None else given
    if not given.strip():
        return {}
    try:
        return decode(given.encode("utf-8", "replace"))
    except (NotJSON, Unreadable):
        return given


def valid_input(given: object) -> dict[str, Any]:
    """Return the arguments of a call as an object. What is none is wrapped, because providers refuse it."""
    value = arguments(given)
    if isinstance(value, dict):
        return value
    return {INVALID_INPUT: given if isinstance(given, str) else encode(given).decode()}


def valid_arguments(given: object) -> str:
    """Return the arguments of a call as the text of an object. A text that is one stays as it is."""
    if isinstance(given, str) and given.strip() and isinstance(arguments(given), dict):
        return given
    return encode(valid_input(given)).decode()


def called_input(value: object) -> Any:
    """Return what the model gave as the input of a call whose input `valid_input` has returned."""
    return value[INVALID_INPUT] if isinstance(value, dict) and value.keys() == {INVALID_INPUT} else value
