"""The bundle of trusted certificates."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

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


def test_a_bundle_is_replaced_at_once_and_only_if_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "bundle.pem"
    roots.write_bundle(file, "one")
    before = file.stat()
    roots.write_bundle(file, "one")
    assert file.stat().st_ino == before.st_ino and before.st_mode & 0o777 == 0o644
    roots.write_bundle(file, "two")
    assert file.read_text() == "two" and os.listdir(tmp_path) == ["bundle.pem"]
