"""What requests cost over other transports, and in other sizes: TLS on both sides, HTTP/2 clients, new connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks import proxies, traffic
from benchmarks.client import Dial, plainly
from benchmarks.client_h2 import load_h2
from benchmarks.measures import LOAD_TIMEOUT, Bench, WrongAnswer, compared_rounds
from benchmarks.proxies import Proxies, Proxy
from benchmarks.report import Result
from benchmarks.stage import Stage
from benchmarks.traffic import Scenario
from benchmarks.upstream import Upstream
from tests.support.authority import Authority

HOST = "api.anthropic.com"
"""Clients ask for it within CONNECT."""
SIZES = (10_000, 100_000, 2_000_000)
SHARES = (4, 10, 50)
"""Of the usual number of requests, the part that is measured of each size."""
NEW_CONNECTIONS = 10
"""The usual number of requests, divided by this, is measured with a connection for each."""


async def sizes(stage: Stage) -> list[Result]:
    bench = _Transports(stage, stage.both)
    return [
        await bench.request(traffic.sized(traffic.SMALL, size), share)
        for size, share in zip(SIZES, SHARES, strict=True)
    ]


async def tls(stage: Stage) -> list[Result]:
    """Measure proxies whose clients and whose upstream speak TLS."""
    folder = stage.folder("tls")
    authority = Authority(folder)
    stage.say("TLS: starting mitmdump twice")
    async with Upstream().running(authority.server_context()) as upstream:
        with proxies.running(folder, upstream.tls_port, authority.pem) as both:
            bench = _Transports(replace(stage, upstream=upstream), both, tunnelled=True)
            small, stream = (replace(each, path=each.upstream_path) for each in (traffic.SMALL, traffic.MESSAGES))
            return [
                await bench.request(small, 1, "TLS on both sides, "),
                await bench.chunk(stream, "TLS on both sides, "),
                await bench.connections(small),
                await bench.h2(small, 1),
                await bench.h2(stream, None),
            ]


class _Transports(Bench):
    def __init__(self, stage: Stage, both: Proxies, *, tunnelled: bool = False) -> None:
        super().__init__(both, stage.upstream, stage.plan, stage.say)
        self._tunnelled = tunnelled

    def _dial(self, proxy: Proxy) -> Dial:
        return tunnel(proxy.mitmdump.ca_file, "http/1.1") if self._tunnelled else plainly

    async def request(self, scenario: Scenario, share: int, name: str = "") -> Result:
        count = max(10, self._plan.requests // share)
        await self._warm_up(scenario)
        cpu = await self._cpu_rounds(scenario, count, per=count)
        return compared_rounds(f"{name}CPU per request: {scenario.name}", "µs", cpu)

    async def chunk(self, scenario: Scenario, name: str) -> Result:
        count = self._plan.streams
        await self._warm_up(scenario)
        cpu = await self._cpu_rounds(scenario, count, per=count * traffic.EVENTS)
        return compared_rounds(f"{name}CPU per chunk: {scenario.name}", "µs", cpu)

    async def connections(self, scenario: Scenario) -> Result:
        """Measure a request with a connection, a tunnel and two handshakes of its own."""
        count = max(10, self._plan.requests // NEW_CONNECTIONS)

        async def once(proxy: Proxy) -> None:
            for _ in range(count):
                await self._load(proxy, scenario, 1, connections=1)

        name = "TLS on both sides, CPU per request on a new connection"
        return compared_rounds(name, "µs", await self._rounds(name, once, per=count))

    async def h2(self, scenario: Scenario, share: int | None) -> Result:
        """Measure a client with one HTTP/2 connection for all its requests."""
        count = self._plan.connections if share is None else self._plan.requests // share
        kind, per = ("chunk", count * traffic.EVENTS) if share is None else ("request", count)

        async def once(proxy: Proxy) -> None:
            dial = tunnel(proxy.mitmdump.ca_file, "h2")
            wrong = await load_h2(
                proxy.port, scenario, self._upstream, dial, count, self._plan.connections, LOAD_TIMEOUT
            )
            if wrong:
                raise WrongAnswer(f"{wrong} of {count} answers over HTTP/2 through {proxy.name} were wrong")

        name = f"HTTP/2 client, CPU per {kind}: {scenario.name}"
        return compared_rounds(name, "µs", await self._rounds(name, once, per=per))


def tunnel(ca: Path, protocol: str) -> Dial:
    """Connect through CONNECT, and speak TLS and this protocol within."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols([protocol])

    async def dial(make: Callable[[], asyncio.Protocol], port: int) -> asyncio.BaseTransport:
        loop = asyncio.get_running_loop()
        opened = loop.create_future()
        transport, _ = await loop.create_connection(lambda: _Opening(opened), "127.0.0.1", port)
        transport.write(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n".encode())
        await opened
        protocol = make()
        secured = await loop.start_tls(transport, protocol, context, server_hostname=HOST)
        assert secured is not None
        protocol.connection_made(secured)
        return secured

    return dial


class _Opening(asyncio.Protocol):
    def __init__(self, opened: asyncio.Future[None]) -> None:
        self._opened = opened

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 200 "):
            self._opened.set_result(None)
        else:
            self._opened.set_exception(WrongAnswer(f"the tunnel was refused: {data[:40]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(WrongAnswer("the tunnel was closed"))
