"""`aibridge serve`: several proxies on one port, so that every core works."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aibridge_addon.cli import database
from aibridge_addon.cli.examples import examples
from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.stop import AFTER_DRAIN

if TYPE_CHECKING:
    from aibridge_addon.config.schema import Settings
    from aibridge_addon.proxy.workers.supervisor import Supervisor

logger = logging.getLogger(__name__)

# Other modules of ours are imported when they are needed: `--help` does not wait for them.

DESCRIPTION = """Run several mitmdump processes with AI Bridge on one port. Each has its own event loop on its own core.
A process that ends is started again. SIGHUP has them reload the configuration, one by one; SIGTERM and Ctrl-C have
them finish the answers under way. Everything that is not listed here is an option of mitmdump."""
EXAMPLES = examples(
    "aibridge serve",
    "aibridge serve --workers 4 --config aibridge.yaml --listen-host 0.0.0.0",
    "aibridge serve --workers 2 --set aibridge_metrics=127.0.0.1:9465",
)
MAX_WORKERS = 256
SCRIPT = Path(__file__).parent.parent / "main.py"
METRICS = "aibridge_metrics"
"""mitmproxy's option of the address for metrics."""
CONFIG_FILE = "config.yaml"
"""mitmproxy's own file of options, in its folder."""
LONGEST_STOP = 3600.0
"""Seconds for a stop while the configuration cannot be read."""
ONE_PROCESS = ("local", "wireguard", "tun", "dns")
"""Modes of mitmproxy that take more than connections of TCP ports."""


def add(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="run several proxies on one port",
        description=DESCRIPTION,
        usage="aibridge serve [--workers N] [--config FILE]\n"
        "       [--event-loop auto|uvloop|asyncio] [options of mitmdump]",
        allow_abbrev=False,
        **EXAMPLES,
    )
    command.add_argument(
        "--workers", type=_number_of_workers, metavar="N", help=f"processes, up to {MAX_WORKERS} (default: the cores)"
    )
    command.add_argument(
        "--event-loop",
        choices=("auto", "uvloop", "asyncio"),
        default="auto",
        help="uvloop needs less CPU; auto takes it where it is installed (default: auto)",
    )
    command.add_argument(
        "--config", metavar="FILE", default="", help="the configuration file; AIBRIDGE_CONFIG names it, too"
    )
    command.rest = "options"
    command.set_defaults(run=run)


def _number_of_workers(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"a number from 1 to {MAX_WORKERS}")
    return number


def run(arguments: argparse.Namespace) -> int:
    if not hasattr(socket, "send_fds"):
        print("aibridge serve needs Unix: on this system, run mitmdump -s aibridge_addon/main.py", file=sys.stderr)
        return 1
    from aibridge_addon.proxy import password_file

    options = list(arguments.options)
    if arguments.config:
        options += ["--set", f"aibridge_config={arguments.config}"]
    if password_file.main(options) != 0:
        return 1
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    if arguments.event_loop == "uvloop" and not has_uvloop:
        raise ConfigError([Problem("--event-loop", "uvloop", "auto, or uvloop installed: pip install uvloop")])
    given = Given(options)
    settings = given.settings()
    _log_to_stdout(settings)
    return asyncio.run(_serve(given, settings, arguments.workers, has_uvloop and arguments.event_loop != "asyncio"))


