"""Micro-batches of a step, collated while the step before it runs, so that the step does not wait for its data."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from tasks.objective import Feature, Objective
from tasks.training.loop.sampler import Sampler, stream_seed

Micro = tuple[int, dict[str, torch.Tensor]]
"""(place in the data stream of its first example, batch); `example` int64 [B]: each one's number in the split."""


class Loader:
    """One thread works one step ahead; where examples are decoded files, others decode them for it.

    threads: how many those are; Pillow and its kin release the interpreter's lock. Collating draws no random numbers of
    torch's: the thread would race for them.
    """

    def __init__(
        self, features: Sequence[Feature], objective: Objective, sampler: Sampler, rank: int, threads: int = 1
    ) -> None:
        self.features, self.objective, self.sampler, self.rank = features, objective, sampler, rank
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        decodes = getattr(features, "decodes", False)
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decoder") if decodes else None
        self._ahead: tuple[int, Future[list[Micro]]] | None = None

    def step(self, number: int, *, last: bool) -> list[Micro]:
        """This rank's micro-batches of step `number` of the data stream; begins with the next unless it is the last."""
        if self._ahead is not None and self._ahead[0] == number:
            micros = self._ahead[1].result()
        else:
            micros = self._collate(number)
        self._ahead = None if last else (number + 1, self._pool.submit(self._collate, number + 1))
        return micros

    def resplit(self, sampler: Sampler) -> None:
        """Go on with other micro-batches."""
        self.sampler, self._ahead = sampler, None

    def close(self) -> None:
        for pool in filter(None, (self._pool, self._decoders)):
            pool.shutdown(wait=False, cancel_futures=True)

    def _collate(self, number: int) -> list[Micro]:
        found = []
        for position, examples in self.sampler.micro_batches(number, self.rank):
            places = range(position, position + len(examples))
            make = map if self._decoders is None else self._decoders.map
            drawn = list(make(self._drawn, examples, places))
            batch = self.objective.collate(drawn)
            found.append((position, {**batch, "example": torch.tensor(examples)}))
        return found

    def _drawn(self, index: int, place: int) -> Feature:
        """The example at a place of the data stream; what is drawn again depends on the place."""
        drawn = getattr(self.features, "drawn", None)
        feature: Feature = self.features[index] if drawn is None else drawn(index, place)
        return self.objective.noised(feature, stream_seed(self.sampler.seed, place))
