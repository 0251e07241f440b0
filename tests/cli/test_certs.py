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
from aibridge_addon.cli import authority, certs
from aibridge_addon.cli.certs import INSTALLED, Store
from aibridge_addon.cli.diagnosis import files
from aibridge_addon.config.providers import DEFAULT_PROVIDERS
from aibridge_addon.config.subtrees import not_permitted


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
    assert "subject     CN=mitmproxy of AI Bridge" in (output := capsys.readouterr().out)
    assert "may sign    for every host" in output


def test_an_authority_with_constraints_shows_what_it_may_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "aibridge.yaml"
    config.write_text(
        "providers:\n- {name: a, type: anthropic}\n- {name: b, type: openai, hosts: ['ai.*.corp.example']}\n"
    )
    places = ["--confdir", str(tmp_path / "conf")]
    made = ["certs", "make", "--constrain", "--config", str(config), "--permit", "Gateway.example", "--permit", "*.dev"]
    assert cli.main([*made, "--permit", "10.0.0.1", *places]) == 0
    assert "all names below corp.example are permitted" in capsys.readouterr().err
    assert cli.main(["certs", "show", *places]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line[12:] for line in lines[lines.index("may sign    api.anthropic.com") :]]
    regions = "aws-external-anthropic.<region>.api.aws (36 regions)"
    assert shown == ["api.anthropic.com", regions, "corp.example", "gateway.example", "dev", "10.0.0.1"]
    assert CertStore.from_store(tmp_path / "conf", "mitmproxy", 2048).default_ca.is_ca


def test_without_a_configuration_the_default_providers_are_permitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIBRIDGE_CONFIG", raising=False)
    assert cli.main(["certs", "make", "--constrain", "--confdir", str(tmp_path)]) == 0
    limits = authority.limits(tmp_path / "mitmproxy-ca-cert.pem")
    assert limits is not None and not not_permitted(DEFAULT_PROVIDERS, limits.permits_host)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--permit", "a.example"], "--permit needs --constrain"),
        (["--constrain", "--permit", "https://a.example"], "a host name or an IP address"),
        (["--constrain", "--permit", "a.*.example"], "a host name or an IP address"),
    ],
)
def test_a_wrong_use_is_refused_and_makes_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["certs", "make", "--confdir", str(tmp_path / "conf"), *words])
    assert message in capsys.readouterr().err and not (tmp_path / "conf").exists()


def test_a_wrong_configuration_makes_no_authority(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("provider: []\n")
    made = ["certs", "make", "--constrain", "--config", str(tmp_path / "a.yaml"), "--confdir", str(tmp_path / "conf")]
    assert cli.main(made) == 2 and not (tmp_path / "conf").exists()


def test_a_certificate_is_exported_without_its_key(confdir: Path, tmp_path: Path) -> None:
    contents = []
    for form in ("pem", "der", "p12"):
        file = tmp_path / form
        assert cli.main(["certs", "export", "--confdir", str(confdir), "--format", form, str(file)]) == 0
        contents.append(file.read_bytes())
    pem, der, p12 = contents
    assert ssl.PEM_cert_to_DER_cert(pem.decode()) == der and b"PRIVATE" not in pem
    found = pkcs12.load_pkcs12(p12, None)
    assert found.key is None and found.cert is None
    assert [each.certificate for each in found.additional_certs] == [x509.load_der_x509_certificate(der)]


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
