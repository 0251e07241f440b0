"""The configuration: what it accepts, what it turns values into, and how it complains."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from ruamel.yaml import YAML

from aibridge_addon.config.errors import ConfigError, Problem, models_in
from aibridge_addon.config.load import load
from aibridge_addon.config.providers import DEFAULT_PROVIDERS, Provider
from aibridge_addon.config.schema import HttpServer, Mcp, Settings, StdioServer
from aibridge_addon.config.urls import DatabaseUrl, parse_base_url
from aibridge_addon.providers.base import BaseUrl

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
SECRET = "hunter2-never-print-me"

Write = Callable[..., Settings]


@pytest.fixture
def configure(tmp_path: Path) -> Write:
    """Write a configuration and load it."""

    def write(text: str | bytes, **environ: str) -> Settings:
        path = tmp_path / "aibridge.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(path, environ=environ)

    return write


def value_at(settings: object, path: str) -> Any:
    for part in re.findall(r"[\w-]+", path):
        if isinstance(settings, Mapping):
            settings = settings[part]
        else:
            settings = settings[int(part)] if isinstance(settings, tuple) else getattr(settings, part)
    return settings


def problems_of(configure: Write, text: str | bytes, **environ: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        configure(text, **environ)
    # A traceback in a log is as public as the message.
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return list(caught.value.problems)


def the_problem(configure: Write, text: str | bytes, **environ: str) -> Problem:
    [problem] = problems_of(configure, text, **environ)
    return problem


def provider(text: str, name: str = "mine") -> str:
    return f"providers:\n  - {{name: {name}, {text}}}\n"


# --- defaults


def test_no_file_gives_the_defaults() -> None:
    assert load(None, environ={}) == Settings()


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "{}", "\ufeff", "recording:\nproviders:\nmcp:\n"])
def test_a_file_that_says_nothing_gives_the_defaults(configure: Write, text: str) -> None:
    assert configure(text) == Settings()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("database", DatabaseUrl.parse("sqlite:///aibridge.db")),
        ("recording.retention.rows", timedelta(days=60)),
        ("recording.retention.content", timedelta(days=60)),
        ("recording.on_failure", "open"),
        ("actor.default", None),
        ("actor.trusted_sources", (ip_network("127.0.0.1/32"),)),
        ("mcp.max_turns", 10),
        ("mcp.tool_timeout", 60),
        ("mcp.max_result_bytes", 262144),
        ("metrics.listen", ("127.0.0.1", 9464)),
        ("metrics.prefix", "aibridge_"),
        ("websockets", "auto"),
        ("limits.request_body", 32 * 1024 * 1024),
        ("limits.decoded_body", 64 * 1024 * 1024),
        ("limits.sse_event", 8 * 1024 * 1024),
        ("limits.upstream_connections", 100),
        ("drain_timeout", 30),
        ("egress.guard", "auto"),
        ("egress.ports", (80, 443)),
        ("dump_dir", None),
    ],
)
def test_defaults_are_those_of_the_contract(path: str, expected: object) -> None:
    assert value_at(Settings(), path) == expected


ANTHROPIC_HOSTS = ("api.anthropic.com", "aws-external-anthropic.*.api.aws")
OPENAI_HOSTS = ("api.openai.com", *(f"{region}.api.openai.com" for region in ("eu", "us", "in", "jp", "au", "ae")))
GEMINI = "https://generativelanguage.googleapis.com/v1beta/openai"


@pytest.mark.parametrize(
    ("name", "type_", "base_url", "gateway_url"),
    [
        ("anthropic", "anthropic", "https://api.anthropic.com", "https://api.anthropic.com"),
        ("openai", "openai", "https://api.openai.com/v1", "https://api.openai.com/v1"),
        (
            "chatgpt",
            "openai",
            "https://chatgpt.com/backend-api/codex",
            "https://chatgpt.com/backend-api/codex",
        ),
        ("copilot", "copilot", None, "https://api.individual.githubcopilot.com"),
        ("copilot-business", "copilot", None, "https://api.business.githubcopilot.com"),
        ("copilot-enterprise", "copilot", None, "https://api.enterprise.githubcopilot.com"),
        ("azure", "azure", None, None),
        ("bedrock", "bedrock", None, None),
        ("openrouter", "openai", "https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1"),
        ("xai", "openai", "https://api.x.ai/v1", "https://api.x.ai/v1"),
        ("mistral", "openai", "https://api.mistral.ai/v1", "https://api.mistral.ai/v1"),
        ("deepseek", "openai", "https://api.deepseek.com", "https://api.deepseek.com"),
        ("groq", "openai", "https://api.groq.com/openai/v1", "https://api.groq.com/openai/v1"),
        ("gemini", "openai", GEMINI, GEMINI),
    ],
)
def test_the_default_set_has_each_provider(
    name: str, type_: str, base_url: str | None, gateway_url: str | None
) -> None:
    [found] = [provider for provider in Settings().providers if provider.name == name]
    assert found.type == type_
    assert (found.base_url and str(found.base_url)) == base_url
    assert (found.gateway_url and str(found.gateway_url)) == gateway_url
    assert found.api_key == ()


def test_default_providers_take_no_key_from_the_environment(configure: Write) -> None:
    settings = configure("providers: []", ANTHROPIC_API_KEY=SECRET, OPENAI_API_KEY=SECRET)
    assert settings.providers == DEFAULT_PROVIDERS


# --- values


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("limits: {request_body: 32MiB}", "limits.request_body", 33554432),
        ("limits: {request_body: 5 kib}", "limits.request_body", 5120),
        ("limits: {request_body: 1GiB}", "limits.request_body", 1 << 30),
        ("limits: {request_body: 4096}", "limits.request_body", 4096),
        ("limits: {request_body: '4096'}", "limits.request_body", 4096),
        ("mcp: {max_result_bytes: 1MiB}", "mcp.max_result_bytes", 1 << 20),
        ("recording: {retention: 12h}", "recording.retention.rows", timedelta(hours=12)),
        ("recording: {retention: 2w}", "recording.retention.content", timedelta(weeks=2)),
        ("recording: {retention: 0}", "recording.retention.rows", None),
        ("recording: {retention: '0'}", "recording.retention.rows", None),
        ("recording: {retention: 0d}", "recording.retention.content", None),
        ("recording: {retention: {content: 30d, rows: 400d}}", "recording.retention.content", timedelta(days=30)),
        ("recording: {retention: {content: 30d, rows: 0}}", "recording.retention.rows", None),
        ("recording: {retention: {content: 30d}}", "recording.retention.rows", timedelta(days=60)),
        ("recording: {retention: {rows: 30d}}", "recording.retention.content", timedelta(days=30)),
        ("recording: {redact: ['sk-[a-z]+']}", "recording.redact", ("sk-[a-z]+",)),
        ("recording: {prompts: off}", "recording.prompts", False),
        ("recording: {on_failure: closed}", "recording.on_failure", "closed"),
        ("egress: {guard: on}", "egress.guard", "on"),
        ("egress: {guard: off}", "egress.guard", "off"),
        ("egress: {ports: []}", "egress.ports", ()),
        ("egress: {allowed_private_cidrs: [10.0.0.0/8, 'fd00::/8', 192.168.0.1]}",
         "egress.allowed_private_cidrs",
         (ip_network("10.0.0.0/8"), ip_network("fd00::/8"), ip_network("192.168.0.1/32"))),
        ("metrics: {listen: null}", "metrics.listen", None),
        ("metrics: {listen: '[::1]:9464'}", "metrics.listen", ("::1", 9464)),
        ("metrics: {listen: 0.0.0.0:0}", "metrics.listen", ("0.0.0.0", 0)),
        ("metrics: {listen: localhost:80}", "metrics.listen", ("localhost", 80)),
        ("metrics: {prefix: ''}", "metrics.prefix", ""),
        ("metrics: {prefix: coder_ai_gateway_}", "metrics.prefix", "coder_ai_gateway_"),
        ("actor: {header: X-User, default: ann}", "actor.header", "X-User"),
        ("actor: {header: '', default: ''}", "actor.default", None),
        ("actor: {metadata: {org_id: org-456}}", "actor.metadata", {"org_id": "org-456"}),
        ("dump_dir: dumps", "dump_dir", Path("dumps")),
        ("dump_dir: ''", "dump_dir", None),
        ("websockets: upgrade_required", "websockets", "upgrade_required"),
        ("drain_timeout: 0", "drain_timeout", 0),
        ("mcp: {tool_timeout: 0.5}", "mcp.tool_timeout", 0.5),
        ("database: sqlite:///rows/a.db", "database.sqlite_path", Path("rows/a.db")),
        ("egress: {guard: true}", "egress.guard", "on"),
        ("egress: {guard: false}", "egress.guard", "off"),
        ("database: sqlite:////var/lib/a.db", "database.sqlite_path", Path("/var/lib/a.db")),
        ("database: postgresql://host/name", "database.sqlite_path", None),
        ("database: 'postgresql://u:p@one,two:5433,[::1]:5434/name'", "database.sqlite_path", None),
        ("database: 'postgresql://u:p@one,two:5433/name?sslmode=require'", "database.place", "one,two:5433/name"),
        ("database: postgres://one/name", "database.place", "one/name"),
        ("database: sqlite:////var/lib/a.db", "database.place", "/var/lib/a.db"),
    ],
)  # fmt: skip
def test_a_value_is_parsed_once(configure: Write, text: str, path: str, expected: object) -> None:
    assert value_at(configure(text), path) == expected


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ("limits: {request_body: 32MB}", "limits.request_body", "MiB"),
        ("limits: {request_body: 0}", "limits.request_body", "above 0"),
        ("limits: {request_body: -1}", "limits.request_body", "above 0"),
        ("limits: {request_body: true}", "limits.request_body", "a size"),
        ("limits: {request_body: 1.5}", "limits.request_body", "a size"),
        ("limits: {request_body: 999999999999999GiB}", "limits.request_body", "a size"),
        ("recording: {retention: 60}", "recording.retention", "60d for days"),
        ("recording: {retention: '45'}", "recording.retention", "45d for days"),
        ("recording: {retention: {rows: 60}}", "recording.retention.rows", "60d for days"),
        ("recording: {retention: {content: 7, rows: 30d}}", "recording.retention.content", "7d for days"),
        ("recording: {retention: {content: 31d, rows: 30d}}", "recording.retention.content", "up to that of the rows"),
        ("recording: {retention: {content: 0, rows: 30d}}", "recording.retention.content", "up to that of the rows"),
        ("recording: {retention: {texts: 30d}}", "recording.retention.texts", "one of content, rows"),
        ("recording: {retention: [60d]}", "recording.retention", "60d"),
        ("recording: {retention: 60 days}", "recording.retention", "60d"),
        ("recording: {retention: false}", "recording.retention", "60d"),
        ("recording: {retention: null}", "recording.retention", "0 for ever"),
        ("recording: {retention: 999999w}", "recording.retention", "36500d"),
        ("recording: {redact: ['(']}", "recording.redact[0]", "regular expression"),
        ("recording: {redact: ['a*']}", "recording.redact[0]", "empty text"),
        ("recording: {redact: [5]}", "recording.redact[0]", "regular expression"),
        ("recording: {redact: secret}", "recording.redact", "a list"),
        (f"recording: {{redact: [{'a' * 1001}]}}", "recording.redact[0]", "1000 characters"),
        ("recording: {prompts: maybe}", "recording.prompts", "true or false"),
        ("recording: {prompts: null}", "recording.prompts", "true or false"),
        ("recording: {on_failure: ajar}", "recording.on_failure", "'open' or 'closed'"),
        ("recording: [prompts]", "recording", "a mapping"),
        ("egress: {guard: yes}", "egress.guard", "'on', 'off' or 'auto'"),
        ("egress: {ports: [0]}", "egress.ports[0]", "greater than 0"),
        ("egress: {ports: [80, 65536]}", "egress.ports[1]", "at most 65535"),
        ("egress: {ports: [true]}", "egress.ports[0]", "a number"),
        ("egress: {allowed_private_cidrs: [10.0.0.1/8]}", "egress.allowed_private_cidrs[0]", "10.0.0.0/8"),
        ("egress: {allowed_private_cidrs: [5]}", "egress.allowed_private_cidrs[0]", "a network"),
        ("actor: {trusted_sources: [anywhere]}", "actor.trusted_sources[0]", "a network"),
        ("actor: {default: 5}", "actor.default", "text"),
        ("actor: {default: ' '}", "actor.default", "not blank"),
        ("actor: {default: \"a\\nb\"}", "actor.default", "one line"),
        ("actor: {default: 2024-01-01}", "actor.default", "text"),
        ("actor: {header: 'X User'}", "actor.header", "header"),
        ("actor: {metadata: {org: 5}}", "actor.metadata.org", "quotes"),
        ("actor: {metadata: {'or g': a}}", 'actor.metadata."or g"', "header"),
        ("metrics: {listen: 9464}", "metrics.listen", "host:port"),
        ("metrics: {listen: ':9464'}", "metrics.listen", "host:port"),
        ("metrics: {listen: '::1:9464'}", "metrics.listen", "host:port"),
        ("metrics: {listen: '[nine]:9464'}", "metrics.listen", "host:port"),
        ("metrics: {listen: 127.0.0.1:65536}", "metrics.listen", "65535"),
        ("metrics: {prefix: my-}", "metrics.prefix", "[A-Za-z_:]"),
        ("mcp: {max_turns: 0}", "mcp.max_turns", "greater than 0"),
        ("mcp: {max_turns: true}", "mcp.max_turns", "a number"),
        ("mcp: {max_turns: many}", "mcp.max_turns", "a whole number"),
        ("mcp: {max_turns: 1.5}", "mcp.max_turns", "a whole number"),
        (f"mcp: {{max_turns: 0x{'f' * 5000}}}", "mcp.max_turns", "at most"),
        ("mcp: {tool_timeout: .inf}", "mcp.tool_timeout", "86400"),
        ("mcp: {tool_timeout: .nan}", "mcp.tool_timeout", "number"),
        ("mcp: {keepalive_interval: -1}", "mcp.keepalive_interval", "greater than 0"),
        ("drain_timeout: -1", "drain_timeout", "at least 0"),
        ("dump_dir: [a]", "dump_dir", "a path"),
        ("websockets: on", "websockets", "'record', 'upgrade_required' or 'auto'"),
        ("database: 'sqlite://'", "database", "sqlite:///file"),
        ("database: 'sqlite:///'", "database", "sqlite:///file"),
        ("database: 'sqlite:///:memory:'", "database", "sqlite:///file"),
        ("database: 'sqlite://:memory:'", "database", "sqlite:///file"),
        ("database: sqlite:///a.db?mode=ro", "database", "sqlite:///file"),
        ("database: mysql://host/name", "database", "postgresql://"),
        ("database: postgresql://host", "database", "postgresql://"),
        ("database: 'postgresql://one;two/name'", "database", "postgresql://"),
        ("database: 5", "database", "a URL"),
        ("databse: sqlite:///a.db", "databse", 'did you mean "database"?'),
        ("recording: {promts: true}", "recording.promts", 'did you mean "prompts"?'),
        ("providers: [{name: a, type: antropic}]", "providers[0].type", 'did you mean "anthropic"?'),
        ("log: json", "log", "a mapping: {format: json}"),
        ("zzz: 1", "zzz", "one of actor, budgets, database, drain_timeout"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_reported_with_its_key_and_what_is_allowed(
    configure: Write, text: str, path: str, allowed: str
) -> None:
    problem = the_problem(configure, text)
    assert problem.path == path
    assert allowed in problem.expected
    assert problem.file.endswith("aibridge.yaml")


def test_an_error_line_has_file_key_found_and_allowed(configure: Write, tmp_path: Path) -> None:
    problem = the_problem(configure, "mcp: {max_turns: many}")
    file = tmp_path / "aibridge.yaml"
    assert str(problem) == f'{file}: mcp.max_turns: found text: "many"; allowed: a whole number'


def test_all_problems_are_reported_in_one_go(configure: Write) -> None:
    text = """
    mcp: {max_turns: 0, tool_timeot: 5}
    recording: {redact: ["("]}
    providers: [{name: Bad, type: openai, api_key: "${NO_KEY}"}, {name: other, type: other}]
    database: ${NO_DATABASE}
    """
    assert {problem.path for problem in problems_of(configure, text)} == {
        "mcp.max_turns",
        "mcp.tool_timeot",
        "recording.redact[0]",
        "providers[0].name",
        "providers[0].api_key",
        "providers[1].type",
        "database",
    }


def test_each_problem_has_its_line(configure: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        configure('mcp: {max_turns: 0, tool_timeout: "a\\nb"}\nactor: {default: "c\\nd"}')
    assert len(str(caught.value).splitlines()) == 3


# --- the file itself


@pytest.mark.parametrize(
    ("text", "path", "found"),
    [
        (b"database: \xff", "", "not UTF-8"),
        (b"database: a\x00b", "", "cannot read"),
        ("actor: {default: 2024-99-99}", "", "cannot read"),
        ("a: [1\nb: 2\n", "line 2, column 2", "syntax error"),
        ("a: 'open", "line 1, column 9", "syntax error"),
        ("recording:\n  prompts: true\n  prompts: false\n", "line 3, column 3", 'duplicate key "prompts"'),
        ("- 1\n- 2\n", "", "top level"),
        ("just text", "", "top level"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1", "syntax error"),
        ("database: &a x\n", "line 1, column 11", "anchor"),
        ("mcp: &m {}\nactor: *m\n", "line 1, column 6", "anchor"),
        ("actor: {default: !!binary aGk=}", "line 1, column 18", "tag"),
        ("actor: !!python/object:os.system {}", "line 1, column 8", "tag"),
        ("%YAML 1.1\n---\negress: {guard: on}", "line 2, column 1", "version"),
        ("a: " + "[" * 10_000, "line 1, column 35", "levels"),
        ("1: a", "", "a key that is a int"),
        ("actor: {metadata: {2024-01-01: a}}", "actor.metadata", "a key that is a date"),
        ("a: " + "x" * 1024 * 1024, "", "larger"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_parsed_is_reported_with_its_place(
    configure: Write, text: str | bytes, path: str, found: str
) -> None:
    problem = the_problem(configure, text)
    assert problem.path == path
    assert found in problem.found


def test_aliases_cannot_blow_up(configure: Write) -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}]\n" for i in range(20))
    assert "anchor" in the_problem(configure, bomb).found


@pytest.mark.parametrize(
    "text",
    [
        f"providers: [{{api_key: {SECRET}, api_key: {SECRET}}}]",
        f"api_key: '{SECRET}",
        f"api_key: [{SECRET}\nb: {SECRET}",
        f"api_key: !{SECRET} x",
        f"api_key: &{SECRET} x",
    ],
)
def test_a_syntax_error_quotes_nothing_of_the_file(configure: Write, text: str) -> None:
    assert SECRET not in str(the_problem(configure, text))


@pytest.mark.parametrize(("name", "found"), [("absent.yaml", "No such file"), (".", "directory")])
def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path, name: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        load(tmp_path / name, environ={})


# --- environment


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("${USER}", "ann"),
        ("a-${USER}-b-${TEAM}", "a-ann-b-red"),
        ("${ABSENT:-bob}", "bob"),
        ("${EMPTY:-bob}", "bob"),
        ("${USER:-bob}", "ann"),
        ("${USER}${ABSENT:-}", "ann"),
        ("$${USER}", "${USER}"),
        ("$$${USER}", "$${USER}"),
        ("$USER", "$USER"),
        ("${ABSENT:-a:-b $ {}", "a:-b $ {"),
        ("${INJECTION}", "x, header: y}"),
        ("${NESTED}", "${USER}"),
    ],
)
def test_variables_are_filled_into_parsed_values(configure: Write, written: str, expected: str) -> None:
    settings = configure(
        f"actor: {{default: '{written}'}}",
        USER="ann",
        TEAM="red",
        EMPTY="",
        INJECTION="x, header: y}",
        NESTED="${USER}",
    )
    assert settings.actor.default == expected
    assert settings.actor.header is None


def test_a_variable_can_be_a_number_a_boolean_or_a_size(configure: Write) -> None:
    settings = configure(
        "mcp: {max_turns: '${TURNS:-5}', tool_timeout: '${SECONDS}'}\n"
        "recording: {prompts: '${PROMPTS}'}\n"
        "limits: {request_body: '${SIZE}'}\n",
        SECONDS="2.5",
        PROMPTS="false",
        SIZE="1MiB",
    )
    assert (settings.mcp.max_turns, settings.mcp.tool_timeout) == (5, 2.5)
    assert settings.recording.prompts is False
    assert settings.limits.request_body == 1 << 20


@pytest.mark.parametrize("path", ["providers[0].api_key[1]", "providers[0].api_key"])
def test_a_missing_variable_is_reported_with_key_and_name(configure: Write, path: str) -> None:
    key = "[a, '${MY_KEY}']" if path.endswith("]") else "'${MY_KEY}'"
    problem = the_problem(configure, provider(f"type: openai, api_key: {key}"))
    assert problem.path == path
    assert "${MY_KEY}, which is not set" in problem.found


@pytest.mark.parametrize("written", ["${", "${}", "${A", "${1A}", "${A-b}", "${A:-${B}}", "a ${A b}"])
def test_a_malformed_reference_is_reported(configure: Write, written: str) -> None:
    problem = the_problem(configure, f"actor: {{default: '{written}'}}", A="a", B="b")
    assert problem.path == "actor.default"
    assert "$${" in problem.expected


@pytest.mark.parametrize(
    "text",
    [
        "mcp: {max_turns: '${S}'}",
        "recording: {redact: ['(${S}']}",
        "recording: {prompts: '${S}', retention: '${S}', on_failure: '${S}'}",
        "metrics: {listen: '${S}', prefix: '${S}'}",
        "websockets: '${S}'",
        "limits: {request_body: '${S}'}",
        "egress: {ports: ['${S}'], allowed_private_cidrs: ['${S}']}",
        "actor: {trusted_sources: ['${S}'], header: 'a ${S}'}",
        "database: '${S}'",
        "providers: [{name: '${S} x', type: '${S}'}]",
        "providers: [{name: '${S}', type: openai}, {name: '${S}', type: openai}]",
        "providers: [{name: a, type: openai, hosts: ['${S}:80'], base_url: 'https://u:${S}@host'}]",
        "mcp: {config_file: '${S}'}",
        "mcp: {servers: {a: {url: '${S}'}}}",
        "mcp: {servers: {a: {command: x, allow: '(${S}'}}}",
        "mcp: {servers: {a: '${S}'}}",
    ],
)
def test_the_value_of_a_variable_is_never_shown(configure: Write, text: str) -> None:
    assert SECRET not in "".join(map(str, problems_of(configure, text, S=SECRET)))


@pytest.mark.parametrize(
    "text",
    [
        provider(f"type: openai, api_key: 'a {SECRET}'"),
        provider(f"type: openai, api_key: [a, 'a {SECRET}']"),
        provider(f"type: openai, api_key: {{a: {SECRET}}}"),
        provider(f"type: openai, apikey: {SECRET}"),
        provider(f"type: openai, base_url: 'https://u:{SECRET}@host'"),
        provider(f"type: openai, base_url: 'https://host/?key={SECRET}'"),
        provider(f"type: anthropic, bedrock: {{region: a, model: m, access_key: k, secret_key: 'x {SECRET}'}}"),
        provider(f"type: anthropic, bedrock: {{region: a, model: m, secret_key: {SECRET}}}"),
        f"database: postgresql://u:{SECRET}@host",
        f"mcp: {{servers: {{a: {{url: 'ftp://host/?key={SECRET}'}}}}}}",
        f"mcp: {{servers: {{a: {{url: 'http://host', headers: {{A: [{SECRET}]}}}}}}}}",
        f"mcp: {{servers: {{a: {{url: 'http://host', headers: {SECRET}}}}}}}",
        f"mcp: {{servers: {{a: {{command: x, args: --key={SECRET}}}}}}}",
        f'mcp: {{servers: {{a: {{command: x, env: {{K: "{SECRET}\\n"}}}}}}}}',
    ],
)
def test_a_secret_in_the_file_is_never_shown(configure: Write, text: str) -> None:
    assert SECRET not in "".join(map(str, problems_of(configure, text)))


def test_secrets_do_not_print(configure: Write) -> None:
    settings = configure(f"""
    database: postgresql://ann:{SECRET}@host:5432/name?sslpassword={SECRET}
    providers:
      - {{name: a, type: openai, api_key: {SECRET}}}
      - name: b
        type: anthropic
        bedrock: {{region: r, model: m, access_key: {SECRET}, secret_key: {SECRET}}}
    mcp:
      servers:
        http: {{url: "https://host/mcp?key={SECRET}", headers: {{Authorization: Bearer {SECRET}}}}}
        stdio: {{command: run, args: [--key, {SECRET}], env: {{KEY: {SECRET}}}}}
    """)
    assert SECRET not in f"{settings!r} {settings} {settings.database}"
    assert str(settings.database) == "postgresql://ann:***@host:5432/name"
    assert SECRET in settings.database.get_secret_value()
    server = settings.mcp.servers["http"]
    assert isinstance(server, HttpServer) and server.public_url == "https://host/mcp"


# --- database


def test_the_option_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "aibridge.yaml"
    path.write_text("database: ${NOT_SET}")
    assert load(path, environ={}, database="sqlite:///b.db").database.sqlite_path == Path("b.db")
    assert load(None, environ={}, database="sqlite:///b.db").database.sqlite_path == Path("b.db")
    assert load(None, environ={}, database="").database == Settings().database


def test_a_wrong_option_is_reported_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"aibridge_database: found text; allowed: .*postgresql://") as caught:
        load(None, environ={}, database=f"mysql://u:{SECRET}@host/name")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("path", ["/tmp/x.db", "./x", "../rows/a", "~/aibridge.db", "x.db", "rows/a b.sqlite3"])
def test_a_path_in_place_of_a_database_url_is_recognised(path: str) -> None:
    expected = rf'^--database: found text; allowed: .*; did you mean "sqlite:///{re.escape(path)}"\?$'
    with pytest.raises(ConfigError, match=expected):
        load(None, environ={}, database=path, database_from="--database")


@pytest.mark.parametrize("text", [SECRET, f"/{SECRET}@host", f"u:{SECRET}.db", f"host/{SECRET}", f"/x?{SECRET}", "/"])
def test_what_may_be_a_password_is_not_shown_as_a_path(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, environ={}, database=text)
    assert SECRET not in str(caught.value) and "did you mean" not in str(caught.value)


# --- providers


@pytest.mark.parametrize(
    ("text", "hosts", "base_url"),
    [
        ("type: anthropic", ANTHROPIC_HOSTS, "https://api.anthropic.com"),
        ("type: openai", OPENAI_HOSTS, "https://api.openai.com/v1"),
        ("type: copilot", ("api.individual.githubcopilot.com", "api.githubcopilot.com"), None),
        ("type: anthropic, base_url: null", ANTHROPIC_HOSTS, None),
        ("type: anthropic, base_url: ''", ANTHROPIC_HOSTS, None),
        ("type: anthropic, hosts: []", (), "https://api.anthropic.com"),
        ("type: anthropic, hosts: [API.Anthropic.com]", ("api.anthropic.com",), "https://api.anthropic.com"),
        ("type: openai, base_url: https://api.openai.com/v1/", OPENAI_HOSTS, "https://api.openai.com/v1"),
        ("type: openai, hosts: [eu.api.openai.com]", ("eu.api.openai.com",), "https://eu.api.openai.com/v1"),
        ("type: openai, hosts: [us.api.x.ai, api.x.ai]", ("us.api.x.ai", "api.x.ai"), None),
        ("type: openai, hosts: [llm.corp], base_url: http://10.0.0.1:8000", ("llm.corp",), "http://10.0.0.1:8000"),
    ],
)  # fmt: skip
def test_addresses_left_out_are_the_types(
    configure: Write, text: str, hosts: tuple[str, ...], base_url: str | None
) -> None:
    [found] = configure(provider(text)).providers
    assert found.hosts == hosts
    assert (found.base_url and str(found.base_url)) == base_url


@pytest.mark.parametrize(
    ("name", "text", "hosts", "base_url"),
    [
        ("chatgpt", "type: openai", ("chatgpt.com",), "https://chatgpt.com/backend-api/codex"),
        ("copilot-business", "type: copilot", ("api.business.githubcopilot.com",), None),
        ("anthropic", "type: anthropic, base_url: 'http://127.0.0.1:9'", ("api.anthropic.com",), "http://127.0.0.1:9"),
        ("azure", "type: azure, base_url: https://a.openai.azure.com", ("a.openai.azure.com",), "https://a.openai.azure.com"),
    ],
)  # fmt: skip
def test_a_default_providers_name_brings_its_addresses(
    configure: Write, name: str, text: str, hosts: tuple[str, ...], base_url: str | None
) -> None:
    [found] = configure(provider(text, name)).providers
    assert found.hosts == hosts
    assert (found.base_url and str(found.base_url)) == base_url


def test_one_given_address_is_never_paired_with_a_vendors_other(configure: Write) -> None:
    """Ours: clients' keys for one host must not go to another that the file does not name."""
    [redirect] = configure(provider("type: openai, base_url: https://openrouter.ai/api/v1")).providers
    assert redirect.hosts == ("openrouter.ai",)
    [own] = configure(provider("type: openai, hosts: [llm.corp]")).providers
    assert own.base_url is None and str(own.gateway_url) == "https://llm.corp"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://API.example.com", BaseUrl("https", "api.example.com", 443, "")),
        ("http://127.0.0.1:8000/a/b/", BaseUrl("http", "127.0.0.1", 8000, "/a/b")),
        ("http://[::1]:8000/v1", BaseUrl("http", "::1", 8000, "/v1")),
        ("HTTP://localhost/", BaseUrl("http", "localhost", 80, "")),
    ],
)
def test_a_base_url_is_split(configure: Write, text: str, expected: BaseUrl) -> None:
    [found] = configure(provider(f"type: openai, base_url: '{text}'")).providers
    assert found.base_url == expected
    assert parse_base_url(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (SECRET, [SECRET]),
        ("[a, b]", ["a", "b"]),
        ("' a '", ["a"]),
        ("[]", []),
        ("null", []),
        ("''", []),
        ("'${ABSENT:-}'", []),
        ("['${ABSENT:-}', '${KEY}']", ["key"]),
    ],
)
def test_api_keys_are_one_or_many_or_none(configure: Write, text: str, keys: list[str]) -> None:
    [found] = configure(provider(f"type: openai, api_key: {text}"), KEY="key").providers
    assert [key.get_secret_value() for key in found.api_key] == keys


