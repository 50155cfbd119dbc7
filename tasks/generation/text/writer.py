"""Continuations of prompts by one model, in batches of similar lengths, with `generate` of transformers.

Prompts of a decoder are padded on the left, those of an encoder on the right, and the mask and the positions hide it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import StageError
from infra.execution import Execution
from tasks.generation.product import Described
from tasks.generation.text.decoding import Decoding
from tasks.generation.text.post_process import cut_before
from tasks.models.trained_for import bound_to
from tasks.objective import Objective, Request
from tasks.objectives.shared.text_prompt import Prompt
from tasks.processors.special_ids import SpecialIds
from tasks.training.engine.ranks import training_device

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

    from tasks.stage import InputArtifact

OWN_TOKENS = ("bos_token_id", "eos_token_id", "forced_bos_token_id", "suppress_tokens", "begin_suppress_tokens")
"""What a model's `generation_config.json` is asked for."""


@dataclass(frozen=True)
class Output:
    """What was written for the prompt at `place`. `finished`: it ended by itself, not because of `max_new_tokens`."""

    place: int
    text: str
    tokens: int
    finished: bool

    @property
    def size(self) -> int:
        return self.tokens

    def record(self) -> dict[str, Any]:
        return {"text": self.text, "tokens": self.tokens, "finished": self.finished}


class Writer:
    """A model artifact and the prompts it is given, made with its own tokenizer. For a forked child."""

    def __init__(
        self,
        model: InputArtifact,
        data: InputArtifact,
        split: str,
        objective: Objective,
        decoding: Decoding,
        execution: Execution,
        *,
        limit: int | None,
        truncation: bool,
        threads: int,
    ) -> None:
        from transformers import AutoConfig

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        torch.set_num_threads(threads)
        self.stage, self.decoding = model.stage, decoding
        self.device = training_device(execution)
        asked: Any = bound_to(objective, model.path)
        self.tokenizer: Any = asked.tokenizer
        room = _room(AutoConfig.from_pretrained(model.path), asked.processor.limit, decoding.max_new_tokens)
        self.requests: list[Prompt] = list(asked.bound(asked.processor.limited(room)).requests(data, split))[:limit]
        _check_prompts(self.requests, room, truncation)
        self.model = _load(model, objective.auto_class).to(self.device)  # type: ignore[arg-type]
        self.config = _generation_config(self.model, asked.special, self.tokenizer, decoding, self.requests)
        ends = self.config.eos_token_id or []
        self.ends: frozenset[int] = frozenset([ends] if isinstance(ends, int) else ends)
        # The longest come first: where memory is too small, that is seen at once.
        order = np.argsort([-len(prompt.input_ids) for prompt in self.requests], kind="stable").tolist()
        size = decoding.batch_size
        self.batches = [order[start : start + size] for start in range(0, len(order), size)]

    def described(self) -> Described:
        requests = [Request(prompt.name, prompt.shown, prompt.reference) for prompt in self.requests]
        return Described(len(self.batches), requests, int(self.model.num_parameters()), self.device.type)

    def produce(self, batch: int) -> tuple[list[Output], float]:
        """(outputs of the prompts of one batch, seconds it took)."""
        from transformers import LogitsProcessorList, StoppingCriteriaList

        places = self.batches[batch]
        prompts = [self.requests[place] for place in places]
        reads = bool(self.model.config.is_encoder_decoder)
        pad = int(self.config.pad_token_id)
        input_ids, mask = padded([prompt.input_ids for prompt in prompts], pad, left=not reads)
        begin = 1 if reads else input_ids.shape[1]
        stop = self.decoding.stop
        generate: Any = self.model.generate
        start = time.perf_counter()
        with torch.inference_mode():
            written = generate(
                input_ids.to(self.device),
                attention_mask=mask.to(self.device),
                generation_config=self.config,
                logits_processor=LogitsProcessorList(self._processors(places)),
                stopping_criteria=StoppingCriteriaList(self._criteria(begin) if stop else []),
            )
        rows = written[:, begin:].tolist()
        seconds = time.perf_counter() - start
        return [self._output(place, row) for place, row in zip(places, rows, strict=True)], seconds

    def _processors(self, places: Sequence[int]) -> list[Any]:
        """Sampling is a search for the likeliest in logits that leave one token: see `sampling.py`."""
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        from tasks.generation.text.sampling import Drawn, NumbersOnly

        decoding = self.decoding
        found: list[Any] = [NumbersOnly([self.requests[place].name for place in places], self.stage)]
        if decoding.do_sample:
            found += [TemperatureLogitsWarper(decoding.temperature)] if decoding.temperature is not None else []
            found += [TopKLogitsWarper(decoding.top_k)] if decoding.top_k is not None else []
            found += [TopPLogitsWarper(decoding.top_p)] if decoding.top_p is not None else []
            found.append(Drawn(decoding.seed, places))
        return found

    def _criteria(self, begin: int) -> list[Any]:
        from tasks.generation.text.sampling import StopStrings

        return [StopStrings(self.decoding.stop, self.tokenizer, begin)]

    def _output(self, place: int, ids: list[int]) -> Output:
        """Up to the first token that ends a text, or stop string; what stands behind is padding of the batch."""
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        written = str(self.tokenizer.decode(ids if end is None else ids[:end], skip_special_tokens=True))
        text, stopped = cut_before(written, self.decoding.stop)
        if end is not None:  # one behind a stop string is padding of the batch
            return Output(place, text, end if stopped else end + 1, True)
        kept = len(ids)
        while stopped and kept and ids[kept - 1] == self.config.pad_token_id:
            kept -= 1
        return Output(place, text, kept, stopped)


