"""Hooks are called as mitmproxy calls them, whatever the addons are."""

from __future__ import annotations

import logging
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from mitmproxy import hooks, http
from mitmproxy.addonmanager import AddonManager
from mitmproxy.connection import Client
from mitmproxy.exceptions import AddonHalt
from mitmproxy.options import Options
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.proxy.server_hooks import ClientConnectedHook
from mitmproxy.test import taddons, tflow
from mitmproxy.tools import dump
from mitmproxy.tools.console import master as console
from mitmproxy.tools.web import master as web

from aibridge_addon.proxy.addon_manager import SparingAddonManager, never_has, use_sparing_manager


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


def appending(called: list[str]) -> list[Any]:
    """Addons of addons: a set of them, and one that gets a sibling while its hook is called."""
    family = types.SimpleNamespace(addons=[])
    adding = Adding(called, "child")
    adding.added = family.addons
    family.addons.append(adding)
    return [types.SimpleNamespace(addons={Noted(called, "of a set")}), family]


class Moving(Noted):
    """Changes the chain while hooks are called."""

    def __init__(self, called: list[str], manager: AddonManager, move: Callable[[AddonManager], object]) -> None:
        super().__init__(called, "moving")
        self._manager, self._move = manager, move

    def update(self, flows: Any) -> None:
        super().update(flows)
        if self._called.count("moving") == 1:
            self._move(self._manager)


MOVES: dict[str, Callable[[AddonManager], object]] = {
    "inserted": lambda addons: addons.chain.insert(0, addons.chain[-1]),
    "appended": lambda addons: addons.chain.append(addons.chain[0]),
    "taken out": lambda addons: addons.chain.pop(2),
    "removed": lambda addons: addons.remove(addons.get("last")),
    "replaced": lambda addons: addons.chain.__setitem__(-1, addons.chain[0]),
}


@pytest.mark.parametrize("move", MOVES)
async def test_addons_that_move_while_hooks_are_called_are_called_as_by_mitmproxy(move: str) -> None:
    seen = []
    for kind in (AddonManager, SparingAddonManager):
        addons = dump.DumpMaster(Options(), with_termlog=False, with_dumper=False).addons
        addons.__class__ = kind
        own = addons.chain[:3]
        called: list[str] = []
        names = ["first", "second", "third", "last"]
        first, second, third, last = (Noted(called, name) for name in names)
        addons.lookup["last"] = last
        addons.chain = [first, Moving(called, addons, MOVES[move]), second, own[0], third, *own[1:], last]
        for _ in range(2):
            await addons.trigger_event(hooks.UpdateHook([]))
        seen.append(called)
    assert seen[0] == seen[1]


@dataclass
class Equal:
    """Is equal to the others of its name."""

    name: str
    called: list[int]

    def update(self, flows: Any) -> None:
        self.called.append(id(self))


async def test_an_addon_is_called_that_replaces_an_equal_one() -> None:
    with taddons.context() as context:
        called: list[int] = []
        before, after = Equal("equal", called), Equal("equal", called)
        addons = SparingAddonManager(context.master)  # type: ignore[no-untyped-call]
        for addon in (before, after):
            addons.chain = [addon]
            await addons.trigger_event(hooks.UpdateHook([]))
    assert called == [id(before), id(after)]


async def test_each_hook_of_a_flow_is_followed_by_an_update() -> None:
    seen = []
    for kind in (AddonManager, SparingAddonManager):
        with taddons.context() as context:
            flow, called = tflow.tflow(), []
            addons = kind(context.master)  # type: ignore[no-untyped-call]
            every = {"update": lambda *flows: called.append(("update", flows))}  # noqa: B023 (called at once)
            for name in ("request", "client_connected", "topic"):
                every[name] = lambda *arguments, name=name: called.append((name, arguments))  # noqa: B023
            addons.chain = [types.SimpleNamespace(**every)]
            for event in (HttpRequestHook(flow), ClientConnectedHook(flow.client_conn), TopicHook(1)):
                await addons.handle_lifecycle(event)
            assert called.pop(1) == ("update", ([flow],))
            seen.append([(name, type(argument)) for name, (argument,) in called])
    assert seen[0] == seen[1] == [("request", http.HTTPFlow), ("client_connected", Client), ("topic", int)]


@dataclass
class TopicHook(hooks.Hook):
    """A hook of another addon, with a member that is no argument."""

    topic: ClassVar[str] = "topic"
    data: int


class OnTopic:
    def __init__(self, called: list[str]) -> None:
        self._called = called

    def topic(self, *data: int) -> None:
        self._called.append(f"topic {data}")


async def test_addons_of_addons_and_hooks_of_others_are_called_as_mitmproxy_calls_them() -> None:
    seen = []
    for kind in (AddonManager, SparingAddonManager):
        with taddons.context() as context:
            called: list[str] = []
            addons = kind(context.master)  # type: ignore[no-untyped-call]
            addons.chain = [*appending(called), OnTopic(called)]
            await addons.trigger_event(hooks.UpdateHook([tflow.tflow()]))
            await addons.trigger_event(TopicHook(1))
            seen.append(called)
    assert seen[0] == seen[1] == ["of a set", "child", "added", "topic (1,)"]


async def test_a_traceback_of_another_addons_error_begins_in_that_addon(caplog: pytest.LogCaptureFixture) -> None:
    with taddons.context() as context:
        addons = SparingAddonManager(context.master)  # type: ignore[no-untyped-call]
        addons.chain = [types.SimpleNamespace(addons=[Raising([], "raising")])]
        await addons.trigger_event(hooks.UpdateHook([]))
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert [frame.name for frame in traceback.extract_tb(record.exc_info[2])] == ["update"]


MASTERS = {"mitmdump": dump.DumpMaster, "mitmweb": web.WebMaster, "mitmproxy": console.ConsoleMaster}


@pytest.mark.parametrize("program", MASTERS)
async def test_no_addon_of_mitmproxy_is_left_out_that_has_the_hook(program: str) -> None:
    master: Any = MASTERS[program]
    chain = master(Options()).addons.chain
    left_out = {(addon, name) for addon in chain for name in hooks.all_hooks if never_has(addon, name)}
    assert len(left_out) > len(chain)
    assert not [(addon, name) for addon, name in left_out if hasattr(addon, name) or hasattr(addon, "addons")]


async def test_addons_that_come_and_go_among_those_of_mitmproxy_are_called(caplog: pytest.LogCaptureFixture) -> None:
    seen = []
    for kind in (AddonManager, SparingAddonManager):
        addons = dump.DumpMaster(Options(), with_termlog=False, with_dumper=False).addons
        addons.__class__ = kind
        called: list[str] = []
        event = hooks.UpdateHook([tflow.tflow()])
        first, second = Noted(called, "first"), Noted(called, "second")
        addons.add(first)
        await addons.trigger_event(event)
        addons.add(second)
        await addons.trigger_event(event)
        addons.remove(first)
        await addons.trigger_event(event)
        addons.trigger(event)
        seen.append(called)
    assert seen[0] == seen[1] == ["first", "first", "second", "second", "second"]


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
