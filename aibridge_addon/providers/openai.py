"""OpenAI: `api.openai.com/v1`, and ChatGPT's Codex backend under another base URL."""

import re

from aibridge_addon.credentials.identity import Login, jwt_person
from aibridge_addon.dialects import CHAT_COMPLETIONS, RESPONSES
from aibridge_addon.providers.base import DefaultProvider, ProviderType, bridged, https, passthrough

CHATGPT = Login(
    re.compile(r"chatgpt\.com"),
    jwt_person(
        r"https://auth\.openai\.com/?",
        ("sub",),
        ("https://api.openai.com/auth", "chatgpt_account_id"),
    ),
)
"""A ChatGPT login of Codex. Its account is the workspace that pays."""

OPENAI = ProviderType(
    name="openai",
    prefix="/v1",
    bridged=(
        bridged("/chat/completions", CHAT_COMPLETIONS, prefix="/v1"),
        bridged("/responses", RESPONSES, prefix="/v1"),
    ),
    passthrough=(
        passthrough("/conversations", prefix="/v1"),
        passthrough("/conversations/*", prefix="/v1"),
        passthrough("/models", prefix="/v1"),
        passthrough("/models/*", prefix="/v1"),
        passthrough("/responses/*", prefix="/v1"),
    ),
    error_dialect=RESPONSES,
    defaults=(
        DefaultProvider("openai", ("api.openai.com",), https("api.openai.com", "/v1")),
        DefaultProvider("chatgpt", ("chatgpt.com",), https("chatgpt.com", "/backend-api/codex")),
    ),
    vendor="openai",
    credential_headers=(b"authorization",),
    logins=(CHATGPT,),
)
