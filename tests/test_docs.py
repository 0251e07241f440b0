"""The documentation: what it names is there, and what is there is named."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from sqlite_utils import Database

from aibridge_addon import cli
from aibridge_addon.cli.config import plain
from aibridge_addon.cli.diagnosis.runtimes import RUNTIMES
from aibridge_addon.cli.environment import VARIABLES
from aibridge_addon.config.schema import Settings
from aibridge_addon.interception import clients
from aibridge_addon.recording.sqlite.migrations import migrate

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aibridge_addon"
BIN = Path(sys.executable).parent

OURS = ("aibridge_addon", "benchmarks", "certs", "docs", "fixtures", "tests", ".ci", ".github")
GENERATED = frozenset({"__pycache__", "node_modules"})
PAGES = sorted(
    page
    for folder in (".", ".github", "certs", "docs", "docs/decisions", "docs/how-to", "fixtures")
    for page in (ROOT / folder).glob("*.md")
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SHELL_PAGES = (
    ".github/CONTRIBUTING.md",
    "README.md",
    "docs/quick-start.md",
    "docs/operations.md",
    "certs/README.md",
    "docs/clients.md",
)

OTHER_PROGRAMS = frozenset({"make", "export", "cat", "kill", "touch", "claude", "codex"})
"""Programs in shell examples that do not come with the project."""

MAX_LINE = 120
"""Characters of a line of prose or code; a page is read in a terminal, too."""
MAX_ROW = 200
"""Characters of a table's row, which cannot be wrapped."""
NOT_PLAIN = re.compile(r"\b(?:tells?|told|nobody|somebody|whoever|strangers?|believed)\b", re.IGNORECASE)
"""Words that make a reader stumble: a component reports, returns or refuses, and nothing in it is a person."""

FOREIGN_NAMES = frozenset({"Omit", "responses.connect"})
"""Calls on the pages that are of a client's library."""
PATH = re.compile(r"(?:[\w.-]+/){2,}|(?:[\w.-]+/)*[\w-]+\.(?:md|py|toml|txt)")
"""A relative path: a file of a kind that we have, or a folder in a folder."""

MADE = re.compile(r"^`([\w/.]+)`:$", re.MULTILINE)
"""The path of a file that the reader of a how-to page makes or changes: `tests/test_how_to.py` follows the page."""

# In pieces, so that this file does not name them itself.
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
        ("rubygems", "org"),
    )
)
HOME = re.compile(r"(?<![\w.<>*{}-])/(?:(?:home|Users)/[\w.-]+/|r[o]ot/)")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def read(name: str) -> str:
    return (ROOT / name).read_text()


def code_of(text: str) -> str:
    """All code of a page, one piece a line."""
    return "\n".join([*inline_of(text), *(body for _, body in FENCE.findall(text))])


def inline_of(text: str) -> list[str]:
    """The pieces of code within a page's prose."""
    return INLINE.findall(FENCE.sub("", text))


@cache
def sources() -> str:
    return "\n".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading}"
    return found[1]


