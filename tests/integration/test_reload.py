"""Options of mitmproxy that change while it runs, and what outlives the change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from mitmproxy.exceptions import OptionsError

from aibridge_addon.addon import AIBridge
from aibridge_addon.bridge import Bridge
from aibridge_addon.proxy.life import Life
from tests.conftest import StartProxy
from tests.integration.answers import PATH, REQUEST, SIMPLE, ask, config, whole
from tests.integration.exchanges import ANTHROPIC, wait_for_ended
from tests.support.in_process import InProcessProxy
from tests.support.polling import poll_until
from tests.support.running import NO_METRICS
from tests.support.upstream import ScriptedUpstream, unused_port


def on_loop[Result](proxy: InProcessProxy, call: Callable[[], Result]) -> Result:
    """Call a function on the proxy's event loop."""

    async def called() -> Result:
        return call()

    assert proxy._loop is not None
    return asyncio.run_coroutine_threadsafe(called(), proxy._loop).result(10)


def life_of(proxy: InProcessProxy) -> Life:
    assert proxy._master is not None
    life = proxy._master.addons.get(Life.name)
    assert isinstance(life, Life)
    return life


def addon_of(proxy: InProcessProxy) -> AIBridge:
    addon = life_of(proxy).addon
    assert isinstance(addon, AIBridge)
    return addon


def current(proxy: InProcessProxy) -> Bridge:
    bridge = life_of(proxy).current
    assert bridge is not None
    return bridge


def set_options(proxy: InProcessProxy, **options: object) -> None:
    assert proxy._master is not None
    on_loop(proxy, lambda: proxy._master.options.update(**options))  # type: ignore[union-attr]


def reloaded(proxy: InProcessProxy, reload: Callable[[], None]) -> Bridge:
    """Have a reload done, and wait for the new bridge."""
    before = current(proxy)
    reload()
    # On the loop: `current` changes before what depends on it, in the same turn of the loop.
    poll_until(lambda: on_loop(proxy, lambda: life_of(proxy).current) is not before, 30, what="the next bridge")
    return current(proxy)


