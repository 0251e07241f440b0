"""`aibridge env`: what it prints for each shell, as the shells themselves read it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from aibridge_addon import cli
from aibridge_addon.cli.env import BEFORE, BUNDLE, SHELLS
from aibridge_addon.cli.environment import VARIABLES
from tests.support.authority import Authority
from tests.support.constrained import make_constrained_ca

AIBRIDGE = Path(sys.executable).with_name("aibridge")
VALUES = ("plain", "it's", 'a "b" $HOME `x` \\ \\\\', "é ☃")
SH = [name for name in ("sh", "bash", "dash", "zsh") if shutil.which(name)]


@pytest.fixture
def confdir(tmp_path: Path, ca: Authority) -> Path:
    folder = tmp_path / "conf dir's"
    folder.mkdir()
    (folder / "mitmproxy-ca-cert.pem").write_bytes(ca.pem.read_bytes())
    return folder


def after(shell: str, script: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a program that a shell starts after a script."""
    show = f'{sys.executable} -c \'import os; os.write(1, b"\\0".join(b"=".join(i) for i in os.environb.items()))\''
    done = subprocess.run(
        [shell, "-c", f"{script}\n{show}"],
        env={"PATH": f"{AIBRIDGE.parent}{os.pathsep}{os.environ['PATH']}", "HOME": "/nowhere", **environ},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b""), done
    items = (item.decode(errors="surrogateescape").partition("=") for item in done.stdout.split(b"\0"))
    return {name: value for name, _, value in items}


@pytest.mark.parametrize("shell", SH)
def test_a_shell_of_posix_has_the_variables_and_loses_them_again(shell: str, confdir: Path) -> None:
    set_them = f"""eval "$(aibridge env --shell sh --confdir "{confdir}")" """
    environ = {"NO_PROXY": "corp.example", "SSL_CERT_FILE": "/etc/own.pem"}
    found = after(shell, set_them, environ)
    assert found["HTTPS_PROXY"] == "http://127.0.0.1:8080"
    assert found["SSL_CERT_FILE"] == found["AWS_CA_BUNDLE"] == str(confdir / BUNDLE)
    assert found["NO_PROXY"] == "corp.example,localhost,127.0.0.1,::1"
    assert (confdir / BUNDLE).is_file()
    back = after(shell, f"""{set_them}\n{set_them}\neval "$(aibridge env --shell sh --unset)" """, environ)
    assert {name: back[name] for name in environ} == environ
    assert {variable.name for variable in VARIABLES} & {*back} == {*environ} and BEFORE not in back


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_has_the_variables_and_loses_them_again(confdir: Path) -> None:
    set_them = f"""aibridge env --shell fish --confdir "{confdir}" | source"""
    environ = {"NO_PROXY": "corp.example"}
    found = after("fish", set_them, environ)
    assert found["SSL_CERT_FILE"] == str(confdir / BUNDLE)
    back = after("fish", f"{set_them}\naibridge env --shell fish --unset | source", environ)
    assert {variable.name for variable in VARIABLES} & {*back} == {"NO_PROXY"} and back["NO_PROXY"] == "corp.example"


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("shell", ["sh", "fish"])
def test_values_are_quoted_as_a_shell_reads_them(shell: str, value: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    line = SHELLS[shell].set("QUOTED", value)
    assert after(shell, line, {"LC_ALL": "C.UTF-8"})["QUOTED"] == value


def test_powershell_gets_its_own_commands(confdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In quotes of this kind, PowerShell takes everything as it is, and two quotes for one."""
    assert cli.main(["env", "--shell", "powershell", "--confdir", str(confdir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "$env:HTTPS_PROXY = 'http://127.0.0.1:8080'" in lines
    assert f"$env:SSL_CERT_FILE = '{str(confdir / BUNDLE).replace("'", "''")}'" in lines
    assert cli.main(["env", "--shell", "powershell", "--unset"]) == 0
    assert "Remove-Item Env:HTTPS_PROXY -ErrorAction SilentlyContinue" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("hosts", "said"), [(["api.anthropic.com"], True), (["com", "ai", "azure.us", "aws", "cn"], False)]
)
def test_hosts_for_which_the_authority_may_not_sign_are_named(
    hosts: list[str], said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_constrained_ca(tmp_path / "conf", hosts)
    assert cli.main(["env", "--shell", "sh", "--confdir", str(folder)]) == 0
    printed = capsys.readouterr()
    assert ("may not sign for" in printed.err) == said and "may not sign" not in printed.out


def test_a_comment_says_that_every_program_uses_the_proxy(confdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["env", "--shell", "sh", "--confdir", str(confdir), "--proxy", "host:1"])
    lines = capsys.readouterr().out.splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert comments == lines[-len(comments) :] and "Every program of this shell" in comments[0]
    assert "http://host:1" in comments[0] and "--unset" in comments[-1]


def test_without_quotes_the_comments_hide_nothing(confdir: Path) -> None:
    found = after("sh", f"cd '{confdir.parent}'; eval $(aibridge env --shell sh --confdir conf*)", {})
    assert {variable.name for variable in VARIABLES} <= {*found}


def test_a_gateway_needs_no_authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "aibridge.yaml"
    config.write_text("providers: [{name: claude, type: anthropic}]\n")
    assert cli.main(["env", "--shell", "sh", "--gateway", "--config", str(config), "--proxy", "http://gw:1/"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "export ANTHROPIC_BASE_URL=http://gw:1/claude"


def test_without_an_authority_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--confdir", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"no certificate authority at {tmp_path}")


def test_an_entry_of_no_proxy_that_covers_a_provider_is_named(
    confdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "api.openai.com")
    assert cli.main(["env", "--confdir", str(confdir)]) == 0
    assert "NO_PROXY contains api.openai.com" in capsys.readouterr().err
