"""An authority with name constraints, as mitmproxy's folder."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from aibridge_addon.cli.certs import new_authority
from aibridge_addon.credentials.name_constraints import name_constraints
from tests.support.running import CA_BASENAME


def make_constrained_ca(folder: Path, hosts: Iterable[str]) -> Path:
    """Make mitmproxy's certificate authority, which may sign for these hosts only. Returns the folder."""
    key, certificate = new_authority(datetime.now(UTC), name_constraints(hosts))
    folder.mkdir(exist_ok=True)
    (folder / f"{CA_BASENAME}-ca.pem").write_bytes(key + certificate)
    (folder / f"{CA_BASENAME}-ca-cert.pem").write_bytes(certificate)
    return folder
