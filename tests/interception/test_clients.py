"""Which program asks, in which of its sessions, and whether a person is behind the call."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.interception import clients
from aibridge_addon.interception.clients import Speaker

Headers = dict[bytes, bytes]
PERSON, AGENT, ASIDE = Speaker

# headers, program
PROGRAMS: dict[str, tuple[Headers, str]] = {
    "nothing": ({}, "Unknown"),
    "an empty user agent": ({b"user-agent": b""}, "Unknown"),
    "curl": ({b"user-agent": b"curl/8.5.0"}, "Unknown"),
    "Claude Code": ({b"user-agent": b"claude-cli/2.1.0 (external, cli)"}, "Claude Code"),
    "Claude Code, in any case": ({b"user-agent": b"Claude-Code/1"}, "Claude Code"),
    "not in the middle of a user agent": ({b"user-agent": b"my claude-cli/2"}, "Unknown"),
    "Codex": ({b"user-agent": b"codex_cli_rs/0.50.0 (Ubuntu)", b"originator": b"codex_cli_rs"}, "Codex"),
    "Mux": ({b"user-agent": b"mux/1.0"}, "Mux"),
    "Mux under its other name": ({b"user-agent": b"xum/1.0"}, "Mux"),
    "Zed": ({b"user-agent": b"Zed/0.200.0"}, "Zed"),
    "Copilot in an editor": ({b"user-agent": b"GitHubCopilotChat/0.30.0"}, "GitHub Copilot (VS Code)"),
    "Copilot on the command line": ({b"user-agent": b"copilot/0.0.330"}, "GitHub Copilot (CLI)"),
    "Kilo Code": ({b"user-agent": b"Kilo-Code/4.0"}, "Kilo Code"),
    "Kilo Code by its originator": ({b"user-agent": b"node", b"originator": b"kilo-code"}, "Kilo Code"),
    "Roo Code by its originator": ({b"originator": b"roo-code"}, "Roo Code"),
    "a user agent counts before a later program's originator": (
        {b"user-agent": b"claude-cli/2", b"originator": b"roo-code"},
        "Claude Code",
    ),
    "Coder Agents": ({b"user-agent": b"coder-agents/1"}, "Coder Agents"),
    "Crush": ({b"user-agent": b"Charm Crush/0.1"}, "Charm Crush"),
    "Crush with a hyphen": ({b"user-agent": b"Charm-Crush/0.1"}, "Charm Crush"),
    "OpenCode": ({b"user-agent": b"opencode/0.15"}, "OpenCode"),
    "Junie": ({b"user-agent": b"Junie:1"}, "Junie"),
    "Cursor by its marker": ({b"user-agent": b"Go-http-client/2.0", b"x-cursor-client-version": b"1.7"}, "Cursor"),
    "an empty marker is none": ({b"x-cursor-client-version": b""}, "Unknown"),
    "an originator is compared as it is": ({b"originator": b"Roo-Code"}, "Unknown"),
}

# program, headers, metadata.user_id, session
SESSIONS: dict[str, tuple[str, Headers, str | None, str | None]] = {
    "nothing": ("Claude Code", {}, None, None),
    "Claude Code's header": ("Claude Code", {b"x-claude-code-session-id": b"s-1"}, None, "s-1"),
    "a header before the body": ("Claude Code", {b"x-claude-code-session-id": b"s-1"}, '{"session_id":"s-2"}', "s-1"),
    "an empty header is none": ("Claude Code", {b"x-claude-code-session-id": b" "}, '{"session_id":"s-2"}', "s-2"),
    "JSON in the user id": ("Claude Code", {}, '{"device_id":"d","session_id":" s-2 "}', "s-2"),
    "JSON with an empty session": ("Claude Code", {}, '{"session_id":" "}', None),
    "JSON with a session that is no text": ("Claude Code", {}, '{"session_id":7}', None),
    "JSON without a session": ("Claude Code", {}, '{"device_id":"d"}', None),
    "JSON that is no object": ("Claude Code", {}, "[1]", None),
    "the older form": ("Claude Code", {}, "user_ab_account_cd_session_ef-01", "ef-01"),
    "the older form without a session": ("Claude Code", {}, "user_ab_account_cd", None),
    "the older form with an empty session": ("Claude Code", {}, "user_ab_session_", None),
    "another program's user id": ("Unknown", {}, '{"session_id":"s-2"}', None),
    "another program's header": ("Unknown", {b"x-claude-code-session-id": b"s-1"}, None, None),
    "Codex": ("Codex", {b"session_id": b"c-1"}, None, "c-1"),
    "Codex, the newer header first": ("Codex", {b"session_id": b"c-1", b"session-id": b"c-2"}, None, "c-2"),
    "Mux": ("Mux", {b"x-mux-workspace-id": b"m-1"}, None, "m-1"),
    "Copilot in an editor": ("GitHub Copilot (VS Code)", {b"x-interaction-id": b"i-1"}, None, "i-1"),
    "Copilot on the command line": ("GitHub Copilot (CLI)", {b"x-client-session-id": b"i-2"}, None, "i-2"),
    "Kilo Code": ("Kilo Code", {b"x-kilocode-taskid": b"k-1"}, None, "k-1"),
    "Coder Agents": ("Coder Agents", {b"x-coder-chat-id": b"a-1"}, None, "a-1"),
    "OpenCode": ("OpenCode", {b"x-session-affinity": b"o-1"}, None, "o-1"),
    "a program without sessions": ("Zed", {b"session_id": b"z-1"}, None, None),
    "bytes that are not UTF-8": ("Codex", {b"session_id": b"c-\xff"}, None, "c-\ufffd"),
}

# program, headers, brings tools, who is behind the call
SPEAKERS: dict[str, tuple[str, Headers, bool, Speaker]] = {
    "a plain call": ("Unknown", {}, True, PERSON),
    "a plain call without tools": ("Unknown", {}, False, PERSON),
    "Claude Code's main loop": ("Claude Code", {b"x-claude-code-request-class": b"main"}, True, PERSON),
    "Claude Code's subagent": ("Claude Code", {b"x-claude-code-request-class": b"subagent"}, True, AGENT),
    "Claude Code's title": ("Claude Code", {b"x-claude-code-request-class": b"auxiliary"}, False, ASIDE),
    "Claude Code's unknown class": ("Claude Code", {b"x-claude-code-request-class": b""}, True, AGENT),
    "Copilot's person": ("GitHub Copilot (VS Code)", {b"x-interaction-type": b"conversation-panel"}, True, PERSON),
    "Copilot's agent": ("GitHub Copilot (VS Code)", {b"x-interaction-type": b"agent-title"}, True, ASIDE),
    "OpenCode's turn": ("OpenCode", {}, True, PERSON),
    "OpenCode's title": ("OpenCode", {}, False, ASIDE),
}

BY_NAME = {program.name: program for program in (*clients.PROGRAMS, clients.program({}))}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_is_known_by_its_headers(case: str) -> None:
    headers, name = PROGRAMS[case]
    assert clients.program(headers).name == name


@pytest.mark.parametrize("case", SESSIONS)
def test_a_session_is_the_programs_own(case: str) -> None:
    name, headers, user_id, session = SESSIONS[case]
    assert clients.session_id(BY_NAME[name], headers, user_id) == session


@pytest.mark.parametrize("case", SPEAKERS)
def test_who_is_behind_a_call_is_known(case: str) -> None:
    name, headers, has_tools, speaker = SPEAKERS[case]
    assert clients.speaker(BY_NAME[name], headers, has_tools=has_tools) is speaker


def test_every_program_is_in_the_table() -> None:
    assert {name for _, name in PROGRAMS.values()} == set(BY_NAME)


NAMES = sorted({h for p in clients.PROGRAMS for h in (*p.session_headers, *([p.marker] if p.marker else []))})
HEADERS = st.dictionaries(
    st.sampled_from([b"user-agent", b"originator", b"x-interaction-type", b"x-claude-code-request-class", *NAMES]),
    st.binary(max_size=20) | st.sampled_from([agent for p in clients.PROGRAMS for agent in p.agents]),
)
USER_IDS = (
    st.none()
    | st.text(max_size=40)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("session_id") | st.text(), inner),
        max_leaves=4,
    ).map(json.dumps)
)


@given(headers=HEADERS, user_id=USER_IDS, has_tools=st.booleans())
def test_no_headers_and_no_user_id_make_it_fail(headers: Headers, user_id: str | None, has_tools: bool) -> None:
    program = clients.program(headers)
    session = clients.session_id(program, headers, user_id)
    assert session is None or session.strip()
    clients.speaker(program, headers, has_tools=has_tools)


def test_a_user_id_that_is_nested_without_end_is_none() -> None:
    assert clients.session_id(BY_NAME["Claude Code"], {}, "[" * 100_000) is None
