"""Authorization servers, and MCP servers, that lead the bridge or a browser astray."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import httpx2
import pytest

from aibridge_addon.config.schema import Egress
from aibridge_addon.tools import CallError
from aibridge_addon.tools.oauth import OAuthError, http
from aibridge_addon.tools.oauth.http import Guard, Http, Reach
from tests.support.oauth_server import Answer, OAuthMcp, Seen
from tests.tools.oauth.conftest import BASE, Start

METADATA = "/.well-known/oauth-authorization-server"
RESOURCE = "/.well-known/oauth-protected-resource/mcp"
JSON = {"content-type": "application/json"}


def metadata(server: OAuthMcp, **members: Any) -> dict[str, Any]:
    own = {
        "issuer": server.base,
        "authorization_endpoint": f"{server.base}/authorize",
        "token_endpoint": f"{server.base}/token",
        "registration_endpoint": f"{server.base}/register",
        "code_challenge_methods_supported": ["S256"],
    }
    return {name: value for name, value in (own | members).items() if value is not None}


def answers(path: str, *answer: Any) -> Callable[[Seen], Answer | None]:
    """Answer requests of one path: with a status, headers and a body, or with a value as JSON."""
    status, headers, body = answer if len(answer) == 3 else (200, JSON, json.dumps(answer[0]).encode())
    return lambda seen: (status, headers, body) if seen.path == path else None


BAD: dict[str, tuple[Callable[[OAuthMcp], Callable[[Seen], Answer | None]], str]] = {
    "giant metadata": (
        lambda s: answers(METADATA, 200, JSON, json.dumps(metadata(s, pad="x" * (300 << 10))).encode()),
        "is larger than 262144 bytes",
    ),
    "metadata that expand": (
        lambda s: answers(METADATA, 200, {**JSON, "content-encoding": "gzip"}, gzip.compress(b" " * (8 << 20))),
        "has no metadata",
    ),
    "metadata that nest": (lambda s: answers(METADATA, 200, JSON, b"[" * 200_000), "has no metadata"),
    "another issuer": (lambda s: answers(METADATA, metadata(s, issuer="https://evil.example")), "the metadata of"),
    "another resource": (
        lambda s: answers(RESOURCE, {"resource": "https://evil.example", "authorization_servers": [s.base]}),
        "about another resource",
    ),
    "a link-local authorization server": (
        lambda s: answers(RESOURCE, {"resource": s.url, "authorization_servers": ["http://169.254.169.254/latest"]}),
        "is in a network that is not allowed",
    ),
    "a link-local place to register": (
        lambda s: answers(METADATA, metadata(s, registration_endpoint="http://169.254.169.254/register")),
        "is in a network that is not allowed",
    ),
    "redirects": (lambda s: answers(METADATA, 302, {"location": "http://169.254.169.254/"}, b""), "has no metadata"),
    "no PKCE": (lambda s: answers(METADATA, metadata(s, code_challenge_methods_supported=["plain"])), "no PKCE"),
    "no registration": (lambda s: answers(METADATA, metadata(s, registration_endpoint=None)), "registers no clients"),
    "errors": (lambda s: answers(METADATA, 500, {}, b"<script>"), "answers HTTP 500"),
    "a refused registration": (
        lambda s: answers("/register", 400, JSON, b'{"error": "<script>alert(1)</script>"}'),
        "&lt;script&gt;alert(1)&lt;/script&gt;",
    ),
    "a token that cannot be sent": (
        lambda s: answers("/token", {"access_token": "a\r\nX-Evil: 1", "token_type": "Bearer"}),
        "no token that can be sent",
    ),
    "a giant token": (
        lambda s: answers("/token", {"access_token": "a" * 20_000, "token_type": "Bearer"}),
        "no token that can be sent",
    ),
    "no token": (lambda s: answers("/token", {"hello": "world"}), "no token that can be read"),
    "HTML in place of a token": (
        lambda s: answers("/token", 400, JSON, b'{"error": "x", "error_description": "<img src=x onerror=alert(1)>"}'),
        "&lt;img src=x onerror=alert(1)&gt;",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_login_fails_with_a_plain_page(process: Start, server: OAuthMcp, name: str) -> None:
    make, said = BAD[name]
    server.override = make(server)
    ours = process()
    page = await ours.log_in("ada")
    assert page.status == 400
    assert said in page.body.decode()
    for tag in (b"<script", b"<img"):
        assert tag not in page.body
    server.override = None
    with pytest.raises(CallError, match="has to log in"):
        await ours.call("login", "ada")
    assert (await ours.log_in("ada")).status == 200


@pytest.mark.parametrize("target", ["/mcp/login/ours", "/mcp/login/ours/callback"])
async def test_an_authorization_server_that_sends_browsers_back_to_the_bridge_ends_a_login(
    process: Start, server: OAuthMcp, target: str
) -> None:
    server.override = answers(METADATA, metadata(server, authorization_endpoint=f"{BASE}{target}"))
    ours = process()
    person = ours.person()
    page = await person.open(await ours.link("ada"))
    assert page.status == 400
    assert len(person.visited) <= 3


async def test_words_of_a_refusal_are_shown_as_text(process: Start, server: OAuthMcp) -> None:
    ours = process()
    person = ours.person()
    person.ends_at = f"{BASE}/mcp/login/ours/callback"
    back = httpx2.URL((await person.open(await ours.link("ada"))).body.decode())
    person.ends_at = ""
    words = "<script>alert(1)</script>\x1b[2J" + "x" * 5000
    refused = back.copy_with(
        params={"error": "access_denied", "error_description": words, "state": back.params["state"]}
    )
    page = await person.open(str(refused))
    assert page.status == 400
    assert b"access_denied: &lt;script&gt;" in page.body
    assert b"<script" not in page.body
    assert b"\x1b" not in page.body
    assert len(page.body) < 3000


async def test_an_endless_lifetime_is_one_of_years(process: Start, server: OAuthMcp) -> None:
    ours = process()
    for lifetime in (10**30, -(10**30)):
        token = {"access_token": "a", "token_type": "bearer", "expires_in": lifetime}
        server.override = answers("/token", token)
        await ours.log_in("ada")
        known = next(iter(ours.logins.tokens._known.values()))
        assert known.grant is None or known.grant.lifetime in (0.0, 10 * 365 * 86_400.0)
        await ours.logins.tokens.drop("ours", "ada")


async def test_a_refusal_with_an_endless_body_is_not_read(process: Start, server: OAuthMcp) -> None:
    ours = process()
    await ours.log_in("ada")
    await ours.prepared("ada")
    server.expire("ada-there")
    ours.clock.ahead += timedelta(seconds=1)
    body = b"x" * (64 << 20)
    server.override = lambda seen: (401, {}, body) if seen.path == "/mcp" and seen.method == "POST" else None
    assert (await ours.link("ada", "whoami")).startswith(BASE)


async def test_a_scope_that_is_missing_is_asked_for_with_the_next_login(process: Start, server: OAuthMcp) -> None:
    ours = process()
    await ours.log_in("ada")
    await ours.prepared("ada")
    challenge = 'Bearer error="insufficient_scope", scope="files:write"'
    server.override = answers("/mcp", 403, {"www-authenticate": challenge}, b"")
    link = await ours.link("ada", "whoami")
    server.override = None
    for client in server.provider.clients.values():
        client.scope = "files:write"
    await ours.person().open(link)
    assert server.asked("/authorize")[-1].query["scope"] == "files:write"
    assert await ours.call("whoami", "ada") == "ada-there"


# --- addresses -------------------------------------------------------------------------------------------------------

ADDRESSES = {
    "127.0.0.1": Reach.LOOPBACK,
    "::1": Reach.LOOPBACK,
    "::ffff:127.0.0.1": Reach.LOOPBACK,
    "10.1.2.3": Reach.PRIVATE,
    "100.64.0.1": Reach.PRIVATE,
    "fd00::1": Reach.PRIVATE,
    "8.8.8.8": Reach.PUBLIC,
    "2606:4700::1": Reach.PUBLIC,
    "169.254.169.254": Reach.NEVER,
    "::ffff:169.254.169.254": Reach.NEVER,
    "fe80::1": Reach.NEVER,
    "0.0.0.0": Reach.NEVER,
    "64:ff9b::a00:1": Reach.NEVER,
    "2002:a00:1::": Reach.NEVER,
    "224.0.0.1": Reach.NEVER,
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_how_far_inside_an_address_is(address: str) -> None:
    assert http.reach(address) is ADDRESSES[address]


HOSTS = {"public": "8.8.8.8", "private": "10.0.0.1", "loopback": "127.0.0.1", "cloud": "169.254.169.254"}


async def resolved(host: str, port: int) -> list[str]:
    return [HOSTS[host.partition(".")[0]]]


@pytest.mark.parametrize("own", ["public", "private", "loopback"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_metadata_leads_as_far_inside_as_the_server_is_and_no_further(own: str, scheme: str) -> None:
    guard = Guard(f"{scheme}://{own}.example/mcp", Egress(), resolved)
    order = ["public", "private", "loopback"]
    allowed = set()
    for target in HOSTS:
        for other in ("http", "https"):
            try:
                await guard.addresses(httpx2.URL(f"{other}://{target}.other/x"))
            except OAuthError:
                continue
            allowed.add((target, other))
    inside = order[: order.index(own) + 1]
    expected = {(each, "https") for each in inside}
    if scheme == "http":
        expected |= {(each, "http") for each in inside if each != "public"}
    assert allowed == expected
    assert await guard.addresses(httpx2.URL(f"{scheme}://{own}.example/any")) == [HOSTS[own]]


async def test_the_configuration_can_allow_more() -> None:
    allowed = Egress(allowed_private_cidrs=(ip_network("10.0.0.0/8"),))
    guard = Guard("https://public.example/mcp", allowed, resolved)
    assert await guard.addresses(httpx2.URL("https://private.example/x")) == ["10.0.0.1"]
    with pytest.raises(OAuthError):
        await guard.addresses(httpx2.URL("https://cloud.example/x"))
    off = Guard("https://public.example/mcp", Egress(guard="off"), resolved)
    assert await off.addresses(httpx2.URL("http://cloud.example/x")) == ["169.254.169.254"]


async def test_a_connection_goes_to_the_address_that_was_checked(server: OAuthMcp) -> None:
    async def only_once(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    asked: list[str] = []
    guard = Guard(f"http://name.example:{server.port}/mcp", Egress(), only_once)
    response = await Http(guard).send(httpx2.Request("GET", f"http://name.example:{server.port}{METADATA}"))
    assert response.status_code == 200
    assert asked == ["name.example"]
    assert server.seen[-1].headers["host"] == f"name.example:{server.port}"
