"""The variables that make programs use the proxy and trust its certificate authority: THE table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from aibridge_addon.config.providers import Provider

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NAMES_OF_PROXY = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
"""Variables that name a proxy for HTTPS, the one that counts first: as curl and Python read them."""


@dataclass(frozen=True, slots=True)
class Route:
    """What a program needs to reach its provider through the proxy."""

    proxy: str
    """The proxy's URL."""
    bundle: Path
    """A PEM file with the system's roots and the proxy's certificate authority."""

    @property
    def trust_store(self) -> Path:
        """The same certificates in a file of PKCS #12, as Java reads them."""
        return self.bundle.with_suffix(".p12")


Value = Callable[[Route, str], str]
"""Make a variable's value from the route and from the value that the environment has of it."""


def _proxy(route: Route, _: str) -> str:
    return route.proxy


def _bundle(route: Route, _: str) -> str:
    return str(route.bundle)


def _no_proxy(_: Route, before: str) -> str:
    """Add the loopback names, since programs talk to daemons of their own there."""
    names = [name.strip() for name in before.split(",") if name.strip()]
    return ",".join([*names, *(name for name in LOOPBACK if name not in names)])


def _on(_: Route, __: str) -> str:
    return "1"


JAVA_OPTIONS = "JAVA_TOOL_OPTIONS"
JAVA_TRUST = "-Djavax.net.ssl.trustStore"


def _java(route: Route, before: str) -> str:
    """Add the proxy and the certificates. Of an option that is there twice, the last one counts."""
    trust = (f"{JAVA_TRUST}={route.trust_store}", f"{JAVA_TRUST}Type=PKCS12")
    return " ".join([java_proxy(route.proxy, before), *map(_quoted, trust)])


def java_proxy(proxy: str, before: str) -> str:
    """Return options with which Java's own clients use the proxy, and no certificates."""
    parts = urlsplit(proxy)
    return f"{before} -Dhttps.proxyHost={parts.hostname} -Dhttps.proxyPort={parts.port or 80}".strip()


def _quoted(option: str) -> str:
    """Quote an option with spaces or quotes (JVM Tool Interface, "JAVA_TOOL_OPTIONS")."""
    mark = "'" if '"' in option else '"'
    return f"{mark}{option}{mark}" if {" ", "'", '"'} & {*option} else option


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    value: Value
    used_by: str

    @property
    def is_bundle(self) -> bool:
        return self.value is _bundle


VARIABLES = (
    Variable("HTTPS_PROXY", _proxy, "nearly all programs"),
    Variable("https_proxy", _proxy, "programs that read only this spelling"),
    Variable("NO_PROXY", _no_proxy, "nearly all programs"),
    Variable("no_proxy", _no_proxy, "programs that read only this spelling"),
    Variable("NODE_USE_ENV_PROXY", _on, "`fetch` of Node 22.21, 24 and later"),
    Variable("NODE_EXTRA_CA_CERTS", _bundle, "Node, Bun, npm, Claude Code, Copilot CLI, OpenCode, Cline"),
    Variable("SSL_CERT_FILE", _bundle, "OpenSSL, Python (httpx, aiohttp), Go, Rust, uv, Codex"),
    Variable("REQUESTS_CA_BUNDLE", _bundle, "Python's requests, pip"),
    Variable("PIP_CERT", _bundle, "pip"),
    Variable("CURL_CA_BUNDLE", _bundle, "curl"),
    Variable("AWS_CA_BUNDLE", _bundle, "boto3, AWS CLI"),
    Variable("CODEX_CA_CERTIFICATE", _bundle, "Codex"),
    Variable("GIT_SSL_CAINFO", _bundle, "git"),
    Variable("NPM_CONFIG_CAFILE", _bundle, "npm with a `cafile` in its configuration"),
    Variable("CARGO_HTTP_CAINFO", _bundle, "cargo"),
    Variable("DENO_CERT", _bundle, "Deno"),
    Variable("NIX_SSL_CERT_FILE", _bundle, "programs of Nix"),
    Variable(JAVA_OPTIONS, _java, "Java"),
)


def variables(route: Route, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for programs that use the proxy, on top of an environment."""
    return {variable.name: variable.value(route, environ.get(variable.name, "")) for variable in VARIABLES}


def bundle_files(environ: Mapping[str, str]) -> list[Path]:
    """Return the files of trusted certificates that an environment names already."""
    names = (environ.get(variable.name, "") for variable in VARIABLES if variable.is_bundle)
    return [Path(name) for name in dict.fromkeys(filter(None, names))]


def past_the_proxy(no_proxy: str, providers: Iterable[Provider]) -> list[str]:
    """Return the entries of NO_PROXY that a provider's host matches: its requests do not reach the proxy."""
    hosts = [host for provider in providers for host in provider.hosts]
    entries = [entry.strip().lower() for entry in no_proxy.split(",") if entry.strip()]
    return [entry for entry in entries if any(_covers(entry, host) for host in hosts)]


def _covers(entry: str, host: str) -> bool:
    """Return whether an entry of NO_PROXY covers a host, whose labels may be `*`."""
    name = entry.partition(":")[0].removeprefix("*").removeprefix(".")
    if entry == "*":
        return True
    return bool(name) and (host == name or host.endswith(f".{name}") or ("*" in host and fnmatchcase(name, host)))


# --- gateway ---------------------------------------------------------------------------------------------------------


def gateway_variables(url: str, providers: Iterable[Provider]) -> dict[str, str]:
    """Return the base URLs of the first provider of each type that clients take from the environment.

    `url`: the bridge's, without a path.
    """
    found: dict[str, str] = {}
    for provider in providers:
        base = f"{url.rstrip('/')}/{provider.name}"
        match provider.type:
            case "anthropic":
                found.setdefault("ANTHROPIC_BASE_URL", base)
            case "openai":
                found.setdefault("OPENAI_BASE_URL", f"{base}/v1")
                found.setdefault("OPENAI_API_BASE", f"{base}/v1")
    return found


GATEWAY_NAMES = ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_BASE")
"""All variables that `gateway_variables` may return."""
