"""Pictures for a student of a model that has no head yet: what its layers say is all there is to learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tasks.objective import Batch, Feature, Outputs, Port
from tasks.objectives.image.inputs.pictures import PictureExamples, ReadsPictures

if TYPE_CHECKING:
    import torch

    from tasks.stage import InputArtifact


class HeadlessPictures(ReadsPictures):
    """Batches of pictures, whose unit is the picture. No stage offers it by name: it has no loss or metric."""

    name: Literal["headless_pictures"] = "headless_pictures"

    primary_metric = "loss"
    greater_is_better = False

    @property
    def auto_class(self) -> str:
        return "AutoModel"

    @property
    def outputs(self) -> Mapping[str, Port]:
        return {"logits": Port("float32", ("batch", "places", "hidden"))}

    def read(self, output: Any) -> Outputs:
        return {"logits": output.last_hidden_state}

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        return PictureExamples(self.processor, data, split, self.image, {})

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixel_values(features)}

    def units(self, batch: Batch) -> float:
        return self.rows(batch)


HEADLESS = HeadlessPictures
