"""The proxy that an environment names already, such as a company's: a private proxy goes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aibridge_addon.cli.environment import NAMES_OF_PROXY, bundle_files
from aibridge_addon.cli.roots import bundle, write_bundle
from aibridge_addon.wire.printable import printable

SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True)
class Upstream:
    options: tuple[str, ...]
    """mitmproxy's options with those that the user has set, each as `name=value`. They may contain a password."""
    line: str
    """What the user reads about it."""


def upstream_of(environ: Mapping[str, str], given: Sequence[str], folder: Path) -> Upstream | None:
    """Return how to reach the internet through the environment's proxy. None: it names none.

    Args:
        given: mitmproxy's options that the user has set. A `mode` among them wins.
        folder: For a file of trusted certificates, if the environment names any: the proxy may read TLS.
    """
    name = next((name for name in NAMES_OF_PROXY if environ.get(name)), None)
    if name is None or any(option.startswith("mode=") for option in given):
        return None
    value = environ[name]
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in SCHEMES:
        return Upstream(tuple(given), f"{name} is not used: mitmproxy goes through http:// and https:// proxies only")
    place = f"[{host}]" if ":" in host else host
    url = f"{parts.scheme}://{place}:{port or (443 if parts.scheme == 'https' else 80)}"
    options = [f"mode=upstream:{url}"]
    if parts.username is not None:
        options.append(f"upstream_auth={unquote(parts.username)}:{unquote(parts.password or '')}")
    if files := bundle_files(environ):
        file = folder / "upstream-roots.pem"
        write_bundle(file, bundle(None, files))
        options.append(f"ssl_verify_upstream_trusted_ca={file}")
    return Upstream((*options, *given), f"requests go through {printable(url)} ({name})")
