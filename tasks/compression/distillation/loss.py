"""The training loss of knowledge distillation: outputs, hidden states and attention of a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from infra.errors import StageError
from tasks.compression.distillation.hooks import ActivationHooks
from tasks.compression.distillation.soft_targets import SoftTargets
from tasks.compression.distillation.student import chosen_layers
from tasks.models.inputs import model_inputs
from tasks.models.structure.parts import compared_parts
from tasks.models.structure.staged import is_staged

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Objective, Outputs
    from tasks.training.settings import TeacherParams


def as_teacher(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on the device, frozen and without dropout."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # with one, packed documents would see each other
    torch.nn.Module.to(model.train(False).requires_grad_(False), device)
    return model


class DistillationLoss:
    """The loss that the training loop minimises:

    alpha x `distillation_loss` against the teacher + (1 - alpha) x the objective's own, per unit,
    + hidden x |s/|s| - t/|t||^2 of the layers' outputs, a mean over layers and tokens (Sun et al., 2019),
    + attention x |a - b|^2 of the last layers' attention, a mean over heads and tokens (Jiao et al., 2020).

    The latter two are of an encoder-decoder's encoder; layers are compared with evenly chosen ones of the teacher. A
    student of another width gets a projection, `student.to_teacher`, which learns with it; `finished` takes it off.
    Of `soft_targets` in the teacher's stead only outputs can be learned. Without labels, `unlabelled`, the objective's
    own loss is left out. Raises StageError if attention is to be compared and the two have different numbers of heads.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | SoftTargets,
        objective: Objective,
        params: TeacherParams,
        device: torch.device,
        *,
        unlabelled: bool = False,
    ) -> None:
        self.student, self.teacher, self.objective, self.params = student, teacher, objective, params
        self.unlabelled = unlabelled
        self.hooks = None
        if isinstance(teacher, SoftTargets):
            return
        as_teacher(teacher, device)
        if params.attention:
            _require_equal_heads(student, teacher)
        if params.hidden or params.attention:
            own, other = ([width for _, _, width in compared_parts(model)] for model in (student, teacher))
            layers = chosen_layers(len(other), min(len(own), len(other)))
            self.hooks = ActivationHooks(student, range(len(layers)), params), ActivationHooks(teacher, layers, params)
            if params.hidden:
                _add_projections(student, teacher, own[: len(layers)], [other[i] for i in layers])

    def parts(self, batch: Mapping[str, torch.Tensor]) -> list[float]:
        """Places, over which the two distances are a mean: those of a batch that are no padding."""
        if not self.hooks:
            return []
        mask = self._mask(batch)
        return [float(self.objective.rows(batch) if mask is None else mask.sum())]

    def _mask(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """bool, where a batch is no padding; None where nothing is."""
        name = next((port.mask for port in self.objective.inputs.values() if port.mask), None)
        return None if name is None else batch[name] == 1

    def __call__(self, outputs: Outputs, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        alpha = self.params.alpha
        total = torch.zeros((), device=next(iter(outputs.values())).device)
        if alpha < 1 and not self.unlabelled:
            total = (1 - alpha) * self.objective.loss(outputs, batch)[0]
        if alpha == 0 and self.hooks is None:
            return total
        if isinstance(self.teacher, SoftTargets):
            targets = self.teacher.of(batch)
            return total + alpha * self.objective.stored_distillation_loss(
                outputs, targets, batch, self.params.temperature
            )
        with torch.no_grad():
            given = self.objective.read(self.teacher(**model_inputs(batch, self.teacher)))
        if alpha:
            total = total + alpha * self.objective.distillation_loss(outputs, given, batch, self.params.temperature)
        if self.hooks is None:
            return total
        units, places = batch["step_units"]
        mask, (own, other) = self._mask(batch), self.hooks
        if self.params.hidden:
            pairs = zip(own.hidden(), other.hidden(), strict=True)
            distances = [self._apart(s, t, mask, self._wide(i)) for i, (s, t) in enumerate(pairs)]
            total = total + self.params.hidden * units / places * torch.stack(distances).mean()
        if self.params.attention:
            apart = attention_distance(own.attention(), other.attention(), mask)
            total = total + self.params.attention * units / places * apart
        return total

    def _apart(
        self, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, wide: torch.nn.Module
    ) -> torch.Tensor:
        """Of hidden states [B, ..., H], summed over places; without a mask an example is one, the mean of its rows."""
        if student.shape[:-1] != teacher.shape[:-1]:
            raise StageError(
                f"the student's states are {tuple(student.shape[1:-1])} places where its teacher's are "
                f"{tuple(teacher.shape[1:-1])}",
                where="hidden",
                hint="Only models that read alike and make pictures smaller alike can be compared: leave `hidden` out.",
            )
        if mask is not None:
            return hidden_distance(wide(student[mask]), teacher[mask])
        rows = student[..., 0].numel() // len(student)
        return hidden_distance(wide(student.flatten(0, -2)), teacher.flatten(0, -2)) / rows

    def _wide(self, number: int) -> torch.nn.Module:
        """The projection of the states at a place in the list of those that are compared."""
        found: Any = getattr(self.student, "to_teacher", None)
        if found is None:
            return torch.nn.Identity()
        chosen: torch.nn.Module = found[number] if isinstance(found, torch.nn.ModuleList) else found
        return chosen

    def finished(self, student: PreTrainedModel) -> None:
        """Remove what only this loss needed."""
        if hasattr(student, "to_teacher"):
            del student.to_teacher
        if self.hooks:
            for hook in self.hooks:
                hook.close()


def _add_projections(
    student: PreTrainedModel, teacher: PreTrainedModel, own: Sequence[int], other: Sequence[int]
) -> None:
    """Give the student `to_teacher` where widths differ: one projection for equal layers, or one for each stage."""
    if is_staged(student) != is_staged(teacher):
        raise StageError(
            f"{type(student).__name__} and its teacher {type(teacher).__name__} are of two kinds: one is a stack of "
            "equal layers, the other has stages that differ in size",
            where="hidden",
            hint="Leave `hidden` out: outputs can be learned from every teacher.",
        )
    if list(own) == list(other):
        return
    pairs = list(zip(own, other, strict=True))
    if is_staged(student):
        student.to_teacher = torch.nn.ModuleList(torch.nn.Linear(s, t, bias=False) for s, t in pairs)
    else:
        student.to_teacher = torch.nn.Linear(*pairs[0], bias=False)


def _require_equal_heads(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    for model in (student, teacher):
        if is_staged(model):
            raise StageError(
                f"{type(model).__name__} has no layers whose attention could be compared",
                where="attention",
                hint="Leave `attention` out; `hidden` compares what its stages give.",
            )
    heads = [model.config.num_attention_heads for model in (student, teacher)]
    if heads[0] != heads[1]:
        raise StageError(
            f"the student has {heads[0]} attention heads, its teacher {heads[1]}",
            where="attention",
            hint="Only equal ones can be compared: leave `attention` out, or use `hidden`.",
        )


def hidden_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance of vectors [N, H] scaled to length one, summed over N (Sun et al., 2019)."""
    apart = F.normalize(student.float(), dim=-1) - F.normalize(teacher.float(), dim=-1)
    return apart.square().sum()


def attention_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Squared distance of the rows of attention [B, heads, T, T], a mean over heads, summed over the tokens of `mask`.

    Without a mask an example counts as one place, the mean of its rows.

    As in Jiao et al. (2020), not the rows' divergence: dropout zeroes entries, whose logarithms would be all of it.
    """
    found = (student.float() - teacher.float()).square().sum(-1).mean(1)
    return found.mean(1).sum() if mask is None else found[mask].sum()
