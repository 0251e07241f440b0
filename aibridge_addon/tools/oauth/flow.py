"""The protocol of a login, as the MCP specification profiles OAuth 2.1, with the parts of the `mcp` library.

    discover ─▶ register ─▶ authorization_url … the person … ─▶ exchange ─▶ refresh … ─▶ revoke

The library's own client runs all of this inside one request, which waits for the person. Here, a login begins and ends
in two requests of a browser, which may reach two processes. So only its parts are used: its models, the order in which
metadata is looked for, and its checks of issuers (RFC 8414, RFC 9207), resources (RFC 8707) and registrations.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import httpx2
import mcp_types as types
from mcp.client.auth import utils
from mcp.client.auth.exceptions import OAuthFlowError
from mcp.client.auth.oauth2 import OAuthContext, PKCEParameters, check_registration_usable
from mcp.shared.auth import (
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthMetadata,
    OAuthToken,
    ProtectedResourceMetadata,
)
from mcp.shared.auth_utils import check_resource_allowed, resource_url_from_server_url
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, ValidationError

from aibridge_addon.config.oauth import OAuth
from aibridge_addon.tools.oauth import OAuthError, OAuthRefused
from aibridge_addon.tools.oauth.http import Http
from aibridge_addon.wire.printable import printable_line

MAX_TOKEN = 16 << 10
"""Characters of an access or refresh token."""
LONGEST = 10 * 365 * 86_400.0
"""Seconds. A lifetime beyond this counts as this."""
MAX_SAID = 300
"""Characters of an authorization server's words in a message."""
SECRET_METHODS = ("client_secret_post", "client_secret_basic")
"""How a client with a secret authenticates, in order of preference. Servers of `mcp` revoke with the first one."""
TEMPORARY = frozenset((httpx2.codes.REQUEST_TIMEOUT, httpx2.codes.TOO_EARLY, httpx2.codes.TOO_MANY_REQUESTS))
"""HTTP statuses below 500 after which a request may succeed later."""

_TOKEN = re.compile(r"[\x21-\x7e]+")
Now = Callable[[], float]


class Grant(BaseModel):
    """What an actor has at a server: its tokens, and all that renewing and revoking them needs."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    server_url: str
    resource: str
    access_token: str = Field(repr=False)
    refresh_token: str | None = Field(default=None, repr=False)
    expires_at: float | None = None
    """Seconds since 1970. None: the authorization server has not said it."""
    lifetime: float = 0.0
    """Seconds, at the time when it was granted."""
    scope: str | None = None
    metadata: OAuthMetadata
    client: OAuthClientInformationFull = Field(repr=False)


@dataclass(frozen=True, slots=True)
class Discovered:
    """What a server's metadata says about logins."""

    metadata: OAuthMetadata
    resource: str
    """The server's identifier, for which tokens are requested."""
    scope: str | None
    """The scopes to ask for. None: those that the authorization server chooses."""


async def discover(
    http: Http, server_url: str, headers: Mapping[str, str], settings: OAuth, challenged: str | None
) -> Discovered:
    """Find the authorization server of an MCP server.

    Args:
        headers: of the server's own settings.
        challenged: the scope that the server has asked for in answer to a call.

    Raises:
        OAuthError: there is none, or its metadata cannot be used.
    """
    refusal = await http.send(_probe(server_url, headers))
    resource_metadata = await _resource_metadata(http, server_url, refusal)
    issuer = str(resource_metadata.authorization_servers[0]) if resource_metadata is not None else None
    metadata = await _server_metadata(http, issuer, server_url)
    if "S256" not in (metadata.code_challenge_methods_supported or ["S256"]):
        raise OAuthError(f"the authorization server {metadata.issuer} has no PKCE with S256")
    http.guard.check_browser(str(metadata.authorization_endpoint))
    return Discovered(
        metadata,
        _resource(resource_metadata, server_url),
        _scope(settings, refusal, challenged, resource_metadata, metadata),
    )


