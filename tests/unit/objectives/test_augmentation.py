"""Changes to training texts: what is asked for and no more, the same at the same place."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.objectives.text.inputs.augmentation import Augment, augmented

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind it."


@given(st.text(max_size=60), st.integers(0, 3), st.integers(0, 1000))
def test_a_place_decides(text: str, seed: int, place: int) -> None:
    settings = Augment(delete=0.3, swap=0.3, noise=0.1, share=1.0, templates=["{text}", "He said: {text}"])
    found = augmented(text, settings, seed, place)
    assert found == augmented(text, settings, seed, place)
    assert bool(found.strip()) == bool(text.strip()) or not text.strip()


def test_each_kind_does_what_it_says() -> None:
    def many(**settings: object) -> list[str]:
        return [augmented(TEXT, Augment.model_validate({"share": 1.0, **settings}), 0, place) for place in range(200)]

    words = re.findall(r"\w+", TEXT)
    kept = [len(re.findall(r"\w+", text)) / len(words) for text in many(delete=0.2)]
    assert sum(kept) / len(kept) == pytest.approx(0.8, abs=0.03)
    assert all(sorted(text.replace(",", "").replace(".", "").split()) for text in many(swap=0.5))
    assert all(sorted(map(str, text)) == sorted(TEXT) for text in many(swap=0.5)), "only the order changes"
    assert {text.split()[1] for text in many(synonyms={"quick": ["fast", "swift"]}, replace=1.0)} == {"fast", "swift"}
    assert {text.split()[0] for text in many(synonyms={"the": ["this"]}, replace=1.0)} == {"This"}
    changed = [sum(a != b for a, b in zip(text, TEXT, strict=True)) / len(TEXT) for text in many(noise=0.1)]
    assert 0.05 < sum(changed) / len(changed) < 0.1, "letters of words only, one of 26 is the same"
    assert set(many(templates=["a {text}", "b {text}"])) == {f"a {TEXT}", f"b {TEXT}"}


def test_only_a_share_is_changed() -> None:
    settings = Augment(delete=0.5, share=0.25)
    same = sum(augmented(TEXT, settings, 0, place) == TEXT for place in range(1000))
    assert same / 1000 == pytest.approx(0.75, abs=0.05)


def test_settings_that_change_nothing_or_cannot_work_are_refused() -> None:
    for wrong in ({}, {"replace": 0.5}, {"templates": ["no text"]}, {"templates": ["{text}{text}"]}):
        with pytest.raises(ValidationError):
            Augment.model_validate(wrong)
