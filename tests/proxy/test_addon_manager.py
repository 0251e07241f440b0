"""Hooks are called as mitmproxy calls them, whatever the addons are."""

from __future__ import annotations

import logging
import types
from typing import Any

import pytest
from mitmproxy import hooks
from mitmproxy.addonmanager import AddonManager
from mitmproxy.exceptions import AddonHalt
from mitmproxy.test import taddons, tflow

from aibridge_addon.proxy.addon_manager import SparingAddonManager, use_sparing_manager


class Noted:
    """Notes its calls."""

    def __init__(self, called: list[str], name: str, *addons: Any) -> None:
        self.name = name
        self._called = called
        if addons:
            self.addons = list(addons)

    def update(self, flows: Any) -> None:
        self._called.append(self.name)


class Later(Noted):
    async def update(self, flows: Any) -> None:  # type: ignore[override]
        self._called.append(self.name)


class Raising(Noted):
    def update(self, flows: Any) -> None:
        super().update(flows)
        raise ValueError("of another addon")


class Halting(Noted):
    def update(self, flows: Any) -> None:
        super().update(flows)
        raise AddonHalt


class Property(Noted):
    @property
    def update(self) -> Any:
        raise ValueError("of a property")


class Module(Noted):
    update = types.ModuleType("update")  # type: ignore[assignment]


class NotCallable(Noted):
    update = 1  # type: ignore[assignment]

    def __repr__(self) -> str:
        return self.name


class Without:
    name = "without"


class Adding(Noted):
    """Gets its hook, and another addon, while hooks are called."""

    def update(self, flows: Any) -> None:
        super().update(flows)
        self.added.append(Noted(self._called, "added"))

    added: list[Any]


def chain(called: list[str], *, halts: bool) -> list[Any]:
    adding = Adding(called, "adding")
    found = [
        Without(),
        Noted(called, "first"),
        Raising(called, "raising"),
        Noted(called, "parent", Without(), Noted(called, "child", Noted(called, "grandchild"))),
        Property(called, "property"),
        Module(called, "module"),
        NotCallable(called, "number"),
        adding,
        *([Halting(called, "halting")] if halts else []),
        types.SimpleNamespace(addons=[Noted(called, "only a child")]),
        Noted(called, "last"),
    ]
    adding.added = found
    return found


@pytest.mark.parametrize("halts", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
async def test_addons_are_called_in_the_same_order_with_the_same_errors(
    halts: bool, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []
    for kind in (AddonManager, SparingAddonManager):
        caplog.clear()
        with taddons.context() as context, caplog.at_level(logging.ERROR):
            called: list[str] = []
            addons = kind(context.master)  # type: ignore[no-untyped-call]
            addons.chain = chain(called, halts=halts)
            event = hooks.UpdateHook([tflow.tflow()])
            if is_async:
                addons.chain.insert(2, Later(called, "later"))
                await addons.trigger_event(event)
            else:
                addons.trigger(event)
            seen.append((called, [record.getMessage() for record in caplog.records]))
    assert seen[0] == seen[1]
    assert ("last" in seen[0][0]) is not halts


async def test_a_waiting_hook_is_an_error_where_nothing_waits(caplog: pytest.LogCaptureFixture) -> None:
    with taddons.context() as context, caplog.at_level(logging.ERROR):
        addons = SparingAddonManager(context.master)  # type: ignore[no-untyped-call]
        addons.chain = [Later([], "later")]
        addons.trigger(hooks.UpdateHook([]))
    assert "cannot be called from sync context" in caplog.text


async def test_the_master_keeps_its_manager_and_its_addons() -> None:
    with taddons.context(Without()) as context:
        addons = context.master.addons
        before = list(addons.chain)
        addons.__class__ = AddonManager
        use_sparing_manager(addons)
        use_sparing_manager(addons)
        assert type(addons) is SparingAddonManager and addons.chain == before
        assert isinstance(addons.get("without"), Without)  # type: ignore[no-untyped-call]


async def test_a_manager_of_another_class_stays() -> None:
    class Other(AddonManager):
        pass

    with taddons.context() as context:
        addons = Other(context.master)  # type: ignore[no-untyped-call]
        use_sparing_manager(addons)
    assert type(addons) is Other
