"""A proxy for one program: what `aibridge run` and `aibridge doctor` start as a process of their own.

It listens on a free port of the loopback interface, and has no listener for metrics unless one is configured. The first
line of its standard input is a JSON list of mitmproxy's options (`name=value`); there they are in no list of processes.
When it is ready, it writes one line of JSON to standard output (`Ready`). When its standard input is closed, it drains
and ends, so it never outlives the command that started it. Its log goes to standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed has it for macOS only

from mitmproxy import ctx
from mitmproxy.connection import Server
from mitmproxy.hooks import ConfigureHook
from mitmproxy.http import HTTPFlow
from mitmproxy.options import CONF_BASENAME, Options
from mitmproxy.tools import cmdline
from mitmproxy.tools.dump import DumpMaster
from mitmproxy.tools.main import run

from aibridge_addon.addon import AIBridge
from aibridge_addon.proxy import password_file
from aibridge_addon.proxy.life import Life

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
ARGUMENTS = ("--listen-host", "127.0.0.1", "--listen-port", "0", "--set", "flow_detail=0")


class DirectHosts:
    """In upstream mode, hosts that NO_PROXY names and this machine itself are reached without the upstream proxy."""

    def requestheaders(self, flow: HTTPFlow) -> None:
        host, port = flow.request.host, flow.request.port
        if flow.server_conn.via is not None and (host in LOOPBACK or proxy_bypass_environment(f"{host}:{port}")):
            flow.server_conn = Server(address=(host, port))


class Announcement:
    """The last addon: once it is running, all others are."""

    def __init__(self, announce: Callable[[dict[str, Any]], None]) -> None:
        self._announce = announce

    def running(self) -> None:
        loop, life = asyncio.get_running_loop(), Life.of_master()
        if life.current is None:
            return  # its error is in the log, and mitmproxy ends
        threading.Thread(target=_end_with_input, args=(loop, life), name="standard input", daemon=True).start()
        servers = ctx.master.addons.get("proxyserver").servers
        self._announce(
            {
                "port": next(port for server in servers for _, port, *_ in server.listen_addrs),
                "ca": str(Path(ctx.options.confdir).expanduser() / f"{CONF_BASENAME}-ca-cert.pem"),
                "instance_id": life.current.instance_id,
            }
        )


def _end_with_input(loop: asyncio.AbstractEventLoop, life: Life) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    loop.call_soon_threadsafe(life.drain.begin)


def main() -> None:
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # mitmproxy logs to standard output
    given = [word for option in json.loads(sys.stdin.readline()) for word in ("--set", option)]
    if password_file.main(given) != 0:
        sys.exit(1)

    def announce(ready: dict[str, Any]) -> None:
        print(json.dumps(ready), file=output, flush=True)

    masters: list[DumpMaster] = []

    def made(options: Options) -> DumpMaster:
        masters.append(DumpMaster(options))
        return masters[0]

    def add_ours(_: Namespace) -> dict[str, Any]:
        # mitmproxy calls this after it has read all options. An earlier addon would start with only some of them.
        addons, addon = masters[0].addons, AIBridge(metrics_by_default=False)
        addons.add(addon, DirectHosts(), Announcement(announce))
        addons.invoke_addon_sync(addon, ConfigureHook(set(masters[0].options.keys())))
        return {}

    run(made, cmdline.mitmdump, [*ARGUMENTS, *given], add_ours)  # type: ignore[arg-type]  # a class, by its annotation


if __name__ == "__main__":
    main()
