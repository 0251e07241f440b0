"""Who can reach the addresses that mitmproxy listens on."""

from __future__ import annotations

from collections.abc import Iterable

from mitmproxy.options import Options
from mitmproxy.proxy import mode_specs

from aibridge_addon.addresses import maybe_address


def strangers_reach(options: Options) -> bool:
    """Whether other machines can connect: any listener is bound to more than the loopback addresses."""
    return any(not _is_loopback(host) for host in _hosts(options))


def _hosts(options: Options) -> Iterable[str]:
    for text in options.mode:
        mode = mode_specs.ProxyMode.parse(text)
        if mode.type_name != "local":  # it takes the connections of this machine's own programs
            yield mode.listen_host(options.listen_host)


def _is_loopback(host: str) -> bool:
    address = maybe_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)
