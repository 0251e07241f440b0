"""What the egress guard remembers, for how long and how much of it. Clock and resolver are the test's."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from mitmproxy.connection import Client, Server
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from aibridge_addon.config.schema import Egress
from aibridge_addon.proxy.connection.egress import CHECKED_FOR, MAX_CHECKED, MAX_DEAD, EgressGuard
from tests.support.playbook import make_context

PUBLIC, OTHER, PRIVATE = "93.184.215.14", "93.184.215.15", "10.0.0.1"


class World:
    """Names and their addresses, and the time. `asked` lists each name that was resolved."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.names: dict[str, Sequence[str]] = {}
        self.asked: list[str] = []
        self.guard = EgressGuard(Egress(guard="on"), resolve=self._resolve, clock=lambda: self.now)

    async def _resolve(self, _client: str, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.names.get(host, [PUBLIC])

    async def allows(self, client: Client, host: str) -> bool:
        return await self.guard.refusal(client, host, 443) is None

    async def dial(self, client: Client, host: str, error: str | None = None) -> str | None:
        """Open a connection, which fails with `error` if there is one. Returns the address that was dialled."""
        server = Server(address=(host, 443))
        data = ServerConnectionHookData(server, client)
        await self.guard.dial(data)
        if server.error is not None:
            return None
        dialled = server.address
        server.error = error
        self.guard.dialled(data)
        assert server.address == (host, 443)
        assert dialled is not None
        return dialled[0]


@pytest.fixture
def world() -> World:
    return World()


def a_client() -> Client:
    return make_context().client


async def test_a_name_is_resolved_again_when_its_time_is_over(world: World) -> None:
    client = a_client()
    assert await world.allows(client, "a.test")
    world.now += CHECKED_FOR - 0.01
    assert await world.allows(client, "a.test")
    assert world.asked == ["a.test"]
    world.now += 0.01
    world.names["a.test"] = [PRIVATE]
    assert not await world.allows(client, "a.test")
    assert world.asked == ["a.test"] * 2


async def test_an_address_is_not_dialled_after_its_time(world: World) -> None:
    """The name may mean another address by then, which has not been checked."""
    client = a_client()
    assert await world.allows(client, "a.test")
    world.names["a.test"] = [PRIVATE]
    world.now += CHECKED_FOR - 0.01
    assert await world.dial(client, "a.test") == PUBLIC
    world.now += 0.01
    assert await world.dial(client, "a.test") is None


async def test_a_use_does_not_prolong_the_time(world: World) -> None:
    client = a_client()
    for _ in range(3):
        assert await world.dial(client, "a.test") == PUBLIC
        world.now += CHECKED_FOR / 2
    assert world.asked == ["a.test"] * 2


async def test_what_one_client_may_reach_is_checked_anew_for_another(world: World) -> None:
    one, other = a_client(), a_client()
    assert await world.allows(one, "a.test")
    assert await world.allows(other, "a.test")
    assert world.asked == ["a.test"] * 2


async def test_of_too_many_destinations_the_oldest_is_forgotten(world: World) -> None:
    client = a_client()
    names = [f"{number}.test" for number in range(MAX_CHECKED + 1)]
    for name in names:
        assert await world.allows(client, name)
    world.asked.clear()
    for name in names[1:]:
        assert await world.allows(client, name)
    assert world.asked == []
    assert await world.allows(client, names[0])
    assert world.asked == [names[0]]


async def test_an_address_that_did_not_answer_comes_last(world: World) -> None:
    world.names["a.test"] = [PUBLIC, OTHER]
    assert await world.dial(a_client(), "a.test", error="refused") == PUBLIC
    assert await world.dial(a_client(), "a.test") == OTHER
    world.now += 1
    assert await world.dial(a_client(), "a.test", error="refused") == OTHER
    assert await world.dial(a_client(), "a.test") == PUBLIC, "the one that failed longest ago is tried first"


async def test_of_too_many_dead_addresses_the_oldest_is_forgotten(world: World) -> None:
    client = a_client()
    world.names["a.test"] = [PUBLIC, OTHER]
    assert await world.dial(client, "a.test", error="refused") == PUBLIC
    dead = [f"93.{number // 256}.{number % 256}.1" for number in range(MAX_DEAD)]
    for address in dead[:-1]:
        assert await world.dial(client, address, error="refused") == address
    assert await world.dial(a_client(), "a.test") == OTHER
    assert await world.dial(client, dead[-1], error="refused") == dead[-1]
    assert await world.dial(a_client(), "a.test") == PUBLIC
