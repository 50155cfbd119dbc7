"""Small convolutional nets and a ViT, pictures of 16 x 16 to learn from, and the objective that classifies them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from tasks.objective import Objective, Port

SIDE, CLASSES = 16, 4
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig,
        {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 2, 1], "layer_type": "basic"},
    ),
    "convnext": (
        ConvNextForImageClassification,
        ConvNextConfig,
        # Branches that start at a millionth, as is usual, would leave nothing to look at.
        {
            "hidden_sizes": [16, 32],
            "depths": [1, 2],
            "num_stages": 2,
            "patch_size": 2,
            "layer_scale_init_value": 0.5,
            "initializer_range": 0.1,
        },
    ),
    "mobilenet": (MobileNetV2ForImageClassification, MobileNetV2Config, {"depth_multiplier": 0.35}),
    "mobilenet_v1": (MobileNetV1ForImageClassification, MobileNetV1Config, {"depth_multiplier": 0.5}),
    "vit": (
        ViTForImageClassification,
        ViTConfig,
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "patch_size": 4,
            "initializer_range": 0.1,
        },
    ),
}


def model(family: str = "resnet", **fields: Any) -> PreTrainedModel:
    """The same weights whenever the arguments are the same; running statistics are those of some batches."""
    torch.manual_seed(0)
    made, config, given = FAMILIES[family]
    network: PreTrainedModel = made(config(num_channels=1, image_size=SIDE, num_labels=CLASSES, **(given | fields)))
    network.train()
    with torch.no_grad():
        for _ in range(20 if family != "vit" else 0):
            network(pixel_values=torch.rand(16, 1, SIDE, SIDE))
    return network.train(False)


def features(count: int) -> list[dict[str, Any]]:
    """Pictures with a bright quarter, and which one it is."""
    random = np.random.default_rng(0)
    found = []
    for i in range(count):
        pixels = random.random((1, SIDE, SIDE), dtype=np.float32)
        label = int(random.integers(CLASSES))
        half, (row, column) = SIDE // 2, divmod(label, 2)
        pixels[0, row * half : (row + 1) * half, column * half : (column + 1) * half] += 1
        found.append({"pixel_values": pixels, "label": label, "number": i})
    return found


class Pictures(Objective):
    """Which quarter is bright."""

    name: str = "pictures"
    data_types = ("dataset",)
    primary_metric = "accuracy"
    greater_is_better = True

    @property
    def auto_class(self) -> str:
        return "AutoModelForImageClassification"

    @property
    def inputs(self) -> Any:
        return {"pixel_values": Port("float32", ("batch", 1, SIDE, SIDE))}

    @property
    def outputs(self) -> Any:
        return {"logits": Port("float32", ("batch", CLASSES), "classes")}

    def collate(self, features: Sequence[Any]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.from_numpy(np.stack([f["pixel_values"] for f in features])),
            "labels": torch.tensor([f["label"] for f in features]),
        }

    def loss(self, outputs: Any, batch: Any) -> tuple[torch.Tensor, float]:
        logits = outputs["logits"]
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum"), len(batch["labels"])

    def teacher_targets(self, outputs: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits = outputs["logits"]
        return logits, torch.ones(len(logits), dtype=torch.int64)

    def predictions(self, outputs: Any, batch: Any) -> dict[str, Any]:
        logits = outputs["logits"]
        return {"right": logits.argmax(-1) == batch["labels"]}

    def metrics(self, predictions: Any, weights: Any) -> dict[str, Any]:
        return {"accuracy": weights @ predictions["right"] / weights.sum(1)}
