"""Measure whether the programs of this machine reach a provider through the proxy, and which variable they lack.

Each runtime sends one real request over TLS to a host that exists only as a provider of a private proxy. The proxy
forwards it to a server here, so whether it arrived is seen there and not guessed from exit codes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Protocol, Self

from aibridge_addon.cli.diagnosis.check import Check, shown
from aibridge_addon.cli.environment import JAVA_OPTIONS, JAVA_TRUST, java_proxy
from aibridge_addon.config.urls import is_address, is_host
from aibridge_addon.credentials.name_constraints import Limits

HOST = "aibridge-doctor.test"
"""RFC 6761: no such name is in the DNS."""
TIMEOUT = 30.0
"""Seconds for one request, with the start of the runtime."""

NODE = """
const tls = require("node:tls"), http = require("node:http"), url = new URL(process.argv[1])
const proxy = new URL(process.env.HTTPS_PROXY), place = url.hostname + ":443"
http.request({host: proxy.hostname, port: proxy.port, method: "CONNECT", path: place}).on("connect", (_, socket) => {
  const over = tls.connect({socket, servername: url.hostname}, () =>
    over.write(`GET ${url.pathname} HTTP/1.1\\r\\nHost: ${url.hostname}\\r\\nConnection: close\\r\\n\\r\\n`))
  over.on("data", () => {}).on("error", (e) => { console.error(e.code || e.message); process.exit(1) })
}).on("error", (e) => { console.error(e.message); process.exit(1) }).end()
"""
"""Node's `fetch` uses the variable only from Node 22.21 on; clients on older ones bring this along."""
BUN = """
await fetch(process.argv[process.argv.length - 1])
  .catch((e) => { console.error(e.code || e.message); process.exit(1) })
"""
PYTHON = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=20).read()"


@dataclass(frozen=True, slots=True)
class Runtime:
    name: str
    program: str
    arguments: tuple[str, ...]
    """`{url}` stands for the URL and `{folder}` for an empty folder, here and in `environ`."""
    variable: str
    """Names the file of certificates that it trusts."""
    option: str = ""
    """The option within the variable that does so. Empty: its whole value is the file's name."""
    environ: tuple[tuple[str, str], ...] = ()
    """More variables for the request."""
    elsewhere: bool = False
    """It is started in the empty folder: files of a project would change what it does."""

    def request(self, url: str, folder: str) -> tuple[list[str], dict[str, str]]:
        """Return the arguments and the variables of a request."""

        def filled(text: str) -> str:
            return text.replace("{url}", url).replace("{folder}", folder)

        return [filled(each) for each in self.arguments], {name: filled(value) for name, value in self.environ}


GO = (
    # The `go` command is itself a program in Go, so nothing has to be compiled for the request.
    ("GOPROXY", "{url}"),
    ("GONOPROXY", "none"),
    ("GOSUMDB", "off"),
    ("GOTOOLCHAIN", "local"),
    ("GOFLAGS", ""),
    ("GO111MODULE", "on"),
    ("GOWORK", "off"),
    ("GOENV", "off"),
    # It writes nothing to the user's folders.
    ("GOMODCACHE", "{folder}"),
    ("XDG_CONFIG_HOME", "{folder}"),
)
RUNTIMES = (
    Runtime("node", "node", ("-e", NODE, "{url}"), "NODE_EXTRA_CA_CERTS"),
    Runtime("bun", "bun", ("-e", BUN, "{url}"), "NODE_EXTRA_CA_CERTS"),
    Runtime("python3", "python3", ("-c", PYTHON, "{url}"), "SSL_CERT_FILE"),
    Runtime("curl", "curl", ("-sS", "--max-time", "20", "-o", os.devnull, "{url}"), "CURL_CA_BUNDLE"),
    Runtime("git", "git", ("-c", "credential.helper=", "ls-remote", "{url}"), "GIT_SSL_CAINFO"),
    Runtime("go", "go", ("list", "-m", "aibridge.test/doctor@v1.0.0"), "SSL_CERT_FILE", environ=GO, elsewhere=True),
    # Each installation of Java has keytool, which reads the URL with Java's own client. It needs no compiler.
    Runtime("java", "keytool", ("-printcrl", "-file", "{url}"), JAVA_OPTIONS, JAVA_TRUST),
)
ADVICE = (
    'start the program with `aibridge run -- CMD`, or: eval "$(aibridge env)" (only clients of the proxy need this;'
    " clients with a gateway URL do not)"
)


