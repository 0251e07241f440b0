"""Whether a request or a connection may go to its destination: by the egress guard, and by who sends it.

With `actor.required`, a client connects to nothing before it has named its actor. Requests and CONNECTs are refused by
their heads. SOCKS5 and data inside a tunnel that is no HTTP have no head: their connections are refused.
"""

from __future__ import annotations

import logging
import time
from weakref import WeakSet

from mitmproxy import ctx, http
from mitmproxy.connection import Client
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from aibridge_addon.interception.actors import ActorResolver
from aibridge_addon.proxy.connection.authentication import Authentication
from aibridge_addon.proxy.connection.egress import EgressGuard
from aibridge_addon.proxy.connection.once_a_minute import OnceAMinute
from aibridge_addon.proxy.connection.ourselves import is_own_address
from aibridge_addon.proxy.flow.state import UNDIALLED, Refusal, Served, plain_error, refuse, state_of

logger = logging.getLogger(__name__)

PROXIES = ("regular", "upstream", "socks5")
"""mitmproxy's modes whose clients name their destination themselves."""
ROUTED = ("transparent", "local", "wireguard", "tun")
"""Modes that take all traffic of a machine or network. Requests to hosts of no provider cannot name an actor there."""
UNNAMED = "actor.required: this client has named no actor"


class NamedClients:
    """The client connections that have named an actor."""

    def __init__(self) -> None:
        self._clients: WeakSet[Client] = WeakSet()
        self._logged = OnceAMinute(time.monotonic)

    def add(self, client: Client) -> None:
        self._clients.add(client)

    def check(self, data: ServerConnectionHookData, actors: ActorResolver) -> None:
        """Set `data.server.error` if a client without an actor would be connected to a destination of its choice."""
        client, address = data.client, data.server.address
        if client in self._clients or client.proxy_mode.type_name not in PROXIES or not actors.is_required:
            return
        passwords = ctx.master.addons.get(Authentication.name)
        if (passwords is not None and client in passwords.authenticated) or is_own_address(address, client):
            return
        data.server.error = UNNAMED
        peer = client.peername[0] if client.peername else ""
        if self._logged.is_due(peer):
            logger.warning("aibridge: a connection from %s is refused: %s", peer or "an unknown address", UNNAMED)


async def check_destination(guard: EgressGuard, flow: http.HTTPFlow) -> None:
    """Answer a request whose destination the egress guard refuses."""
    if flow.metadata.get(UNDIALLED):
        return
    refusal = await guard.refusal(flow.client_conn, flow.request.host, flow.request.port)
    if refusal is None:
        return
    state = state_of(flow)
    if isinstance(state, Served):
        refuse(flow, state, Refusal(refusal.status, refusal.message))
        return
    kind = "permission_error" if refusal.status == 403 else "api_error"
    flow.request.stream = False  # as in `refuse`
    flow.response = plain_error(refusal.status, refusal.message, kind)
