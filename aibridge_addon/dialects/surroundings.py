"""Find the directory and the branch in which a coding agent works. Its system prompt names them. Sans-io.

Claude Code writes ` - Primary working directory: /src/app` and, from git, `Current branch: main`. Older versions and
OpenCode write `Working directory: /src/app`, Copilot `* Current working directory: /src/app`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_dict, as_list, as_text

DIRECTORY = "orking directory: "
"""Part of every line that names the directory."""
DIRECTORY_NAMES = frozenset(("Primary working directory", "Working directory", "Current working directory"))
BRANCH = "Current branch: "
BRANCH_NAMES = frozenset(("Current branch",))
MAX_TEXTS = 16
"""Maximum number of texts of a system prompt that are searched."""
MAX_TEXT = 256 * 1024
"""Characters. The rest of a longer text is not searched."""
MAX_VALUE = 1024
"""Characters. A longer directory or branch is cut."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the client works. None: the request does not say it."""

    directory: str | None = None
    branch: str | None = None


UNSEEN = Surroundings()


def surroundings(*contents: object) -> Surroundings:
    """Read a system prompt: texts, or lists of blocks with a text."""
    directory = branch = None
    for text in itertools.islice(_texts(contents), MAX_TEXTS):
        text = text[:MAX_TEXT]
        if directory is None and DIRECTORY in text:
            directory = _value(text, DIRECTORY_NAMES)
        if branch is None and BRANCH in text:
            branch = _value(text, BRANCH_NAMES)
    return Surroundings(directory, branch) if directory or branch else UNSEEN


def system_messages(body: JSONObject, name: str, roles: frozenset[str]) -> list[object]:
    """Return the contents of the system messages at the beginning of a conversation."""
    found: list[object] = []
    for message in map(as_dict, body.beginning(name, MAX_TEXTS)):
        if as_text(message.get("role")) not in roles:
            break
        found.append(message.get("content"))
    return found


def _texts(contents: Iterable[object]) -> Iterable[str]:
    for content in contents:
        if isinstance(content, str):
            yield content
        else:
            yield from (as_text(as_dict(part).get("text")) for part in as_list(content))


def _value(text: str, names: frozenset[str]) -> str | None:
    for line in text.splitlines():
        name, _, value = line.lstrip(" \t-*").partition(": ")
        if name in names and value.strip():
            return value.strip()[:MAX_VALUE]
    return None
