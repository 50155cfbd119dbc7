"""The noise of masked language modelling: hidden tokens, predicted from the others (Devlin et al., 2019)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.losses.cross_entropy import IGNORED
from tasks.objectives.text.inputs.vocabulary import Vocabulary, Words

Ids = npt.NDArray[np.int64]


def masked(
    ids: npt.NDArray[np.integer],
    vocabulary: Vocabulary,
    random: np.random.Generator,
    *,
    share: float,
    mask_replace: float,
    random_replace: float,
) -> tuple[Ids, Ids]:
    """(input_ids [T], labels [T]): what is read, and the hidden tokens' ids, -100 elsewhere.

    ids: the tokens [T]. Of those that are not special, `share` is chosen (rounded, at least one); of the chosen,
    `mask_replace` are replaced by the mask token, `random_replace` by any ordinary token, and the rest stay as they
    are. With `vocabulary.words` whole words are chosen: so many that their tokens come nearest to the share.
    """
    assert vocabulary.mask is not None
    read = np.array(ids, np.int64)
    labels = np.full(len(read), IGNORED, np.int64)
    open_ = np.flatnonzero(~vocabulary.special[read])
    if not len(open_):
        return read, labels
    wanted = max(1, round(share * len(open_)))
    if vocabulary.words is None:
        chosen = random.permutation(open_)[:wanted]
    else:
        chosen = _whole_words(word_numbers(read, open_, vocabulary.words), open_, wanted, random)
    labels[chosen] = read[chosen]
    drawn = random.random(len(chosen))
    read[chosen[drawn < mask_replace]] = vocabulary.mask
    other = chosen[(drawn >= mask_replace) & (drawn < mask_replace + random_replace)]
    read[other] = vocabulary.ordinary[random.integers(0, len(vocabulary.ordinary), len(other))]
    return read, labels


def word_numbers(ids: Ids, open_: Ids, words: Words) -> Ids:
    """For each of the places `open_` of text tokens among ids [T], which word it is part of, counted from 0."""
    inside = words.continues[ids] & np.append(False, words.unfinished[ids[:-1]])
    begins = ~inside[open_] | (np.diff(open_, prepend=-2) != 1)
    numbers: Ids = np.cumsum(begins) - 1
    return numbers


def _whole_words(word: Ids, open_: Ids, wanted: int, random: np.random.Generator) -> Ids:
    """Places of all tokens of some words, about `wanted` of them and at least one word's."""
    order = random.permutation(int(word[-1]) + 1)
    reached = np.cumsum(np.bincount(word)[order])
    count = 1 + int(np.abs(reached - wanted).argmin())
    taken = np.zeros(len(order), np.bool_)
    taken[order[:count]] = True
    places: Ids = open_[taken[word]]
    return places
