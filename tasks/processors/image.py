"""The image processor beside a model: encoded pictures -> pixels of one size, number of channels and scale.

`preprocessor_config.json` is that of Hugging Face's image processors, so that their classes read what is written here,
and models of theirs are read here: `size`, `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`, `image_std`. A
picture is turned upright as its EXIF says and scaled to the size as a whole by Pillow, not cut; what is transparent is
shown as it is stored, of 16 bits the upper eight count, of an animation the first frame.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from infra.errors import StageError
from tasks.data.reading.media import WIDE, upright
from tasks.processors.processor import Processor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedModel

    from tasks.processors.processor import Port

FILE = "preprocessor_config.json"
MODES = {1: "L", 3: "RGB"}
"""Pillow's name for pictures of so many channels."""
CODE = """import numpy
from PIL import Image, ImageOps

pictures = [ImageOps.exif_transpose(Image.open("picture.png"))]
scaled = [numpy.asarray(one.convert("{mode}").resize(({side}, {side}), {resample}), numpy.float32) for one in pictures]
pixels = numpy.stack(scaled).reshape(-1, {side}, {side}, {channels}).transpose(0, 3, 1, 2)
pixels = (pixels * {factor} - numpy.array({mean})[:, None, None]) / numpy.array({std})[:, None, None]
"""


@dataclass(frozen=True)
class ImageProcessor(Processor):
    """Pictures -> float32 [channels, side, side]: (value * factor - mean) / std, of each channel."""

    names: ClassVar[tuple[str, ...]] = (FILE,)

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    factor: float = 1 / 255
    resample: int = 2
    """Pillow's number of how a picture is scaled: 2 is bilinear, 3 bicubic."""

    @classmethod
    def load(cls, folder: Path) -> ImageProcessor | None:
        """What lies beside a model; None where nothing does. Raises StageError on settings that are not understood."""
        if not (folder / FILE).exists():
            return None
        given = json.loads((folder / FILE).read_text(encoding="utf-8"))
        size = given.get("size")
        sides = list(size.values()) if isinstance(size, dict) else [size]
        if not sides or not all(isinstance(side, int) and side == sides[0] for side in sides):
            raise StageError(
                f"{FILE} has a `size` that is not one square: {size}",
                where=folder.name,
                hint='Pictures are scaled to a square: write `"size": {"height": N, "width": N}` there.',
            )
        cut = given.get("crop_size") if given.get("do_center_crop") else None
        edges = cut.values() if isinstance(cut, dict) else [cut]
        if given.get("crop_pct", 1) not in (None, 1) or (cut is not None and any(edge != sides[0] for edge in edges)):
            raise StageError(
                f"{FILE} cuts the edges of pictures off (`crop_pct`, `crop_size`), and here they are scaled as a whole",
                where=folder.name,
                hint='Take these fields out of the file, and write `"size": {"height": N, "width": N}`: the model then '
                "sees whole pictures, so fine-tune it.",
            )
        mean, std = given.get("image_mean") or [0.0], given.get("image_std") or [1.0]
        if not given.get("do_normalize", True):
            mean, std = [0.0] * len(mean), [1.0] * len(std)
        if len(mean) not in MODES or len(mean) != len(std):
            raise StageError(
                f"{FILE} has means of {len(mean)} channels and deviations of {len(std)}",
                where=folder.name,
                hint="Pictures have one channel or three.",
            )
        factor = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
        resample = int(given.get("resample", 2))
        return cls(int(sides[0]), tuple(map(float, mean)), tuple(map(float, std)), factor, resample)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def save(self, folder: Path) -> None:
        settings = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.side, "width": self.side},
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": self.factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": self.channels == 3,
        }
        (folder / FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def config(self, config_class: Any, known: Collection[str]) -> dict[str, Any]:
        values = {"image_size": self.side, "num_channels": self.channels}
        return {name: value for name, value in values.items() if name in known}

    def require_fit(self, model: PreTrainedModel, *, where: str, limit_where: str | None = None) -> None:
        for name, ours in (("num_channels", self.channels), ("image_size", self.side)):
            theirs = getattr(model.config, name, ours)
            if theirs != ours and not (name == "image_size" and not hasattr(model.config, "patch_size")):
                raise StageError(
                    f"the model reads pictures of `{name}` {theirs}, and these have {ours}",
                    where=where,
                    hint="Leave the field out of a new model, which takes it from its pictures; one made elsewhere "
                    f"needs the {FILE} it was made with.",
                )

    def difference(self, other: Processor | None) -> str:
        same = isinstance(other, ImageProcessor) and other == self
        return "" if same else "another size, number of channels or scale of pictures"

    def pixels(self, encoded: bytes) -> npt.NDArray[np.uint8]:
        """A picture's values, uint8 [channels, side, side]. Raises OSError or ValueError on what Pillow cannot read."""
        import numpy as np
        from PIL import Image

        with Image.open(io.BytesIO(encoded)) as picture:
            if picture.mode in WIDE:
                raise ValueError(f"its values have 32 bits, mode {picture.mode}")
            made = upright(picture).convert(MODES[self.channels])
            if made.size != (self.side, self.side):
                made = made.resize((self.side, self.side), Image.Resampling(self.resample))
            values = np.asarray(made, np.uint8)
        return np.ascontiguousarray(values.reshape(self.side, self.side, self.channels).transpose(2, 0, 1))

    def scaled(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What a model reads of them, float32 of the same shape."""
        import numpy as np

        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        found: npt.NDArray[np.float32] = (pixels.astype(np.float32) * np.float32(self.factor) - mean) / std
        return found

    def png(self, scaled: npt.NDArray[np.float32]) -> bytes:
        """What a model read, as a picture for people: the inverse of `scaled`."""
        import numpy as np
        from PIL import Image

        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        values = np.clip(np.rint((scaled * std + mean) / self.factor), 0, 255).astype(np.uint8)
        picture = Image.fromarray(values[0] if self.channels == 1 else values.transpose(1, 2, 0))
        written = io.BytesIO()
        picture.save(written, "PNG")
        return written.getvalue()

    def _drawn(self, ports: Mapping[str, Port], size: int, seed: int) -> dict[str, npt.NDArray[Any]]:
        import numpy as np

        rng = np.random.default_rng(seed)
        shape = (size, self.channels, self.side, self.side)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        return {name: np.stack([self.scaled(one) for one in pixels]) for name in ports}

    def code(self, format: str | None) -> str:
        made = CODE.format(
            mode=MODES[self.channels],
            side=self.side,
            resample=self.resample,
            channels=self.channels,
            factor=self.factor,
            mean=list(self.mean),
            std=list(self.std),
        )
        if format is None:
            return f'import torch\n{made}batch = {{"pixel_values": torch.tensor(pixels, dtype=torch.float32)}}\n'
        return f'{made}batch = {{"pixel_values": pixels.astype(numpy.float32)}}\n'
