"""Coding agents and other programs, run without a terminal."""

from __future__ import annotations

import json

from tests.clients.cases import TOOL_OUTPUT
from tests.clients.entry import Call, Client, shell
from tests.clients.installs import Npm, Venv

ANTHROPIC_KEY = "sk-ant-matrix-0123456789"
OPENAI_KEY = "sk-matrix-0123456789"
NODE_CA = {"NODE_EXTRA_CA_CERTS": "$ca"}
CLAUDE = {
    "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_MAX_RETRIES": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
}
CODEX = Npm({"@openai/codex": "0.171.0"})
CODEX_COMMAND = (
    "$bin/codex",
    "exec",
    "--skip-git-repo-check",
    "--dangerously-bypass-approvals-and-sandbox",
    "--disable",
    "plugins",
    "-c",
    "analytics.enabled=false",
    "-m",
    "gpt-5.2-codex",
    "$prompt",
)
CODEX_TOOL = Call("exec_command", {"cmd": f"echo {TOOL_OUTPUT}"})
CODEX_ENV = {"OPENAI_API_KEY": OPENAI_KEY, "CODEX_API_KEY": OPENAI_KEY}
CODEX_CA = {"CODEX_CA_CERTIFICATE": "$ca"}


def codex_provider(url: str, *, websockets: bool) -> tuple[str, ...]:
    members = f'name="OpenAI", base_url="{url}", env_key="OPENAI_API_KEY", wire_api="responses"'
    settings = f"{{{members}, supports_websockets={str(websockets).lower()}}}"
    return "-c", "model_provider=bridge", "-c", f"model_providers.bridge={settings}"


COPILOT = Npm({"@github/copilot": "1.0.102"})
COPILOT_COMMAND = (
    "$bin/copilot",
    "--silent",
    "--allow-all-tools",
    "--allow-all-paths",
    "--disable-builtin-mcps",
    "--no-auto-update",
    "--no-custom-instructions",
    "--prompt",
    "$prompt",
)
COPILOT_TOOL = shell("bash", description="Print a word")

OPENCODE = {
    "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
}

CLINE = Npm({"cline": "3.0.65"})
CLINE_TOOL = Call("run_commands", {"commands": [f"echo {TOOL_OUTPUT}"]})


def opencode_settings(**options: str) -> str:
    return json.dumps({"permission": "allow", "provider": {"anthropic": {"options": options}}})


