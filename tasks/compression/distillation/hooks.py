"""What goes on inside a model: outputs of its layers or stages and its last attention, as its last pass had them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from infra.errors import StageError
from tasks.models.structure.parts import compared_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.training.settings import TeacherParams


class ActivationHooks:
    """Hooks on a model's layers (an encoder-decoder's encoder) or stages, those of `params` that are asked for.

    Attention is made of single products then (`eager`), because the fast ways never hold it.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int], params: TeacherParams) -> None:
        self.model, self.layers = model, list(layers)
        self._hidden: dict[int, torch.Tensor] = {}
        self._attention: torch.Tensor | None = None
        self._hooks = []
        stack = [part for _, part, _ in compared_parts(model)]
        if params.hidden:
            self._hooks += [stack[i].register_forward_hook(self._keep_hidden(i)) for i in self.layers]
        self._before = model.config._attn_implementation
        if params.attention:
            model.set_attn_implementation("eager")
            self._hooks += [part.register_forward_hook(self._keep_attention) for part in stack[-1].modules()]

    def hidden(self) -> list[torch.Tensor]:
        """[B, T, H] of each layer; [B, height, width, H] of each stage of a convolutional net."""
        found = [self._hidden[i] for i in self.layers]
        return [states.permute(0, 2, 3, 1) if states.ndim == 4 else states for states in found]

    def attention(self) -> torch.Tensor:
        """[B, heads, T, T] of the last layer. Raises StageError for a model that shows none."""
        if self._attention is None:
            raise StageError(
                f"{type(self.model).__name__} does not show its attention",
                where="attention",
                hint="Leave `attention` out; `hidden` works with every model.",
            )
        return self._attention

    def close(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        if self.model.config._attn_implementation != self._before:
            self.model.set_attn_implementation(self._before)

    def _keep_hidden(self, layer: int) -> Any:
        def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            self._hidden[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    def _keep_attention(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        for value in output if isinstance(output, tuple) else ():
            if isinstance(value, torch.Tensor) and value.ndim == 4 and value.shape[-1] == value.shape[-2]:
                self._attention = value
