"""Training examples that share a long run of words with an evaluation set go: the test would be known by heart.

A run is `ngram` words, lower case, without punctuation (Brown et al., "Language Models are Few-Shot Learners", 2020,
appendix C, uses 13). Only the training split is cleaned; what is held out may overlap with what is held out.
"""

from __future__ import annotations

import re
from typing import Annotated

import numpy as np
from pydantic import Field

from tasks.data.hashing import Hashes, Words, windows
from tasks.stage import Input, StageParams

WORD = re.compile(r"\w+")


class Decontaminate(StageParams):
    """Against which evaluation sets."""

    against: Annotated[list[str], Input("dataset")] = Field(
        min_length=1, description="Datasets whose held-out splits (or the one named, `mails.test`) must stay unseen."
    )
    ngram: int = Field(13, ge=3, description="Words in a run that counts as an overlap; shorter texts count whole.")
    max_share: float = Field(
        0.0, ge=0, lt=1, description="Share of a training example's runs that may overlap before it goes."
    )


class Overlap:
    """The runs of words of evaluation sets; tells how much of a text is among them."""

    def __init__(self, known: Hashes, ngram: int) -> None:
        self.known, self.ngram, self.words = known, ngram, Words()

    def share(self, text: str) -> float:
        """Share of the text's runs that are known."""
        mine = runs(text, self.ngram, self.words)
        if not len(mine) or not len(self.known):
            return 0.0
        places = np.minimum(np.searchsorted(self.known, mine), len(self.known) - 1)
        return float((self.known[places] == mine).mean())


def runs(text: str, ngram: int, words: Words) -> Hashes:
    """Hash of every run of `ngram` words, or of all words where there are fewer."""
    numbers = words.hashes(WORD.findall(text.lower()))
    return windows(numbers, min(ngram, len(numbers))) if len(numbers) else numbers
