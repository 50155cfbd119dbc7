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
Answer = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""A batch -> outputs by name, float32."""


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


def differences(parent: Array, given: Array, mask: Array | None) -> Array:
    """|given - parent|, of their shape; infinite where either is no number. Raises StageError on unequal shapes.

    mask: int64, 0 at the places [B, T] of padding, whose outputs mean nothing and count as equal; None: there is none.
    """
    if given.shape != parent.shape:
        raise StageError(f"the graph gives outputs of shape {given.shape}, the model {parent.shape}")
    found: Array = np.abs(given - parent)
    if mask is not None:
        found[mask == 0] = 0
    found[~np.isfinite(found)] = np.inf
    return found


def fidelity(model: InputArtifact, data: InputArtifact, split: str, parent: Answer, given: Answer) -> Fidelity:
    """Ask both every example of a split, those of like sizes together.

    model: whose card, processor and config say how examples are read. Raises StageError where there are none.
    """
    from tasks.data.dataset.examples import example_order
    from tasks.models.trained_for import trained_for
    from tasks.training.loop.features import check_data, heldout_examples

    objective = trained_for(model.path)
    check_data(objective, data)
    examples = heldout_examples(objective, data, split)
    order = example_order(examples).tolist()
    same, decided = 0, 0
    worst: tuple[float, int, float, float] = (-1.0, 0, 0.0, 0.0)
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        chosen = [examples[number] for number in numbers]
        batch = {name: tensor.numpy() for name, tensor in objective.collate(chosen).items()}
        expected, found = parent(batch), given(batch)
        for name, port in objective.outputs.items():
            gap = differences(expected[name], found[name], batch[port.mask] if port.mask else None)
            place = np.unravel_index(int(gap.argmax()), gap.shape)
            if gap[place] > worst[0]:
                # An example may have several rows: a pair of texts, windows of a long one.
                rows = [objective.rows(objective.collate([feature])) for feature in chosen]
                number = int(np.repeat(numbers, rows)[place[0]])
                worst = (float(gap[place]), number, float(expected[name][place]), float(found[name][place]))
        ours, theirs = (objective.choices(outputs, batch) for outputs in (expected, found))
        if ours is not None and theirs is not None:
            decided += len(ours)
            same += int((ours == theirs).reshape(len(ours), -1).all(1).sum())
    largest, number, was, became = worst
    agreement = same / decided if decided else None
    return Fidelity(split, len(examples), largest, agreement, _name(data, split, number), was, became)


def _name(data: InputArtifact, split: str, number: int) -> str:
    """How people find an example again."""
    from tasks.data.dataset.split import read_split

    if data.manifest.type != "dataset":
        return f"row {number}"
    return str(read_split(data, split, columns=("id",))["id"][number])
