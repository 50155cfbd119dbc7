"""Whether the weights in a model's files are those of the architecture that its config describes.

Only a head may be missing, or a pooler above the layers: they are trained again. A layer too few or too many, or a norm
that is not there, would leave a network that runs and says nothing right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN = 5
BUFFER = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias|num_batches_tracked)$")
"""Constants that older versions of transformers saved and newer ones compute."""


def check_fit(model: PreTrainedModel, found: Mapping[str, Any], *, new_head: bool, own: bool) -> None:
    """Compare a model with what `from_pretrained` reports of its files (`output_loading_info`).

    own: it is of the class that the files were saved from, so that all they have of a backbone is its backbone's.

    Raises StageError, naming weights, where those of the backbone are missing or not known to it, or are of another
    shape, and where the head's are of another shape and no new one is asked for.
    """
    body = Body(model, own)
    wrong = sorted(found["mismatched_keys"])
    inside = [one for one in wrong if body.has(one[0])]
    for group, hint in (
        (inside, "The config beside the weights describes another model."),
        ([] if new_head else wrong, "Set `new_head: true` to train a new one."),
    ):
        if group:
            listed = "; ".join(f"{name} is {_shape(given)}, not {_shape(wanted)}" for name, given, wanted in group[:5])
            more = f" and {len(group) - 5} more" if len(group) > 5 else ""
            raise StageError(f"the checkpoint does not fit this model: {listed}{more}", where="model", hint=hint)
    lost = [name for name in sorted(found["missing_keys"]) if body.has(name) and not _optional(name)]
    if lost := [name for name in lost if "Sinusoid" not in type(_owner(model, name)).__name__]:
        raise StageError(
            f"the checkpoint lacks {len(lost)} weights of the backbone: {_listed(lost)}",
            where="model",
            hint="The config beside it describes another model (more layers?), or the checkpoint was saved in parts.",
        )
    if extra := [name for name in sorted(found["unexpected_keys"]) if body.has(name) and not _optional(name)]:
        raise StageError(
            f"the checkpoint has {len(extra)} weights of a backbone that the config does not describe: "
            f"{_listed(extra)}",
            where="model",
            hint="The config beside it describes another model (fewer layers?): use the one it was trained with.",
        )


def require_head(model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Raises StageError where the files lack weights of this model's head, or of a pooler that it reads."""
    body = Body(model)
    lost = sorted(name for name in found["missing_keys"] if not body.has(name) or "pooler" in name.split("."))
    if lost:
        kinds = ", ".join(model.config.architectures or ["a bare backbone"])
        raise StageError(
            f"the files lack {len(lost)} weights of a {type(model).__name__}: {_listed(lost)}",
            where="objective",
            hint=f"config.json says they are of {kinds}. Name another `objective`, or none, and put a `finetune` stage "
            "behind.",
        )


def check_finite(folder: Path) -> None:
    """Raises StageError, naming weights, where a file has NaN or infinity."""
    from tasks.models.stored_weights import stored_tensors

    broken = [
        name for name, one in stored_tensors(folder) if one.is_floating_point() and not bool(one.isfinite().all())
    ]
    if broken:
        raise StageError(
            f"{len(broken)} weights hold NaN or infinity: {_listed(sorted(broken))}",
            where="model",
            hint="A training run went wrong before they were saved: take an earlier checkpoint.",
        )


class Body:
    """The backbone of a model: everything that its bare class has, by names with its prefix or without."""

    def __init__(self, model: PreTrainedModel, own: bool = False) -> None:
        import torch
        from transformers import AutoModel

        self.prefix = f"{model.base_model_prefix}."
        base: Any = model.base_model
        self.own = own
        if base is model and model.can_generate():
            # A class that holds the backbone's modules itself, beside its head (T5).
            with torch.device("meta"):
                base = AutoModel.from_config(model.config)  # type: ignore[no-untyped-call]
        self.parts = {name.partition(".")[0] for name, _ in (*base.named_parameters(), *base.named_buffers())}

    def has(self, name: str) -> bool:
        """Whether a weight of this name, of the model or of a file, is the backbone's."""
        inside = name.removeprefix(self.prefix)
        return inside.partition(".")[0] in self.parts or (self.own and inside != name)


def _owner(model: PreTrainedModel, name: str) -> Any:
    """The module that a weight belongs to."""
    return model.get_submodule(name.rpartition(".")[0])


def _optional(name: str) -> bool:
    """Whether a weight of the backbone may be missing, or be there unasked."""
    causal_mask = re.search(r"(^|\.)(attn|attention)\.bias$", name)  # GPT-2's and GPT-NeoX's, as they once were saved
    return "pooler" in name.split(".") or bool(BUFFER.search(name) or causal_mask)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _shape(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
