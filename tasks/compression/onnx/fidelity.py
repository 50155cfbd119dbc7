"""How faithful an exported or quantized model is to its parent: both are asked the same real examples of a split.

Two figures: `max_abs_diff`, the largest absolute difference between their outputs, and `agreement`, the share of what
the objective decides (`Objective.choices`: classes of texts or words, tokens, answers) that is the same. What that is
worth in a metric, with its interval, is for `evaluate` and `gate` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra.errors import StageError

if TYPE_CHECKING:
    from tasks.stage import InputArtifact

BATCH = 32
Array = npt.NDArray[Any]
Answer = Callable[[Mapping[str, Array]], Array]
"""A batch -> logits, float32."""


@dataclass(frozen=True)
class Fidelity:
    """What was found on the `examples` of `split`. agreement: None where the outputs are numbers.

    example: the one with the largest difference, by its id, and there the `parent`'s output and the one `given`.
    """

    split: str
    examples: int
    max_abs_diff: float
    agreement: float | None
    example: str
    parent: float
    given: float

    def metrics(self) -> dict[str, float]:
        """Its figures as a stage reports them."""
        agreement = {} if self.agreement is None else {"agreement": self.agreement}
        return {"max_abs_diff": self.max_abs_diff, **agreement}


def differences(parent: Array, given: Array, mask: Array) -> Array:
    """|given - parent|, of their shape; infinite where either is no number. Raises StageError on unequal shapes.

    mask: int64 [B, T]. Where the outputs are a row a token, those of padding mean nothing and count as equal.
    """
    if given.shape != parent.shape:
        raise StageError(f"the graph gives logits of shape {given.shape}, the model {parent.shape}")
    found: Array = np.abs(given - parent)
    if parent.ndim == 3 and parent.shape[:2] == mask.shape:
        found[mask == 0] = 0
    found[~np.isfinite(found)] = np.inf
    return found


def fidelity(model: InputArtifact, data: InputArtifact, split: str, parent: Answer, given: Answer) -> Fidelity:
    """Ask both every example of a split, short ones together.

    model: whose card, tokenizer and config say how examples are read. Raises StageError where there are none.
    """
    from tasks.models.card import read_card
    from tasks.processors.padding import special_ids
    from tasks.processors.tokenizer import load_tokenizer
    from tasks.training.loop.features import check_data, heldout_features

    card, tokenizer = read_card(model.path), load_tokenizer(model.path)
    objective, special = card.objective, special_ids(model.path, tokenizer)
    check_data(objective, data)
    features = heldout_features(objective, data, split, tokenizer, card.max_length)
    order = np.argsort([objective.length(feature) for feature in features], kind="stable").tolist()
    same, decided = 0, 0
    worst: tuple[float, int, float, float] = (-1.0, 0, 0.0, 0.0)
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        chosen = [features[number] for number in numbers]
        batch = {name: tensor.numpy() for name, tensor in objective.collate(chosen, special).items()}
        expected, found = parent(batch), given(batch)
        gap = differences(expected, found, batch["attention_mask"])
        place = np.unravel_index(int(gap.argmax()), gap.shape)
        if gap[place] > worst[0]:
            # An example may have several rows: a pair of texts, windows of a long one.
            rows = [len(objective.collate([feature], special)["attention_mask"]) for feature in chosen]
            number = int(np.repeat(numbers, rows)[place[0]])
            worst = (float(gap[place]), number, float(expected[place]), float(found[place]))
        ours, theirs = (objective.choices(logits, batch) for logits in (expected, found))
        if ours is not None and theirs is not None:
            decided += len(ours)
            same += int((ours == theirs).reshape(len(ours), -1).all(1).sum())
    largest, number, was, became = worst
    agreement = same / decided if decided else None
    return Fidelity(split, len(features), largest, agreement, _name(data, split, number), was, became)


def _name(data: InputArtifact, split: str, number: int) -> str:
    """How people find an example again."""
    from tasks.data.dataset.split import read_split

    if data.manifest.type != "dataset":
        return f"row {number}"
    return str(read_split(data, split, columns=("id",))["id"][number])
