"""What someone with a certificate authority's key could do: any certificate, and a proxy that serves it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aibridge_addon.credentials.name_constraints import general_name

DAY = timedelta(days=1)


def issue(authority: Path, names: Iterable[str], common_name: str | None = None) -> bytes:
    """Return a key and a certificate for these names, in PEM form.

    `authority`: a file with the authority's key and certificate, such as `mitmproxy-ca.pem`.
    """
    pem = authority.read_bytes()
    signer = serialization.load_pem_private_key(pem, None)
    issuer = x509.load_pem_x509_certificate(pem)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    attributes = [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if found := [general_name(name) for name in names]:
        builder = builder.add_extension(x509.SubjectAlternativeName(found), critical=not attributes)
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return secret + builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class ForgingProxy:
    """A proxy that is every host that it is asked for, with a certificate for these names.

    It is a `Destination` of requests to the first of them.
    """

    def __init__(self, authority: Path, names: Sequence[str], folder: Path) -> None:
        self.host = f"[{names[0]}]" if ":" in names[0] else names[0]
        file = folder / "forged.pem"
        file.write_bytes(issue(authority, names))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(file)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._paths: list[str] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._others: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def reached(self, path: str) -> bool:
        return any(each.startswith(path) for each in self._paths)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in (self._thread, *self._others):
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._others.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        # A client that refuses the certificate hangs up.
        with connection, contextlib.suppress(OSError):
            connection.settimeout(30)
            _head(connection)
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with self._context.wrap_socket(connection, server_side=True) as over:
                self._paths.append(_head(over).split(" ")[1])
                over.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


def _head(connection: socket.socket) -> str:
    found = b""
    while b"\r\n\r\n" not in found:
        if not (more := connection.recv(4096)):
            raise ConnectionResetError
        found += more
    return found.decode("latin-1")
