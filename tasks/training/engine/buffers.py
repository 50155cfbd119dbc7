"""Buffers that a model saves with its weights, such as the running statistics of BatchNorm: they move while it trains.

They are part of the state: the average and the best weights go with the statistics they had, a step that is skipped
leaves none behind, and a checkpoint holds them all. Models without such buffers pay nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tasks.training.engine.shards import ShardReader

PART = "buffers"
"""Name of the part in a shard; copies are `buffers.<part>`."""


class Buffers:
    """Of one model on one rank."""

    def __init__(self, model: torch.nn.Module) -> None:
        saved = model.state_dict().keys()
        self._model, self._names = model, [name for name, _ in model.named_buffers() if name in saved]
        self._copies: dict[str, dict[str, torch.Tensor]] = {}

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Their values as they are now, on their device."""
        return {name: value.detach().clone() for name, value in self._now().items()}

    def restore(self, values: dict[str, torch.Tensor]) -> None:
        """Set them to a `snapshot`."""
        now = self._now()
        for name, value in values.items():
            now[name].copy_(value)

    def copy(self, part: str) -> None:
        """Keep them as they are now as `part`."""
        self._copies[part] = self.snapshot()

    def average(self, part: str, decay: float) -> None:
        """Move `part` towards them: decay x part + (1 - decay) x buffers; counters are taken as they are."""
        kept = self._copies[part]
        for name, value in self._now().items():
            if value.is_floating_point():
                kept[name].lerp_(value, 1 - decay)
            else:
                kept[name].copy_(value)

    def exchange(self, part: str) -> None:
        """The model gets those of `part`, and that the model's."""
        before = self.snapshot()
        self.restore(self._copies[part])
        self._copies[part] = before

    def on_cpu(self) -> dict[str, torch.Tensor]:
        """The model's, by name."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self._now().items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds of them, flat, by their names in a shard."""
        parts = {PART: self._now(), **{f"{PART}.{part}": kept for part, kept in self._copies.items()}}
        return {
            f"{part}/{name}": value.detach().to("cpu", copy=True).reshape(-1)
            for part, values in parts.items()
            for name, value in values.items()
        }

    def load(self, shards: ShardReader) -> None:
        """Set them and their copies to what was saved; a checkpoint from before there were copies leaves these."""
        for part, values in ((PART, self._now()), *((f"{PART}.{part}", kept) for part, kept in self._copies.items())):
            for name in shards.names(part):
                values[name].copy_(shards.read(part, name).view_as(values[name]))

    def _now(self) -> dict[str, torch.Tensor]:
        found = dict(self._model.named_buffers()) if self._names else {}
        return {name: found[name] for name in self._names}
