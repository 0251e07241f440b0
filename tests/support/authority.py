"""A throw-away certificate authority for servers that tests run."""

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

import trustme

LOCAL_NAMES = ("localhost", "127.0.0.1")

SniSeen = Callable[[ssl.SSLObject, str | None], None]


class Authority:
    """Issue server certificates; `pem` is the file that clients must trust."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.pem = folder / "upstream-ca.pem"
        self._ca.cert_pem.write_to_path(str(self.pem))

    def server_context(
        self,
        names: Iterable[str] = LOCAL_NAMES,
        alpn: Iterable[str] = (),
        on_sni: SniSeen | None = None,
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*names).configure_cert(context)
        protocols = list(alpn)
        if protocols:
            context.set_alpn_protocols(protocols)
        if on_sni is not None:

            def note(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
                if isinstance(connection, ssl.SSLObject):
                    on_sni(connection, name)

            context.sni_callback = note
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.pem))
