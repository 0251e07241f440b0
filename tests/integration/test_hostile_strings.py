"""Every text that others choose, on every surface: it stays text.

The table is `tests.support.hostile.TEXTS`. Each text is at once model, tool, prompt, actor, session, user agent,
project, error and all else that a client or a provider chooses, of rows in a database and of records for the sinks.
What a surface shows of it is compared with what it shows of a plain word.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.request import urlopen
from zoneinfo import ZoneInfo

import jsonschema  # type: ignore[import-untyped]
import pytest
from markdown_it import MarkdownIt
from mitmproxy import http
from mitmproxy.test import tflow
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from rich.cells import cell_len
from starlette.testclient import TestClient

from aibridge_addon import cli
from aibridge_addon.bridge import Bridge
from aibridge_addon.cli import summary
from aibridge_addon.config import schema
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.values import Listen
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.proxy.interactive import conversation
from aibridge_addon.proxy.interactive.annotation import Annotation
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.preparation import Preparation
from aibridge_addon.recording.reports import Usage
from aibridge_addon.recording.runs import Calls, RunUsage
from aibridge_addon.records import Readiness, Record, utc_now
from aibridge_addon.telemetry.log import sink as log
from aibridge_addon.telemetry.log.formatters import JsonFormatter, TextFormatter
from aibridge_addon.telemetry.log.line import DIM, GREEN, RED, RESET
from aibridge_addon.telemetry.prometheus.listener import Listener
from aibridge_addon.telemetry.prometheus.metrics import Metrics
from aibridge_addon.web.app import Source, application
from aibridge_addon.wire.printable import UNSAFE
from tests.support.databases import PostgresDatabase, SqliteDatabase, write
from tests.support.examples import uid
from tests.support.hostile import PLAIN, TEXTS, everywhere
from tests.telemetry.tracing.test_spans import Stage

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "log.schema.json").read_text())
FORMULA = tuple("=+-@＝＋－＠")
PREPARATION = Preparation(schema.Recording())
EVERY_KEY = "model,user,session,agent,client,project,credential_hint,upstream_host"


@dataclass(frozen=True)
class Recorded:
    """A database in which every text is this one."""

    text: str
    url: str
    at: datetime


def prepared(text: str, at: datetime, name: str = "h") -> list[Record]:
    """Return records with this text everywhere, as every sink gets them."""
    return [PREPARATION(record) for record in everywhere(text, at, name)]


def recorded(folder: Path, text: str) -> Recorded:
    database, at = SqliteDatabase(folder / "aibridge.db"), utc_now()
    write(database, *prepared(text, at))
    return Recorded(text, database.url, at)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return recorded(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="module", params=list(TEXTS))
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return recorded(tmp_path_factory.mktemp("hostile"), TEXTS[request.param])


each_text = pytest.mark.parametrize("text", list(TEXTS.values()), ids=list(TEXTS))


def assert_no_controls(shown: str) -> None:
    """A terminal shows this text, and does nothing else. Lines may end."""
    found = UNSAFE.search(shown)
    assert found is None, (found, shown[max(0, found.start() - 80) : found.start() + 80])
    shown.encode()


# --- the command line


class Command:
    """Runs commands over a database, as a process without a terminal does."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self._folder = folder

    def __call__(self, place: Recorded, *arguments: str, width: int = 80, code: int = 0) -> str:
        self._monkeypatch.setenv("COLUMNS", str(width))
        self._capsys.readouterr()
        if "budgets" in arguments:
            config = self._folder / "aibridge.yaml"
            config.write_text(f"database: {place.url}\nbudgets: [{{name: b, per: actor, period: day, usd: 1}}]\n")
            given = ("--config", str(config))
        else:
            given = ("--database", place.url)
        assert cli.main([*arguments, *given]) == code
        out, err = self._capsys.readouterr()
        return out or err


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    return Command(capsys, monkeypatch, tmp_path)


REPORTS = [["report", kind] for kind in ("daily", "weekly", "monthly", "sessions", "models", "users", "tools")]
REPORTS += [["report", kind] for kind in ("clients", "providers", "budgets", "limits")]
REPORTS += [["report", "daily", "--by", EVERY_KEY], ["report", "users", "--breakdown"]]
ROWS = [["sessions"], *REPORTS]
"""Commands whose rows have a form for people, and are JSON and CSV, too."""
ONE = ["sessions", "show", uid("h")]
LIVE = ["live", "--once"]


