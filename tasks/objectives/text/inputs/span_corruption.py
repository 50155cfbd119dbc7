"""The noise of T5: spans of a text are left out, and have to be written (Raffel et al., 2020, section 3.1.4).

thank you for inviting me to your party last week
read:   thank you <extra_id_0> me to your party <extra_id_1> week
write:  <extra_id_0> for inviting <extra_id_1> last <extra_id_2> and the end-of-text token
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.objectives.text.inputs.vocabulary import Vocabulary

Ids = npt.NDArray[np.int64]


def noise_shape(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """(tokens left out, spans they make up) of a text of `length` tokens: at least one of each, for two tokens on.

    As T5 counts them: both rounded, and something is left to read.
    """
    tokens = min(max(1, round(length * density)), max(1, length - 1))
    spans = min(max(1, round(tokens / mean_span)), tokens, length - tokens + 1)
    return tokens, spans


def corrupted(
    ids: npt.NDArray[np.integer],
    vocabulary: Vocabulary,
    random: np.random.Generator,
    *,
    density: float,
    mean_span: float,
) -> tuple[Ids, Ids]:
    """(input_ids, target_ids) of the tokens `ids` [T]; what is left out of one is in the other, behind its sentinel.

    Special tokens at both ends stay where they are; those between the documents of a row are tokens like others. Spans
    are drawn uniformly among all ways to lay them with a token between two. Unlike in T5's own code a text may begin
    with a span and end without one (there the first token is never left out, the last always), and a last sentinel ends
    what is written, as in the paper's figure 2. `vocabulary` has a sentinel for each span and one more.
    """
    text = np.array(ids, np.int64)
    ordinary = np.flatnonzero(~vocabulary.special[text])
    first, last = (ordinary[0], ordinary[-1] + 1) if len(ordinary) else (len(text), len(text))
    body = text[first:last]
    tokens, spans = noise_shape(len(body), density, mean_span) if len(body) else (0, 0)
    assert vocabulary.end is not None and spans < len(vocabulary.sentinels)
    closing = [vocabulary.sentinels[spans], vocabulary.end]
    if not spans:
        return text, np.array(closing, np.int64)
    lengths = np.zeros(2 * spans + 1, np.int64)
    lengths[1::2] = _parts(tokens, spans, random)
    lengths[::2] = _parts(len(body) - tokens + 2, spans + 1, random)
    lengths[[0, -1]] -= 1  # the stretches at both ends may be empty
    piece = np.repeat(np.arange(len(lengths)), lengths)
    left_out = piece % 2 == 1
    begins = left_out & (np.diff(piece, prepend=-1) != 0)
    read = np.where(begins, vocabulary.sentinels[piece // 2], body)[~left_out | begins]
    sizes = lengths[1::2]
    written = np.insert(body[left_out], np.cumsum(sizes) - sizes, vocabulary.sentinels[:spans])
    return np.concatenate([text[:first], read, text[last:]]), np.append(written, closing)


def _parts(total: int, count: int, random: np.random.Generator) -> Ids:
    """`total` as the sum of `count` positive numbers, each such sum being as likely."""
    cuts = np.sort(random.permutation(total - 1)[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)