@pytest.mark.parametrize("host", ["*.openai.azure.com", "bedrock-runtime.*.amazonaws.com", "localhost", "::1"])
def test_host_patterns_may_hold_wildcard_labels(configure: Write, host: str) -> None:
    [found] = configure(provider(f"type: azure, hosts: ['{host.upper()}']")).providers
    assert found.hosts == (host,)


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("type: openai, hosts: ['*']", "hosts[0]", "not for the last"),
        ("type: openai, hosts: ['api.openai.*']", "hosts[0]", "not for the last"),
        ("type: openai, hosts: ['a*.openai.com']", "hosts[0]", "hostname"),
        ("type: openai, hosts: ['a..com']", "hosts[0]", "hostname"),
        ("type: openai, hosts: ['-a.com']", "hosts[0]", "hostname"),
        ("type: openai, hosts: ['a.com:443']", "hosts[0]", "without port"),
        ("type: openai, hosts: ['https://a.com']", "hosts[0]", "hostname"),
        ("type: openai, hosts: ['']", "hosts[0]", "hostname"),
        ("type: openai, hosts: [5]", "hosts[0]", "hostname"),
        ("type: openai, hosts: a.com", "hosts", "a list"),
        ("type: azure, hosts: []", "hosts", "at least one host, or a base_url"),
        ("type: openai, hosts: [], base_url: null", "hosts", "at least one host"),
        ("type: azure, api_key: k, hosts: ['*.openai.azure.com']", "api_key", "a base_url, or a host without *"),
        ("type: copilot, api_key: k", "api_key", "no api_key: Copilot knows each user by their own token"),
        ("type: openai, base_url: ftp://a.com", "base_url", "https://"),
        ("type: openai, base_url: a.com", "base_url", "https://"),
        ("type: openai, base_url: 'https://'", "base_url", "https://"),
        ("type: openai, base_url: 'https://u:p@a.com'", "base_url", "without user"),
        ("type: openai, base_url: 'https://a.com/?a=b'", "base_url", "query"),
        ("type: openai, base_url: 'https://a.com/#a'", "base_url", "fragment"),
        ("type: openai, base_url: 'https://a.com:0'", "base_url", "port"),
        ("type: openai, base_url: 'https://a.com:99999'", "base_url", "port"),
        ("type: openai, base_url: 'https://a b.com'", "base_url", "spaces"),
        ("type: openai, base_url: \"https://a.com\\t/x\"", "base_url", "spaces"),
        ("type: openai, base_url: 'https://ä.com'", "base_url", "ASCII"),
        ("type: openai, base_url: 'https://[::1'", "base_url", "https://"),
        ("type: google", "type", "'anthropic', 'openai', 'copilot', 'azure' or 'bedrock'"),
        ("hosts: [a.com]", "type", "required"),
        ("type: openai, price_as: vllm", "price_as", "a vendor of the price list: anthropic, "),
        ("type: openai, price_as: 5", "price_as", "none, or a vendor"),
        ("type: openai, price_as: OpnAI", "price_as", '(did you mean "openai"?)'),
        ("type: azure, azure_scope: europe", "azure_scope", "'global', 'data_zone' or 'regional'"),
        ("type: azure, models: [a]", "models", "a mapping"),
        ("type: azure, models: {a: ''}", "models.a", "not blank"),
        ("type: azure, region: ' '", "region", "not blank"),
        ("type: anthropic, openai_compatible: true, hosts: [a.com]", "openai_compatible", "type openai only"),
        ("type: openai, openai_compatible: true", "hosts", "at least one host"),
        ("type: openai, openai_compatible: true, hosts: [a.com], base_url: http://b", "openai_compatible", "no base"),
        ("type: openai, api_key: 'two words'", "api_key", "without blanks"),
        ("type: openai, max_retries: -1", "max_retries", "at least 0"),
        ("type: openai, circuit_breaker: {interval: 0}", "circuit_breaker.interval", "greater than 0"),
        ("type: openai, circuit_breaker: {max_request: 1}", "circuit_breaker.max_request", '"max_requests"'),
        ("type: openai, circuit_breaker: true", "circuit_breaker", "a mapping"),
        ("type: openai, bedrock: {region: a, model: b}", "bedrock", "type anthropic only"),
        ("type: anthropic, bedrock: {region: a}", "bedrock.model", "required"),
        ("type: anthropic, bedrock: {model: a}", "bedrock.region", "a region, or a base_url"),
        ("type: anthropic, bedrock: {model: a, region: b, access_key: c}", "bedrock.secret_key", "both keys"),
        ("type: openai, host: [a.com]", "host", 'did you mean "hosts"?'),
    ],
)  # fmt: skip
def test_a_wrong_provider_is_reported(configure: Write, text: str, path: str, message: str) -> None:
    problem = the_problem(configure, provider(text))
    assert problem.path == f"providers[0].{path}"
    assert message in problem.expected


