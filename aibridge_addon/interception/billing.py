"""Decide who pays for a request: an API key's account, or a subscription whose login was used.

The provider's type and the form of the credential decide. Of the credential, nothing is kept.
"""

from __future__ import annotations

from aibridge_addon.interception.routing import Route
from aibridge_addon.records import Billing

LOGIN = "sk-ant-oat"
"""Beginning of the tokens of a login at Anthropic."""
API_KEYS = ("sk-", "xai-", "gsk_", "AIza")
"""Beginnings of API keys: Anthropic, OpenAI, OpenRouter, DeepSeek; xAI; Groq; Google."""
CHATGPT = "/backend-api/"
"""Beginning of the paths of ChatGPT's backend, which accepts logins only."""


def billing(route: Route, credential: str | None) -> Billing | None:
    """Return who pays for a request with this credential; None if that is not known."""
    if not credential:
        return None
    if route.type.billing is not None:
        return route.type.billing
    if credential.startswith(LOGIN):
        return "subscription"
    if credential.startswith(API_KEYS):
        return "api"
    return "subscription" if route.target.startswith(CHATGPT) and _is_jwt(credential) else None


def _is_jwt(credential: str) -> bool:
    """Return whether a credential is a JSON web token (RFC 7519): an encoded JSON object and two more parts."""
    return credential.startswith("eyJ") and credential.count(".") == 2