def host(limits: Limits | None) -> str:
    """Return a name that is nowhere, and for which the authority may sign."""
    names = [] if limits is None else [name for name in limits.permitted if is_host(name) and not is_address(name)]
    return f"{HOST.partition('.')[0]}.{names[0]}" if names else HOST


class Destination(Protocol):
    """Where requests go."""

    host: str

    def reached(self, path: str) -> bool:
        """Return whether a request for a path, or below it, has arrived."""


class Target:
    """The server that the requests reach. It remembers their paths."""

    def __init__(self, host: str = HOST) -> None:
        """`host`: the name under which the private proxy has it, for which the authority may sign."""
        self.host = host
        self._paths: set[str] = set()
        paths = self._paths

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                paths.add(self.path.partition("?")[0])
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="doctor's server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reached(self, path: str) -> bool:
        return any(each == path or each.startswith(f"{path}/") for each in self._paths)

    @property
    def configuration(self) -> str:
        """A configuration of the bridge in which this server is the only provider."""
        provider = f"{{name: doctor, type: openai, price_as: none, hosts: [{self.host}], base_url: '{self.url}'}}"
        return f"providers: [{provider}]\nmetrics: {{listen: null}}\n"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


def check_all(
    target: Destination,
    environ: Mapping[str, str],
    ours: Mapping[str, str],
    runtimes: Sequence[Runtime] = RUNTIMES,
    which: Callable[[str], str | None] = shutil.which,
) -> list[Check]:
    """Check the runtimes that are found.

    Args:
        environ: The user's environment.
        ours: The variables of `aibridge run` for the private proxy.
    """
    found = [(runtime, path) for runtime in runtimes if (path := which(runtime.program)) is not None]
    with ThreadPoolExecutor(len(RUNTIMES)) as pool:
        return list(pool.map(lambda each: _check(each[0], each[1], target, environ, ours), found))


def _check(
    runtime: Runtime, path: str, target: Destination, environ: Mapping[str, str], ours: Mapping[str, str]
) -> Check:
    name, variable = runtime.name, runtime.variable
    proxied = {**environ, **{each: ours[each] for each in ("HTTPS_PROXY", "https_proxy")}}
    if variable == JAVA_OPTIONS:  # it reads no other variable, so its proxy is an option, too
        proxied[variable] = java_proxy(ours["HTTPS_PROXY"], environ.get(variable, ""))
    reason = send(runtime, path, target, proxied, "as-it-is")
    if reason is None:
        return Check(name, True, f"{path} reaches a provider through the proxy, and trusts its certificate")
    missing = f"{runtime.option} in {variable}" if runtime.option else variable
    if send(runtime, path, target, {**proxied, variable: ours[variable]}, "one-variable") is None:
        before = environ.get(variable, "")
        is_there = runtime.option in before if runtime.option else bool(before)
        state = "names a file without the proxy's certificate" if is_there else "is missing"
        return Check(name, False, f"{path}: {reason}", f"{missing} {state}", ADVICE)
    if send(runtime, path, target, {**environ, **ours}, "all-variables") is None:
        return Check(name, False, f"{path}: {reason}", f"{missing} alone is not enough", ADVICE)
    past = [each for each in ("NO_PROXY", "no_proxy") if environ.get(each)]
    last = f"look at {' and '.join(past)}, and" if past else "look"
    return Check(name, False, f"{path}: {reason}", f"no variable helps: {last} at {name}'s own configuration")


def send(runtime: Runtime, path: str, target: Destination, environ: Mapping[str, str], attempt: str) -> str | None:
    """Send a request to `target`. Returns why it did not arrive; None: it did."""
    place = f"/v1/models/{runtime.name}-{attempt}"
    try:
        with tempfile.TemporaryDirectory(prefix="aibridge-doctor-") as folder:
            arguments, added = runtime.request(f"https://{target.host}{place}", folder)
            done = subprocess.run(  # noqa: S603 (a program of our table)
                [path, *arguments],
                env={**environ, **added, "GIT_TERMINAL_PROMPT": "0"},
                cwd=folder if runtime.elsewhere else None,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # Java's tools write errors to standard output
                timeout=TIMEOUT,
            )
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT:.0f} s"
    except OSError as e:
        return f"cannot be executed: {e.strerror}"
    if target.reached(place):
        return None
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("curl: (")] or lines[-1:]  # curl adds advice
    return shown(errors[0]) if errors else "the request did not reach the proxy"
