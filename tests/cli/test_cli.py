"""The command `aibridge`: what it prints, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from aibridge_addon import cli
from aibridge_addon.cli.database import CONFIG_VARIABLE
from aibridge_addon.config.load import load
from aibridge_addon.config.schema import Settings
from aibridge_addon.proxy import options
from tests.conftest import RunToExit

PACKAGE = Path(cli.__file__).parent.parent
SECRET = "hunter2-never-print-me"
WRONG = "recording: {prompt: true}\ndrain_timeout: soon\n"

SECRETS = f"""
database: postgresql://user:{SECRET}@localhost/rows?password={SECRET}
providers:
- {{name: anthropic, type: anthropic, api_key: {SECRET}}}
- {{name: openai, type: openai, api_key: [{SECRET}, {SECRET}]}}
- name: claude-on-aws
  type: anthropic
  hosts: []
  bedrock: {{region: eu-central-1, model: m, access_key: {SECRET}, secret_key: {SECRET}}}
mcp:
  servers:
    docs: {{url: "https://mcp.example.com/mcp?key={SECRET}", headers: {{Authorization: Bearer {SECRET}}}}}
    time: {{command: mcp-server-time, args: [--key, {SECRET}], env: {{KEY: {SECRET}}}}}
"""
EVERY_KIND_OF_VALUE = """
database: sqlite:////var/lib/aibridge/rows.db
recording: {redact: ['a \\$\\{b', 'c: #d', "on"], retention: 36h, durable: false, on_failure: closed}
actor:
  default: 'somebody: else'
  header: X-Who
  trusted_sources: [10.0.0.0/8, "fd00::/8"]
  metadata: {org: "0123", text: "$${HOME} and $$${HOME}", empty: "", word: "null", umlaut: "\u00fc \u2603"}
providers:
- {name: gateway-only, type: openai, hosts: [], base_url: "http://[::1]:8000/v1"}
- {name: azure, type: azure, circuit_breaker: {timeout: 7}, max_retries: 2}
mcp:
  servers:
    docs: {url: "https://mcp.example.com/mcp", allow: ^get_, deny: ['x', 'y$']}
metrics: {listen: "[::1]:0", prefix: ""}
dump_dir: dumps
websockets: upgrade_required
drain_timeout: 0.5
egress: {guard: on, allowed_private_cidrs: [192.168.0.0/16], ports: [443]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "aibridge.yaml"
    path.write_text(text)
    return path


def settings_of(path: Path | None, environ: Mapping[str, str] | None = None) -> Settings:
    return load(path, environ=environ or {})


def test_script_prints_the_path_of_the_file_that_mitmproxy_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["script"]) == 0
    assert Path(capsys.readouterr().out.rstrip("\n")) == PACKAGE / "main.py"
    assert (PACKAGE / "main.py").is_file()


def test_the_installed_command_runs_from_any_folder(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("aibridge")
    done = subprocess.run([command, "script"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.rstrip("\n")).samefile(PACKAGE / "main.py")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = "import sys; from aibridge_addon.cli import main; sys.exit(main(['config']))"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=PACKAGE.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("arguments", [[], ["script"], ["config"]], ids=" ".join)
def test_help_is_everywhere(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--help"])
    assert ended.value.code == 0
    assert " ".join(["usage: aibridge", *arguments]) in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)], ids=" ".join)
def test_help_has_examples_that_the_command_accepts(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    examples = text.partition("\nexamples:\n")[2].splitlines()
    assert len(examples) >= 2
    for example in examples:
        words = shlex.split(re.split(r"\$\(|[)|>]", example.partition("aibridge ")[2])[0])
        if "--help" not in words:  # which ends the process
            cli.parser().parse_args(words)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["reprot"], "report"),
        (["report", "dialy"], "daily"),
        (["sesions", "show", "x"], "sessions"),
        (["report", "--sinse", "2026-11-01"], "--since"),
        (["report", "--jsn"], "--json"),
        (["run", "--sumary-json", "file", "--", "true"], "--summary-json"),
        (["run", "--config", "file", "--porxy=http://a", "true"], "--proxy"),
        (["tokens", "create", "--actr", "ada"], "--actor"),
        (["--versoin"], "--version"),
    ],
    ids=" ".join,
)
def test_a_misspelt_name_suggests_the_right_one(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert f'(did you mean "{meant}"?)' in capsys.readouterr().err


def test_options_of_a_program_to_run_are_its_own() -> None:
    parsed = cli.parser("run").parse_args(["run", "--set", "a=b", "--config", "file", "make", "--versoin", "--", "--x"])
    assert (parsed.program, parsed.set, parsed.config) == (["make", "--versoin", "--", "--x"], ["a=b"], "file")


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS), ["tokens", "create"]], ids=" ".join)
def test_version_is_everywhere(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"aibridge {version('aibridge-mitmproxy')}\n"


def test_a_misspelt_name_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("\x1b[31m", "\u202e", "\udc80", "x" * 1_000_000):
        for arguments in ([name], ["report", f"--{name}"]):
            with pytest.raises(SystemExit):
                cli.main(arguments)
    printed = capsys.readouterr().err
    assert "\x1b" not in printed and "\u202e" not in printed and len(printed) < 10_000


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "aibridge" in script
    if shutil.which(shell) is not None:
        done = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("line", "word"), [("aibridge rep", "report"), ("aibridge report mod", "models")])
