"""Which program asks, in which of its sessions, and whether a person is behind the call."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects.base import UNREAD, RequestReading
from aibridge_addon.dialects.surroundings import Surroundings
from aibridge_addon.interception import clients
from aibridge_addon.interception.clients import MAX_ID, MAX_PROJECT

Headers = dict[bytes, bytes]
COPILOT = "GitHub Copilot (CLI)"
PROMPT = replace(UNREAD, prompt="hi")


def turn(**members: Any) -> Headers:
    return {b"x-codex-turn-metadata": json.dumps(members).encode()}


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
    "Copilot on the command line with a key of its own": (
        {b"user-agent": b"OpenAI/JS 5.20.1", b"x-initiator": b"user", b"x-interaction-type": b"conversation-user"},
        "GitHub Copilot (CLI)",
    ),
    "OpenCode with Copilot's headers": (
        {b"user-agent": b"opencode/1", b"x-initiator": b"user", b"x-interaction-type": b"conversation-user"},
        "OpenCode",
    ),
    "Copilot on the command line with a key of its own and a tool's result": (
        {b"user-agent": b"Anthropic/JS 0.94.0", b"x-initiator": b"agent"},
        "GitHub Copilot (CLI)",
    ),
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
    "the older form many times": ("Claude Code", {}, "_session_" * 400 + "\n", "_session_" * 28 + "_ses"),
    "the older form, longer than any user id": ("Claude Code", {}, "_session_" * 8000 + "\n", None),
    "JSON that is longer than any user id": ("Claude Code", {}, '{"session_id":"s"}' + " " * 4096, None),
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

TOOL_RESULT = replace(UNREAD, correlating_tool_call_id="c1")
BESIDE = replace(TOOL_RESULT, prompt="and?")
SIDE_CALL = replace(PROMPT, side_call=True)
MAIN = {b"x-claude-code-request-class": b"main"}
AGENT_ID = {b"x-claude-code-agent-id": b"a1"}

# program, headers, reading, has tools, class
CLASSES: dict[str, tuple[str, Headers, RequestReading, bool, str]] = {
    "a prompt": ("Unknown", {}, PROMPT, True, "prompt"),
    "a prompt without tools": ("Unknown", {}, PROMPT, False, "prompt"),
    "nothing that can be read": ("Unknown", {}, UNREAD, True, "prompt"),
    "a tool's result": ("Unknown", {}, TOOL_RESULT, True, "tool_result"),
    "a prompt beside a tool's result": ("Unknown", {}, BESIDE, True, "prompt"),
    "a side call": ("Unknown", {}, SIDE_CALL, True, "auxiliary"),
    "the answer of a task in the background": ("Claude Code", {}, replace(UNREAD, notice=True), True, "tool_result"),
    "Claude Code's summary in the main loop": ("Claude Code", MAIN, SIDE_CALL, True, "auxiliary"),
    "Claude Code's main loop": ("Claude Code", MAIN, PROMPT, True, "prompt"),
    "Claude Code's main loop with a result": ("Claude Code", MAIN, TOOL_RESULT, True, "tool_result"),
    "Claude Code's probe in the main loop": ("Claude Code", MAIN, SIDE_CALL, True, "auxiliary"),
    "Claude Code's subagent": ("Claude Code", {b"x-claude-code-request-class": b"subagent"}, PROMPT, True, "subagent"),
    "a result of Claude Code's subagent": ("Claude Code", AGENT_ID, TOOL_RESULT, True, "subagent"),
    "Claude Code's agent id alone": ("Claude Code", AGENT_ID, PROMPT, True, "subagent"),
    "a blank agent id": ("Claude Code", {b"x-claude-code-agent-id": b" "}, PROMPT, True, "prompt"),
    "the main loop with an agent id": ("Claude Code", MAIN | AGENT_ID, PROMPT, True, "prompt"),
    "Claude Code's title": ("Claude Code", {b"x-claude-code-request-class": b"auxiliary"}, PROMPT, False, "auxiliary"),
    "Claude Code's unknown class": ("Claude Code", {b"x-claude-code-request-class": b""}, PROMPT, True, "subagent"),
    "Codex's subagent": ("Codex", {b"x-openai-subagent": b"review"}, PROMPT, True, "subagent"),
    "no subagent of Codex": ("Codex", {b"x-openai-subagent": b"false"}, PROMPT, True, "prompt"),
    "Codex's subagent by its parent": ("Codex", {b"x-codex-parent-thread-id": b"t0"}, PROMPT, True, "subagent"),
    "Codex's compaction by a subagent": ("Codex", {b"x-openai-subagent": b"compact"}, PROMPT, True, "auxiliary"),
    "Codex's subagent by its turn": ("Codex", turn(thread_source="subagent"), PROMPT, True, "subagent"),
    "Codex's turn": ("Codex", turn(request_kind="turn"), PROMPT, True, "prompt"),
    "Codex's compaction by its turn": ("Codex", turn(request_kind="compaction"), PROMPT, True, "auxiliary"),
    "Codex's subagent in a message": (
        "Codex",
        {},
        replace(PROMPT, client_metadata={"x-openai-subagent": "collab_spawn"}),
        True,
        "subagent",
    ),
    "Copilot's person": (
        "GitHub Copilot (VS Code)",
        {b"x-interaction-type": b"conversation-panel"},
        PROMPT,
        True,
        "prompt",
    ),
    "Copilot's title": ("GitHub Copilot (VS Code)", {b"x-interaction-type": b"agent-title"}, PROMPT, True, "auxiliary"),
    "Copilot's subagent": (COPILOT, {b"x-interaction-type": b"conversation-subagent"}, PROMPT, True, "subagent"),
    "Copilot's result": (COPILOT, {b"x-initiator": b"agent"}, TOOL_RESULT, True, "tool_result"),
    "a text of Copilot's own beside a result": (COPILOT, {b"x-initiator": b"agent"}, BESIDE, True, "tool_result"),
    "a text of Copilot's own": (COPILOT, {b"x-initiator": b"agent"}, PROMPT, True, "subagent"),
    "Copilot's user": (COPILOT, {b"x-initiator": b"user"}, PROMPT, True, "prompt"),
    "OpenCode's turn": ("OpenCode", {}, PROMPT, True, "prompt"),
    "OpenCode's title": ("OpenCode", {}, PROMPT, False, "auxiliary"),
    "OpenCode's subagent": ("OpenCode", {b"x-parent-session-id": b"ses_1"}, PROMPT, True, "subagent"),
}

REPOSITORY = {"associated_remote_urls": {"origin": "https://ada:secret@git.example/acme/app.git?x=1"}}
DIRECTORY = replace(UNREAD, surroundings=Surroundings("/src/app", "main"))
CODEX_TURN = turn(thread_id="t2", turn_id="u1", parent_thread_id="t1", workspaces={"/src/app": REPOSITORY})

# program, headers, reading, agent, prompt, project, further details
SAID: dict[str, tuple[str, Headers, RequestReading, str | None, str | None, str | None, dict[str, str]]] = {
    "nothing": ("Claude Code", {}, UNREAD, None, None, None, {}),
    "Claude Code": (
        "Claude Code",
        {
            **AGENT_ID,
            b"x-claude-code-agent-type": b"Explore",
            b"x-claude-code-parent-agent-id": b"a0",
            b"x-claude-code-prompt-id": b"p1",
        },
        DIRECTORY,
        "a1",
        "p1",
        "/src/app",
        {"agent_type": "Explore", "branch": "main", "parent_agent_id": "a0"},
    ),
    "Codex's subagent": (
        "Codex",
        CODEX_TURN,
        UNREAD,
        "t2",
        "u1",
        "https://git.example/acme/app.git",
        {"parent_agent_id": "t1"},
    ),
    "Codex's main thread": (
        "Codex",
        turn(thread_id="t1", turn_id="u1", workspaces={"/src/app": {"has_changes": True}}, branch="main"),
        UNREAD,
        None,
        "u1",
        "/src/app",
        {"branch": "main"},
    ),
    "Codex's message over the upgrade's headers": (
        "Codex",
        turn(turn_id="old"),
        replace(UNREAD, client_metadata={"x-codex-turn-metadata": '{"turn_id":"new"}'}),
        None,
        "new",
        None,
        {},
    ),
    "Codex's flat metadata": (
        "Codex",
        {},
        replace(UNREAD, client_metadata={"x-codex-parent-thread-id": "t1", "thread_id": "t2", "turn_id": "u1"}),
        "t2",
        "u1",
        None,
        {"parent_agent_id": "t1"},
    ),
    "Codex's subagent without a thread": (
        "Codex",
        {b"x-openai-subagent": b"review"},
        UNREAD,
        "review",
        None,
        None,
        {"agent_type": "review"},
    ),
    "a remote without a scheme": (
        "Codex",
        turn(workspaces={"/a": {}, "/b": {"associated_remote_urls": {"fork": "git@git.example:acme/app.git"}}}),
        UNREAD,
        None,
        None,
        "git@git.example:acme/app.git",
        {},
    ),
    "turn metadata that is no JSON": ("Codex", {b"x-codex-turn-metadata": b"{"}, UNREAD, None, None, None, {}),
    "turn metadata of other types": (
        "Codex",
        turn(turn_id=7, workspaces=[1], parent_thread_id={}, branch=None),
        UNREAD,
        None,
        None,
        None,
        {},
    ),
    "Copilot's main agent": (
        COPILOT,
        {b"x-agent-task-id": b"task-0", b"x-interaction-type": b"conversation-agent", b"x-initiator": b"agent"},
        UNREAD,
        None,
        None,
        None,
        {},
    ),
    "Copilot's subagent by its type": (
        COPILOT,
        {b"x-agent-task-id": b"task-1", b"x-interaction-type": b"conversation-subagent"},
        UNREAD,
        "task-1",
        None,
        None,
        {},
    ),
    "Copilot's subagent by its parent": (
        COPILOT,
        {
            b"x-agent-task-id": b"task-1",
            b"x-parent-agent-id": b"task-0",
            b"x-interaction-id": b"i-1",
            b"x-github-repository-nwo": b"acme/app",
        },
        UNREAD,
        "task-1",
        "i-1",
        "acme/app",
        {"parent_agent_id": "task-0"},
    ),
    "Copilot in an editor, whose task is each request": (
        "GitHub Copilot (VS Code)",
        {b"x-agent-task-id": b"request-1", b"x-interaction-id": b"i-1"},
        UNREAD,
        None,
        None,
        None,
        {},
    ),
    "OpenCode's subagent": (
        "OpenCode",
        {b"x-session-id": b"ses_2", b"x-parent-session-id": b"ses_1"},
        DIRECTORY,
        "ses_2",
        None,
        "/src/app",
        {"branch": "main", "parent_agent_id": "ses_1"},
    ),
    "values that are long and have control characters": (
        "Claude Code",
        {b"x-claude-code-agent-id": b"a\x1b[31m\r\n" + b"b" * 1000},
        replace(UNREAD, surroundings=Surroundings("/" + "d" * 5000, None)),
        "a[31m" + "b" * (MAX_ID - 5),
        None,
        "/" + "d" * (MAX_PROJECT - 1),
        {},
    ),
}

BY_NAME = {program.name: program for program in (*reversed(clients.PROGRAMS), clients.program({}))}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_is_known_by_its_headers(case: str) -> None:
    headers, name = PROGRAMS[case]
    assert clients.program(headers).name == name


@pytest.mark.parametrize("case", SESSIONS)
def test_a_session_is_the_programs_own(case: str) -> None:
    name, headers, user_id, session = SESSIONS[case]
    reading = replace(UNREAD, metadata_user_id=user_id)
    assert clients.session_id(BY_NAME[name], headers, reading) == session


def test_a_conversation_of_openai_is_a_session_where_the_program_has_none() -> None:
    reading = replace(UNREAD, conversation="conv_1")
    assert clients.session_id(BY_NAME["Unknown"], {}, reading) == "conv_1"
    assert clients.session_id(BY_NAME["Codex"], {b"session-id": b"c-1"}, reading) == "c-1"


@pytest.mark.parametrize("case", CLASSES)
def test_every_request_has_one_class(case: str) -> None:
    name, headers, reading, has_tools, request_class = CLASSES[case]
    sender = clients.sender(headers | agent_of(name), reading, has_tools=has_tools)
    assert (sender.client, sender.request_class) == (name, request_class)


@pytest.mark.parametrize("case", SAID)
def test_what_a_client_says_about_its_request_is_read(case: str) -> None:
    name, headers, reading, agent_id, prompt_id, project, details = SAID[case]
    sender = clients.sender(headers | agent_of(name), reading, has_tools=True)
    assert (sender.client, sender.agent_id, sender.prompt_id) == (name, agent_id, prompt_id)
    assert (sender.project, sender.details) == (project, details)


def agent_of(name: str) -> Headers:
    agents = BY_NAME[name].agents
    return {b"user-agent": agents[0]} if agents else {}


def test_every_program_is_in_the_table() -> None:
    assert {name for _, name in PROGRAMS.values()} == set(BY_NAME)


NAMES = sorted({header for p in clients.PROGRAMS for header in (*p.session_headers, *p.markers)})
SAYING = (
    *(b"x-interaction-type", b"x-claude-code-request-class", b"x-claude-code-agent-id", b"x-codex-turn-metadata"),
    *(b"x-openai-subagent", b"x-initiator", b"x-parent-session-id", b"x-agent-task-id", b"thread-id"),
)
HEADERS = st.dictionaries(
    st.sampled_from([b"user-agent", b"originator", *SAYING, *NAMES]),
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
TURNS = st.dictionaries(
    st.sampled_from(["workspaces", "turn_id", "thread_id", "parent_thread_id", "branch", "cwd", "request_kind"]),
    JSON | st.dictionaries(st.text(max_size=5), st.fixed_dictionaries({"associated_remote_urls": JSON})),
).map(json.dumps)


@given(headers=HEADERS, user_id=USER_IDS, turn=TURNS | st.text(max_size=20), has_tools=st.booleans())
def test_whatever_a_client_says_is_short_and_printable(
    headers: Headers, user_id: str | None, turn: str, has_tools: bool
) -> None:
    metadata = {"x-codex-turn-metadata": turn}
    sender = clients.sender(
        headers, replace(UNREAD, metadata_user_id=user_id, client_metadata=metadata), has_tools=has_tools
    )
    for value in (sender.session_id, sender.agent_id, sender.prompt_id, sender.project, *sender.details.values()):
        assert value is None or (value.strip() == value and value.isprintable() and 0 < len(value) <= MAX_PROJECT)


def test_a_user_id_that_is_nested_without_end_is_none() -> None:
    reading = replace(UNREAD, metadata_user_id="[" * 100_000)
    assert clients.session_id(BY_NAME["Claude Code"], {}, reading) is None
