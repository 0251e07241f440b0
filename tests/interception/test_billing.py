"""Who pays for a request: an API key's account, or a subscription. Nothing of a credential is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.config.providers import Provider
from aibridge_addon.interception.billing import billing
from aibridge_addon.interception.routing import Route
from aibridge_addon.providers import TYPES
from aibridge_addon.records import Billing

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2VyIn0.c2lnbmF0dXJl"
CODEX = "/backend-api/codex/responses"

# type, path, credential, who pays
CASES: dict[str, tuple[str, str, str | None, Billing | None]] = {
    "no credential": ("anthropic", "/v1/messages", None, None),
    "an empty credential": ("copilot", "/v1/messages", "", None),
    "Anthropic's key": ("anthropic", "/v1/messages", "sk-ant-api03-x", "api"),
    "Anthropic's login": ("anthropic", "/v1/messages", "sk-ant-oat01-x", "subscription"),
    "another token at Anthropic": ("anthropic", "/v1/messages", "token", None),
    "a JWT at Anthropic": ("anthropic", "/v1/messages", JWT, None),
    "OpenAI's key": ("openai", "/v1/responses", "sk-proj-x", "api"),
    "OpenRouter's key": ("openai", "/api/v1/chat/completions", "sk-or-v1-x", "api"),
    "xAI's key": ("openai", "/v1/chat/completions", "xai-x", "api"),
    "another token at OpenAI": ("openai", "/v1/responses", "sess-x", None),
    "a JWT at OpenAI": ("openai", "/v1/responses", JWT, None),
    "ChatGPT's login": ("openai", CODEX, JWT, "subscription"),
    "a key at ChatGPT": ("openai", CODEX, "sk-x", "api"),
    "another token at ChatGPT": ("openai", CODEX, "token", None),
    "Copilot's token": ("copilot", "/responses", "tid=1;exp=2", "subscription"),
    "GitHub's token": ("copilot", "/responses", "gho_x", "subscription"),
    "Azure's key": ("azure", "/openai/v1/responses", "0123456789abcdef", "api"),
    "Entra's token": ("azure", "/openai/v1/responses", JWT, "api"),
    "AWS's access key": ("bedrock", "/model/m/converse", "AKIAX", "api"),
    "AWS's bearer token": ("bedrock", "/model/m/converse", "bedrock-api-key-x", "api"),
}


def route(kind: str, target: str) -> Route:
    hosts = ("api.test",)
    return Route(Provider(name=kind, type=kind, hosts=hosts), TYPES[kind], None, "/route", None, target)


@pytest.mark.parametrize("case", CASES)
def test_the_provider_and_the_form_of_the_credential_decide(case: str) -> None:
    kind, target, credential, payer = CASES[case]
    assert billing(route(kind, target), credential) == payer


@given(kind=st.sampled_from(sorted(TYPES)), target=st.sampled_from([CODEX, "/"]), credential=st.none() | st.text())
def test_no_credential_makes_it_fail(kind: str, target: str, credential: str | None) -> None:
    assert billing(route(kind, target), credential) in ("api", "subscription", None)
