"""Say which of mitmproxy's options do not do with the bridge what they do without it; see `docs/mitmproxy.md`."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mitmproxy.options import Options

from aibridge_addon.config.schema import Settings


def conflicts(settings: Settings, options: Options, updated: Collection[str]) -> Iterator[str]:
    """Yield a line for each of the `updated` options that conflicts with the bridge."""
    if "modify_body" in updated and options.modify_body:
        yield "modify_body does not change streamed answers, and mitmproxy logs an error for each: add ~q, for requests"
    if "websocket" in updated and not options.websocket:
        yield "websocket=false: WebSockets of the Responses API are refused with 426, so that clients use HTTP"
    if "connection_strategy" in updated and options.connection_strategy == "eager":
        yield "connection_strategy=eager: a CONNECT fails if the host that the client named cannot be reached"
    has_central = any(provider.api_key or provider.bedrock for provider in settings.providers)
    if "client_replay" in updated and options.client_replay and has_central:
        yield "client_replay: requests that need a central credential are refused with 403"
