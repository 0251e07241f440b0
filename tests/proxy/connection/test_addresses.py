"""Which addresses are private or reserved: the first and the last of each range, and their neighbours."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from aibridge_addon.proxy.connection.addresses import RESERVED, is_reserved, maybe_address

PUBLIC = [
    *(
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "128.0.0.1",
    ),
    *("169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0"),
    *("198.17.255.255", "198.20.0.0", "223.255.255.255"),
    *("2606:4700::1111", "2a00:1450::1", "2400::1", "2003::1", "::ffff:8.8.8.8"),
]


@pytest.mark.parametrize("network", RESERVED, ids=str)
def test_the_first_and_the_last_address_of_each_range_are_reserved(network: object) -> None:
    net = ip_network(str(network))
    assert is_reserved(net[0]) and is_reserved(net[-1])


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_beside_them_are_not(address: str) -> None:
    assert not is_reserved(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "169.254.169.254", "255.255.255.255", "0.0.0.0"),
        *("::1", "::", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
        *("2002:7f00:1::", "2001:0:7f00:1::", "fd00::1", "fe80::1%eth0", "[::1]", "fec0::1", "ff02::1"),
    ],
)
def test_every_way_to_write_an_own_address_is_reserved(address: str) -> None:
    found = maybe_address(address)
    assert found is not None and is_reserved(found)


def test_an_allowed_network_is_allowed_in_both_forms() -> None:
    allowed = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    assert not is_reserved(ip_address("10.9.9.9"), allowed)
    assert not is_reserved(ip_address("::ffff:10.9.9.9"), allowed)
    assert not is_reserved(ip_address("fd00::1"), allowed)
    assert is_reserved(ip_address("127.0.0.1"), allowed)


@pytest.mark.parametrize("name", ["localhost", "example.com", "", "1.2.3", "0x7f000001", "2130706433", "127.1"])
def test_what_is_no_address_is_a_name(name: str) -> None:
    """The resolver knows odd ways to write an address, and what it answers is looked at."""
    assert maybe_address(name) is None
