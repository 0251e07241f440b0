"""The bridge's own hooks. mitmproxy awaits them in the addon like its own. Each has one argument."""

from __future__ import annotations

from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy import commands


@dataclass
class AibridgeDispatchHook(commands.StartHook):
    """`flow.request` is about to go upstream. Prepare it, or set `flow.response` to refuse it."""

    flow: http.HTTPFlow


@dataclass
class AibridgeAttemptHook(commands.StartHook):
    """An attempt has failed. Its answer, if any, is `flow.response`. Wait before the next one."""

    flow: http.HTTPFlow


@dataclass
class AibridgeCommitHook(commands.StartHook):
    """The answer's terminal event was read and is held back. Return when the rows are committed."""

    flow: http.HTTPFlow


@dataclass
class AibridgeTurnHook(commands.StartHook):
    """A complete answer, `flow.response`, is held back from the client. Set it to None to start another turn."""

    flow: http.HTTPFlow


HEADER_BYTES = "header_bytes"
HEADER_TIMEOUT = "header_timeout"
HTTP2_FLOOD = "http2_flood"


@dataclass(frozen=True, slots=True)
class ClosedClient:
    """A client whose connection was closed because of a limit."""

    client: Client
    reason: str


@dataclass
class AibridgeConnectionClosedHook(commands.StartHook):
    """A client's connection was closed because of a limit. Nothing waits for this hook."""

    blocking = False
    closed: ClosedClient