def _probe(server_url: str, headers: Mapping[str, str]) -> httpx2.Request:
    """Return a request without a token. Its refusal names the metadata (RFC 9728, section 5.1)."""
    message = {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": types.LATEST_PROTOCOL_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "aibridge", "version": "1"},
        },
    }
    accept = {"accept": "application/json, text/event-stream"}
    return httpx2.Request("POST", server_url, json=message, headers={**headers, **accept})


async def _resource_metadata(http: Http, server_url: str, refusal: httpx2.Response) -> ProtectedResourceMetadata | None:
    """Return the metadata of RFC 9728. None: the server has none."""
    named = utils.extract_resource_metadata_from_www_auth(refusal) if refusal.status_code in (401, 403) else None
    for url in utils.build_protected_resource_metadata_discovery_urls(named, server_url):
        response = await http.send(utils.create_oauth_metadata_request(url))
        if response.status_code >= httpx2.codes.INTERNAL_SERVER_ERROR:
            raise OAuthError(f"{url} answers HTTP {response.status_code}")
        found = await utils.handle_protected_resource_response(response)
        if found is None:
            continue
        if not check_resource_allowed(resource_url_from_server_url(server_url), str(found.resource)):
            raise OAuthError(f"the server's metadata is about another resource, {_said(str(found.resource))}")
        return found
    return None


async def _server_metadata(http: Http, issuer: str | None, server_url: str) -> OAuthMetadata:
    """Return the authorization server's metadata (RFC 8414, or OpenID Connect Discovery).

    An MCP server of 2025-03-26 is its own authorization server, and its endpoints have default paths.
    """
    origin = f"{urlsplit(server_url).scheme}://{urlsplit(server_url).netloc}"
    for url in utils.build_oauth_authorization_server_metadata_discovery_urls(issuer, server_url):
        response = await http.send(utils.create_oauth_metadata_request(url))
        goes_on, found = await utils.handle_auth_metadata_response(response)
        if not goes_on:
            raise OAuthError(f"{url} answers HTTP {response.status_code}")
        if found is None:
            continue
        if not utils.issuers_match(str(found.issuer), issuer or origin):
            raise OAuthError(f"the metadata of {issuer or origin} is that of {_said(str(found.issuer))}")
        return found
    if issuer is not None:
        raise OAuthError(f"the authorization server {_said(issuer)} has no metadata")
    return OAuthMetadata.model_validate(
        {
            "issuer": origin,
            "authorization_endpoint": urljoin(origin, "/authorize"),
            "token_endpoint": urljoin(origin, "/token"),
            "registration_endpoint": urljoin(origin, "/register"),
        }
    )


def _resource(found: ProtectedResourceMetadata | None, server_url: str) -> str:
    return str(found.resource) if found is not None else resource_url_from_server_url(server_url)


def _scope(
    settings: OAuth,
    refusal: httpx2.Response,
    challenged: str | None,
    resource: ProtectedResourceMetadata | None,
    server: OAuthMetadata,
) -> str | None:
    own = " ".join(settings.scopes) or None
    if own is None:
        asked = utils.extract_scope_from_www_auth(refusal)
        own = utils.get_client_metadata_scopes(asked, resource, server, ["authorization_code", "refresh_token"])
    return utils.union_scopes(own, challenged)


# --- the client -----------------------------------------------------------------------------------------------------


def configured_client(settings: OAuth, metadata: OAuthMetadata) -> OAuthClientInformationFull | None:
    """Return the client of the configuration. None: one is registered."""
    if settings.client_id is None:
        return None
    secret = settings.client_secret.get_secret_value() if settings.client_secret is not None else None
    method = _method(metadata, SECRET_METHODS) if secret is not None else "none"
    return OAuthClientInformationFull(
        client_id=settings.client_id, client_secret=secret, token_endpoint_auth_method=method
    )


