"""The start names providers without prices."""

from __future__ import annotations

from typing import Any

import pytest

from aibridge_addon.config.schema import Settings
from aibridge_addon.proxy.connection.unpriced_hosts import unpriced_hosts

OWN = "http://llm.internal:8000/v1"


@pytest.mark.parametrize(
    ("provider", "named"),
    [
        ({"type": "openai", "base_url": OWN}, "llm.internal"),
        ({"type": "anthropic", "base_url": OWN}, "llm.internal"),
        ({"type": "openai", "hosts": ["a.internal", "*.b.internal"], "base_url": None}, "a.internal"),
        ({"type": "openai", "base_url": OWN, "price_as": "openrouter"}, None),
        ({"type": "openai", "base_url": OWN, "price_as": "none"}, None),
        ({"type": "openai"}, None),
        ({"type": "openai", "base_url": "https://openrouter.ai/api/v1"}, None),
        ({"type": "bedrock", "base_url": OWN}, None),
    ],
)
def test_a_provider_at_an_unknown_host_without_price_as_is_named(provider: dict[str, Any], named: str | None) -> None:
    settings = Settings.model_validate({"providers": [{"name": "mine", **provider}]})
    lines = list(unpriced_hosts(settings))
    assert [line.split(": set price_as")[0] for line in lines] == (
        [f"provider mine: no prices are known for {named}"] if named else []
    )


def test_the_default_providers_have_prices() -> None:
    assert not list(unpriced_hosts(Settings()))
