"""Log a client's failed TLS greeting with what to do, at most once a minute for each client and host.

A client that does not trust mitmproxy's CA tries again and again, so that its own error is hard to find here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

from mitmproxy import ctx, tls

from aibridge_addon.credentials.name_constraints import NEXT_STEP
from aibridge_addon.interception.routing import MAX_HOST
from aibridge_addon.proxy.connection.once_a_minute import OnceAMinute

logger = logging.getLogger(__name__)

CA_FILE = "mitmproxy-ca-cert.pem"
"""mitmproxy's CA certificate, in its `confdir`."""
CLOSED_EARLY = "connection closed early"
"""mitmproxy's error of a connection that was closed before its ClientHello, such as a probe's."""

REASON = re.compile(r"\(([^()]*)\)$")
"""The TLS alert, which mitmproxy puts behind its own explanation."""


class FailedGreetings:
    def __init__(self, clock: Callable[[], float], may_sign: Callable[[str], bool]) -> None:
        """Remember what was logged.

        Args:
            clock: Returns seconds, and never goes back.
            may_sign: Returns whether the CA may sign for a host.
        """
        self._lines = OnceAMinute(clock)
        self._may_sign = may_sign

    def failed(self, data: tls.TlsData) -> None:
        error = data.conn.error or ""
        if error == CLOSED_EARLY:
            return
        address = data.context.server.address
        host = (data.context.client.sni or (address[0] if address else "") or "an unknown host")[:MAX_HOST]
        peer = data.context.client.peername
        client = peer[0] if peer else "an unknown address"
        if self._lines.is_due((client, host)):
            ca_file = Path(ctx.options.confdir).expanduser() / CA_FILE
            logger.warning("%s", message(client, host, error, ca_file, permitted=self._may_sign(host)))


def message(client: str, host: str, error: str, ca_file: Path, *, permitted: bool = True) -> str:
    """Return the line about a failed TLS greeting.

    `permitted`: whether the name constraints of the CA permit the host.
    """
    alert = REASON.search(error)
    if "agree on a TLS version" in error:
        advice = "client and proxy have no TLS version in common; see mitmproxy's option tls_version_client_min"
    elif not permitted:
        advice = f"the CA {ca_file} may not sign for this host (`aibridge certs show`): {NEXT_STEP}"
    else:
        advice = (
            f"the client probably does not trust the CA {ca_file}: set NODE_EXTRA_CA_CERTS (Node), SSL_CERT_FILE"
            " (Python, Go, Rust), REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or AWS_CA_BUNDLE where the client starts;"
            " see docs/troubleshooting.md"
        )
    return f"TLS with a client failed: client={client} host={host!r}: {advice} ({alert[1] if alert else error})"
