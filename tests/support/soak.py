"""Property tests in a long run, as `make soak` asks for.

`MANY` runs `SOAK_EXAMPLES` examples of a property instead of the profile's number, and `FUZZ` runs `SOAK_FUZZ`.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "0"))
MANY = settings(max_examples=EXAMPLES) if EXAMPLES else settings()
TIMEOUT = pytest.mark.timeout(120 + EXAMPLES)
"""In seconds: no example takes one."""

EXECUTIONS = int(os.environ.get("SOAK_FUZZ", "0"))
FUZZ = settings(
    settings(max_examples=EXECUTIONS) if EXECUTIONS else settings(),
    database=None,  # so a corpus stays as small as the code: what was found becomes a case of a table
    suppress_health_check=list(HealthCheck),
)
"""For the parsers of foreign bytes, each of which is cheap."""
FUZZ_TIMEOUT = pytest.mark.timeout(120 + EXECUTIONS)
