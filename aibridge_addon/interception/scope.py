"""Whose conversation it is. What is kept of a conversation, and its lineage, is found in the same scope only. Sans-io.

A key is a digest of the scope and of a name in it, so a row under a key does not reveal either.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import msgspec

from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.place import Place

Kind = Literal["answer", "call", "reasoning", "lineage", "stored"]


@dataclass(frozen=True, slots=True)
class Scope:
    provider_name: str
    initiator_id: str
    dialect: Dialect
    credential: str
    """What distinguishes the credential from all others; see `credentials/identity.py`."""
    session: str = ""
    """The client's own id of the conversation, if it has one. Answer ids and reasoning are unique without it."""
    agent: str = ""
    """The agent within the session. A main agent and its subagents share a session, and their calls may share ids."""

    def key(self, kind: Kind, *names: str) -> str:
        session = self.session if kind in ("call", "lineage") else ""
        parts = (self.provider_name, self.initiator_id, self.dialect.name, self.credential, session, kind, names)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    def place_key(self, kind: Kind, place: Place) -> str:
        by_agent = kind == "lineage" and self.agent and place.after[0] in ("opening", "any")
        return self.key(kind, *place.after, place.call_id, place.call, *([self.agent] if by_agent else ()))
