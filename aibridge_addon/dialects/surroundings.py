"""Find the directory and the branch in which a coding agent works. Sans-io.

Most agents name them in the system prompt. Claude Code writes ` - Primary working directory: /src/app` and, from git,
`Current branch: main`. Older versions and OpenCode write `Working directory: /src/app`, Copilot
`* Current working directory: /src/app`. Codex writes `<cwd>/src/app</cwd>` in one of the user's first messages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from aibridge_addon.dialects.words import persons_words
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_dict, as_list, as_text

DIRECTORY = "orking directory: "
"""Part of every line that names the directory."""
DIRECTORY_NAMES = frozenset(("Primary working directory", "Working directory", "Current working directory"))
BRANCH = "Current branch: "
BRANCH_NAMES = frozenset(("Current branch",))
ENVIRONMENT, CWD, END_OF_CWD = "<environment_context>", "<cwd>", "</cwd>"
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


def surroundings(*contents: object, directory: str | None = None) -> Surroundings:
    """Read a system prompt: texts, or lists of blocks with a text.

    `directory` is used if the system prompt names none.
    """
    otherwise, directory, branch = directory, None, None
    for text in itertools.islice(_texts(contents), MAX_TEXTS):
        text = text[:MAX_TEXT]
        if directory is None and DIRECTORY in text:
            directory = _value(text, DIRECTORY_NAMES)
        if branch is None and BRANCH in text:
            branch = _value(text, BRANCH_NAMES)
    directory = directory or otherwise
    return Surroundings(directory, branch) if directory or branch else UNSEEN


def system_messages(body: JSONObject, name: str, roles: frozenset[str]) -> list[object]:
    """Return the contents of the system messages at the beginning of a conversation."""
    found: list[object] = []
    for message in map(as_dict, body.beginning(name, MAX_TEXTS)):
        if as_text(message.get("role")) not in roles:
            break
        found.append(message.get("content"))
    return found


def codex_directory(body: JSONObject, name: str) -> str | None:
    """Return the directory in Codex's `environment_context`, one of the first messages of a conversation."""
    for message in map(as_dict, body.beginning(name, MAX_TEXTS)):
        if message.get("role") != "user":
            continue
        for text in itertools.islice(_texts((message.get("content"),)), MAX_TEXTS):
            _, found, environment = text.partition(ENVIRONMENT)
            value, closed, _ = environment.partition(CWD)[2].partition(END_OF_CWD)
            if found and closed and value.strip() and not persons_words(text):
                return value.strip()[:MAX_VALUE]
    return None


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
