"""Known traps of an environment, each of which is named."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from aibridge_addon.cli import roots
from aibridge_addon.cli.diagnosis import traps
from aibridge_addon.cli.diagnosis.check import Check
from aibridge_addon.config.providers import DEFAULT_PROVIDERS
from tests.support.authority import Authority


def trapped(environ: dict[str, str], home: Path) -> list[Check]:
    return traps.traps(environ, home, home / "project", DEFAULT_PROVIDERS)


def test_an_environment_without_traps_is_well(tmp_path: Path, ca: Authority) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(roots.bundle(ca.pem))
    environ = {"SSL_CERT_FILE": str(bundle), "NODE_EXTRA_CA_CERTS": str(ca.pem), "HTTPS_PROXY": "http://127.0.0.1:8080"}
    assert trapped(environ | {"NO_PROXY": "localhost"}, tmp_path) == [Check("environment", True, "no known trap")]


def test_each_trap_is_named(tmp_path: Path, ca: Authority) -> None:
    der = tmp_path / "ca.pem"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(trustme.CA().cert_pem.bytes().decode()))
    environ = {
        "HTTPS_PROXY": "https://127.0.0.1:8080",
        "NODE_EXTRA_CA_CERTS": str(der),
        "SSL_CERT_FILE": str(ca.pem),
        "CURL_CA_BUNDLE": str(tmp_path / "missing.pem"),
        "NO_PROXY": "localhost,.anthropic.com",
    }
    found = {check.name: check for check in trapped(environ, tmp_path)}
    assert set(found) == set(environ) and not any(check.ok for check in found.values())
    assert "DER" in found["NODE_EXTRA_CA_CERTS"].found and "lacks" in found["SSL_CERT_FILE"].found
    assert ".anthropic.com" in found["NO_PROXY"].found and all(check.next_step for check in found.values())


@pytest.mark.parametrize("content", ['{"env": {"HTTPS_PROXY": "x", "OTHER": "y"}}', "{", "[]", '{"env": 1}', "\xff"])
def test_variables_of_claude_codes_settings_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude" / "settings.json").write_text(content, "latin-1")
    [check] = trapped({}, tmp_path)
    assert check.ok and check.is_warning == ("HTTPS_PROXY" in content)


@pytest.mark.parametrize("place", [".claude", "own", "project/.claude", "project/.claude local", "managed"])
def test_each_place_of_claude_codes_settings_is_read(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, kind = place.partition(" ")
    file = tmp_path / folder / f"settings{kind and '.local'}.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"env": {"NODE_EXTRA_CA_CERTS": "/own.pem"}}')
    monkeypatch.setattr(traps, "MANAGED", (tmp_path / "managed" / "settings.json",))
    [check] = trapped({"CLAUDE_CONFIG_DIR": str(tmp_path / "own")} if place == "own" else {}, tmp_path)
    assert check.is_warning and f"{file} sets NODE_EXTRA_CA_CERTS" in check.found
