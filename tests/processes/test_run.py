"""`aibridge run`: one program with a proxy of its own, as processes in an empty directory."""

from __future__ import annotations

import base64
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from aibridge_addon.cli.private_proxy import PrivateProxy, StartFailed
from tests.conftest import MakeUpstream, StartProxy
from tests.integration.answers import REQUEST, SIMPLE, whole
from tests.support import database
from tests.support.mitmdump import make_mitmproxy_ca
from tests.support.polling import poll_until
from tests.support.running import INHERITED
from tests.support.upstream import ScriptedUpstream

HEEDING = ("env", "--default-signal=INT,HUP,TERM")
"""The beginning of a command that heeds these signals, also where the tests run with some of them ignored."""
AIBRIDGE = Path(sys.executable).with_name("aibridge")
WITHIN = 60.0
ASK = """
import sys, httpx
answer = httpx.post("https://api.anthropic.com/v1/messages", content=open(sys.argv[1], "rb").read())
sys.stdout.buffer.write(answer.content)
"""
"""A client that knows of the proxy, and trusts its certificate, by its environment only."""


@pytest.fixture
def plain_upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(authority=None)


class Here:
    """An empty directory in which `aibridge run` is used."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.home = home
        self.folder = folder
        folder.mkdir()
        (home / ".mitmproxy").mkdir()
        make_mitmproxy_ca(home / ".mitmproxy")
        self.config = home / "aibridge.yaml"
        (home / "request.json").write_bytes(REQUEST)
        self.ask = (sys.executable, "-c", ASK, str(home / "request.json"))

    def use(self, upstream: ScriptedUpstream) -> str:
        base = f"http://127.0.0.1:{upstream.port}"
        self.config.write_text(
            f"providers: [{{name: anthropic, type: anthropic, price_as: anthropic, base_url: '{base}'}}]\n"
        )
        return f"--config={self.config}"

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return {**inherited, "HOME": str(self.home), **more}

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(AIBRIDGE), "run", *arguments],
            cwd=self.folder,
            env=self.environment(more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WITHIN,
        )

    @contextmanager
    def running(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [*HEEDING, str(AIBRIDGE), "run", *arguments],
            cwd=self.folder,
            env=self.environment({}),
            text=True,
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        ) as process:
            family = list[psutil.Process]()
            try:
                yield process
                family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            finally:
                process.kill()
                for member in family:
                    if member.is_running():
                        member.kill()

    def interceptions(self) -> list[database.Row]:
        return database.read_table(self.folder / "aibridge.db", "aibridge_interceptions")


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path, tmp_path / "empty")


def test_a_programs_requests_are_recorded_and_summed_up(here: Here, plain_upstream: ScriptedUpstream) -> None:
    plain_upstream.answer(whole())
    summary = here.home / "usage.json"
    steps = here.home / "steps.md"
    options = (here.use(plain_upstream), f"--summary-json={summary}")
    done = here.run(*options, "--", *here.ask, GITHUB_STEP_SUMMARY=str(steps))
    assert (done.returncode, done.stdout) == (0, SIMPLE.body.decode())
    [row] = here.interceptions()
    assert (row["status"], row["streaming"]) == ("completed", 1)
    [tokens] = database.read_table(here.folder / "aibridge.db", "aibridge_token_usages")
    values = json.loads(summary.read_text())
    [model] = values.pop("models")
    assert model == {"model": tokens["model"], **values}
    assert values == {
        "requests": 1,
        "failed": 0,
        "input_tokens": tokens["input_tokens"],
        "output_tokens": tokens["output_tokens"],
        "cache_read_input_tokens": tokens["cache_read_input_tokens"],
        "cache_write_input_tokens": tokens["cache_write_input_tokens"],
        "cost_usd": tokens["cost_usd"],
        "unpriced": 0,
        "injected_calls": 0,
    }
    assert "aibridge: 1 request, USD 0." in done.stderr
    assert f"| {tokens['model']} | 1 |" in steps.read_text()


def test_a_summary_has_only_the_usage_of_its_own_run(here: Here, plain_upstream: ScriptedUpstream) -> None:
    plain_upstream.answer(whole(), whole())
    option = here.use(plain_upstream)
    for _ in range(2):
        done = here.run(option, "--", *here.ask)
        assert "aibridge: 1 request," in done.stderr
    assert len(here.interceptions()) == 2


def test_two_may_run_at_once_since_they_have_no_port_for_metrics(here: Here) -> None:
    log = here.home / "proxy.log"
    done = here.run(f"--log={log}", "--", str(AIBRIDGE), "run", "-q", "--", "echo", "inner")
    assert (done.returncode, done.stdout) == (0, "inner\n")
    assert "metrics on no port" in log.read_text()


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (("sh", "-c", "exit 3"), 3),
        (("sh", "-c", "kill -TERM $$"), 128 + signal.SIGTERM),
        (("no-such-program-anywhere",), 127),
        (("/no/such/program",), 127),
        (("./not-executable",), 126),
    ],
    ids=["its own", "signal", "not found", "no file", "not executable"],
)
def test_the_exit_code_is_the_programs(here: Here, program: tuple[str, ...], code: int) -> None:
    (here.folder / "not-executable").write_text("text")
    done = here.run("--", *program)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)


def test_a_program_and_its_options_need_two_dashes_at_most(here: Here) -> None:
    assert here.run("-q", "echo", "-n", "--json", "hello").stdout == "--json hello"
    assert here.run("-q", "--", "echo", "--", "hello").stdout == "-- hello\n"
    assert here.run("-q").returncode == 2


def test_a_proxy_that_cannot_start_shows_its_log(here: Here) -> None:
    (here.home / "folder.db").mkdir()
    done = here.run("--database", f"sqlite:///{here.home}/folder.db", "--", "echo", "never")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the proxy cannot start:\n" in done.stderr and "aibridge cannot start:" in done.stderr


def test_a_wrong_configuration_is_wrong_use(here: Here) -> None:
    here.config.write_text("recording: {prompt: true}\n")
    done = here.run(f"--config={here.config}", "--", "echo", "never")
    assert (done.returncode, done.stdout) == (2, "")
    assert "recording.prompt: found an unknown key" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_program_and_then_the_proxy(here: Here, number: signal.Signals) -> None:
    options = {"start_new_session": True}  # without a terminal
    with here.running("--", "sh", "-c", "echo waits; exec sleep 600", **options) as process:
        assert process.stdout is not None and process.stdout.readline() == "waits\n"
        family = psutil.Process(process.pid).children()
        process.send_signal(number)
        assert process.wait(WITHIN) == 128 + number
        assert process.stderr is not None and "aibridge: 0 requests" in process.stderr.read()
    assert len(family) == 2 and [each for each in family if each.is_running()] == []


def test_the_proxy_ends_when_its_command_is_killed(here: Here) -> None:
    with here.running("--", "sh", "-c", "echo waits; exec sleep 600") as process:
        assert process.stdout is not None and process.stdout.readline() == "waits\n"
        family = psutil.Process(process.pid).children()
        [proxy] = [each for each in family if "aibridge_addon.private" in each.cmdline()]
        process.kill()
        poll_until(lambda: not proxy.is_running() or proxy.status() == psutil.STATUS_ZOMBIE, WITHIN, what="its end")
        for each in family:
            if each.is_running():
                each.kill()


COUNTING = """
import os, signal, sys
seen = []
def interrupted(*_):
    seen.append(1)
    os.write(1, b"interrupt\\n")
