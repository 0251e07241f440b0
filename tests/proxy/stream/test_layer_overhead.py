"""The wait for the rows is part of what the bridge costs a request."""

from __future__ import annotations

import asyncio
import time
import urllib.request

from mitmproxy.proxy.layers.http import _hooks as hooks
from prometheus_client.parser import text_string_to_metric_families

from aibridge_addon.proxy.stream.hooks import AibridgeCommitHook
from tests.proxy.conftest import MakeScene
from tests.support import fixtures
from tests.support.database import locked
from tests.support.scene import CHUNKED_END, chunk
from tests.support.upstream import unused_port

STREAM = fixtures.case("messages/simple/streaming")
AT_MOST = 2.0
"""Seconds that the database is held, on the slowest machine: the bridge waits no longer than 5."""
OVERHEAD = "aibridge_overhead_seconds_sum"


async def scraped(port: int, name: str) -> float:
    """The sum of a metric's samples, as a scraper reads them."""

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            text: str = response.read().decode()
            return text

    families = text_string_to_metric_families(await asyncio.to_thread(scrape))
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


async def test_the_overhead_contains_the_wait_for_the_rows(make_scene: MakeScene) -> None:
    port = unused_port()
    scene = make_scene({"metrics": {"listen": f"127.0.0.1:{port}"}})
    began = time.perf_counter()
    upstream = await scene.answer_stream(STREAM)
    scene.playbook.receive(upstream, chunk(STREAM.body) + CHUNKED_END)
    scene.playbook.sent(scene.client)
    hook = scene.playbook.expect(AibridgeCommitHook)
    with locked(scene.database):
        waiting = asyncio.ensure_future(scene.run(hook))
        held = time.perf_counter()
        waited = 0.0
        while waited <= min(held - began, AT_MOST):  # more than all else can have taken so far
            await asyncio.sleep(0)
            waited = time.perf_counter() - held
        assert not waiting.done()
    await waiting
    scene.playbook.done(hook)
    assert scene.playbook.sent(scene.client)
    await scene.hook(hooks.HttpResponseHook)
    scene.playbook.sent(scene.client)
    await scene.bridge.committed()  # by then, every sink has received the records so far
    assert await scraped(port, OVERHEAD) >= waited
