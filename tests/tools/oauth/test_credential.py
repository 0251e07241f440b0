"""An actor's token in the requests of its connection."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx2

from aibridge_addon.tools.oauth.credential import TokenCredential

CHALLENGE = 'Bearer error="insufficient_scope", scope="files:write"'


class Granted:
    """In the place of `Tokens`: one token."""

    async def maybe_grant(self, *_: object) -> Any:
        return SimpleNamespace(access_token="older", refresh_token=None)


async def test_a_scope_that_is_missing_counts_once_and_for_its_token_only() -> None:
    """Answers to an older token may come after the login that the first of them has asked for."""
    credential = TokenCredential(Granted(), "s", "ada")  # type: ignore[arg-type]
    refusing = httpx2.MockTransport(lambda _: httpx2.Response(403, headers={"www-authenticate": CHALLENGE}))
    async with httpx2.AsyncClient(auth=credential, transport=refusing) as client:
        await client.get("http://mcp.test/")
        assert credential.take_missing_scope("older") == "files:write"
        assert credential.take_missing_scope("older") is None
        await client.get("http://mcp.test/")
        assert credential.take_missing_scope("newer") is None
