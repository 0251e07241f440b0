"""Find the actor of a request: mitmproxy's authenticated user, else a front proxy's header, else the default."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aibridge_addon.config.schema import Actor as ActorSettings
from aibridge_addon.records import Headers

MAX_ID_LENGTH = 256
"""Characters. Longer names are cut, since a client chooses them."""


@dataclass(frozen=True, slots=True)
class Actor:
    id: str
    metadata: Mapping[str, Any]


class ActorResolver:
    """Finds actors by the rules of the configuration's `actor` section."""

    def __init__(self, settings: ActorSettings, *, system_user: str) -> None:
        """`system_user` is the operating system's user. It is the actor if none is known and none is required."""
        self._settings = settings
        self._header = settings.header.lower().encode() if settings.header else None
        self._fallback = settings.default or (None if settings.required else system_user)

    @property
    def header(self) -> bytes | None:
        """The header that names the actor, in lower case. It is never sent upstream."""
        return self._header

    def trusted_name(self, headers: Headers, peer: str) -> str | None:
        """Return the name in the trusted header, if this peer may set it."""
        if self._header is None:
            return None
        name = headers.get(self._header, b"").decode("utf-8", "replace").strip()
        return name if name and self._trusts(peer) else None

    def resolve(self, proxy_user: str | None, trusted_name: str | None) -> Actor | None:
        """Return the actor; None if the configuration requires one and there is none."""
        name = proxy_user or trusted_name or self._fallback
        return Actor(name[:MAX_ID_LENGTH], self._settings.metadata) if name else None

    def _trusts(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._settings.trusted_sources)
