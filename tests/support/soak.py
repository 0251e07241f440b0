"""Property tests in a long run: `SOAK_EXAMPLES` of each property instead of the profile's, as `make soak` asks for."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "0"))
MANY = settings(max_examples=EXAMPLES) if EXAMPLES else settings()
TIMEOUT = pytest.mark.timeout(120 + EXAMPLES)
"""In seconds: no example takes one."""
