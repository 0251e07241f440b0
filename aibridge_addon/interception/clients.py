"""Recognise the program that sent a request, and read what the request says about its sender.

Programs are recognised by their headers; the first rule that matches applies. Headers map lower-case names to values,
both bytes. User agents and headers were observed in real traffic; `docs/clients.md` lists them. All values are what the
client says: they are cut to a length and contain no control characters.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aibridge_addon.dialects.base import NOTHING, RequestReading
from aibridge_addon.records import Headers, RequestClass
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode
from aibridge_addon.wire.json_values import as_dict, as_text

UNKNOWN = "Unknown"
CLAUDE_CODE = "Claude Code"
OPENCODE = "OpenCode"
COPILOT_CLI = "GitHub Copilot (CLI)"

MAX_ID = 256
"""Characters. Longer ids and names of a client are cut."""
MAX_PROJECT = 1024
"""Characters. Longer directories and addresses of repositories are cut."""
MAX_TURN_METADATA = 64 * 1024
"""Bytes. A longer `x-codex-turn-metadata` is not read."""
MAX_WORKSPACES = 8
"""Maximum number of workspaces in which a repository is looked for."""


@dataclass(frozen=True, slots=True)
class Program:
    name: str
    agents: tuple[bytes, ...]
    """Prefixes of its user agent, in lower case."""
    session_headers: tuple[bytes, ...] = ()
    originator: bytes | None = None
    markers: tuple[bytes, ...] = ()
    """Headers that, together, only this program sends with a user agent that names no other."""
    session_lasts: bool = True
    """The session id is that of the whole conversation. False: of one prompt and the turns that answer it."""


PROGRAMS = (
    Program("Mux", (b"mux/", b"xum/"), (b"x-mux-workspace-id",)),
    Program(CLAUDE_CODE, (b"claude",), (b"x-claude-code-session-id",)),
    Program("Codex", (b"codex",), (b"session-id", b"session_id")),
    Program("Zed", (b"zed/",)),
    Program("GitHub Copilot (VS Code)", (b"githubcopilotchat/",), (b"x-interaction-id",), session_lasts=False),
    Program(COPILOT_CLI, (b"copilot/",), (b"x-client-session-id",)),
    Program("Kilo Code", (b"kilo-code/",), (b"x-kilocode-taskid",), originator=b"kilo-code"),
    Program("Roo Code", (b"roo-code/",), originator=b"roo-code"),
    Program("Coder Agents", (b"coder-agents/",), (b"x-coder-chat-id",)),
    Program("Charm Crush", (b"charm crush/", b"charm-crush/")),
    Program(OPENCODE, (b"opencode/",), (b"x-opencode-session", b"x-session-affinity", b"x-session-id")),
    Program("Junie", (b"junie:",)),
    Program("Cursor", (), markers=(b"x-cursor-client-version",)),
    # With a key of its own, it has the user agent of an SDK. Its requests with tool results have no other header of it.
    Program(COPILOT_CLI, (), (b"x-client-session-id",), markers=(b"x-initiator",)),
)
_unknown = Program(UNKNOWN, ())

MAX_USER_ID = 4096
"""Characters. A longer `metadata.user_id` is not read. Anthropic allows 256, Claude Code sends about 200."""


@dataclass(frozen=True, slots=True)
class Sender:
    """What a request says about its sender. None: it does not say it."""

    program: Program
    session_id: str | None
    """The program's own id of the conversation."""
    request_class: RequestClass
    """A prompt is recorded in the class `prompt` only. No tools are injected in the class `auxiliary`."""
    agent_id: str | None = None
    prompt_id: str | None = None
    project: str | None = None
    details: Mapping[str, str] = NOTHING
    """Further values for the interception's metadata: `agent_type`, `branch`, `parent_agent_id`."""

    @property
    def client(self) -> str:
        """The program's name."""
        return self.program.name


