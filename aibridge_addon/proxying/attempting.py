"""The upstream attempts of one turn: what comes before each.

before each attempt ─▶ aibridge_dispatch hook: the request is made ready, or nobody is asked
"""

from __future__ import annotations

from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.proxy import commands, layer

from aibridge_addon.proxying import dispatching
from aibridge_addon.proxying.flow_state import state_of
from aibridge_addon.proxying.stream import BridgeHttpStream


@dataclass
class AibridgeDispatchHook(commands.StartHook):
    """`flow.request` is about to go upstream: make it ready. With `flow.response` set, nobody is asked."""

    flow: http.HTTPFlow


class AttemptingStream(BridgeHttpStream):
    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        state = state_of(self.flow)
        if state is not None and dispatching.is_needed(state):
            yield AibridgeDispatchHook(self.flow)
            if (yield from self.check_killed(True)):
                return False
            if self.flow.response is not None:
                yield from self._refused(self.flow.response)
                return False
        return (yield from super().make_server_connection())

    def _refused(self, response: http.Response) -> layer.CommandGenerator[None]:
        """Nobody is asked, so no other hook will come for this flow."""
        message = f"refused with status {response.status_code}"
        yield from self._ends_here(message)
        if self.answer_begun:
            yield from self.break_off(message)
        else:
            yield from self.answer(response)