@pytest.mark.parametrize("name", ["Open", "a_b", "-a", "a-", "a--b", "a/b", "''", "ü", "api"])
def test_a_providers_name_must_be_fit_for_a_path(configure: Write, name: str) -> None:
    problem = the_problem(configure, provider("type: openai", name))
    assert problem.path == "providers[0].name"
    assert f'invalid provider name "{name.strip("'")}"' in problem.found


def test_a_providers_name_is_unique(configure: Write) -> None:
    problem = the_problem(configure, "providers: [{name: a, type: openai}, {name: a, type: anthropic}]")
    assert problem.path == "providers[1].name"
    assert 'duplicate provider name: "a"' in problem.found


def test_a_breakers_block_has_defaults_of_its_own(configure: Write) -> None:
    [found] = configure(provider("type: openai, circuit_breaker: {interval: 5}")).providers
    assert found.circuit_breaker is not None
    assert found.circuit_breaker.model_dump() == {
        "failure_threshold": 5,
        "interval": 5,
        "timeout": 30,
        "max_requests": 3,
    }


def test_providers_can_be_built_in_code() -> None:
    base_url = parse_base_url("http://127.0.0.1:8000/v1")
    made = Provider(name="a", type="openai", hosts=("llm.corp",), base_url=base_url, api_key=(SecretStr("k"),))
    assert made.gateway_url == base_url
    assert Settings(providers=(made,)).providers == (made,)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().drain_timeout = 5


