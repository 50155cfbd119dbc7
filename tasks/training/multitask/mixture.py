"""How the examples of several tasks meet in a batch, and in which order: pure functions of sizes, temperature and seed.

A task of n examples has a share proportional to n^(1/temperature) (Arivazhagan et al., 2019; Raffel et al., 2020):
by size at 1, nearly even at a large temperature. Every optimizer step holds the same number of examples of each task,
its share of the global batch by largest remainder and at least one, in a fixed interleaved pattern. So any position of
the data stream is a (task, example) in O(1), which keeps the promise of `tasks/training/loop/sampler.py`: neither
ranks, micro-batches nor a resume change which examples meet in a step. Each task goes through its own examples in its
own order, epoch after epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate

from tasks.training.engine.batch import BatchSplit
from tasks.training.loop.sampler import Sampler


def shares(sizes: Sequence[int], temperature: float) -> list[float]:
    """Share of the training each task asks for; they sum to 1. sizes: training examples of each task, at least 1."""
    largest = max(sizes)
    weights = [(size / largest) ** (1 / temperature) for size in sizes]
    return [weight / sum(weights) for weight in weights]


def batch_counts(sizes: Sequence[int], temperature: float, global_batch: int) -> list[int]:
    """Examples of each task in a step. Raises ValueError if there are more tasks than examples."""
    if global_batch < len(sizes):
        raise ValueError(f"a global batch of {global_batch} cannot hold an example of each of {len(sizes)} tasks")
    wanted = [share * global_batch for share in shares(sizes, temperature)]
    counts = [max(1, int(want)) for want in wanted]
    places = range(len(sizes))
    while sum(counts) < global_batch:
        counts[max(places, key=lambda k: (wanted[k] - counts[k], -k))] += 1
    while sum(counts) > global_batch:  # small tasks were lifted to one
        counts[min((k for k in places if counts[k] > 1), key=lambda k: (wanted[k] - counts[k], k))] -= 1
    return counts


def interleaved(counts: Sequence[int]) -> list[int]:
    """The task of each place of a batch: those of a task spread evenly, so that micro-batches are mixed as well."""
    places = [(Fraction(2 * i + 1, 2 * count), task) for task, count in enumerate(counts) for i in range(count)]
    return [task for _, task in sorted(places)]


@dataclass(frozen=True)
class MixtureSampler(Sampler):
    """A sampler over the tasks' examples one after the other: those of task k begin at sum(sizes[:k]).

    counts: examples of each task in a step. Task k is ordered as a sampler of seed + k over it alone would order it.
    """

    sizes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    _of_task: dict[int, Sampler] = field(init=False, default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, sizes: Sequence[int], counts: Sequence[int], seed: int, split: BatchSplit) -> MixtureSampler:
        """counts sum to the split's global batch."""
        assert sum(counts) == split.global_batch and len(counts) == len(sizes)
        return cls(sum(sizes), seed, split, tuple(sizes), tuple(counts))

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        """(task, how many of it stand before) of each place in a batch."""
        pattern = interleaved(self.counts)
        return [(task, pattern[:place].count(task)) for place, task in enumerate(pattern)]

    @cached_property
    def _first(self) -> list[int]:
        return [0, *accumulate(self.sizes)]

    def example(self, position: int) -> int:
        """The example at a position of the endless stream."""
        step, place = divmod(position, self.split.global_batch)
        task, before = self._places[place]
        return self._first[task] + self._sampler(task).example(step * self.counts[task] + before)

    def seen(self, steps: int) -> list[int]:
        """The distinct examples met in the first `steps` steps, sorted."""
        found: list[int] = []
        for task, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            own = range(size) if steps * count >= size else map(self._sampler(task).example, range(steps * count))
            found += sorted(self._first[task] + i for i in own)
        return found

    def _sampler(self, task: int) -> Sampler:
        if task not in self._of_task:
            self._of_task[task] = Sampler(self.sizes[task], self.seed + task, self.split)
        return self._of_task[task]
