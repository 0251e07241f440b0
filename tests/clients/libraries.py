"""SDKs and frameworks, each in a small program of ours that does what the case's name says."""

from __future__ import annotations

from tests.clients.entry import Client
from tests.clients.installs import Venv

ANTHROPIC = {"ANTHROPIC_API_KEY": "sk-ant-matrix-0123456789"}
OPENAI = {"OPENAI_API_KEY": "sk-matrix-0123456789"}
ANTHROPIC_URL = {"ANTHROPIC_BASE_URL": "$url/anthropic"}
OPENAI_URL = {"OPENAI_BASE_URL": "$url/openai/v1"}
PYTHON_CA = {"SSL_CERT_FILE": "$bundle"}

LIBRARIES = (
    Client(
        name="anthropic SDK, Python",
        install=Venv({"anthropic": "2.14.0"}),
        command=("$bin/python", "$programs/anthropic_sdk.py", "$case", "$prompt"),
        dialect="messages",
        env=ANTHROPIC,
        proxy=PYTHON_CA,
        gateway=ANTHROPIC_URL,
    ),
    Client(
        name="openai SDK, Python, Responses",
        install=Venv({"openai": "3.57.0"}),
        command=("$bin/python", "$programs/openai_responses.py", "$case", "$prompt"),
        dialect="responses",
        env=OPENAI,
        proxy=PYTHON_CA,
        gateway=OPENAI_URL,
    ),
    Client(
        name="openai SDK, Python, Chat Completions",
        install=Venv({"openai": "3.57.0"}),
        command=("$bin/python", "$programs/openai_chat.py", "$case", "$prompt"),
        dialect="chat_completions",
        env=OPENAI,
        proxy=PYTHON_CA,
        gateway=OPENAI_URL,
    ),
)
