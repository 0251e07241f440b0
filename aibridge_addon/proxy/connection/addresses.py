"""Distinguish public addresses from private and reserved ones, and clients by their addresses. Sans-io.

The networks are those of the IANA registries of special-purpose addresses (RFC 6890 and its successors). An IPv4-mapped
IPv6 address is judged by its IPv4 address. Other forms that embed one (NAT64, 6to4, Teredo) are reserved as a whole.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from mitmproxy.connection import Client

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RESERVED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # "this network"; Linux connects to itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; clouds serve machine credentials here
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "::/96",  # unspecified, loopback, and IPv4-compatible addresses (deprecated)
        "64:ff9b::/96",  # NAT64: embeds any IPv4 address
        "64:ff9b:1::/48",  # NAT64 within one network
        "100::/64",  # discarded
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: embeds any IPv4 address
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # private (unique local)
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local, deprecated
        "ff00::/8",  # multicast
    )
)


def maybe_address(host: str) -> Address | None:
    """Parse a host as an address; brackets and a zone are removed. Returns None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def address_of(client: Client) -> str:
    """Return the address that stands for a client in limits: of IPv6 the /64 network, in which it chooses one."""
    host = client.peername[0] if client.peername else ""
    address = maybe_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host if address is None else str(getattr(address, "ipv4_mapped", None) or address)


def is_reserved(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Return whether an address is private or reserved and not in an `allowed` network."""
    address = getattr(address, "ipv4_mapped", None) or address
    return _in_any(address, RESERVED) and not _in_any(address, allowed)


def _in_any(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
