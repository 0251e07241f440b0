"""The configuration file: its sections, keys and defaults. `docs/configuration.md` explains every key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from ipaddress import ip_network
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    SecretStr,
    Tag,
    model_validator,
)

from aibridge_addon.config import values
from aibridge_addon.config.actor_templates import ActorTemplate
from aibridge_addon.config.budgets import LONGEST_PERIOD, Budget, Groups, unique_budgets
from aibridge_addon.config.commands import Command
from aibridge_addon.config.errors import most_similar, rejected
from aibridge_addon.config.oauth import KEY_VARIABLE, NEEDS_KEY, Keys, OptionalLoginUrl, OptionalOAuth
from aibridge_addon.config.providers import DEFAULT_PROVIDERS, Provider, unique_or_default
from aibridge_addon.config.tool_actors import ToolActors
from aibridge_addon.config.urls import DatabaseUrl
from aibridge_addon.config.values import Listen

MIB = 1 << 20
GIB = 1 << 30


class Spool(values.Section):
    path: values.OptionalPath = None
    max_bytes: values.Size = GIB


class Retention(values.Section):
    """How long records are kept. None: for ever. `60d` is short for `{rows: 60d}`."""

    rows: values.Lifetime = timedelta(days=60)
    content: values.Lifetime = Field(default_factory=lambda data: data.get("rows"))
    """How long texts are kept. They are deleted with their rows at the latest."""

    @model_validator(mode="before")
    @classmethod
    def _from_one_lifetime(cls, data: Any) -> Any:
        if isinstance(data, dict | cls):
            return data
        values.parse_lifetime(data)
        return {"rows": data}

    @model_validator(mode="after")
    def _texts_end_with_their_rows(self) -> Self:
        if self.rows is not None and (self.content is None or self.content > self.rows):
            raise rejected(
                "a lifetime up to that of the rows, because texts are deleted with their rows",
                found="a longer lifetime than that of recording.retention.rows",
                at=("content",),
            )
        return self


class Recording(values.Section):
    prompts: bool = True
    tool_inputs: bool = True
    thoughts: bool = True
    answers: bool = True
    tool_results: bool = True
    ask_chat_usage: bool = True
    redact: tuple[values.Redaction, ...] = ()
    retention: Retention = Retention()
    durable: bool = True
    on_failure: Literal["open", "closed"] = "open"
    spool: Annotated[Spool, values.NullIsEmpty] = Spool()


class Actor(values.Section):
    required: bool = False
    default: values.OptionalLine = None
    header: values.OptionalHeaderName = None
    trusted_sources: tuple[values.Network, ...] = (ip_network("127.0.0.1/32"),)
    # Sent if `send_actor_headers` is on. Each key is the suffix of a header name.
    metadata: Mapping[values.HeaderName, values.PlainText] = Field(default_factory=dict)
    groups: Annotated[Groups, values.NullIsEmpty] = Groups()


class _Server(values.Section):
    allow: values.Regexes = ()
    deny: values.Regexes = ()
    allow_anonymous: bool = False
    actors: Annotated[ToolActors, values.NullIsEmpty] = ToolActors()
    max_concurrent: values.Positive = 16
    rate: values.OptionalRate = None
    required: bool = False
    read_only: bool = False
    pin: bool = False
    startup_timeout: values.Seconds = 60
    # None: as for all servers.
    tool_timeout: values.OptionalSeconds = None
    max_result_bytes: values.OptionalSize = None


class HttpServer(_Server):
    type: Annotated[Literal["http", "sse"], PlainValidator(values.parse_http_transport)] = "http"
    url: values.ServerUrl
    headers: Mapping[values.HeaderName, values.SecretText] = Field(default_factory=dict)
    headers_command: Command = ()
    send_actor_headers: bool = False
    oauth: OptionalOAuth = None

    @property
    def templates(self) -> Mapping[str, ActorTemplate]:
        """Headers that name the actor."""
        return {f"headers.{name}": text for name, text in self.headers.items() if isinstance(text, ActorTemplate)}

    @property
    def credentials(self) -> Sequence[str]:
        """The keys with which the bridge authenticates to the server. A query often contains a key."""
        return [
            *(["url"] if urlsplit(self.url.get_secret_value()).query else []),
            *(["headers"] if any_text(self.headers.values()) else []),
            *(["headers_command"] if self.headers_command else []),
            *(["oauth"] if self.oauth is not None else []),
        ]

    @property
    def public_url(self) -> str:
        """The URL for records and logs, without its query, which may contain keys."""
        return urlsplit(self.url.get_secret_value())._replace(query="", fragment="").geturl()


class StdioServer(_Server):
    type: Literal["stdio"] = "stdio"
    command: values.Line
    args: Annotated[tuple[values.Argument, ...], Field(repr=False)] = ()
    cwd: values.OptionalPath = None
    env: Mapping[values.VariableName, values.SecretText] = Field(default_factory=dict)

    @property
    def templates(self) -> Mapping[str, ActorTemplate]:
        """Variables that name the actor."""
        return {f"env.{name}": text for name, text in self.env.items() if isinstance(text, ActorTemplate)}

    @property
    def credentials(self) -> Sequence[str]:
        """The keys with which the program may authenticate elsewhere."""
        return ["env"] if any_text(self.env.values()) else []


def rendered(entry: HttpServer | StdioServer, actor: str, metadata: Mapping[str, Any]) -> HttpServer | StdioServer:
    """Return a server's settings with the actor's name and metadata in its headers or variables."""

    def texts(given: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        return {
            name: text.render(actor, metadata) if isinstance(text, ActorTemplate) else text
            for name, text in given.items()
        }

    if isinstance(entry, HttpServer):
        # A header's value has no blanks around it (RFC 9110, section 5.5), but an actor's name may have.
        headers = {name: SecretStr(text.get_secret_value().strip()) for name, text in texts(entry.headers).items()}
        return entry.model_copy(update={"headers": headers})
    return entry.model_copy(update={"env": texts(entry.env)})


def any_text(secrets: Iterable[SecretStr]) -> bool:
    """Return whether one is not blank: `${VAR:-}` may be unset."""
    return any(secret.get_secret_value().strip() for secret in secrets)


def server_class(entry: object) -> type[HttpServer] | type[StdioServer]:
    if isinstance(entry, StdioServer):
        return StdioServer
    if not isinstance(entry, dict):
        return HttpServer
    kind = entry.get("type")
    if kind is None and "url" not in entry:
        kind = "stdio" if any(_meant(key) in PROGRAM_KEYS for key in entry) else "http"
    return StdioServer if kind == "stdio" else HttpServer


PROGRAM_KEYS = StdioServer.model_fields.keys() - HttpServer.model_fields.keys()


def _meant(key: object) -> str | None:
    """Return the key of a server that this one is, or that it resembles: so the error names the right one."""
    keys = {**HttpServer.model_fields, **StdioServer.model_fields}
    return str(key) if key in keys else most_similar(str(key), keys)


McpServer = Annotated[
    Annotated[HttpServer, Tag("<HttpServer>")] | Annotated[StdioServer, Tag("<StdioServer>")],
    Discriminator(lambda entry: f"<{server_class(entry).__name__}>"),
]


class Mcp(values.Section):
    servers: Annotated[Mapping[values.ServerName, McpServer], values.NullIsEmpty] = Field(default_factory=dict)
    config_file: values.OptionalPath = None
    startup_wait: values.SecondsFromZero = 5
    max_turns: values.Positive = 10
    later_turn_retries: Annotated[values.Whole, Field(ge=0, le=10)] = 2
    max_calls: values.Positive = 64
    tool_timeout: values.Seconds = 60
    tool_timeout_total: values.Seconds = 600
    max_result_bytes: values.Size = 262_144
    max_result_parts: values.Positive = 64
    keepalive_interval: values.Seconds = 10
    actor_connections: values.Positive = 100
    actor_idle: values.Seconds = 600
    login_url: OptionalLoginUrl = None
    token_key: Keys = ()

    @property
    def logins(self) -> Mapping[str, HttpServer]:
        """The servers at which each actor logs in."""
        return {
            name: server
            for name, server in self.servers.items()
            if isinstance(server, HttpServer) and server.oauth is not None
        }

    def tool_timeout_of(self, server_name: str) -> float:
        """Return the seconds that a call to a server may take."""
        server = self.servers.get(server_name)
        return server.tool_timeout if server is not None and server.tool_timeout is not None else self.tool_timeout

    @property
    def largest_result_bytes(self) -> int:
        """The bytes of the largest result that any server may have."""
        return max(map(self.max_result_bytes_of, self.servers), default=self.max_result_bytes)

    def max_result_bytes_of(self, server_name: str) -> int:
        """Return how many bytes a result of a server may have."""
        server = self.servers.get(server_name)
        return server.max_result_bytes if server is not None and server.max_result_bytes else self.max_result_bytes


class Metrics(values.Section):
    listen: values.OptionalListen = Listen("127.0.0.1", 9464)
    prefix: values.MetricPrefix = "aibridge_"
    initiator_label: bool = True


class Log(values.Section):
    format: Literal["text", "json"] = "text"


def _log_section(value: object) -> object:
    if isinstance(value, str) and value in ("text", "json"):
        raise rejected(f"a mapping: {{format: {value}}}")
    return value


class Tracing(values.Section):
    enabled: Literal["auto", True, False] = "auto"
    content: bool = False


class Limits(values.Section):
    request_body: values.Size = 32 * MIB
    decoded_body: values.Size = 64 * MIB
    sse_event: values.Size = 8 * MIB
    answer: values.Size = 16 * MIB
    buffered: values.Size = 512 * MIB
    json_values: values.Positive = 250_000
    websocket_message: values.Size = 32 * MIB
    upstream_connections: values.Positive = 100
    passthrough_body: values.Size = MIB
    connections: values.Positive = 4096
    connections_per_client: values.Positive = 1024
    header_bytes: values.Size = MIB // 4
    header_timeout: values.Seconds = 30
    http2_resets: values.Positive = 20
    http2_empty_frames: values.Positive = 100
    lookups: values.Positive = 256
    lookups_per_client: values.Positive = 64
    lookup_timeout: values.Seconds = 5
    lookup_failed: values.Seconds = 5
    password_lifetime: values.Seconds = 300
    password_delay: values.Seconds = 4
    password_checks_per_client: values.Positive = 16


def _on_or_off(value: object) -> object:
    """Accept booleans: `on` and `off` are booleans in YAML 1.1, which many people and programs write."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Egress(values.Section):
    guard: Annotated[Literal["on", "off", "auto"], BeforeValidator(_on_or_off)] = "auto"
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
    log: Annotated[Log, BeforeValidator(_log_section)] = Log()
    tracing: Tracing = Tracing()
    dump_dir: values.OptionalPath = None
    websockets: Literal["record", "upgrade_required", "auto"] = "auto"
    limits: Limits = Limits()
    budgets: Annotated[tuple[Budget, ...], AfterValidator(unique_budgets)] = ()
    drain_timeout: values.SecondsFromZero = 30
    egress: Egress = Egress()

    @model_validator(mode="after")
    def _rows_outlive_their_budgets(self) -> Self:
        kept = self.recording.retention.rows
        for number, budget in enumerate(self.budgets):
            if kept is not None and kept < LONGEST_PERIOD[budget.period]:
                days = LONGEST_PERIOD[budget.period].days
                raise rejected(
                    f"a period whose rows are kept until it ends: set recording.retention.rows to at least {days}d, "
                    "or to 0; recording.retention.content may be shorter",
                    found=f"{budget.period}, which is longer than recording.retention.rows",
                    at=("budgets", number, "period"),
                )
        return self

    @model_validator(mode="after")
    def _metadata_of_servers_is_known(self) -> Self:
        for name, server in self.mcp.servers.items():
            for key, template in server.templates.items():
                for missing in (each for each in template.metadata if each not in self.actor.metadata):
                    raise rejected(
                        "a key of actor.metadata",
                        shown=f'"{missing}"',
                        at=("mcp", "servers", name, *key.split(".", 1)),
                    )
        return self

    @model_validator(mode="after")
    def _logins_have_a_key(self) -> Self:
        for name, server in self.mcp.logins.items():
            if not self.mcp.token_key:
                found = f"null, although mcp.servers.{name}.oauth is set, and no {KEY_VARIABLE} in the environment"
                raise rejected(NEEDS_KEY, found=found, at=("mcp", "token_key"))
            if server.headers_command or any(each.lower() == "authorization" for each in server.headers):
                expected = "either oauth, or a header Authorization or headers_command"
                raise rejected(expected, found="both", at=("mcp", "servers", name, "oauth"))
        return self

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_sections(cls, data: Any) -> Any:
        # A section whose lines are all commented out is a key without a value.
        if not isinstance(data, dict):
            return data
        return {key: item for key, item in data.items() if item is not None}