class Given:
    """What is known of mitmdump's options before it reads them."""

    def __init__(self, options: Sequence[str]) -> None:
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--listen-port", "-p")
        parser.add_argument("--mode", "-m", action="append", default=[])
        parser.add_argument("--scripts", "-s", action="append", default=[])
        parser.add_argument("--set", action="append", default=[])
        known, _ = parser.parse_known_args(list(options))
        pairs = [entry.partition("=") for entry in known.set]
        self._options = options
        self._set = {name: value for name, _, value in pairs}
        self._port = known.listen_port or self._set.get("listen_port")
        self._modes = known.mode + [value for name, _, value in pairs if name == "mode"]
        self._scripts = known.scripts + [value for name, _, value in pairs if name == "scripts"]

    def for_workers(self, workers: int, *, metrics: bool) -> Sequence[str]:
        """Return the options of each worker. Raises ConfigError: they are for one process alone.

        `metrics`: whether workers have an endpoint, at addresses of their own behind that of the supervisor.
        """
        for mode in self._modes:
            kind = mode.partition("@")[0].partition(":")[0]
            if workers > 1 and (
                kind in ONE_PROCESS
                or mode.startswith(("reverse:dns", "reverse:udp", "reverse:http3", "reverse:quic", "reverse:dtls"))
            ):
                raise ConfigError([Problem("--mode", mode, "a mode of TCP connections, or --workers 1")])
        options, added = list(self._options), list[str]()
        if metrics:
            options, added = without(METRICS, options), ["--set", f"{METRICS}=127.0.0.1:0"]
        if not any(Path(script).resolve() == SCRIPT for script in self._scripts):
            options = ["-s", str(SCRIPT), *options]
        if self._port == "0":  # each worker would choose its own
            with closing(socket.create_server(("", 0))) as free:
                added += ["--listen-port", str(free.getsockname()[1])]
        return [*options, *added]

    def settings(self) -> Settings:
        """Return the configuration. Raises ConfigError."""
        from aibridge_addon.config.load import load

        options = {**self._of_mitmproxy(), **self._set}
        path = options.get("aibridge_config") or os.environ.get(database.CONFIG_VARIABLE, "")
        return load(
            Path(path) if path else None,
            environ=os.environ,
            database=options.get("aibridge_database") or None,
            metrics=options.get(METRICS) or None,
        )

    def stopped_within(self) -> float:
        """Return the seconds that a stop may take, with the configuration as it is now."""
        try:
            return self.settings().drain_timeout + AFTER_DRAIN
        except ConfigError:
            return LONGEST_STOP

    def _of_mitmproxy(self) -> Mapping[str, str]:
        """Return options of ours in mitmproxy's own file."""
        from aibridge_addon.config.source import read_yaml

        path = Path(self._set.get("confdir", "~/.mitmproxy")).expanduser() / CONFIG_FILE
        if not path.is_file():
            return {}
        return {name: value for name, value in read_yaml(path).items() if isinstance(value, str)}


def without(option: str, words: Sequence[str]) -> list[str]:
    """Return the words without `--set OPTION=…`: mitmproxy takes no second value."""
    kept = list[str]()
    for word in words:
        if word.startswith((f"--set={option}=", f"{option}=")):
            if not word.startswith("--") and kept[-1:] == ["--set"]:
                kept.pop()
            elif not word.startswith("--"):
                kept.append(word)
        else:
            kept.append(word)
    return kept


def _log_to_stdout(settings: Settings) -> None:
    from aibridge_addon.telemetry.log.formatters import JsonFormatter, TextFormatter

    plain = logging.Formatter("[%(asctime)s.%(msecs)03d] aibridge serve: %(message)s", "%H:%M:%S")
    handler = logging.StreamHandler(sys.stdout)
    is_json = settings.log.format == "json"
    handler.setFormatter(JsonFormatter(plain) if is_json else TextFormatter(plain, width=lambda: None, colour=False))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


async def _serve(given: Given, settings: Settings, workers: int | None, uvloop: bool) -> int:
    from aibridge_addon.proxy.workers.endpoint import Endpoint
    from aibridge_addon.proxy.workers.supervisor import Supervisor, cores, worker_command

    number = workers or cores()
    options = given.for_workers(number, metrics=settings.metrics.listen is not None)

    def metrics_at() -> str:
        return "" if endpoint is None else endpoint.address

    command = worker_command(options, uvloop=uvloop, metrics_at=metrics_at)
    supervisor = Supervisor(command, number, stopped_within=given.stopped_within)
    loop = asyncio.get_running_loop()
    endpoint = Endpoint(supervisor, settings.metrics, loop) if settings.metrics.listen is not None else None
    _take_signals(supervisor, loop)
    if endpoint is not None:
        endpoint.start()
    logger.info("workers: %d, metrics on %s", number, metrics_at() or "no port")
    try:
        return await supervisor.run()
    finally:
        supervisor.kill()
        if endpoint is not None:
            endpoint.stop()


def _take_signals(supervisor: Supervisor, loop: asyncio.AbstractEventLoop) -> None:
    from aibridge_addon.proxy.terminals import Terminals

    terminals = Terminals()

    def hang_up() -> None:
        if terminals.are_open:
            supervisor.reload()
        else:
            supervisor.stop()

    loop.add_signal_handler(signal.SIGTERM, supervisor.stop)
    loop.add_signal_handler(signal.SIGINT, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
