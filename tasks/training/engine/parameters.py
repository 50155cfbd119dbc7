"""What a rank holds of the trained parameters and their moments, at every ZeRO stage.

    parameters.pieces()             # this rank's flat fp32 runs of them, to be saved (`shards.py`)
    parameters.load(shards, 500)    # from the shards of any number of ranks and any stage
    parameters.weights()            # all of them, whole, on rank 0

DeepSpeed keeps them in a layout of its own at each stage. Whoever looks for what depends on that finds it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from infra.errors import StageError
from tasks.training.engine.buffers import Buffers
from tasks.training.engine.ranks import Ranks
from tasks.training.engine.shards import Piece, ShardReader


class Parameters:
    """Of one DeepSpeed engine and the optimizer it was given.

    moments: names of what the optimizer keeps of each parameter (`tasks/training/engine/optimizers.py`).
    """

    def __init__(
        self,
        engine: Any,
        optimizer: torch.optim.Optimizer,
        moments: Mapping[torch.nn.Parameter, tuple[str, ...]],
        zero_stage: int,
        ranks: Ranks,
    ) -> None:
        self._module, self._zero, self._optimizer = engine.module, engine.optimizer, optimizer
        self._moments = moments
        self.copies: dict[str, dict[str, torch.Tensor]] = {}
        """Other weights by part and name, flat, as much of each as this rank keeps; saved and loaded with the rest."""
        self.zero_stage, self.ranks = zero_stage, ranks
        self.buffers = Buffers(engine.module)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """Every weight, frozen or not: whole, fp32, in CPU memory; and the buffers, by name; on rank 0. Collective."""
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self._module.named_parameters():
            value = self._whole(parameter)
            if self.ranks.leads and value is not None:
                state[name] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
        return state | self.buffers.on_cpu() if self.ranks.leads else None

    def copy(self, part: str) -> None:
        """Keep the weights as they are now as `part`, with the buffers they have."""
        self.buffers.copy(part)
        kept = self.copies.setdefault(part, {})
        for name, values in self._local():
            if name in kept:
                kept[name].copy_(values)
            else:
                kept[name] = values.clone()

    def average(self, part: str, decay: float) -> None:
        """Move `part` towards the weights: decay x part + (1 - decay) x weights; the buffers likewise."""
        self.buffers.average(part, decay)
        for name, values in self._local():
            self.copies[part][name].lerp_(values, 1 - decay)

    def exchange(self, part: str) -> None:
        """The model gets the weights of `part`, and that the model's; the buffers likewise. Collective."""
        self.buffers.exchange(part)
        trained = dict(self._trained())
        for name, values in self._local():
            before, kept = values.clone(), self.copies[part][name]
            self._set_local(trained[name], kept)
            kept.copy_(before)
        self._renew()

    def whole(self, name: str, part: str) -> torch.Tensor:
        """One trained parameter ("weights") or a moment of it: whole, fp32, on every rank; not to be changed.

        Collective; after the first update, which makes moments.
        """
        parameter: Any = self._module.get_parameter(name)
        if part == "weights":
            value = self._whole(parameter)
        elif self.zero_stage == 0:
            value = self._optimizer.state[parameter][part]
        else:
            from deepspeed.utils import safe_get_full_optimizer_state

            self._link_moments()
            value = safe_get_full_optimizer_state(parameter, part)
        assert value is not None, f"{name} is not trained"
        return value.detach()

    def remove(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Set weights, their moments and copies to zero where a mask (bool, in the parameter's shape) is True.

        Collective; after the first update, which makes moments.
        """
        self._link_moments()
        trained = dict(self._trained())
        for name, values in self._local():
            if name not in masks:
                continue
            parameter = trained[name]
            begin = self._begin(parameter)
            gone = masks[name].flatten()[begin : begin + values.numel()].to(values.device)
            gone = torch.nn.functional.pad(gone, (0, values.numel() - gone.numel()))  # as ZeRO 3 pads partitions
            self._set_local(parameter, values.masked_fill(gone, 0.0))
            for moment in self._moments[parameter]:
                self._clear_moment(parameter, moment, gone)
            for kept in self.copies.values():
                kept[name].masked_fill_(gone, 0.0)
        self._renew()

    def _renew(self) -> None:
        """Give the forward pass the weights that were set. Collective."""
        if self.zero_stage in (1, 2):
            self._zero.update_lp_params()
        elif self.zero_stage == 3 and (small := self._zero.persistent_parameters):  # these stay gathered between steps
            small[0].partition(small)
            small[0].all_gather(small)

    def _begin(self, parameter: Any) -> int:
        """Place in a parameter of the first element that this rank keeps of it."""
        if self.zero_stage == 0:
            return 0
        if self.zero_stage == 3:
            return self._partition(parameter)[0]
        return int(parameter._hp_mapping.lp_fragment_address.start)

    def _clear_moment(self, parameter: Any, moment: str, gone: torch.Tensor) -> None:
        if self.zero_stage == 0:
            state = self._optimizer.state[parameter]
            if moment in state:
                state[moment].view(-1).masked_fill_(gone, 0.0)
        elif self.zero_stage == 3:
            from deepspeed.utils import safe_get_local_optimizer_state, safe_set_local_optimizer_state

            values = safe_get_local_optimizer_state(parameter, moment).masked_fill(gone, 0.0)
            safe_set_local_optimizer_state(parameter, values, moment)
        else:
            parameter._hp_mapping.optim_fragment[moment].masked_fill_(gone, 0.0)

    def _local(self) -> list[tuple[str, torch.Tensor]]:
        """The weights this rank keeps in fp32, flat; at ZeRO 3 with its padding."""
        if self.zero_stage == 0:
            return [(name, p.data.view(-1)) for name, p in self._trained()]
        if self.zero_stage == 3:
            from deepspeed.utils import safe_get_local_fp32_param

            return [(name, safe_get_local_fp32_param(p)) for name, p in self._trained()]
        mapped = [(name, getattr(p, "_hp_mapping", None)) for name, p in self._trained()]
        return [(name, kept.hp_fragment) for name, kept in mapped if kept is not None]

    def _set_local(self, parameter: Any, values: torch.Tensor) -> None:
        if self.zero_stage == 0:
            parameter.data.view(-1).copy_(values)
        elif self.zero_stage == 3:
            from deepspeed.utils import safe_set_local_fp32_param

            safe_set_local_fp32_param(parameter, values)
            parameter.ds_tensor.data.copy_(values)  # the copy that the forward pass gathers
        else:
            parameter._hp_mapping.hp_fragment.data.copy_(values)

    def shapes(self) -> dict[str, list[int]]:
        """Shape of every trained parameter, by name."""
        return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in self._trained()}

    def pieces(self) -> list[Piece]:
        """What this rank has to save of each trained parameter; together the ranks' pieces are the whole state.

        Views of living memory: copy them before the next step. Call it after the first update, which makes moments.
        """
        self._link_moments()
        return [self._with_copies(piece) for name, p in self._trained() if (piece := self._piece(name, p)) is not None]

    def load(self, shards: ShardReader, updates: int) -> None:
        """Set weights, moments and buffers to those saved after `updates` updates. Collective.

        Raises StageError if the parameters are not those of this model.
        """
        if self.zero_stage:
            self._allocate_partitioned_moments()
        _check_names(dict(self._trained()), shards)
        for name, parameter in self._trained():
            self._set(name, parameter, shards)
        starts = {piece.name: piece.start for piece in self.pieces()} if self.zero_stage else {}
        for part, kept in self.copies.items():
            for name, values in kept.items():
                begin = starts.get(name, 0)
                count = min(values.numel(), shards.size(part, name) - begin)  # without the padding of ZeRO 3
                values[:count] = shards.read(part, name, begin, begin + count)
        self.buffers.load(shards)
        for key, state in self._optimizer.state.items():
            if state:  # DeepSpeed looks up parameters it does not own, which leaves empty entries
                state["step"] = torch.tensor(float(updates), dtype=torch.float32, device=key.device)

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self._module.named_parameters() if p.requires_grad]

    def _whole(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        if self.zero_stage == 0 or (self.zero_stage < 3 and not parameter.requires_grad):
            return parameter.data
        if not parameter.requires_grad:  # no optimizer knows of it, but it is partitioned all the same
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                return parameter.data.clone()
        from deepspeed.utils import safe_get_full_fp32_param

        value: torch.Tensor | None = safe_get_full_fp32_param(parameter)
        return value

    def _piece(self, name: str, parameter: Any) -> Piece | None:
        if self.zero_stage == 0:
            # Every rank has all of it: each saves an equal share.
            size, ranks, rank = parameter.numel(), self.ranks.world_size, self.ranks.rank
            begin, end = size * rank // ranks, size * (rank + 1) // ranks
            # A parameter that the loss does not reach (a pooler nobody reads) has no moments: they would be zero.
            state = self._optimizer.state[parameter]
            moments = {m: state[m] if m in state else torch.zeros_like(parameter) for m in self._moments[parameter]}
            whole = {"weights": parameter.data, **moments}
            return Piece(name, begin, {part: value.reshape(-1)[begin:end] for part, value in whole.items()})
        if self.zero_stage == 3:
            from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

            begin, count = self._partition(parameter)
            parts = {m: safe_get_local_optimizer_state(parameter, m)[:count] for m in self._moments[parameter]}
            return Piece(name, begin, {"weights": safe_get_local_fp32_param(parameter)[:count], **parts})
        if (kept := parameter._hp_mapping) is None:
            return None  # another rank's
        return Piece(
            name,
            kept.lp_fragment_address.start,
            {"weights": kept.hp_fragment, **{m: kept.optim_fragment[m] for m in self._moments[parameter]}},
        )

    def _with_copies(self, piece: Piece) -> Piece:
        """The piece with the same run of the other weights."""
        count, first = piece.parts["weights"].numel(), piece.start if self.zero_stage == 0 else 0
        more = {part: kept[piece.name][first : first + count] for part, kept in self.copies.items()}
        return Piece(piece.name, piece.start, {**piece.parts, **more})

    def _partition(self, parameter: Any) -> tuple[int, int]:
        """ZeRO 3: first element and number of elements of this rank's partition, without its padding."""
        share = parameter.ds_tensor.numel()
        begin = min(parameter.ds_numel, share * self.ranks.rank)
        return begin, min(share, parameter.ds_numel - begin)

    def _set(self, name: str, parameter: Any, shards: ShardReader) -> None:
        if self.zero_stage == 0:
            parameter.data.copy_(shards.read("weights", name).view_as(parameter))
            self._optimizer.state[parameter] = {
                m: shards.read(m, name).view_as(parameter).to(parameter.device, copy=True)
                for m in self._moments[parameter]
            }
            return
        if self.zero_stage == 3:
            self._set_partition(name, parameter, shards)
            return
        if (kept := parameter._hp_mapping) is not None:
            begin = kept.lp_fragment_address.start
            end = begin + kept.lp_fragment_address.numel
            kept.hp_fragment.data.copy_(shards.read("weights", name, begin, end))
            for moment in self._moments[parameter]:
                kept.optim_fragment[moment].data.copy_(shards.read(moment, name, begin, end))
        # The copy that the forward pass reads is another one, renewed only by a step.
        parameter.data.copy_(shards.read("weights", name).view_as(parameter))

    def _set_partition(self, name: str, parameter: Any, shards: ShardReader) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        begin, count = self._partition(parameter)
        for part in ("weights", *self._moments[parameter]):
            value = torch.zeros(parameter.ds_tensor.numel(), device=self.ranks.device)
            value[:count] = shards.read(part, name, begin, begin + count)
            if part == "weights":
                safe_set_local_fp32_param(parameter, value)
            else:
                safe_set_local_optimizer_state(parameter, value, part)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(shards.read("weights", name).view_as(parameter))

    def _allocate_partitioned_moments(self) -> None:
        """ZeRO makes the moments at the first step; a restored engine needs them before."""
        zero = self._zero
        flats = zero.fp32_partitioned_groups_flat if self.zero_stage == 3 else zero.single_partition_of_fp32_groups
        names = sorted({name for moments in self._moments.values() for name in moments})
        for flat in flats:
            if not self._optimizer.state[flat]:
                self._optimizer.state[flat] = {name: torch.zeros_like(flat) for name in names}
        self._link_moments()

    def _link_moments(self) -> None:
        """Tell each parameter where its moments lie. ZeRO 1 and 2 do so once, when only the first group has any."""
        if self.zero_stage in (1, 2):
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()


def _check_names(trained: Mapping[str, Any], shards: ShardReader) -> None:
    saved = {name: shards.size("weights", name) for name in shards.names("weights")}
    expected = {name: int(getattr(p, "ds_numel", p.numel())) for name, p in trained.items()}
    wrong = sorted(name for name in saved.keys() | expected.keys() if saved.get(name) != expected.get(name))
    if wrong:
        listed = ", ".join(f"{n} ({saved.get(n, 'none')} saved, {expected.get(n, 'none')} here)" for n in wrong[:5])
        raise StageError(
            f"the checkpoint holds another model: {listed}{', ...' if len(wrong) > 5 else ''}",
            hint="Another version of transformers or of the stage's code built it; resume with that one, or remove "
            "the checkpoint to start over.",
        )
