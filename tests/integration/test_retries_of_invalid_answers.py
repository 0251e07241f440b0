"""An answer whose head is malformed counts as a failed attempt: the number of retries is kept."""

from __future__ import annotations

import json

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.test_broken_upstreams import NONSENSE


@pytest.mark.parametrize("kind", NONSENSE)
@pytest.mark.parametrize("http2", [False, True])
def test_the_request_is_sent_once_and_retried_once(
    start_proxy: StartProxy, make_upstream: MakeUpstream, kind: str, http2: bool
) -> None:
    alpn, answer = NONSENSE[kind]
    upstream = make_upstream(alpn=[alpn])
    upstream.answer(answer, answer, answer, answer)
    config = f"providers:\n- {{name: anthropic, type: anthropic, base_url: '{upstream.url}', max_retries: 1}}\n"
    proxy = start_proxy(config=config)
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        refused = client.post("/v1/messages", b'{"model":"m","messages":[]}')
    assert refused.status == 502 and json.loads(refused.body)["type"] == "error"
    assert len(upstream.requests) == 2
    [row] = wait_for_ended(proxy, 1)
    assert len(row["metadata"]["attempts"]) == 2
