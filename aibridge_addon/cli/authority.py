"""Where mitmproxy keeps its certificate authority."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aibridge_addon.config.providers import Provider
    from aibridge_addon.credentials.name_constraints import Limits

CONFDIR = "~/.mitmproxy"
"""mitmproxy's default."""
CERTIFICATE = "mitmproxy-ca-cert.pem"
WITH_KEY = "mitmproxy-ca.pem"
"""The key and then the certificate, as mitmproxy reads them at its start. Without it, mitmproxy makes new ones."""


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--confdir", metavar="DIR", help=f"mitmproxy's folder with its CA (default: {CONFDIR})")


def folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.confdir or CONFDIR).expanduser()


def certificate(arguments: argparse.Namespace) -> Path:
    """Return the file that clients must trust. It may not be there yet: mitmproxy creates it at its first start."""
    return folder(arguments) / CERTIFICATE


def permitted(limits: Limits) -> list[str]:
    """Return the names for which an authority may sign. Those that differ only in AWS's region are one line."""
    from aibridge_addon.credentials.name_constraints import by_region

    return [
        name if count == 1 else f"{name} ({count} regions)" for name, count in by_region(limits.permitted).items()
    ] or ["for no host"]


def limits(certificate: Path) -> Limits | None:
    """Return for which hosts an authority may sign. None: for every host, or it cannot be read."""
    from cryptography import x509

    from aibridge_addon.credentials.name_constraints import limits_of

    try:
        return limits_of([x509.load_pem_x509_certificate(certificate.read_bytes())])
    except (OSError, ValueError):
        return None


def missing(certificate: Path, providers: Iterable[Provider]) -> str | None:
    """Return which hosts of providers an authority may not sign for, and what to do. None: it may sign for all."""
    from aibridge_addon.config.subtrees import not_permitted
    from aibridge_addon.credentials.name_constraints import NEXT_STEP, some

    if (found := limits(certificate)) is None or not (hosts := not_permitted(providers, found.permits_host)):
        return None
    return f"{certificate} may not sign for {some(hosts)}: {NEXT_STEP}"
