"""`aibridge doctor` as a process: with each runtime that is installed here, and with a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aibridge_addon.cli import roots
from tests.conftest import MakeUpstream
from tests.integration.answers import REQUEST, whole
from tests.support.mitmdump import make_mitmproxy_ca
from tests.support.running import INHERITED
from tests.support.upstream import unused_port

AIBRIDGE = Path(sys.executable).with_name("aibridge")
WITHIN = 240.0
ASK = """
import sys, httpx
httpx.post("https://api.anthropic.com/v1/messages", content=open(sys.argv[1], "rb").read())
print("its own output")
"""


def doctor(home: Path, *arguments: str, **more: str) -> tuple[int, Mapping[str, Any]]:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    done = subprocess.run(
        [str(AIBRIDGE), "doctor", "--json", "--offline", f"--confdir={home}", f"--port={unused_port()}", *arguments],
        cwd=home,
        env={**inherited, "HOME": str(home), **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN,
    )
    found = json.loads(done.stdout)
    assert found["ok"] == all(check["ok"] for check in found["checks"]) == (done.returncode == 0), done
    return done.returncode, {check["name"]: check for check in found["checks"]}


def test_the_missing_variable_of_each_runtime_is_measured(tmp_path: Path) -> None:
    make_mitmproxy_ca(tmp_path)
    (tmp_path / "aibridge.yaml").write_text("metrics: {listen: null}\n")
    code, found = doctor(tmp_path, "--config=aibridge.yaml")
    assert code == 1 and "aibridge.db" not in os.listdir(tmp_path)
    assert found["curl"]["next_step"].startswith("CURL_CA_BUNDLE is missing: ")
    assert found["python3"]["next_step"].startswith("SSL_CERT_FILE is missing: ")


def test_a_program_is_run_and_its_requests_are_counted(tmp_path: Path, make_upstream: MakeUpstream) -> None:
    upstream = make_upstream(authority=None)
    upstream.answer(whole())
    ca = make_mitmproxy_ca(tmp_path) / "mitmproxy-ca-cert.pem"
    roots.write_trusted(tmp_path / "bundle.pem", tmp_path / "bundle.p12", roots.bundle(ca))
    (tmp_path / "request.json").write_bytes(REQUEST)
    provider = f"{{name: anthropic, type: anthropic, base_url: 'http://127.0.0.1:{upstream.port}'}}"
    (tmp_path / "aibridge.yaml").write_text(f"providers: [{provider}]\nmetrics: {{listen: null}}\n")
    trusted = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS")
    program = ("--", sys.executable, "-c", ASK, "request.json")
    variables = dict.fromkeys(trusted, str(tmp_path / "bundle.pem"))
    variables["JAVA_TOOL_OPTIONS"] = f"-Djavax.net.ssl.trustStore={tmp_path / 'bundle.p12'}"
    code, found = doctor(tmp_path, "--config=aibridge.yaml", *program, **variables)
    assert code == 0, found
    assert found[f"program {sys.executable}"]["found"] == "exit code 0, 1 request recorded"
    assert "reaches a provider" in found["curl"]["found"]
