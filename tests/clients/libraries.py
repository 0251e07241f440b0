"""SDKs and frameworks, each in a small program of ours that does what the case's name says."""

from __future__ import annotations

from tests.clients.entry import Client
from tests.clients.installs import Go, Maven, Npm, Venv

ANTHROPIC = {"ANTHROPIC_API_KEY": "sk-ant-matrix-0123456789"}
OPENAI = {"OPENAI_API_KEY": "sk-matrix-0123456789"}
ANTHROPIC_URL = {"ANTHROPIC_BASE_URL": "$url/anthropic"}
OPENAI_URL = {"OPENAI_BASE_URL": "$url/openai/v1"}
BUNDLE = {"SSL_CERT_FILE": "$bundle"}
AWS = {
    "AWS_ACCESS_KEY_ID": "AKIAMATRIX0123456789",
    "AWS_SECRET_ACCESS_KEY": "matrix-secret-0123456789",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}
NODE_CA = {"NODE_EXTRA_CA_CERTS": "$ca"}
NODE = ("node", "--import", "$home/proxied.mjs")
UNDICI = {"undici": "7.30.2"}
"""Node 20's own fetch ignores HTTPS_PROXY."""
VERCEL = Npm({"ai": "7.0.173", "@ai-sdk/anthropic": "4.0.105", "@ai-sdk/openai": "4.0.118", **UNDICI})
JAVA = ("java", "-cp", "$installed/classes:$installed/lib/*")
JAVA_CA = {"JAVA_TOOL_OPTIONS": "-Djavax.net.ssl.trustStore=$truststore -Djavax.net.ssl.trustStorePassword=changeit"}

