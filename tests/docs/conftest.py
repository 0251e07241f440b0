"""Fixtures for tests of what the documentation has for other programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.mcp_servers import HttpMcp


@pytest.fixture
def ours() -> Iterator[HttpMcp]:
    """An MCP server over streamable HTTP."""
    with HttpMcp() as server:
        yield server
