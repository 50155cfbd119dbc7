"""Prompt tuning (Lester et al., 2021): vectors before every text learn, and the head; the network does not.

The vectors are new words of the vocabulary, which the tokenizer puts before each text (behind [CLS] where there is
one). So what ships is a plain model and its tokenizer, and every stage reads it like any other. While they learn they
lie beside the frozen embeddings, so that no optimizer can touch the other words; afterwards they are rows of the table.

Unlike peft, which puts them before [CLS] as well, so that a classifier which reads the first position reads a prompt.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infra.errors import StageError
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.training.tuning.prompt_settings import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class PromptEmbedding(nn.Embedding):
    """Token ids int64 [...] -> vectors [..., H]; those from `first` on are the prompt's, all others the frozen table's.

    weight: the table, [V, H]. prompt: [n, H], the one of the two that learns.
    """

    def __init__(self, table: nn.Embedding, first: int, prompt: torch.Tensor) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, table.padding_idx, device="meta")
        self.weight = table.weight
        self.first, self.prompt = first, nn.Parameter(prompt)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        place = ids - self.first
        mine = (place >= 0) & (place < len(self.prompt))
        words = super().forward(ids.masked_fill(mine, 0))
        vectors = nn.functional.embedding(place.clamp(0, len(self.prompt) - 1), self.prompt)
        return torch.where(mine.unsqueeze(-1), vectors.to(words.dtype), words)


def prompted(processor: Any, count: int, folder: Path, *, stage: str) -> Tokenizer:
    """A model's tokenizer with a prompt of `count` words before each text, written to `folder`.

    Raises StageError where the model reads no texts, or the prompt leaves no room for one.
    """
    if not isinstance(processor, Tokenizer) or processor.folder is None:
        raise StageError("the model reads no texts, before which a prompt could stand", where=f"stages.{stage}.prompt")
    found = prompted_tokenizer(processor.folder, count, folder)
    check_room(found, processor.limit, where=f"stages.{stage}.max_length")
    return Tokenizer(found, processor.limit, folder)


def prompted_tokenizer(source: Path, count: int, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `source` with `count` words more, before each text; written to `folder`."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        raise StageError("the model has no tokenizer, which is what puts a prompt before a text", where="prompt")
    first = len(tokenizer)
    names = [f"<prompt_{first + i}>" for i in range(count)]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["post_processor"] = _with_prompt(state["post_processor"], names, first)
    tokenizer.backend_tokenizer.post_processor = Backend.from_str(json.dumps(state)).post_processor
    tokenizer.save_pretrained(folder)
    saved = load_tokenizer(folder)
    assert saved is not None
    begun = saved("")["input_ids"]
    assert [i for i in begun if i >= first] == list(range(first, first + count)), "the files say it as well"
    return saved


def check_room(tokenizer: PreTrainedTokenizerFast, max_length: int, *, where: str) -> None:
    """Raises StageError if the prompt leaves no room for a text."""
    taken = tokenizer.num_special_tokens_to_add()
    if taken >= max_length:
        raise StageError(
            f"the prompt and the tokenizer's own marks take {taken} of {max_length} tokens: no room for a text",
            where=where,
            hint="`max_length` counts the prompt: raise it, or take fewer `prompt.tokens`.",
        )


def insert(model: PreTrainedModel, prompt: Prompt, tokenizer: Any, *, head: set[str], first: int) -> PreTrainedModel:
    """Put the prompt beside the model's embeddings, in place: it and the parameters named in `head` learn.

    first: the token id of the prompt's first word. The vectors begin as those of words: of `prompt.text`, over and
    over, or of some drawn from torch's global random numbers. Raises StageError for a model that says words.
    """
    table: Any = model.get_input_embeddings()
    if model.get_output_embeddings() is not None:  # type: ignore[no-untyped-call]
        raise StageError(
            f"a {type(model).__name__} says words, and a prompt's vectors would become words that it could say",
            where="prompt",
            hint="Prompt tuning is for objectives with a head of their own (classification, tagging, answers); "
            "use `lora` here.",
        )
    if prompt.text is None:
        ids = torch.randint(0, min(first, table.num_embeddings), (prompt.tokens,))
    else:
        words = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        if not words:
            raise StageError(f"{prompt.text!r} has no tokens", where="prompt.text")
        ids = torch.tensor([words[i % len(words)] for i in range(prompt.tokens)])
    beside = PromptEmbedding(table, first, table.weight.detach()[ids].clone())
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
    model.set_input_embeddings(beside)
    return model


def empty_like(model: PreTrainedModel) -> PreTrainedModel:
    """An untrained model of the form that `insert` left, which takes the weights that ranks hold in parts."""
    beside: Any = model.get_input_embeddings()
    made = type(model)(model.config)
    table: Any = made.get_input_embeddings()
    made.set_input_embeddings(PromptEmbedding(table, beside.first, torch.zeros(beside.prompt.shape)))
    return made


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model, its vectors rows of the table, in place. A table that is too small grows."""
    beside: Any = model.get_input_embeddings()
    end = beside.first + len(beside.prompt)
    size = max(beside.num_embeddings, end)
    made = nn.Embedding(size, beside.embedding_dim, beside.padding_idx, dtype=beside.weight.dtype)
    with torch.no_grad():
        made.weight.zero_()
        made.weight[: beside.num_embeddings] = beside.weight
        made.weight[beside.first : end] = beside.prompt
    model.set_input_embeddings(made)
    model.config.vocab_size = size
    model.requires_grad_(True)
    return model


