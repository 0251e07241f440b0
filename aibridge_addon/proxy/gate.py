"""The decisions about connections that no other addon can skip: what is decrypted, and what may be connected to.

mitmproxy calls the scripts in their order, and an exception of one keeps the hook from those behind it. So these hooks
belong to an addon of their own, the first of mitmproxy's chain. If a decision itself fails, the connection is closed.
So is each new one while the bridge's script cannot be loaded again. Without the script, mitmproxy decides alone.
"""

from __future__ import annotations

import logging
from typing import Protocol
from weakref import WeakSet

from mitmproxy import ctx, tls
from mitmproxy.connection import Client
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

logger = logging.getLogger(__name__)

REFUSED = "a decision about this connection has failed"
NOT_LOADED = "aibridge could not be loaded again"


class Decisions(Protocol):
    """What the bridge decides about connections."""

    def choose_layer(self, next_layer: layer.NextLayer) -> None: ...
    def choose_decryption(self, data: tls.ClientHelloData) -> None: ...
    async def check_destination(self, data: ServerConnectionHookData) -> None: ...
    def connection_tried(self, data: ServerConnectionHookData) -> None: ...


class Closed(layer.Layer):
    """Closes the client's connection."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            yield commands.CloseConnection(self.context.client)


class Gate:
    """Registered once with mitmproxy's master. A reload of the script replaces its decisions only."""

    name = "aibridge_gate"

    def __init__(self) -> None:
        self._decisions: Decisions | None = None
        self._is_closed = False
        """Whether nothing can decide, although something should."""
        self._refused: WeakSet[Client] = WeakSet()
        """Clients about whose connection nothing could be decided."""

    @classmethod
    def of_master(cls) -> Gate:
        """Return the running master's gate. The first call creates it."""
        manager = ctx.master.addons
        gate = manager.get(cls.name)
        if gate is None:
            gate = manager.register(cls())
            # Later: `AddonManager.add` is about to append the addon that calls this to the present list.
            ctx.master.event_loop.call_soon(gate._become_first)
        assert isinstance(gate, Gate)
        return gate

    def _become_first(self) -> None:
        manager = ctx.master.addons
        manager.chain = [self, *manager.chain]  # a new list: mitmproxy may be iterating over the old one

    def use(self, decisions: Decisions) -> None:
        self._decisions, self._is_closed = decisions, False

    def forget(self, decisions: Decisions) -> None:
        """Close new connections, unless others have taken over, until others take over or `release` is called."""
        if self._decisions is decisions:
            self._decisions, self._is_closed = None, True

    def release(self) -> None:
        """Decide about nothing any more: the bridge's script was removed on purpose."""
        self._is_closed = False

    def next_layer(self, next_layer: layer.NextLayer) -> None:
        if self._is_closed:
            next_layer.layer = Closed(next_layer.context)
            return
        if self._decisions is None:
            return
        try:
            self._decisions.choose_layer(next_layer)
        except Exception:
            logger.exception("aibridge: a connection is closed: its protocol could not be chosen")
            next_layer.layer = Closed(next_layer.context)

    def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        if self._is_closed:
            self._refuse(data)
        if self._decisions is None:
            return
        try:
            self._decisions.choose_decryption(data)
        except Exception:
            logger.exception("aibridge: a connection is closed: it was not decided whether it is decrypted")
            self._refuse(data)

    def _refuse(self, data: tls.ClientHelloData) -> None:
        data.ignore_connection = True
        self._refused.add(data.context.client)  # it is relayed to a server, which is refused below

    async def server_connect(self, data: ServerConnectionHookData) -> None:
        if data.client in self._refused:
            data.server.error = REFUSED
        elif self._is_closed:
            data.server.error = NOT_LOADED
        elif self._decisions is not None:
            try:
                await self._decisions.check_destination(data)
            except Exception:  # mitmproxy would connect to an address that was not checked
                logger.exception("aibridge: the egress guard failed")
                data.server.error = "the egress guard failed"

    def server_connected(self, data: ServerConnectionHookData) -> None:
        if self._decisions is not None:
            self._decisions.connection_tried(data)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        if self._decisions is not None:
            self._decisions.connection_tried(data)
