"""How raw values become a model's inputs: their names and types, and what ships beside the weights to make them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from infra.errors import StageError

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Port:
    """A named input or output of a model, and of its ONNX graph.

    axes: a number is fixed, a name is free: ("batch", "tokens"), ("batch", 3, "height", "width"). means: what an output
    says, by which outputs are distilled and compared. mask: the entry of a batch that is 0 where a position is padding;
    None: every position counts.
    """

    dtype: Literal["int64", "float32", "bool"]
    axes: tuple[int | str, ...]
    means: Literal["classes", "choices", "numbers"] = "numbers"
    mask: str | None = None


class Processor:
    """Raw values -> a model's inputs; its files ship beside the weights: a tokenizer, an image processor.

    As it stands here it is of models that read a dataset's numbers as they are. names: of its files. limit: how much an
    example may have, in the processor's unit (tokens); None: as much as it likes.
    """

    names: ClassVar[tuple[str, ...]] = ()
    limit: int | None = None

    @property
    def readable(self) -> bool:
        """Whether what a model reads and says can be shown to people."""
        return True

    def limited(self, limit: int | None) -> Processor:
        """The same with another limit; None: as it is. Raises StageError where examples have none."""
        if limit is not None:
            raise StageError("examples of this objective have no length to limit", where="max_length")
        return self

    def save(self, folder: Path) -> None:
        """Write its files, or copy them from where they were read."""

    def config(self, config_class: Any, known: Collection[str]) -> dict[str, Any]:
        """What it decides of a new model's HF config: vocabulary and special tokens, image size and channels."""
        return {}

    def adapt(self, model: PreTrainedModel) -> None:
        """Give a model that was made elsewhere what it lacks to read batches: a padding token."""

    def require_fit(self, model: PreTrainedModel, *, where: str, limit_where: str | None = None) -> None:
        """Raises StageError if a model cannot read what it makes. where, limit_where: the fields to blame."""

    def difference(self, other: Processor | None) -> str:
        """Why a model that reads with `other` cannot read what this one makes; empty where it can."""
        return "" if type(other) is type(self) else "another kind of input"

    def example(self, ports: Mapping[str, Port], config: Any) -> dict[str, npt.NDArray[Any]]:
        """One made-up batch, small, by which a graph is captured."""
        return self._drawn(ports, 2, 0)

    def probe(self, ports: Mapping[str, Port], config: Any, seed: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Made-up batches of the inputs `ports`, of several sizes, to compare a graph with its model on."""
        for size in (1, 2, 5):
            yield self._drawn(ports, size, seed + size)

    def _drawn(self, ports: Mapping[str, Port], size: int, seed: int) -> dict[str, npt.NDArray[Any]]:
        import numpy as np

        rng = np.random.default_rng(seed)
        sizes = {"batch": size}
        found: dict[str, npt.NDArray[Any]] = {}
        for name, port in ports.items():
            shape = [axis if isinstance(axis, int) else sizes.setdefault(axis, 7) for axis in port.axes]
            found[name] = (
                rng.normal(size=shape).astype(np.float32) if port.dtype == "float32" else np.ones(shape, "int64")
            )
        return found

    def code(self, format: str | None) -> str:
        """Lines of Python for a model's page that make a `batch` without Forgeline. format: `onnx`; None: for torch."""
        return ""
