"""The proxy that an environment names already: a private proxy goes through a company's, and replaces a bridge of ours.

Through another bridge on this machine, each request would be recorded twice.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aibridge_addon.cli.env import BEFORE, values_before
from aibridge_addon.cli.environment import LOOPBACK, NAMES_OF_PROXY, bundle_files
from aibridge_addon.cli.roots import bundle, write_bundle
from aibridge_addon.wire.printable import printable

SCHEMES = ("http", "https")
PROBE_TIMEOUT = 2.0
"""Seconds for a proxy of this machine to say whether it is a bridge."""
MAX_ANSWER = 65_536
"""Bytes of its answer that are read."""
MARK = b'{"error": {"type": "not_found_error", "message": "no provider has this route.'
"""How a bridge answers a gateway path that it does not have."""


@dataclass(frozen=True, slots=True)
class Upstream:
    options: tuple[str, ...]
    """mitmproxy's options with those that the user has set, each as `name=value`. They may contain a password."""
    line: str
    """What the user reads about it."""


@dataclass(frozen=True, slots=True)
class _Named:
    """A proxy that a variable names."""

    variable: str
    scheme: str
    host: str
    port: int
    auth: str | None
    """`user:password`."""

    @property
    def url(self) -> str:
        place = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{place}:{self.port}"


def upstream_of(environ: Mapping[str, str], given: Sequence[str], folder: Path, ca: Path) -> Upstream | None:
    """Return how to reach the internet from an environment that names a proxy. None: it names none.

    Args:
        given: mitmproxy's options that the user has set. A `mode` among them wins.
        folder: For a file of trusted certificates, if the environment names any: the proxy may read TLS.
        ca: The certificate of the user's own authority, with which bridges on this machine sign.
    """
    variable = _variable(environ)
    if variable is None or any(option.startswith("mode=") for option in given):
        return None
    named = _named(variable, environ[variable])
    if named is None:
        line = f"{variable} is not used: mitmproxy goes through http:// and https:// proxies only"
        return Upstream(tuple(given), line)
    if not _is_bridge_here(named, environ, ca):
        return _through(named, environ, given, folder)
    line = (
        f"{variable} names a bridge that runs already, {printable(named.url)}. A private one takes its place, so that"
        " each request is recorded once"
    )
    before = _without_bridge(named, environ)
    further = upstream_of(before, given, folder, ca)
    return Upstream(tuple(given), line) if further is None else Upstream(further.options, f"{line}; {further.line}")


def _variable(environ: Mapping[str, str]) -> str | None:
    return next((name for name in NAMES_OF_PROXY if environ.get(name)), None)


def _named(variable: str, value: str) -> _Named | None:
    """Read the value of a variable. None: mitmproxy cannot go through such a proxy."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if host is None or parts.scheme not in SCHEMES:
        return None
    auth = None if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return _Named(variable, parts.scheme, host, port or (443 if parts.scheme == "https" else 80), auth)


def _through(named: _Named, environ: Mapping[str, str], given: Sequence[str], folder: Path) -> Upstream:
    options = [f"mode=upstream:{named.url}"]
    if named.auth is not None:
        options.append(f"upstream_auth={named.auth}")
    if files := bundle_files(environ):
        file = folder / "upstream-roots.pem"
        write_bundle(file, bundle(None, files))
        options.append(f"ssl_verify_upstream_trusted_ca={file}")
    return Upstream((*options, *given), f"requests go through {printable(named.url)} ({named.variable})")


# --- a bridge of ours ---------------------------------------------------------------------------------------------


def _is_bridge_here(named: _Named, environ: Mapping[str, str], ca: Path) -> bool:
    """Return whether a variable names a bridge on this machine.

    A proxy elsewhere may be the only way out, or be meant to record what this machine does. Only a proxy whose
    certificates the environment trusts is contacted.
    """
    if not _is_loopback(named.host) or named.scheme != "http":
        return False
    values = {environ.get(name) for name in ("https_proxy", "HTTPS_PROXY")}
    if "HTTPS_PROXY" in values_before(environ) and values == {environ[named.variable]}:
        return True  # as `aibridge env` has set it: also if the bridge requires a password, or does not run now
    return _is_trusted(ca, environ) and _answers_as_bridge(named)


def _is_loopback(host: str) -> bool:
    try:
        return host in LOOPBACK or ip_address(host).is_loopback
    except ValueError:
        return False


def _is_trusted(ca: Path, environ: Mapping[str, str]) -> bool:
    """Return whether a file of certificates that the environment names contains the authority's."""
    try:
        wanted = _joined(ca)
    except OSError:
        return False
    for file in bundle_files(environ):
        with suppress(OSError):
            if wanted in _joined(file):
                return True
    return False


def _joined(file: Path) -> bytes:
    """Return a file's content without white space: programs break the lines of PEM differently."""
    return b"".join(file.read_bytes().split())


def _answers_as_bridge(named: _Named) -> bool:
    """Request a gateway path that no bridge has. Other proxies refuse such a request."""
    connection = http.client.HTTPConnection(named.host, named.port, timeout=PROBE_TIMEOUT)
    with suppress(OSError, http.client.HTTPException):
        try:
            connection.request("GET", "/")
            return connection.getresponse().read(MAX_ANSWER).startswith(MARK)
        finally:
            connection.close()
    return False


def _without_bridge(named: _Named, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment as it was before it named the bridge."""
    before = {**environ, **{name: value or "" for name, value in values_before(environ).items()}}
    for name in NAMES_OF_PROXY:
        found = _named(name, before[name]) if before.get(name) else None
        if found is not None and _is_loopback(found.host) and found.port == named.port:
            before[name] = ""
    before.pop(BEFORE, None)
    return before
