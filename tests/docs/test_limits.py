"""Every bound of the page about security has its name and number in the configuration reference, as in the code."""

from __future__ import annotations

import importlib
import re
from http import HTTPStatus

import pytest

from aibridge_addon.config.schema import Limits
from tests.test_docs import read, section, table_rows

BOUNDED = section(read("docs/security.md"), "What is bounded").partition("### How it is tested")[0]
LIMITS = section(read("docs/configuration.md"), "`limits`")
FIXED = table_rows(LIMITS.partition("### Fixed limits")[2])
UNITS = {"KiB": 2**10, "MiB": 2**20, "s": 1}
NO_BOUNDS = {*(status.value for status in HTTPStatus), 1009, 64, 1.1, 1, 2}
"""Statuses, a close code, and numbers in names: IPv6 networks of 64 bits, versions of HTTP, RE2."""


@pytest.mark.parametrize(("name", "number"), [(row[0].strip("`"), row[1]) for row in FIXED])
def test_a_fixed_limit_has_the_number_of_the_code(name: str, number: str) -> None:
    module, _, constant = name.rpartition(".")
    digits, _, unit = number.replace(",", "").partition(" ")
    assert getattr(importlib.import_module(f"aibridge_addon.{module}"), constant) == float(digits) * UNITS.get(unit, 1)


def test_the_names_of_limits_are_those_of_the_configuration() -> None:
    named = set(re.findall(r"`limits\.(\w+)`", BOUNDED))
    assert named == Limits.model_fields.keys()


def test_every_number_has_a_name() -> None:
    numbers = {float(digits.replace(",", "")) for digits in re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?", BOUNDED)}
    defaults = {getattr(Limits(), name) for name in Limits.model_fields}
    named = {float(number.split()[0].replace(",", "")) for _, number, _ in FIXED} | defaults
    examples = {float(digits.replace(",", "")) for digits in re.findall(r"\d[\d,]*", BOUNDED.partition("### Open")[2])}
    assert numbers - named - NO_BOUNDS - examples == set()


def test_no_fixed_limit_is_listed_twice() -> None:
    names = [name for name, *_ in FIXED]
    assert len(names) == len(set(names))
