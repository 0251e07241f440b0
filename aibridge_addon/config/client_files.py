"""Files in which other MCP clients name their servers: `.mcp.json` and its relatives.

    root(content) ─▶ the servers' entries, and which of them the file bans
    own_entry(entry) ─▶ the same entry under the keys of our own `mcp.servers`, and what was not understood

The spellings are those of Claude Code and Desktop, VS Code, Cursor, Windsurf, Cline, Roo, Kiro, Gemini CLI, Copilot
CLI, opencode, Codex, Zed, Amp, LangChain and Hermes. A ban of a server or a tool must never be lost: one that cannot be
read costs the entry.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from aibridge_addon.config.errors import Location, describe

NOTHING_MATCHES = r"(?!)"
ROOTS: tuple[tuple[str, ...], ...] = (
    ("mcpServers",),
    ("servers",),  # VS Code's mcp.json
    ("mcp", "servers"),  # VS Code's settings.json, opencode 2
    ("mcp_servers",),
    ("context_servers",),  # Zed
    ("amp.mcpServers",),
    ("mcp",),  # opencode
)
BANNED_SERVERS = (
    "disabledServers",
    "disabledMcpServers",
    "disabledMcpjsonServers",
    "excludeMCPServers",
    "excludedMcpServers",
    "deniedMcpServers",
)
ALLOWED_SERVERS = ("enabledMcpjsonServers", "allowMCPServers", "allowedMcpServers", "enabledServers")
SAME = MappingProxyType(
    {
        "url": ("serverUrl", "serverURL", "httpUrl", "httpURL", "server_url", "http_url", "uri", "endpoint"),
        "type": ("transport", "transportType", "transport_type"),
        "headers": ("http_headers", "httpHeaders"),
        "headers_command": ("headersHelper", "headers_helper", "headersCommand"),
        "args": ("arguments",),
        "env": ("environment", "environmentVariables"),
        "cwd": ("workingDirectory", "working_directory", "workdir"),
    }
)
"""Our key, and other clients' words for it."""
TYPES = MappingProxyType(
    {
        "http": (
            *("http", "https", "streamablehttp", "streamable", "httpstream", "streaminghttp", "httpstreamable"),
            *("remote", "httpfirst"),
        ),
        "sse": ("sse", "serversentevents", "httpsse"),
        "stdio": ("stdio", "local", "command", "custom", "process"),
    }
)
OFF = ("disabled", "isDisabled", "is_disabled")
ON = ("enabled", "isActive", "is_active", "active", "isEnabled", "is_enabled")
TOOLS_OFF = (
    *("disabledTools", "disabled_tools", "excludeTools", "exclude_tools", "excludedTools", "excluded_tools"),
    *("blockedTools", "blocked_tools", "deniedTools", "denied_tools", "denyTools", "deny_tools", "disallowedTools"),
    *("disallowed_tools", "toolsDenylist", "toolDenylist", "hiddenTools", "hidden_tools", "bannedTools"),
)
TOOLS_ON = (
    *("includeTools", "include_tools", "includedTools", "included_tools", "enabledTools", "enabled_tools"),
    *("allowedTools", "allowed_tools", "allowTools", "allow_tools", "toolsAllowlist", "toolAllowlist", "onlyTools"),
)
SECONDS = MappingProxyType(
    {
        "tool_timeout": (
            *("timeout", "toolTimeout", "toolCallTimeout", "requestTimeout", "tool_timeout_sec", "tool_timeout_ms"),
            *("timeoutMs", "timeout_ms", "timeoutSeconds", "timeout_seconds", "timeoutSec", "timeout_sec"),
        ),
        "startup_timeout": (
            *("startup_timeout_sec", "startup_timeout_ms", "startupTimeout", "connectTimeout", "connect_timeout"),
            *("initTimeout", "init_timeout", "startupTimeoutMs", "connectionTimeout", "initializationTimeout"),
        ),
    }
)
LONGEST_IN_SECONDS = 3600
"""A timeout without a unit above this is in milliseconds. Clients that count in seconds allow up to an hour."""
SILENT = frozenset(
    (
        *("name", "title", "description", "displayName", "display_name", "icon", "icons", "logo", "logoUrl", "tags"),
        *("version", "gallery", "provider", "providerUrl", "homepage", "registryUrl", "id", "source", "$schema"),
        *("trust", "autoApprove", "autoapprove", "auto_approve", "alwaysAllow", "always_allow", "alwaysLoad"),
        *("dev", "sortIndex", "installSource", "longRunning", "supports_parallel_tool_calls", "settings", "note"),
        *("default_tools_approval_mode", "comment", "_comment", "//"),
    )
)
"""Keys that change nothing for us: descriptions, and which calls a client's user is asked about."""


