"""Training examples that share a long run of words with an evaluation set go: the test would be known by heart.

A run is `ngram` words, lower case, without punctuation (Brown et al., "Language Models are Few-Shot Learners", 2020,
appendix C, uses 13); where no spaces stand between words, two Chinese or Japanese characters or three letters of Thai
and its kin count as one. Only the training split is cleaned; what is held out may overlap with what is held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tasks.data.hashing import Hashes
from tasks.data.words import measured_runs
from tasks.stage import Input, StageParams


class Decontaminate(StageParams):
    """Against which evaluation sets."""

    against: Annotated[list[str], Input("dataset")] = Field(
        min_length=1,
        description="Datasets whose held-out splits (or the one named, `mails.test`) must stay unseen; all of "
        "one that holds nothing out.",
    )
    ngram: int = Field(
        13,
        ge=3,
        description="Words in a run that counts as an overlap; shorter texts count whole. Two Chinese or Japanese "
        "characters, or three letters of Thai, Lao, Khmer or Burmese, are a word.",
    )
    max_share: float = Field(
        0.0, ge=0, lt=1, description="Share of a training example's runs that may overlap before it goes."
    )


class Overlap:
    """The runs of words of evaluation sets; says how much of a text is among them."""

    def __init__(self, known: Hashes, ngram: int) -> None:
        self.known, self.ngram = known, ngram

    def shares(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Share of each text's runs that are known."""
        mine, offsets = runs(texts, self.ngram)
        if not len(self.known):
            return np.zeros(len(texts), np.float32)
        places = np.minimum(np.searchsorted(self.known, mine), len(self.known) - 1)
        met = np.concatenate([[0], np.cumsum(self.known[places] == mine)])[offsets]
        return (np.diff(met) / np.maximum(np.diff(offsets), 1)).astype(np.float32)


def runs(texts: Sequence[str], ngram: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hash of every run of `ngram` words, or of all words of a text that has fewer; where each text begins."""
    return measured_runs([text.lower() for text in texts], ngram)
