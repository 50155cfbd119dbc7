"""What objectives share whose models read token ids: the tokenizer they are bound to, and examples made with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from infra.errors import StageError
from tasks.data.dataset.examples import Examples
from tasks.objective import Batch, Feature, Objective, Port, Processor
from tasks.processors.special_ids import SpecialIds

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact

TOKENS = ("batch", "tokens")


class Tokenized(Objective):
    """An objective whose inputs are `input_ids` and `attention_mask`, int64 [rows, tokens]."""

    work_unit = "tokens"
    new_model_data = ("tokens",)
    _special: SpecialIds = PrivateAttr(SpecialIds())

    @property
    def inputs(self) -> Mapping[str, Port]:
        return {name: Port("int64", TOKENS, mask="attention_mask") for name in ("input_ids", "attention_mask")}

    @property
    def outputs(self) -> Mapping[str, Port]:
        return {"logits": Port("float32", (*TOKENS, "classes"), "classes", mask="attention_mask")}

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """The model's; None where it knows token ids alone."""
        return self._processor.tokenizer if self._processor is not None else None

    @property
    def max_length(self) -> int:
        """Tokens an example may have."""
        return int(self._processor.limit)

    @property
    def special(self) -> SpecialIds:
        """What pads a batch, and what a decoder begins with; zeros before the objective is bound to a model."""
        return self._special

    def bound(
        self, processor: Processor | None = None, labels: Sequence[str] | None = None, config: Any = None
    ) -> Self:
        known = super().bound(processor, labels, config)
        if known._config is not None:
            known._special = SpecialIds.of(known._config, known.tokenizer)
        return known

    def load_processor(self, folder: Path, limit: int | None = None) -> Processor | None:
        from tasks.processors.tokenizer import Tokenizer

        if limit is None:
            raise StageError("the card does not say how long a text may be", where=folder.name, hint="Make it again.")
        return Tokenizer.load(folder, limit)

    def reads(self, folder: Path) -> bool:
        return (folder / "tokenizer.json").exists()

    def new_processor(self, data: InputArtifact) -> Processor:
        from tasks.processors.tokenizer import Tokenizer

        if data.manifest.type != "tokens":
            raise StageError(
                f"a new model of objective {self.name} learns from packed tokens",
                where=data.stage,
                hint="Put a `tokenizer` and a `pack` stage between the dataset and this stage.",
            )
        context = json.loads((data.path / "tokens.json").read_text(encoding="utf-8"))["context"]
        return Tokenizer.load(data.path / "tokenizer", int(context))

    def length(self, feature: Feature) -> int:
        """Tokens of an example, by which examples of like lengths are put together."""
        return len(feature["input_ids"])

    def with_text(self, feature: Feature, text: str) -> Feature:
        """The example with another text in place of its own (augmentation)."""
        raise NotImplementedError

    def work(self, batch: Batch) -> float:
        return int(batch["attention_mask"].sum())


class TokenExamples(Examples):
    """Examples of token ids: a list, or packed rows that are read when asked for.

    texts: those they were made of, which may be changed. None: they cannot be; `why`: says so. shared: what all carry.
    """

    def __init__(
        self,
        objective: Tokenized,
        rows: Sequence[Feature],
        texts: Sequence[str] | None = None,
        *,
        why: str = "token ids cannot be augmented",
        hint: str = "Train on the dataset, not on its packed tokens.",
        **shared: Any,
    ) -> None:
        import numpy as np

        self.objective, self.rows, self.texts, self.shared, self.why, self.hint = (
            objective,
            rows,
            texts,
            shared,
            why,
            hint,
        )
        known: npt.NDArray[np.int64] | None = getattr(rows, "sizes", None)
        self.sizes = np.array([objective.length(row) for row in rows], np.int64) if known is None else known

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int) -> Feature:
        return {**self.rows[index], **self.shared} if self.shared else self.rows[index]

    def raw(self, index: int) -> Mapping[str, Any]:
        if self.texts is None:
            raise StageError(self.why, where="augment", hint=self.hint)
        return {"text": self.texts[index]}

    def made(self, index: int, raw: Mapping[str, Any]) -> Feature:
        return self.objective.with_text(self[index], raw["text"])
