"""The train and validation examples of a stage that trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.errors import StageError
from tasks.data.dataset.examples import Examples
from tasks.data.dataset.layout import has_split
from tasks.objective import Augmentation, Feature, Objective

if TYPE_CHECKING:
    from tasks.stage import InputArtifact


class Features(NamedTuple):
    """What a run learns from and what it is watched on; `validation` is empty where the data has no such split."""

    train: Sequence[Feature]
    validation: Sequence[Feature]


def train_and_validation(
    objective: Objective,
    data: InputArtifact,
    augment: Augmentation | None = None,
    seed: int = 0,
    *,
    unlabelled: bool = False,
) -> Features:
    """The training split is changed as `augment` says, validation never; `unlabelled` data cannot validate.

    objective: bound to its model. Raises StageError if it cannot read this kind of data or a split is unusable.
    """
    check_data(objective, data)
    train = objective.examples(data, data.split or "train", labelled=not unlabelled)
    if augment is not None:
        train = AugmentedExamples(objective, train, augment, seed)
    watched = not unlabelled and has_split(data.path, data.manifest.type, "validation")
    return Features(train, heldout_examples(objective, data, "validation") if watched else [])


def check_data(objective: Objective, data: InputArtifact) -> None:
    """Raises StageError if the objective cannot read this kind of data."""
    if data.manifest.type not in objective.data_types:
        raise StageError(
            f"objective {objective.name} cannot learn from {data.manifest.type!r}",
            where=data.stage,
            hint=f"It reads: {', '.join(objective.data_types)}.",
        )


def heldout_examples(objective: Objective, data: InputArtifact, split: str) -> Sequence[Feature]:
    """A split that is judged on: what is drawn again for training (masks, spans) is drawn once, by the place in it."""
    return drawn_once(objective, objective.examples(data, split))


def drawn_once(objective: Objective, examples: Sequence[Feature]) -> Sequence[Feature]:
    """Examples to be judged on, each noised by its place."""
    return examples if type(objective).noised is Objective.noised else NoisedExamples(objective, examples)


class NoisedExamples(Examples):
    """Examples noised by their places, each time they are asked for."""

    def __init__(self, objective: Objective, plain: Sequence[Feature]) -> None:
        self.objective, self.plain = objective, plain
        self.sizes, self.truth = getattr(plain, "sizes", None), getattr(plain, "truth", {})
        self.decodes = getattr(plain, "decodes", False)

    def __len__(self) -> int:
        return len(self.plain)

    def example(self, index: int) -> Feature:
        return self.objective.noised(self.plain[index], index % len(self.plain))


class AugmentedExamples(Examples):
    """Examples that are changed by their place in the data stream when they are drawn.

    By index they are those without changes: baselines and samples are about the data, not about its variants.
    """

    def __init__(self, objective: Objective, plain: Sequence[Feature], augment: Augmentation, seed: int) -> None:
        if objective.augmentation is None or not isinstance(plain, Examples):
            raise StageError(
                f"objective {objective.name} does not support `augment`",
                where="augment",
                hint="What its examples are labelled with belongs to them as they stand: leave `augment` out.",
            )
        if augment.domain != objective.augmentation:
            raise StageError(
                f"`augment` is for {augment.domain}, and {objective.name} reads {objective.augmentation}",
                where="augment",
                hint=f"Give settings for {objective.augmentation}, or leave it out.",
            )
        self.plain, self.augment, self.seed = plain, augment, seed
        self.sizes, self.truth, self.decodes = plain.sizes, plain.truth, plain.decodes
        plain.raw(0)  # examples that cannot be changed say so now

    def __len__(self) -> int:
        return len(self.plain)

    def example(self, index: int) -> Feature:
        plain: Feature = self.plain[index]
        return plain

    def drawn(self, index: int, place: int) -> Feature:
        """Example `index` as it is trained on at `place`."""
        raw = self.plain.raw(index)
        changed: Mapping[str, Any] = self.augment.changed(raw, self.seed, place)
        return self.plain[index] if changed is raw else self.plain.made(index, changed)

    def at_own_places(self) -> list[Feature]:
        """Every example as it is at its place in the split."""
        return [self.drawn(i, i) for i in range(len(self))]
