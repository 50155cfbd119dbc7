"""Image classification: one label a picture, several labels, or a number.

    objective: {name: image_classification, image_size: 28, channels: 1}

Reads a `dataset` with a column of encoded pictures and, for one label, `label`; how labels are numbered and what the
loss is: `tasks/objectives/shared/classification.py`. Any of Hugging Face's image classifiers fits: ViT, ResNet,
ConvNeXt, MobileNet. Size and scale of pictures are the model's own (`tasks/processors/image.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tasks.objective import Feature, Port, spread
from tasks.objectives.image.inputs.pictures import PictureExamples, ReadsPictures
from tasks.objectives.shared.classification import MEANS, Classification

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tasks.stage import InputArtifact

SHOWN = 8


class ImageClassification(Classification, ReadsPictures):
    """See the module."""

    name: Literal["image_classification"] = Field(
        "image_classification", description="Labels or a number for a picture."
    )

    training_options = frozenset({"image_size", "channels", "mean", "std", "class_weights", "label_smoothing"})

    @property
    def auto_class(self) -> str:
        return "AutoModelForImageClassification"

    @property
    def outputs(self) -> Mapping[str, Port]:
        return {"logits": Port("float32", ("batch", "classes"), MEANS[self.problem])}

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        labels, weights = self.truth(data, split) if labelled else (None, None)
        truth = {} if labels is None else {"label": labels}
        weighted = {} if weights is None else {"class_weights": weights}
        return PictureExamples(self.processor, data, split, self.image, truth, **weighted)

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixel_values(features), **self.collated_truth(features)}

    def samples(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Eight heldout pictures spread over the split, the truth, and what the model says."""
        import torch

        from tasks.data.dataset.shown_media import thumbnail
        from tasks.models.inputs import model_inputs

        chosen = [heldout[i] for i in spread(len(heldout), SHOWN)]
        batch = self.collate(chosen)
        with torch.no_grad():
            scores = self.scores(self.read(model(**model_inputs(batch, model)))["logits"], batch).numpy()
        answers = self.shown_answers(chosen, scores, model.config.id2label)
        pictures = [thumbnail(self.processor.png(one["pixel_values"])) for one in chosen]
        return [{"picture": str(url), **one} for url, one in zip(pictures, answers, strict=True)]


OBJECTIVE = ImageClassification
