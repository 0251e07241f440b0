"""Names are looked up on threads of their own, with limits. What is known of them is used."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest
from mitmproxy.connection import Client, Server
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from aibridge_addon.proxy.connection.addresses import address_of
from aibridge_addon.proxy.connection.names import (
    CONFIGURED_FAILED_FOR,
    DEFAULT_LIMITS,
    FRESH_FOR,
    MAX_NAMES,
    MAX_OTHER_LOOKUPS,
    SILENT_FOR,
    STALE_FOR,
    Names,
    Unresolved,
)
from tests.support.playbook import make_context

ONE, OTHER = "192.0.2.1", "192.0.2.2"
PLACE = "192.0.2.80"
AT_ONCE = 0.01
"""Seconds that a lookup of these tests may take. A silent one takes until the test is over."""
PATIENT = DEFAULT_LIMITS.model_copy(update={"lookup_timeout": 30})
HURRIED = DEFAULT_LIMITS.model_copy(update={"lookup_timeout": AT_ONCE})
MAX_LOOKUPS, MAX_LOOKUPS_OF_CLIENT = DEFAULT_LIMITS.lookups, DEFAULT_LIMITS.lookups_per_client
FAILED_FOR = DEFAULT_LIMITS.lookup_failed


class World:
    """Names and the time. `asked` lists each name that was looked up."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.asked: list[str] = []
        self.missing: set[str] = set()
        self.over = threading.Event()
        self.names = Names(self._lookup, clock=lambda: self.now, limits=PATIENT)

    def silence(self) -> None:
        """From now on, names whose lookup is not over soon count as silent."""
        self.names.limits = HURRIED

    def _lookup(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if host.startswith("silent"):
            self.over.wait(30)
        if host.startswith(("silent", "no")) or host in self.missing:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [PLACE, PLACE]

    async def fails(self, host: str, client: str = ONE) -> bool:
        try:
            await self.names.resolve(client, host)
        except Unresolved:
            return True
        return False

    async def silent(self, count: int, client: str = ONE) -> None:
        """Have so many silent names looked up, each under a name of its own."""
        self.silence()
        begin = len(self.asked)
        assert all(await asyncio.gather(*(self.fails(f"silent{begin + n}", client) for n in range(count))))
        self.names.limits = PATIENT

    async def end(self) -> None:
        """Have all silent names answered, and wait for that."""
        self.over.set()
        while self.names._running:  # noqa: ASYNC110 (threads end)
            await asyncio.sleep(AT_ONCE)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.over.set()


async def test_the_addresses_of_a_name_are_found_anew_each_time(world: World) -> None:
    """The egress guard checks them, so they are not remembered for the next request."""
    for _ in range(2):
        assert await world.names.resolve(ONE, "a.test") == [PLACE]
    assert world.asked == ["a.test"] * 2


async def test_requests_at_the_same_time_share_a_lookup(world: World) -> None:
    found = await asyncio.gather(*(world.names.resolve(client, "a.test") for client in (ONE, OTHER, ONE)))
    assert found == [[PLACE]] * 3
    assert world.asked == ["a.test"]


async def test_silent_names_cost_no_other_client_and_no_other_name(world: World) -> None:
    await world.silent(60)
    assert await world.names.resolve(ONE, "a.test") == [PLACE]
    assert await world.names.resolve(OTHER, "a.test") == [PLACE]


async def test_the_threads_of_asyncio_are_left_alone(world: World) -> None:
    await world.silent(60)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 30) == 1


async def test_a_client_has_a_limit_which_leaves_others_and_configured_names_alone(world: World) -> None:
    world.names.configured = {"provider.test"}
    await world.silent(MAX_LOOKUPS_OF_CLIENT)
    assert await world.fails("a.test")
    assert "a.test" not in world.asked
    assert await world.names.resolve(OTHER, "a.test") == [PLACE]
    assert await world.names.resolve(ONE, "provider.test") == [PLACE]


