"""The mitmdump processes that are compared, and what they have used up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import psutil  # type: ignore[import-untyped]

from benchmarks import noop_addon
from tests.support.mitmdump import Mitmdump
from tests.support.running import ProxyOptions
from tests.support.serve import Serve

SETTLED_AFTER = 0.25
"""Seconds after the last answer in which a proxy writes what it may write later."""

# The line that mitmdump prints for each flow costs both sides the same, and would make ours look cheaper.
QUIET = ("flow_detail=0",)

# Defaults except for the base URLs and a free port for metrics.
CONFIG = """\
providers:
- {{name: anthropic, type: anthropic, base_url: '{upstream}'}}
- {{name: openai, type: openai, base_url: '{upstream}/v1'}}
metrics: {{listen: 127.0.0.1:0}}
"""
MCP = "    {name}: {{type: http, url: '{url}'}}\n"
CONNECTED_WITHIN = 30.0


@dataclass(frozen=True)
class Proxy:
    name: str
    mitmdump: Mitmdump
    process: psutil.Process

    @property
    def port(self) -> int:
        return self.mitmdump.port

    async def cpu_seconds(self) -> float:
        """User and system time of all its threads and workers, once what they still had to do is done."""
        await asyncio.sleep(SETTLED_AFTER)
        return self.cpu_now()

    def cpu_now(self) -> float:
        times = [each.cpu_times() for each in (self.process, *self.process.children())]
        return float(sum(each.user + each.system for each in times))

    def rss_bytes(self) -> int:
        """Of mitmdump, or of all workers and their supervisor."""
        return sum(int(each.memory_info().rss) for each in (self.process, *self.process.children()))

    def descriptors(self) -> int:
        return sum(int(each.num_fds()) for each in (self.process, *self.process.children()))


@dataclass(frozen=True)
class Proxies:
    bare: Proxy
    ours: Proxy

    def in_turn(self, round_number: int) -> tuple[Proxy, Proxy]:
        """Both, the other one first in every second round: a machine that drifts then favours none."""
        return (self.bare, self.ours) if round_number % 2 == 0 else (self.ours, self.bare)


@contextmanager
def with_tools(folder: Path, upstream_port: int, *mcp_urls: str) -> Iterator[Proxy]:
    """Ours once more, connected to MCP servers."""
    servers = {f"s{number}": url for number, url in enumerate(mcp_urls, 1)}
    config = CONFIG.format(upstream=f"http://127.0.0.1:{upstream_port}") + "mcp:\n  servers:\n"
    config += "".join(MCP.format(name=name, url=url) for name, url in servers.items())
    with _mitmdump(folder / f"tools-{len(servers)}", options=QUIET, config=config) as mitmdump:
        for name in servers:
            mitmdump.wait_for_log(f"MCP server {name}: connected", CONNECTED_WITHIN)
        yield _proxy("ours with tools", mitmdump)


@contextmanager
def running(folder: Path, upstream_port: int, upstream_ca: Path | None = None) -> Iterator[Proxies]:
    """Bare and ours side by side. With an authority, the upstream speaks TLS."""
    upstream = f"http{'' if upstream_ca is None else 's'}://127.0.0.1:{upstream_port}"
    script = Path(noop_addon.__file__)
    own = (*QUIET, f"benchmark_upstream={upstream}")
    bare = _mitmdump(folder / "bare", script=script, options=own, config=None, upstream_ca=upstream_ca)
    config = CONFIG.format(upstream=upstream)
    ours = _mitmdump(folder / "ours", options=QUIET, config=config, upstream_ca=upstream_ca)
    with bare, ours:
        yield Proxies(_proxy("bare", bare), _proxy("ours", ours))


@contextmanager
def serving(folder: Path, upstream_port: int, workers: int, more: str = "") -> Iterator[Proxy]:
    """Ours as `aibridge serve` runs it, with so many workers on uvloop. `more` is added to its configuration."""
    folder.mkdir()
    config = CONFIG.format(upstream=f"http://127.0.0.1:{upstream_port}") + more
    with Serve(folder, workers=workers, event_loop="uvloop", options=QUIET, config=config) as made:
        yield _proxy("ours" if workers > 1 else "one worker", made)


def _mitmdump(folder: Path, **options: Unpack[ProxyOptions]) -> Mitmdump:
    folder.mkdir()
    return Mitmdump(folder, **options)


def _proxy(name: str, mitmdump: Mitmdump) -> Proxy:
    return Proxy(name, mitmdump, psutil.Process(mitmdump.pid))
