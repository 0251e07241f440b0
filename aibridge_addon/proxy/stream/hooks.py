"""Hooks of our own that mitmproxy awaits in the addon like its own. Each carries exactly one datum, the flow."""

from __future__ import annotations

from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.proxy import commands


@dataclass
class AibridgeDispatchHook(commands.StartHook):
    """`flow.request` is about to go upstream: make it ready, or refuse it, with `flow.response` set."""

    flow: http.HTTPFlow


@dataclass
class AibridgeAttemptHook(commands.StartHook):
    """An attempt has failed; its answer, if any, is `flow.response`. Wait before the next one."""

    flow: http.HTTPFlow


@dataclass
class AibridgeCommitHook(commands.StartHook):
    """The answer's terminal event has been read and is held: return when its rows are committed."""

    flow: http.HTTPFlow


@dataclass
class AibridgeTurnHook(commands.StartHook):
    """A complete answer, `flow.response`, has been kept from the client. Set it to None to ask upstream again."""

    flow: http.HTTPFlow
