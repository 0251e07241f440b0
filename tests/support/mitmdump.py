"""Run real `mitmdump` processes with the addon, each in a folder of its own.

    with Mitmdump(folder, config="recording: {durable: true}\\n", upstream_ca=authority.pem) as proxy:
        ...                                       # clients use proxy.proxy_url and trust proxy.ca_file
        rows = proxy.wait_for_rows("aibridge_interceptions", 1)
        proxy.terminate()
        assert proxy.wait() == 0

A folder can be used again: a second process there finds the first one's database and certificate authority.
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypedDict, Unpack

import psutil  # type: ignore[import-untyped]
from mitmproxy.certs import CertStore

from tests.support import database, ready
from tests.support.database import Row, Table
from tests.support.polling import poll_until

ADDON = Path(__file__).parents[2] / "aibridge_addon" / "main.py"
MITMDUMP = Path(sys.executable).with_name("mitmdump")

STARTED_WITHIN = 30.0
ENDED_WITHIN = 15.0
LOG_TAIL_LINES = 80
CA_KEY_BITS = 2048
CA_BASENAME = "mitmproxy"

# Processes that run side by side cannot share the default port.
NO_METRICS = "metrics: {listen: null}\n"

_LISTENING = re.compile(r" listening at \S*?:(?P<port>\d+)[. ]")
_METRICS_SECTION = re.compile(r"^metrics\s*:", re.MULTILINE)
_INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_DIR")

_log_numbers = itertools.count(1)


class MitmdumpOptions(TypedDict, total=False):
    config: str | None  # YAML; metrics are off unless it says otherwise; None: no configuration at all
    mode: Sequence[str]  # such as ["reverse:https://localhost:1234"]; a second one must name its port
    options: Sequence[str]  # each is given as `--set option`; unknown ones are no error to mitmproxy
    arguments: Sequence[str]  # further arguments, as they are
    env: Mapping[str, str]  # on top of a nearly empty environment
    upstream_ca: Path | None  # the authority that upstream servers are verified with
    mitmproxy_ca: Path | None  # a folder from `make_mitmproxy_ca`; None: mitmdump makes its own
    script: Path | None  # None: no addon


class Exit(NamedTuple):
    code: int
    output: str


class StartFailedError(Exception):
    """mitmdump ended before it listened."""

    def __init__(self, ended: Exit) -> None:
        super().__init__(f"mitmdump ended with code {ended.code} before it listened:\n{ended.output}")
        self.exit = ended


def make_mitmproxy_ca(folder: Path) -> Path:
    """Make mitmproxy's certificate authority once, for many processes: it takes longer than their start."""
    CertStore.create_store(folder, CA_BASENAME, CA_KEY_BITS)
    return folder


