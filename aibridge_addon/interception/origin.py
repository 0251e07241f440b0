"""Who sent a request, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aibridge_addon import records
from aibridge_addon.dialects.base import NOTHING
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.budgets import GROUPS


@dataclass(frozen=True, slots=True)
class Origin:
    """The sender of a request: actor, client and credential; and the host that the request goes to."""

    actor: Actor
    client: str
    client_session_id: str | None
    user_agent: str | None
    credential_kind: records.CredentialKind
    credential_hint: str
    prompt: str | None
    """The person's prompt; None if no person sent the request."""
    upstream_host: str | None = None
    agent_id: str | None = None
    prompt_id: str | None = None
    project: str | None = None
    request_class: records.RequestClass | None = None
    billing: records.Billing | None = None
    credential: str = ""
    """What distinguishes the credential from all others; see `credentials/identity.py`."""
    details: Mapping[str, str] = NOTHING
    """What else the client says about itself. It becomes part of the interception's metadata."""

    @property
    def groups(self) -> dict[str, str]:
        """Return the metadata with the groups that the request names. The actor's other groups are configured."""
        return {GROUPS: ",".join(self.actor.named_groups)} if self.actor.named_groups else {}
