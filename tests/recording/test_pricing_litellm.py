"""Our rates beside litellm's: every disagreement is known, with who is right and why. A new one fails.

`litellm_prices.py` makes the table anew from a newer wheel.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.recording.litellm_comparison import Compared, compared, snapshot


class Disagreement(NamedTuple):
    names: str
    """A regular expression for litellm's names."""
    fields: str
    right: str
    """`ours` or `theirs`; neither may be in use without a reason."""
    why: str


KNOWN = [
    Disagreement(
        r"(?:anthropic\.)?claude-(?:fable|haiku|opus|sonnet)-(?!3)(?!4-2025).*",
        r".*",
        "ours",
        "A Bedrock id without a prefix runs in one region, which costs 10 % more than `global.` (AWS price list API, by"
        " way of genai-prices; platform.claude.com, pricing). litellm has the global price for it.",
    ),
    Disagreement(
        r"openai\.gpt-6-(?:luna|sol)",
        r".*",
        "ours",
        "The same for OpenAI's models on Bedrock; litellm's own `bedrock_mantle/openai.gpt-6-sol` has our price.",
    ),
    Disagreement(
        r"azure/(?:eu|us)/gpt-4o(?:-2024-11-20)?",
        r"cache_creation_input_token_cost",
        "ours",
        "Models before GPT-5.6 charge nothing extra for cache writes (learn.microsoft.com, prompt caching), so a write"
        " costs what input does. litellm has the price of a cache read there, and none for the global deployment.",
    ),
    Disagreement(
        r"gemini/gemini-3\.5-flash-lite",
        r"cache_read_input_token_cost_batches",
        "ours",
        "The batch table has 0.02 for context caching, not half of 0.03 (ai.google.dev, pricing, by way of"
        " genai-prices).",
    ),
    Disagreement(
        r"groq/openai/gpt-oss-safeguard-20b",
        r"cache_read_input_token_cost",
        "ours",
        "Half of 0.075, as for the model's siblings (console.groq.com, models). litellm has the figure cut to 0.037.",
    ),
    Disagreement(
        r"gpt-4o-search-preview(?:-2025-03-11)?",
        r"cache_read_input_token_cost",
        "theirs",
        "litellm has the cached price of gpt-4o, genai-prices none. No row has either: a model that searches unasked"
        " has no price.",
    ),
]


def known(found: Compared) -> bool:
    return any(re.fullmatch(entry.names, found.name) and re.fullmatch(entry.fields, found.field) for entry in KNOWN)


def test_every_disagreement_with_litellm_is_known() -> None:
    unknown = [
        f"{found.name} {found.field}: ours {found.ours:f}, theirs {found.theirs:f}"
        for found in compared()
        if not found.agrees and not known(found)
    ]
    assert unknown == []


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry.names)
def test_every_known_disagreement_is_still_one(entry: Disagreement) -> None:
    assert entry.right in ("ours", "theirs") and entry.why
    assert any(
        re.fullmatch(entry.names, found.name) and re.fullmatch(entry.fields, found.field)
        for found in compared()
        if not found.agrees
    )


def test_the_comparison_is_about_most_of_what_litellm_has() -> None:
    """A look-up that finds nothing would agree with everything."""
    rates = list(compared())
    assert len(rates) > 5_000
    assert len({found.name for found in rates}) > 800
    assert snapshot()["litellm"] == "1.110.2"
