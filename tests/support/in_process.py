"""Run mitmproxy with the addon on a thread of the test's own process: a start costs a twentieth of a process.

    with InProcessProxy(folder, config="recording: {durable: true}\\n", upstream_ca=authority.pem) as proxy:
        ...                                       # as with `Mitmdump`
        rows = proxy.wait_for_rows("aibridge_interceptions", 1)
        proxy.close()

Everything is real: mitmproxy's `DumpMaster` with all of its addons, options from mitmdump's command line, `main.py`
loaded as a script, sockets, threads, the database. Only the process is not its own, so these need `Mitmdump`: signals
(`close` here ends without waiting for answers), exit codes of a running proxy, memory and CPU of the proxy alone, and
two proxies at once, since `mitmproxy.ctx` is global.

While it runs, the process has the proxy's working directory and environment.
"""

from __future__ import annotations

import asyncio
import faulthandler
import io
import logging
import os
import re
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack, cast

from mitmproxy import optmanager
from mitmproxy.addons import dumper
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.termlog import TermLogHandler
from mitmproxy.exceptions import OptionsError
from mitmproxy.master import Master
from mitmproxy.options import Options
from mitmproxy.tools import cmdline
from mitmproxy.tools.dump import DumpMaster
from mitmproxy.tools.main import process_options
from mitmproxy.tools.web.master import WebMaster

from tests.support.running import (
    ADDON,
    Exit,
    ProxyOptions,
    RunningProxy,
    StartFailedError,
    arguments_for,
    environment_for,
    without_metrics,
)
from tests.support.upstream import unused_port

STARTED_WITHIN = 30.0
ENDED_WITHIN = 15.0

QUIET_LOGGERS = ("asyncio", "hpack", "quic", "tornado")
"""Loggers of which `mitmdump` takes warnings only."""
FOREIGN_LOGGERS = ("httpcore", "httpx", "tests")
"""Loggers of clients and upstreams, which share the process."""

_one_at_a_time = threading.Lock()


class Output(io.StringIO):
    """What a proxy writes, as something to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def write(self, text: str) -> int:
        with self._changed:
            written = super().write(text)
            self._changed.notify_all()
        return written

    def wait_for(self, pattern: str, timeout: float) -> re.Match[str]:
        with self._changed:
            found = self._changed.wait_for(lambda: re.search(pattern, self.getvalue(), re.MULTILINE), timeout)
        if found is None:
            raise TimeoutError(f"{pattern!r} did not come into the log within {timeout} s:\n{self.getvalue()}")
        assert isinstance(found, re.Match)
        return found


class _LogHandler(TermLogHandler):
    """Write what `mitmdump` prints, in its format, but not what the test itself logs."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._output = output
        self.setLevel(logging.INFO)
        self._test = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread == self._test or record.name.partition(".")[0] in FOREIGN_LOGGERS:
            return False
        return bool(logging.Filterer.filter(self, record))  # a proxy of a whole module serves several tests

    def emit(self, record: logging.LogRecord) -> None:
        self._output.write(self.format(record) + "\n")


class _Ready:
    """The last addon: when its `running` is called, all others are running."""

    def __init__(self, started: Future[list[int]], master: Master) -> None:
        self._started = started
        self._master = master

    def running(self) -> None:
        ports = [port for server in _proxyserver(self._master).servers for _, port, *_ in server.listen_addrs]
        self._started.set_result(ports)