def test_another_configuration_file_counts_from_then_on(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    addresses = [f"127.0.0.1:{unused_port()}" for _ in range(2)]
    proxy = start_proxy(config=config(upstream.port, f"drain_timeout: 600\nmetrics: {{listen: '{addresses[0]}'}}"))
    other = tmp_path / "other.yaml"
    other.write_text(config(upstream.port, f"drain_timeout: 2\nmetrics: {{listen: '{addresses[1]}'}}"))
    bridge = reloaded(proxy, lambda: set_options(proxy, aibridge_config=str(other)))
    assert (bridge.settings.drain_timeout, life_of(proxy).bridges[-1]) == (2, bridge)
    assert httpx.get(f"http://{addresses[1]}/readyz", trust_env=False).json()["ready"] is True
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{addresses[0]}/readyz", trust_env=False)
    upstream.answer(whole())
    ask(proxy)
    assert [row["status"] for row in wait_for_ended(proxy, 1)] == ["completed"]


@pytest.mark.parametrize("option", ["aibridge_config", "aibridge_database", "aibridge_metrics"])
def test_a_wrong_option_is_not_taken(start_proxy: StartProxy, upstream: ScriptedUpstream, option: str) -> None:
    proxy = start_proxy(config=config(upstream.port))
    bridge = current(proxy)
    assert proxy._master is not None
    before = getattr(proxy._master.options, option)
    with pytest.raises(OptionsError):
        set_options(proxy, **{option: "nowhere"})
    assert getattr(proxy._master.options, option) == before
    proxy.wait_for_log("the options are not changed")
    assert current(proxy) is bridge
    upstream.answer(whole())
    ask(proxy)
    assert [row["status"] for row in wait_for_ended(proxy, 1)] == ["completed"]


def test_several_reloads_at_once_end_with_one_bridge(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=config(upstream.port))
    life = life_of(proxy)

    def twice() -> None:
        on_loop(proxy, life.reload)
        on_loop(proxy, life.reload)

    reloaded(proxy, twice)
    poll_until(lambda: life._reloading is None, 30, what="the end of the reloads")
    poll_until(lambda: on_loop(proxy, lambda: life.bridges) == [current(proxy)], 30, what="the end of other bridges")


def test_records_that_a_replaced_bridge_has_lost_stay_counted(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=config(upstream.port))
    first = current(proxy)
    first.stream._refused = 3
    life = life_of(proxy)
    for _ in range(2):
        bridge = reloaded(proxy, lambda: on_loop(proxy, life.reload))
        assert bridge._readiness().lost == 3
        poll_until(lambda: on_loop(proxy, lambda: life.bridges) == [bridge], 30, what="the end of the others")  # noqa: B023
        assert bridge._readiness().lost == 3


def test_the_egress_guard_keeps_its_memory(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=config(upstream.port, "egress: {guard: 'on'}"))
    addon = addon_of(proxy)
    guard = addon._guard
    assert guard is not None
    set_options(proxy, anticache=True)
    assert addon._guard is guard
    reloaded(proxy, lambda: on_loop(proxy, life_of(proxy).reload))
    assert addon._guard is guard
    file = proxy.folder / "aibridge.yaml"
    file.write_text(config(upstream.port, f"{NO_METRICS}egress: {{guard: 'on', ports: [443]}}"))
    reloaded(proxy, lambda: on_loop(proxy, life_of(proxy).reload))
    assert addon._guard is not guard and addon._guard is not None
    assert addon._guard._dead is guard._dead


BUDGETS = """
budgets:
  - {name: asked, per: actor, period: month, requests: 4, warn_at: 0.25}
  - {name: paid, per: group, period: month, usd: 100, unpriced: warn}
  - {name: all, per: all, period: month, tokens: 100000000}
"""


def test_a_reload_keeps_what_budgets_have_spent(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    metrics = f"127.0.0.1:{unused_port()}"
    settings = f"metrics: {{listen: '{metrics}'}}{BUDGETS}actor: {{default: ada}}"

    def scrape() -> str:
        return httpx.get(f"http://{metrics}/metrics", trust_env=False).text

    proxy = start_proxy(config=config(upstream.port, settings))
    upstream.answer(whole(), whole())
    ask(proxy)
    wait_for_ended(proxy, 1)
    reloaded(proxy, lambda: on_loop(proxy, life_of(proxy).reload))
    used = 'aibridge_budget_used_ratio{name="asked",subject="ada"} '
    poll_until(lambda: f"{used}0.25" in scrape(), 30, what="the share that was used before the reload")
    ask(proxy)
    poll_until(lambda: f"{used}0.5" in scrape(), 30, what="the share that was used in all")
    assert "not reloaded" not in proxy.log


def test_a_tunnel_keeps_its_actor_over_a_reload(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """The front proxy names the actor on CONNECT, and cannot do so again inside the tunnel."""
    proxy = start_proxy(config=config(upstream.port, "actor: {required: true, header: X-User}"))
    upstream.answer(whole(), whole())
    way = httpx.Proxy(proxy.proxy_url, headers={"x-user": "ada"})
    trusted = ssl.create_default_context(cafile=str(proxy.ca_file))
    with httpx.Client(proxy=way, verify=trusted, trust_env=False) as client:
        for _ in range(2):
            assert client.post(f"https://{ANTHROPIC}{PATH}", content=REQUEST).content == SIMPLE.body
            reloaded(proxy, lambda: on_loop(proxy, life_of(proxy).reload))
    assert [row["initiator_id"] for row in wait_for_ended(proxy, 2)] == ["ada"] * 2


def test_an_addon_that_is_unloaded_ends_its_bridge_and_says_so(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=config(upstream.port))
    life = life_of(proxy)
    bridge = current(proxy)
    set_options(proxy, scripts=[])
    proxy.wait_for_log("aibridge is unloaded: requests are not recorded any more")
    assert life.current is None
    poll_until(lambda: bridge.ended, 30, what="the end of the bridge")