LIBRARIES = (
    Client(
        name="anthropic SDK, Python",
        install=Venv({"anthropic": "2.14.0"}),
        command=("$bin/python", "$programs/anthropic_sdk.py", "$case", "$prompt"),
        dialect="messages",
        env=ANTHROPIC,
        proxy=BUNDLE,
        gateway=ANTHROPIC_URL,
    ),
    Client(
        name="openai SDK, Python, Responses",
        install=Venv({"openai": "3.57.0"}),
        command=("$bin/python", "$programs/openai_responses.py", "$case", "$prompt"),
        dialect="responses",
        env=OPENAI,
        proxy=BUNDLE,
        gateway=OPENAI_URL,
    ),
    Client(
        name="openai SDK, Python, Chat Completions",
        install=Venv({"openai": "3.57.0"}),
        command=("$bin/python", "$programs/openai_chat.py", "$case", "$prompt"),
        dialect="chat_completions",
        env=OPENAI,
        proxy=BUNDLE,
        gateway=OPENAI_URL,
    ),
    Client(
        name="LangChain, Anthropic",
        install=Venv({"langchain": "1.5.2", "langchain-anthropic": "1.7.10"}),
        command=("$bin/python", "$programs/langchain_client.py", "anthropic:claude-sonnet-4-5", "$case", "$prompt"),
        dialect="messages",
        env=ANTHROPIC,
        proxy=BUNDLE,
        gateway=ANTHROPIC_URL,
    ),
    Client(
        name="LangChain, OpenAI",
        install=Venv({"langchain": "1.5.2", "langchain-openai": "1.7.4"}),
        command=("$bin/python", "$programs/langchain_client.py", "openai:gpt-4.1", "$case", "$prompt"),
        dialect="chat_completions",
        env=OPENAI,
        proxy=BUNDLE,
        gateway=OPENAI_URL,
    ),
    Client(
        name="pydantic-ai, Anthropic",
        install=Venv({"pydantic-ai-slim[anthropic]": "2.68.0"}),
        command=("$bin/python", "$programs/pydantic_ai_client.py", "anthropic:claude-sonnet-4-5", "$case", "$prompt"),
        dialect="messages",
        env=ANTHROPIC,
        proxy=BUNDLE,
        gateway=ANTHROPIC_URL,
    ),
    Client(
        name="pydantic-ai, OpenAI",
        install=Venv({"pydantic-ai-slim[openai]": "2.68.0"}),
        command=("$bin/python", "$programs/pydantic_ai_client.py", "openai-chat:gpt-4.1", "$case", "$prompt"),
        dialect="chat_completions",
        env=OPENAI,
        proxy=BUNDLE,
        gateway=OPENAI_URL,
    ),
    Client(
        name="boto3, Converse",
        install=Venv({"boto3": "1.44.8"}),
        command=("$bin/python", "$programs/boto3_client.py", "$case", "$prompt"),
        dialect="converse",
        env=AWS,
        proxy={"AWS_CA_BUNDLE": "$bundle"},
        gateway={"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "$url/bedrock"},
        signed=True,
    ),
    Client(
        name="anthropic SDK, Node",
        install=Npm({"@anthropic-ai/sdk": "1.14.0", **UNDICI}),
        command=(*NODE, "$home/anthropic_sdk.mjs", "$case", "$prompt"),
        programs=("anthropic_sdk.mjs", "proxied.mjs"),
        dialect="messages",
        env=ANTHROPIC,
        proxy=NODE_CA,
        gateway=ANTHROPIC_URL,
    ),
    Client(
        name="openai SDK, Node, Responses",
        install=Npm({"openai": "7.59.0", **UNDICI}),
        command=(*NODE, "$home/openai_responses.mjs", "$case", "$prompt"),
        programs=("openai_responses.mjs", "proxied.mjs"),
        dialect="responses",
        env=OPENAI,
        proxy=NODE_CA,
        gateway=OPENAI_URL,
    ),
    Client(
        name="openai SDK, Node, Chat Completions",
        install=Npm({"openai": "7.59.0", **UNDICI}),
        command=(*NODE, "$home/openai_chat.mjs", "$case", "$prompt"),
        programs=("openai_chat.mjs", "proxied.mjs"),
        dialect="chat_completions",
        env=OPENAI,
        proxy=NODE_CA,
        gateway=OPENAI_URL,
    ),
    Client(
        name="Vercel AI SDK, Anthropic",
        install=VERCEL,
        command=(*NODE, "$home/vercel_ai.mjs", "anthropic", "$case", "$prompt"),
        programs=("vercel_ai.mjs", "proxied.mjs"),
        dialect="messages",
        env=ANTHROPIC,
        proxy=NODE_CA,
        gateway={"ANTHROPIC_BASE_URL": "$url/anthropic/v1"},
    ),
    Client(
        name="Vercel AI SDK, OpenAI",
        install=VERCEL,
        command=(*NODE, "$home/vercel_ai.mjs", "openai", "$case", "$prompt"),
        programs=("vercel_ai.mjs", "proxied.mjs"),
        dialect="responses",
        env=OPENAI,
        proxy=NODE_CA,
        gateway=OPENAI_URL,
    ),
    Client(
        name="anthropic SDK, Go",
        install=Go({"github.com/anthropics/anthropic-sdk-go": "1.84.0"}, source="anthropic_sdk.go"),
        command=("$installed/program", "$case", "$prompt"),
        dialect="messages",
        env=ANTHROPIC,
        proxy=BUNDLE,
        gateway=ANTHROPIC_URL,
    ),
    Client(
        name="openai SDK, Go",
        install=Go({"github.com/openai/openai-go/v3": "3.99.0"}, source="openai_sdk.go"),
        command=("$installed/program", "$case", "$prompt"),
        dialect="chat_completions",
        env=OPENAI,
        proxy=BUNDLE,
        gateway=OPENAI_URL,
    ),
    Client(
        name="anthropic SDK, Java",
        install=Maven({"com.anthropic:anthropic-java": "3.14.0"}, source="AnthropicSdk.java"),
        command=(*JAVA, "AnthropicSdk", "$case", "$prompt"),
        dialect="messages",
        env=ANTHROPIC,
        proxy=JAVA_CA,
        gateway=ANTHROPIC_URL,
    ),
    Client(
        name="openai SDK, Java",
        install=Maven({"com.openai:openai-java": "4.101.0"}, source="OpenaiSdk.java"),
        command=(*JAVA, "OpenaiSdk", "$case", "$prompt"),
        dialect="chat_completions",
        env=OPENAI,
        proxy=JAVA_CA,
        gateway=OPENAI_URL,
    ),
)