class InProcessProxy(RunningProxy):
    def __init__(self, folder: Path, **options: Unpack[ProxyOptions]) -> None:
        super().__init__(folder)
        self._options = options
        given = options.get("mitmproxy_ca")
        if given is not None:
            self.confdir = given
        self._output = Output()
        self._process = ExitStack()
        self._started: Future[list[int]] = Future()
        self._ended: Future[int] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._master: Master | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start, and wait until the proxy listens and every addon is running."""
        self._run(without_metrics(self._options.get("config", "")))
        try:
            self.ports = self._started.result(STARTED_WITHIN)
        except BaseException:
            self.close()
            raise

    def run_to_exit(self, timeout: float = STARTED_WITHIN) -> Exit:
        """Start something that is expected to end by itself; the configuration is used as given."""
        self._run(self._options.get("config"))
        try:
            return Exit(self._ended.result(timeout), self.log)
        finally:
            self.close()

    @property
    def options(self) -> Options:
        """mitmproxy's options, while it runs."""
        assert self._master is not None
        return self._master.options

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def log(self) -> str:
        return self._output.getvalue()

    def wait_for_log(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        return self._output.wait_for(pattern, timeout)

    def close(self) -> None:
        """End at once, and wait until everything is released; safe to call twice.

        Raises:
            Exception: what ended the proxy before.
        """
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        try:
            if self._loop is not None:
                with suppress(RuntimeError):  # the loop has ended by itself
                    self._loop.call_soon_threadsafe(self._stop)
            self._ended.result(ENDED_WITHIN)
        except TimeoutError:
            faulthandler.dump_traceback()
            raise
        finally:
            self._process.close()
        thread.join()

    # --- the process that it shares ------------------------------------------------------------------

    def _run(self, config: str | None) -> None:
        if self._thread is not None:
            raise RuntimeError("the proxy runs already")
        if not _one_at_a_time.acquire(blocking=False):
            raise RuntimeError(
                "another proxy runs in this process, and mitmproxy.ctx is global: close it, or use Mitmdump"
            )
        self._process.callback(_one_at_a_time.release)
        options: ProxyOptions = {**self._options, "config": config}
        arguments = arguments_for(self.folder, self.confdir, options)
        script = options.get("script", ADDON)
        if script is not None:
            arguments += ["-s", str(script)]
        arguments += options.get("arguments", ())
        self._process.enter_context(_environment(environment_for(self.folder, options)))
        self._process.enter_context(chdir(self.folder))
        self._process.enter_context(_logging(self._output))
        self._process.enter_context(_restored(sys.path))  # a script's folder stays on it
        self._thread = threading.Thread(target=self._serve, args=(arguments,), name="mitmproxy", daemon=True)
        self._thread.start()

    # --- on a thread of its own ----------------------------------------------------------------------

    def _serve(self, arguments: list[str]) -> None:
        try:
            asyncio.run(self._main(arguments))
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as error:  # noqa: BLE001 (the test that closes the proxy raises it)
            if not self._started.done():
                self._started.set_exception(error)
            self._ended.set_exception(error)
            return
        if not self._started.done():
            self._started.set_exception(StartFailedError(Exit(code, self.log)))
        self._ended.set_result(code)

    async def _main(self, arguments: list[str]) -> None:
        """Do as mitmproxy.tools.main.run does, whose signals and output are the process's."""
        self._loop = asyncio.get_running_loop()
        options = Options()
        master = self._master = self._new_master(options)
        master.addons.add(dumper.Dumper(self._output))
        parser = self._new_parser(options)
        given = parser.parse_args(arguments)
        try:
            options.set(*given.setoptions, defer=True)
            optmanager.load_paths(options, str(Path(options.confdir) / "config.yaml"))
            process_options(parser, options, given)
        except OptionsError as error:
            self._output.write(f"mitmdump: {error}\n")
            sys.exit(1)
        master.addons.add(_Ready(self._started, master))
        try:
            await master.run()
        finally:
            if not self._started.done():  # mitmproxy leaves a start that failed to the end of the process
                await _proxyserver(master).servers.update([])
                await master.done()

    def _new_master(self, options: Options) -> Master:
        return DumpMaster(options, with_termlog=False, with_dumper=False)

    def _new_parser(self, options: Options) -> ArgumentParser:
        return cast(ArgumentParser, cmdline.mitmdump(options))

    def _stop(self) -> None:
        self._stopping = asyncio.ensure_future(self._stop_in_order())

    async def _stop_in_order(self) -> None:
        assert self._master is not None
        await _proxyserver(self._master).servers.update([])
        self._master.shutdown()


class InProcessWeb(InProcessProxy):
    """The same with mitmweb's master, which keeps flows. Its pages are at `web_url`."""

    def __init__(self, folder: Path, **options: Unpack[ProxyOptions]) -> None:
        self._web_port = unused_port()
        web = (f"web_port={self._web_port}", "web_open_browser=false", "web_password=secret")
        options["options"] = (*options.get("options", ()), *web)
        super().__init__(folder, **options)

    @property
    def master(self) -> Master:
        assert self._master is not None
        return self._master

    def web_url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._web_port}{path}?token=secret"

    def _new_master(self, options: Options) -> Master:
        return WebMaster(options, with_termlog=False)

    def _new_parser(self, options: Options) -> ArgumentParser:
        return cast(ArgumentParser, cmdline.mitmweb(options))


def _proxyserver(master: Master) -> Proxyserver:
    server = master.addons.get("proxyserver")
    assert isinstance(server, Proxyserver)
    return server


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have these variables only, and those of pytest, which changes them meanwhile."""
    replaced = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for name in replaced:
        del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(replaced)


@contextmanager
def _logging(output: Output) -> Iterator[None]:
    """Log to this output, at the levels that mitmdump sets, and leave no handler of mitmproxy behind."""
    root = logging.getLogger()
    levels = {logger: logger.level for logger in (root, *map(logging.getLogger, QUIET_LOGGERS))}
    handlers = list(root.handlers)
    for logger in levels:
        logger.setLevel(logging.WARNING)
    root.setLevel(logging.INFO)
    root.addHandler(_LogHandler(output))
    try:
        yield
    finally:
        root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def _restored(values: list[str]) -> Iterator[None]:
    before = list(values)
    try:
        yield
    finally:
        values[:] = before