def test_a_table_has_the_same_lines_and_fits_the_terminal(
    command: Command, hostile: Recorded, plain: Recorded, subtests: pytest.Subtests
) -> None:
    for arguments, width in [*((each, 80) for each in ROWS), (["sessions"], 160), (LIVE, 80), (LIVE, 160)]:
        with subtests.test(arguments=arguments):
            shown = command(hostile, *arguments, width=width)
            assert_no_controls(shown)
            if "--by" not in arguments:  # with so many columns, a line is cut
                assert max(map(cell_len, shown.splitlines())) <= width
            assert len(shown.splitlines()) == len(command(plain, *arguments, width=width).splitlines())


def test_a_timeline_is_text_that_fits_the_terminal(command: Command, hostile: Recorded) -> None:
    for arguments in (ONE, *([[*ONE, "--full"]] if len(hostile.text) < 100_000 else [])):  # rich wraps 1 MB in a second
        shown = command(hostile, *arguments)
        assert_no_controls(shown)
        assert max(map(cell_len, shown.splitlines())) <= 80


def test_json_is_one_document_of_the_same_shape(
    command: Command, hostile: Recorded, plain: Recorded, subtests: pytest.Subtests
) -> None:
    for arguments in (*ROWS, ONE, ["live"]):
        with subtests.test(arguments=arguments):
            shown = command(hostile, *arguments, "--json")
            assert_no_controls(shown)
            assert shape(json.loads(shown)) == shape(json.loads(command(plain, *arguments, "--json")))


def shape(value: Any) -> Any:
    """Return the form of a JSON value. Names that others chose are not part of it."""
    match value:
        case dict():
            return sorted((shape(item) for name, item in value.items() if name != "metadata"), key=repr)
        case list():
            return [shape(item) for item in value]
        case int() | float():
            return "a number"
    return type(value).__name__


def test_csv_has_the_same_rows_and_no_formula(
    command: Command, hostile: Recorded, plain: Recorded, subtests: pytest.Subtests
) -> None:
    for arguments in ROWS:
        with subtests.test(arguments=arguments):
            shown = command(hostile, *arguments, "--csv")
            assert_no_controls(shown)
            rows = csv_rows(shown)
            assert not [cell for row in rows for cell in row if cell.lstrip().startswith(FORMULA)]
            assert [len(row) for row in rows] == [len(row) for row in csv_rows(command(plain, *arguments, "--csv"))]


def csv_rows(text: str) -> list[list[str]]:
    csv.field_size_limit(10_000_000)
    return list(csv.reader(io.StringIO(text), strict=True))


@each_text
def test_an_id_that_is_not_there_is_text(command: Command, plain: Recorded, text: str) -> None:
    given = "x" + text.replace("\0", "")[:10_000].encode("utf-8", "replace").decode()
    assert_no_controls(command(plain, "sessions", "show", given, code=1))


def test_an_export_has_one_object_in_each_line(
    command: Command, hostile: Recorded, plain: Recorded, tmp_path: Path
) -> None:
    def exported(place: Recorded) -> str:
        command(place, "export", str(tmp_path / "rows.jsonl"))
        return (tmp_path / "rows.jsonl").read_bytes().decode()

    found = exported(hostile)
    assert_no_controls(found)
    tables = [json.loads(line).get("table") for line in found.split("\n")[:-1]]
    assert tables == [json.loads(line).get("table") for line in exported(plain).split("\n")[:-1]]


def test_postgresql_shows_what_sqlite_shows(command: Command, postgres: PostgresDatabase) -> None:
    at = utc_now()
    for number, text in enumerate(TEXTS.values()):
        write(postgres, *prepared(text, at, f"h{number:02}"))
    place = Recorded("", postgres.url, at)
    for arguments in (*ROWS, LIVE, ["sessions", "show", uid("h01")]):
        assert_no_controls(command(place, *arguments))
        if "live" not in arguments:
            found = json.loads(command(place, *arguments, "--json"))
            assert found["rows"] or "budgets" in arguments
    pages = pages_of(place)
    for path in PAGES:
        assert_no_controls(pages.get(path.replace(uid("h"), uid("h01"))).text)


# --- the summary of a run


def usage_of(text: str) -> RunUsage:
    used = Usage(interceptions=1, costs={"api": 0.25})
    return RunUsage({text: used}, {text: 1}, [Calls(text, text, injected=True, calls=1, failed=1)])