def table_rows(text: str) -> list[list[str]]:
    """The cells of a section's first table, without its heading."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a page's shell examples, without what they set in front."""
    for block in blocks(text, "sh"):
        for part in re.split(r"&&|\n(?=\S)", block.replace("\\\n", " ")):
            words = shlex.split(part, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words


@pytest.fixture(scope="module")
def database() -> Database:
    fresh = Database(memory=True)
    migrate(fresh)
    return fresh


# --- the schema -------------------------------------------------------------------------------------------------------


def test_every_table_is_described_and_no_other(database: Database) -> None:
    described = re.findall(r"^## `(\w+)`$", read("docs/schema.md"), re.MULTILINE)
    assert sorted(described) == sorted(name for name in database.table_names() if not name.startswith("_"))


def test_every_column_is_described_in_its_order_and_no_other(database: Database) -> None:
    page = read("docs/schema.md")
    for table in filter(lambda table: not table.name.startswith("_"), database.tables):
        described = [(row[0].strip("`"), row[1]) for row in table_rows(section(page, f"`{table.name}`"))]
        assert described == [(column.name, column.type.lower()) for column in table.columns]


def test_every_error_type_that_is_described_is_in_the_code() -> None:
    described = [row[0].strip("`") for row in table_rows(section(read("docs/schema.md"), "Error types"))]
    assert len(described) > 10
    assert [kind for kind in described if f'"{kind.partition("<")[0]}' not in sources()] == []


def test_every_query_runs(database: Database) -> None:
    asked = [query for block in blocks(read("docs/schema.md"), "sql") for query in block.split(";") if query.strip()]
    pages = ("README.md", "docs/quick-start.md")
    asked += [words[-1] for page in pages for words in commands(read(page)) if words[0].endswith("sqlite-utils")]
    assert len(asked) == 5
    for query in asked:
        assert database.execute(query).fetchall() == []


# --- what the code has, the documentation has -------------------------------------------------------------------------


def test_every_program_that_is_recognised_is_listed() -> None:
    rows = table_rows(section(read("docs/clients.md"), "How a client is recognised"))
    assert [row[0] for row in rows] == [program.name for program in clients.PROGRAMS]
    for row, program in zip(rows, clients.PROGRAMS, strict=True):
        agents, other, sessions = (re.findall(r"`([^`]+)`", cell) for cell in row[1:])
        assert agents == [agent.decode() for agent in program.agents]
        assert sessions[: len(program.session_headers)] == [header.decode() for header in program.session_headers]
        marks = [f"originator: {program.originator.decode()}"] if program.originator else []
        assert other == marks + [marker.decode() for marker in program.markers]


def test_every_variable_for_programs_is_listed() -> None:
    rows = table_rows(section(read("docs/cli.md"), "`aibridge env`"))
    listed = [(name, row[2]) for row in rows for name in INLINE.findall(row[0])]
    both = {"programs that read only this spelling": "nearly all programs"}
    assert listed == [(variable.name, both.get(variable.used_by, variable.used_by)) for variable in VARIABLES]


def test_every_measured_program_is_in_the_table_of_constraints() -> None:
    rows = table_rows(section(read("docs/security.md"), "A CA with constraints"))
    verdicts = {INLINE.findall(row[0])[0]: (row[2], row[3].strip("*")) for row in rows}
    assert {runtime.name for runtime in RUNTIMES} <= set(verdicts)
    assert [program for program, verdict in verdicts.items() if verdict != ("accepted", "refused")] == ["java"]


def test_every_page_is_listed_in_the_index() -> None:
    listed = {(ROOT / "docs" / link).resolve() for link in LINK.findall(read("docs/index.md"))}
    pages = {page for page in PAGES if page.parent.is_relative_to(ROOT / "docs")}
    assert pages - listed == {ROOT / "docs" / "index.md"}


def test_every_module_and_function_on_a_bytes_way_is_there() -> None:
    code = sources()
    page = code_of(read("docs/how-a-byte-travels.md"))
    modules = re.findall(r"^([\w/]+\.py)$", page, re.MULTILINE)
    functions = re.findall(r"^(?:(\w+)\.)?(\w+)\(\)$", page, re.MULTILINE)
    assert len(modules) > 15 and len(functions) > 40
    assert [module for module in modules if not (PACKAGE / module).is_file()] == []
    owners = [owner for owner, _ in functions if owner and not re.search(rf"^class {owner}\b", code, re.MULTILINE)]
    assert set(owners) <= {"bridge"}
    undefined = [name for _, name in functions if not re.search(rf"\bdef {name}\(|\b{name} = ", code)]
    assert undefined == []


def test_what_is_not_there_yet_is_accepted_or_refused_as_the_page_says() -> None:
    accepted, refused = set[str](), set[str]()
    for bullet in re.findall(
        r"^- (.*?)(?=^- |^$)", section(read("README.md"), "Not there yet"), re.MULTILINE | re.DOTALL
    ):
        keys = [key for key in INLINE.findall(bullet) if re.fullmatch(r"[a-z_]+(\[\])?(\.[a-z_]+)?", key)]
        (refused if bullet.startswith("Refused") else accepted).update(keys)
    assert accepted == set()
    assert {key for key in accepted if not is_a_key(key)} == set()
    assert {key for key in refused if is_a_key(key)} == set()


def is_a_key(path: str) -> bool:
    value = plain(Settings())
    for part in re.findall(r"\w+", path):
        value = value[0] if isinstance(value, list) else value
        if part not in value:
            return False
        value = value[part]
    return True


def test_every_command_there_is_has_a_place_in_the_readme() -> None:
    text = section(read("README.md"), "Command line")
    assert re.findall(r"`aibridge ([a-z]+)`", text) == sorted(cli.COMMANDS)


def test_every_decision_is_listed_in_its_order_under_its_title() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [page.read_text().partition("\n")[0].removeprefix("# ") for page in decisions]
    listed = re.findall(r"^(\d+\.) \[([^\]]+)\]\(decisions/([^)]+)\)$", read("docs/index.md"), re.MULTILINE)
    assert [f"{number} {title}" for number, title, _ in listed] == titles
    assert [name for *_, name in listed] == [page.name for page in decisions]


@pytest.mark.parametrize("heading", ["Context", "Decision", "Alternatives", "Consequences"])
def test_every_decision_has_the_same_sections(heading: str) -> None:
    for page in (ROOT / "docs" / "decisions").glob("*.md"):
        assert section(page.read_text(), heading).strip(), page.name


# --- what the documentation names, is there ---------------------------------------------------------------------------


def test_every_make_command_is_a_target() -> None:
    targets = set(re.findall(r"^([\w.-]+):", read("Makefile"), re.MULTILINE))
    make = re.compile(r"(?<!certs)(?:^|\s)make ([\w.-]+)")
    named = {name for page in PAGES for name in make.findall(code_of(page.read_text()))}
    assert {"run", "test"} <= named <= targets


@pytest.mark.parametrize("page", SHELL_PAGES)
def test_every_command_of_an_example_exists(page: str) -> None:
    found = list(commands(read(page)))
    assert found
    for words in found:
        program = words[0].removeprefix(".venv/bin/")
        assert program in OTHER_PROGRAMS or (BIN / program).is_file(), words


@pytest.mark.parametrize("page", SHELL_PAGES)
def test_every_subcommand_and_its_options_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in re.findall(r"\baibridge ([a-z][^)`&#\n]*)", code_of(read(page))):
        words = line.split()
        with pytest.raises(SystemExit) as ended:
            cli.main([words[0], "--help"])
        assert ended.value.code == 0, line
        offered = capsys.readouterr().out
        assert [word for word in words if word.startswith("--") and word not in offered] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_function_that_a_page_names_exists(name: str) -> None:
    named = [code[:-2] for code in inline_of(read(name)) if re.fullmatch(r"[\w.]+\(\)", code)]
    for function in (function for function in named if function not in FOREIGN_NAMES):
        owner, _, method = function.rpartition(".")
        assert re.search(rf"\b(?:def|class) {method}\b|\b{method} = ", sources()), function
        assert not owner or re.search(rf"^class {owner}\b", sources(), re.MULTILINE), function


@pytest.mark.parametrize("name", NAMES)
def test_every_path_that_a_page_names_exists(name: str) -> None:
    made = set(MADE.findall(read(name)))
    for path in filter(PATH.fullmatch, inline_of(read(name))):
        if path in made:
            continue
        places = (ROOT / path, PACKAGE / path, (ROOT / name).parent / path)
        assert any(place.exists() for place in places), path


def test_a_path_that_does_not_exist_would_be_found() -> None:
    paths = ["wire/sse.py", "proxy/stream/", "schema.py", "docs/missing.md", "tests/support/aws_frames.py"]
    assert list(filter(PATH.fullmatch, paths)) == paths
    assert list(filter(PATH.fullmatch, ["/v1/messages", "mux/", "HTTP/1.1", "us.anthropic", "~/.mitmproxy"])) == []


def test_every_message_of_the_troubleshooting_page_is_in_the_code() -> None:
    """Messages of mitmproxy, databases and the system are marked; those of clients are in a table of another kind."""
    missing = []
    for table in re.findall(r"^\|.*\bMessage \|.*\n(?:\|.*\n)+", read("docs/troubleshooting.md"), re.MULTILINE):
        column = table.partition("\n")[0].strip("|").split("|").index(" Message ")
        for row in table_rows(table):
            if not re.search(r"(?:mitmproxy|SQLite|PostgreSQL|The system)'s message", "".join(row)):
                pieces = [piece.strip() for code in INLINE.findall(row[column]) for piece in code.split("…")]
                missing += [piece for piece in pieces if piece and piece not in sources()]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_resolves(name: str) -> None:
    page = ROOT / name
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT) and target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# --- how pages are written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_line_is_longer_than_a_screen(name: str) -> None:
    """What a program prints, in a block without a language, stays as it is; so does a line that is one long link."""
    text = FENCE.sub(lambda block: block[0] if block[1] else "", read(name))
    lines = [line for line in text.splitlines() if not re.fullmatch(r"\S*https?://\S+", line.strip())]
    long = [line for line in lines if len(line) > (MAX_ROW if line.startswith("|") else MAX_LINE)]
    assert long == []


