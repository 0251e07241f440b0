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
from mitmproxy.addonmanager import AddonManager, safecall
from mitmproxy.exceptions import AddonHalt, AddonManagerError

BUILT_IN = "mitmproxy.addons."
"""Modules of the addons that mitmproxy brings with it. Their hooks are members of their classes."""


class SparingAddonManager(AddonManager):
    """Does what mitmproxy's class does. Hooks and addons may be added at any time, except to mitmproxy's own addons."""

    _known: dict[str, tuple[list[Any], frozenset[int]]] | None = None
    """For each hook: the chain, and values of `id()` of those of its addons that do not have the hook."""

    async def trigger_event(self, event: hooks.Hook) -> None:
        name = event.name
        arguments = [getattr(event, argument) for argument in event.__dataclass_fields__]  # type: ignore[attr-defined]
        without = self.without(name)
        for addon in self.chain:
            if id(addon) in without:
                continue
            try:
                left = [addon]
                while left:
                    called = left.pop()
                    function = getattr(called, name, None)
                    if function and _is_callable(function, called, name):
                        waiting = function(*arguments)
                        if waiting is not None and inspect.isawaitable(waiting):
                            await waiting
                    if hasattr(called, "addons"):
                        left.extend(reversed(called.addons))
            except AddonHalt:
                return
            except Exception:  # mitmproxy logs it, or raises it again
                with safecall():
                    raise

    def trigger(self, event: hooks.Hook) -> None:
        without = self.without(event.name)
        for addon in self.chain:
            if id(addon) not in without:
                try:
                    with safecall():
                        self.invoke_addon_sync(addon, event)
                except AddonHalt:
                    return

    def without(self, hook: str) -> frozenset[int]:
        """Return values of `id()` of mitmproxy's own addons without a hook and without further addons."""
        if self._known is None:
            self._known = {}
        chain, found = self._known.get(hook, (None, frozenset[int]()))
        if chain != self.chain:
            found = frozenset(id(addon) for addon in self.chain if _never_has(addon, hook))
            self._known[hook] = [*self.chain], found
        return found


def may_have(addons: AddonManager, hook: str) -> Sequence[Any]:
    """Return the addons that have a hook, or addons of their own, and maybe others."""
    if not isinstance(addons, SparingAddonManager):
        return addons.chain
    without = addons.without(hook)
    return [addon for addon in addons.chain if id(addon) not in without]


def _never_has(addon: object, hook: str) -> bool:
    built_in = type(addon).__module__.startswith(BUILT_IN)
    return built_in and not hasattr(type(addon), hook) and not hasattr(addon, "addons")


def _is_callable(function: object, addon: object, hook: str) -> bool:
    """Return whether a hook is to be called. A module that was imported by the hook's name is none.

    Raises:
        AddonManagerError: It is something else.
    """
    if callable(function):
        return True
    if isinstance(function, ModuleType):
        return False
    raise AddonManagerError(f"Addon handler {hook} ({addon}) not callable")


def use_sparing_manager(addons: AddonManager) -> None:
    """Let the running master's manager call hooks this way. A manager of another class stays as it is."""
    if type(addons) is AddonManager:
        addons.__class__ = SparingAddonManager