def _with_prompt(processor: dict[str, Any] | None, names: list[str], first: int) -> dict[str, Any]:
    """A tokenizer's post-processor (its JSON) that puts the prompt before the first text, behind what stands there."""
    kind = (processor or {}).get("type")
    if processor is None:
        return _template("$A", "$A $B:1", {}, names, first)
    if kind == "Sequence":
        steps = list(processor["processors"])
        place = next((i for i, step in enumerate(steps) if step["type"] != "ByteLevel"), None)
        done = _with_prompt(None if place is None else steps[place], names, first)
        place = len(steps) if place is None else place
        return {**processor, "processors": [*steps[:place], done, *steps[place + 1 :]]}
    if kind == "ByteLevel":
        return {"type": "Sequence", "processors": [processor, _with_prompt(None, names, first)]}
    if kind in ("BertProcessing", "RobertaProcessing"):
        special = dict((processor["cls"], processor["sep"]))
        (cls, _), (sep, _) = processor["cls"], processor["sep"]
        if kind == "BertProcessing":
            return _template(f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1", special, names, first)
        done = _template(f"{cls} $A {sep}", f"{cls} $A {sep} {sep} $B {sep}", special, names, first)
        offsets = {
            "type": "ByteLevel",
            "add_prefix_space": processor["add_prefix_space"],
            "trim_offsets": processor["trim_offsets"],
            "use_regex": True,
        }
        return {"type": "Sequence", "processors": [offsets, done]}
    if kind != "TemplateProcessing":
        raise StageError(f"cannot put a prompt into a tokenizer whose post-processor is {kind}", where="prompt")
    pieces = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    done = dict(processor)
    for which in ("single", "pair"):
        place = next(i for i, piece in enumerate(processor[which]) if "Sequence" in piece)
        done[which] = [*processor[which][:place], *pieces, *processor[which][place:]]
    known = {name: {"id": name, "ids": [first + i], "tokens": [name]} for i, name in enumerate(names)}
    return {**done, "special_tokens": {**processor["special_tokens"], **known}}


def _template(single: str, pair: str, special: dict[str, int], names: list[str], first: int) -> dict[str, Any]:
    from tokenizers import Tokenizer, models
    from tokenizers.processors import TemplateProcessing

    plain = Tokenizer(models.BPE())
    plain.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=list(special.items()))
    return _with_prompt(json.loads(plain.to_str())["post_processor"], names, first)
