"""Texts changed a little while a model is trained on them, so that it learns what does not matter.

What is done to an example depends on (seed, place in the data stream), so a resume and another number of ranks meet the
same changes, and every epoch meets others. Only training examples are changed, never what a model is judged on.
The operations on words are those of EDA (Wei and Zou, 2019), synonyms from a list of one's own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydantic import Field, model_validator

from tasks.objective import Augmentation

TOKEN = re.compile(r"\s+|\w+|[^\w\s]+")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Augment(Augmentation):
    """How much of a training text is changed, in shares of its words or characters."""

    domain = "text"

    synonyms: dict[str, list[str]] = Field(
        default_factory=dict, description="Word -> words that may stand for it, all lower case."
    )
    replace: float = Field(0.0, ge=0, le=1, description="Share of the words with synonyms that are replaced.")
    delete: float = Field(0.0, ge=0, lt=1, description="Share of words left out.")
    swap: float = Field(0.0, ge=0, le=1, description="Share of words that change places with a neighbour.")
    noise: float = Field(0.0, ge=0, le=1, description="Share of characters of words mistyped: one for another letter.")
    templates: list[str] = Field(
        default_factory=list, description="Texts with {text} in them, one of which is put around an example."
    )
    share: float = Field(0.5, ge=0, le=1, description="Share of the examples that are changed at all.")

    @model_validator(mode="after")
    def _does_something(self) -> Augment:
        if not (self.delete or self.swap or self.noise or self.templates or (self.replace and self.synonyms)):
            raise ValueError("nothing would be changed: set delete, swap, noise, templates, or replace with synonyms")
        for template in self.templates:
            if template.count("{text}") != 1:
                raise ValueError(f"{template!r} must hold {{text}} once")
        return self

    def changed(self, raw: Mapping[str, Any], seed: int, place: int) -> Mapping[str, Any]:
        text = augmented(raw["text"], self, seed, place)
        return raw if text == raw["text"] else {**raw, "text": text}


class Perturbation(Augment):
    """What is done to the texts a model is judged on."""

    share: float = Field(1.0, ge=0, le=1, description="Share of the examples that are changed at all.")


def augmented(text: str, settings: Augment, seed: int, place: int) -> str:
    """The text as it is trained on at a place of the data stream. Never empty where the text is not."""
    draw = random.Random(f"forgeline.augment:{seed}:{place}")  # noqa: S311 - not for secrets
    if draw.random() >= settings.share:
        return text
    parts = TOKEN.findall(text)
    words = [i for i, part in enumerate(parts) if part[0].isalnum() or part[0] == "_"]
    for i in words:
        known = settings.synonyms.get(parts[i].lower())
        if known and draw.random() < settings.replace:
            parts[i] = _cased(draw.choice(known), parts[i])
        if settings.noise:
            parts[i] = "".join(draw.choice(LETTERS) if draw.random() < settings.noise else c for c in parts[i])
    for a, b in pairwise(words):
        if settings.swap and draw.random() < settings.swap:
            parts[a], parts[b] = parts[b], parts[a]
    gone = {i for i in words if settings.delete and draw.random() < settings.delete}
    if len(gone) < len(words) or not words:
        parts = [part for i, part in enumerate(parts) if i not in gone]
    changed = "".join(parts)
    if settings.templates:
        changed = draw.choice(settings.templates).replace("{text}", changed)
    return changed if changed.strip() else text


def _cased(word: str, like: str) -> str:
    return word.capitalize() if like[:1].isupper() else word


AUGMENTATION, PERTURBATION = Augment, Perturbation