@each_text
def test_the_summary_of_a_run_has_the_same_lines(text: str) -> None:
    shown = summary.text(usage_of(text))
    assert_no_controls(shown)
    assert len(shown.splitlines()) == len(summary.text(usage_of(PLAIN)).splitlines())
    assert max(map(cell_len, shown.splitlines()[:-1])) <= 90
    commands = [line for line in shown.splitlines() if line.strip().startswith(("::", "##["))]
    assert not commands  # GitHub's runner obeys such a line
    assert shape(json.loads(json.dumps(summary.document(usage_of(text))))) == shape(summary.document(usage_of(PLAIN)))


@each_text
def test_the_summary_of_a_job_is_a_table_without_markup(text: str) -> None:
    def tokens(text: str) -> list[str]:
        made = summary.markdown(usage_of(text), f"run {text}")
        assert_no_controls(made)
        assert "://" not in made and "www." not in made and "@" not in made  # GitHub makes links of these
        parsed = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(made)
        parts = [part for token in parsed for part in [token, *(token.children or ())]]
        return [part.type for part in parts if part.type not in ("text", "text_special")]

    assert tokens(text) == tokens(PLAIN)


# --- pages


SESSION = f"/session?id={uid('h')}"
PAGES = ("/", "/sessions", SESSION, f"{SESSION}&full=1", "/tools", "/providers", "/budgets", "/unpriced")
BUDGET: Mapping[str, Any] = {
    "per": "actor",
    "period": "day",
    "spent": 36.5,
    "limit": 40.0,
    "unit": "usd",
    "used": 0.9,
    "over": "refuse",
    "resets_at": "2026-02-01T00:00:00+00:00",
}


