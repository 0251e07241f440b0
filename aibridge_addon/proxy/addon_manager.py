"""Call the hooks of mitmproxy's addons without the work for addons that do not have the hook.

mitmproxy calls 4 or 5 hooks for a request, each followed by `update`. For each of them it enters a context manager and
two generators for each of its 40 addons, few of which have the hook. See "Where a request's time goes" in
`docs/performance.md`.
"""

from __future__ import annotations

import inspect
from types import MethodType

from mitmproxy import hooks
from mitmproxy.addonmanager import AddonManager, safecall
from mitmproxy.exceptions import AddonHalt


class SparingAddonManager(AddonManager):
    """Does what mitmproxy's class does. Nothing is remembered: hooks and addons may be added at any time."""

    async def trigger_event(self, event: hooks.Hook) -> None:
        name, arguments = event.name, event.args()
        for addon in self.chain:
            if not _may_have(addon, name):
                continue
            try:
                if type(function := getattr(addon, name, None)) is MethodType and not hasattr(addon, "addons"):
                    waiting = function(*arguments)
                    if waiting is not None and inspect.isawaitable(waiting):
                        await waiting
                else:
                    await self.invoke_addon(addon, event)
            except AddonHalt:
                return
            except Exception:  # mitmproxy logs it, or raises it again
                with safecall():
                    raise

    def trigger(self, event: hooks.Hook) -> None:
        name = event.name
        for addon in self.chain:
            if _may_have(addon, name):
                try:
                    with safecall():
                        self.invoke_addon_sync(addon, event)
                except AddonHalt:
                    return


def _may_have(addon: object, hook: str) -> bool:
    """Return whether an addon has a hook, or addons of its own, which are not looked at here."""
    try:
        return getattr(addon, hook, None) is not None or hasattr(addon, "addons")
    except Exception:  # noqa: BLE001 (mitmproxy's code raises it again, and logs it)
        return True


def use_sparing_manager(addons: AddonManager) -> None:
    """Let the running master's manager call hooks this way. A manager of another class stays as it is."""
    if type(addons) is AddonManager:
        addons.__class__ = SparingAddonManager