async def test_there_is_a_limit_for_all_clients_which_leaves_configured_names_alone(world: World) -> None:
    world.names.configured = {"provider.test"}
    assert await world.names.resolve(OTHER, "known.test") == [PLACE]
    for number in range(MAX_LOOKUPS // MAX_LOOKUPS_OF_CLIENT):
        await world.silent(MAX_LOOKUPS_OF_CLIENT, f"192.0.2.{number + 100}")
    assert await world.fails("a.test", OTHER)
    assert await world.names.resolve(OTHER, "provider.test") == [PLACE]
    assert await world.names.resolve(OTHER, "known.test") == [PLACE], "its last addresses"


async def test_a_lookup_that_has_ended_counts_no_more(world: World) -> None:
    await world.silent(MAX_LOOKUPS_OF_CLIENT)
    await world.end()
    assert not world.names._of_client
    assert await world.names.resolve(ONE, "a.test") == [PLACE]


@pytest.mark.parametrize(
    ("host", "configured", "seconds"),
    [
        ("nowhere.test", False, FAILED_FOR),
        ("nowhere.test", True, CONFIGURED_FAILED_FOR),
        ("silent.test", False, SILENT_FOR),
        ("silent.test", True, CONFIGURED_FAILED_FOR),
    ],
)
async def test_what_has_failed_is_not_looked_up_again_for_a_while(
    world: World, host: str, configured: bool, seconds: float
) -> None:
    if configured:
        world.names.configured = {host}
    if host.startswith("silent"):
        world.silence()
    assert await world.fails(host)
    await world.end()
    if host.startswith("silent"):
        world.names._failed[host] = world.now + seconds  # the lookup has failed at last, which counts anew
    world.now += seconds - 0.01
    assert await world.fails(host, OTHER)
    assert len(world.asked) == 1
    world.now += 0.01
    world.names.limits = PATIENT
    assert await world.fails(host)
    assert len(world.asked) == 2


async def test_the_last_addresses_are_used_if_a_name_cannot_be_looked_up(world: World) -> None:
    await world.names.resolve(ONE, "a.test")
    world.missing.add("a.test")
    assert await world.names.resolve(ONE, "a.test") == [PLACE]
    world.now += STALE_FOR
    assert await world.fails("a.test")


async def test_the_oldest_of_too_many_names_is_forgotten(world: World) -> None:
    for number in range(MAX_NAMES + 1):
        await world.names.resolve(ONE, f"{number}.test")
    assert len(world.names._known) == MAX_NAMES and "0.test" not in world.names._known


@pytest.mark.parametrize(("host", "error"), [("a.test", False), ("nowhere.test", True), (PLACE, False)])
async def test_a_connection_to_a_name_without_an_address_is_refused(world: World, host: str, error: bool) -> None:
    server = Server(address=(host, 443))
    await world.names.check(ServerConnectionHookData(server, make_context().client))
    assert (server.error is not None) is error
    assert (host in world.asked) is (host != PLACE)


async def test_the_event_loop_uses_what_was_found_a_moment_ago(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    world.names.answer(loop)
    await world.names.resolve(ONE, "a.test")
    found = await loop.getaddrinfo("a.test", 443, type=socket.SOCK_STREAM)
    assert [where for *_, where in found] == [(PLACE, 443)]
    world.now += FRESH_FOR
    asked: list[object] = []

    def getaddrinfo(*args: object) -> list[object]:
        asked.append(args)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await loop.getaddrinfo("a.test", 443) == []
    assert asked == [("a.test", 443, 0, 0, 0, 0)]


async def test_the_event_loop_uses_the_last_addresses_if_a_name_cannot_be_looked_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the connection would wait for the resolver on a thread that no limit counts."""
    loop = asyncio.get_running_loop()
    world.names.answer(loop)
    await world.names.resolve(ONE, "a.test")
    world.now += FRESH_FOR
    world.missing.add("a.test")
    server = Server(address=("a.test", 443))
    await world.names.check(ServerConnectionHookData(server, make_context().client))
    assert server.error is None
    found = await loop.getaddrinfo("a.test", 443, type=socket.SOCK_STREAM)
    assert [where for *_, where in found] == [(PLACE, 443)]
    world.now += STALE_FOR - FRESH_FOR
    assert await world.fails("a.test"), "they do not get younger"


async def test_lookups_that_no_client_has_asked_for_have_a_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    world.names.answer(loop)
    over = threading.Event()

    def getaddrinfo(*_: object) -> list[object]:
        over.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    world.names.configured = {"provider.test"}
    waiting = [asyncio.ensure_future(loop.getaddrinfo(f"{n}.test", 80)) for n in range(MAX_OTHER_LOOKUPS)]
    await asyncio.sleep(0)
    with pytest.raises(socket.gaierror, match="too many"):
        await loop.getaddrinfo("one-more.test", 80)
    configured = asyncio.ensure_future(loop.getaddrinfo("provider.test", 80))
    waiting[0].cancel()  # its thread goes on, so it counts until that ends
    await asyncio.sleep(0)
    with pytest.raises(socket.gaierror, match="too many"):
        await loop.getaddrinfo("one-more.test", 80)
    over.set()
    assert await asyncio.gather(*waiting[1:], configured) == [[]] * MAX_OTHER_LOOKUPS
    while world.names._others:  # noqa: ASYNC110 (threads end)
        await asyncio.sleep(AT_ONCE)
    assert await loop.getaddrinfo("one-more.test", 80) == []


def test_a_client_with_an_ipv6_network_has_one_limit() -> None:
    def client(host: str) -> Client:
        made = make_context().client
        made.peername = (host, 1)
        return made

    one, two, three = (
        address_of(client(host)) for host in ("2001:db8:1:2::3", "2001:db8:1:2:ffff::", "2001:db8:1:3::")
    )
    assert one == two != three
    assert address_of(client(ONE)) == ONE
