"""X.509 name constraints (RFC 5280, section 4.2.1.10): the names for which a certificate authority may sign.

Constraints on DNS names leave addresses free, since each kind of name has constraints of its own. So ours exclude all
addresses, except where a provider's host is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from cryptography import x509

ALL_ADDRESSES = (ip_network("0.0.0.0/0"), ip_network("::/0"))
NO_NAME = "invalid"
"""A top-level domain that has no hosts (RFC 6761, section 6.4). Without a permitted name, all names are permitted."""

NEXT_STEP = "delete its files (mitmproxy-ca*), run `aibridge certs make --constrain`, and let clients trust the new one"
"""What to do if an authority may not sign for a provider's host."""
MAX_HOSTS = 8
"""Hosts that a message names."""

_REGION = re.compile(r"(?<=\.)(?:cn|us-gov|[a-z]{2})-[a-z]+-\d(?=\.)")


def name_constraints(hosts: Iterable[str]) -> x509.NameConstraints:
    """Return constraints that permit these hosts, and the names below them, and nothing else.

    `hosts`: DNS names in ASCII, and IP addresses.
    """
    names = [general_name(host) for host in dict.fromkeys(hosts)]
    networks = [ip_network(name.value) for name in names if isinstance(name, x509.IPAddress)]
    permitted = [name for name in names if isinstance(name, x509.DNSName)] or [x509.DNSName(NO_NAME)]
    versions = {network.version for network in networks}
    # An excluded address cannot be permitted. Beside a permitted one, all others of its version are refused anyway.
    excluded = [x509.IPAddress(each) for each in ALL_ADDRESSES if each.version not in versions]
    return x509.NameConstraints([*permitted, *map(x509.IPAddress, networks)], excluded or None)


def general_name(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host.lower().rstrip("."))


@dataclass(frozen=True, slots=True)
class Limits:
    """The constraints of the certificates of a chain. All of them apply."""

    constraints: tuple[x509.NameConstraints, ...]

    def permits(self, name: x509.GeneralName) -> bool:
        """Return whether a DNS name or an address may be in a certificate. Other kinds of names may not."""
        return isinstance(name, x509.DNSName | x509.IPAddress) and all(
            _permits(each, name) for each in self.constraints
        )

    def permits_host(self, host: str) -> bool:
        try:
            return self.permits(general_name(host))
        except ValueError:
            return False  # it is not ASCII

    @property
    def permitted(self) -> tuple[str, ...]:
        """The permitted names and addresses of the first certificate with constraints, as text."""
        names = (self.constraints[0].permitted_subtrees or ()) if self.constraints else ()
        return tuple(_text(name) for name in names if isinstance(name, x509.DNSName | x509.IPAddress))


def limits_of(certificates: Iterable[x509.Certificate]) -> Limits | None:
    """Return the constraints of a chain. None: it may sign for every host. Raises ValueError: one cannot be read."""
    found = []
    for certificate in certificates:
        try:
            found.append(certificate.extensions.get_extension_for_class(x509.NameConstraints).value)
        except x509.ExtensionNotFound:
            continue
    return Limits(tuple(found)) if found else None


def by_region(names: Iterable[str]) -> dict[str, int]:
    """Return the names with their number, those that differ only in AWS's region as one with `<region>` in it."""
    counts: dict[str, int] = {}
    for name in names:
        key = _REGION.sub("<region>", name)
        counts[key] = counts.get(key, 0) + 1
    return counts


def some(hosts: Sequence[str]) -> str:
    """Return the first hosts of a list, and the number of the others."""
    more = len(hosts) - MAX_HOSTS
    return ", ".join(hosts[:MAX_HOSTS]) + (f" and {more} more" if more > 0 else "")


def _permits(constraints: x509.NameConstraints, name: x509.GeneralName) -> bool:
    if any(_within(name, tree) for tree in constraints.excluded_subtrees or ()):
        return False
    same_kind = [tree for tree in constraints.permitted_subtrees or () if type(tree) is type(name)]
    return not same_kind or any(_within(name, tree) for tree in same_kind)


def _within(name: x509.GeneralName, tree: x509.GeneralName) -> bool:
    if isinstance(name, x509.DNSName) and isinstance(tree, x509.DNSName):
        host, base = name.value.lower().rstrip("."), tree.value.lower()
        return not base or host == base or host.endswith(base if base.startswith(".") else f".{base}")
    address, network = name.value, tree.value
    if isinstance(address, IPv4Address | IPv6Address) and isinstance(network, IPv4Network | IPv6Network):
        return address.version == network.version and address in network
    return False


def _text(name: x509.DNSName | x509.IPAddress) -> str:
    value = name.value
    if isinstance(value, IPv4Network | IPv6Network) and value.num_addresses == 1:
        return str(value.network_address)
    return str(value)
