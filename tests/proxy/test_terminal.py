"""mitmproxy's log on a terminal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from mitmproxy.addonmanager import AddonManager
from mitmproxy.hooks import Hook
from mitmproxy.log import LegacyLogEvents
from mitmproxy.test import taddons

from aibridge_addon.proxy import terminal
from aibridge_addon.proxy.addon_manager import SparingAddonManager


class WithAddLog:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def add_log(self, entry: object) -> None:
        self.lines.append(str(getattr(entry, "msg", "")))


class Parent:
    def __init__(self, *addons: object) -> None:
        self.addons = addons


@pytest.fixture(params=[AddonManager, SparingAddonManager])
def addons(request: pytest.FixtureRequest) -> Iterator[AddonManager]:
    with taddons.context() as context:
        context.master.addons = request.param(context.master)
        yield context.master.addons


async def test_addons_with_add_log_get_lines_and_without_them_nothing_is_asked(
    addons: AddonManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    trigger = addons.trigger

    def noted(event: Hook) -> None:
        asked.append(event.name)
        trigger(event)

    monkeypatch.setattr(addons, "trigger", noted)
    addons.master.event_loop = asyncio.get_running_loop()
    handler = LegacyLogEvents(addons.master)
    logger = logging.getLogger()
    logger.addHandler(handler)
    try:
        terminal.spare_add_log(addons)
        terminal.spare_add_log(addons)
        assert len(handler.filters) <= 2  # one is mitmproxy's
        logging.getLogger("x").warning("nothing has the hook")
        await asyncio.sleep(0)
        assert asked == []
        taker = WithAddLog()
        addons.chain.append(Parent(taker))
        logging.getLogger("x").warning("one has it")
        await asyncio.sleep(0)
    finally:
        logger.removeHandler(handler)
    assert [line.rpartition(" ")[2] for line in taker.lines] == ["it"]
