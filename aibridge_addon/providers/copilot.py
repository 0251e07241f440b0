"""GitHub Copilot: `api.{individual,business,enterprise}.githubcopilot.com`; a token per user, all three dialects."""

import re

from aibridge_addon.credentials.identity import Login, field_person
from aibridge_addon.dialects import CHAT_COMPLETIONS, COMPACT, COMPLETIONS, MESSAGES, RESPONSES, USAGE_ONLY
from aibridge_addon.providers.base import (
    DefaultProvider,
    ProviderType,
    background_routes,
    bridged,
    counting,
    others,
    passthrough,
)

SESSION_TOKEN = Login(re.compile(r"api\.(?:[a-z]+\.)?githubcopilot\.com"), field_person("tid"))
"""The token of an editor, which is valid for less than an hour. `tid` is the user's tracking id."""

COPILOT = ProviderType(
    name="copilot",
    prefix="",
    bridged=(
        bridged("/chat/completions", CHAT_COMPLETIONS),
        bridged("/responses", RESPONSES),
        bridged("/v1/messages", MESSAGES),
        bridged("/responses/compact", COMPACT, central_key=False),
        bridged("/embeddings", USAGE_ONLY, central_key=False),
        bridged("/completions", COMPLETIONS, central_key=False),
    ),
    passthrough=(
        passthrough("/models"),
        passthrough("/models/*"),
        passthrough("/agents/*", billable=True),
        passthrough("/mcp/*"),
        passthrough("/.well-known/*"),
        passthrough("/_ping"),
        passthrough("/auto"),
        counting("/v1/messages/count_tokens", MESSAGES, central_key=False),
        counting("/responses/input_tokens", RESPONSES, central_key=False),
        *others("/responses/*", "/telemetry"),
    ),
    results=background_routes(),
    error_dialect=RESPONSES,
    defaults=(
        DefaultProvider("copilot", ("api.individual.githubcopilot.com", "api.githubcopilot.com")),
        DefaultProvider("copilot-business", ("api.business.githubcopilot.com",)),
        DefaultProvider("copilot-enterprise", ("api.enterprise.githubcopilot.com",)),
    ),
    vendor="github-copilot",
    credential_headers=(b"authorization",),
    logins=(SESSION_TOKEN,),
    billing="subscription",
    refuses_central_key="Copilot knows each user by their own token, which is passed through",
)
