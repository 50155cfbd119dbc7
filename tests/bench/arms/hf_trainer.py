"""Hugging Face `Trainer` with a DeepSpeed config: the loss logged every step, nothing saved, its defaults otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.bench.arms.deepspeed_loop import config, import_deepspeed
from tests.bench.gate import Gate
from tests.bench.workload import BETAS, EPS, WEIGHT_DECAY, Workload


class Rows(Dataset[dict[str, torch.Tensor]]):
    """The rows of all steps, laid out in the order they are trained on."""

    def __init__(self, workload: Workload) -> None:
        self.rows = workload.stacked()
        self.order = [row for step in range(workload.total_steps) for row in workload.order(step)]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[self.order[index]]
        return {"input_ids": row, "labels": row}


class InOrder(Trainer):
    """Takes the rows as they come; shuffled data would differ from the other arms'."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        assert isinstance(self.train_dataset, Rows)
        return SequentialSampler(self.train_dataset)


class AtGate(TrainerCallback):
    """Passes each logged loss to the gate."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.gate(float(logs["loss"]))


def run(workload: Workload, gate: Gate, folder: Path) -> dict[str, float]:
    import_deepspeed()
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=workload.total_steps,
        per_device_train_batch_size=workload.batch,
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=WEIGHT_DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        max_grad_norm=workload.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=workload.seed,
        deepspeed=config(workload),
    )
    trainer = InOrder(model=workload.model(), args=arguments, train_dataset=Rows(workload), callbacks=[AtGate(gate)])
    trainer.train()
    return {}
