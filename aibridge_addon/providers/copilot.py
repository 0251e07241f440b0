"""GitHub Copilot: `api.{individual,business,enterprise}.githubcopilot.com`; a token per user, all three dialects."""

from aibridge_addon.dialects import CHAT_COMPLETIONS, MESSAGES, RESPONSES
from aibridge_addon.providers.base import ProviderType, bridged, passthrough

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
    credential_headers=(b"authorization",),
)
