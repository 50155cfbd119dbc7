"""The examples of a split, as an objective makes them of a dataset's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infra.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Feature = Mapping[str, Any]
"""One example as arrays."""


class Examples(Sequence[Feature]):
    """A split in frozen order. What is dear to make is made when it is asked for.

    sizes: int64 [N], how much of the processor's unit each example has, by which those of like sizes are put together;
    None: all are alike. truth: columns of labels by name, [N] each, for what must not make examples to count them.
    """

    sizes: npt.NDArray[np.int64] | None = None
    truth: Mapping[str, npt.NDArray[Any]] = {}

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


class ListedExamples(Examples):
    """Examples that are small enough to be kept, all made at once.

    raws: the values of each that an augmentation may change, and `remake`: (place, values) -> the example with them.
    None: they cannot be changed.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        sizes: Sequence[int] | None = None,
        raws: Sequence[Mapping[str, Any]] | None = None,
        remake: Callable[[int, Mapping[str, Any]], Feature] | None = None,
    ) -> None:
        import numpy as np

        self.features, self.raws, self.remake = features, raws, remake
        self.sizes = None if sizes is None else np.asarray(sizes, np.int64)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Any) -> Any:
        return self.features[index]

    def raw(self, index: int) -> Mapping[str, Any]:
        return super().raw(index) if self.raws is None else self.raws[index]

    def made(self, index: int, raw: Mapping[str, Any]) -> Feature:
        return super().made(index, raw) if self.remake is None else self.remake(index, raw)


def example_order(examples: Sequence[Feature]) -> npt.NDArray[np.int64]:
    """Places of the examples, those of like sizes beside each other, so that little of a batch is padding."""
    import numpy as np

    sizes = getattr(examples, "sizes", None)
    return np.arange(len(examples)) if sizes is None else np.argsort(sizes, kind="stable")
