"""The table of mutations fits the code."""

from __future__ import annotations

import pytest

from tests.support.mutants import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.file}: {mutation.old.strip()}")
def test_what_a_mutation_replaces_is_there_once(mutation: Mutation) -> None:
    assert (ROOT / "aibridge_addon" / mutation.file).read_text().count(mutation.old) == 1
