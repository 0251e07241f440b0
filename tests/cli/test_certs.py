"""`aibridge certs`: the authority's files, and the system's store (here: a folder)."""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12
from mitmproxy.certs import CertStore

from aibridge_addon import cli
from aibridge_addon.cli import certs
from aibridge_addon.cli.certs import INSTALLED, Store
from aibridge_addon.cli.diagnosis import files


@pytest.fixture
def confdir(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    assert cli.main(["certs", "make", "--confdir", str(folder)]) == 0
    return folder


def test_an_authority_that_is_made_is_mitmproxys(confdir: Path, tmp_path: Path) -> None:
    store = CertStore.from_store(confdir, "mitmproxy", 2048)
    leaf = store.get_cert("api.anthropic.com", [x509.DNSName("api.anthropic.com")]).cert
    authority = x509.load_pem_x509_certificate((confdir / "mitmproxy-ca-cert.pem").read_bytes())
    leaf.to_cryptography().verify_directly_issued_by(authority)
    assert (confdir / "mitmproxy-ca.pem").stat().st_mode & 0o777 == 0o600
    check, _ = files.authority(confdir / "mitmproxy-ca-cert.pem", datetime.now(UTC))
    assert check.ok and not check.is_warning


def test_an_authority_is_never_replaced(confdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (confdir / "mitmproxy-ca.pem").read_bytes()
    assert cli.main(["certs", "make", "--confdir", str(confdir)]) == 1
    assert "already" in capsys.readouterr().err and (confdir / "mitmproxy-ca.pem").read_bytes() == before


def test_an_authority_is_shown(confdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["certs", "show", "--confdir", str(confdir)]) == 0
    assert "subject     CN=mitmproxy of AI Bridge" in capsys.readouterr().out


def test_a_certificate_is_exported_without_its_key(confdir: Path, tmp_path: Path) -> None:
    contents = []
    for form in ("pem", "der", "p12"):
        file = tmp_path / form
        assert cli.main(["certs", "export", "--confdir", str(confdir), "--format", form, str(file)]) == 0
        contents.append(file.read_bytes())
    pem, der, p12 = contents
    assert ssl.PEM_cert_to_DER_cert(pem.decode()) == der and b"PRIVATE" not in pem
    key, certificate, _ = pkcs12.load_key_and_certificates(p12, None)
    # Without a key, the certificate is one of the others.
    assert key is None and (certificate is not None or pkcs12.load_pkcs12(p12, None).additional_certs)


@pytest.mark.parametrize("action", ["show", "export", "install"])
def test_without_an_authority_the_next_step_is_named(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["certs", action, "--confdir", str(tmp_path)]) == 1
    assert "aibridge certs make" in capsys.readouterr().err


def test_a_certificate_is_installed_and_removed(confdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    monkeypatch.setattr(certs, "STORES", (Store(folder, ("true",)),))
    assert cli.main(["certs", "install", "--confdir", str(confdir)]) == 0
    assert (folder / INSTALLED).read_bytes() == (confdir / "mitmproxy-ca-cert.pem").read_bytes()
    assert cli.main(["certs", "remove", "--confdir", str(confdir)]) == 0 and os.listdir(folder) == []


def test_commands_are_printed_where_the_store_cannot_be_changed(
    confdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(certs, "STORES", ())
    for action, word in (("install", "add-trusted-cert"), ("remove", "remove-trusted-cert")):
        capsys.readouterr()
        assert cli.main(["certs", action, "--confdir", str(confdir)]) == 1
        assert capsys.readouterr().out.startswith(f"sudo security {word} -d")
