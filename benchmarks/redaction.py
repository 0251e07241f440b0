"""The command: `python -m benchmarks.redaction`. Measure what redaction costs, beside a plain pass over the memory.

It needs neither a proxy nor a network, and takes a few seconds.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import time
from collections.abc import Callable, Mapping

from aibridge_addon.credentials.redaction import Redactor
from benchmarks import report
from benchmarks.report import Result

SIZE = 100_000
"""Bytes."""
BAR = 1.0
"""Milliseconds for `SIZE`."""
ROUNDS = 50
PATTERNS = (r"\b\d{3}-\d{2}-\d{4}\b", "(?i)project-[a-z]+-internal")
SEED = 1
SCRIPT = "function a(b,c){return b?c.d(e=>e.f+1):null}var g={h:'i',j:[1,2]};"
SENTENCE = "the task of a desk is a risk: def get(self, api_key: str) -> None: return https://example.com:8080/a?b=c"


def main() -> int:
    plain, own = Redactor(), Redactor(PATTERNS)
    results = []
    for name, text in _texts().items():
        data = text.encode()
        bare = _milliseconds(data.count, b"\0")
        results += [
            _result(f"redaction, {name}", _milliseconds(plain.text, text), bare),
            _result(f"redaction, {name}, own patterns", _milliseconds(own.text, text), bare),
            _result(f"redaction, {name}, dumped", _milliseconds(plain.encoded, data), bare),
        ]
    print(report.as_json(results) if "--json" in sys.argv else report.as_table(results))
    return 1 if any(result.passed is False for result in results) else 0


def _texts() -> Mapping[str, str]:
    """Return texts of `SIZE` bytes, by name."""
    chance = random.Random(SEED)
    words = " ".join(chance.choices(SENTENCE.split(), k=SIZE))[:SIZE]
    secrets = [f"sk-ant-api03-{base64.urlsafe_b64encode(chance.randbytes(60)).decode()}" for _ in range(5)]
    part = SIZE // len(secrets)
    return {
        "words and code": words,
        "minified JavaScript": (SCRIPT * (SIZE // len(SCRIPT) + 1))[:SIZE],
        "hex": chance.randbytes(SIZE // 2).hex(),
        "base64": base64.b64encode(chance.randbytes(SIZE)).decode()[:SIZE],
        "JSON": json.dumps([words[start : start + 60] + "\n" for start in range(0, SIZE, 80)])[:SIZE],
        "five secrets": "".join(f"{words[: part - len(secret) - 1]} {secret}" for secret in secrets),
    }


def _milliseconds[Text](run: Callable[[Text], object], text: Text) -> float:
    """Return the shortest time of a call: what other processes take is left out."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run(text)
        times.append(time.perf_counter() - began)
    return min(times) * 1000


def _result(name: str, ours: float, bare: float) -> Result:
    return Result(name, "ms", ours, bare=bare, bar=BAR, detail=f"{ours / bare:.0f} × a pass over the memory")


if __name__ == "__main__":
    sys.exit(main())