def _method(metadata: OAuthMetadata, wanted: Sequence[str]) -> str:
    """Choose how to authenticate (RFC 8414, section 2: the default is `client_secret_basic`)."""
    supported = metadata.token_endpoint_auth_methods_supported or SECRET_METHODS[1:]
    return next((method for method in wanted if method in supported), wanted[0])


async def register(http: Http, found: Discovered, redirect_uri: str) -> OAuthClientInformationFull:
    """Register a client (RFC 7591). Raises OAuthError."""
    metadata = found.metadata
    if metadata.registration_endpoint is None:
        raise OAuthError(
            f"the authorization server {metadata.issuer} registers no clients: set client_id in the server's oauth"
        )
    method = _method(metadata, (*SECRET_METHODS, "none"))
    is_local = urlsplit(redirect_uri).scheme == "http"
    wanted = OAuthClientMetadata.model_validate(
        {
            "client_name": "aibridge",
            "redirect_uris": [redirect_uri],
            "token_endpoint_auth_method": method,
            "application_type": "native" if is_local else "web",
            "scope": found.scope,
        }
    )
    response = await http.send(utils.create_client_registration_request(metadata, wanted, ""))
    try:
        client = await utils.handle_registration_response(response)
        if client.token_endpoint_auth_method is None:
            client.token_endpoint_auth_method = method if client.client_secret is not None else "none"
        check_registration_usable(client)
    except OAuthFlowError:
        raise OAuthError(f"no client can be registered: {_problem(response)}") from None
    return client


# --- the person, and what follows -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """A request for authorization."""

    url: str
    verifier: str


def authorization_request(
    found: Discovered, client: OAuthClientInformationFull, redirect_uri: str, state: str
) -> Request:
    """Return where the browser goes, and the secret that proves later who has sent it there (PKCE, RFC 7636)."""
    pkce = PKCEParameters.generate()
    query = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge": pkce.code_challenge,
        "code_challenge_method": "S256",
        "resource": found.resource,
    }
    if found.scope:
        query["scope"] = found.scope
        if "offline_access" in found.scope.split():
            query["prompt"] = "consent"  # OpenID Connect Core, section 11
    endpoint = urlsplit(str(found.metadata.authorization_endpoint))
    whole = "&".join(part for part in (endpoint.query, urlencode(query)) if part)
    return Request(endpoint._replace(query=whole, fragment="").geturl(), pkce.code_verifier)


def check_issuer(metadata: OAuthMetadata, iss: str | None) -> None:
    """Check who has sent the browser back (RFC 9207). Raises OAuthError."""
    try:
        utils.validate_authorization_response_iss(iss, metadata)
    except OAuthFlowError:
        raise OAuthError("the answer is not from the authorization server that was asked") from None


async def exchange(
    http: Http,
    *,
    server_url: str,
    found: Discovered,
    client: OAuthClientInformationFull,
    code: str,
    verifier: str,
    redirect_uri: str,
    now: Now = time.time,
) -> Grant:
    """Exchange an authorization code for tokens. Raises OAuthError."""
    data = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "client_id": client.client_id,
        "code_verifier": verifier,
        "resource": found.resource,
    }
    response = await http.send(_authenticated(str(found.metadata.token_endpoint), data, client))
    token = _token(response)
    return Grant(
        server_url=server_url,
        resource=found.resource,
        metadata=needed(found.metadata),
        client=client,
        scope=token.scope or found.scope,
        **_tokens(token, now),
    )


