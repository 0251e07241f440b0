"""The egress guard: clients of the proxy can reach the public Internet, but no private network.

    CONNECT, request head ─▶ refusal: resolve, check every address, cache them ─▶ 403, or continue
    upstream connection   ─▶ dial: connect to a checked address; check now if there was no request for it

A name is resolved once, so it cannot resolve to another address between the check and the connection. mitmproxy finds
connections by the requested name, so `dialled` restores that name. If an upstream proxy resolves names, the guard
checks the addresses that this machine resolves.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from mitmproxy.connection import Client, Server
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ReverseMode, UpstreamMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from aibridge_addon.config.schema import Egress, Settings
from aibridge_addon.proxy.connection.addresses import address_of, is_reserved, maybe_address
from aibridge_addon.proxy.connection.exposure import reachable_from_other_machines
from aibridge_addon.proxy.connection.names import Names, Unresolved

logger = logging.getLogger(__name__)

Destination = tuple[str, int]
Resolve = Callable[[str, str], Awaitable[Sequence[str]]]
"""Takes the address of a client and a name. Raises Unresolved."""

CHECKED_FOR = 60.0
"""Seconds. Lifetime of a checked destination for one client connection; later requests resolve the name again."""
MAX_CHECKED = 64
"""Maximum number of checked destinations cached for one client connection."""
MAX_DEAD = 1024
"""Maximum number of addresses remembered because they did not answer."""
WARNINGS_PER_MINUTE = 20
"""Maximum number of refusals logged per minute. Clients cause them, so they could fill the log."""


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    message: str


@dataclass(frozen=True, slots=True)
class _Checked:
    addresses: tuple[str, ...]
    until: float


class EgressGuard:
    """Used on one event loop."""

    def __init__(
        self,
        settings: Egress,
        own: Collection[Destination] = (),
        *,
        resolve: Resolve | None = None,
        clock: Callable[[], float] = time.monotonic,
        before: EgressGuard | None = None,
    ) -> None:
        """Create a guard.

        `own`: destinations from the configuration, which are always allowed. `resolve`: default `Names().resolve`.
        `before`: the guard that this one replaces. Only what it has checked is checked again.
        """
        self._settings = settings
        self._own = frozenset(own)
        self._resolve: Resolve = resolve or (before._resolve if before is not None else Names().resolve)
        self._clock = clock
        self._checked: WeakKeyDictionary[Client, dict[Destination, _Checked]] = WeakKeyDictionary()
        self._names: WeakKeyDictionary[Server, Destination] = WeakKeyDictionary()
        """The requested destinations of connections that are being opened."""
        self._dead: dict[Destination, float] = {}
        """Time at which an address did not answer, oldest first. For all clients, such addresses are tried last."""
        self._warned: list[float] = []
        if before is not None:
            self._names, self._dead, self._warned = before._names, before._dead, before._warned

    def follows(self, settings: Egress, own: Collection[Destination]) -> bool:
        """Return whether this guard was made from equal settings."""
        return (self._settings, self._own) == (settings, frozenset(own))

    async def refusal(self, client: Client, host: str, port: int) -> Refusal | None:
        """Return why a client may not reach this destination, or None if it may."""
        destination = (host, port)
        if destination in self._own or self._remembered(client, destination) is not None:
            return None
        refusal = await self._check(client, destination)
        if refusal is not None:
            self._warn(f"{host}:{port}: {refusal.message}")
        return refusal

    async def _check(self, client: Client, destination: Destination) -> Refusal | None:
        host, port = destination
        if port not in self._settings.ports:
            return Refusal(403, f"port {port} is not allowed by egress.ports")
        literal = maybe_address(host)
        if literal is not None:
            addresses: Sequence[str] = [str(literal)]
        else:
            try:
                addresses = await self._resolve(address_of(client), host)
            except Unresolved:
                if isinstance(client.proxy_mode, UpstreamMode):
                    return None  # the upstream proxy may be able to resolve the name
                return Refusal(502, "the host's name cannot be resolved")
        if any(self._is_reserved(address) for address in addresses):
            return Refusal(403, "the host is in a private or reserved network, which the egress guard does not allow")
        self._remember(client, destination, addresses)
        return None

    def _is_reserved(self, host: str) -> bool:
        address = maybe_address(host)
        return address is None or is_reserved(address, self._settings.allowed_private_cidrs)

    async def dial(self, data: ServerConnectionHookData) -> None:
        """Replace the address of a connection that is about to be opened by a checked one, or refuse it."""
        client, server = data.client, data.server
        mode = client.proxy_mode
        if server.address is None or server.address in self._own:
            return
        if isinstance(mode, UpstreamMode | ReverseMode) and server.address == mode.address:
            return  # named in mitmproxy's own options
        host, port = destination = server.address[0], server.address[1]
        checked = self._remembered(client, destination)
        if checked is None:
            refusal = await self.refusal(client, host, port)
            if refusal is not None:
                server.error = refusal.message
                return
            checked = self._remembered(client, destination)
        if checked is not None and checked.addresses:
            self._names[server] = destination
            addresses = [(address, port) for address in checked.addresses]
            server.address = min(addresses, key=lambda address: self._dead.get(address, -math.inf))

    def dialled(self, data: ServerConnectionHookData) -> None:
        """Restore the requested name after the connection was opened or has failed."""
        destination = self._names.pop(data.server, None)
        if destination is None:
            return
        address = data.server.address
        if data.server.error and address is not None:
            self._did_not_answer((address[0], address[1]))
        # mitmproxy refuses to change the address of an open connection, since it might be confused with another.
        # Here the name is the one under which mitmproxy requested the connection.
        vars(data.server)["address"] = destination

    # --- what has been checked --------------------------------------------------------------------------------

    def _remembered(self, client: Client, destination: Destination) -> _Checked | None:
        checked = self._checked.get(client, {}).get(destination)
        return checked if checked is not None and checked.until > self._clock() else None

    def _remember(self, client: Client, destination: Destination, addresses: Sequence[str]) -> None:
        known = self._checked.setdefault(client, {})
        known.pop(destination, None)
        known[destination] = _Checked(tuple(addresses), self._clock() + CHECKED_FOR)
        while len(known) > MAX_CHECKED:
            del known[next(iter(known))]

    def _did_not_answer(self, address: Destination) -> None:
        """Try this address last from now on."""
        self._dead.pop(address, None)
        self._dead[address] = self._clock()
        if len(self._dead) > MAX_DEAD:
            del self._dead[next(iter(self._dead))]

    def _warn(self, text: str) -> None:
        now = self._clock()
        self._warned = [at for at in self._warned if now - at < 60]
        if len(self._warned) < WARNINGS_PER_MINUTE:
            self._warned.append(now)
            logger.warning("egress guard: refused %s", text)


def guard_for(
    settings: Settings, options: Options, before: EgressGuard | None = None, names: Names | None = None
) -> EgressGuard | None:
    """Return the guard for a configuration: `before` if it fits. None: every destination is allowed."""
    resolve = None if names is None else names.resolve
    egress = settings.egress
    if egress.guard == "off" or (egress.guard == "auto" and not reachable_from_other_machines(options)):
        return None
    bases = [provider.base_url for provider in settings.providers]
    bases += [provider.bedrock.endpoint for provider in settings.providers if provider.bedrock is not None]
    own = {(base.host, base.port) for base in bases if base is not None}
    if options.onboarding:
        own.add((options.onboarding_host, 80))  # mitmproxy itself answers it
    return (
        before
        if before is not None and before.follows(egress, own)
        else EgressGuard(egress, own, before=before, resolve=resolve)
    )


def configured_names(settings: Settings) -> frozenset[str]:
    """Return the names of hosts in a configuration."""
    bases = [base.host for provider in settings.providers if (base := provider.base_url) is not None]
    bases += [provider.bedrock.endpoint.host for provider in settings.providers if provider.bedrock is not None]
    return frozenset((*bases, *(host for provider in settings.providers for host in provider.hosts if "*" not in host)))
