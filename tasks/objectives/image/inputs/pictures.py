"""The pictures of a split as examples, decoded when they are asked for; and objectives whose models read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from infra.errors import StageError
from tasks.data.dataset.examples import Examples
from tasks.objective import Feature, Objective, Port, Processor

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from tasks.processors.image import ImageProcessor
    from tasks.stage import InputArtifact


class ReadsPictures(Objective):
    """An objective whose model reads `pixel_values`, float32 [B, channels, side, side]."""

    image: str = Field("image", min_length=1, description="Column of encoded pictures (PNG, JPEG, ...).")
    image_size: int = Field(
        224,
        ge=1,
        description="Side in pixels that pictures are scaled to. For a new model; a given one has its own.",
    )
    channels: int = Field(
        3, description="1: grey, 3: red, green and blue; for a new model; a given one has its own.", ge=1, le=3
    )
    mean: float = Field(0.5, description="Subtracted from values between 0 and 1, for a new model.")
    std: float = Field(0.5, gt=0, description="What is left is divided by it, for a new model.")

    @field_validator("channels")
    @classmethod
    def _grey_or_colour(cls, channels: int) -> int:
        if channels == 2:
            raise ValueError("pictures have 1 channel (grey) or 3 (red, green and blue)")
        return channels

    work_unit = "images"
    augmentation = "image"

    def load_processor(self, folder: Path, limit: int | None = None) -> Processor | None:
        from tasks.processors.image import ImageProcessor

        found = ImageProcessor.load(folder)
        return found and found.limited(limit)

    def new_processor(self, data: InputArtifact) -> Processor:
        from tasks.processors.image import ImageProcessor

        return ImageProcessor(self.image_size, (self.mean,) * self.channels, (self.std,) * self.channels)

    def reads(self, folder: Path) -> bool:
        from tasks.processors.image import FILE

        return (folder / FILE).exists()

    @property
    def inputs(self) -> Mapping[str, Port]:
        made: ImageProcessor | None = self._processor
        size: tuple[int | str, ...] = (made.channels, made.side, made.side) if made else ("channels", "height", "width")
        return {"pixel_values": Port("float32", ("batch", *size))}

    def pixel_values(self, features: Sequence[Feature]) -> torch.Tensor:
        """The pictures of a batch, float32 [B, channels, side, side]."""
        import numpy as np
        import torch

        return torch.from_numpy(np.stack([feature["pixel_values"] for feature in features]))

    def pictures(self, data: InputArtifact, split: str, places: Sequence[int]) -> list[str | None]:
        from tasks.data.dataset.rows import open_split
        from tasks.data.dataset.shown_media import thumbnail

        opened = open_split(data, split, [self.image])
        encoded = [opened.value(self.image, place) for place in places]
        return [thumbnail(one) if isinstance(one, bytes) else None for one in encoded]


class PictureExamples(Examples):
    """Pictures of a split; `truth` holds the other columns of each example, and `shared` what all carry."""

    decodes = True

    def __init__(
        self,
        processor: ImageProcessor,
        data: InputArtifact,
        split: str,
        column: str,
        truth: Mapping[str, npt.NDArray[Any]],
        **shared: Any,
    ) -> None:
        from tasks.data.dataset.rows import open_split

        self.processor, self.truth, self.shared = processor, truth, shared
        self.where = f"column {column!r} of split {split!r} of {data.stage}"
        self.column, self.opened = column, open_split(data, split, ["id", column])

    def __len__(self) -> int:
        return len(self.opened)

    def example(self, index: int) -> Feature:
        return self.made(index, self.raw(index))

    def raw(self, index: int) -> Mapping[str, Any]:
        """`pixels`: uint8 [channels, side, side]."""
        encoded = self.opened.value(self.column, index)
        try:
            return {"pixels": self.processor.pixels(encoded if isinstance(encoded, bytes) else b"")}
        except (OSError, ValueError, SyntaxError) as error:
            shown = f"no picture that Pillow can read ({error})" if isinstance(encoded, bytes) else "no encoded picture"
            raise StageError(
                f"example {self.opened.value('id', index)!r} has {shown}",
                where=self.where,
                hint="Leave the row out of the source, or mend the file.",
            ) from error

    def made(self, index: int, raw: Mapping[str, Any]) -> Feature:
        own = {name: values[index] for name, values in self.truth.items()}
        return {"pixel_values": self.processor.scaled(raw["pixels"]), **own, **self.shared}