async def refresh(http: Http, grant: Grant, now: Now = time.time) -> Grant:
    """Renew an access token.

    Raises:
        OAuthRefused: the refresh token does not count any more.
        OAuthError: it may succeed later.
    """
    assert grant.refresh_token is not None
    data = {
        "grant_type": "refresh_token",
        "refresh_token": grant.refresh_token,
        "client_id": grant.client.client_id,
        "resource": grant.resource,
    }
    response = await http.send(_authenticated(str(grant.metadata.token_endpoint), data, grant.client))
    token = _token(response)
    renewed = _tokens(token, now)
    renewed["refresh_token"] = renewed["refresh_token"] or grant.refresh_token  # RFC 6749, section 6
    return grant.model_copy(update={**renewed, "scope": token.scope or grant.scope})


async def revoke(http: Http, grant: Grant) -> bool:
    """Revoke the tokens (RFC 7009). Return whether the authorization server has done so. Raises OAuthError."""
    if grant.metadata.revocation_endpoint is None:
        return False
    done = True
    for token, hint in ((grant.refresh_token, "refresh_token"), (grant.access_token, "access_token")):
        if token is not None:
            data = {"token": token, "token_type_hint": hint, "client_id": grant.client.client_id}
            request = _authenticated(str(grant.metadata.revocation_endpoint), data, grant.client)
            done &= (await http.send(request)).is_success
    return done


def _authenticated(url: str, data: dict[str, str], client: OAuthClientInformationFull) -> httpx2.Request:
    """Return a request in which the client authenticates."""
    context = OAuthContext(
        server_url="",
        client_metadata=OAuthClientMetadata(redirect_uris=None),
        storage=None,  # type: ignore[arg-type]  # only `prepare_token_auth` is used
        redirect_handler=None,
        callback_handler=None,
        client_info=client,
    )
    sent, headers = context.prepare_token_auth(data, {"accept": "application/json"})
    return httpx2.Request("POST", url, data=sent, headers=headers)


def _token(response: httpx2.Response) -> OAuthToken:
    """Read an answer of the token endpoint. Raises OAuthRefused and OAuthError."""
    if not response.is_success:
        refused = 400 <= response.status_code < 500 and response.status_code not in TEMPORARY
        kind = OAuthRefused if refused else OAuthError
        raise kind(f"the authorization server gives no token: {_problem(response)}")
    try:
        token = OAuthToken.model_validate_json(response.content)
    except ValidationError:
        raise OAuthError("the authorization server gives no token that can be read") from None
    for text in (token.access_token, *((token.refresh_token,) if token.refresh_token else ())):
        if len(text) > MAX_TOKEN or not _TOKEN.fullmatch(text):
            raise OAuthError("the authorization server gives no token that can be sent")
    return token


def _tokens(token: OAuthToken, now: Now) -> dict[str, Any]:
    lifetime = None if token.expires_in is None else min(max(float(token.expires_in), 0.0), LONGEST)
    return {
        "access_token": token.access_token,
        "refresh_token": token.refresh_token or None,
        "expires_at": None if lifetime is None else now() + lifetime,
        "lifetime": lifetime or 0.0,
    }


def needed(metadata: OAuthMetadata) -> OAuthMetadata:
    """Return what later requests need of the metadata, which may be large."""
    kept = ("issuer", "authorization_endpoint", "token_endpoint", "revocation_endpoint")
    return OAuthMetadata(
        **{name: getattr(metadata, name) for name in kept},
        authorization_response_iss_parameter_supported=metadata.authorization_response_iss_parameter_supported,
    )


def _problem(response: httpx2.Response) -> str:
    """Return what an error of OAuth says (RFC 6749, section 5.2)."""
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        body = None
    members = body if isinstance(body, dict) else {}
    words = [members[name] for name in ("error", "error_description") if isinstance(members.get(name), str)]
    return f"HTTP {response.status_code}" + (f", {_said(': '.join(words))}" if words else "")


def _said(text: str) -> str:
    """Return foreign words for a message."""
    return printable_line(" ".join(text.split())[:MAX_SAID])


def redirect_uri_of(base_url: str, server_name: str) -> str:
    return str(AnyUrl(f"{base_url}/mcp/login/{server_name}/callback"))
