"""The table of Claude models on Bedrock: which members of a Messages request each accepts. Sans-io.

Sources: Amazon Bedrock user guide, "Anthropic Claude Messages API", "Adaptive thinking" and "Extended thinking". An
unknown model is treated like the oldest ones. The id of an application inference profile does not name its model.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

EFFORT = "effort-2025-11-24"
CONTEXT_MANAGEMENT = "context-management-2025-06-27"


class Thinking(Enum):
    """The `thinking.type` that a model accepts besides `disabled`."""

    BUDGET = "enabled"
    ADAPTIVE = "adaptive"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Model:
    contains: str
    thinking: Thinking = Thinking.BUDGET
    betas: frozenset[str] = frozenset()
    """Beta flags that this model accepts in addition to `BETAS`."""


MODELS = (
    Model("anthropic.claude-opus-4-8", Thinking.ADAPTIVE),
    Model("anthropic.claude-opus-4-7", Thinking.ADAPTIVE),
    Model("anthropic.claude-opus-4-6", Thinking.BOTH),
    Model("anthropic.claude-sonnet-4-6", Thinking.BOTH),
    Model("anthropic.claude-opus-4-5", betas=frozenset({EFFORT})),
    Model("anthropic.claude-sonnet-4-5", betas=frozenset({CONTEXT_MANAGEMENT})),
    Model("anthropic.claude-haiku-4-5", betas=frozenset({CONTEXT_MANAGEMENT})),
)
"""The first entry whose `contains` is part of the model id applies."""
ANY_OTHER = Model("")

BETAS = frozenset(
    (
        *("computer-use-2025-01-24", "token-efficient-tools-2025-02-19", "interleaved-thinking-2025-05-14"),
        *("output-128k-2025-02-19", "dev-full-thinking-2025-05-14", "context-1m-2025-08-07"),
        *("tool-search-tool-2025-10-19", "tool-examples-2025-10-29"),
    )
)
"""Beta flags that Bedrock accepts for every model. It refuses requests with other flags."""

UNSUPPORTED = ("metadata", "service_tier", "container", "inference_geo")
"""Members that Bedrock refuses. They are removed from requests."""
UNLESS_BETA = MappingProxyType({"output_config": EFFORT, "context_management": CONTEXT_MANAGEMENT})
"""Members that Bedrock refuses without this beta flag."""

BUDGETS = MappingProxyType({"low": 0.2, "medium": 0.5, "max": 0.95})
"""Fraction of `max_tokens` for thinking, by `output_config.effort`."""
BUDGET = 0.8
"""Fraction of `max_tokens` for thinking, for any other effort or none."""
LEAST_BUDGET = 1024
"""Tokens. Smaller budgets are refused, so thinking is disabled (API reference, "Extended thinking")."""


def model_of(model_id: str) -> Model:
    return next((model for model in MODELS if model.contains in model_id), ANY_OTHER)
