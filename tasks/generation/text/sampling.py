"""What `generate` of transformers is given besides its settings: logits that are no numbers, drawing, and stopping.

The library draws a whole batch from one stream of random numbers, so that an output would depend on its neighbours.
Here each token is drawn with a number of its own, a function of (seed, example, step): outputs are the same in any
batch, in any order, and beside any other model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from infra.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class NumbersOnly(LogitsProcessor):
    """Raises StageError, naming the example, once a logit is not a number: argmax would take it for the largest."""

    def __init__(self, names: Sequence[str], stage: str) -> None:
        self.names, self.stage = names, stage

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        broken = scores.isnan().any(-1)
        if bool(broken.any()):
            row = int(broken.nonzero()[0]) * len(self.names) // len(scores)  # beams of an example stand together
            raise StageError(
                f"the model's logits are not numbers (nan) on example {self.names[row]!r}",
                where=self.stage,
                hint="Its weights are broken or overflow: look at its training's loss, or train in fp32 or bf16.",
            )
        return scores


class Drawn(LogitsProcessor):
    """Leaves one token a row, drawn by its probability: inversion of the distribution at a number in [0, 1).

    examples: [B] the place of each row's example in its split. Rows with equal logits and the same (seed, place, step)
    draw the same token.
    """

    def __init__(self, seed: int, examples: Sequence[int]) -> None:
        self.seed, self.examples, self.step = seed, examples, 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        numbers = [uniform(self.seed, example, self.step) for example in self.examples]
        self.step += 1
        cumulative = scores.double().softmax(-1).cumsum(-1)
        aims = torch.tensor(numbers, dtype=torch.float64, device=scores.device)[:, None] * cumulative[:, -1:]
        # The first token whose sum lies above the number: one of probability 0 never is.
        chosen = torch.searchsorted(cumulative, aims, right=True).clamp(max=scores.shape[-1] - 1)
        kept = torch.full_like(scores, -torch.inf)
        kept.scatter_(1, chosen, 0.0)
        return kept  # type: ignore[return-value]


def uniform(seed: int, example: int, step: int) -> float:
    """A number in [0, 1) that belongs to one token: Philox, a counter-based generator (Salmon et al., 2011)."""
    return float(np.random.Generator(np.random.Philox(key=(example << 64) | seed, counter=step)).random())


class StopStrings(StoppingCriteria):
    """Ends a row once its output holds one of some strings; the prompt does not count."""

    def __init__(self, stop: Sequence[str], tokenizer: PreTrainedTokenizerFast, begin: int) -> None:
        self.stop, self.tokenizer, self.begin = stop, tokenizer, begin
        # A string ends in the newest token, and no token before it but special ones spells less than a byte.
        self.window = max(len(text.encode()) for text in stop) + 1

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **given: Any) -> torch.BoolTensor:
        recent = input_ids[:, max(self.begin, input_ids.shape[1] - self.window) :].tolist()
        texts = self.tokenizer.batch_decode(recent, skip_special_tokens=True)
        found = torch.tensor([any(text in said for text in self.stop) for said in texts], device=input_ids.device)
        return found.bool()  # type: ignore[return-value]
