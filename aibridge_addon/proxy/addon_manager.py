"""Call the hooks of mitmproxy's addons without the work for addons that do not have the hook.

mitmproxy calls 4 or 5 hooks for a request, each followed by `update`. For each of them it enters a context manager and
two generators for each of its 40 addons, few of which have the hook. See "Where a request's time goes" in
`docs/performance.md`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import islice
from types import ModuleType
from typing import Any

from mitmproxy import flow, hooks
from mitmproxy.addonmanager import AddonManager, safecall
from mitmproxy.exceptions import AddonHalt, AddonManagerError

BUILT_IN = "mitmproxy.addons."
"""Modules of the addons that mitmproxy brings with it. Their hooks are members of their classes."""
NOTHING: tuple[None, tuple[int, ...]] = None, ()
"""What is known of a hook before its first call."""


class SparingAddonManager(AddonManager):
    """Does what mitmproxy's class does. Hooks and addons may be added at any time, except to mitmproxy's own addons."""

    _known: dict[str, tuple[list[Any], list[int]]] | None = None
    """For each hook: a copy of the chain, and the places in it of the addons that may have the hook."""

    async def handle_lifecycle(self, event: hooks.Hook) -> None:
        arguments = event.args()
        await self._call(event.name, arguments)
        if isinstance(message := arguments[0], flow.Flow):
            await self._call(hooks.UpdateHook.name, [[message]])

    async def trigger_event(self, event: hooks.Hook) -> None:
        await self._call(event.name, event.args())

    async def _call(self, hook: str, arguments: Sequence[object]) -> None:
        addons = self.may_have(hook)
        while True:
            try:
                await invoke_addon(addons, hook, arguments)
            except AddonHalt:
                return
            except Exception:  # mitmproxy logs it, or raises it again; the next addon follows
                with safecall():
                    raise
            else:
                return

    def trigger(self, event: hooks.Hook) -> None:
        for addon in self.may_have(event.name):
            try:
                with safecall():
                    self.invoke_addon_sync(addon, event)
            except AddonHalt:
                return

    def may_have(self, hook: str) -> Iterator[Any]:
        """Yield the addons of the chain without those of mitmproxy that do not have a hook.

        Addons may come and go meanwhile. They are then yielded as an iteration over the chain's list yields them.
        """
        chain = self.chain
        if self._known is None:
            self._known = {}
        known, places = self._known.get(hook, NOTHING)
        if known != chain:
            known = [*chain]
            places = [place for place, addon in enumerate(chain) if not never_has(addon, hook)]
            self._known[hook] = known, places
        for place in places:
            yield chain[place]
            if chain != known:
                yield from islice(chain, place + 1, None)
                return


async def invoke_addon(addons: Iterator[object], hook: str, arguments: Sequence[object]) -> None:
    """Call a hook of each addon and of its addons. After an error, `addons` goes on with the next one.

    The order is that of mitmproxy's `traverse`: an addon, then its addons, to which its hook may have added some.
    mitmproxy finds the errors of addons by the name of this function. One coroutine for all addons is cheaper.
    """
    levels = [addons]
    while levels:
        for addon in levels[-1]:
            function = getattr(addon, hook, None)
            if function:
                if callable(function):
                    waiting = function(*arguments)
                    if waiting is not None and inspect.isawaitable(waiting):
                        await waiting
                elif not isinstance(function, ModuleType):  # a module may be imported under the name of a hook
                    raise AddonManagerError(f"Addon handler {hook} ({addon}) not callable")
            if hasattr(addon, "addons"):
                levels.append(iter(addon.addons))
                break
        else:
            levels.pop()


def never_has(addon: object, hook: str) -> bool:
    """Return whether this is one of mitmproxy's own addons, without this hook and without further addons."""
    built_in = type(addon).__module__.startswith(BUILT_IN)
    return built_in and not hasattr(type(addon), hook) and not hasattr(addon, "addons")


def use_sparing_manager(addons: AddonManager) -> None:
    """Let the running master's manager call hooks this way. A manager of another class stays as it is."""
    if type(addons) is AddonManager:
        addons.__class__ = SparingAddonManager
