"""Who bills for an answer, decided by the host that gave it.

Names are those of the price list. A host that is not in the table has no known vendor, whatever type of provider is
configured for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

NONE = "none"
"""The `price_as` of a provider that is never priced."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "bedrock": "aws",
        "copilot": "github-copilot",
        "gemini": "google",
        "mistralai": "mistral",
        "xai": "x-ai",
    }
)
"""Other names of vendors, and the names in the price list."""

VENDORS = frozenset(
    """anthropic arcee avian aws azure baseten cerebras cloudflare cohere cursor databricks deepseek
    doubleword elevenlabs fireworks github-copilot google groq huggingface_cerebras
    huggingface_fireworks-ai huggingface_groq huggingface_hyperbolic huggingface_nebius
    huggingface_novita huggingface_nscale huggingface_ovhcloud huggingface_publicai
    huggingface_sambanova huggingface_together meta minimax mistral modal moonshotai novita openai
    openai-decisions openrouter ovhcloud perplexity quicksilverpro together typesafe voyageai x-ai zai
    zhipuai""".split()  # noqa: SIM905
)
"""Every vendor of the price list. A constant, because importing the list takes most of a second."""

_AWS_REGION = r"(?P<region>[a-z]{2}(?:-[a-z]+)+-\d+)"
_SERVICE = r"bedrock-(?:runtime|mantle)(?:-fips)?"


class Seller(NamedTuple):
    """Who bills for answers of a host, and the region that the host's name contains."""

    vendor: str
    region: str | None = None


_HOSTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (vendor, re.compile(pattern))
    for vendor, pattern in (
        ("anthropic", r"api\.anthropic\.com"),
        ("anthropic", r"aws-external-anthropic\.[a-z0-9-]+\.api\.aws"),
        ("openai", r"(?:(?P<region>[a-z]{2})\.)?api\.openai\.com"),
        ("openai", r"chatgpt\.com"),
        ("github-copilot", r"(?:[a-z0-9-]+\.)*githubcopilot\.com|copilot-api\.[a-z0-9-]+\.ghe\.com"),
        ("azure", r"[a-z0-9-]+\.(?:openai|cognitiveservices|services\.ai)\.azure\.com"),
        ("azure", r"[a-z0-9-]+\.(?:openai|cognitiveservices|services\.ai)\.azure\.(?P<region>us|cn)"),
        ("aws", rf"{_SERVICE}\.{_AWS_REGION}\.(?:amazonaws\.com(?:\.cn)?|api\.aws)"),
        ("aws", rf"vpce-[a-z0-9-]+\.{_SERVICE}\.{_AWS_REGION}\.vpce\.amazonaws\.com(?:\.cn)?"),
        ("openrouter", r"(?:[a-z]{2}\.)?openrouter\.ai"),
        ("x-ai", r"(?:(?P<region>[a-z0-9-]+)\.)?api\.x\.ai"),
        ("mistral", r"api(?:\.(?P<region>[a-z]{2}))?\.mistral\.ai"),
        ("deepseek", r"api\.deepseek\.com"),
        ("groq", r"api\.groq\.com"),
        ("google", r"generativelanguage\.googleapis\.com"),
    )
)
AZURE_CLOUDS: Mapping[str, str] = MappingProxyType({"us": "usgov", "cn": "china"})
"""Azure's clouds with prices of their own, by the last label of their hosts."""


@lru_cache(maxsize=1024)
def seller_at(host: str) -> Seller | None:
    """Return who bills for the answers of a host, or None for a host that is not known."""
    host = host.lower().rstrip(".")
    for vendor, pattern in _HOSTS:
        if found := pattern.fullmatch(host):
            region = found.groupdict().get("region")
            return Seller(vendor, AZURE_CLOUDS.get(region or "", region) if vendor == "azure" else region)
    return None