def padded(rows: Sequence[npt.NDArray[np.integer]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 `input_ids` [B, T] and `attention_mask` [B, T], padded to the longest row."""
    width = max(len(row) for row in rows)
    input_ids, mask = (np.full((len(rows), width), fill, np.int64) for fill in (pad, 0))
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        input_ids[i, place], mask[i, place] = row, 1
    return torch.from_numpy(input_ids), torch.from_numpy(mask)


def _load(artifact: InputArtifact, auto_class: str) -> PreTrainedModel:
    """The model in the number format it was saved in. Raises StageError on one that cannot write in this way."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(artifact.path)
    name, kind = config.model_type, "encoder-decoder" if config.is_encoder_decoder else "decoder"
    if not config.is_encoder_decoder and getattr(config, "is_decoder", True) is False:
        raise StageError(
            f"a {name} is an encoder: it reads texts and writes none",
            where=artifact.stage,
            hint="Generate with a decoder (llama, gpt2, ...) or an encoder-decoder (t5, bart).",
        )
    if config.is_encoder_decoder != (auto_class == "AutoModelForSeq2SeqLM"):
        raise StageError(
            f"{artifact.stage!r} is a {kind} ({name}) and cannot be asked as {auto_class}",
            where="objective",
            hint="`objective` is seq2seq for an encoder-decoder, and causal_lm for a decoder.",
        )
    try:
        model, found = getattr(transformers, auto_class).from_pretrained(
            artifact.path, trust_remote_code=False, output_loading_info=True
        )
    except ValueError as error:
        raise StageError(f"{auto_class} knows no {name}: {error}", where=artifact.stage) from error
    if found["missing_keys"]:
        raise StageError(
            f"the model lacks weights it would write with: {', '.join(sorted(found['missing_keys'])[:5])}",
            where=artifact.stage,
            hint="It was saved without its language modelling head: put a `finetune` stage before.",
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def _room(config: PreTrainedConfig, max_length: int, max_new_tokens: int) -> int:
    """Tokens a prompt may have. Raises StageError where `max_new_tokens` leaves none."""
    if config.is_encoder_decoder:
        positions = getattr(config, "max_position_embeddings", None) or max_new_tokens + 1
        limit, room = positions - 1, max_length  # the first is the token a decoder begins with
    else:
        limit, room = max_length - 1, max_length - max_new_tokens
    if max_new_tokens > limit:
        raise StageError(
            f"max_new_tokens {max_new_tokens} does not fit a model of {limit + 1} tokens",
            where="decoding.max_new_tokens",
            hint=f"It can be at most {limit}, and for a decoder the prompt needs room too.",
        )
    return room


def _check_prompts(prompts: Sequence[Prompt], room: int, truncation: bool) -> None:
    for prompt in prompts:
        if not prompt.reference.strip():
            raise StageError(
                f"the reference of example {prompt.name!r} is empty: nothing can be compared with it",
                where="data",
                hint="Leave rows without one out of the dataset's source.",
            )
    long = [prompt for prompt in prompts if prompt.tokens > len(prompt.input_ids)]
    if long and not truncation:
        raise StageError(
            f"{len(long)} prompts are longer than the {room} tokens there is room for, the first being example "
            f"{long[0].name!r} with {long[0].tokens}",
            where="data",
            hint="Lower decoding.max_new_tokens, leave such rows out, or set `truncation: true`: a decoder then reads "
            "a prompt's end, an encoder its beginning.",
        )


def _generation_config(
    model: PreTrainedModel, special: SpecialIds, tokenizer: Any, decoding: Decoding, prompts: Sequence[Prompt]
) -> GenerationConfig:
    """The settings, the model's own special tokens, and no other setting of its `generation_config.json`."""
    from transformers import GenerationConfig

    own = model.generation_config
    tokens = {name: getattr(own, name, None) for name in OWN_TOKENS}
    listed = tokens["eos_token_id"]
    ends = {*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id}
    ends = {end for end in ends | {end for prompt in prompts for end in prompt.ends} if end is not None}
    if not ends and not decoding.stop and decoding.min_new_tokens < decoding.max_new_tokens:
        raise StageError(
            "neither model nor tokenizer has an end-of-text token: every output would run to max_new_tokens",
            where="decoding",
            hint="Set `stop` to strings that end an output, or `min_new_tokens` to `max_new_tokens` if that is meant; "
            "or give the tokenizer an `eos_token`.",
        )
    tokens["eos_token_id"] = sorted(ends) or None
    make: Any = GenerationConfig
    config: GenerationConfig = make(
        **tokens,
        pad_token_id=special.pad,
        decoder_start_token_id=special.decoder_start,
        do_sample=False,
        max_new_tokens=decoding.max_new_tokens,
        min_new_tokens=decoding.min_new_tokens or None,
        num_beams=decoding.num_beams,
        length_penalty=1.0 if decoding.length_penalty is None else decoding.length_penalty,
        repetition_penalty=decoding.repetition_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        early_stopping=False,
    )
    model.generation_config = config  # what is unset in one is otherwise read from the other
    return config
