"""Logins at MCP servers under `aibridge serve`: pages at the supervisor's address, whichever worker answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Proxies
from tests.integration.test_mcp_logins import LINK, used, with_login
from tests.support.authority import Authority
from tests.support.oauth_server import Browser, OAuthMcp
from tests.support.polling import poll_until
from tests.support.serve import Serve
from tests.support.upstream import ScriptedUpstream, unused_port

USES = 6


@pytest.fixture
def server() -> Iterator[OAuthMcp]:
    with OAuthMcp() as server:
        server.provider.user = "ada-there"
        yield server


def test_a_login_counts_in_every_worker(
    ca: Authority, mitmproxy_ca: Path, tmp_path: Path, upstream: ScriptedUpstream, server: OAuthMcp
) -> None:
    port = unused_port()
    with closing(Proxies(Serve, tmp_path, [], {"upstream_ca": ca.pem, "mitmproxy_ca": mitmproxy_ca})) as start:
        proxy = start(config=with_login(upstream, server, port))
        links = [LINK.findall(used(proxy, upstream, "login"))[0] for _ in range(USES)]
        assert len(set(links)) == 1
        assert links[0].startswith(f"http://127.0.0.1:{port}/")
        with Browser() as browser:
            page = browser.get(links[0])
            assert (page.status_code, "ada can use its tools now" in page.text) == (200, True)
            assert page.headers["content-security-policy"].startswith("default-src 'none'")
        poll_until(  # that an actor has no token is known for a second
            lambda: all("ada-there" in used(proxy, upstream, "whoami") for _ in range(USES)),
            20,
            what="the login in every worker",
        )
