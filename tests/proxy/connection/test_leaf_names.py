"""The names in the certificates that mitmproxy makes, where its authority has name constraints."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from mitmproxy import certs, ctx
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.proxy.context import Context
from mitmproxy.test import taddons, tflow

from aibridge_addon.config.providers import DEFAULT_PROVIDERS, Provider
from aibridge_addon.proxy.connection.leaf_names import (
    ConstrainedCertStore,
    may_sign,
    use_permitted_names,
    warn_of_hosts_not_permitted,
)
from tests.support.constrained import make_constrained_ca
from tests.support.mitmdump import make_mitmproxy_ca
from tests.support.stolen_key import issue

HOST = "api.anthropic.com"
UPSTREAM_NAMES = ("anthropic.com", HOST, f"x.{HOST}", "192.0.2.1")


@pytest.fixture
def constrained(tmp_path: Path) -> Path:
    return make_constrained_ca(tmp_path / "constrained", [HOST])


@pytest.fixture
def tls_config() -> Iterator[TlsConfig]:
    addon = TlsConfig()
    with taddons.context(addon, loadcore=False):
        yield addon


def leaf(tls_config: TlsConfig, confdir: Path, sni: str | None = HOST, address: str = HOST) -> x509.Certificate:
    """Return what a client gets for a host whose own certificate has many names."""
    if Path(ctx.options.confdir) != confdir:
        ctx.options.update(confdir=str(confdir))
    use_permitted_names()
    connection = tflow.tclient_conn()
    connection.sni, connection.sockname = sni, ("127.0.0.1", 8080)
    context = Context(connection, ctx.options)
    context.server.address = (address, 443)
    other = make_constrained_ca(confdir / "upstream", UPSTREAM_NAMES)
    context.server.certificate_list = [certs.Cert.from_pem(issue(other / "mitmproxy-ca.pem", UPSTREAM_NAMES, "a CN"))]
    return tls_config.get_cert(context).cert.to_cryptography()


def names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def is_valid(certificate: x509.Certificate, confdir: Path) -> bool:
    file = confdir / "leaf.pem"
    file.write_bytes(certs.Cert(certificate).to_pem())
    command = ["openssl", "verify", "-CAfile", str(confdir / "mitmproxy-ca-cert.pem"), str(file)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_only_permitted_names_are_in_a_certificate(tls_config: TlsConfig, constrained: Path) -> None:
    found = leaf(tls_config, constrained)
    assert names(found) == [HOST, f"x.{HOST}"] and found.subject.rfc4514_string() == f"CN={HOST}"
    assert is_valid(found, constrained)


def test_an_address_beside_the_name_stays_out(tls_config: TlsConfig, constrained: Path) -> None:
    """In transparent mode, the address of the server is known, and mitmproxy adds it."""
    found = leaf(tls_config, constrained, address="192.0.2.7")
    assert "192.0.2.7" not in names(found) and is_valid(found, constrained)


def test_without_constraints_all_names_are_copied(tls_config: TlsConfig, tmp_path: Path) -> None:
    found = leaf(tls_config, make_mitmproxy_ca(tmp_path))
    assert names(found) == ["a CN", *UPSTREAM_NAMES] and not isinstance(tls_config.certstore, ConstrainedCertStore)
    assert may_sign("any.example") and is_valid(found, tmp_path)


@pytest.mark.parametrize(("sni", "address"), [("foreign.test", "foreign.test"), (None, "192.0.2.7")])
def test_a_host_that_is_not_permitted_keeps_its_name(
    sni: str | None, address: str, tls_config: TlsConfig, constrained: Path
) -> None:
    """So the client's error is about the constraints. The log says what to do."""
    ctx.options.update(confdir=str(constrained), upstream_cert=False)
    found = leaf(tls_config, constrained, sni, address)
    assert address in names(found) and not is_valid(found, constrained)
    assert not may_sign(address) and may_sign(HOST)


def test_a_certificate_of_the_option_certs_is_used(tls_config: TlsConfig, constrained: Path, tmp_path: Path) -> None:
    given = tmp_path / "own.pem"
    given.write_bytes(issue(make_mitmproxy_ca(tmp_path) / "mitmproxy-ca.pem", ["gateway.test"]))
    ctx.options.update(confdir=str(constrained), certs=[f"gateway.test={given}"])
    assert names(leaf(tls_config, constrained, "gateway.test")) == ["gateway.test"]


def test_a_new_store_is_constrained_again(tls_config: TlsConfig, constrained: Path) -> None:
    leaf(tls_config, constrained)
    before = tls_config.certstore
    use_permitted_names()
    assert tls_config.certstore is before
    ctx.options.update(key_size=3072)
    assert names(leaf(tls_config, constrained)) == [HOST, f"x.{HOST}"] and tls_config.certstore is not before


def test_a_start_names_hosts_that_are_not_permitted(constrained: Path, caplog: pytest.LogCaptureFixture) -> None:
    with taddons.context():
        ctx.options.update(confdir=str(constrained))
        warn_of_hosts_not_permitted([Provider(name="a", type="anthropic", hosts=(HOST,))], ctx.options)
        assert not caplog.records
        warn_of_hosts_not_permitted(DEFAULT_PROVIDERS, ctx.options)
    [record] = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "api.openai.com" in record.getMessage() and "more" in record.getMessage()
    assert "aibridge certs make --constrain" in record.getMessage()


@pytest.mark.parametrize("state", ["missing", "text", "without constraints"])
def test_a_start_with_another_authority_says_nothing(
    state: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if state == "text":
        (tmp_path / "mitmproxy-ca.pem").write_text("text")
    elif state == "without constraints":
        make_mitmproxy_ca(tmp_path)
    with taddons.context():
        ctx.options.update(confdir=str(tmp_path))
        warn_of_hosts_not_permitted(DEFAULT_PROVIDERS, ctx.options)
    assert not caplog.records
