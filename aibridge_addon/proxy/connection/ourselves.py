"""Recognise this process's own listeners as a destination, and connections that it made to them itself.

A client of the proxy may request the proxy's own address. Its request is a gateway request then, so nothing is dialled.
A connection to ourselves can still be made, such as with TLS inside. It comes from this machine, so its headers would
be those of a trusted front proxy although a client wrote them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import ctx
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, Server

from aibridge_addon.proxy.connection.addresses import maybe_address

LOCALHOST = "localhost"


def is_own_address(address: tuple[Any, ...] | None, client: Client) -> bool:
    """Return whether a destination is a listener of this process, by the names that are known without a resolver."""
    if not address:
        return False
    host = str(address[0]).lower().rstrip(".").strip("[]")
    if host != LOCALHOST:
        literal = maybe_address(host) if host[:1].isdigit() or ":" in host else None
        if literal is None or not (literal.is_loopback or _plain(host) == _plain(str(client.sockname[0]))):
            return False
    return int(address[1]) in set(_ports())


def _ports() -> Iterator[int]:
    for server in _proxyserver().servers:
        yield from (int(address[1]) for address in server.listen_addrs)


class OwnConnections:
    """Remembers for each client connection whether this process made it itself."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Client, bool] = WeakKeyDictionary()

    def made(self, client: Client) -> bool:
        """Return whether this process made a connection to itself. Call this when a request has arrived on it.

        By then, our own end of the connection is open, because the request was sent through it.
        """
        known = self._known.get(client)
        if known is None:
            known = self._known[client] = _is_made_here(client)
        return known


def _is_made_here(client: Client) -> bool:
    end = _end(client.peername)
    handlers = _proxyserver().connections.values()
    return end is not None and any(
        isinstance(connection, Server) and _end(connection.sockname) == end
        for handler in list(handlers)
        for connection in list(handler.transports)
    )


def _end(address: tuple[Any, ...] | None) -> tuple[str, int] | None:
    return (_plain(str(address[0])), int(address[1])) if address else None


def _plain(host: str) -> str:
    """Return an address without a zone, and without the IPv6 form of an IPv4 address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def _proxyserver() -> Proxyserver:
    server = ctx.master.addons.get("proxyserver")
    assert isinstance(server, Proxyserver)
    return server
