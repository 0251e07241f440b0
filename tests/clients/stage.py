"""The proxies of the matrix, and a run of one case of one client."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]

from tests.clients import cases
from tests.clients.cases import CaseName, Way
from tests.clients.entry import Call, Client, filled
from tests.clients.installs import PROGRAMS
from tests.clients.provider import Provider
from tests.support.mcp_servers import HttpMcp
from tests.support.mitmdump import Mitmdump, make_mitmproxy_ca
from tests.support.polling import poll_until
from tests.support.upstream import ScriptedUpstream

MARK = "AIBRIDGE_CLIENTS_RUN"
"""An environment variable by which the processes of a run are found again, daemons included."""
GIVEN_BACK_WITHIN = 10.0
"""Seconds that an interrupted client has until it is killed."""
BEGUN_WITHIN = 45.0
REGION = "us-east-1"
BEDROCK = f"bedrock-runtime.{REGION}.amazonaws.com"
COPILOT = "api.githubcopilot.com, api.individual.githubcopilot.com, api.github.com"
"""GitHub's own host, too, is the scripted provider's here: there is no other to log in at."""


@dataclass(frozen=True)
class Ran:
    """How a client ended: `exit_code` is None for one that was ended by us."""

    exit_code: int | None
    output: str
    errors: str


class Stage:
    """The provider, an MCP server, and three proxies: with it, without it, and before a provider of WebSockets."""

    def __init__(self) -> None:
        self.provider = Provider()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        enter = self._stack.enter_context
        self.folder = Path(enter(tempfile.TemporaryDirectory(prefix="aibridge-clients-", ignore_cleanup_errors=True)))
        self.upstream = ScriptedUpstream(handler=self.provider.answer)
        self.upstream.start()
        self._stack.callback(self.upstream.stop)
        url = self.upstream.url
        sockets = f"http://localhost:{enter(self.provider.websockets())}"
        authority = self.folder / "authority"
        authority.mkdir()
        make_mitmproxy_ca(authority)
        self.ca = authority / "mitmproxy-ca-cert.pem"
        self.bundle = self.folder / "bundle.pem"
        roots = ssl.get_default_verify_paths().cafile or ""
        self.bundle.write_text((Path(roots).read_text() if roots else "") + self.ca.read_text())
        self.truststore = self.folder / "truststore.p12"
        if keytool := shutil.which("keytool"):
            options = ["-noprompt", "-alias", "ca", "-storetype", "PKCS12", "-storepass", "changeit"]
            files = ["-file", str(self.ca), "-keystore", str(self.truststore)]
            subprocess.run([keytool, "-importcert", *options, *files], check=True, capture_output=True)
        mcp = enter(HttpMcp())
        servers = f"mcp: {{servers: {{{cases.SERVER}: {{type: http, url: '{mcp.url}'}}}}}}\n"

        def proxy(name: str, config: str) -> Mitmdump:
            folder = self.folder / name
            folder.mkdir()
            return enter(Mitmdump(folder, config=config, mitmproxy_ca=authority))

        self.plain = proxy("plain", configuration(url, url))
        self.tools = proxy("tools", servers + configuration(url, url))
        self.sockets = proxy("sockets", configuration(url, sockets))

    def proxy_for(self, client: Client, case: CaseName) -> Mitmdump:
        if case == "injected":
            return self.tools
        return self.sockets if client.websockets else self.plain

    def run(self, client: Client, way: Way, case: CaseName, installed: Path) -> Ran:
        """Run the client through one case, to its end: nothing of it is left running.

        The provider's answer to a cancelled client stays where it is until `provider.gate` is opened.
        """
        proxy = self.proxy_for(client, case)
        home = Path(tempfile.mkdtemp(dir=self.folder))
        own = client.tool or Call(client.model)
        self.provider.begin(case, own.name, own.text)
        places = {
            "bin": str(installed / ("node_modules/.bin" if (installed / "node_modules").exists() else "bin")),
            "installed": str(installed),
            "programs": str(PROGRAMS),
            "url": proxy.proxy_url,
            "port": str(proxy.port),
            "ca": str(self.ca),
            "bundle": str(self.bundle),
            "truststore": str(self.truststore),
            "home": str(home),
            "prompt": cases.PROMPT,
            "case": case,
            "way": way,
        }
        for name in client.programs:
            shutil.copy(PROGRAMS / name, home)
            if not (home / "node_modules").exists():
                (home / "node_modules").symlink_to(installed / "node_modules")
        for name, text in client.files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(filled(text, places))
        env = {name: os.environ[name] for name in ("PATH", "LANG", "JAVA_HOME") if name in os.environ}
        env |= {"HOME": str(home), "TERM": "dumb", "NO_COLOR": "1", MARK: secrets.token_hex(8)}
        way_env = client.proxy if way == "proxy" else client.gateway
        if way == "proxy":
            env |= {"HTTPS_PROXY": proxy.proxy_url, "NO_PROXY": "127.0.0.1,localhost"}
        env |= {name: filled(value, places) for name, value in {**client.env, **way_env}.items()}
        arguments = client.proxy_arguments if way == "proxy" else client.gateway_arguments
        work = home / "work"
        work.mkdir(exist_ok=True)
        command = [filled(word, places) for word in (*client.command[:-1], *arguments, *client.command[-1:])]
        return self._run(command, env, work, client, interrupt=case == "cancelled" and client.interrupted)

    def _run(self, command: list[str], env: dict[str, str], work: Path, client: Client, *, interrupt: bool) -> Ran:
        output, errors = work.parent / "stdout", work.parent / "stderr"
        with output.open("wb") as out, errors.open("wb") as err, _ended(env[MARK]):
            try:
                process = subprocess.Popen(
                    command, cwd=work, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )
            except OSError as error:
                return Ran(127, "", str(error))
            code: int | None = None
            try:
                if interrupt:
                    self.provider.gate.wait_reached(min(BEGUN_WITHIN, client.time_limit))
                    os.killpg(process.pid, signal.SIGINT)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(GIVEN_BACK_WITHIN)
                else:
                    code = process.wait(client.time_limit)
            except (subprocess.TimeoutExpired, TimeoutError):
                pass
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        return Ran(code, output.read_text(errors="replace"), errors.read_text(errors="replace"))


def configuration(url: str, openai: str) -> str:
    return (
        "providers:\n"
        f"  - {{name: anthropic, type: anthropic, base_url: '{url}'}}\n"
        f"  - {{name: openai, type: openai, base_url: '{openai}/v1'}}\n"
        f"  - {{name: bedrock, type: bedrock, hosts: [{BEDROCK}], base_url: '{url}'}}\n"
        f"  - {{name: copilot, type: copilot, hosts: [{COPILOT}], base_url: '{url}'}}\n"
    )


@contextmanager
def _ended(mark: str) -> Iterator[None]:
    """Kill what is left of a run afterwards: each process by its id, found by its environment."""
    try:
        yield
    finally:
        poll_until(lambda: not [process.kill() for process in _marked(mark)], what="the end of a client's processes")


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found