def sender(headers: Headers, reading: RequestReading, *, has_tools: bool) -> Sender:
    """Return what a request says about its sender."""
    client = program(headers)
    said = _Said(headers, reading)
    return Sender(
        program=client,
        session_id=session_id(client, headers, reading),
        request_class=_request_class(client, said, reading, has_tools=has_tools),
        agent_id=said.agent_id,
        prompt_id=said.prompt_id(client),
        project=said.project(),
        details=said.details(),
    )


def program(headers: Headers) -> Program:
    """Return the program that sent these headers."""
    agent = headers.get(b"user-agent", b"").lower()
    originator = headers.get(b"originator")
    for candidate in PROGRAMS:
        if agent.startswith(candidate.agents) if candidate.agents else False:
            return candidate
        if candidate.originator is not None and originator == candidate.originator:
            return candidate
        if candidate.markers and all(headers.get(marker) for marker in candidate.markers):
            return candidate
    return _unknown


def session_id(client: Program, headers: Headers, reading: RequestReading) -> str | None:
    """Return the program's own id of the conversation, or else OpenAI's, or None."""
    for name in client.session_headers:
        if value := _header(headers, name):
            return value
    if client.name == CLAUDE_CODE and reading.metadata_user_id is not None:
        return clean(_claude_code_session(reading.metadata_user_id))
    return clean(reading.conversation)


def _claude_code_session(user_id: str) -> str:
    """Read `{"session_id": …}` from a JSON string, or the older form `user_…_account_…_session_<uuid>`."""
    if len(user_id) > MAX_USER_ID:
        return ""
    try:
        members = json.loads(user_id)
    except (ValueError, RecursionError):
        members = None
    if isinstance(members, dict) and "session_id" in members:
        return as_text(members["session_id"])
    return user_id.partition("_session_")[2]


def clean(value: str | None, limit: int = MAX_ID) -> str | None:
    """Return a client's text without control characters and cut to `limit` characters; None if nothing is left."""
    if not value:
        return None
    return "".join(character for character in value[: 2 * limit] if character.isprintable()).strip()[:limit] or None


def _header(headers: Headers, name: bytes) -> str | None:
    value = headers.get(name)
    return clean(value.decode("utf-8", "replace")) if value else None


