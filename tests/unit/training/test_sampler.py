"""The data order: a bijection per epoch, reachable at any position, the same whatever the split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import StageError
from tasks.training.engine.batch import BatchSplit, split_batch
from tasks.training.loop.sampler import Permutation, Sampler, steps_for_epochs


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 700), seed=st.integers(0, 2**64), epoch=st.integers(0, 1000))
def test_each_epoch_shows_every_example_once(size: int, seed: int, epoch: int) -> None:
    order = Permutation(size, seed, epoch)
    assert sorted(order(i) for i in range(size)) == list(range(size))


def test_the_order_is_frozen() -> None:
    """A changed order would silently fork every training; raise the stages' versions if this must change."""
    assert [Permutation(1000, 7, 2)(i) for i in range(6)] == FROZEN


FROZEN = [30, 366, 531, 551, 62, 640]


def test_orders_of_other_seeds_and_epochs_are_unrelated() -> None:
    """Agreement of two independent permutations is about one place; a weak key schedule gives many."""
    size = 2000
    orders = [[Permutation(size, s, e)(i) for i in range(size)] for s, e in [(0, 0), (1, 0), (0, 1), (1, 1)]]
    for a in range(4):
        for b in range(a):
            assert sum(x == y for x, y in zip(orders[a], orders[b], strict=True)) < 12
        # A shuffle moves neighbours apart: the mean distance of successive examples is a third of the size.
        steps = [abs(x - y) for x, y in zip(orders[a], orders[a][1:], strict=False)]
        assert 0.28 < sum(steps) / len(steps) / size < 0.38


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 300),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    ranks=st.integers(1, 4),
    step=st.integers(0, 10**6),
)
def test_any_split_trains_on_the_same_global_batch(
    size: int, micro: int, accumulation: int, ranks: int, step: int
) -> None:
    split = BatchSplit(micro * accumulation * ranks, ranks, micro)
    sampler = Sampler(size, 3, split)
    parts = [list(sampler.micro_batches(step, rank)) for rank in range(ranks)]
    assert all(len(part) == accumulation and all(len(batch) == micro for _, batch in part) for part in parts)
    flat = [example for part in parts for _, batch in part for example in batch]
    whole = Sampler(size, 3, BatchSplit(split.global_batch, 1, split.global_batch))
    assert flat == whole.global_batch(step)
    # Positions name the place in the stream, from which dropout is seeded.
    assert [p for part in parts for p, _ in part] == [
        step * split.global_batch + micro * i for i in range(len(flat) // micro)
    ]


def test_batches_run_on_across_epochs_and_nothing_is_dropped() -> None:
    sampler = Sampler(10, 0, BatchSplit(4, 1, 4))
    steps = steps_for_epochs(10, 2, 4)
    stream = [example for step in range(steps) for example in sampler.global_batch(step)]
    assert steps == 5
    assert sorted(stream[:10]) == sorted(stream[10:20]) == list(range(10))
    assert sampler.seen(1) == sorted(stream[:4]) and sampler.seen(3) == list(range(10))


def test_seeking_a_late_step_costs_what_an_early_one_does() -> None:
    sampler = Sampler(10**9, 0, BatchSplit(64, 1, 64))
    assert len(set(sampler.global_batch(10**12))) > 60


def test_steps_cover_the_epochs() -> None:
    assert steps_for_epochs(100, 1, 32) == 4
    assert steps_for_epochs(96, 1, 32) == 3
    assert steps_for_epochs(100, 0.5, 32) == 2
    assert steps_for_epochs(3, 1, 32) == 1


@pytest.mark.parametrize(("ranks", "micro", "hint"), [(3, "auto", "1, 2, 4, 8, 16"), (2, 5, "1, 2, 4, 8")])
def test_a_batch_that_does_not_divide_names_what_would(ranks: int, micro: int, hint: str) -> None:
    with pytest.raises(StageError, match=r"does not divide|do not divide") as caught:
        split_batch(16, ranks, micro, where="stages.base.global_batch_size")  # type: ignore[arg-type]
    assert str(caught.value).startswith("stages.base.global_batch_size: ")
    assert f": {hint};" in str(caught.value.hint)


def test_auto_gives_each_rank_its_share_in_one_piece() -> None:
    split = split_batch(16, 2, "auto")
    assert (split.micro, split.accumulation, split.per_rank) == (8, 1, 8)
