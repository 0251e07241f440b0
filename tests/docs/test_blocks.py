"""Every block of code on a page is run or read by a program, or there is a reason why it is not."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from sqlite_utils import Database

from aibridge_addon.config.load import load
from aibridge_addon.config.schema import Settings
from aibridge_addon.recording.sqlite.migrations import migrate
from tests.support.databases import PostgresDatabase, SqliteDatabase, write
from tests.support.examples import ANSWER, ENDED, PROMPT, STARTED, THOUGHT, TOKENS, TOOL
from tests.support.mitmdump import make_mitmproxy_ca
from tests.support.prometheus import program

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SESSION = "7c1e4d2a-90b3-4f6e-8a51-2d9f3b6c0e11"
SHOWN = "$ "
"""In front of a command whose output a page shows."""

NOT_RUN = {
    r"make (run|test|pytest|bench)\b": "runs until it is stopped, or for minutes",
    r"(AIBRIDGE_WEB_TOKEN=\$\(.*\) )?(\S*/)?aibridge (live|web)\b": "runs until it is stopped: tests/cli, tests/web",
    r"aibridge serve\b": "runs until it is stopped: tests/processes/test_serve.py",
    r"(AIBRIDGE_ORDINARY_WAY=1 )?mitm(dump|web) ": "runs until it is stopped: tests/processes/test_start.py",
    r"(\S*/)?python -m benchmarks": "runs for minutes: tests/test_benchmarks.py",
    r"aibridge tools\b": "needs the MCP servers that it names: tests/cli/test_tools.py",
    r"aibridge doctor": "its exit code depends on this machine: tests/processes/test_doctor.py",
    r"aibridge import --database postgresql:": "needs the server that it names: tests/cli/test_export.py",
    r"python -m pip install": "downloads packages",
    r"(podman|docker|POSTGRES_PASSWORD=\S+ docker) ": "needs a container engine: tests/docs/test_deploy.py",
    r"cd docs/deploy$": "goes with the container engine",
    r"kill -HUP": "signals a process: tests/processes/test_reload.py",
    r"prometheus --config": "runs until it is stopped: tests/docs/test_prometheus.py",
}
"""What a command begins with, and why it is not run here."""

OTHER_LANGUAGES = {
    "python": "tests/test_how_to.py",
    "diff": "tests/test_how_to.py",
}
"""Languages of blocks that another test runs, on the pages in docs/how-to."""

OTHER_FILES = {
    "on: pull_request": "a job of GitHub: tests/docs/test_deploy.py",
    "image: python": "a job of GitLab: tests/docs/test_deploy.py",
}
"""YAML that is no configuration of ours and not of Prometheus: a piece of it, and where it is checked."""


@dataclass(frozen=True)
class Block:
    page: str
    number: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}#{self.number}"


def blocks() -> Iterator[Block]:
    pages = [ROOT / "README.md", *(ROOT / ".github").glob("*.md"), ROOT / "certs" / "README.md"]
    for page in sorted([*pages, *(ROOT / "docs").rglob("*.md")]):
        for number, (language, code) in enumerate(FENCE.findall(page.read_text()), 1):
            yield Block(str(page.relative_to(ROOT)), number, language, code)


BLOCKS = list(blocks())


def of(*languages: str) -> pytest.MarkDecorator:
    found = [block for block in BLOCKS if block.language in languages]
    assert found, languages
    return pytest.mark.parametrize("block", found, ids=str)


def statements(block: Block) -> list[str]:
    """The commands of a shell example, or of a block that shows what commands print."""
    lines = block.code.splitlines()
    if block.language != "sh":
        return [line.removeprefix(SHOWN) for line in lines if line.startswith(SHOWN)]
    found: list[str] = []
    for line in lines:
        if found and (line[:1] in " \t" or found[-1].endswith("\\") or found[-1].count('"') % 2):
            found[-1] += f"\n{line}"
        elif line.strip() and not line.startswith("#"):
            found.append(line)
    return found


def reason_not_to_run(statement: str) -> str | None:
    return next((pattern for pattern in NOT_RUN if re.match(pattern, statement)), None)


COMMANDS = [block for block in BLOCKS if statements(block)]
TO_RUN = [block for block in COMMANDS if any(reason_not_to_run(each) is None for each in statements(block))]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / ".mitmproxy").mkdir()
    make_mitmproxy_ca(folder / ".mitmproxy")
    return folder


@pytest.fixture
def project(home: Path, tmp_path: Path) -> Path:
    """A folder with what the examples name: a database, a configuration, and stand-ins for two clients."""
    started = replace(STARTED, client_session_id=SESSION)
    write(SqliteDatabase(tmp_path / "aibridge.db"), started, PROMPT, TOKENS, TOOL, ANSWER, THOUGHT, ENDED)
    (tmp_path / "aibridge.yaml").write_text("recording: {retention: 60d}\n")
    (tmp_path / "usage.json").write_text('{"cost_usd": 0.5, "unpriced": 0}')
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(BIN)
    for name in ("aibridge_addon/main.py", "docs/prometheus"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    for client in ("claude", "codex"):
        stand_in = tmp_path / "bin" / client
        stand_in.write_text("#!/bin/sh\necho Hello!\n")
        stand_in.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("block", TO_RUN, ids=str)
def test_every_command_that_can_run_does(block: Block, project: Path, home: Path) -> None:
    script = "\n".join(each for each in statements(block) if reason_not_to_run(each) is None)
    path = os.pathsep.join(map(str, (project / "bin", BIN, "/usr/bin", "/bin")))
    ended = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=project,
        env={"HOME": str(home), "PATH": path, "LANG": "C.UTF-8", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, f"{script}\n{ended.stdout}\n{ended.stderr}"


def test_every_reason_not_to_run_is_needed() -> None:
    used = {reason_not_to_run(each) for block in COMMANDS for each in statements(block)}
    assert used - {None} == set(NOT_RUN)


def test_no_command_is_hidden_in_a_block_without_a_language() -> None:
    names = {"aibridge", "mitmdump", "mitmproxy", "mitmweb", "python", "pip", "make", "sqlite-utils"}
    names |= {"docker", "podman", "prometheus", "promtool", "cd", "export"}
    plain = [block for block in BLOCKS if not block.language and not statements(block)]
    lines = [line for block in plain for line in block.code.splitlines()]
    assert [line for line in lines if line.partition(" ")[0].rpartition("/")[2] in names] == []


def test_every_language_has_a_test() -> None:
    here = {"", "sh", "yaml", "json", "toml", "ini", "sql", "promql"}
    assert {block.language for block in BLOCKS} == here | OTHER_LANGUAGES.keys()
    assert {block.page.rpartition("/")[0] for block in BLOCKS if block.language in OTHER_LANGUAGES} == {"docs/how-to"}


# --- data and queries -------------------------------------------------------------------------------------------------


@of("yaml")
def test_every_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    if any(piece in block.code for piece in OTHER_FILES):
        return
    content = YAML(typ="safe").load(block.code)
    if "scrape_configs" in content:
        file = tmp_path / "prometheus.yml"
        file.write_text(block.code)
        subprocess.run([program("promtool"), "check", "config", file], check=True, capture_output=True)
        return
    assert content.keys() <= Settings.model_fields.keys()
    (tmp_path / "aibridge.yaml").write_text(block.code)
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", block.code), "x" * 32)  # as long as a key has to be
    assert load(tmp_path / "aibridge.yaml", environ=environ)


def test_every_yaml_of_others_is_there() -> None:
    for piece in OTHER_FILES:
        assert any(piece in block.code for block in BLOCKS if block.language == "yaml")


@of("json", "toml", "ini")
def test_every_document_is_valid(block: Block) -> None:
    match block.language:
        case "json":
            assert json.loads(block.code)
        case "toml":
            assert tomllib.loads(block.code)
        case _:
            parser = configparser.ConfigParser(interpolation=None)
            parser.read_string(block.code)
            assert parser.sections()


@of("sql")
def test_every_query_runs(block: Block, postgres: PostgresDatabase) -> None:
    if "create role" in block.code:
        write(postgres, STARTED, ENDED)
        role = f"grafana_{postgres.name}"  # roles belong to the server, which other tests use, too
        ask = partial(postgres.server.administrate, database=postgres.name)
        try:
            for statement in filter(str.strip, re.sub(r"\bgrafana\b", role, block.code).split(";")):
                ask(statement)
        finally:
            ask(f"drop owned by {role}")
            ask(f"drop role {role}")
        return
    database = Database(memory=True)
    migrate(database)
    for query in filter(str.strip, block.code.split(";")):
        database.execute(query).fetchall()


@of("promql")
def test_every_query_of_metrics_is_valid(block: Block, tmp_path: Path) -> None:
    queries = re.split(r"\n(?=\S)", block.code.strip())
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    ended = subprocess.run([program("promtool"), "check", "rules", file], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
