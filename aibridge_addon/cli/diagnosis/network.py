"""Checks of addresses: the proxy's port, the metrics' address, MCP servers and the hosts of providers."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import certifi

from aibridge_addon.cli.diagnosis.check import Check, shown
from aibridge_addon.config.schema import HttpServer, Settings, StdioServer
from aibridge_addon.config.values import Listen

TIMEOUT = 5.0
"""Seconds for each address."""
THREADS = 16
ANSWER = 256 << 10
"""Bytes of an answer that are read."""

PROVIDER = "provider "
"""The beginning of the name of a provider's check."""
TUNNELS_ALL = "providers: [{name: doctor, type: openai, hosts: [aibridge-doctor.test]}]\nmetrics: {listen: null}\n"
"""A configuration with which a proxy tunnels the hosts of all real providers."""

type Job = Callable[[], Check]


def in_parallel[Found](jobs: Iterable[Callable[[], Found]]) -> list[Found]:
    with ThreadPoolExecutor(THREADS) as pool:
        return [each.result() for each in [pool.submit(job) for job in jobs]]


def _get(host: str, port: int, path: str, *, tls: bool = False) -> tuple[int, str]:
    """Return the status and the beginning of the body. Raises OSError and HTTPException."""
    kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
    with closing(kind(host, port, timeout=TIMEOUT)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read1(ANSWER).decode(errors="replace")


def proxy_port(port: int) -> Check:
    name, other = "proxy port", f"end that program, or start the proxy with `--listen-port`: not {port}"
    try:
        _, body = _get("127.0.0.1", port, "/")
    except ConnectionRefusedError:
        return Check(name, True, f"port {port} is free")
    except (OSError, http.client.HTTPException) as e:
        return Check(name, False, f"port {port} is used by a program that does not answer HTTP: {shown(e)}", other)
    if "not_found_error" in body:
        return Check(name, True, f"the proxy answers on port {port}")
    return Check(name, False, f"port {port} is used by another program", other)


def metrics(listen: Listen | None, prefix: str) -> Check:
    name = "metrics"
    if listen is None:
        return Check(name, True, "off (`metrics.listen` is null)")
    step = "end that program, or set `metrics.listen` to another address"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104 (only compared)
    place = f"{listen.host}:{listen.port}"
    try:
        _, body = _get(host, listen.port, "/metrics")
    except ConnectionRefusedError:
        return _may_listen(listen, place)
    except (OSError, http.client.HTTPException) as e:
        return Check(name, False, f"{place} does not answer: {shown(e)}", step)
    if f"# TYPE {prefix}" in body:
        return Check(name, True, f"{place} answers with metrics")
    return Check(name, False, f"{place} is used by another program", step)


def _may_listen(listen: Listen, place: str) -> Check:
    try:
        family, kind, _, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
    except OSError as e:
        return Check("metrics", False, f"{place}: {e.strerror}", "set `metrics.listen` to an address of this machine")
    return Check("metrics", True, f"{place} is free")


def mcp_servers(settings: Settings, *, offline: bool = False) -> list[Job]:
    jobs: list[Job] = []
    for name, server in settings.mcp.servers.items():
        if isinstance(server, StdioServer):
            jobs.append(lambda name=name, server=server: _program(name, server))  # type: ignore[misc]
        elif not offline:
            jobs.append(lambda name=name, server=server: _reached(name, server))  # type: ignore[misc]
    return jobs


def _program(name: str, server: StdioServer) -> Check:
    path = server.env.get("PATH")
    found = shutil.which(server.command, path=None if path is None else path.get_secret_value())
    if found is None:
        step = f"install it, or change `mcp.servers.{name}.command`"
        return Check(f"MCP server {name}", False, f"{shown(server.command)}: command not found", step)
    return Check(f"MCP server {name}", True, shown(found))


def _reached(name: str, server: HttpServer) -> Check:
    """Ask for the URL without keys: any answer shows that the server is there (401 without a key is usual)."""
    parts = urlsplit(server.public_url)
    tls = parts.scheme == "https"
    try:
        status, _ = _get(parts.hostname or "", parts.port or (443 if tls else 80), parts.path or "/", tls=tls)
    except TimeoutError:
        reason = f"no answer within {TIMEOUT:.0f} s"
    except (OSError, http.client.HTTPException) as e:
        reason = shown(e)
    else:
        return Check(f"MCP server {name}", True, f"{shown(server.public_url)} answers ({status})")
    step = f"start the server, or change `mcp.servers.{name}.url`"
    return Check(f"MCP server {name}", False, f"{shown(server.public_url)}: {reason}", step)


# --- providers -------------------------------------------------------------------------------------------------------


def providers(settings: Settings, proxy_port: int, trusted: str | None = None) -> list[Job]:
    """Return a check for each address of a provider, through a proxy that tunnels all of them.

    `trusted`: a file of certificates. The default is the list that mitmproxy trusts, too.
    """
    addresses = {
        (address.host, address.port): None
        for provider in settings.providers
        if (address := provider.base_url) is not None and address.scheme == "https"
    }
    addresses |= {
        (host, 443): None
        for provider in settings.providers
        if provider.base_url is None
        for host in provider.hosts
        if "*" not in host
    }
    plain = {
        (address.host, address.port): None
        for provider in settings.providers
        if (address := provider.base_url) is not None and address.scheme == "http"
    }
    context = ssl.create_default_context(cafile=trusted or certifi.where())
    return [
        *(lambda host=host, port=port: _provider(host, port, proxy_port, context) for host, port in addresses),
        *(lambda host=host, port=port: _plain_provider(host, port) for host, port in plain),
    ]


def _plain_provider(host: str, port: int) -> Check:
    """Connect without TLS: such a provider is a program of this machine or network."""
    name, step = f"{PROVIDER}{host}:{port}", "start the program there, or change the provider's `base_url`"
    try:
        socket.create_connection((host, port), TIMEOUT).close()
    except TimeoutError:
        return Check(name, True, f"not reached: no answer within {TIMEOUT:.0f} s", step)
    except OSError as e:
        return Check(name, True, f"not reached: {shown(e.strerror or e)}", step)
    return Check(name, True, "reached, without TLS")


def summed_up(checks: Iterable[Check]) -> list[Check]:
    """Return one check for all warnings with the same reason, as without a network, in the place of the first."""
    groups: dict[tuple[str, ...], list[Check]] = {}
    for check in checks:
        same = (check.found, check.next_step) if check.is_warning else (check.name,)
        groups.setdefault(same, []).append(check)
    return [_one(group) for group in groups.values()]


def _one(group: Sequence[Check]) -> Check:
    first, *more = group
    if not more:
        return first
    hosts = ", ".join(check.name.removeprefix(PROVIDER) for check in group)
    return Check("providers", True, f"{len(group)} hosts, {first.found}: {hosts}", first.next_step)


def _provider(host: str, port: int, proxy_port: int, context: ssl.SSLContext) -> Check:
    name, step = f"{PROVIDER}{host}", "check the network and, behind a company's proxy, mitmproxy's `mode=upstream:`"
    try:
        with socket.create_connection(("127.0.0.1", proxy_port), TIMEOUT) as connection:
            place = f"{host}:{port}"
            connection.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
            head = connection.recv(4096).split(b"\r\n")[0].decode(errors="replace")
            if " 200" not in head:
                reason = "it cannot be reached" if " 502" in head else shown(head or "no answer")
                return Check(name, True, f"not reached: {reason}", step)
            with context.wrap_socket(connection, server_hostname=host) as checked:
                return Check(name, True, f"reached through the proxy, {checked.version()}, certificate verified")
    except ssl.SSLCertVerificationError as e:
        trust = "if a company's device reads TLS, set mitmproxy's `ssl_verify_upstream_trusted_ca` to its certificate"
        return Check(name, True, f"its certificate is not trusted: {shown(e.verify_message)}", trust)
    except ssl.SSLError as e:
        return Check(name, True, f"not reached: {shown(e.reason or e)}", step)
    except TimeoutError:
        return Check(name, True, f"not reached: no answer within {TIMEOUT:.0f} s", step)
    except OSError as e:
        return Check(name, True, f"not reached: {shown(e.strerror or e)}", step)
