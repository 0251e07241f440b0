"""An authority of `aibridge certs make --constrain`: what programs do with certificates that its key signs."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from aibridge_addon import cli
from aibridge_addon.cli.diagnosis.runtimes import RUNTIMES, Runtime, send
from aibridge_addon.cli.environment import Route, variables
from aibridge_addon.cli.roots import write_trusted
from tests.support.stolen_key import ForgingProxy, issue

CONFIG = """
providers:
- {name: anthropic, type: anthropic, hosts: [api.anthropic.com, aws-external-anthropic.*.api.aws]}
- {name: azure, type: azure, hosts: ["*.openai.azure.com"]}
"""
PERMITTED = ("api.anthropic.com", "team.openai.azure.com", "aws-external-anthropic.eu-west-1.api.aws")
FOREIGN = ("api.openai.com", "anthropic.com", "evilapi.anthropic.com.example.com", "s3.eu-west-1.amazonaws.com")
ADDRESSES = ("192.0.2.1", "2001:db8::1", "127.0.0.1", "::1")


@pytest.fixture(scope="module")
def confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("constrained")
    (folder / "aibridge.yaml").write_text(CONFIG)
    made = ["certs", "make", "--constrain", "--config", str(folder / "aibridge.yaml"), "--confdir", str(folder)]
    assert cli.main(made) == 0
    return folder


def verified(confdir: Path, names: list[str], folder: Path, common_name: str | None = None) -> str:
    """Return OpenSSL's verdict on a certificate."""
    leaf = folder / "leaf.pem"
    leaf.write_bytes(issue(confdir / "mitmproxy-ca.pem", names, common_name))
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(confdir / "mitmproxy-ca-cert.pem"), str(leaf)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return "OK" if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("host", PERMITTED)
def test_openssl_accepts_a_providers_host(host: str, confdir: Path, tmp_path: Path) -> None:
    assert verified(confdir, [host], tmp_path, host) == "OK"


@pytest.mark.parametrize("host", [*FOREIGN, *ADDRESSES])
def test_openssl_refuses_other_hosts_and_all_addresses(host: str, confdir: Path, tmp_path: Path) -> None:
    assert "subtree violation" in verified(confdir, [host], tmp_path)


def test_one_foreign_name_makes_a_certificate_invalid(confdir: Path, tmp_path: Path) -> None:
    assert "subtree violation" in verified(confdir, [PERMITTED[0], FOREIGN[0]], tmp_path)
    assert "subtree violation" in verified(confdir, [PERMITTED[0], ADDRESSES[0]], tmp_path)
    assert "subtree violation" in verified(confdir, [], tmp_path, FOREIGN[0])


# --- programs --------------------------------------------------------------------------------------------------------

NODE = """
const tls = require("node:tls"), http = require("node:http"), url = new URL(process.argv[1])
const host = url.hostname.replace(/[\\[\\]]/g, ""), proxy = new URL(process.env.HTTPS_PROXY)
const servername = require("node:net").isIP(host) ? "" : host
http.request({host: proxy.hostname, port: proxy.port, method: "CONNECT", path: `${url.hostname}:443`})
  .on("connect", (_, socket) => {
    const over = tls.connect({socket, host, servername}, () =>
      over.write(`GET ${url.pathname} HTTP/1.1\\r\\nHost: ${host}\\r\\nConnection: close\\r\\n\\r\\n`))
    over.on("data", () => {}).on("error", (e) => { console.error(e.code || e.message); process.exit(1) })
  }).end()
"""
"""Like that of `aibridge doctor`, and for addresses, too."""
PROGRAMS = [replace(each, arguments=("-e", NODE, "{url}")) if each.name == "node" else each for each in RUNTIMES]


@pytest.mark.parametrize(
    ("names", "accepted"),
    [
        ((PERMITTED[0],), True),
        ((PERMITTED[1],), True),
        ((FOREIGN[0],), False),
        ((PERMITTED[0], FOREIGN[0]), False),
        (("192.0.2.1",), False),
        (("2001:db8::1",), False),
    ],
    ids=["permitted", "below a permitted one", "foreign", "permitted and foreign", "IPv4", "IPv6"],
)
@pytest.mark.parametrize("program", PROGRAMS, ids=[each.name for each in PROGRAMS])
def test_programs_accept_a_providers_host_only(
    program: Runtime, names: tuple[str, ...], accepted: bool, confdir: Path, tmp_path: Path
) -> None:
    if (path := shutil.which(program.program)) is None:
        pytest.skip(f"{program.program} is not installed")
    if program.name == "java" and not accepted:
        pytest.skip("Java ignores the constraints of a root that it trusts, as docs/security.md says")
    with ForgingProxy(confdir / "mitmproxy-ca.pem", names, tmp_path) as proxy:
        route = Route(proxy.url, tmp_path / "bundle.pem")
        write_trusted(route.bundle, route.trust_store, (confdir / "mitmproxy-ca-cert.pem").read_text())
        base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        reason = send(program, path, proxy, base | variables(route, {}), "once")
    assert (reason is None) == accepted, reason