signal.signal(signal.SIGINT, interrupted)
print("ready", sys.stdin.isatty(), sys.stdout.isatty(), flush=True)
sys.stdin.readline()
print("interrupts:", len(seen), flush=True)
"""


def test_ctrl_c_in_a_terminal_reaches_the_program_once(here: Here) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(here.folder)
        command = [str(AIBRIDGE), "run", "--", sys.executable, "-c", COUNTING]
        os.execve(AIBRIDGE, command, here.environment({}))
    with open(terminal, "rb", buffering=0) as output:
        assert b"ready True True" in output.readline()
        for _ in range(2):  # by the second one, the first would have been passed on
            os.write(terminal, b"\x03")
            while b"interrupt" not in output.readline():
                pass
        os.write(terminal, b"\n")
        lines = b""
        while b"interrupts" not in lines:
            lines = output.readline()
        assert b"interrupts: 2" in lines
        assert b"aibridge: 0 requests" in output.readline()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_proxy_that_runs_already_may_be_used(
    here: Here, start_proxy: StartProxy, plain_upstream: ScriptedUpstream
) -> None:
    plain_upstream.answer(whole())
    here.use(plain_upstream)
    proxy = start_proxy(config=here.config.read_text())
    options = (f"--proxy={proxy.proxy_url}", f"--confdir={proxy.confdir}")
    done = here.run(*options, "--", *here.ask)
    assert (done.returncode, done.stdout) == (0, SIMPLE.body.decode())
    assert done.stderr.startswith("aibridge: no summary: the proxy of --proxy may serve other programs")
    assert len(proxy.wait_for_rows("aibridge_interceptions", 1)) == 1
    assert "aibridge.db" not in os.listdir(here.folder)
    assert here.run(*options, "--summary-json=usage.json", "--", "true").returncode == 2


@pytest.fixture
def company() -> Iterator[tuple[int, list[str]]]:
    """A proxy of a company: it refuses every tunnel, and remembers what it was asked for."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        asked.append(connection.recv(65536).decode())
                        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], asked
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_proxy_that_the_environment_names_is_the_upstream(here: Here, company: tuple[int, list[str]]) -> None:
    port, asked = company
    fetch = (sys.executable, "-c", "import httpx; print(httpx.get('https://host.example/').status_code)")
    done = here.run("--", *fetch, HTTPS_PROXY=f"http://ada:p%40ss@127.0.0.1:{port}")
    assert f"aibridge: requests go through http://127.0.0.1:{port} (HTTPS_PROXY)" in done.stderr
    [request] = asked
    assert request.startswith("CONNECT host.example:443 ")
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'ada:p@ss').decode()}".lower() in request.lower()
    assert "p@ss" not in done.stderr and "p%40ss" not in done.stderr