# --- MCP


def test_servers_are_http_or_programs(configure: Write) -> None:
    servers = configure("""
    mcp:
      servers:
        web: {type: http, url: "https://host/mcp", headers: {Authorization: "Bearer ${T}"}, deny: ^rm}
        alias: {type: streamable-http, url: "http://localhost:1/mcp"}
        local: {command: run, args: [-v], env: {A: b}, allow: [^get, ^list]}
        typed: {type: stdio, command: run}
    """, T="token").mcp.servers  # fmt: skip
    web, local = servers["web"], servers["local"]
    assert isinstance(web, HttpServer) and isinstance(local, StdioServer)
    assert web.url.get_secret_value() == "https://host/mcp"
    assert web.headers["Authorization"].get_secret_value() == "Bearer token"
    assert web.deny == (re.compile("^rm"),)
    assert (local.command, local.args, local.env) == ("run", ("-v",), {"A": SecretStr("b")})
    assert local.allow == (re.compile("^get"), re.compile("^list"))
    assert servers["alias"].type == "http" and servers["typed"].type == "stdio"


@pytest.mark.parametrize(
    ("entry", "path", "message"),
    [
        ("{type: ws, url: 'http://host'}", "a.type", "http (streamable HTTP), sse or stdio"),
        ("{type: http}", "a.url", "required"),
        ("{}", "a.url", "required"),
        ("{type: stdio}", "a.command", "required"),
        ("{command: x, url: 'http://host'}", "a.command", "one of "),
        ("{command: x, arg: [a]}", "a.arg", 'did you mean "args"?'),
        ("{url: 'http://host', alow: a}", "a.alow", 'did you mean "allow"?'),
        ("{command: x, args: [5]}", "a.args[0]", "text"),
        ("{url: 'ws://host'}", "a.url", "https://"),
        ("{url: 'https://u:p@host'}", "a.url", "without user"),
        ("{url: 'http://host', headers: {'a b': c}}", "a.headers.\"a b\"", "header"),
        ("{url: 'http://host', allow: '('}", "a.allow[0]", "regular expression"),
        ("{url: 'http://host', deny: ['']}", "a.deny[0]", "regular expression"),
        ("text", "a", "a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_server_is_reported(configure: Write, entry: str, path: str, message: str) -> None:
    problem = the_problem(configure, f"mcp: {{servers: {{a: {entry}}}}}")
    assert problem.path == f"mcp.servers.{path}"
    assert message in problem.expected


def test_each_server_may_have_limits_of_its_own(configure: Write) -> None:
    mcp = configure("""
    mcp:
      tool_timeout: 50
      servers:
        plain: {command: x}
        own: {command: x, cwd: ~/here, tool_timeout: 0.5, max_result_bytes: 1KiB, startup_timeout: 3,
              rate: 10 per minute, required: true, read_only: true}
        none: {command: x, tool_timeout: null, max_result_bytes: "", rate: null, cwd: ""}
    """).mcp  # fmt: skip
    own = mcp.servers["own"]
    assert isinstance(own, StdioServer) and own.cwd == Path("~/here").expanduser()
    assert (own.startup_timeout, own.required, own.read_only, str(own.rate)) == (3, True, True, "10/m")
    assert [mcp.tool_timeout_of(name) for name in ("plain", "own", "none", "gone")] == [50, 0.5, 50, 50]
    assert [mcp.max_result_bytes_of(name) for name in ("plain", "own", "none", "gone")] == [
        *(262_144, 1024, 262_144, 262_144)
    ]


@pytest.mark.parametrize(
    ("written", "count", "seconds"),
    [("5/s", 5, 1), ("60/m", 60, 60), ("1000/h", 1000, 3600), ("1 per hour", 1, 3600), ("2/MIN", 2, 60)],
)
def test_a_rate_is_a_number_of_calls_in_a_period(configure: Write, written: str, count: int, seconds: int) -> None:
    rate = configure(f"mcp: {{servers: {{a: {{command: x, rate: {written}}}}}}}").mcp.servers["a"].rate
    assert rate is not None and (rate.count, rate.seconds) == (count, seconds)


@pytest.mark.parametrize("written", ["0/s", "-1/s", "1/d", "1000000/s", "fast", "[1, s]", "true", "1.5/s", "/s"])
def test_a_wrong_rate_is_reported(configure: Write, written: str) -> None:
    problem = the_problem(configure, f"mcp: {{servers: {{a: {{command: x, rate: {written}}}}}}}")
    assert problem.path == "mcp.servers.a.rate" and "such as 5/s, 60/m or 1000/h" in problem.expected


def test_a_rate_without_a_unit_is_reported_with_the_possible_ones(configure: Write) -> None:
    problem = the_problem(configure, "mcp: {servers: {a: {command: x, rate: 5}}}")
    assert problem.expected == "a unit behind the number: 5/s, 5/m or 5/h"


def test_a_servers_name_must_be_fit_for_a_tools_name(configure: Write) -> None:
    problem = the_problem(configure, "mcp: {servers: {'a b': {command: x}}}")
    assert problem.path == 'mcp.servers."a b"'


def test_an_existing_mcp_json_is_merged_below_our_own_entries(configure: Write, tmp_path: Path) -> None:
    (tmp_path / ".mcp.json").write_text(
        json.dumps(
            {
                "other": 1,
                "mcpServers": {
                    "both": {"type": "sse", "url": "${NOT_SET}"},
                    "web": {"type": "http", "url": "https://${HOST:-host}/mcp", "headers": {"A": "${T}"}},
                    "local": {"command": "run", "timeout": 5},
                    "off": {"command": "run", "disabled": True},
                },
            }
        )
    )
    servers = configure("mcp: {config_file: .mcp.json, servers: {both: {command: ours}}}", T="t").mcp.servers
    assert sorted(servers) == ["both", "local", "web"]
    both, web = servers["both"], servers["web"]
    assert isinstance(both, StdioServer) and both.command == "ours"
    assert isinstance(web, HttpServer) and web.headers["A"].get_secret_value() == "t"


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        (None, "", "No such file"),
        ("{", "line 1, column 2", "valid JSON"),
        ("[" * 100_000, "", "valid JSON"),
        ("[]", "mcpServers", "a mapping"),
        ('{"mcpServers": []}', "mcpServers", "a mapping"),
    ],
)
def test_a_wrong_mcp_json_is_reported_with_file_and_key(
    configure: Write, tmp_path: Path, content: str | None, path: str, message: str
) -> None:
    if content is not None:
        (tmp_path / "tools.json").write_text(content)
    problem = the_problem(configure, "mcp: {config_file: tools.json}")
    assert problem.file == f"{tmp_path / 'aibridge.yaml'}: mcp.config_file (tools.json)"
    assert problem.path == path
    assert message in str(problem)


def test_problems_of_both_files_are_reported_together(configure: Write, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text('{"mcpServers": 5}')
    problems = problems_of(configure, "mcp: {config_file: tools.json, max_turns: 0}")
    assert [problem.path for problem in problems] == ["mcpServers", "mcp.max_turns"]


def test_the_servers_of_settings_may_be_built_in_code() -> None:
    server = HttpServer(url=SecretStr("http://host/mcp"))
    assert Settings(mcp=Mcp(servers={"a": server})).mcp.servers == {"a": server}


# --- documentation


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = models_in(field.annotation)
        name = field.alias or name
        yield prefix + name
        suffix = {"providers": "[]", "budgets": "[]", "servers": ".<name>"}.get(name, "")
        for inner in nested:
            yield from key_paths(inner, f"{prefix}{name}{suffix}.")


def sections(model: type[BaseModel]) -> set[str]:
    keys = list(key_paths(model))
    return {key for key in keys if any(other.startswith((f"{key}.", f"{key}[")) for other in keys)}


def examples() -> dict[str, str]:
    blocks = re.findall(r"```yaml\n# (\w+)\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    return dict(blocks)


@pytest.mark.parametrize("path", sorted(set(key_paths(Settings)) - sections(Settings)))
def test_each_key_is_documented(path: str) -> None:
    assert f"| `{path}` |" in DOCUMENT.read_text("utf-8")


def test_each_documented_key_exists() -> None:
    documented = re.findall(r"^\| `([a-z_.\[\]<>]+)` \| (?!\w+ \| )", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert set(documented) - set(key_paths(Settings)) == set()


def test_the_documented_defaults_are_the_defaults(configure: Write) -> None:
    text = examples()["defaults"]
    assert configure(text) == Settings()
    written = YAML(typ="safe", pure=True).load(text)
    assert written.keys() == Settings.model_fields.keys()
    for name in (key for key in sections(Settings) - {"providers", "budgets"} if "." not in key):
        assert written[name].keys() == type(getattr(Settings(), name)).model_fields.keys()


@pytest.mark.parametrize("name", ["providers", "mcp"])
def test_the_documented_examples_load(configure: Write, name: str) -> None:
    assert value_at(configure(examples()[name]), name)


def test_the_default_providers_are_documented() -> None:
    text = DOCUMENT.read_text("utf-8")
    words = " ".join(text.split())
    for known in DEFAULT_PROVIDERS:
        hosts = ", ".join(f"`{host}`" for host in known.hosts)
        base_url = f" `{known.base_url}` " if known.base_url else " "
        assert f"| `{known.name}` | {known.type} |{base_url}|" in text
        assert f"- `{known.name}`: {hosts}." in words
