"""Pictures changed a little while a model learns from them, or is judged on them.

    augment: {image: {flip: 0.5, shift: 0.1, erase: 0.3}}

What is done to a picture depends on (seed, place in the data stream), so a resume and another number of ranks meet the
same changes, and every epoch meets others. Changes are made to the pixels, before they are scaled for the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from tasks.objective import Augmentation
from tasks.stage import StageParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Changes(StageParams):
    """How far a picture is changed. Each value is drawn evenly from nothing up to what is given, either way."""

    flip: float = Field(0.0, ge=0, le=1, description="Share of the pictures that are mirrored, left to right.")
    shift: float = Field(
        0.0, ge=0, lt=1, description="Largest move along each axis, as a share of the side; edges are repeated."
    )
    brightness: float = Field(0.0, ge=0, le=1, description="Largest change of all values, as a share of their range.")
    contrast: float = Field(0.0, ge=0, lt=1, description="Largest change of the distances from the mean, as a share.")
    noise: float = Field(0.0, ge=0, le=1, description="Standard deviation of noise, as a share of the range of values.")
    erase: float = Field(
        0.0, ge=0, lt=1, description="Largest side of a square that is set to the mean, as a share of the side."
    )
    share: float = Field(1.0, ge=0, le=1, description="Share of the examples that are changed at all.")

    @model_validator(mode="after")
    def _does_something(self) -> Changes:
        if not any((self.flip, self.shift, self.brightness, self.contrast, self.noise, self.erase)):
            raise ValueError("nothing would be changed: set flip, shift, brightness, contrast, noise or erase")
        return self


class ImageAugmentation(Augmentation):
    """Changes of pictures."""

    domain = "image"

    image: Changes = Field(description="How far pictures are changed.")

    def changed(self, raw: Mapping[str, Any], seed: int, place: int) -> Mapping[str, Any]:
        import numpy as np

        rng = np.random.default_rng([seed, place])
        if rng.random() >= self.image.share:
            return raw
        return {**raw, "pixels": changed_pixels(raw["pixels"], self.image, rng)}


def changed_pixels(pixels: npt.NDArray[np.uint8], settings: Changes, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """uint8 [C, H, W] -> the same shape, changed as `settings` say."""
    import numpy as np

    if settings.flip and rng.random() < settings.flip:
        pixels = pixels[:, :, ::-1]
    height, width = pixels.shape[1:]
    if settings.shift:
        down, right = (round(rng.uniform(-settings.shift, settings.shift) * side) for side in (height, width))
        rows, columns = np.arange(height) - down, np.arange(width) - right
        pixels = pixels[:, rows.clip(0, height - 1)][:, :, columns.clip(0, width - 1)]
    values = pixels.astype(np.float32)
    mean = values.mean()
    if settings.contrast:
        values = (values - mean) * (1 + rng.uniform(-settings.contrast, settings.contrast)) + mean
    if settings.brightness:
        values += 255 * rng.uniform(-settings.brightness, settings.brightness)
    if settings.noise:
        values += rng.normal(0, 255 * settings.noise, values.shape)
    if settings.erase:
        tall, wide = (int(rng.uniform(0, settings.erase) * side) for side in (height, width))
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        values[:, top : top + tall, left : left + wide] = mean
    found: npt.NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return found


AUGMENTATION = PERTURBATION = ImageAugmentation
