"""A model of several tasks as files: the trunk once, each task's head beside it, and what makes a plain model of one.

model.safetensors            trunk.*, heads.<task>.*, fp32
tokenizer.json ...           as they were beside the model it began with
<task>/config.json           of the task's Hugging Face model; and generation_config.json where it has one
<task>/forgeline.json        its card
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from infra.config_check import did_you_mean
from infra.errors import StageError
from tasks.models.card import CARD, ModelCard, read_card, write_card
from tasks.models.loading import save_model

if TYPE_CHECKING:
    from tasks.objective import Processor
    from tasks.training.multitask.model import MultitaskModel

WEIGHTS = "model.safetensors"


def save_multitask(
    model: MultitaskModel, folder: Path, *, processor: Processor, cards: Mapping[str, ModelCard]
) -> None:
    """Write the payload of a `multitask_model`; processor: what all tasks read with; cards: by task."""
    from safetensors.torch import save_file

    # Shared weights have one name here, and the weights of the tasks were needed for the training alone.
    weights = {n: p.detach().contiguous() for n, p in model.named_parameters() if not n.startswith("log_variances.")}
    saved = model.state_dict().keys()
    weights |= {name: buffer.contiguous() for name, buffer in model.named_buffers() if name in saved}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    processor.save(folder)
    for task, head in model.tasks().items():
        head.config.architectures = [type(head).__name__]
        head.config.save_pretrained(folder / task)
        if head.can_generate():
            head.generation_config.save_pretrained(folder / task)
        write_card(folder / task, cards[task])
        for name, text in cards[task].objective.processor_files().items():
            (folder / task / name).write_text(text, encoding="utf-8")


def write_task_model(source: Path, task: str, folder: Path) -> int:
    """Write the plain model of one task, with card and tokenizer; returns its number of parameters.

    Raises StageError if there is no such task.
    """
    import transformers
    from safetensors import safe_open

    from tasks.models.loading import count_parameters
    from tasks.training.multitask.model import MultitaskModel

    known = sorted(path.parent.name for path in source.glob(f"*/{CARD}"))
    if task not in known:
        raise StageError(f"no task {task!r}", where="task", hint=f"{did_you_mean(task, known).capitalize()}")
    card = read_card(source / task)
    config = transformers.AutoConfig.from_pretrained(source / task)
    plain = getattr(transformers, card.objective.auto_class).from_config(config)
    # Alone in a model of its kind it has the names of the shared file.
    alone = MultitaskModel({task: plain}, learned_weights=False)
    with safe_open(source / WEIGHTS, framework="pt") as file:
        names = set(file.keys())
        wanted = [n for n, _ in alone.named_parameters()] + [n for n, _ in alone.named_buffers() if n in names]
        weights = {name: file.get_tensor(name) for name in wanted}
    alone.load_state_dict(weights, strict=False)
    plain.tie_weights()
    if (source / task / "generation_config.json").exists():
        plain.generation_config = transformers.GenerationConfig.from_pretrained(source / task)
    processor = card.objective.load_processor(source, card.max_length)
    save_model(plain.train(False), folder, processor=processor, card=card)
    for name in processor.names if processor else ():  # what the objective decides: a chat template
        if (source / task / name).exists():
            shutil.copyfile(source / task / name, folder / name)
    return count_parameters(plain)
