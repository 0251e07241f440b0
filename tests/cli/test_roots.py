"""The bundle of trusted certificates."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import pkcs12

from aibridge_addon.cli import roots
from tests.support.authority import Authority


def names_in(text: str) -> int:
    """Return the number of certificates that OpenSSL reads from a bundle."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=text)
    return context.cert_store_stats()["x509"]


def test_a_bundle_has_the_systems_roots_and_our_authority(ca: Authority) -> None:
    system = list(roots.system_roots())
    assert names_in(roots.bundle(ca.pem)) == len(set(system)) + 1


def test_each_certificate_is_there_once(ca: Authority, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    files = [Authority(other).pem, ca.pem, other / "missing.pem", other]
    once, again = roots.bundle(ca.pem, files), roots.bundle(ca.pem, [*files, *files])
    assert once == again and names_in(once) == names_in(roots.bundle(ca.pem)) + 1


def test_keys_and_comments_stay_out_of_a_bundle(ca: Authority, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.pem"
    mixed.write_text(f"# secret\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n{ca.pem.read_text()}")
    assert "PRIVATE" not in roots.bundle(ca.pem, [mixed]) and "secret" not in roots.bundle(mixed)


@pytest.mark.parametrize("store", ["openssl", "certifi"])
def test_without_a_file_of_the_system_its_store_or_certifi_is_used(
    store: str, monkeypatch: pytest.MonkeyPatch, ca: Authority, tmp_path: Path
) -> None:
    monkeypatch.setattr(roots, "SYSTEM_FILES", ())
    (tmp_path / "empty").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.pem if store == "openssl" else tmp_path / "empty"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    found = list(roots.system_roots())
    assert len(found) == 1 if store == "openssl" else len(found) > 50


def test_java_reads_the_same_certificates(ca: Authority, tmp_path: Path) -> None:
    text = roots.bundle(ca.pem)
    broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    bundle, store = tmp_path / "bundle.pem", tmp_path / "bundle.p12"
    roots.write_trusted(bundle, store, text + broken)
    found = pkcs12.load_pkcs12(store.read_bytes(), None).additional_certs
    assert len(found) == names_in(text) and bundle.read_text() == text + broken
    if (keytool := shutil.which("keytool")) is not None:
        command = [keytool, "-J-Duser.language=en", "-list", "-keystore", str(store), "-storepass", ""]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        assert listed.count("trustedCertEntry") == len(found)


def test_a_trust_store_is_written_if_it_is_missing_or_the_bundle_changes(ca: Authority, tmp_path: Path) -> None:
    bundle, store, text = tmp_path / "bundle.pem", tmp_path / "bundle.p12", ca.pem.read_text()
    roots.write_trusted(bundle, store, text)
    before = store.stat().st_ino
    roots.write_trusted(bundle, store, text)
    assert store.stat().st_ino == before
    other = tmp_path / "other"
    other.mkdir()
    roots.write_trusted(bundle, store, text + Authority(other).pem.read_text())
    assert len(pkcs12.load_pkcs12(store.read_bytes(), None).additional_certs) == 2
    store.unlink()
    roots.write_trusted(bundle, store, bundle.read_text())
    assert store.exists()


def test_a_bundle_is_replaced_at_once_and_only_if_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "bundle.pem"
    roots.write_bundle(file, "one")
    before = file.stat()
    roots.write_bundle(file, "one")
    assert file.stat().st_ino == before.st_ino and before.st_mode & 0o777 == 0o644
    roots.write_bundle(file, "two")
    assert file.read_text() == "two" and os.listdir(tmp_path) == ["bundle.pem"]