@pytest.mark.parametrize("name", NAMES)
def test_every_page_is_in_plain_words(name: str) -> None:
    assert NOT_PLAIN.findall(read(name)) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "README.md"])
def test_every_page_begins_with_a_paragraph_that_says_whom_it_is_for(name: str) -> None:
    first = FENCE.sub("", read(name)).split("\n\n")[1]
    assert re.match(r"This page is (?:the reference [\w' ]+, )?for ", " ".join(first.split())), first


# --- what no file may hold --------------------------------------------------------------------------------------------


def files() -> Iterator[Path]:
    """The project's own files: the top level and its folders, without what is made while working."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith("aibridge."))
    for folder in OURS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and GENERATED.isdisjoint(path.parts) and path.suffix not in {".pyc", ".p12"}:
                yield path


@pytest.mark.parametrize("name", ["README.md", "tests/test_docs.py", "constraints.txt", ".ci/run"])
def test_the_search_of_files_reaches(name: str) -> None:
    assert ROOT / name in set(files())


def test_no_file_names_a_package_registry_or_a_home_folder() -> None:
    found = []
    for path in files():
        text = path.read_bytes().decode("utf-8", "replace")
        found += [(path.relative_to(ROOT), host) for host in REGISTRIES if host in text.lower()]
        found += [(path.relative_to(ROOT), home) for home in HOME.findall(text)]
    assert found == []


@pytest.mark.parametrize("text", ["see /ho" + "me/somebody/x", "/Us" + "ers/a.b/c", '"/r' + 'oot/x"'])
def test_a_home_folder_would_be_found(text: str) -> None:
    assert HOME.search(text)
