"""The configuration: its schema, its defaults, and how it is loaded.

`docs/configuration.md` explains every key. Everything is parsed once, here, into values; nothing after this
module sees a raw text. Errors are told all at once.

    config_errors ◀── config_urls ◀── config_values ◀── config_providers ◀── config
         ▲                                                                    │
         └──────────────────────── config_source ◀────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from aibridge_addon import config_values as values
from aibridge_addon.config_errors import ConfigError, Problem, describe, dotted, problems_from
from aibridge_addon.config_providers import (
    DEFAULT_PROVIDERS,
    Bedrock,
    CircuitBreaker,
    Provider,
    ProviderType,
    unique_or_default,
)
from aibridge_addon.config_source import Document, expand, read_json, read_yaml
from aibridge_addon.config_urls import BaseUrl, DatabaseUrl
from aibridge_addon.config_values import Listen

__all__ = [
    "DEFAULT_PROVIDERS",
    "Actor",
    "BaseUrl",
    "Bedrock",
    "CircuitBreaker",
    "ConfigError",
    "DatabaseUrl",
    "Egress",
    "HttpServer",
    "Limits",
    "Listen",
    "Mcp",
    "Metrics",
    "Problem",
    "Provider",
    "ProviderType",
    "Recording",
    "Settings",
    "StdioServer",
    "load",
]

MIB = 1 << 20


class Recording(values.Section):
    prompts: bool = True
    tool_inputs: bool = True
    thoughts: bool = True
    ask_chat_usage: bool = True
    redact: tuple[values.Redaction, ...] = ()
    retention: values.Retention = timedelta(days=60)
    durable: bool = True
    on_failure: Literal["open", "closed"] = "open"


class Actor(values.Section):
    required: bool = False
    default: values.OptionalLine = None
    header: values.OptionalHeaderName = None
    trusted_sources: tuple[values.Network, ...] = (ip_network("127.0.0.1/32"),)
    # What send_actor_headers sends: each key is the end of a header's name.
    metadata: Mapping[values.HeaderName, values.PlainText] = Field(default_factory=dict)


class _Server(values.Section):
    allow: values.Regexes = ()
    deny: values.Regexes = ()


class HttpServer(_Server):
    type: Annotated[Literal["http"], PlainValidator(values.parse_http_transport)] = "http"
    url: values.ServerUrl
    headers: Mapping[values.HeaderName, values.SecretText] = Field(default_factory=dict)

    @property
    def public_url(self) -> str:
        """The URL as records and logs may show it: without its query, where keys travel."""
        return urlsplit(self.url.get_secret_value())._replace(query="", fragment="").geturl()


class StdioServer(_Server):
    type: Literal["stdio"] = "stdio"
    command: values.Line
    args: Annotated[tuple[values.Argument, ...], Field(repr=False)] = ()
    env: Mapping[values.VariableName, values.SecretText] = Field(default_factory=dict)


def _server_class(entry: object) -> type[HttpServer] | type[StdioServer]:
    if isinstance(entry, StdioServer):
        return StdioServer
    if not isinstance(entry, dict):
        return HttpServer
    program = "command" in entry and "url" not in entry
    return StdioServer if entry.get("type", "stdio" if program else "http") == "stdio" else HttpServer


McpServer = Annotated[
    Annotated[HttpServer, Tag("<HttpServer>")] | Annotated[StdioServer, Tag("<StdioServer>")],
    Discriminator(lambda entry: f"<{_server_class(entry).__name__}>"),
]


class Mcp(values.Section):
    servers: Annotated[Mapping[values.ServerName, McpServer], values.NullIsEmpty] = Field(default_factory=dict)
    config_file: values.OptionalPath = None
    max_turns: values.Positive = 10
    tool_timeout: values.Seconds = 60
    max_result_bytes: values.Size = 262_144
    keepalive_interval: values.Seconds = 10


class Metrics(values.Section):
    listen: values.OptionalListen = Listen("127.0.0.1", 9464)
    prefix: values.MetricPrefix = "aibridge_"
    initiator_label: bool = True


class Limits(values.Section):
    request_body: values.Size = 32 * MIB
    decoded_body: values.Size = 64 * MIB
    sse_event: values.Size = 8 * MIB


class Egress(values.Section):
    guard: Literal["on", "off", "auto"] = "auto"
    allowed_private_cidrs: tuple[values.Network, ...] = ()
    ports: tuple[values.Port, ...] = (80, 443)


class Settings(values.Section):
    """The whole configuration."""

    database: values.Database = DatabaseUrl.parse("sqlite:///aibridge.db")
    recording: Recording = Recording()
    actor: Actor = Actor()
    providers: Annotated[tuple[Provider, ...], AfterValidator(unique_or_default)] = DEFAULT_PROVIDERS
    mcp: Mcp = Mcp()
    metrics: Metrics = Metrics()
    dump_dir: values.OptionalPath = None
    websockets: Literal["record", "upgrade_required", "auto"] = "auto"
    limits: Limits = Limits()
    drain_timeout: values.SecondsFromZero = 30
    egress: Egress = Egress()

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_sections(cls, data: Any) -> Any:
        # What is left of a section when all its lines are commented out is a key with nothing after it.
        if not isinstance(data, dict):
            return data
        return {key: item for key, item in data.items() if item is not None}


def load(path: Path | None, *, environ: Mapping[str, str], database: str | None = None) -> Settings:
    """Load a configuration file, or the defaults; `database` (mitmproxy's option) wins over the file.

    Raises ConfigError.
    """
    path = path and path.expanduser()
    problems: list[Problem] = []
    raw = {} if path is None else read_yaml(path)
    if database:
        raw["database"] = _database_option(database, problems)
    document = expand(raw, file=str(path or "configuration"), environ=environ)
    problems += document.problems
    _merge_mcp_file(document, environ, problems)
    settings = _validated(document, problems)
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def _database_option(url: str, problems: list[Problem]) -> DatabaseUrl | None:
    try:
        return DatabaseUrl.parse(url)
    except PydanticCustomError as error:
        expected = str((error.context or {})["expected"])
        found = describe(url, hidden=True)
        problems.append(Problem("aibridge_database", found, expected, "mitmproxy's options"))
        return None


def _validated(document: Document, problems: list[Problem]) -> Settings | None:
    try:
        return Settings.model_validate(document.values)
    except ValidationError as error:
        found = problems_from(error, root=Settings, file=document.file, from_environment=document.from_environment)
        problems += (problem for problem in found if not document.has_problem_at(problem.path))
    # Not inside the handler: pydantic's error holds the inputs, and a chained traceback would print them.
    return None


def _merge_mcp_file(document: Document, environ: Mapping[str, str], problems: list[Problem]) -> None:
    """Put the servers of `mcp.config_file` below those of the configuration itself."""
    mcp = document.values.get("mcp")
    name = mcp.get("config_file") if isinstance(mcp, dict) else None
    if not isinstance(mcp, dict) or not isinstance(name, str) or not name:
        return
    own = {} if mcp.get("servers") is None else mcp["servers"]
    if not isinstance(own, dict):
        return  # the field itself reports what is wrong
    try:
        mcp["servers"] = {**_servers_of_file(name, document, environ, own=set(own)), **own}
    except ConfigError as error:
        problems += error.problems


def _servers_of_file(
    name: str, document: Document, environ: Mapping[str, str], *, own: set[str]
) -> dict[str, HttpServer | StdioServer]:
    key = ("mcp", "config_file")
    file = f"{document.file}: {dotted(key)}"
    if not document.from_environment(key):
        file += f" ({name})"
    try:
        path = Path(document.file).parent / values.parse_path(name)
    except PydanticCustomError:
        return {}  # the field itself reports what is wrong
    content = read_json(path, file)
    entries = content.get("mcpServers") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ConfigError([Problem("mcpServers", describe(entries, hidden=False), "a mapping", file)])
    wanted = {server: entry for server, entry in entries.items() if server not in own and not _disabled(entry)}
    part = expand(wanted, file=file, environ=environ, at=("mcpServers",))
    problems = list(part.problems)
    servers = {server: _server(server, entry, part, problems) for server, entry in part.values.items()}
    if problems:
        raise ConfigError(problems)
    return {server: entry for server, entry in servers.items() if entry is not None}


def _disabled(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("disabled") is True


def _server(name: str, entry: object, part: Document, problems: list[Problem]) -> HttpServer | StdioServer | None:
    """Read one entry of a file that other programs read too: keys that only they know are no errors."""
    model = _server_class(entry)
    if isinstance(entry, dict):
        entry = {key: item for key, item in entry.items() if key in model.model_fields}
    try:
        values.server_name(name)
        return model.model_validate(entry)
    except PydanticCustomError as error:
        expected = str((error.context or {})["expected"])
        problems.append(Problem(dotted(("mcpServers", name)), "this name", expected, part.file))
    except ValidationError as error:
        found = problems_from(
            error,
            root=model,
            file=part.file,
            from_environment=part.from_environment,
            prefix=("mcpServers", name),
        )
        problems += (problem for problem in found if not part.has_problem_at(problem.path))
    return None
