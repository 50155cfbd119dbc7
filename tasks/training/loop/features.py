"""The train and validation examples of a stage that trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.errors import StageError
from tasks.data.dataset.layout import has_split
from tasks.data.dataset.split import read_split
from tasks.objective import Feature, Objective
from tasks.objectives.text.inputs.augmentation import Augment, augmented

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact


class Features(NamedTuple):
    """What a training learns from and what it is watched on; `validation` is empty where the data has no such split."""

    train: Sequence[Feature]
    validation: Sequence[Feature]


def train_and_validation(
    objective: Objective,
    data: InputArtifact,
    tokenizer: PreTrainedTokenizerFast | None,
    max_length: int,
    augment: Augment | None = None,
    seed: int = 0,
    *,
    unlabelled: bool = False,
) -> Features:
    """The training split is changed as `augment` says, validation never; `unlabelled` data cannot validate.

    Raises StageError if the objective cannot read this kind of data or a split is unusable.
    """
    check_data(objective, data)
    read = objective.unlabelled if unlabelled else objective.features
    train = read(data, data.split or "train", tokenizer, max_length)
    if augment is not None:
        train = AugmentedTexts(objective, train, data, data.split or "train", tokenizer, max_length, augment, seed)
    watched = not unlabelled and has_split(data.path, data.manifest.type, "validation")
    validation = heldout_features(objective, data, "validation", tokenizer, max_length) if watched else []
    return Features(train, validation)


def check_data(objective: Objective, data: InputArtifact) -> None:
    """Raises StageError if the objective cannot read this kind of data."""
    if data.manifest.type not in objective.data_types:
        raise StageError(
            f"objective {objective.name} cannot learn from {data.manifest.type!r}",
            where=data.stage,
            hint=f"It reads: {', '.join(objective.data_types)}.",
        )


def heldout_features(
    objective: Objective,
    data: InputArtifact,
    split: str,
    tokenizer: PreTrainedTokenizerFast | None,
    max_length: int,
) -> Sequence[Feature]:
    """A split that is judged on: what is drawn anew for training (masks, spans) is drawn once, by the place in it."""
    return drawn_once(objective, objective.features(data, split, tokenizer, max_length))


def drawn_once(objective: Objective, features: Sequence[Feature]) -> Sequence[Feature]:
    """Examples to be judged on, each noised by its place."""
    first = features[0]
    if objective.noised(first, 0) is first:
        return features
    return [objective.noised(feature, place) for place, feature in enumerate(features)]


class AugmentedTexts(Sequence[Feature]):
    """Training features whose text is changed by its place in the data stream, and tokenized when it is drawn.

    By index the features are those without changes: baselines and samples are about the data, not about its variants.
    """

    def __init__(
        self,
        objective: Objective,
        plain: Sequence[Feature],
        data: InputArtifact,
        split: str,
        tokenizer: PreTrainedTokenizerFast | None,
        max_length: int,
        augment: Augment,
        seed: int,
    ) -> None:
        if data.manifest.type != "dataset":
            raise StageError(
                "token ids cannot be augmented", where="augment", hint="Train on the dataset, not on its packed tokens."
            )
        self.plain, self.texts = plain, read_split(data, split, columns=("text",))["text"]
        self.tokenizer, self.max_length, self.augment, self.seed = tokenizer, max_length, augment, seed
        self.objective = objective
        objective.with_text(plain[0], self.texts[0], tokenizer, max_length)  # an objective that cannot, says so now

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, index: Any) -> Any:
        return self.plain[index]

    def drawn(self, index: int, place: int) -> Feature:
        """Example `index` as it is trained on at `place`."""
        text = augmented(self.texts[index], self.augment, self.seed, place)
        if text == self.texts[index]:
            return self.plain[index]
        return self.objective.with_text(self.plain[index], text, self.tokenizer, self.max_length)
