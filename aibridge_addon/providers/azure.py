"""Azure OpenAI and Azure AI Foundry: deployment paths, `/openai/v1`, and Anthropic models under `/anthropic`."""

import re

from aibridge_addon.credentials.identity import Login, jwt_person
from aibridge_addon.dialects import CHAT_COMPLETIONS, COMPACT, FILE_OF_RESULTS, MESSAGES, RESPONSES
from aibridge_addon.providers.base import (
    DefaultProvider,
    ProviderType,
    background_routes,
    bridged,
    counting,
    others,
    passthrough,
    query_value,
    result,
    usage_routes,
)

STREAM_OPTIONS_SINCE = "2024-09-01"
"""The first `api-version` that supports `stream_options` (Azure OpenAI, "API version lifecycle")."""


def may_ask_chat_usage(query: str) -> bool:
    version = query_value(query, "api-version")
    if version is None or not re.match(r"\d{4}-\d{2}-\d{2}", version):
        return True  # the v1 API has no dated version
    return version[:10] >= STREAM_OPTIONS_SINCE


ENTRA = Login(
    re.compile(r"[^.]+\.(?:openai\.azure\.com|cognitiveservices\.azure\.com|services\.ai\.azure\.com)"),
    jwt_person(
        r"https://(?:login\.microsoftonline\.com/[^/]+/v2\.0|sts\.windows\.net/[^/]+/)",
        ("tid",),
        ("oid",),
    ),
)
"""A Microsoft Entra token, which is valid for about an hour: tenant and object id."""

AZURE = ProviderType(
    name="azure",
    prefix="",
    bridged=(
        bridged("/openai/deployments/{id}/chat/completions", CHAT_COMPLETIONS),
        bridged("/openai/v1/chat/completions", CHAT_COMPLETIONS),
        bridged("/openai/responses", RESPONSES),
        bridged("/openai/v1/responses", RESPONSES),
        bridged("/anthropic/v1/messages", MESSAGES),
        bridged("/openai/responses/compact", COMPACT),
        bridged("/openai/v1/responses/compact", COMPACT),
        *usage_routes(path="/openai/deployments/{id}", names_model=True),
        *usage_routes(path="/openai/v1"),
    ),
    passthrough=(
        passthrough("/openai/models"),
        passthrough("/openai/v1/models"),
        counting("/openai/responses/input_tokens", RESPONSES),
        counting("/openai/v1/responses/input_tokens", RESPONSES),
        passthrough("/openai/responses/*"),
        passthrough("/openai/v1/responses/*"),
        counting("/anthropic/v1/messages/count_tokens", MESSAGES, central_key=False),
        *others(
            *("/openai/files", "/openai/files/*", "/openai/v1/files", "/openai/v1/files/*"),
            *("/openai/batches/*", "/openai/v1/batches/*"),
        ),
        *others("/openai/batches", "/openai/v1/batches", billable=True),
    ),
    results=(
        *background_routes(path="/openai"),
        *background_routes(path="/openai/v1"),
        result("GET", "/openai/files/{id}/content", "batch", FILE_OF_RESULTS, central_key=False),
        result("GET", "/openai/v1/files/{id}/content", "batch", FILE_OF_RESULTS, central_key=False),
    ),
    error_dialect=RESPONSES,
    defaults=(
        DefaultProvider(
            "azure",
            (
                *("*.openai.azure.com", "*.cognitiveservices.azure.com", "*.services.ai.azure.com"),
                # Azure Government
                *("*.openai.azure.us", "*.cognitiveservices.azure.us", "*.services.ai.azure.us"),
            ),
        ),
    ),
    vendor="azure",
    credential_headers=(b"api-key", b"x-api-key", b"authorization"),
    logins=(ENTRA,),
    key_header="Api-Key",
    messages_key_header="X-Api-Key",
    billing="api",
    may_ask_chat_usage=may_ask_chat_usage,
)