AGENTS = (
    Client(
        name="Claude Code",
        install=Npm({"@anthropic-ai/claude-code": "2.1.332"}),
        command=("$bin/claude", "--allowedTools", "Bash(echo:*)", "-p", "$prompt"),
        dialect="messages",
        recorded_as="Claude Code",
        tool=shell("Bash", description="Print a word"),
        env=CLAUDE,
        proxy=NODE_CA,
        gateway={"ANTHROPIC_BASE_URL": "$url/anthropic"},
        interrupted=True,
    ),
    Client(
        name="Codex, HTTP",
        install=CODEX,
        command=CODEX_COMMAND,
        dialect="responses",
        recorded_as="Codex",
        tool=CODEX_TOOL,
        env=CODEX_ENV,
        proxy=CODEX_CA,
        proxy_arguments=codex_provider("https://api.openai.com/v1", websockets=False),
        gateway_arguments=codex_provider("$url/openai/v1", websockets=False),
        interrupted=True,
    ),
    Client(
        name="Codex, WebSocket",
        install=CODEX,
        command=CODEX_COMMAND,
        dialect="responses",
        recorded_as="Codex",
        tool=CODEX_TOOL,
        env=CODEX_ENV,
        proxy=CODEX_CA,
        gateway_arguments=codex_provider("$url/openai/v1", websockets=True),
        websockets=True,
        interrupted=True,
    ),
    Client(
        name="Copilot CLI, own key",
        install=COPILOT,
        command=COPILOT_COMMAND,
        dialect="messages",
        recorded_as="GitHub Copilot (CLI)",
        tool=COPILOT_TOOL,
        env={
            "COPILOT_MODEL": "claude-sonnet-4-5",
            "COPILOT_PROVIDER_API_KEY": ANTHROPIC_KEY,
            "COPILOT_PROVIDER_TYPE": "anthropic",
        },
        proxy=NODE_CA | {"COPILOT_PROVIDER_BASE_URL": "https://api.anthropic.com"},
        gateway={"COPILOT_PROVIDER_BASE_URL": "$url/anthropic"},
        interrupted=True,
    ),
    Client(
        name="Copilot CLI, GitHub login",
        install=COPILOT,
        command=COPILOT_COMMAND,
        dialect="messages",
        recorded_as="GitHub Copilot (CLI)",
        tool=COPILOT_TOOL,
        env={"COPILOT_GITHUB_TOKEN": "github_pat_matrix", "COPILOT_MODEL": "claude-sonnet-4.5"},
        proxy=NODE_CA,
        ways=("proxy",),
        without_way="it has no setting for a base URL",
        interrupted=True,
    ),
    Client(
        name="OpenCode",
        install=Npm({"opencode-ai": "1.18.33"}),
        command=("$bin/opencode", "run", "-m", "anthropic/claude-sonnet-4-5", "$prompt"),
        dialect="messages",
        recorded_as="OpenCode",
        tool=shell("bash", description="Print a word"),
        env=OPENCODE,
        proxy=NODE_CA | {"OPENCODE_CONFIG_CONTENT": opencode_settings()},
        gateway={"OPENCODE_CONFIG_CONTENT": opencode_settings(baseURL="$url/anthropic/v1")},
        interrupted=True,
    ),
    Client(
        name="Cline CLI, Anthropic",
        install=CLINE,
        command=("$bin/cline", "-P", "anthropic", "-k", ANTHROPIC_KEY, "-m", "claude-sonnet-4-5", "$prompt"),
        dialect="messages",
        tool=CLINE_TOOL,
        proxy=NODE_CA,
        ways=("proxy",),
        without_way="it takes a base URL for OpenAI-compatible providers only",
        interrupted=True,
    ),
    Client(
        name="Cline CLI, OpenAI-compatible",
        install=CLINE,
        command=(
            *("sh", "-c"),
            f"$bin/cline auth -p openai-compatible -k {OPENAI_KEY} -m gpt-4.1 -b $$BASE_URL >&2 &&"
            ' exec $bin/cline -P openai-compatible -m gpt-4.1 "$$0"',
            "$prompt",
        ),
        dialect="chat_completions",
        tool=CLINE_TOOL,
        proxy=NODE_CA | {"BASE_URL": "https://api.openai.com/v1"},
        gateway={"BASE_URL": "$url/openai/v1"},
        interrupted=True,
        time_limit=120,
    ),
    Client(
        name="llm",
        install=Venv({"llm": "0.36", "llm-anthropic": "0.30"}),
        command=(
            "$bin/llm",
            "-m",
            "claude-sonnet-4.5",
            "--functions",
            f"def get_weather(city: str):\n    return '{TOOL_OUTPUT}'",
            "$prompt",
        ),
        dialect="messages",
        env={"ANTHROPIC_API_KEY": ANTHROPIC_KEY},
        proxy={"SSL_CERT_FILE": "$bundle"},
        gateway={"ANTHROPIC_BASE_URL": "$url/anthropic"},
        interrupted=True,
    ),
    Client(
        name="aider",
        install=Venv({"aider-chat": "0.86.2"}, python="3.12"),
        command=(
            "$bin/aider",
            "--yes-always",
            "--no-git",
            "--no-check-update",
            "--no-show-model-warnings",
            "--analytics-disable",
            "--model",
            "anthropic/claude-sonnet-4-5",
            "--message",
            "$prompt",
        ),
        dialect="messages",
        tool=None,
        model="claude-sonnet-4-5",
        env={"ANTHROPIC_API_KEY": ANTHROPIC_KEY},
        proxy={"SSL_CERT_FILE": "$bundle"},
        gateway={"ANTHROPIC_BASE_URL": "$url/anthropic"},
        interrupted=True,
    ),
)