@pytest.mark.parametrize("no_proxy", ["", "127.0.0.1", "localhost, .internal"])
def test_hosts_of_no_proxy_and_this_machine_are_reached_without_it(
    here: Here, company: tuple[int, list[str]], plain_upstream: ScriptedUpstream, no_proxy: str
) -> None:
    plain_upstream.answer(whole())
    gateway = ASK.replace("https://api.anthropic.com/", "{os.environ['HTTPS_PROXY']}/anthropic/")
    gateway = gateway.replace("import sys", "import os, sys").replace('httpx.post("', 'httpx.post(f"')
    port, asked = company
    environ = {"HTTPS_PROXY": f"http://127.0.0.1:{port}", "NO_PROXY": no_proxy}
    program = (sys.executable, "-c", gateway, str(here.home / "request.json"))
    done = here.run(here.use(plain_upstream), "--", *program, **environ)
    assert (done.returncode, done.stdout) == (0, SIMPLE.body.decode())
    assert asked == []
    assert [row["status"] for row in here.interceptions()] == ["completed"]


@pytest.mark.parametrize("set_by", ["aibridge env", "hand"])
def test_a_bridge_that_the_environment_names_is_replaced_so_that_a_request_has_one_record(
    here: Here, start_proxy: StartProxy, plain_upstream: ScriptedUpstream, set_by: str
) -> None:
    plain_upstream.answer(whole())
    config = here.use(plain_upstream)
    running = start_proxy(config=here.config.read_text())
    environ = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), running.proxy_url)
    if set_by == "hand":
        environ["SSL_CERT_FILE"] = str(here.home / ".mitmproxy" / "mitmproxy-ca-cert.pem")
    else:
        environ["AIBRIDGE_ENV_BEFORE"] = json.dumps(dict.fromkeys(environ))
    done = here.run(config, "--", *here.ask, **environ)
    assert (done.returncode, done.stdout) == (0, SIMPLE.body.decode())
    assert f"https_proxy names a bridge that runs already, {running.proxy_url}. A private one" in done.stderr
    assert "aibridge: 1 request" in done.stderr
    assert len(here.interceptions()) == 1
    assert running.rows("aibridge_interceptions") == []


def test_records_that_wait_in_the_spool_are_mentioned(here: Here) -> None:
    spool = here.folder / "aibridge-spool"
    write = f"import pathlib; p = pathlib.Path({str(spool)!r}); p.mkdir(); (p / 'a.b.1.log').write_bytes(b'x')"
    done = here.run("--", sys.executable, "-c", write)
    assert f"some records wait in {spool}: the summary is without them" in done.stderr


def test_a_proxy_that_does_not_run_is_reported(here: Here) -> None:
    done = here.run("--proxy=http://127.0.0.1:9", "--", "echo", "never")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the proxy of --proxy cannot be reached: 127.0.0.1: ")


def test_a_slow_start_is_reported_while_it_lasts(tmp_path: Path) -> None:
    reported = threading.Event()
    config = tmp_path / "aibridge.yaml"
    config.write_text("no_such_key: 1\n")
    with PrivateProxy() as proxy, pytest.raises(StartFailed, match="no_such_key"):
        proxy.listen([f"aibridge_config={config}", f"confdir={tmp_path}"], reported.set, slow_after=0)
    assert reported.wait(WITHIN)


def test_a_start_in_time_is_not_reported(tmp_path: Path) -> None:
    reported = threading.Event()
    options = [f"aibridge_database=sqlite:///{tmp_path}/aibridge.db", f"confdir={tmp_path}"]
    with PrivateProxy() as proxy:
        proxy.listen(options, reported.set, slow_after=WITHIN)
        assert proxy.stop(WITHIN)
    assert not reported.is_set()
