"""Call the hooks of mitmproxy's addons without the work for addons that do not have the hook.

mitmproxy calls 4 or 5 hooks for a request, each followed by `update`. For each of them it enters a context manager and
two generators for each of its 40 addons, few of which have the hook. See "Where a request's time goes" in
`docs/performance.md`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from mitmproxy import hooks
from mitmproxy.addonmanager import AddonManager, safecall, traverse
from mitmproxy.exceptions import AddonHalt, AddonManagerError

BUILT_IN = "mitmproxy.addons."
"""Modules of the addons that mitmproxy brings with it. Their hooks are members of their classes."""


class SparingAddonManager(AddonManager):
    """Does what mitmproxy's class does. Hooks and addons may be added at any time, except to mitmproxy's own addons."""

    _known: dict[str, tuple[list[Any], frozenset[int]]] | None = None
    """For each hook: the chain, and values of `id()` of those of its addons that do not have the hook."""

    async def trigger_event(self, event: hooks.Hook) -> None:
        name, arguments = event.name, event.args()
        without = self._without(name)
        for addon in self.chain:
            if id(addon) in without:
                continue
            try:
                await invoke_addon(addon, name, arguments)
            except AddonHalt:
                return
            except Exception:  # mitmproxy logs it, or raises it again
                with safecall():
                    raise

    def trigger(self, event: hooks.Hook) -> None:
        without = self._without(event.name)
        for addon in self.chain:
            if id(addon) not in without:
                try:
                    with safecall():
                        self.invoke_addon_sync(addon, event)
                except AddonHalt:
                    return

    def may_have(self, hook: str) -> Sequence[Any]:
        """Return the chain without the addons of mitmproxy that do not have a hook."""
        without = self._without(hook)
        return [addon for addon in self.chain if id(addon) not in without]

    def _without(self, hook: str) -> frozenset[int]:
        if self._known is None:
            self._known = {}
        chain, found = self._known.get(hook, (None, frozenset[int]()))
        if chain != self.chain:
            found = frozenset(id(addon) for addon in self.chain if never_has(addon, hook))
            self._known[hook] = [*self.chain], found
        return found


async def invoke_addon(addon: object, hook: str, arguments: Sequence[object]) -> None:
    """Call a hook of an addon and of its addons. mitmproxy finds their errors by the name of this function."""
    for called in traverse([addon]):
        function = getattr(called, hook, None)
        if not function or isinstance(function, ModuleType):  # a module may be imported under the name of a hook
            continue
        if not callable(function):
            raise AddonManagerError(f"Addon handler {hook} ({called}) not callable")
        waiting = function(*arguments)
        if waiting is not None and inspect.isawaitable(waiting):
            await waiting


def never_has(addon: object, hook: str) -> bool:
    """Return whether this is one of mitmproxy's own addons, without this hook and without further addons."""
    built_in = type(addon).__module__.startswith(BUILT_IN)
    return built_in and not hasattr(type(addon), hook) and not hasattr(addon, "addons")


def use_sparing_manager(addons: AddonManager) -> None:
    """Let the running master's manager call hooks this way. A manager of another class stays as it is."""
    if type(addons) is AddonManager:
        addons.__class__ = SparingAddonManager
