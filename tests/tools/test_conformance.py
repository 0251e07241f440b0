"""The conformance suite of the MCP project, as far as a client without a user can go."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.mcp_servers import npm_package

SUITE, VERSION = "@modelcontextprotocol/conformance", "0.1.13"
CLIENT = Path(__file__).parents[1] / "support" / "conformance_client.py"
ROOT = Path(__file__).parents[2]
SCENARIOS = ("initialize", "tools_call", "sse-retry")
NOT_COVERED = {
    "elicitation-sep1034-client-defaults": "a user has to answer, and there is none",
    "auth/": "the suite expects that the client logs in by itself; here a person opens a link",
}
"""Beginnings of the names of scenarios, and why they are left out."""
NOT_JUDGED = {"client-sse-retry-timing"}
"""Checks that compare times, which a busy machine fails."""


def _statuses(folder: Path) -> dict[str, str]:
    """Return the checks of a scenario and their statuses."""
    [written] = folder.rglob("checks.json")
    checks = json.loads(written.read_text())
    return {check["id"]: check["status"] for check in checks if check["id"] not in NOT_JUDGED}


async def conformance(*arguments: str) -> str:
    node, folder = await asyncio.to_thread(npm_package, SUITE, VERSION)
    process = await asyncio.create_subprocess_exec(
        node,
        str(folder / "dist" / "index.js"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    output, _ = await process.communicate()
    return output.decode()


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_client_passes_the_checks_of(scenario: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -P {CLIENT}"
    options = ("--scenario", scenario, "--timeout", "90000", "--output-dir", str(tmp_path))
    output = await conformance("client", "--command", command, *options)
    statuses = _statuses(tmp_path)
    assert "SUCCESS" in statuses.values(), output
    assert not {id for id, status in statuses.items() if status in ("FAILURE", "WARNING")}, output


async def test_every_scenario_is_covered_or_named_with_the_reason() -> None:
    listed = re.findall(r"^  - (\S+)", await conformance("list", "--client"), re.MULTILINE)
    assert set(SCENARIOS) <= set(listed)
    left = [name for name in listed if name not in SCENARIOS and not name.startswith(tuple(NOT_COVERED))]
    assert left == []
