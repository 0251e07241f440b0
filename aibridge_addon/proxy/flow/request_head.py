"""Decide about a request by its head: find the route and the actor, and remove headers that must not go upstream."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from weakref import WeakKeyDictionary

from mitmproxy import http
from mitmproxy.connection import Client

from aibridge_addon.bridge import Bridge
from aibridge_addon.credentials.client import PROTOCOLS, brings_credential
from aibridge_addon.credentials.identity import CENTRAL, credential_identity
from aibridge_addon.credentials.tokens import Presented, RefusedToken, Verdict
from aibridge_addon.dialects import MESSAGES
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.routing import WEBSOCKET, Route
from aibridge_addon.providers.base import BaseUrl
from aibridge_addon.proxy.connection.authentication import FAILED
from aibridge_addon.proxy.connection.once_a_minute import OnceAMinute
from aibridge_addon.proxy.connection.ourselves import OwnConnections, is_own_address
from aibridge_addon.proxy.connection.scope import is_ip_address
from aibridge_addon.proxy.flow import dispatch, websocket
from aibridge_addon.proxy.flow.bedrock import Translation
from aibridge_addon.proxy.flow.bridge_token import (
    IN_URL,
    MISSING,
    Taken,
    no_central_key,
    refusal_of,
    refusal_response,
    take,
    unauthenticated,
)
from aibridge_addon.proxy.flow.destination import ROUTED, NamedClients
from aibridge_addon.proxy.flow.http1 import bracket_host, content_length
from aibridge_addon.proxy.flow.request import takes_tools_of
from aibridge_addon.proxy.flow.state import (
    CENTRAL_KEY,
    KEY,
    ORIGIN_FORM,
    TUNNEL,
    UNDIALLED,
    Bridged,
    Dispatch,
    Head,
    Passthrough,
    Refusal,
    Refused,
    Served,
    describe,
    emit_refusal,
    error_response,
    is_replay,
    state_of,
)
from aibridge_addon.proxy.flow.unknown_route import answer_at_no_route, is_probe, no_such_route
from aibridge_addon.records import Headers

logger = logging.getLogger(__name__)

PROXY_HEADERS = (b"proxy-authorization", b"proxy-connection")
"""Headers for this proxy only (RFC 9110, section 11.7.2). Old clients send `Proxy-Connection`."""

READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods whose requests carry no conversation."""
EVENT_LOGGING = "/api/event_logging/*"
"""Route of Claude Code's telemetry; see the routes of the type `anthropic`."""

STOPPING = "the bridge is being stopped"
TRY_AGAIN: Mapping[str, str] = MappingProxyType({"retry-after": "1", "connection": "close"})
NO_REPLAY = "a request with a central credential cannot be replayed: send it again from its client"


@dataclass(frozen=True, slots=True)
class Named:
    """What a front proxy's headers name."""

    actor: str | None
    groups: tuple[str, ...]
    unnamed: str
    """Why they name no actor. "": the configuration has no such header."""


ACTOR_PREFIX = dispatch.ACTOR_HEADERS.lower().rstrip("-").encode()


def lower_headers(request: http.Request) -> Headers:
    """Return the headers by lower-case name. The last value of a repeated header counts.

    The lines of a list are one list (RFC 9110, section 5.3): all codings were applied to the body.
    """
    found = {name.lower(): value for name, value in request.headers.fields}
    for listed in LISTS & found.keys():
        found[listed] = b", ".join(value for name, value in request.headers.fields if name.lower() == listed)
    return found


LISTS = frozenset({b"content-encoding", PROTOCOLS})
"""Headers of several lines that are read."""


