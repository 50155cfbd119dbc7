"""The examples of a split, as an objective makes them of a dataset's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infra.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Feature = Mapping[str, Any]
"""One example as arrays."""


class Examples(Sequence[Feature]):
    """A split in frozen order. What is dear to make is made when it is asked for: a subclass makes one in `example`.

    sizes: int64 [N], how much of the processor's unit each example has, by which those of like sizes are put together;
    None: all are alike. truth: columns of labels by name, [N] each, for what must not make examples to count them.
    """

    sizes: npt.NDArray[np.int64] | None = None
    truth: Mapping[str, npt.NDArray[Any]] = {}
    decodes: bool = False
    """Whether making one decodes a file, which several threads do faster than one."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.example(i) for i in range(*index.indices(len(self)))]
        return self.example(index)

    def example(self, index: int) -> Feature:
        """One example."""
        raise NotImplementedError

    def raw(self, index: int) -> Mapping[str, Any]:
        """The values that an augmentation may change. Raises StageError where there are none."""
        raise StageError(
            "these examples cannot be augmented",
            where="augment",
            hint="What they are labelled with belongs to them as they stand, or they are token ids: leave it out.",
        )

    def made(self, index: int, raw: Mapping[str, Any]) -> Feature:
        """Example `index` with these values in place of its own."""
        raise NotImplementedError


class ChosenExamples(Examples):
    """Some of the examples of a split, in the order of `places`."""

    def __init__(self, examples: Sequence[Feature], places: Sequence[int]) -> None:
        import numpy as np

        self.examples, self.places = examples, np.asarray(places, np.int64)
        sizes = getattr(examples, "sizes", None)
        self.sizes = None if sizes is None else sizes[self.places]
        self.truth = {name: values[self.places] for name, values in getattr(examples, "truth", {}).items()}

    def __len__(self) -> int:
        return len(self.places)

    def example(self, index: int) -> Feature:
        return self.examples[int(self.places[index])]


def example_order(examples: Sequence[Feature]) -> npt.NDArray[np.int64]:
    """Places of the examples, those of like sizes beside each other, so that little of a batch is padding."""
    import numpy as np

    sizes = getattr(examples, "sizes", None)
    return np.arange(len(examples)) if sizes is None else np.argsort(sizes, kind="stable")
