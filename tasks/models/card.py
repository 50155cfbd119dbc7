"""`forgeline.json`: what stands beside a model's weights and says what the model is for.

{"objective": {"name": ..., options} | null, "max_length": tokens an example may have | null, "labels": [names] | null,
 "format": "onnx" | null, "quantization": name | null}
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.errors import StageError
from tasks.data.plain_values import plain_names
from tasks.objective import Objective, objective

CARD = "forgeline.json"


@dataclass(frozen=True)
class ModelCard:
    """What the file holds. `settings`: the objective as a pipeline file spells it; None for weights made elsewhere."""

    settings: dict[str, Any] | None
    max_length: int | None
    labels: list[str] | None = None
    format: str | None = None
    quantization: str | None = None

    @classmethod
    def of(cls, trained: Objective, max_length: int | None, head: dict[str, Any]) -> ModelCard:
        """Of a model trained for an objective; head: the config fields its data decided."""
        labels = list(head["label2id"]) if "label2id" in head else None
        return cls(trained.model_dump(mode="json"), max_length, labels)

    @property
    def objective(self) -> Objective:
        """What the model was trained for. Raises StageError if nobody has trained it for anything yet."""
        if self.settings is None:
            raise StageError(
                "these weights were trained for no objective",
                hint="Put a `finetune` stage before, or name what they were trained for in `pretrained`: `objective`.",
            )
        return objective(self.settings).bound(labels=self.labels or [])


def read_card(folder: Path) -> ModelCard:
    """Raises StageError if the folder is not a model that Forgeline made."""
    try:
        data = json.loads((folder / CARD).read_text(encoding="utf-8"))
        settings = data["objective"]
        if isinstance(settings, str):
            settings = {"name": settings}
        given = {name: data.get(name) for name in ("format", "quantization")}
        labels = data.get("labels")
        longest = data["max_length"]
        return ModelCard(settings, None if longest is None else int(longest), labels and plain_names(labels), **given)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"no readable {CARD} beside the model: {error!r}",
            where=folder.name,
            hint="Use a model that a stage of this version made.",
        ) from error


def write_card(folder: Path, card: ModelCard) -> None:
    """Write `forgeline.json`."""
    fields = asdict(card)
    data = {"objective": fields.pop("settings"), **fields}
    (folder / CARD).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
