"""What tests read of a running proxy, whether it runs in a process of its own or in the test's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from tests.support import database
from tests.support.database import Row, Table
from tests.support.polling import poll_until

ADDON = Path(__file__).parents[2] / "aibridge_addon" / "main.py"
CA_BASENAME = "mitmproxy"
LOG_TAIL_LINES = 80
TRACEBACK = "Traceback (most recent call last)"

# Proxies that run side by side cannot share the default port.
NO_METRICS = "metrics: {listen: null}\n"

INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_DIR", "AIBRIDGE_ORDINARY_WAY")
"""Environment variables that a proxy has from the tests' own environment."""

_METRICS_SECTION = re.compile(r"^metrics\s*:", re.MULTILINE)


class ProxyOptions(TypedDict, total=False):
    config: str | None  # YAML; metrics are off unless it says otherwise; None: no configuration at all
    mode: Sequence[str]  # such as ["reverse:https://localhost:1234"]; a second one must name its port
    options: Sequence[str]  # each is given as `--set option`; unknown ones are no error to mitmproxy
    arguments: Sequence[str]  # further arguments, as they are
    env: Mapping[str, str]  # on top of a nearly empty environment
    upstream_ca: Path | None  # the authority that upstream servers are verified with
    mitmproxy_ca: Path | None  # a folder from `make_mitmproxy_ca`; None: mitmproxy makes its own
    script: Path | None  # None: no addon


class Exit(NamedTuple):
    code: int
    output: str


class StartFailedError(Exception):
    """mitmproxy ended before it listened."""

    def __init__(self, ended: Exit) -> None:
        super().__init__(f"mitmproxy ended with code {ended.code} before it listened:\n{ended.output}")
        self.exit = ended


class RunningProxy:
    """A proxy in a folder of its own, which has its configuration, its database and its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.confdir = folder / "conf"
        self.database = folder / "aibridge.db"
        self.ports: list[int] = []

    @property
    def port(self) -> int:
        """The port of the first mode; `ports` has those of all modes, in the order of the log."""
        return self.ports[0]

    @property
    def proxy_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        return self.confdir / f"{CA_BASENAME}-ca-cert.pem"

    @property
    def log(self) -> str:
        """All of the log so far."""
        raise NotImplementedError

    @property
    def log_tail(self) -> str:
        return "\n".join(self.log.splitlines()[-LOG_TAIL_LINES:])

    @property
    def has_traceback(self) -> bool:
        return TRACEBACK in self.log

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


def arguments_for(folder: Path, confdir: Path, options: ProxyOptions) -> list[str]:
    """Write the configuration file, and return mitmdump's arguments without the scripts."""
    settings = [f"confdir={confdir}"]
    upstream_ca = options.get("upstream_ca")
    if upstream_ca is not None:
        settings.append(f"ssl_verify_upstream_trusted_ca={upstream_ca}")
    config = options.get("config")
    if options.get("script", ADDON) is not None and config is not None:
        file = folder / "aibridge.yaml"
        file.write_text(config)
        settings.append(f"aibridge_config={file}")
    arguments = ["--listen-host", "127.0.0.1", "--listen-port", "0"]
    for mode in options.get("mode", ()):
        arguments += ["--mode", mode]
    for setting in (*settings, *options.get("options", ())):
        arguments += ["--set", setting]
    return arguments


def environment_for(folder: Path, options: ProxyOptions) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**inherited, "HOME": str(folder), **options.get("env", {})}


def without_metrics(config: str | None) -> str | None:
    """Switch metrics off in a configuration that says nothing about them."""
    if config is None or _METRICS_SECTION.search(config):
        return config
    return f"{config.rstrip()}\n{NO_METRICS}".lstrip()
