"""OpenAI, ChatGPT's Codex backend, and other vendors with OpenAI's API under base URLs of their own."""

import re

from aibridge_addon.credentials.identity import Login, jwt_person
from aibridge_addon.dialects import CHAT_COMPLETIONS, COMPACT, FILE_OF_RESULTS, RESPONSES
from aibridge_addon.providers.base import (
    DefaultProvider,
    ProviderType,
    background_routes,
    bridged,
    counting,
    https,
    others,
    passthrough,
    result,
    usage_routes,
)

CHATGPT = Login(
    re.compile(r"chatgpt\.com"),
    jwt_person(
        r"https://auth\.openai\.com/?",
        ("sub",),
        ("https://api.openai.com/auth", "chatgpt_account_id"),
    ),
)
"""A ChatGPT login of Codex. Its account is the workspace that pays."""

REGIONAL = tuple(f"{region}.api.openai.com" for region in ("eu", "us", "in", "jp", "au", "ae"))
"""Hosts of OpenAI's data residency (API documentation, "Data residency")."""

OPENAI = ProviderType(
    name="openai",
    prefix="/v1",
    bridged=(
        bridged("/chat/completions", CHAT_COMPLETIONS, prefix="/v1"),
        bridged("/responses", RESPONSES, prefix="/v1"),
        bridged("/responses/compact", COMPACT, prefix="/v1"),
        *usage_routes("/v1"),
    ),
    passthrough=(
        passthrough("/conversations", prefix="/v1"),
        passthrough("/conversations/*", prefix="/v1"),
        passthrough("/models", prefix="/v1"),
        passthrough("/models/*", prefix="/v1"),
        counting("/responses/input_tokens", RESPONSES, prefix="/v1"),
        passthrough("/responses/*", prefix="/v1"),
        *others(
            *("/files", "/files/*", "/uploads", "/uploads/*", "/batches/*", "/organization/*"),
            *("/assistants", "/assistants/*", "/realtime/client_secrets", "/realtime/sessions"),
            prefix="/v1",
        ),
        *others(
            *(
                "/batches",
                "/fine_tuning/*",
                "/videos",
                "/videos/*",
                "/realtime",
                "/realtime/*",
                "/threads",
                "/threads/*",
            ),
            *("/vector_stores", "/vector_stores/*", "/containers", "/containers/*"),
            *("/evals", "/evals/*"),
            prefix="/v1",
            billable=True,
        ),
    ),
    results=(
        *background_routes("/v1"),
        result("GET", "/files/{id}/content", "batch", FILE_OF_RESULTS, prefix="/v1", central_key=False),
    ),
    error_dialect=RESPONSES,
    defaults=(
        DefaultProvider("openai", ("api.openai.com", *REGIONAL), https("api.openai.com", "/v1")),
        DefaultProvider("chatgpt", ("chatgpt.com",), https("chatgpt.com", "/backend-api/codex")),
        DefaultProvider(
            "openrouter",
            ("openrouter.ai", "eu.openrouter.ai", "us.openrouter.ai"),
            https("openrouter.ai", "/api/v1"),
        ),
        DefaultProvider("xai", ("api.x.ai", "us.api.x.ai"), https("api.x.ai", "/v1")),
        DefaultProvider("mistral", ("api.mistral.ai", "api.eu.mistral.ai"), https("api.mistral.ai", "/v1")),
        DefaultProvider("deepseek", ("api.deepseek.com",), https("api.deepseek.com")),
        DefaultProvider("groq", ("api.groq.com",), https("api.groq.com", "/openai/v1")),
        DefaultProvider(
            "gemini",
            ("generativelanguage.googleapis.com",),
            https("generativelanguage.googleapis.com", "/v1beta/openai"),
        ),
    ),
    vendor=None,  # anyone may serve this format
    credential_headers=(b"authorization",),
    logins=(CHATGPT,),
)
