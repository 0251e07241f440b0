"""The vendors' own Python SDKs over mitmdump, end to end."""

from __future__ import annotations

import pytest

from tests.conftest import StartMitmdump
from tests.integration.sdks import (
    CASES,
    WAYS,
    Sdks,
    answer_of,
    check_answer,
    check_requests,
    configuration,
    expected,
    last_recorded,
)
from tests.support.upstream import ScriptedUpstream

# Fixtures name models that their vendor has since deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The model:DeprecationWarning"),
    pytest.mark.usefixtures("no_proxy_of_our_own"),
]


@pytest.mark.parametrize("way", WAYS)
def test_what_an_sdk_reads_is_what_was_sent_and_recorded(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, way: str
) -> None:
    process = mitmdump(config=configuration(upstream.url))
    sdks = Sdks(process, way)
    for case in CASES:
        upstream.answer(answer_of(case))
        answer = sdks.ask(case)
        recorded = last_recorded(process)
        assert recorded == expected(case), case
        check_answer(case, answer)
    sdks.close()
    check_requests(upstream, way)
