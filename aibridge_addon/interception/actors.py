"""Find the actor of a request.

The first of these counts: a token of the bridge, mitmproxy's authenticated user, a front proxy's header, the default.
An actor's groups are those whose patterns match its id, those in the trusted header for groups, and those of its token.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal

from aibridge_addon.config.schema import Actor as ActorSettings
from aibridge_addon.credentials.tokens import Grant, Presented
from aibridge_addon.records import Headers

Source = Literal["token", "user", "header", "default"]
MAX_ID_LENGTH = 256
"""Characters. Longer names are cut, since a client chooses them."""
MAX_KNOWN = 4_096
"""Maximum number of actors whose groups are remembered."""
MAX_GROUPS = 64
"""Maximum number of groups that are taken from a request."""


@dataclass(frozen=True, slots=True)
class Actor:
    id: str
    metadata: Mapping[str, Any]
    groups: tuple[str, ...] = ()
    named_groups: tuple[str, ...] = ()
    """Those of the groups that the request names, also by its token."""
    token: Presented | None = None
    """The token of the bridge that names the actor."""
    source: Source = field(default="default", compare=False)
    """What names the actor."""


class ActorResolver:
    """Finds actors by the rules of the configuration's `actor` section."""

    def __init__(self, settings: ActorSettings, *, system_user: str) -> None:
        """`system_user` is the operating system's user. It is the actor if none is known and none is required."""
        self._settings = settings
        self._header = settings.header.lower().encode() if settings.header else None
        self._groups_header = settings.groups.header.lower().encode() if settings.groups.header else None
        self.groups_of = lru_cache(MAX_KNOWN)(self._groups_of)
        """Returns the groups of the configuration that an actor is in."""
        self._fallback = settings.default or (None if settings.required else system_user)

    @property
    def headers(self) -> tuple[bytes, ...]:
        """The headers that name the actor and its groups, in lower case. They are never sent upstream."""
        return tuple(header for header in (self._header, self._groups_header) if header is not None)

    def trusted_name(self, headers: Headers, peer: str) -> str | None:
        """Return the name in the trusted header, if this peer may set it."""
        if self._header is None:
            return None
        name = headers.get(self._header, b"").decode("utf-8", "replace").strip()
        return name if name and self._trusts(peer) else None

    def trusted_groups(self, headers: Headers, peer: str) -> tuple[str, ...]:
        """Return the groups in the trusted header, separated by commas, if this peer may set it."""
        if self._groups_header is None or not (given := headers.get(self._groups_header)) or not self._trusts(peer):
            return ()
        parts = given.decode("utf-8", "replace").split(",", MAX_GROUPS)[:MAX_GROUPS]
        return tuple(dict.fromkeys(name for part in parts if (name := part.strip()[:MAX_ID_LENGTH])))

    def is_untrusted(self, headers: Headers, peer: str) -> bool:
        """Return whether the header that names the actor is ignored, because this peer may not set it."""
        return self._header is not None and bool(headers.get(self._header, b"").strip()) and not self._trusts(peer)

    def unnamed(self, headers: Headers, peer: str, *, on_connect: bool = False) -> str:
        """Return why a front proxy's header names no actor, and what to do. "": the configuration has no such header.

        `on_connect`: these are the headers of the CONNECT request of a tunnel.
        """
        if self._header is None:
            return ""
        name, place = self._settings.header, " on the CONNECT request" if on_connect else ""
        if self._header not in headers:
            return f"the header {name}, which names the actor, is missing{place}: the front proxy has to set it"
        if not headers[self._header].strip():
            return f"the header {name}, which names the actor, is empty{place}: the front proxy has to set it"
        return (
            f"the header {name}{place} is ignored, because it comes from {peer or 'an unknown address'}: add the front"
            " proxy's address to actor.trusted_sources"
        )

    @property
    def is_required(self) -> bool:
        """Whether a request has to name an actor."""
        return not self._fallback

    def resolve(
        self, proxy_user: str | None, trusted_name: str | None, named_groups: tuple[str, ...] = ()
    ) -> Actor | None:
        """Return the actor; None if the configuration requires one and there is none."""
        name = proxy_user or trusted_name or self._fallback
        if not name:
            return None
        id = name[:MAX_ID_LENGTH]
        groups = tuple(dict.fromkeys((*self.groups_of(id), *named_groups)))
        source: Source = "user" if proxy_user else "header" if trusted_name else "default"
        return Actor(id, self._settings.metadata, groups, named_groups, source=source)

    def _groups_of(self, id: str) -> tuple[str, ...]:
        groups = self._settings.groups.patterns
        return tuple(name for name, patterns in groups.items() if any(fnmatchcase(id, each) for each in patterns))

    def owner(self, grant: Grant, token: Presented) -> Actor:
        """Return the actor that a token names."""
        id = grant.actor[:MAX_ID_LENGTH]
        groups = tuple(dict.fromkeys((*self.groups_of(id), *grant.groups)))
        return Actor(id, self._settings.metadata, groups, grant.groups, token, "token")

    def _trusts(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._settings.trusted_sources)
