"""Coding agents and other programs, run without a terminal."""

from __future__ import annotations

from tests.clients.entry import Client, shell
from tests.clients.installs import Npm

CLAUDE = {
    "ANTHROPIC_API_KEY": "sk-ant-matrix-0123456789",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_MAX_RETRIES": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
}

AGENTS = (
    Client(
        name="Claude Code",
        install=Npm({"@anthropic-ai/claude-code": "2.1.332"}),
        command=("$bin/claude", "--allowedTools", "Bash(echo:*)", "-p", "$prompt"),
        dialect="messages",
        recorded_as="Claude Code",
        tool=shell("Bash", description="Print a word"),
        env=CLAUDE,
        proxy={"NODE_EXTRA_CA_CERTS": "$ca"},
        gateway={"ANTHROPIC_BASE_URL": "$url/anthropic"},
        interrupted=True,
    ),
)
