"""Which addresses are of the public Internet, and which are of somebody's own network. Sans-io.

From the IANA registries of special-purpose addresses (RFC 6890 and its successors). What carries an IPv4 address inside
an IPv6 one (mapped, NAT64, 6to4, Teredo) is reserved as a whole, or judged by the address that it carries.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RESERVED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # "this network"; Linux takes it for itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local: where clouds serve their machines' credentials
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, given up
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "::/96",  # unspecified, loopback, and IPv4-compatible addresses, which were given up
        "64:ff9b::/96",  # NAT64: carries any IPv4 address
        "64:ff9b:1::/48",  # NAT64 of somebody's own network
        "100::/64",  # discarded
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: carries any IPv4 address
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # private (unique local)
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local, given up
        "ff00::/8",  # multicast
    )
)


def maybe_address(host: str) -> Address | None:
    """The address that a host is, be it in brackets or with a zone; None if it is a name."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def is_reserved(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether an address is not of the public Internet, and in none of the networks that are `allowed`."""
    address = getattr(address, "ipv4_mapped", None) or address
    return _in_any(address, RESERVED) and not _in_any(address, allowed)


def _in_any(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
