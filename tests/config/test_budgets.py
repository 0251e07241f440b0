"""The keys `budgets` and `actor.groups`: what they accept, and how errors name them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from aibridge_addon.cli.config import plain
from aibridge_addon.config.errors import ConfigError
from aibridge_addon.config.load import load
from aibridge_addon.config.schema import Settings

Write = Callable[[str], Settings]


@pytest.fixture
def configure(tmp_path: Path) -> Write:
    def write(text: str) -> Settings:
        path = tmp_path / "aibridge.yaml"
        path.write_text(text)
        return load(path, environ={})

    return write


def test_a_budget_has_defaults(configure: Write) -> None:
    [budget] = configure("budgets: [{name: a, per: actor, period: day, usd: 5}]").budgets
    assert (budget.unit, budget.limit, budget.timezone, budget.warn_at) == ("usd", 5.0, UTC, 0.85)
    assert (budget.over, budget.unpriced, budget.match.models) == ("refuse", "warn", ())


def test_every_key_of_a_budget_can_be_set(configure: Write) -> None:
    text = (
        "{name: a.B-c_1, per: group, period: week, timezone: Europe/Berlin, tokens: 7, warn_at: 1, over: warn,"
        " unpriced: refuse, match: {actors: [a, 'b*'], groups: x, providers: [], models: null}}"
    )
    [budget] = configure(f"budgets: [{text}]").budgets
    assert (budget.unit, budget.limit, budget.timezone) == ("tokens", 7, ZoneInfo("Europe/Berlin"))
    assert (budget.match.actors, budget.match.groups, budget.match.models) == (("a", "b*"), ("x",), ())


@pytest.mark.parametrize(
    ("entry", "path", "expected"),
    [
        ("{per: all, period: day, usd: 1}", "name", "required"),
        ("{name: a, period: day, usd: 1}", "per", "required"),
        ("{name: a, per: all, usd: 1}", "period", "required"),
        ("{name: a b, per: all, period: day, usd: 1}", "name", "letters, digits"),
        ("{name: a, per: person, period: day, usd: 1}", "per", "'actor', 'group', 'provider', 'model' or 'all'"),
        ("{name: a, per: all, period: year, usd: 1}", "period", "'day', 'week' or 'month'"),
        ("{name: a, per: all, period: day, usd: 1, timezone: Mars/Base}", "timezone", "IANA"),
        ("{name: a, per: all, period: day, usd: 1, timezone: ../etc}", "timezone", "IANA"),
        ("{name: a, per: all, period: day, usd: 1, timezone: 2}", "timezone", "IANA"),
        ("{name: a, per: all, period: day}", "usd", "exactly one of usd, tokens, requests"),
        ("{name: a, per: all, period: day, usd: 1, tokens: 2}", "tokens", "exactly one of usd, tokens, requests"),
        ("{name: a, per: all, period: day, usd: 0}", "usd", "greater than 0"),
        ("{name: a, per: all, period: day, usd: -1}", "usd", "greater than 0"),
        ("{name: a, per: all, period: day, usd: .inf}", "usd", "number"),
        ("{name: a, per: all, period: day, usd: true}", "usd", "number"),
        ("{name: a, per: all, period: day, tokens: 1.5}", "tokens", "whole number"),
        ("{name: a, per: all, period: day, usd: 1, warn_at: 1.1}", "warn_at", "at most 1"),
        ("{name: a, per: all, period: day, usd: 1, over: stop}", "over", "'refuse' or 'warn'"),
        ("{name: a, per: all, period: day, usd: 1, unpriced: stop}", "unpriced", "'warn', 'refuse' or 'ignore'"),
        ("{name: a, per: all, period: day, usd: 1, match: {model: [x]}}", "match.model", "models"),
        ("{name: a, per: all, period: day, usd: 1, match: {models: 5}}", "match.models", "a list"),
        ("{name: a, per: all, period: day, usd: 1, match: {models: ['']}}", "match.models[0]", "a pattern"),
    ],
)
def test_a_wrong_budget_is_reported_with_its_key(configure: Write, entry: str, path: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(f"budgets: [{entry}]")
    [problem] = caught.value.problems
    assert problem.path == f"budgets[0].{path}"
    assert expected in problem.expected


def test_two_budgets_cannot_have_the_same_name(configure: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        configure("budgets:\n" + "- {name: a, per: all, period: day, usd: 1}\n" * 2)
    assert [problem.path for problem in caught.value.problems] == ["budgets[1].name"]


@pytest.mark.parametrize(("period", "days"), [("day", 2), ("week", 8), ("month", 32)])
@pytest.mark.parametrize("form", ["{}", "{{rows: {}}}", "{{rows: {}, content: 1h}}"])
def test_rows_have_to_be_kept_for_the_periods_of_budgets(configure: Write, period: str, days: int, form: str) -> None:
    def kept(lifetime: str) -> Settings:
        budgets = f"budgets: [{{name: a, per: all, period: {period}, requests: 1}}]"
        return configure(f"{budgets}\nrecording: {{retention: {form.format(lifetime)}}}")

    assert kept(f"{days}d").budgets
    with pytest.raises(ConfigError) as caught:
        kept(f"{days * 24 - 1}h")
    [problem] = caught.value.problems
    assert problem.path == "budgets[0].period"
    assert problem.found == f"{period}, which is longer than recording.retention.rows"
    assert f"recording.retention.rows to at least {days}d" in problem.expected


def test_rows_that_are_kept_for_ever_suit_every_budget(configure: Write) -> None:
    assert configure("budgets: [{name: a, per: all, period: month, requests: 1}]\nrecording: {retention: 0}").budgets


def test_groups_have_patterns_a_header_and_a_file(configure: Write, tmp_path: Path) -> None:
    (tmp_path / "groups.yaml").write_text("red: [carol]\nblue: [dave]\n")
    groups = configure("actor: {groups: {red: [alice, 'b*'], header: X-Groups, file: groups.yaml}}").actor.groups
    assert groups.header == "X-Groups"
    assert groups.patterns == {"red": ("alice", "b*"), "blue": ("dave",)}


def test_a_group_may_be_called_header_or_file(configure: Write) -> None:
    groups = configure("actor: {groups: {header: [alice], file: [bob]}}").actor.groups
    assert (groups.header, groups.file) == (None, None)
    assert groups.patterns == {"header": ("alice",), "file": ("bob",)}


@pytest.mark.parametrize(
    ("groups", "path"),
    [
        ("{red: 7}", "actor.groups.red"),
        ("{red: ['']}", "actor.groups.red[0]"),
        ("{header: 'no header'}", "actor.groups.header"),
        ("7", "actor.groups"),
    ],
)
def test_wrong_groups_are_reported_with_their_key(configure: Write, groups: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(f"actor: {{groups: {groups}}}")
    assert [problem.path for problem in caught.value.problems] == [path]


def test_a_file_of_groups_that_is_not_there_is_an_error(configure: Write) -> None:
    with pytest.raises(ConfigError, match=r"groups\.yaml: found a file that cannot be read"):
        configure("actor: {groups: {file: groups.yaml}}")


def test_the_command_shows_budgets_and_groups_as_they_are_written(configure: Write) -> None:
    settings = configure(
        "actor: {groups: {red: [alice], header: X-Groups}}\n"
        "budgets: [{name: a, per: all, period: day, usd: 5, timezone: Asia/Kolkata}]\n"
    )
    shown = plain(settings)
    assert shown["actor"]["groups"] == {"header": "X-Groups", "red": ["alice"]}
    assert shown["budgets"][0]["timezone"] == "Asia/Kolkata"
    assert Settings.model_validate(shown).budgets == settings.budgets