class _Said:
    """The values of a request's headers, of OpenAI's `client_metadata`, and of Codex's turn metadata.

    Over a WebSocket the headers are those of the upgrade request. Codex repeats them in each message's
    `client_metadata`, which therefore has precedence.
    """

    def __init__(self, headers: Headers, reading: RequestReading) -> None:
        self.headers = headers
        self._body = reading.client_metadata
        self._surroundings = reading.surroundings
        self._turn = self._turn_metadata()

    def get(self, name: str) -> str | None:
        """Return a header's value, or the member of `client_metadata` with the same name."""
        return (clean(self._body.get(name)) if self._body else None) or _header(self.headers, name.encode())

    def turn(self, *names: str) -> str | None:
        """Return the first of these members of Codex's turn metadata."""
        if not self._turn:
            return None
        return next((value for name in names if (value := clean(as_text(self._turn.get(name))))), None)

    def _turn_metadata(self) -> dict[str, Any]:
        name = "x-codex-turn-metadata"
        text = self._body.get(name, "").encode("utf-8", "replace") or self.headers.get(name.encode(), b"")
        if not text or len(text) > MAX_TURN_METADATA:
            return {}
        try:
            return as_dict(decode(text))
        except (NotJSON, Unreadable):
            return {}

    @property
    def codex_parent(self) -> str | None:
        return self.get("x-codex-parent-thread-id") or self.turn("parent_thread_id")

    @property
    def codex_subagent(self) -> str | None:
        """Codex's kind of subagent, such as `review`."""
        kind = self.get("x-openai-subagent") or self.turn("subagent_kind")
        return None if kind in ("false", "0") else kind

    @property
    def is_codex_subagent(self) -> bool:
        return bool(self.codex_parent or self.codex_subagent or self.turn("thread_source") == "subagent")

    @property
    def is_copilot_subagent(self) -> bool:
        return bool(self.get("x-parent-agent-id") or (self.get("x-interaction-type") or "").endswith("-subagent"))

    @property
    def agent_id(self) -> str | None:
        """The subagent's id. None for the main agent."""
        if agent := self.get("x-claude-code-agent-id"):
            return agent
        if self.is_codex_subagent:
            thread = self.turn("thread_id") or clean(self._body.get("thread_id")) or self.get("thread-id")
            return thread or self.codex_subagent
        if self.is_copilot_subagent:  # the main agent has a task id, too
            return self.get("x-agent-task-id")
        return self.get("x-session-id") if self.get("x-parent-session-id") else None

    def prompt_id(self, client: Program) -> str | None:
        if prompt := self.get("x-claude-code-prompt-id") or self.turn("turn_id") or clean(self._body.get("turn_id")):
            return prompt
        return None if b"x-interaction-id" in client.session_headers else self.get("x-interaction-id")

    def project(self) -> str | None:
        """Return the repository if it is known, or else the directory."""
        workspaces = list(itertools.islice(as_dict(self._turn.get("workspaces")).items(), MAX_WORKSPACES))
        for _, workspace in workspaces:
            remotes = as_dict(as_dict(workspace).get("associated_remote_urls"))
            url = as_text(remotes.get("origin")) or next(filter(None, map(as_text, remotes.values())), "")
            if url:
                return clean(_without_login(url), MAX_PROJECT)
        directory = workspaces[0][0] if workspaces else as_text(self._turn.get("cwd"))
        return (
            clean(directory, MAX_PROJECT)
            or self.get("x-github-repository-nwo")
            or clean(self._surroundings.directory, MAX_PROJECT)
        )

    def details(self) -> Mapping[str, str]:
        parent = (
            self.get("x-claude-code-parent-agent-id")
            or self.codex_parent
            or self.get("x-parent-agent-id")
            or self.get("x-parent-session-id")
        )
        said = {
            "agent_type": self.get("x-claude-code-agent-type") or self.codex_subagent,
            "branch": self.turn("branch", "git_branch") or clean(self._surroundings.branch),
            "parent_agent_id": parent,
        }
        return {name: value for name, value in said.items() if value}


def _without_login(url: str) -> str:
    """Return a repository's address without user, password and query. `git@host:path` has no password."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    authority, slash, path = rest.partition("/")
    return scheme + separator + authority.rpartition("@")[2] + slash + path.partition("?")[0].partition("#")[0]


def _request_class(client: Program, said: _Said, reading: RequestReading, *, has_tools: bool) -> RequestClass:
    marked = said.headers.get(b"x-claude-code-request-class")
    if reading.side_call or marked == b"auxiliary":
        return "auxiliary"
    if marked is None and _is_side_call(client, said, has_tools=has_tools):
        return "auxiliary"
    if marked != b"main" and (marked is not None or _is_subagent(said)):
        return "subagent"  # every other class of Claude Code is a subagent's
    brings_result = reading.answered_call_id is not None or reading.notice
    if said.get("x-initiator") == "agent":  # a text at the end is the program's own
        return "tool_result" if brings_result else "subagent"
    return "tool_result" if brings_result and reading.prompt is None else "prompt"


def _is_side_call(client: Program, said: _Said, *, has_tools: bool) -> bool:
    """Return whether the program calls on its own behalf, without tools: for a title, a summary or a compaction.

    OpenCode's title call differs from its turns only in its lack of tools.
    """
    interaction = said.get("x-interaction-type") or ""
    return (
        (client.name == OPENCODE and not has_tools)
        or interaction.startswith("agent-")
        or interaction == "conversation-compaction"
        or said.turn("request_kind") in ("prewarm", "compaction")
        or said.codex_subagent == "compact"
    )


def _is_subagent(said: _Said) -> bool:
    """Return whether a program wrote the task."""
    return bool(
        said.get("x-claude-code-agent-id")
        or said.is_codex_subagent
        or said.is_copilot_subagent
        or said.get("x-parent-session-id")
    )
