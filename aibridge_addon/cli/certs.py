"""`aibridge certs`: make, show and export mitmproxy's certificate authority, and trust it in the system's store."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aibridge_addon.cli import authority, database
from aibridge_addon.cli.examples import examples
from aibridge_addon.wire.printable import printable

if TYPE_CHECKING:
    from cryptography import x509

DESCRIPTION = "Make, show and export the certificate authority that clients of the proxy must trust."
EXAMPLES = examples(
    "aibridge certs show",
    "aibridge certs make --constrain --config aibridge.yaml",
    "aibridge certs export --format der aibridge-ca.crt",
    "sudo aibridge certs install --confdir ~/.mitmproxy",
)
FAILED = 1
VALID = timedelta(days=3650)
CLOCKS_DIFFER = timedelta(days=2)
"""Validity begins earlier by this, for clients whose clocks are behind."""
INSTALLED = "aibridge-mitmproxy-ca.crt"


def add(commands: Any) -> None:
    command = commands.add_parser(
        "certs", help="make, show, export, install the CA", description=DESCRIPTION, **EXAMPLES
    )
    actions = command.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = actions.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}."
        )
        authority.add_options(added)
        added.set_defaults(run=run)
        return added

    action("show", _show, "print the certificate's subject, validity and fingerprint")
    make = action("make", _make, "make an authority before the first start of the proxy")
    make.add_argument(
        "--constrain", action="store_true", help="it may sign for the hosts of the configuration's providers only"
    )
    make.add_argument(
        "--permit",
        metavar="HOST",
        action="append",
        default=[],
        help="with --constrain, also for this host and the names below it; may be repeated",
    )
    database.add_config_option(make)
    make.set_defaults(database="", command=make)
    export = action("export", _export, "write the certificate, without its key")
    export.add_argument("file", nargs="?", default="-", metavar="FILE", help="default: standard output")
    export.add_argument("--format", choices=("pem", "der", "p12"), default="pem", help="default: %(default)s")
    action("install", _install, "trust the certificate in the system's store")
    action("remove", _remove, "remove the certificate from the system's store")


def _load(arguments: argparse.Namespace) -> x509.Certificate | None:
    """Return the certificate. None: the reason was reported."""
    from cryptography import x509

    file = authority.certificate(arguments)
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except FileNotFoundError:
        print(f"no certificate authority at {file}: `aibridge certs make` makes one", file=sys.stderr)
    except OSError as e:
        print(f"{file}: {e.strerror}", file=sys.stderr)
    except ValueError:
        print(f"{file} is not a certificate in PEM form", file=sys.stderr)
    return None


def _show(arguments: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives import hashes

    from aibridge_addon.credentials.name_constraints import limits_of

    if (found := _load(arguments)) is None:
        return FAILED
    print(f"file        {authority.certificate(arguments)}")
    print(f"subject     {printable(found.subject.rfc4514_string())}")
    print(f"valid       {found.not_valid_before_utc:%Y-%m-%d} to {found.not_valid_after_utc:%Y-%m-%d}")
    print(f"SHA-256     {found.fingerprint(hashes.SHA256()).hex(':').upper()}")
    if (limits := limits_of([found])) is None:
        print("may sign    for every host")
    for index, line in enumerate(() if limits is None else authority.permitted(limits)):
        print(f"{'' if index else 'may sign':12}{printable(line)}")
    return 0


# --- make and export -------------------------------------------------------------------------------------------------


def _make(arguments: argparse.Namespace) -> int:
    from aibridge_addon.records import utc_now

    folder = authority.folder(arguments)
    if any((folder / name).exists() for name in (authority.WITH_KEY, authority.CERTIFICATE)):
        print(f"there is an authority in {folder} already: delete its files (mitmproxy-ca*) first", file=sys.stderr)
        return FAILED
    if arguments.permit and not arguments.constrain:
        arguments.command.error("--permit needs --constrain")
    key, certificate = new_authority(utc_now(), _constraints(arguments) if arguments.constrain else None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Readable by its owner only, from the first byte on.
        with os.fdopen(os.open(folder / authority.WITH_KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key + certificate)
        authority.certificate(arguments).write_bytes(certificate)
    except OSError as e:
        print(f"{folder}: {e.strerror}", file=sys.stderr)
        return FAILED
    print(authority.certificate(arguments))
    return 0


def _constraints(arguments: argparse.Namespace) -> x509.NameConstraints:
    """Return constraints for the hosts of the configuration, and warn of names that are permitted beside them."""
    from aibridge_addon.config.subtrees import subtrees, widened
    from aibridge_addon.config.urls import is_address, is_host
    from aibridge_addon.credentials.name_constraints import name_constraints

    extra = [host.lower().removeprefix("*.") for host in arguments.permit]
    if wrong := [host for host in extra if not (is_host(host) or is_address(host))]:
        arguments.command.error(f"--permit {printable(wrong[0])}: a host name or an IP address is needed")
    patterns = [host for provider in database.settings_of(arguments, quiet=True).providers for host in provider.hosts]
    for pattern in dict.fromkeys(patterns):
        if (tree := widened(pattern)) is not None:
            print(f"{pattern} has no exact constraint: all names below {tree} are permitted", file=sys.stderr)
    return name_constraints([*subtrees(patterns), *extra])


def new_authority(now: datetime, constraints: x509.NameConstraints | None = None) -> tuple[bytes, bytes]:
    """Return a key and its certificate, both in PEM form, with the extensions of mitmproxy's own.

    `constraints`: an extension for the names that it may sign for. None: it may sign for every name.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mitmproxy of AI Bridge")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    made = builder.sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.TraditionalOpenSSL
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return secret, made.public_bytes(serialization.Encoding.PEM)


