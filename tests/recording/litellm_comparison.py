"""Our rates beside litellm's: each name of its table, read as the circumstances that it stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from typing import Any, NamedTuple

from aibridge_addon.recording.prices.rules import Question, rule
from tests.recording.litellm_prices import SNAPSHOT

MOMENT = datetime(2026, 11, 27, 2, 0, tzinfo=UTC)
"""A Friday within DeepSeek's peak hours, whose prices litellm has as its standard ones."""

VENDORS = {
    "anthropic": "anthropic",
    "openai": "openai",
    "azure": "azure",
    "azure_ai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "bedrock_mantle": "aws",
    "github_copilot": "github-copilot",
    "xai": "x-ai",
    "mistral": "mistral",
    "deepseek": "deepseek",
    "groq": "groq",
    "gemini": "google",
}
UNITS = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "input_cost_per_audio_token": "input_audio",
    "output_cost_per_audio_token": "output_audio",
}
FIELD = re.compile(
    rf"({'|'.join(UNITS)})(?:_above_(1hr|12hr))?(?:_above_(\d+)k_tokens)?(?:_(batches|flex|priority|ultrafast))?"
)
REGION = re.compile(r"(?:us|eu|ap|sa|ca|me|af|il|us-gov)-[a-z]+-\d")


class Compared(NamedTuple):
    name: str
    """litellm's name of the model."""
    field: str
    """litellm's name of the rate."""
    ours: Decimal
    theirs: Decimal
    """US dollars for a million tokens."""

    @property
    def agrees(self) -> bool:
        """Whether they are the same; litellm has Azure's figures as Azure rounds them, to a thousandth of a dollar."""
        rounded = self.ours.quantize(Decimal("0.001"), ROUND_HALF_UP)
        return abs(self.ours - self.theirs) <= max(self.ours, self.theirs) / 1000 or rounded == self.theirs


@cache
def snapshot() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(SNAPSHOT.read_text())
    return content


def compared() -> Iterator[Compared]:
    """Yield every rate that both tables have."""
    for name, entry in snapshot()["models"].items():
        where = place(name, entry["provider"])
        if where is None:
            continue
        for field, value in entry.items():
            if field == "provider":
                continue
            ours = rate(where, field)
            if ours is not None:
                yield Compared(name, field, ours, Decimal(repr(value)) * 1_000_000)


def place(name: str, provider: str) -> Question | None:
    """Return the circumstances that a name stands for; None for those that are not about tokens on demand."""
    vendor, region, scope = VENDORS[provider], None, None
    parts = name.split("/")
    if vendor == "azure":
        scope = "global"
        if len(parts) == 3 and parts[1] in ("us", "eu"):
            scope, region = "data_zone", parts[1]
        elif len(parts) == 3 and parts[1] not in ("global", "global-standard"):
            return None
        return Question(vendor, parts[-1], region, scope, (), MOMENT)
    if vendor == "aws":
        if "commitment" in name or "invoke" in name:
            return None
        if "claude_platform" in name:
            return Question("anthropic", parts[-1], None, None, (), MOMENT)
        region = next((part for part in parts if REGION.fullmatch(part)), "us-east-1")
        return Question(vendor, parts[-1], region, None, (), MOMENT)
    own = name.removeprefix(f"{provider}/")
    return Question(vendor, own, None, None, (), MOMENT)


def rate(where: Question, field: str) -> Decimal | None:
    """Return our rate for a field of litellm's; None where we have no price."""
    found = FIELD.fullmatch(field)
    if found is None:
        return None
    base, lifetime, thousands, tier = found.groups()
    circumstances: tuple[tuple[str, str], ...] = ()
    if tier:
        circumstances = (("processing", "batch"),) if tier == "batches" else (("service_tier", tier),)
    ours = rule(where._replace(circumstances=circumstances))
    if isinstance(ours, str):
        return None
    if ours.free:
        return Decimal(0)
    unit = UNITS[base] + {None: "", "1hr": "_1h", "12hr": "_12h"}[lifetime]
    tokens = int(thousands) * 1000 + 1 if thousands else 1
    value = ours.at(tokens).get(unit)
    return None if value is None else value * 1_000_000
