"""Canonical JSON and digests: stable over everything that must not matter, different over everything that does."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.keys import canonical_json, content_digest, digest

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), plain, max_size=6))
def test_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    assert digest(value) == digest(dict(reversed(list(value.items()))))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, print, object(), {1: 2}, b"x", [{"a": {2}}]])
def test_what_has_no_stable_text_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^\$"):
        canonical_json(value)


def test_known_answer() -> None:
    assert canonical_json({"b": [1, 2.0, True, None], "a": "é"}) == '{"a":"é","b":[1,2,true,null]}'.encode()
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_true_is_not_one_and_text_is_not_a_number() -> None:
    assert len({digest(v) for v in (1, True, "1", [1], 1.5)}) == 5


def test_other_hash_seeds_agree() -> None:
    code = "from infra.keys import digest; print(digest({k: k for k in 'zyxabc'}))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": s}, capture_output=True, text=True, check=True
        )
        for s in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout


@given(st.dictionaries(st.text(), st.text()))
def test_content_digest_ignores_listing_order(files: dict[str, str]) -> None:
    assert content_digest(files.items()) == content_digest(reversed(list(files.items())))
