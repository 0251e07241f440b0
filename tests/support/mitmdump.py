"""Run real `mitmdump` processes with the addon, each in a folder of its own.

    with Mitmdump(folder, config="recording: {durable: true}\\n", upstream_ca=authority.pem) as proxy:
        ...                                       # clients use proxy.proxy_url and trust proxy.ca_file
        rows = proxy.wait_for_rows("aibridge_interceptions", 1)
        proxy.terminate()
        assert proxy.wait() == 0

A folder can be used again: a second process there finds the first one's database and certificate authority.
"""

import itertools
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import psutil  # type: ignore[import-untyped]
import trustme

from tests.support import ready
from tests.support.polling import poll_until
from tests.support.running import (
    ADDON,
    CA_BASENAME,
    Exit,
    ProxyOptions,
    RunningProxy,
    StartFailedError,
    arguments_for,
    environment_for,
    without_metrics,
)

MITMDUMP = Path(sys.executable).with_name("mitmdump")

STARTED_WITHIN = 60.0
ENDED_WITHIN = 15.0

_LISTENING = re.compile(r" listening at \S*?:(?P<port>\d+)[. ]")

_log_numbers = itertools.count(1)


def make_mitmproxy_ca(folder: Path) -> Path:
    """Make mitmproxy's certificate authority once, for many proxies: it takes longer than their start.

    Its key is of an elliptic curve, since mitmproxy checks an RSA key for a tenth of a second at each start.
    """
    authority = trustme.CA()
    certificate = authority.cert_pem.bytes()
    (folder / f"{CA_BASENAME}-ca.pem").write_bytes(authority.private_key_pem.bytes() + certificate)
    (folder / f"{CA_BASENAME}-ca-cert.pem").write_bytes(certificate)
    return folder


class Mitmdump(RunningProxy):
    def __init__(self, folder: Path, **options: Unpack[ProxyOptions]) -> None:
        super().__init__(folder)
        self._options = options
        self._log_file = folder / f"mitmdump-{next(_log_numbers)}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._family: list[psutil.Process] = []

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
        self._spawn(without_metrics(self._options.get("config", "")))
        self.ports = poll_until(self._maybe_ports, STARTED_WITHIN, what="mitmdump listening")

    def run_to_exit(self, timeout: float = STARTED_WITHIN) -> Exit:
        """Start something that is expected to end by itself; the configuration is used as given."""
        self._spawn(self._options.get("config"))
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
    def log(self) -> str:
        """All of stdout and stderr so far."""
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

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

    def hang_up(self) -> None:
        self._signal(signal.SIGHUP)

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

    def _spawn(self, config: str | None) -> None:
        if self.running:
            raise RuntimeError("mitmdump runs already")
        given = self._options.get("mitmproxy_ca")
        if given is not None:
            shutil.copytree(given, self.confdir, dirs_exist_ok=True)
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
        options: ProxyOptions = {**self._options, "config": config}
        command = [str(MITMDUMP), *arguments_for(self.folder, self.confdir, options)]
        script = options.get("script", ADDON)
        if script is not None:
            command += ["-s", str(script)]
        # mitmproxy says that it listens before the `running` hooks: this script's comes last of all.
        command += ["-s", str(ready.__file__)]
        return [*command, *options.get("arguments", ())]

    def _environment(self) -> dict[str, str]:
        return {"PYTHONUNBUFFERED": "1", **environment_for(self.folder, self._options)}

    def _maybe_ports(self) -> list[int]:
        if not self.running:
            raise StartFailedError(Exit(self._started.wait(), self.log))
        log = self.log
        if ready.SIGN not in log:
            return []
        return [int(listening["port"]) for listening in _LISTENING.finditer(log)]

    def _signal(self, number: signal.Signals) -> None:
        # End each child by its own id, also after its parent has ended.
        self._family += [child for child in self.children() if child not in self._family]
        self._started.send_signal(number)
