"""What every arm of a benchmark trains: the same weights, the same rows in the same order, the same constants.

Rows have equal length, so that nobody pads. A row counts upwards from a random token by a random stride: the loss falls
within a few steps, so two arms that train differently cannot show the same losses by accident.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ROWS = 1024
FIRST_TOKEN = 3
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.999)
EPS = 1e-8


@dataclass(frozen=True)
class Workload:
    """A Llama of `layers` x `hidden` in fp32, `batch` rows of `context` tokens a step, AdamW at a constant rate.

    An arm makes `warmup` steps that no clock sees, then `blocks` times `steps` steps. Forgeline checkpoints every
    `steps` steps; the length of the warm-up puts that two steps into each block.
    """

    hidden: int = 384
    layers: int = 4
    vocabulary: int = 4096
    context: int = 128
    batch: int = 16
    learning_rate: float = 3e-4
    max_grad_norm: float = 1.0
    zero_stage: int = 0
    ranks: int = 1
    seed: int = 1
    steps: int = 16
    blocks: int = 7

    @property
    def warmup(self) -> int:
        return max(1, self.steps - 2)

    @property
    def total_steps(self) -> int:
        return self.warmup + self.steps * self.blocks

    @property
    def tokens_per_block(self) -> int:
        return self.steps * self.batch * self.context

    def model(self) -> PreTrainedModel:
        """The model with its first weights, in training mode."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(self.seed)
        config = AutoConfig.for_model(
            "llama",
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            intermediate_size=self.hidden * 8 // 3 // 64 * 64,
            max_position_embeddings=self.context,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            use_cache=False,
        )
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        model.train()
        return model

    def size(self) -> tuple[int, float]:
        """(parameters, floating-point operations a token), without making the weights."""
        import torch

        from tasks.training.loop.throughput import ModelFlops

        with torch.device("meta"):
            model = self.model()
        return sum(p.numel() for p in model.parameters()), ModelFlops.of_tokens(model).per_unit(self.context)

    def features(self) -> list[dict[str, npt.NDArray[np.uint16]]]:
        """The training rows as Forgeline's objectives read them."""
        random = np.random.default_rng(self.seed)
        room = self.vocabulary - FIRST_TOKEN
        starts, strides = random.integers(0, room, (ROWS, 1)), random.integers(1, 8, (ROWS, 1))
        rows = (starts + strides * np.arange(self.context)) % room + FIRST_TOKEN
        return [{"input_ids": row} for row in rows.astype(np.uint16)]

    def order(self, step: int) -> list[int]:
        """The rows of step `step` (from 0), in the order Forgeline's sampler gives them."""
        from tasks.training.engine.batch import BatchSplit
        from tasks.training.loop.sampler import Sampler

        return Sampler(ROWS, self.seed, BatchSplit(self.batch, 1, self.batch)).global_batch(step)

    def share(self, step: int, rank: int) -> list[int]:
        """The rows of step `step` that rank `rank` trains on."""
        rows = self.batch // self.ranks
        return self.order(step)[rank * rows : (rank + 1) * rows]

    def stacked(self) -> torch.Tensor:
        """All rows as one int64 tensor [ROWS, context], as a bare loop would hold them."""
        import torch

        return torch.from_numpy(np.stack([f["input_ids"] for f in self.features()]).astype(np.int64))


def decay_groups(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Weight decay on matrices, none on norms: what Forgeline and HF Trainer do."""
    return [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def cores() -> int:
    """CPU cores this process may use; every arm computes on that many threads."""
    return len(os.sched_getaffinity(0))
