"""A process with few file descriptors, and clients that open more connections than that."""

from __future__ import annotations

import resource
import socket
import sys
from contextlib import ExitStack, suppress

import pytest

from tests.conftest import MakeUpstream, StartMitmdump
from tests.integration.answers import ask
from tests.support.fixtures import case
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import Answer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sets the limit of another process")

FILES = 256
IDLE = FILES + FILES // 4
"""More than there are descriptors, and fewer than the test itself may open."""


def start(start_mitmdump: StartMitmdump, make_upstream: MakeUpstream) -> Mitmdump:
    upstream = make_upstream()
    upstream.handle(lambda _: Answer.json({}))
    return start_mitmdump(config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]")
