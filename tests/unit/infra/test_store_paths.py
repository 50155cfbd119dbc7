"""No path from data leaves its folder, and ordinary names pass."""

from __future__ import annotations

import os.path
import string

from hypothesis import given
from hypothesis import strategies as st

from infra.errors import StoreError
from infra.objects import checked
from infra.relative_path import safe_relative_path

pieces = st.sampled_from(["..", ".", "", "/", "a", "..a", "a..", "\\", "\0", "c:", "~", "a b", "%2e%2e", "ü"])
hostile = st.one_of(st.text(max_size=30), st.lists(pieces, max_size=6).map("/".join))
ordinary = st.lists(
    st.text(string.ascii_letters + string.digits + "-_ .", min_size=1).filter(lambda p: p.strip(".")), min_size=1
).map("/".join)


@given(hostile)
def test_an_accepted_path_stays_inside(path: str) -> None:
    for accept in (safe_relative_path, checked):
        try:
            assert accept(path) == path
        except StoreError:
            continue
        assert os.path.normpath(f"/base/folder/{path}").startswith("/base/folder/")
        assert not path.startswith("/") and "\\" not in path and "\0" not in path


@given(hostile)
def test_an_accepted_store_path_is_the_only_name_of_its_object(path: str) -> None:
    try:
        checked(path)
    except StoreError:
        return
    assert os.path.normpath(path) == path


@given(ordinary)
def test_ordinary_names_pass(path: str) -> None:
    assert checked(path) == path
