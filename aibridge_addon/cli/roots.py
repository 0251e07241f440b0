"""A bundle of trusted certificates: the system's roots, those that the environment names, and our own authority.

Variables such as SSL_CERT_FILE replace a program's roots, and tunnelled hosts keep their own certificates. So a file
with our certificate alone would break every other host.
"""

from __future__ import annotations

import os
import re
import ssl
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

SYSTEM_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, BSDs
)
CERTIFICATE = re.compile(r"-----BEGIN (?:TRUSTED )?CERTIFICATE-----\s.*?-----END (?:TRUSTED )?CERTIFICATE-----", re.S)
MAX_FILE = 16 << 20
"""Bytes. A larger file is not a list of certificates."""


def certificates(text: str) -> list[str]:
    """Return the certificates of a PEM text. Keys and comments are left out."""
    return CERTIFICATE.findall(text)


def system_roots() -> Iterator[str]:
    """Yield the certificates that the system trusts: from its file, else from its store, else from certifi."""
    for name in SYSTEM_FILES:
        if found := certificates(_read(Path(name))):
            yield from found
            return
    stored = ssl.create_default_context().get_ca_certs(binary_form=True)
    if stored:
        yield from map(ssl.DER_cert_to_PEM_cert, stored)
        return
    import certifi

    yield from certificates(_read(Path(certifi.where())))


def bundle(authority: Path | None, others: Iterable[Path] = ()) -> str:
    """Return the PEM text of all trusted certificates, each once.

    Args:
        authority: The file of our certificate authority. None: leave it out.
        others: Files to add. Those that cannot be read are left out.
    Raises OSError: `authority` cannot be read.
    """
    own = [] if authority is None else certificates(authority.read_text(errors="replace"))
    found = [*system_roots(), *(each for file in others for each in certificates(_read(file))), *own]
    return "".join(f"{each}\n" for each in {"".join(each.split()): each.strip() for each in found}.values())


def write_trusted(bundle_file: Path, trust_store: Path, text: str) -> None:
    """Write a bundle as PEM and as Java's trust store. Raises OSError."""
    if not trust_store.exists() or _read(bundle_file) != text:
        _replace(trust_store, java_trust_store(text))
    write_bundle(bundle_file, text)


def java_trust_store(text: str) -> bytes:
    """Return the certificates of a PEM text as PKCS #12 without a password, marked as trusted for Java."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.serialization import pkcs12

    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some old roots break rules of today, such as a serial number of zero
        for number, each in enumerate(certificates(text)):
            try:
                loaded = x509.load_pem_x509_certificate(each.encode())
            except ValueError:
                continue
            found.append(pkcs12.PKCS12Certificate(loaded, str(number).encode()))
    return pkcs12.serialize_java_truststore(found, serialization.NoEncryption())


def write_bundle(file: Path, text: str) -> None:
    if _read(file) != text:
        _replace(file, text.encode())


def _replace(file: Path, content: bytes) -> None:
    """Write a file at once, so that a program that reads it meanwhile has the old content or the new one."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as new:
            new.write(content)
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def _read(file: Path) -> str:
    try:
        with file.open(errors="replace") as opened:
            return opened.read(MAX_FILE)
    except OSError:
        return ""