class Refused(Exception):
    """An entry that cannot be used."""

    def __init__(self, key: Location, found: str, expected: str) -> None:
        super().__init__(found)
        self.key = key
        self.found = found
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Root:
    """The servers of a file."""

    at: Location
    """Where their entries are."""
    entries: Mapping[str, Any]
    banned: Callable[[str], bool]
    """Return whether the file turns a server off outside its entry."""
    tools: Mapping[str, Any]
    """opencode's switches of tools: patterns of SERVER_TOOL."""


def root(content: Any) -> Root | None:
    """Find the servers of a file. None: it names none."""
    if not isinstance(content, dict):
        return None
    for at in ROOTS:
        found = _at(content, at)
        if isinstance(found, list) and found and all(isinstance(each, dict) and "name" in each for each in found):
            found = {str(each["name"]): each for each in found}
        if isinstance(found, dict):
            return Root(at, found, _bans(content), _as_dict(content.get("tools")))
    if content and all(isinstance(entry, dict) and _is_entry(entry) for entry in content.values()):
        return Root((), content, lambda _: False, {})
    return None


def _at(content: dict[str, Any], at: tuple[str, ...]) -> Any:
    found: Any = content
    for key in at:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _is_entry(entry: Mapping[str, Any]) -> bool:
    return bool({"command", "url", *SAME["url"]} & entry.keys())


def _bans(content: Mapping[str, Any]) -> Callable[[str], bool]:
    mcp = _as_dict(content.get("mcp"))
    banned = [name for key in BANNED_SERVERS for name in _names(content.get(key))]
    banned += [name for key in ("excluded", "disabled") for name in _names(mcp.get(key))]  # Gemini's `mcp.excluded`
    lists = [content[key] for key in ALLOWED_SERVERS if key in content]
    lists += [mcp["allowed"]] if isinstance(mcp.get("allowed"), list) else []
    allowed = [name for each in lists for name in _names(each)]
    return lambda name: name in banned or (bool(lists) and name not in allowed)


def _names(value: Any) -> list[str]:
    """Return the names in a list. Claude Code's lists for administrators have them in objects."""
    items = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    names = (item.get("serverName") if isinstance(item, dict) else item for item in items)
    return [name for name in names if isinstance(name, str)]


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# --- an entry -------------------------------------------------------------------------------------------------------


