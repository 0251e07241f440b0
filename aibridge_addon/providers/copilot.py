"""GitHub Copilot: `api.{individual,business,enterprise}.githubcopilot.com`; a token per user, all three dialects."""

from aibridge_addon.dialects import CHAT_COMPLETIONS, MESSAGES, RESPONSES
from aibridge_addon.providers.base import DefaultProvider, ProviderType, bridged, passthrough

COPILOT = ProviderType(
    name="copilot",
    prefix="",
    bridged=(
        bridged("/chat/completions", CHAT_COMPLETIONS),
        bridged("/responses", RESPONSES),
        bridged("/v1/messages", MESSAGES),
    ),
    passthrough=(
        passthrough("/models"),
        passthrough("/models/*"),
        passthrough("/agents/*"),
        passthrough("/mcp/*"),
        passthrough("/.well-known/*"),
        passthrough("/_ping"),
        passthrough("/auto"),
    ),
    error_dialect=RESPONSES,
    defaults=(
        DefaultProvider("copilot", ("api.individual.githubcopilot.com", "api.githubcopilot.com")),
        DefaultProvider("copilot-business", ("api.business.githubcopilot.com",)),
        DefaultProvider("copilot-enterprise", ("api.enterprise.githubcopilot.com",)),
    ),
    vendor="github-copilot",
    credential_headers=(b"authorization",),
    refuses_central_key="Copilot knows each user by their own token, which is passed through",
)