class Structure(HTMLParser):
    """Elements with the names of their attributes, and the values of links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, list[str]]] = []
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, [name for name, _ in attrs]))
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", []))


def pages_of(place: Recorded, token: str | None = None) -> TestClient:
    settings = Settings.model_validate({"database": place.url})
    source = Source(
        open=partial(queries, settings),
        budgets=lambda: [{**BUDGET, "name": place.text, "subject": place.text}],
        name=place.text or "x",
        zone=ZoneInfo("UTC"),
        now=utc_now,
    )
    return TestClient(application(source, token=token), base_url="http://127.0.0.1:9470", follow_redirects=False)


def structure(html: str) -> Structure:
    assert_no_controls(html)
    assert len(html) < 10_000_000
    found = Structure(html)
    assert all(link.startswith(("/", "#")) and not link.startswith("//") for link in found.links)
    return found


def test_a_page_has_the_same_elements(hostile: Recorded, plain: Recorded, subtests: pytest.Subtests) -> None:
    shown, wanted = pages_of(hostile), pages_of(plain)
    for path in PAGES:
        with subtests.test(path=path):
            assert structure(shown.get(path).text).elements == structure(wanted.get(path).text).elements


@each_text
def test_what_a_page_is_asked_for_is_text(plain: Recorded, text: str, subtests: pytest.Subtests) -> None:
    given = text.encode("utf-8", "replace").decode()[:2_000]
    names = ("search", "actor", "model", "id", "page", "days", "full", "wrong", "token")
    pages = pages_of(plain)
    for path in ("/", "/sessions", "/session", "/login"):
        with subtests.test(path=path):
            found = structure(pages.get(path, params=dict.fromkeys(names, given)).text)
            wanted = structure(pages.get(path, params=dict.fromkeys(names, "nothing")).text)
            assert found.elements == wanted.elements


# --- the sinks


class Lines(logging.Handler):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.formatter = formatter
        self.made: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.made.append(self.format(record))


def logged(formatter: logging.Formatter, form: str, taken: Sequence[Record]) -> list[str]:
    handler, logger = Lines(formatter), logging.getLogger(log.__name__)
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        made = log.log_sink(Settings.model_validate({"log": {"format": form}}), Readiness)
        assert made is not None
        made.start()
        made.emit(taken)
        made.close(60)
        assert made.ended
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    return handler.made


@pytest.mark.parametrize("width", [None, 80, 160])
@each_text
def test_the_log_has_one_line_for_an_interception(text: str, width: int | None) -> None:
    formatter = TextFormatter(logging.Formatter(), width=lambda: width, colour=True)
    for line in logged(formatter, "text", prepared(text, utc_now())):
        bare = re.sub("|".join(map(re.escape, (RED, GREEN, DIM, RESET))), "", line, count=4)
        assert_no_controls(bare)
        assert len(bare.splitlines()) == 1
        assert cell_len(bare) <= (width or 3_000) or "refused: " in bare
        assert len(bare) <= 3_000


@each_text
def test_another_line_of_the_log_stays_one_line(text: str) -> None:
    made = Lines(TextFormatter(logging.Formatter(), width=lambda: 80, colour=True))
    made.handle(logging.LogRecord("aibridge_addon.proxy", logging.WARNING, "", 1, "a model: %s", (text,), None))
    [line] = made.made
    assert_no_controls(line)
    assert line.startswith("a model: ") and len(line.splitlines()) == 1
    assert len(line) < 5_000


@each_text
def test_the_log_of_objects_has_one_in_each_line(text: str) -> None:
    made = logged(JsonFormatter(logging.Formatter()), "json", prepared(text, utc_now()))
    assert len(made) == 11
    for line in made:
        assert line.isascii() and line.isprintable()
        assert len(line) < 1_000_000
        jsonschema.validate(json.loads(line), SCHEMA, format_checker=jsonschema.FormatChecker())


@each_text
def test_labels_of_metrics_make_no_other_samples(text: str) -> None:
    def made(text: str) -> Metrics:
        metrics = Metrics(schema.Metrics())
        for record in prepared(text, utc_now()):
            metrics.emit(record)
        return metrics

    def names(read: Callable[[str], Any], shown: str) -> list[str]:
        assert_no_controls(shown)
        samples = [sample for family in read(shown) for sample in family.samples]
        assert all(len(value) <= 128 for sample in samples for value in sample.labels.values())
        return [sample.name for sample in samples]

    forms: list[tuple[Callable[[Any], bytes], Callable[[str], Any]]] = [
        (generate_latest, text_string_to_metric_families),
        (openmetrics.generate_latest, openmetrics_parser.text_string_to_metric_families),
    ]
    for render, read in forms:
        found = names(read, render(made(text).registry).decode())
        assert sorted(set(found)) == sorted(set(names(read, render(made(PLAIN).registry).decode())))


@each_text
def test_the_page_for_probes_is_one_line_of_json(text: str) -> None:
    async def ready() -> tuple[bool, dict[str, Sequence[str]]]:
        return True, {"degraded": [text], text: text}

    listener = Listener(Listen("127.0.0.1", 0), Metrics(schema.Metrics()).registry, ready=ready)
    listener.start()
    try:
        with urlopen(f"http://127.0.0.1:{listener.port}/readyz", timeout=60) as answer:
            shown = answer.read().decode()
    finally:
        listener.stop()
    assert_no_controls(shown)
    assert shown.isascii() and len(shown.splitlines()) == 1
    assert json.loads(shown)["ready"] is True


@each_text
def test_spans_can_be_encoded_and_are_bounded(text: str) -> None:
    stage = Stage(texts=True)
    stage.take(*prepared(text, utc_now()))
    assert stage.spans
    assert len(encode_spans(stage.spans).SerializeToString()) < 1_000_000
    for span in stage.spans:
        assert len(span.name) <= 300
        for name, value in (span.attributes or {}).items():
            if name.endswith((".messages", ".arguments", ".result")) and str(value)[:1] in "[{":
                json.loads(str(value))


# --- mitmweb


@each_text
def test_the_view_of_a_conversation_and_the_comment_of_a_flow_are_text(text: str) -> None:
    for shown in (conversation.request(request_of(text)), comment_of(text)):
        assert_no_controls(shown)
        assert len(shown) < 1_000_000
    assert len(comment_of(text)) <= 500


def request_of(text: str) -> dict[str, Any]:
    call = {"type": "tool_use", "name": text, "input": {text: text}}
    result = {"type": "tool_result", "content": [{"type": "text", "text": text}]}
    return {
        "model": text,
        "system": text,
        "tools": [{"name": text}, {"type": text}],
        "messages": [{"role": text, "content": [text, {"type": text}, call, result, {"type": "text", "text": text}]}],
    }


def comment_of(text: str) -> str:
    flow = tflow.tflow(resp=True)
    assert isinstance(flow, http.HTTPFlow)
    exchange = SimpleNamespace(emit=lambda _: None)
    bridge = SimpleNamespace(priced=lambda usage: usage)
    Annotation(flow).follow(cast(Exchange, exchange), cast(Bridge, bridge))
    for record in prepared(text, utc_now()):
        exchange.emit(record)
    return flow.comment
