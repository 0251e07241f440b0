"""The addons that ours puts into mitmproxy's chain beside itself."""

from __future__ import annotations

import asyncio

from mitmproxy.addons import proxyauth
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.test import taddons

from aibridge_addon.addon import AIBridge
from aibridge_addon.proxy.connection.authentication import Authentication
from aibridge_addon.proxy.gate import Gate
from aibridge_addon.proxy.life import Life


async def test_each_is_there_once_also_where_a_program_adds_ours_itself() -> None:
    """`aibridge run` does so. `AddonManager.add` appends to the list that was there before our `load`."""
    ours = AIBridge()
    with taddons.context(Proxyserver(), proxyauth.ProxyAuth(), ours) as context:
        await asyncio.sleep(0)
        chain = context.master.addons.chain
        assert chain.count(ours) == 1
        assert isinstance(chain[0], Gate)
        for kind in (Gate, Life, Authentication):
            assert [type(addon) for addon in chain].count(kind) == 1
        assert not any(type(addon) is proxyauth.ProxyAuth for addon in chain)
        assert isinstance(context.master.addons.get("proxyauth"), Authentication)