def is_off(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry is turned off.

    Raises:
        Refused: a switch is neither on nor off.
    """
    options = _as_dict(entry.get("options"))
    switches: list[tuple[Location, Any]] = [((key,), entry[key]) for key in (*OFF, *ON) if key in entry]
    switches += [(("options", key), options[key]) for key in (*OFF, *ON) if key in options]
    found = [_switch(value, at) is (at[-1] in OFF) for at, value in switches]  # each is checked
    return any(found)


def _switch(value: Any, at: Location) -> bool | None:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and "${" in value:
        return None  # not known before variables are filled in
    raise Refused(at, describe(value, hidden=True), "true or false")


def own_entry(
    name: str, entry: Mapping[str, Any], known: Collection[str], root: Root
) -> tuple[dict[str, Any], list[str]]:
    """Return an entry under our own keys, and the keys that were not understood.

    `known`: the keys of our own entries.

    Raises:
        Refused: it cannot be used.
    """
    rest = {key: value for key, value in entry.items() if key not in SILENT and key not in (*OFF, *ON)}
    made: dict[str, Any] = {}
    for key, words in SAME.items():
        given = [rest.pop(word) for word in (key, *words) if word in rest]
        if given:
            made[key] = given[0]
    if (word := next((word for word in ("httpUrl", "httpURL") if word in entry), None)) is not None:
        made |= {"url": entry[word], "type": made.get("type", "http")}  # Gemini: it wins over `url`
    is_opencode = root.at[0:1] == ("mcp",) and made.get("type") in ("local", "remote")
    if "type" in made:
        made["type"] = _type(made["type"])
    if is_opencode and "timeout" in rest:  # of the list of tools, not of their calls
        rest["startup_timeout_ms"] = rest.pop("timeout")
    _read_command(made, rest)
    _read_headers(made, rest)
    _read_oauth(made, rest)
    for key in ("env", "headers"):
        if isinstance(made.get(key), dict):
            made[key] = {each: _text(value) for each, value in made[key].items() if value is not None}
    for key, words in SECONDS.items():
        for word in (key, *words):
            if word in rest and (seconds := _seconds(word, rest.pop(word))) is not None:
                made.setdefault(key, seconds)
    _read_tools(name, made, rest, root.tools)
    made |= {key: rest.pop(key) for key in list(rest) if key in known}
    rest.pop("options", None)
    return made, sorted(rest)


def _type(given: Any) -> str:
    word = re.sub(r"[^a-z]", "", given.lower()) if isinstance(given, str) else ""
    for kind, words in TYPES.items():
        if word in words:
            return kind
    raise Refused(("type",), describe(given, hidden=False), "stdio, http (streamable HTTP) or sse")


def _read_command(made: dict[str, Any], rest: dict[str, Any]) -> None:
    command = rest.pop("command", None)
    if isinstance(command, dict):  # Zed: {path, args, env}
        made |= {key: command[key] for key in ("args", "env") if key in command}
        command = command.get("path", command.get("command"))
    if isinstance(command, list):  # opencode: the program and its arguments
        made["args"] = [*command[1:], *(made.get("args") or ())]
        command = command[0] if command else None
    if command is not None:
        made["command"] = command
    if isinstance(made.get("args"), list):
        made["args"] = [_text(each) for each in made["args"]]


def _read_headers(made: dict[str, Any], rest: dict[str, Any]) -> None:
    nested = _as_dict(rest.pop("requestInit", None)).get("headers")
    if isinstance(nested, dict):
        made["headers"] = {**nested, **_as_dict(made.get("headers"))}
    if isinstance(token := rest.pop("bearerToken", rest.pop("bearer_token", None)), str):
        made["headers"] = {"Authorization": f"Bearer {token}", **_as_dict(made.get("headers"))}


def _read_oauth(made: dict[str, Any], rest: dict[str, Any]) -> None:
    """Read how people log in. Where a client listens itself, and which endpoints it uses, is found out instead."""
    given = rest.get("oauth")
    if "url" not in made or not isinstance(given, dict | bool):
        return
    del rest["oauth"]
    if given is False or (isinstance(given, dict) and given.get("enabled") is False):
        return
    words = {key.replace("_", "").lower(): value for key, value in (given if isinstance(given, dict) else {}).items()}
    found = {
        "client_id": words.get("clientid"),
        "client_secret": words.get("clientsecret"),
        "scopes": words.get("scopes", words.get("scope")),
    }
    made["oauth"] = {key: value for key, value in found.items() if value is not None}


def _text(value: Any) -> Any:
    """Return numbers and booleans, which people write without quotes, as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _seconds(word: str, value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not 0 < number < float("inf"):
        return None
    in_ms = word.lower().endswith("ms")
    in_seconds = word.lower().endswith(("sec", "seconds"))
    own = word in SECONDS
    if in_ms or (number > LONGEST_IN_SECONDS and not in_seconds and not own):
        number /= 1000
    return min(number, 86_400.0)


# --- variables ------------------------------------------------------------------------------------------------------

_FOREIGN = re.compile(
    r"""
    \$\{ env: (?P<env> [A-Za-z_][A-Za-z0-9_]* (?: :-[^}]* )? ) \}     # VS Code, Cursor
  | (?<!\$) \{ env: (?P<opencode> [A-Za-z_][A-Za-z0-9_]* ) \}
  | \$\{ (?P<place> workspaceFolder | workspaceRoot | workspaceFolderBasename | userHome | pathSeparator | / ) \}
  | (?P<asked> \$\{ (?: input | command | config | secret | prompt | promptString | op ) : [^}]* \} )
  | (?<!\$) (?P<file> \{ file: [^}]* \} )
    """,
    re.VERBOSE,
)
_PLAIN = re.compile(r"((?:Bearer )?)\$([A-Za-z_][A-Za-z0-9_]*)")


def own_variables(value: Any, places: Mapping[str, str], environ: Collection[str], at: Location = ()) -> Any:
    """Return an entry whose references to variables are spelled as ours: `${VAR}`.

    `places`: what `${workspaceFolder}` and the like stand for.

    Raises:
        Refused: it refers to what only its client has.
    """

    def respelled(match: re.Match[str]) -> str:
        if name := match["env"] or match["opencode"]:
            return f"${{{name}}}"
        if match["place"]:
            return places[match["place"]].replace("${", "$${")
        raise Refused(
            at, f"{match[0][:60]}, which only another client can fill in", "${VAR}, a variable of the environment"
        )

    match value:
        case dict():
            return {key: own_variables(item, places, environ, (*at, key)) for key, item in value.items()}
        case list():
            return [own_variables(item, places, environ, (*at, index)) for index, item in enumerate(value)]
        case str():
            plain = _PLAIN.fullmatch(value)  # Gemini
            if plain is not None and plain[2] in environ:
                return f"{plain[1]}${{{plain[2]}}}"
            return _FOREIGN.sub(respelled, value)
        case _:
            return value


# --- which tools ----------------------------------------------------------------------------------------------------


def _read_tools(name: str, made: dict[str, Any], rest: dict[str, Any], switches: Mapping[str, Any]) -> None:
    """Turn lists of tools into our `allow` and `deny`."""
    given = {key: value for key in (*TOOLS_OFF, *TOOLS_ON) if (value := rest.pop(key, None)) is not None}
    deny = [pattern for key in TOOLS_OFF if key in given for pattern in _patterns(name, (key,), given[key])]
    allows = [_patterns(name, (key,), given[key]) for key in TOOLS_ON if key in given]
    tools = rest.pop("tools", None)
    if isinstance(tools, dict) and ("include" in tools or "exclude" in tools):  # Hermes
        deny += _patterns(name, ("tools", "exclude"), tools.get("exclude") or [])
        allows += [_patterns(name, ("tools", "include"), tools["include"])] if tools.get("include") is not None else []
    elif isinstance(tools, dict):
        deny += [_pattern(name, tool) for tool, value in tools.items() if _is_off(value)]
    elif tools is not None:  # Copilot: an empty list means none
        allows.append(_patterns(name, ("tools",), tools))
    deny += [
        _pattern(name, pattern.removeprefix(f"{name}_"))
        for pattern, value in switches.items()
        if value is False and (pattern.startswith(f"{name}_") or fnmatch.fnmatchcase(f"{name}_", pattern))
    ]
    own_allow, own_deny = (_listed(rest.pop(key, None)) for key in ("allow", "deny"))
    allows = [*([own_allow] if own_allow else []), *allows]  # an empty `allow` of our own allows everything
    if allows:
        made["allow"] = functools.reduce(_both, allows) or [NOTHING_MATCHES]
    if own_deny or deny:
        made["deny"] = [*own_deny, *deny]


def _both(first: list[Any], second: list[Any]) -> list[Any]:
    """Return patterns of what matches one of each list."""
    return [f"^(?=.*(?:{one}))(?=.*(?:{two}))" for one in first for two in second]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_off(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("enabled") is False or value.get("disabled") is True
    return value is False


def _patterns(name: str, at: Location, value: Any) -> list[str]:
    if isinstance(value, dict):  # {tool: true}
        value = [tool for tool, is_on in value.items() if is_on]
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise Refused(at, describe(value, hidden=False), "a list of the names of tools")
    return [_pattern(name, item) for item in items]


def _pattern(server: str, tool: str) -> str:
    """Return the regular expression for the name of a tool, in which `*` and `?` are wildcards."""
    tool = re.sub(r"\(.*\)$", "", tool.strip(), flags=re.DOTALL)  # Gemini: run(git status)
    for prefix in (f"mcp__{server}__", f"{server}__", f"{server}/"):
        tool = tool.removeprefix(prefix)
    return f"^(?:{fnmatch.translate(tool)})" if re.search(r"[*?\[]", tool) else f"^{re.escape(tool)}$"
