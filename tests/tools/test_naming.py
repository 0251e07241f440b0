"""Names of injected tools."""

import re

from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.tools import naming

servers = st.text("ab_-", min_size=1, max_size=90)
tools = st.text(max_size=130) | st.text("ab_-./", max_size=6)
pairs = st.lists(st.tuples(servers, tools), max_size=30)


def test_a_name_holds_the_server_and_the_tool() -> None:
    assert naming.assign([("coder", "list_workspaces")]) == {("coder", "list_workspaces"): "bmcp_coder_list_workspaces"}


def test_characters_that_providers_refuse_become_underscores() -> None:
    assert naming.assign([("files", "read.all/größe")]) == {("files", "read.all/größe"): "bmcp_files_read_all_gr__e"}


def test_a_name_of_64_characters_stays_whole() -> None:
    pair = ("s", "x" * 57)
    assert naming.assign([pair]) == {pair: "bmcp_s_" + "x" * 57}


def test_a_longer_name_is_cut_and_keeps_apart_from_others_that_begin_alike() -> None:
    names = naming.assign([("s", "x" * 100), ("s", "x" * 101)])
    assert len(set(names.values())) == 2
    assert {len(name) for name in names.values()} == {64}
    assert all(re.fullmatch(r"bmcp_s_x{48}_[0-9a-f]{8}", name) for name in names.values())


def test_of_pairs_that_would_share_a_name_each_gets_a_hash_and_others_do_not() -> None:
    names = naming.assign([("a_b", "c"), ("a", "b_c"), ("a", "other")])
    assert names["a", "other"] == "bmcp_a_other"
    assert names["a_b", "c"] != names["a", "b_c"]
    assert all(re.fullmatch(r"bmcp_a_b_c_[0-9a-f]{8}", names[pair]) for pair in (("a_b", "c"), ("a", "b_c")))


def test_a_tool_that_is_called_like_anothers_hashed_name_gets_out_of_the_way() -> None:
    clash = [("a_b", "c"), ("a", "b_c")]
    taken = naming.assign(clash)["a", "b_c"].removeprefix("bmcp_a_")
    names = naming.assign([*clash, ("a", taken)])
    assert len(set(names.values())) == 3


@given(pairs)
def test_names_are_valid_unique_and_independent_of_order(pairs: list[tuple[str, str]]) -> None:
    names = naming.assign(pairs)
    assert names.keys() == set(pairs)
    assert len(set(names.values())) == len(names)
    assert all(re.fullmatch(r"bmcp_[A-Za-z0-9_-]{1,59}", name) for name in names.values())
    assert naming.assign(reversed(pairs)) == names
    assert list(naming.assign(pairs[::-1] + pairs)) == list(names)
