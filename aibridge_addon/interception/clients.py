"""Recognise the client program and its session by request headers. The first rule that matches applies.

Headers map lower-case names to values, both bytes. User agents and session headers were observed in real traffic;
`docs/clients.md` lists them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

from aibridge_addon.records import Headers

UNKNOWN = "Unknown"
CLAUDE_CODE = "Claude Code"
OPENCODE = "OpenCode"


class Speaker(Enum):
    PERSON = auto()
    """The request may end in a person's prompt. This is the default."""
    AGENT = auto()
    """The client itself, for a subagent's task. Tools may be used."""
    ASIDE = auto()
    """The client itself, for a side call such as a title or a summary. Tools are not used."""


@dataclass(frozen=True, slots=True)
class Program:
    name: str
    agents: tuple[bytes, ...]
    """Prefixes of its user agent, in lower case."""
    session_headers: tuple[bytes, ...] = ()
    originator: bytes | None = None
    marker: bytes | None = None
    """A header that only this program sends."""
    session_lasts: bool = True
    """The session id is that of the whole conversation. False: of one prompt and the turns that answer it."""


PROGRAMS = (
    Program("Mux", (b"mux/", b"xum/"), (b"x-mux-workspace-id",)),
    Program(CLAUDE_CODE, (b"claude",), (b"x-claude-code-session-id",)),
    Program("Codex", (b"codex",), (b"session-id", b"session_id")),
    Program("Zed", (b"zed/",)),
    Program("GitHub Copilot (VS Code)", (b"githubcopilotchat/",), (b"x-interaction-id",), session_lasts=False),
    Program("GitHub Copilot (CLI)", (b"copilot/",), (b"x-client-session-id",)),
    Program("Kilo Code", (b"kilo-code/",), (b"x-kilocode-taskid",), originator=b"kilo-code"),
    Program("Roo Code", (b"roo-code/",), originator=b"roo-code"),
    Program("Coder Agents", (b"coder-agents/",), (b"x-coder-chat-id",)),
    Program("Charm Crush", (b"charm crush/", b"charm-crush/")),
    Program(OPENCODE, (b"opencode/",), (b"x-opencode-session", b"x-session-affinity", b"x-session-id")),
    Program("Junie", (b"junie:",)),
    Program("Cursor", (), marker=b"x-cursor-client-version"),
)
_unknown = Program(UNKNOWN, ())

CLAUDE_CODE_CLASSES = MappingProxyType({b"main": Speaker.PERSON, b"auxiliary": Speaker.ASIDE})
"""Values of `x-claude-code-request-class`. All others mean an agent."""

_LEGACY_USER_ID = re.compile(r"_session_(.+)\Z")


def program(headers: Headers) -> Program:
    """Return the program that sent these headers."""
    agent = headers.get(b"user-agent", b"").lower()
    originator = headers.get(b"originator")
    for candidate in PROGRAMS:
        if agent.startswith(candidate.agents) if candidate.agents else False:
            return candidate
        if candidate.originator is not None and originator == candidate.originator:
            return candidate
        if candidate.marker is not None and headers.get(candidate.marker):
            return candidate
    return _unknown


def session_id(client: Program, headers: Headers, metadata_user_id: str | None) -> str | None:
    """Return the program's own id of the conversation, or None."""
    for name in client.session_headers:
        value = headers.get(name, b"").decode("utf-8", "replace").strip()
        if value:
            return value
    if client.name == CLAUDE_CODE and metadata_user_id is not None:
        return _claude_code_session(metadata_user_id)
    return None


def _claude_code_session(user_id: str) -> str | None:
    """Read `{"session_id": …}` from a JSON string, or the older form `user_…_account_…_session_<uuid>`."""
    try:
        members = json.loads(user_id)
    except (ValueError, RecursionError):
        members = None
    if isinstance(members, dict) and "session_id" in members:
        value = members["session_id"]
        return (value.strip() or None) if isinstance(value, str) else None
    match = _LEGACY_USER_ID.search(user_id)
    return match[1] if match else None


def speaker(client: Program, headers: Headers, *, has_tools: bool) -> Speaker:
    """Return who made this call.

    Claude Code and Copilot send it in a header. OpenCode's title call differs from its turns only in its lack of tools.
    """
    request_class = headers.get(b"x-claude-code-request-class")
    if request_class is not None:
        return CLAUDE_CODE_CLASSES.get(request_class, Speaker.AGENT)
    if headers.get(b"x-interaction-type", b"").startswith(b"agent-"):
        return Speaker.ASIDE
    return Speaker.ASIDE if client.name == OPENCODE and not has_tools else Speaker.PERSON
