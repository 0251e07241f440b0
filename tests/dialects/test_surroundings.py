"""The directory and the branch of a coding agent, in the system prompts that real clients send."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.dialects import CHAT_COMPLETIONS, CONVERSE, INVOKE, MESSAGES, RESPONSES
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.surroundings import MAX_TEXTS, MAX_VALUE, UNSEEN, Surroundings, surroundings
from aibridge_addon.wire.json_object import JSONObject

CLAUDE = """
# Environment
You have been invoked in the following environment:
 - Primary working directory: /src/app
 - Additional working directories: /tmp
 - Platform: linux

gitStatus: This is the git status at the start of the conversation.
Current branch: feature/x

Main branch (you will usually use this for PRs): main
"""
OLDER = "<env>\nWorking directory: /src/app\nIs directory a git repo: Yes\n</env>"

TEXTS: dict[str, tuple[object, Surroundings]] = {
    "Claude Code": (CLAUDE, Surroundings("/src/app", "feature/x")),
    "an older Claude Code": (OLDER, Surroundings("/src/app")),
    "OpenCode": ("<env>\n  Working directory: /src/app\n</env>", Surroundings("/src/app")),
    "Copilot": ("* Current working directory: /src/app\r\n* x", Surroundings("/src/app")),
    "Windows": (r"Working directory: C:\src\app", Surroundings("C:\\src\\app")),
    "in two blocks": (
        [{"type": "text", "text": OLDER}, {"type": "text", "text": "Current branch: main"}],
        Surroundings("/src/app", "main"),
    ),
    "in the middle of a line": ("Your Working directory: /src/app", UNSEEN),
    "additional directories only": (" - Additional working directories: /tmp", UNSEEN),
    "without a value": ("Working directory: \nCurrent branch:", UNSEEN),
    "a long value": ("Working directory: /" + "x" * 5000, Surroundings("/" + "x" * (MAX_VALUE - 1))),
    "after many blocks": ([{"text": ""}] * MAX_TEXTS + [{"text": OLDER}], UNSEEN),
    "no text": (7, UNSEEN),
    "blocks without text": ([7, None, {"text": []}], UNSEEN),
}

ENVIRONMENT = "<environment_context>\n  <cwd>/src/app</cwd>\n  <shell>bash</shell>\n</environment_context>"
AGENTS = "# AGENTS.md instructions for /src/app\n\n<INSTRUCTIONS>\nBe kind.\n</INSTRUCTIONS>"
USER = {"role": "user", "content": CLAUDE}
REQUESTS: dict[str, tuple[Dialect, dict[str, Any], bool]] = {
    "messages, a text": (MESSAGES, {"system": CLAUDE}, True),
    "messages, blocks": (MESSAGES, {"system": [{"type": "text", "text": CLAUDE}]}, True),
    "messages, a person's words": (MESSAGES, {"messages": [USER]}, False),
    "invoke": (INVOKE, {"system": CLAUDE}, True),
    "converse": (CONVERSE, {"system": [{"text": CLAUDE}, {"cachePoint": {"type": "default"}}]}, True),
    "chat, a system message": (CHAT_COMPLETIONS, {"messages": [{"role": "system", "content": CLAUDE}]}, True),
    "chat, a developer's parts": (
        CHAT_COMPLETIONS,
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": CLAUDE}]}, USER]},
        True,
    ),
    "chat, after a person's words": (
        CHAT_COMPLETIONS,
        {"messages": [USER, {"role": "system", "content": CLAUDE}]},
        False,
    ),
    "responses, instructions": (RESPONSES, {"instructions": CLAUDE, "input": "hi"}, True),
    "responses, a developer's message": (
        RESPONSES,
        {"input": [{"role": "developer", "content": [{"type": "input_text", "text": CLAUDE}]}]},
        True,
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_directory_and_branch_are_lines_of_their_own(case: str) -> None:
    content, expected = TEXTS[case]
    assert surroundings(content) == expected


@pytest.mark.parametrize("case", REQUESTS)
def test_only_a_system_prompt_is_searched(case: str) -> None:
    dialect, body, found = REQUESTS[case]
    reading = dialect.read_request(JSONObject(json.dumps(body).encode()))
    assert reading.surroundings == (Surroundings("/src/app", "feature/x") if found else UNSEEN)


def user(*texts: str, kind: str = "input_text") -> dict[str, Any]:
    return {"role": "user", "content": [{"type": kind, "text": text} for text in texts]}


PROMPT = user("Fix it.")
DEVELOPER = {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}

CODEX: dict[str, tuple[dict[str, Any], str | None]] = {
    "a message of its own": ({"input": [user(ENVIRONMENT), PROMPT]}, "/src/app"),
    "after instructions": ({"input": [DEVELOPER, user(AGENTS, ENVIRONMENT), PROMPT]}, "/src/app"),
    "instructions in the same text": ({"input": [user(f"{AGENTS}\n{ENVIRONMENT}"), PROMPT]}, "/src/app"),
    "a content that is a text": ({"input": [{"role": "user", "content": ENVIRONMENT}, PROMPT]}, "/src/app"),
    "beside a system prompt": ({"instructions": OLDER, "input": [user(ENVIRONMENT.replace("app", "b"))]}, "/src/app"),
    "a directory after the surroundings": ({"input": [user("<environment_context></cwd>"), PROMPT]}, None),
    "instructions with a directory": (
        {"input": [user(f"{AGENTS[:-15]}</cwd>{AGENTS[-15:]}\n{ENVIRONMENT}")]},
        "/src/app",
    ),
    "without a directory": ({"input": [user("<environment_context>x</environment_context>")]}, None),
    "without an end": ({"input": [user("<environment_context><cwd>/src/app")]}, None),
    "a blank directory": ({"input": [user("<environment_context><cwd> </cwd></environment_context>")]}, None),
    "a directory that a person quotes": ({"input": [user("what is <cwd>/src/app</cwd>?")]}, None),
    "surroundings that a person quotes": ({"input": [user(f"what is {ENVIRONMENT}")]}, None),
    "a tool's result": ({"input": [{"type": "function_call_output", "output": ENVIRONMENT}]}, None),
    "late in a conversation": ({"input": [PROMPT] * MAX_TEXTS + [user(ENVIRONMENT)]}, None),
    "an input that is a text": ({"input": ENVIRONMENT}, None),
}


@pytest.mark.parametrize("case", CODEX)
def test_codex_names_its_directory_in_a_message_of_the_user(case: str) -> None:
    body, directory = CODEX[case]
    reading = RESPONSES.read_request(JSONObject(json.dumps(body).encode()))
    assert reading.surroundings.directory == directory


def test_codex_names_its_directory_in_a_chat_as_well() -> None:
    body = {"messages": [{"role": "system", "content": "x"}, user(ENVIRONMENT, kind="text"), user("hi", kind="text")]}
    reading = CHAT_COMPLETIONS.read_request(JSONObject(json.dumps(body).encode()))
    assert reading.surroundings == Surroundings("/src/app")


def test_what_a_responses_request_says_of_its_session_is_read() -> None:
    body = {
        "input": "hi",
        "previous_response_id": "resp_1",
        "conversation": {"id": "conv_1"},
        "client_metadata": {"turn_id": "u1", "n": 1},
    }
    reading = RESPONSES.read_request(JSONObject(json.dumps(body).encode()))
    assert (reading.previous_response_id, reading.conversation) == ("resp_1", "conv_1")
    assert reading.client_metadata == {"turn_id": "u1"}
    text = RESPONSES.read_request(JSONObject(b'{"input":"hi","conversation":"conv_2","client_metadata":[1]}'))
    assert (text.previous_response_id, text.conversation, text.client_metadata) == (None, "conv_2", {})
