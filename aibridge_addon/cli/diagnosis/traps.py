"""Checks of an environment for known traps: values of variables with which requests go past the proxy, or fail."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from aibridge_addon.cli.diagnosis.check import Check, shown
from aibridge_addon.cli.environment import GATEWAY_NAMES, VARIABLES, past_the_proxy
from aibridge_addon.cli.roots import MAX_FILE, certificates, system_roots
from aibridge_addon.config.providers import Provider

ADDED = frozenset({"NODE_EXTRA_CA_CERTS", "CODEX_CA_CERTIFICATE", "DENO_CERT"})
"""Certificates of these files are trusted beside the program's own. Other variables replace them."""
CLAUDE_FOLDER = "CLAUDE_CONFIG_DIR"
"""The variable with the folder of Claude Code's settings. The default is `.claude` in the home folder."""
MANAGED = (
    Path("/etc/claude-code/managed-settings.json"),
    Path("/Library/Application Support/ClaudeCode/managed-settings.json"),
)
"""Claude Code's settings of a whole machine."""


def traps(environ: Mapping[str, str], home: Path, project: Path, providers: Iterable[Provider]) -> list[Check]:
    """Return what is wrong, or one check that says that nothing is.

    `project`: the folder in which programs are started, which may have settings of its own.
    """
    own = Path(environ.get(CLAUDE_FOLDER) or home / ".claude")
    places = [
        own / "settings.json",
        *(project / ".claude" / f"settings{kind}.json" for kind in ("", ".local")),
        *MANAGED,
    ]
    found = [*_proxy_urls(environ), *_files(environ), *_past(environ, providers)]
    found += [check for file in dict.fromkeys(places) for check in _claude_code(file)]
    return found or [Check("environment", True, "no known trap")]


def _proxy_urls(environ: Mapping[str, str]) -> list[Check]:
    names = [name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if name in environ]
    return [
        Check(name, False, "begins with https://, which many clients, such as Codex, cannot use", f"http:// in {name}")
        for name in names
        if environ[name].lower().startswith("https://")
    ]


def _files(environ: Mapping[str, str]) -> list[Check]:
    found: list[Check] = []
    roots: set[str] | None = None
    for name in (variable.name for variable in VARIABLES if variable.is_bundle):
        if not (value := environ.get(name)):
            continue
        try:
            with open(value, "rb") as file:
                content = file.read(MAX_FILE)
        except (OSError, ValueError) as e:
            reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
            found.append(Check(name, False, f"{shown(value)}: {reason}", f"`unset {name}`, or name a file in it"))
            continue
        if not (listed := certificates(content.decode(errors="replace"))):
            kind = "a certificate in DER form" if content[:1] == b"\x30" else "no list of certificates in PEM form"
            step = f"convert it: openssl x509 -inform der -in {shown(value)} -out ca.pem; name ca.pem in {name}"
            found.append(Check(name, False, f"{shown(value)} is {kind}", step))
        elif name not in ADDED:
            roots = {_key(each) for each in system_roots()} if roots is None else roots
            if roots.isdisjoint(map(_key, listed)):
                text = f"{shown(value)} lacks the system's roots, so all hosts but the proxy's are refused"
                found.append(Check(name, False, text, 'name a bundle with both: eval "$(aibridge env)"'))
    return found


def _key(certificate: str) -> str:
    return "".join(certificate.split())


def _past(environ: Mapping[str, str], providers: Iterable[Provider]) -> list[Check]:
    providers = list(providers)
    return [
        Check(
            name,
            False,
            f"contains {shown(entry)}, which covers a provider: its requests go past the proxy",
            f"remove {shown(entry)} from {name}",
        )
        for name in ("NO_PROXY", "no_proxy")
        for entry in past_the_proxy(environ.get(name, ""), providers)
    ]


def _claude_code(file: Path) -> list[Check]:
    """Check a settings file of Claude Code. Its `env` overrides the variables that Claude Code is started with."""
    try:
        found = json.loads(file.read_bytes()[:MAX_FILE])
        names = set(found["env"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []  # there is none, or it sets nothing
    ours = sorted(names & {*(variable.name for variable in VARIABLES), "ALL_PROXY", "HTTP_PROXY", *GATEWAY_NAMES})
    if not ours:
        return []
    step = f"remove them from `env` in {file}, unless they are meant to override `aibridge run` and `aibridge env`"
    return [Check("Claude Code's settings", True, f"{file} sets {', '.join(ours)}", step)]
