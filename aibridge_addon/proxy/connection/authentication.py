"""mitmproxy's `--proxyauth` without its cost: passwords are checked beside the event loop.

The addon takes the place of mitmproxy's own, whose hooks would block every client during a check. What it accepts, and
what other addons see of it, are the same.
"""

from __future__ import annotations

from collections.abc import Awaitable

from mitmproxy import http
from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons import proxyauth
from mitmproxy.proxy.layers.modes import Socks5AuthData

from aibridge_addon.config.schema import Limits
from aibridge_addon.credentials.tokens import presented_in
from aibridge_addon.proxy.connection.passwords import DEFAULT_LIMITS, Passwords, Verdict

FAILED = "aibridge_authentication_failed"
"""Key in `flow.metadata`: a request had a name and a password, and they are wrong."""
BUSY = b'{"error":{"type":"overloaded_error","message":"too many passwords wait to be checked"}}'


class Authentication(proxyauth.ProxyAuth):
    name = "proxyauth"
    """As mitmproxy calls its own."""

    def __init__(self, before: proxyauth.ProxyAuth) -> None:
        super().__init__()
        self.authenticated = before.authenticated
        self._passwords: Passwords | None = None
        self._limits = DEFAULT_LIMITS
        self._use(before.validator)

    def configure(self, updated: set[str]) -> None:
        super().configure(updated)  # type: ignore[no-untyped-call]
        if "proxyauth" in updated:
            self._use(self.validator)

    def _use(self, validator: proxyauth.Validator | None) -> None:
        if self._passwords is not None:
            self._passwords.close()
        self.validator = validator
        blocks = not isinstance(validator, proxyauth.SingleUser | proxyauth.AcceptAll)
        self._passwords = None if validator is None else Passwords(validator, limits=self._limits, blocks=blocks)

    def follow(self, limits: Limits) -> None:
        """Use the limits of a configuration."""
        self._limits = limits
        if self._passwords is not None:
            self._passwords.limits = limits

    def done(self) -> None:
        if self._passwords is not None:
            self._passwords.close()

    async def socks5_auth(self, data: Socks5AuthData) -> None:  # type: ignore[override]
        if self._passwords is not None:
            verdict = await self._passwords.check(_address(data.client_conn), data.username, data.password)
            if verdict is Verdict.RIGHT:
                data.valid = True
                self.authenticated[data.client_conn] = data.username, data.password

    def http_connect(self, f: http.HTTPFlow) -> Awaitable[None] | None:  # type: ignore[override]
        return None if self._passwords is None else self._authenticate(f, self._passwords, connect=True)

    def requestheaders(self, f: http.HTTPFlow) -> Awaitable[None] | None:  # type: ignore[override]
        if self._passwords is None:
            return None
        if f.client_conn in self.authenticated:
            f.metadata["proxyauth"] = self.authenticated[f.client_conn]
            return None
        return None if f.is_replay else self._authenticate(f, self._passwords)

    def _authenticate(
        self, flow: http.HTTPFlow, passwords: Passwords, *, connect: bool = False
    ) -> Awaitable[None] | None:
        is_proxy = proxyauth.is_http_proxy(flow)
        header = proxyauth.http_auth_header(is_proxy)
        try:
            _, user, password = proxyauth.parse_http_basic_auth(flow.request.headers.get(header, ""))
        except ValueError:
            flow.response = proxyauth.make_auth_required_response(is_proxy)
            return None
        if presented_in(user, password) is not None and not isinstance(self.validator, proxyauth.AcceptAll):
            # A token of the bridge, about which is decided later. If it does not count, this answer stays.
            flow.response = proxyauth.make_auth_required_response(is_proxy)
            return None
        if passwords.is_right(user, password):
            self._accept(flow, header, (user, password), connect=connect)
            return None
        return self._check(flow, passwords, (user, password), connect=connect)

    def _accept(self, flow: http.HTTPFlow, header: str, pair: tuple[str, str], *, connect: bool) -> None:
        flow.metadata["proxyauth"] = pair
        del flow.request.headers[header]
        if connect:
            self.authenticated[flow.client_conn] = pair

    async def _check(self, flow: http.HTTPFlow, passwords: Passwords, pair: tuple[str, str], *, connect: bool) -> None:
        is_proxy = proxyauth.is_http_proxy(flow)
        verdict = await passwords.check(_address(flow.client_conn), *pair)
        if verdict is Verdict.RIGHT:
            self._accept(flow, proxyauth.http_auth_header(is_proxy), pair, connect=connect)
        elif verdict is Verdict.WRONG:
            flow.metadata[FAILED] = True
            flow.response = proxyauth.make_auth_required_response(is_proxy)
        else:
            headers = {"content-type": "application/json", "retry-after": "5"}
            flow.response = http.Response.make(503, BUSY, headers)


def replace_authentication(addons: AddonManager, limits: Limits) -> None:
    """Put our addon in the place of mitmproxy's own. Called again, it only changes the limits."""
    before = addons.get(Authentication.name)
    if isinstance(before, proxyauth.ProxyAuth) and not isinstance(before, Authentication) and before in addons.chain:
        ours = Authentication(before)
        addons.chain[addons.chain.index(before)] = ours
        addons.lookup[Authentication.name] = ours
    if isinstance(ours := addons.get(Authentication.name), Authentication):
        ours.follow(limits)


def _address(client: object) -> str:
    """Return the address of a client."""
    peername = getattr(client, "peername", None)
    return str(peername[0]) if peername else ""