class RequestClassifier:
    """Sets a flow's state when the request's headers have arrived."""

    def __init__(self, bridge: Bridge, before: RequestClassifier | None = None) -> None:
        """`before`: that of the bridge that was replaced. Tunnels that were opened under it go on."""
        self._bridge = bridge
        self._untrusted = OnceAMinute(time.monotonic)
        self._own = OwnConnections()
        self._connected: WeakKeyDictionary[Client, Named] = WeakKeyDictionary()
        self._connect_tokens: WeakKeyDictionary[Client, Presented] = WeakKeyDictionary()
        self.named_clients = NamedClients()
        if before is not None:
            self._connected, self._connect_tokens = before._connected, before._connect_tokens
            self.named_clients = before.named_clients

    def connect(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Handle a CONNECT request.

        A front proxy can name the actor only here; it cannot add headers inside the tunnel. The same holds for a
        client that gives a token as the password of its proxy. If the provider has a central key, the requests inside
        may have a token in its place. Then the tunnel is opened, and each of them is decided about.
        """
        provider = self._bridge.router.provider_for_host(flow.request.host)
        named = self._connected[flow.client_conn] = self._named(flow, lower_headers(flow.request), on_connect=True)
        token = take(flow).as_password
        self._connect_tokens.pop(flow.client_conn, None)
        if token is not None:
            self._connect_tokens[flow.client_conn] = token
        own = is_own_address((flow.request.host, flow.request.port), flow.client_conn)
        if provider is None and not own and not is_ip_address(flow.request.host):
            flow.metadata[TUNNEL] = True
        if own or self._bridge.router.is_redirected(flow.request.host):
            flow.metadata[UNDIALLED] = True
        if token is not None:
            return self._with_verdict(token, partial(self._connect_with_token, flow))
        if _authentication_failed(flow):
            flow.response = unauthenticated(None, proxy=True)
        elif self._bridge.actors.resolve(proxy_user(flow), named.actor) is not None:
            self.named_clients.add(flow.client_conn)
        elif not own and (
            provider is None or provider.name not in self._bridge.key_pools.keys() | self._bridge.signers.keys()
        ):
            flow.response = unauthenticated(None, proxy=True, reason=named.unnamed or MISSING)
        return None

    def _connect_with_token(self, flow: http.HTTPFlow, verdict: Verdict) -> None:
        if isinstance(verdict, RefusedToken):
            flow.response = refusal_response(None, refusal_of(verdict, proxy=True))
            return
        self.named_clients.add(flow.client_conn)
        if _authentication_failed(flow):
            flow.response = None  # a token is an authentication, too

    def request_head(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Set the state of a flow. Sets `flow.response` if the request is refused."""
        route = self._route(flow)
        taken = take(flow)
        connected = self._connect_tokens.get(flow.client_conn)
        if route is None:
            if taken.in_url:
                flow.response = refusal_response(None, Refusal(400, IN_URL))
                return None
            password = taken.as_password or connected  # as a key, it authenticates to providers only
            if password is None:
                self._foreign(flow)
                return None
            return self._with_verdict(password, partial(self._foreign_with_token, flow))
        left = self._bridge.in_flight.enter(partial(_cut_off, flow), partial(described, flow, route))
        flow.metadata[KEY] = Refused(route, left)
        if self._bridge.refusing:
            flow.response = refusal_response(route, Refusal(503, STOPPING, headers=TRY_AGAIN))
            return None
        if taken.in_url:
            flow.response = refusal_response(route, Refusal(400, IN_URL))
            return None
        token = taken.token or connected
        if token is None:
            self._decide(flow, route, left)
            return None
        return self._with_verdict(token, partial(self._decide_with_token, flow, route, left, token, taken))

    def _with_verdict(self, token: Presented, use: Callable[[Verdict], None]) -> Awaitable[None] | None:
        """Call `use` with the verdict about a token: at once if it is known, else from the returned awaitable."""
        verdict = self._bridge.tokens.known(token)
        if verdict is None:
            return self._with_checked(token, use)
        use(verdict)
        return None

    async def _with_checked(self, token: Presented, use: Callable[[Verdict], None]) -> None:
        use(await self._bridge.tokens.check(token))

    def _decide_with_token(
        self,
        flow: http.HTTPFlow,
        route: Route,
        left: Callable[[], None],
        token: Presented,
        taken: Taken,
        verdict: Verdict,
    ) -> None:
        if isinstance(verdict, RefusedToken):
            proxy = taken.as_key is None and _used_as_proxy(flow)
            flow.request.stream = False
            flow.response = refusal_response(route, refusal_of(verdict, proxy=proxy))
            return
        if _authentication_failed(flow):
            flow.response = None  # a token is an authentication, too
        instead_of_key = taken.as_key is not None or not _used_as_proxy(flow)
        self._decide(flow, route, left, self._bridge.actors.owner(verdict, token), instead_of_key=instead_of_key)

    def _decide(
        self,
        flow: http.HTTPFlow,
        route: Route,
        left: Callable[[], None],
        owner: Actor | None = None,
        *,
        instead_of_key: bool = False,
    ) -> None:
        try:
            state = self._decided(flow, route, left, owner, instead_of_key=instead_of_key)
            if state is not None:
                flow.metadata[KEY] = state
        except Exception:  # sent on undecided, it might carry credentials that are meant for the bridge
            logger.exception("aibridge: a request's head could not be decided about")
            flow.request.stream = False
            flow.response = error_response(route.errors, 500, "the request could not be read")

    def _decided(
        self,
        flow: http.HTTPFlow,
        route: Route,
        left: Callable[[], None],
        owner: Actor | None,
        *,
        instead_of_key: bool,
    ) -> Served | None:
        """Return the state of a provider request, or None if it is refused.

        `owner` is the actor that a token names. `instead_of_key`: the client gave that token in place of a key.
        """
        if flow.response is not None:
            if _authentication_failed(flow):
                flow.response = unauthenticated(route, proxy=_used_as_proxy(flow))
            return None
        headers = lower_headers(flow.request)
        # Requests inside a tunnel come from the client, not from the front proxy, so their headers are not trusted.
        connected = self._connected.get(flow.client_conn)
        named = connected or self._named(flow, headers)
        actor = owner or self._bridge.actors.resolve(proxy_user(flow), named.actor, named.groups)
        if actor is None:
            # Inside a tunnel, 407 would be an error of the connection for many clients, without its message.
            proxy = _used_as_proxy(flow) and connected is None
            flow.response = unauthenticated(route, proxy=proxy, reason=named.unnamed or MISSING)
            return None
        self.named_clients.add(flow.client_conn)
        self._address(flow, route)
        self._strip(flow, headers)
        for name in headers:
            if name.startswith(ACTOR_PREFIX):
                del flow.request.headers[name.decode("utf-8", "surrogateescape")]
        chosen = _choose_credential(flow, route, self._bridge, headers)
        if chosen is None or _must_not_leave(flow, route):
            flow.response = no_such_route(route, self._bridge.router)
            return None
        if is_replay(flow) and chosen.needs_stream(CENTRAL_KEY in flow.metadata):
            flow.response = error_response(route.errors, 403, NO_REPLAY)
            return None
        if owner is not None and _lacks_credential(route, chosen, headers, instead_of_key=instead_of_key):
            flow.response = refusal_response(route, no_central_key(route))
            return None
        if route.websocket is None and (route.dialect is not None or chosen.attempts.pool is not None):
            websocket.drop_upgrade(flow.request)
        host = flow.request.host
        if (refusal := websocket.refused_handshake(route, self._bridge, host, headers, chosen)) is not None:
            flow.response = error_response(route.errors, refusal.status, refusal.message, refusal.headers)
            return None
        head = Head(route, self._bridge, headers, actor, chosen, _identity(flow.request, route, headers, chosen))
        if route.results is not None and (route.result_of != "stored" or self._bridge.continuations is not None):
            return self._bridged(replace(head, route=replace(route, dialect=route.results)), left)
        too_large = content_length(flow.request) > self._bridge.settings.limits.request_body
        if route.counts is not None and not too_large:
            counted = replace(head, route=replace(route, dialect=route.counts))
            if takes_tools_of(counted):
                return self._bridged(counted, left)
        if route.dialect is not None and route.dialect.takes_forms and too_large:
            head = replace(head, route=replace(route, dialect=None, billable=True))  # an upload: forwarded unread
        if head.route.dialect is None:
            return Passthrough(head, left if chosen.ticket is None else chosen.settling(left))
        if too_large:
            flow.request.headers.pop("expect", None)  # the body will be refused, so do not send 100 Continue
        return self._bridged(head, left)

    def _bridged(self, head: Head, left: Callable[[], None]) -> Bridged:
        share = self._bridge.buffers.share()
        return Bridged(head, share.ending(left), share)

    def _route(self, flow: http.HTTPFlow) -> Route | None:
        request, router = flow.request, self._bridge.router
        method = WEBSOCKET if websocket.is_upgrade(request) else request.method
        if is_replay(flow):
            return router.replayed(BaseUrl(request.scheme, request.host, request.port), method, request.path)
        if flow.metadata.get(ORIGIN_FORM):
            return router.gateway(method, request.path)
        host = request.host
        if is_ip_address(host):  # a transparent mode: the name is in the SNI or, for plain HTTP, in the Host header
            host = flow.client_conn.sni or request.pretty_host
        return router.proxied(host, method, request.path)

    def _foreign_with_token(self, flow: http.HTTPFlow, verdict: Verdict) -> None:
        if isinstance(verdict, RefusedToken):
            flow.response = refusal_response(None, refusal_of(verdict, proxy=_used_as_proxy(flow)))
            return
        if _authentication_failed(flow):
            flow.response = None  # a token is an authentication, too
        self._foreign(flow, has_token=True)

    def _foreign(self, flow: http.HTTPFlow, *, has_token: bool = False) -> None:
        """Handle a request to no provider: forward a proxied one, answer 404 to a gateway request."""
        if _authentication_failed(flow):
            flow.response = unauthenticated(None, proxy=_used_as_proxy(flow))
        elif flow.response is not None:
            pass  # another addon has answered it
        elif flow.metadata.get(ORIGIN_FORM):
            flow.response = answer_at_no_route(flow.request, self._bridge.router)
        else:
            headers = lower_headers(flow.request)
            connected = self._connected.get(flow.client_conn)
            named = connected or self._named(flow, headers)
            if has_token or self._bridge.actors.resolve(proxy_user(flow), named.actor) is not None:
                self.named_clients.add(flow.client_conn)
            elif flow.client_conn.proxy_mode.type_name not in ROUTED:
                proxy = _used_as_proxy(flow) and connected is None
                flow.response = unauthenticated(None, proxy=proxy, reason=named.unnamed or MISSING)
                return
            self._strip(flow, headers)

    def _named(self, flow: http.HTTPFlow, headers: Headers, *, on_connect: bool = False) -> Named:
        actors = self._bridge.actors
        # A client of the proxy wrote the headers of a connection that we made to ourselves.
        peer = "" if actors.headers and self._own.made(flow.client_conn) else peer_of(flow)
        name, groups = actors.trusted_name(headers, peer), actors.trusted_groups(headers, peer)
        if name is not None:
            return Named(name, groups, "")
        unnamed = actors.unnamed(headers, peer, on_connect=on_connect)
        if actors.is_untrusted(headers, peer) and self._untrusted.is_due(peer):
            logger.warning("aibridge: %s", unnamed)
        return Named(None, groups, unnamed)

    def _address(self, flow: http.HTTPFlow, route: Route) -> None:
        request, base = flow.request, route.base
        if base is not None and (request.scheme, request.host, request.port) != (
            base.scheme,
            base.host,
            base.port,
        ):
            request.scheme = base.scheme
            request.data.host = base.host
            request.port = base.port  # this also puts both into the Host header
            bracket_host(request)
        if request.path != route.target:
            request.path = route.target

    def _strip(self, flow: http.HTTPFlow, headers: Headers) -> None:
        for name in (*PROXY_HEADERS, *self._bridge.actors.headers):
            if name in headers:
                del flow.request.headers[name]


def _choose_credential(flow: http.HTTPFlow, route: Route, bridge: Bridge, headers: Headers) -> Dispatch | None:
    """Choose the client's credential if it sent one, else the provider's central keys.

    Returns:
        None if this is a gateway request for an unknown route of a provider with central keys.
    """
    provider = route.provider
    # A passthrough is not retried, but it may use another central key.
    max_retries = 0 if route.dialect is None else provider.max_retries
    chosen = Dispatch(Attempts(max_retries=max_retries, route=route.template))
    signer = bridge.signers.get(provider.name)
    if signer is not None and route.dialect is MESSAGES and provider.bedrock is not None:
        chosen.translation = Translation(provider.bedrock, signer)
    pool = bridge.key_pools.get(provider.name)
    if pool is None:
        return chosen
    own = brings_credential(headers, route.type.credential_headers)
    if route.known and not own and provider.owns(flow.request.scheme, flow.request.host, flow.request.port):
        chosen.attempts.pool = pool
        chosen.attempts.choose_key()
    return chosen if route.known or not flow.metadata.get(ORIGIN_FORM) else None


def _lacks_credential(route: Route, chosen: Dispatch, headers: Headers, *, instead_of_key: bool) -> bool:
    """Return whether a request with a token would go upstream without a credential, where it needs one.

    A client of the proxy also sends requests that need none, such as telemetry and the renewal of a login.
    """
    if chosen.attempts.pool is not None or chosen.translation is not None:
        return False
    needed = instead_of_key or route.dialect is not None or route.websocket is not None
    return needed and not brings_credential(headers, route.type.credential_headers)


def _identity(request: http.Request, route: Route, headers: Headers, chosen: Dispatch) -> str:
    central = chosen.attempts.pool is not None or chosen.translation is not None
    if central and not brings_credential(headers, route.type.credential_headers):
        return CENTRAL
    host = request.host if request.scheme == "https" else ""
    return credential_identity(headers, route.type.credential_headers, route.type.logins, host)


def described(flow: http.HTTPFlow, route: Route) -> str:
    """Return for the log of a stop which request it waits for."""
    state = state_of(flow)
    if isinstance(state, Bridged) and state.exchange is not None:
        return describe(state.head, state.exchange)
    actor = f" for {state.head.actor.id}" if isinstance(state, Served) else ""
    return f"{route.provider.name}{route.template}{actor}"


def _cut_off(flow: http.HTTPFlow) -> None:
    """End a flow at a stop."""
    if isinstance(state := state_of(flow), Bridged):
        state.cut_off()


def _must_not_leave(flow: http.HTTPFlow, route: Route) -> bool:
    """Return whether a request is refused because its provider's conversations may go to Bedrock only."""
    if route.provider.bedrock is None or route.dialect is not None:
        return False
    if flow.metadata.get(ORIGIN_FORM):
        return True
    # Any path may carry a conversation in a body (batches, token counts, files). Reading requests have no body.
    telemetry = route.known and route.template == EVENT_LOGGING
    return flow.request.method not in READING and not telemetry


def _used_as_proxy(flow: http.HTTPFlow) -> bool:
    """Return whether the client uses this port as a proxy and not as a gateway."""
    mode = flow.client_conn.proxy_mode.type_name
    return mode in ("regular", "upstream") and not flow.metadata.get(ORIGIN_FORM)


def _authentication_failed(flow: http.HTTPFlow) -> bool:
    """Return whether mitmproxy's proxy authentication has refused this request with an HTML answer."""
    return flow.response is not None and flow.response.status_code in (401, 407)


def peer_of(flow: http.HTTPFlow) -> str:
    peername = flow.client_conn.peername
    return peername[0] if peername else ""


def proxy_user(flow: http.HTTPFlow) -> str | None:
    """Return the user name that mitmproxy's `--proxyauth` has accepted."""
    credentials = flow.metadata.get("proxyauth")
    return credentials[0] if credentials else None


def forget_password(flow: http.HTTPFlow) -> None:
    """Remove the password of mitmproxy's `--proxyauth` from a flow, which `-w` writes to a file.

    Call this when the head has been classified.
    """
    if "proxyauth" in flow.metadata:
        flow.metadata["proxyauth"] = (proxy_user(flow), "")
    flow.request.headers.pop("proxy-authorization", None)
    if _authentication_failed(flow) and flow.request.headers.get("authorization", "").lower().startswith("basic "):
        del flow.request.headers["authorization"]


def report_refused_head(flow: http.HTTPFlow, bridge: Bridge) -> None:
    """Emit the refusal of a request that was refused by its head."""
    state = state_of(flow)
    if flow.response is None or isinstance(state, Served) or (isinstance(state, Refused) and state.reported):
        return
    route = state.route if isinstance(state, Refused) else None
    if route is None and flow.metadata.get(ORIGIN_FORM) and is_probe(flow.request, flow.response):
        return
    error_type = "wrong_password" if flow.metadata.get(FAILED) else ""
    emit_refusal(bridge, flow, Refusal(flow.response.status_code, flow.response.reason, error_type), route)
