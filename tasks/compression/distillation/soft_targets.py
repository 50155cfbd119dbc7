"""A teacher's outputs on disk: written once, read by every student.

    000000.safetensors ...   logits [rows, C] or [rows]; or of each row the largest k (`tasks/losses/top_k.py`):
                             logits [rows, k], ids int32 [rows, k], rest [rows]
                             counts int64 [examples]: how many of the rows, which stand in order, each example has
    soft_targets.json        {"temperature": that of `rest`}

Files hold consecutive examples in the data's frozen order, so rows are found by an example's number in its split.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from infra.errors import StageError
from tasks.data.dataset.examples import ChosenExamples, example_order
from tasks.losses.top_k import TopK
from tasks.models.inputs import model_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Feature, Objective

ABOUT = "soft_targets.json"
BATCH = 32
WINDOW = 8 * BATCH
"""Examples that are put in order of length together, so that little is padding; they are in memory at once."""
FILE_NUMBERS = 1 << 24
"""A file that holds so many numbers is full."""
Rows = dict[str, torch.Tensor]


class Form:
    """How rows of logits are kept: the largest `top_k` of each, or all where there are no more; in `dtype`."""

    def __init__(self, dtype: torch.dtype, top_k: int | None, temperature: float) -> None:
        self.dtype, self.top_k, self.temperature = dtype, top_k, temperature

    def __call__(self, rows: torch.Tensor) -> Rows:
        """rows: [N, C] or [N]. Raises StageError where they are not finite, or not in `dtype`."""
        found = {"logits": rows.to(self.dtype)}
        if self.top_k is not None and rows.ndim == 2 and rows.shape[1] > self.top_k:
            top = TopK.of(rows.float(), self.top_k, self.temperature)
            found = {"logits": top.logits.to(self.dtype), "ids": top.ids.int(), "rest": top.rest.to(self.dtype)}
        if not found["logits"].isfinite().all():
            raise StageError(
                f"the teacher gives outputs that are no finite numbers in {self.dtype}",
                where="teacher",
                hint="Set `dtype: fp32`; where that is set, the teacher's weights or its data are damaged.",
            )
        return {name: value.cpu() for name, value in found.items()}


def write_soft_targets(
    folder: Path,
    teacher: PreTrainedModel,
    objective: Objective,
    features: Sequence[Feature],
    form: Form,
    progress: Callable[[int], None],
) -> None:
    """Ask the teacher about every example once. progress: gets how many are done."""
    held: list[Rows] = []
    files = numbers = 0
    for start in range(0, len(features), WINDOW):
        end = min(start + WINDOW, len(features))
        answers = _answers(teacher, objective, ChosenExamples(features, range(start, end)), form)
        held += answers
        numbers += sum(value.numel() for rows in answers for value in rows.values())
        if numbers >= FILE_NUMBERS or end == len(features):
            tensors = {name: torch.cat([rows[name] for rows in held]) for name in held[0]}
            tensors["counts"] = torch.tensor([len(rows["logits"]) for rows in held])
            save_file(tensors, folder / f"{files:06d}.safetensors")
            held, numbers, files = [], 0, files + 1
        progress(end)
    (folder / ABOUT).write_text(json.dumps({"temperature": form.temperature}) + "\n", encoding="utf-8")


def _answers(teacher: PreTrainedModel, objective: Objective, features: Sequence[Feature], form: Form) -> list[Rows]:
    """What is kept of each example, in the order of the examples."""
    order = example_order(features).tolist()
    found: dict[int, Rows] = {}
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        batch = objective.collate([features[place] for place in places])
        batch = {name: value.to(teacher.device) for name, value in batch.items()}
        with torch.no_grad():
            outputs = objective.read(teacher(**model_inputs(batch, teacher)))
        rows, counts = objective.teacher_targets(outputs, batch)
        parts = {name: torch.split(value, counts.tolist()) for name, value in form(rows).items()}
        for i, place in enumerate(places):
            found[place] = {name: part[i] for name, part in parts.items()}
    return [found[place] for place in range(len(features))]


class SoftTargets:
    """Stored outputs, memory-mapped: nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.files: list[Any] = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        counts = [file.get_tensor("counts") for file in self.files]
        self.ends = [torch.cat([torch.zeros(1, dtype=torch.int64), each.cumsum(0)]).tolist() for each in counts]
        self.first = [0, *accumulate(len(each) for each in counts)]
        self.names = [name for name in self.files[0].keys() if name != "counts"]  # noqa: SIM118 - it is no dict
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self.temperature: float | None = about["temperature"] if "rest" in self.names else None
        """The only one at which they can be learned from; None: any."""

    def __len__(self) -> int:
        """Examples."""
        return self.first[-1]

    def of(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | TopK:
        """Those of a batch's examples, one example's rows after another's, as `Objective.soft_targets` has them."""
        parts = [self._rows(number) for number in batch["example"].tolist()]
        device = batch["example"].device
        found = {name: torch.cat([rows[name] for rows in parts]).to(device) for name in self.names}
        if "rest" not in found:
            return found["logits"].float()
        return TopK(found["logits"].float(), found["ids"].long(), found["rest"].float())

    def _rows(self, number: int) -> Rows:
        file = bisect_right(self.first, number) - 1
        place = number - self.first[file]
        begin, end = self.ends[file][place : place + 2]
        return {name: self.files[file].get_slice(name)[begin:end] for name in self.names}
