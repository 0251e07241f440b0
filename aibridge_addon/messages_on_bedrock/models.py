"""The table of Claude models on Bedrock: which members of a Messages request each accepts. Sans-io.

Sources: Amazon Bedrock user guide, "Anthropic Claude Messages API", "Adaptive thinking" and "Extended thinking". An
unknown model takes what the oldest ones take: an application inference profile's id names no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

EFFORT = "effort-2025-11-24"
CONTEXT_MANAGEMENT = "context-management-2025-06-27"


class Thinking(Enum):
    """Which `thinking.type` a model takes beside `disabled`."""

    BUDGET = "enabled"
    ADAPTIVE = "adaptive"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Model:
    contains: str
    thinking: Thinking = Thinking.BUDGET
    betas: frozenset[str] = frozenset()
    """Beta flags that this model takes and not every one does."""


MODELS = (
    Model("anthropic.claude-opus-4-8", Thinking.ADAPTIVE),
    Model("anthropic.claude-opus-4-7", Thinking.ADAPTIVE),
    Model("anthropic.claude-opus-4-6", Thinking.BOTH),
    Model("anthropic.claude-sonnet-4-6", Thinking.BOTH),
    Model("anthropic.claude-opus-4-5", betas=frozenset({EFFORT})),
    Model("anthropic.claude-sonnet-4-5", betas=frozenset({CONTEXT_MANAGEMENT})),
    Model("anthropic.claude-haiku-4-5", betas=frozenset({CONTEXT_MANAGEMENT})),
)
"""The first one whose words an id contains counts."""
ANY_OTHER = Model("")

BETAS = frozenset(
    (
        *("computer-use-2025-01-24", "token-efficient-tools-2025-02-19", "interleaved-thinking-2025-05-14"),
        *("output-128k-2025-02-19", "dev-full-thinking-2025-05-14", "context-1m-2025-08-07"),
        *("tool-search-tool-2025-10-19", "tool-examples-2025-10-29"),
    )
)
"""Beta flags that Bedrock takes for every model; any other one would be refused."""

UNSUPPORTED = ("metadata", "service_tier", "container", "inference_geo")
"""Members of a request that Bedrock refuses."""
UNLESS_BETA = MappingProxyType({"output_config": EFFORT, "context_management": CONTEXT_MANAGEMENT})
"""Members that it refuses unless this beta flag came with them."""

BUDGETS = MappingProxyType({"low": 0.2, "medium": 0.5, "max": 0.95})
"""Shares of `max_tokens` for thinking, by `output_config.effort`."""
BUDGET = 0.8
"""The share for any other effort, and for none."""
LEAST_BUDGET = 1024
"""Tokens; with less, there is no thinking (API reference, "Extended thinking")."""


def model_of(model_id: str) -> Model:
    return next((model for model in MODELS if model.contains in model_id), ANY_OTHER)