class Mitmdump:
    def __init__(self, folder: Path, **options: Unpack[MitmdumpOptions]) -> None:
        self.folder = folder
        self.confdir = folder / "conf"
        self.database = folder / "aibridge.db"
        self._options = options
        self._log_file = folder / f"mitmdump-{next(_log_numbers)}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._family: list[psutil.Process] = []
        self.ports: list[int] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is not None:
            print(f"--- {self._log_file.name}\n{self.log_tail}")

    def start(self) -> None:
        """Start and wait until the proxy listens and every addon is running."""
        self._spawn(self._options.get("config", ""), metrics_off=True)
        self.ports = poll_until(self._maybe_ports, STARTED_WITHIN, what="mitmdump listening")

    def run_to_exit(self, timeout: float = STARTED_WITHIN) -> Exit:
        """Start something that is expected to end by itself; the configuration is used as given."""
        self._spawn(self._options.get("config"), metrics_off=False)
        try:
            return Exit(self.wait(timeout), self.log)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"mitmdump still runs after {timeout} s:\n{self.log_tail}") from error
        finally:
            self.close()

    # --- what it says and does --------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self._started.pid

    @property
    def port(self) -> int:
        """The port of the first mode; `ports` has those of all, in the order of the log."""
        return self.ports[0]

    @property
    def proxy_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        return self.confdir / f"{CA_BASENAME}-ca-cert.pem"

    @property
    def log(self) -> str:
        """All of stdout and stderr so far."""
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    @property
    def log_tail(self) -> str:
        return "\n".join(self.log.splitlines()[-LOG_TAIL_LINES:])

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.log

    def wait_for_log(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        return poll_until(lambda: re.search(pattern, self.log, re.MULTILINE), timeout, what=f"{pattern!r} in the log")

    def rows(self, table: Table) -> list[Row]:
        return database.read_table(self.database, table)

    def wait_for_rows(self, table: Table, n: int, timeout: float = 10.0) -> list[Row]:
        """Wait until a table has at least n rows, and return them all."""

        def maybe_enough() -> list[Row] | None:
            rows = self.rows(table)
            return rows if len(rows) >= n else None

        return poll_until(maybe_enough, timeout, what=f"{n} rows in {table}")

    def children(self) -> list[psutil.Process]:
        """The processes that mitmdump has started, such as MCP servers, and theirs."""
        if not self.running:
            return []  # its id may be another's by now
        found: list[psutil.Process] = psutil.Process(self.pid).children(recursive=True)
        return found

    # --- how it ends ------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def interrupt(self) -> None:
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def wait(self, timeout: float = ENDED_WITHIN) -> int:
        """Wait for the end and return the exit code: negative for a signal."""
        return self._started.wait(timeout)

    def close(self) -> None:
        """End the process and all that it started, in good order if it lets us; safe to call twice."""
        if self._process is None:
            return
        self._family += self.children()
        if self.running:
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
                self.wait()
        for orphan in self._family:
            if orphan.is_running():
                orphan.kill()
        self._family.clear()

    # --- how it starts ----------------------------------------------------------------------------

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("mitmdump was not started")
        return self._process

    def _spawn(self, config: str | None, *, metrics_off: bool) -> None:
        if self.running:
            raise RuntimeError("mitmdump runs already")
        given = self._options.get("mitmproxy_ca")
        if given is not None:
            shutil.copytree(given, self.confdir, dirs_exist_ok=True)
        if config is not None and metrics_off and not _METRICS_SECTION.search(config):
            config = f"{config.rstrip()}\n{NO_METRICS}".lstrip()
        with self._log_file.open("wb") as log_file:
            self._process = subprocess.Popen(
                self._command(config),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for pytest, which then ends us
            )

    def _command(self, config: str | None) -> list[str]:
        script = self._options.get("script", ADDON)
        settings = [f"confdir={self.confdir}"]
        upstream_ca = self._options.get("upstream_ca")
        if upstream_ca is not None:
            settings.append(f"ssl_verify_upstream_trusted_ca={upstream_ca}")
        if script is not None and config is not None:
            file = self.folder / "aibridge.yaml"
            file.write_text(config)
            settings.append(f"aibridge_config={file}")
        command = [str(MITMDUMP), "--listen-host", "127.0.0.1", "--listen-port", "0"]
        for mode in self._options.get("mode", ()):
            command += ["--mode", mode]
        for setting in (*settings, *self._options.get("options", ())):
            command += ["--set", setting]
        if script is not None:
            command += ["-s", str(script)]
        # mitmproxy says that it listens before the `running` hooks: this script's comes last of all.
        command += ["-s", str(ready.__file__)]
        return [*command, *self._options.get("arguments", ())]

    def _environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        ours = {"HOME": str(self.folder), "PYTHONUNBUFFERED": "1"}
        return {**inherited, **ours, **self._options.get("env", {})}

    def _maybe_ports(self) -> list[int]:
        if not self.running:
            raise StartFailedError(Exit(self._started.wait(), self.log))
        log = self.log
        if ready.SIGN not in log:
            return []
        return [int(listening["port"]) for listening in _LISTENING.finditer(log)]

    def _signal(self, number: signal.Signals) -> None:
        # Whoever started a process must end it even after its parent has gone and cannot name it any more.
        self._family += [child for child in self.children() if child not in self._family]
        self._started.send_signal(number)