def _export(arguments: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives import serialization

    from aibridge_addon.cli.roots import java_trust_store

    if (found := _load(arguments)) is None:
        return FAILED
    if arguments.format == "p12":
        content = java_trust_store(found.public_bytes(serialization.Encoding.PEM).decode())
    else:
        der = arguments.format == "der"
        content = found.public_bytes(serialization.Encoding.DER if der else serialization.Encoding.PEM)
    if arguments.file == "-":
        sys.stdout.buffer.write(content)
        return 0
    try:
        Path(arguments.file).write_bytes(content)
    except OSError as e:
        print(f"{printable(arguments.file)}: {e.strerror}", file=sys.stderr)
        return FAILED
    return 0


# --- the system's store ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Store:
    """A folder for certificates, and the program that reads it."""

    folder: Path
    update: tuple[str, ...]


STORES = (
    Store(Path("/usr/local/share/ca-certificates"), ("update-ca-certificates",)),  # Debian, Ubuntu
    Store(Path("/etc/pki/ca-trust/source/anchors"), ("update-ca-trust",)),  # Fedora, RHEL
)
MACOS_STORE = "/Library/Keychains/System.keychain"


def _install(arguments: argparse.Namespace) -> int:
    if _load(arguments) is None:
        return FAILED
    source = authority.certificate(arguments)
    if (store := _store()) is None:
        trust = ("security", "add-trusted-cert", "-d", "-r", "trustRoot", "-k", MACOS_STORE, str(source))
        return _by_hand([trust])
    target = store.folder / INSTALLED
    return _act(store, lambda: shutil.copyfile(source, target), ("cp", str(source), str(target)))


def _remove(arguments: argparse.Namespace) -> int:
    if (store := _store()) is None:
        source = str(authority.certificate(arguments))
        return _by_hand([("security", "remove-trusted-cert", "-d", source)])
    target = store.folder / INSTALLED
    return _act(store, lambda: target.unlink(missing_ok=True), ("rm", "-f", str(target)))


def _store() -> Store | None:
    return next((store for store in STORES if store.folder.is_dir() and shutil.which(store.update[0])), None)


def _act(store: Store, change: Callable[[], object], command: Sequence[str]) -> int:
    """Change the store, or print the commands that do so."""
    try:
        change()
    except PermissionError:
        return _by_hand([command, store.update])
    except OSError as e:
        print(f"{store.folder}: {e.strerror}", file=sys.stderr)
        return FAILED
    return 0 if subprocess.run(store.update, stdout=sys.stderr).returncode == 0 else FAILED  # noqa: S603


def _by_hand(commands: Sequence[Sequence[str]]) -> int:
    print("the system's store cannot be changed from here; these commands do it:", file=sys.stderr)
    for command in commands:
        print(f"sudo {shlex.join(command)}")
    return FAILED
