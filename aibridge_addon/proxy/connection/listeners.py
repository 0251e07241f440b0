"""Say why mitmproxy cannot listen, and what to do.

mitmproxy opens its ports while the script is loaded. Its own error comes before or after that, and it then exits with
code 1.
"""

from __future__ import annotations

import errno
import logging

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.options import Options
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import ProxyMode

logger = logging.getLogger(__name__)

HIGHEST = 65_535
"""The highest port."""
PRIVILEGED = 1_024
"""Ports below this one need a privilege on most systems."""
USUAL = 8_080
"""mitmproxy's default port."""


class Listeners:
    """Watches the ports of mitmproxy."""

    def __init__(self, server: Proxyserver, options: Options) -> None:
        self._server = server
        self._options = options
        self._reported: set[str] = set()
        server.servers.changed.connect(self._changed)

    def report(self) -> bool:
        """Log every failure that was not logged yet. Returns whether there is any."""
        failures = {
            _advice(instance, self._options, error)
            for instance in self._server.servers
            if isinstance(error := instance.last_exception, OSError)
        }
        for line in sorted(failures - self._reported):
            logger.error("aibridge cannot listen: %s", line)
        self._reported = failures
        return bool(failures)

    def close(self) -> None:
        """Stop watching. A reload of the script makes another object."""
        self._server.servers.changed.disconnect(self._changed)

    async def _changed(self) -> None:
        self.report()


def _advice(instance: ServerInstance, options: Options, error: OSError) -> str:  # type: ignore[type-arg]
    mode = instance.mode
    host, port = mode.listen_host(options.listen_host), mode.listen_port(options.listen_port)
    if port is None:
        return f"{mode.full_spec}: {error.strerror or error}"
    place = f"{host or '*'}:{port}"
    other = port + 1 if PRIVILEGED <= port < HIGHEST else USUAL
    choice = f"--listen-port {other}" if mode.custom_listen_port is None else f"--mode {_at(mode, other)}"
    if error.errno == errno.EADDRINUSE:
        # A second bridge would fail again, because the first one also has the metrics' port.
        more = "--set aibridge_metrics=off"
        make = f' With make: make run MITMDUMP_ARGS="-p {other} {more}"' if mode.custom_listen_port is None else ""
        return (
            f"{place} is in use by another program, perhaps another bridge. End that program, or choose another port,"
            f" for example {choice}. Beside another bridge, whose metrics also have a port, add {more}.{make}"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{place} may not be used by this user. Choose a port from {PRIVILEGED} on, for example {choice}"
    return (
        f"{place} cannot be used. Choose an address of this machine with --listen-host, for example"
        " --listen-host 127.0.0.1"
    )


def _at(mode: ProxyMode, port: int) -> str:
    """Return a mode's specification with another port, which follows the last `@`."""
    host = f"{mode.custom_listen_host}:" if mode.custom_listen_host else ""
    return f"{mode.full_spec.rpartition('@')[0]}@{host}{port}"
