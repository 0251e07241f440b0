"""Write `litellm_prices.json`, the part of litellm's price table that the tests compare with.

`litellm` itself is not a test dependency: its wheel has 44 MB and brings some 50 packages for one file of data.

    python -m tests.recording.litellm_prices path/to/litellm-1.110.2-….whl
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("litellm_prices.json")
TABLE = "litellm/model_prices_and_context_window_backup.json"

PROVIDERS = frozenset(
    """anthropic openai azure azure_ai bedrock bedrock_converse bedrock_mantle github_copilot xai mistral deepseek groq
    gemini""".split()  # noqa: SIM905 (a list of words reads better)
)
MODES = frozenset({"chat", "responses", "embedding"})
RATE = re.compile(
    r"(?:input|output)_cost_per_(?:audio_)?token(?:_above_\d+k_tokens)?(?:_batches|_flex|_priority|_ultrafast)?"
    r"|cache_(?:read|creation)_input_token_cost(?:_above_1hr|_above_12hr)?(?:_above_\d+k_tokens)?"
    r"(?:_batches|_flex|_priority|_ultrafast)?"
)


def extract(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Keep the rates of tokens of the providers that are compared."""
    return {
        name: {"provider": entry["litellm_provider"]}
        | {key: value for key, value in sorted(entry.items()) if RATE.fullmatch(key) and isinstance(value, float)}
        for name, entry in sorted(table.items())
        if entry.get("litellm_provider") in PROVIDERS and entry.get("mode") in MODES
    }


def main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        table = json.loads(archive.read(TABLE))
    content = {
        "litellm": wheel.name.split("-")[1],
        "date": datetime.now(UTC).date().isoformat(),
        "models": extract(table),
    }
    lines = json.dumps(content, separators=(",", ":")).replace('},"', '},\n"').replace('"models":{', '"models":{\n')
    SNAPSHOT.write_text(lines + "\n")
    print(f"{SNAPSHOT.name}: litellm {content['litellm']}, {len(content['models'])} models")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
