"""`aibridge doctor`: its options, and what it says of a program."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aibridge_addon import cli
from aibridge_addon.cli import doctor
from aibridge_addon.cli.diagnosis.check import Check
from tests.support.authority import Authority
from tests.support.tunnel import Tunnel
from tests.support.upstream import unused_port


@pytest.mark.parametrize(
    ("requests", "log", "found"),
    [
        (2, "", "2 requests recorded"),
        (0, "client connect\nClient TLS handshake failed.", "refuses the proxy's certificate"),
        (0, "client connect", "for other hosts only"),
        (0, "", "went past the proxy"),
    ],
)
def test_a_program_without_requests_fails_with_a_reason(requests: int, log: str, found: str) -> None:
    check = doctor._verdict("program", 0, requests, log)
    assert check.ok == bool(requests) and found in check.found


def test_a_wrong_configuration_is_the_only_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "aibridge.yaml"
    file.write_text("recording: {prompt: true}\n")
    assert cli.main(["doctor", "--json", "--config", str(file)]) == 1
    found = json.loads(capsys.readouterr().out)
    [check] = found["checks"]
    assert found["ok"] is check["ok"] is False and "recording.prompt" in check["found"] and check["next_step"]


@pytest.mark.parametrize(("option", "own"), [("confdir=/x", "--confdir"), ("aibridge_config=x", "--config")])
def test_an_option_that_the_command_has_itself_is_named(
    option: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["doctor", "--set", option])
    assert f"use {own}" in capsys.readouterr().err


def test_options_of_mitmproxy_hold_for_the_hosts_of_providers(
    ca: Authority, mitmproxy_ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind another proxy, which only `mode` names, and with an authority that only an option names."""
    config = tmp_path / "aibridge.yaml"
    config.write_text(
        "providers: [{name: here, type: openai, base_url: 'https://localhost'}]\nmetrics: {listen: null}\n"
    )
    with Tunnel(ca.server_context()) as port:
        options = [f"mode=upstream:http://127.0.0.1:{port}", f"ssl_verify_upstream_trusted_ca={ca.pem}"]
        sets = [word for option in options for word in ("--set", option)]
        database = f"sqlite:///{tmp_path}/a.db"
        places = ["--confdir", str(mitmproxy_ca), "--config", str(config), "--database", database]
        cli.main(["doctor", "--json", "--port", str(unused_port()), *places, *sets])
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert "certificate verified" in checks["provider localhost"]["found"]


def test_without_an_authority_all_else_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = f"sqlite:///{tmp_path}/a.db"
    assert cli.main(["doctor", "--confdir", str(tmp_path), "--database", database, "--port", str(unused_port())]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("FAIL certificate authority")] and os.listdir(tmp_path) == []
    marks = {line[:4] for line in lines if line[:4].strip()}
    assert "ok  " in marks and all(line[5] != " " or "→" in line for line in lines)


def test_shared_advice_is_printed_once_and_after_the_last_check_that_has_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = [Check(name, False, "refused", f"{name.upper()} is missing", "start it anew") for name in ("a", "c")]
    checks = [failed[0], Check("b", True, "well"), failed[1], Check("d", True, "well")]
    doctor._print(checks)
    lines = [line.split("→")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "FAIL a refused",
        "A is missing",
        "ok   b well",
        "FAIL c refused",
        "C is missing",
        "start it anew",
        "ok   d well",
    ]
    assert checks[0].whole_step == "A is missing: start it anew"
