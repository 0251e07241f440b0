"""What becomes of a proxy that the environment names already."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from aibridge_addon.cli.upstream_proxy import MARK, upstream_of
from aibridge_addon.config.providers import DEFAULT_PROVIDERS
from aibridge_addon.interception.routing import Router
from aibridge_addon.proxy.flow.unknown_route import no_such_route
from tests.support.upstream import unused_port

BRIDGE = MARK + b" A gateway path"
"""The beginning of a bridge's answer."""


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def options(tmp_path: Path, **environ: str) -> tuple[str, ...]:
    found = upstream_of(environ, (), tmp_path, tmp_path / "ca.pem")
    assert found is not None
    return found.options


def by_env(url: str, **before: str | None) -> dict[str, str]:
    """The variables as `aibridge env` sets them."""
    values = {"HTTPS_PROXY": None, "https_proxy": None} | before
    return {"HTTPS_PROXY": url, "https_proxy": url, "AIBRIDGE_ENV_BEFORE": json.dumps(values)}


@pytest.mark.parametrize(
    ("status", "body", "is_bridge"),
    [
        (404, BRIDGE, True),
        (400, b"Invalid HTTP request form (expected: authority or absolute, got: origin)", False),
        (404, b"", False),
        (200, b"\x00" * 100_000, False),
    ],
)
def test_a_proxy_of_this_machine_says_whether_it_is_a_bridge(
    tmp_path: Path, status: int, body: bytes, is_bridge: bool
) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    trusted = str(tmp_path / "bundle.pem")
    (tmp_path / "bundle.pem").write_text("# ours\n-----BEGIN CERTIFICATE-----\nMI\nIB\n-----END CERTIFICATE-----")
    with answering(status, body) as url:
        for name, value in (("HTTPS_PROXY", url), ("ALL_PROXY", url.removeprefix("http://"))):
            environ = {name: value, "NODE_EXTRA_CA_CERTS": trusted}
            assert (options(tmp_path, **environ) == ()) is is_bridge
            assert options(tmp_path, **environ | {"NODE_EXTRA_CA_CERTS": ""}) == (f"mode=upstream:{url}",)


def test_what_aibridge_env_has_set_is_replaced_also_if_it_does_not_run(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    found = upstream_of(by_env(url), ("quiet=true",), tmp_path, tmp_path / "ca.pem")
    assert found is not None and found.options == ("quiet=true",)
    assert found.line == (
        f"https_proxy names a bridge that runs already, {url}. A private one takes its place, so that each request is"
        " recorded once"
    )


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("company", ["http://proxy.example:3128", "http://127.0.0.1:1"])
def test_the_proxy_before_is_the_upstream(tmp_path: Path, name: str, company: str) -> None:
    environ = by_env(f"http://127.0.0.1:{unused_port()}")
    if name == "ALL_PROXY":
        environ[name] = company
    else:
        environ |= by_env(environ["HTTPS_PROXY"], **{name: company})
    found = upstream_of(environ, (), tmp_path, tmp_path / "ca.pem")
    assert found is not None and found.options == (f"mode=upstream:{company}",)
    assert found.line.endswith(f"; requests go through {company} ({name})")


def test_a_value_that_was_set_after_aibridge_env_counts(tmp_path: Path) -> None:
    """A proxy such as cntlm, which listens on this machine."""
    url = f"http://127.0.0.1:{unused_port()}"
    environ = by_env("http://127.0.0.1:8080") | {"https_proxy": url}
    assert options(tmp_path, **environ) == (f"mode=upstream:{url}",)


@pytest.mark.parametrize("url", ["http://bridge.example:8080", "https://127.0.0.1:8080"])
def test_only_a_bridge_of_this_machine_is_replaced(tmp_path: Path, url: str) -> None:
    assert options(tmp_path, **by_env(url)) == (f"mode=upstream:{url}",)


def test_an_option_of_the_user_wins(tmp_path: Path) -> None:
    assert upstream_of(by_env("http://127.0.0.1:8080"), ("mode=regular",), tmp_path, tmp_path / "ca.pem") is None


def test_a_bridge_answers_so() -> None:
    answer = no_such_route(None, Router(DEFAULT_PROVIDERS))
    assert (answer.raw_content or b"").startswith(MARK)
