"""One network for several tasks: a shared trunk, and for each task the head its Hugging Face class has.

    trunk.<child of the backbone>        once
    heads.<task>.<the rest of the class> of each task
    log_variances.values                 [K], where the tasks' weights are learned

Each task's model is a whole one of its HF class whose backbone holds the same modules as the others', so what is in
`heads` is an ordinary model: `save_pretrained` of it is what ships. Where a class holds the backbone's modules itself
(T5 for text to text), they are those its bare model has.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from infra.errors import StageError
from tasks.models.inputs import accepted, model_inputs


class MultitaskModel(PreTrainedModel):
    """See the module. A batch holds the tensors of each task under `<task>/<name>`."""

    base_model_prefix = "trunk"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, models: Mapping[str, PreTrainedModel], *, learned_weights: bool) -> None:
        """models: by task, loaded from one folder. The first one's backbone stays, the others get its modules.

        Raises StageError if a model has nothing of the trunk.
        """
        first = next(iter(models.values()))
        super().__init__(copy.deepcopy(first.config))
        self.supports_gradient_checkpointing = all(m.supports_gradient_checkpointing for m in models.values())
        self.trunk = torch.nn.Module()
        for task, model in models.items():
            _share(self.trunk, model, task)
        # Not a ModuleDict: that would forbid tasks called `type` or `train`.
        self.heads = torch.nn.Module()
        self.heads._modules.update(models)
        self.tie_weights()
        if learned_weights:
            self.log_variances = _Values(len(models))

    @classmethod
    def like(cls, other: MultitaskModel) -> MultitaskModel:
        """An untrained model of the same form."""
        empty = {task: type(model)(model.config) for task, model in other.tasks().items()}
        return cls(empty, learned_weights=hasattr(other, "log_variances"))

    def tasks(self) -> dict[str, PreTrainedModel]:
        """The whole model of each task."""
        return dict(self.heads._modules)  # type: ignore[arg-type]

    def batch_inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of a batch what the models of its tasks see."""
        return {
            f"{task}/{name}": value
            for task, model in self.tasks().items()
            for name, value in model_inputs(task_part(batch, task), model).items()
        }

    def forward(self, **inputs: torch.Tensor) -> dict[str, Any]:
        """The output of each task that has inputs, and `log_variances` [K] where there are any.

        All heads run in one order, so that ranks reduce their gradients in one order.
        """
        found: dict[str, Any] = {}
        for task, model in self.tasks().items():
            if own := task_part(inputs, task):
                # A training step never reads the attention cache it would fill.
                cache = dict.fromkeys(accepted(["use_cache"], model), False)
                found[task] = model(**own, **cache)
        if hasattr(self, "log_variances"):
            found["log_variances"] = self.log_variances()
        return found

    def task_output(self, task: str, batch: Mapping[str, torch.Tensor]) -> Any:
        """The output of one task for a batch of it alone, whose names have no prefix."""
        model = self.tasks()[task]
        return model(**model_inputs(batch, model))

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        for model in self.tasks().values():
            model.tie_weights()

    def get_input_embeddings(self) -> torch.nn.Module:
        return next(iter(self.tasks().values())).get_input_embeddings()  # type: ignore[no-untyped-call]

    def get_output_embeddings(self) -> None:
        return None


class _Values(torch.nn.Module):
    """Numbers that are learned, zero at first."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.zeros(count))

    def forward(self) -> torch.Tensor:
        return self.values.clone()


def task_part(batch: Mapping[str, torch.Tensor], task: str) -> dict[str, torch.Tensor]:
    """The tensors of one task, by the names they have without the others."""
    prefix = f"{task}/"
    return {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}


def _share(trunk: torch.nn.Module, model: PreTrainedModel, task: str) -> None:
    """Make the children of the model's backbone those of the trunk, and add those the trunk lacks (a pooler, say)."""
    body: Any = model.base_model
    children = dict(body.named_children())
    if body is model:
        with torch.device("meta"):
            bare = dict(AutoModel.from_config(model.config).named_children())  # type: ignore[no-untyped-call]
        children = {name: child for name, child in children.items() if name in bare}
    known = trunk._modules.keys() & children.keys()
    if trunk._modules and not any(True for name in known for _ in children[name].parameters()):
        raise StageError(
            f"a {type(model).__name__} shares no layers with the tasks before it",
            where=f"tasks.{task}",
            hint="Give the task an objective whose model has the same backbone, or train it by itself.",
        )
    for name, child in children.items():
        if name in known:
            setattr(body, name, trunk._modules[name])
        else:
            trunk.add_module(name, child)
