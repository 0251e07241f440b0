"""What all modules of a test process share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.mcp_servers import HttpMcp


@pytest.fixture(scope="session")
def ours() -> Iterator[HttpMcp]:
    """Our MCP server over HTTP; a test that ends it starts one of its own."""
    with HttpMcp() as server:
        yield server