def test_a_shell_gets_the_words_that_complete_a_line(line: str, word: str, tmp_path: Path) -> None:
    found = tmp_path / "words"
    environ = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    command = Path(sys.executable).with_name("aibridge")
    environ |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(found), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    subprocess.run([command], env=os.environ | environ, timeout=60, check=True)
    assert word in found.read_text().split()


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["script", "extra"]], ids=" ".join)
def test_a_wrong_command_line_is_an_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: aibridge" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        EVERY_KIND_OF_VALUE,
        "recording: {retention: 0}\nmetrics: {listen: null}\n",
        "recording: {retention: {content: 12h, rows: 0}}\n",
    ],
    ids=["none", "all", "null", "two lifetimes"],
)
def test_what_is_printed_loads_to_the_same_settings(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, text)
    settings = settings_of(path)
    assert cli.main(["config", "--config", str(path)]) == 0
    printed = capsys.readouterr().out
    assert settings_of(write(tmp_path, printed), {"HOME": "not taken"}) == settings


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["yaml", "json"])
def test_no_secret_is_printed(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, SECRETS)
    assert SECRET in settings_of(path).database.get_secret_value()
    assert cli.main(["config", "--config", str(path), *options]) == 0
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert "***" in printed.out
    assert "https://mcp.example.com/mcp" in printed.out


def test_json_says_the_same_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, EVERY_KIND_OF_VALUE)
    assert cli.main(["config", "--config", str(path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values) == list(Settings.model_fields)
    assert values["actor"]["metadata"]["text"] == "${HOME} and $${HOME}"
    assert values["recording"]["retention"] == "36h"
    assert values["metrics"]["listen"] == "[::1]:0"


def test_a_wrong_file_ends_with_code_2_and_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, WRONG)
    assert cli.main(["config", "--config", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    prompt, timeout = printed.err.splitlines()
    assert prompt.startswith(f"{path}: recording.prompt: found an unknown key")
    assert timeout.startswith(f"{path}: drain_timeout: found text")


def test_a_file_that_is_not_there_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "missing.yaml"
    assert cli.main(["config", "--check", "--config", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_check_says_that_nothing_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, EVERY_KIND_OF_VALUE)
    assert cli.main(["config", "--check", "--config", str(path)]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"ok: {path}\n", "")


def test_the_environment_names_the_file_as_it_does_for_mitmproxy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CONFIG_VARIABLE == options.CONFIG_VARIABLE
    monkeypatch.setitem(os.environ, CONFIG_VARIABLE, str(write(tmp_path, "drain_timeout: 7\n")))
    assert cli.main(["config"]) == 0
    assert "drain_timeout: 7\n" in capsys.readouterr().out


def test_mitmdump_refuses_what_the_command_refuses_in_the_same_words(
    run_to_exit: RunToExit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", "--config", str(write(tmp_path, WRONG))]) == 2
    problems = [line.removeprefix(str(tmp_path)) for line in capsys.readouterr().err.splitlines()]
    ended = run_to_exit(config=WRONG)
    assert ended.code == 1
    assert all(problem in ended.output for problem in problems)
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one of run, "),
        (["certs"], "one of show, make, "),
        (["tokens"], "one of create, list, revoke"),
        (["doctor", "--port", "abc"], "expected a port from 1 to 65535"),
        (["doctor", "--port", "65536"], "expected a port from 1 to 65535"),
        (["report", "--by", "projct"], 'did you mean "project"?'),
    ],
)
def test_wrong_use_names_what_is_allowed(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as e:
        code = int(e.code or 0)
    assert code == 2 and said in capsys.readouterr().err
