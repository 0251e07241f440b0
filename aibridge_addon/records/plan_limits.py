"""The record of a limit of the plan that an actor's credential has, as its provider says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class PlanLimit:
    """A limit of a plan has changed, or was named for the first time."""

    initiator_id: str
    """The actor whose request showed it."""
    provider_name: str
    """The configured instance."""
    credential_hint: str
    """The limit belongs to this credential, for all of its users."""
    window_name: str
    """The provider's own name, such as `5h`, `input-tokens`, `primary` or `premium_interactions`."""
    used_ratio: float | None
    """The share that is used: 0 nothing, 1 all, more than 1 beyond the limit. None: the provider does not say."""
    limit_value: float | None
    """What is allowed in the window, in the provider's unit: requests, tokens, interactions."""
    remaining: float | None
    """What is left of it."""
    resets_at: datetime | None
    observed_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else the provider says of the window, such as its `status`."""
    id: str = field(default="", compare=False)
    """Of the row. The recorder sets it, so that a record that is written twice is one row."""
