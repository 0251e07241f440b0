"""HTTP requests to authorization servers, whose addresses come from foreign metadata: guarded and bounded.

An MCP server names its authorization server, which names its endpoints. Without a guard, both could make the bridge
send requests into the operator's own network. So an address may be as internal as the MCP server itself, and no more:

    MCP server      │ loopback   private   public
    may lead to     │ all three  private, public   public

Link-local addresses, where clouds serve credentials of machines, are never allowed. A name is resolved once, and the
connection goes to the address that was checked. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum

import httpx2

from aibridge_addon.config.schema import Egress
from aibridge_addon.tools.oauth import OAuthError

MAX_ANSWER = 256 << 10
"""Bytes of an answer. A larger one is not read."""
TIMEOUT = 5.0
"""Seconds of one request."""
MAX_ADDRESSES = 4
"""Addresses of a host that are tried."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
EMBEDDING = tuple(
    ipaddress.ip_network(each)
    for each in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fec0::/10")
)
"""Networks whose addresses lead to other ones (IPv4-compatible, NAT64, Teredo, 6to4), or are deprecated."""


class Reach(IntEnum):
    """How far inside an address is."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    NEVER = 3


def reach(text: str) -> Reach:
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return Reach.LOOPBACK
    if address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved:
        return Reach.NEVER
    if isinstance(address, ipaddress.IPv6Address) and any(address in network for network in EMBEDDING):
        return Reach.NEVER
    return Reach.PUBLIC if address.is_global else Reach.PRIVATE


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))[:MAX_ADDRESSES]


class Guard:
    """Decides for one MCP server which addresses its metadata may lead to."""

    def __init__(self, server_url: str, egress: Egress, resolve: Resolve = resolve) -> None:
        self._server = httpx2.URL(server_url)
        self._egress = egress
        self._resolve = resolve

    def check_browser(self, url: str) -> None:
        """Check where a browser is sent. It resolves the name itself. Raises OAuthError."""
        target = httpx2.URL(url)
        if target.scheme == "https" or self._is_own(target) or self._egress.guard == "off":
            return
        if target.scheme != "http" or self._server.scheme != "http":
            raise OAuthError(f"{_shown(target)} has to be a URL with https")

    async def addresses(self, target: httpx2.URL) -> Sequence[str]:
        """Return the addresses to connect to. Raises OAuthError and OSError."""
        found = await self._resolve(target.host, _port(target))
        if not found:
            raise OSError
        if self._is_own(target) or self._egress.guard == "off":
            return found
        await self._check(target, found)
        return found

    def check_literal(self, target: httpx2.URL) -> None:
        """Check a request that goes through an upstream proxy, which resolves names. Raises OAuthError."""
        try:
            far = Reach.LOOPBACK if target.host == "localhost" else reach(target.host)
        except ValueError:
            far = Reach.PUBLIC
        if (far is not Reach.PUBLIC or target.scheme != "https") and not self._is_own(target):
            raise OAuthError(f"{_shown(target)} is not allowed behind an upstream proxy")

    async def _check(self, target: httpx2.URL, found: Sequence[str]) -> None:
        far = max(map(reach, found))
        permitted = all(self._is_permitted(each) for each in found)
        if far is not Reach.PUBLIC and not permitted:
            own = await self._resolve(self._server.host, _port(self._server))
            if far is Reach.NEVER or far > min(map(reach, own), default=Reach.PUBLIC):
                raise OAuthError(
                    f"{_shown(target)} is in a network that is not allowed: egress.allowed_private_cidrs can allow it"
                )
        if target.scheme != "https" and (far is Reach.PUBLIC or self._server.scheme != "http"):
            raise OAuthError(f"{_shown(target)} has to be a URL with https")

    def _is_permitted(self, text: str) -> bool:
        address = ipaddress.ip_address(text.partition("%")[0])
        return any(address in network for network in self._egress.allowed_private_cidrs)

    def _is_own(self, target: httpx2.URL) -> bool:
        """Whether this is the origin that the operator has configured."""
        return (target.scheme, target.host, _port(target)) == (
            *(self._server.scheme, self._server.host),
            _port(self._server),
        )


class Http:
    """Sends one request after the other, each over a connection of its own."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self._tls: ssl.SSLContext | None = None

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        """Return an answer that has been read completely. Raises OAuthError."""
        request.headers["accept-encoding"] = "identity"
        shown = _shown(request.url)
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._send(request)
        except (httpx2.TimeoutException, TimeoutError):
            raise OAuthError(f"{shown} did not answer in time") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError):
            raise OAuthError(f"{shown} cannot be reached") from None

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        if self._tls is None:
            # Reading the certificates takes tenths of a second.
            self._tls = await asyncio.to_thread(httpx2.create_ssl_context)
        proxy = urllib.request.getproxies().get(request.url.scheme)
        if proxy is not None and not urllib.request.proxy_bypass(request.url.host):
            self.guard.check_literal(request.url)
            transport = httpx2.AsyncHTTPTransport(verify=self._tls, proxy=proxy)
            return await self._read(transport, request)
        error: Exception = OSError()
        url = request.url
        for address in await self.guard.addresses(url):
            pinned = httpx2.Request(
                *(request.method, url.copy_with(host=address.partition("%")[0])),
                headers=request.headers,
                content=request.content,
                extensions={"sni_hostname": url.host},
            )
            pinned.headers["host"] = url.netloc.decode("ascii")
            try:
                response = await self._read(httpx2.AsyncHTTPTransport(verify=self._tls), pinned)
            except httpx2.ConnectError as e:
                error = e
            else:
                response.request = request
                return response
        raise error

    async def _read(self, transport: httpx2.AsyncBaseTransport, request: httpx2.Request) -> httpx2.Response:
        async with httpx2.AsyncClient(transport=transport, timeout=TIMEOUT, trust_env=False) as client:
            response = await client.send(request, stream=True)
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > MAX_ANSWER:
                    raise OAuthError(f"the answer of {_shown(request.url)} is larger than {MAX_ANSWER} bytes")
            headers = [(name, value) for name, value in response.headers.multi_items() if name not in _OF_THE_BODY]
            if "content-encoding" in response.headers:
                body.clear()  # it was not asked for
            return httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=request)


_OF_THE_BODY = frozenset(("content-encoding", "content-length", "transfer-encoding"))


def _port(url: httpx2.URL) -> int:
    return url.port or {"https": 443, "http": 80}.get(url.scheme, 0)


def _shown(url: httpx2.URL) -> str:
    """Return the origin and path of a URL, which is foreign, for messages."""
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}{url.path}"[:200]
