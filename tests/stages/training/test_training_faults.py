"""Trainings that meet trouble: losses that are not finite, too little memory, a store that fails, a step that hangs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from infra.errors import OutOfMemory, Preempted, StageError
from infra.launch.launcher import JobSpec
from infra.launch.local import LocalLauncher
from tasks.objectives.text.causal_lm import CausalLM
from tasks.training.engine.batch import BatchSplit
from tasks.training.loop.result import TrainResult
from tasks.training.loop.sampler import Sampler
from tasks.training.loop.schedule import learning_rate_factor
from tasks.training.loop.train import train

STEPS = 12
Loss = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "test_training_loop", Path(__file__).with_name("test_training_loop.py")
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return CausalLM().loss(outputs, batch)[0]


def poisoned(sampler: Sampler, steps: set[int], features: list[dict[str, Any]]) -> Loss:
    """A loss that is NaN on the batches of these steps of the data stream, recognised by their content."""
    bad = {_mark(CausalLM().collate([features[i] for i in sampler.global_batch(step)])) for step in steps}
    return lambda outputs, batch: plain(outputs, batch) * (float("nan") if _mark(batch) in bad else 1.0)


def _mark(batch: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    return tuple(batch["input_ids"].flatten().tolist())


def run(
    jobs: ModuleType,
    tiny: ModuleType,
    folder: Path,
    given: Any,
    loss: Loss | None = None,
    type: str = "gpt2",
    **job: Any,
) -> TrainResult:
    made = jobs.make_job(folder, given, name="base", **job)
    features = tiny.lm_features(400)
    return train(made, tiny.model(type), CausalLM(), features, features[:5], given, loss_fn=loss)


def journal(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"records/{name}.jsonl").read_text().splitlines()]


def same(one: TrainResult, other: TrainResult) -> bool:
    pairs = zip(one.model.named_parameters(), other.model.named_parameters(), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_update_of_a_poisoned_batch_is_skipped_and_the_rest_trains_as_without_it(
    jobs: ModuleType, tiny: ModuleType, loop: ModuleType, tmp_path: Path, zero_stage: int
) -> None:
    """Against a bare loop that leaves the step out: neither weights, moments nor Adam's step count may feel it."""
    given = loop.params()
    sampler = Sampler(400, 3, BatchSplit(8, 1, 8))
    features = tiny.lm_features(400)
    made = jobs.make_job(tmp_path, given, execution=loop.alone_at(zero_stage))
    loss = poisoned(sampler, {4, 7}, features)
    result = train(made, tiny.model(), CausalLM(), features, features[:5], given, loss_fn=loss)
    reference, kept = tiny.model(), [step for step in range(STEPS) if step not in (4, 7)]
    tiny.plain_training(
        reference,
        CausalLM(),
        features,
        [sampler.global_batch(step) for step in kept],
        lambda i: 1e-2 * learning_rate_factor(given.schedule, kept[i], STEPS),
        weight_decay=given.optimizer.weight_decay,
        max_grad_norm=0.5,
    )
    for name, value in reference.named_parameters():
        torch.testing.assert_close(dict(result.model.named_parameters())[name], value, atol=2e-4, rtol=0)
    assert [(entry["step"], entry["what"], entry["stream"]) for entry in journal(tmp_path, "incidents")] == [
        (5, "skipped", [32, 40]),
        (8, "skipped", [56, 64]),
    ]
    assert result.summary["skipped_updates"] == 2


def test_a_training_goes_back_the_same_way_however_often_it_is_interrupted(
    jobs: ModuleType, tiny: ModuleType, loop: ModuleType, tmp_path: Path
) -> None:
    """Steps 9 to 11 are bad: back to the anchor at 5, over the bad data, at half the rate. One more is bad later."""
    limits = {"patience": 2, "rollback_every": 5, "learning_rate_factor": 0.5, "max_skipped": 4}
    given = loop.params(divergence=limits)
    loss = poisoned(Sampler(400, 3, BatchSplit(8, 1, 8)), {8, 9, 10, 14}, tiny.lm_features(400))
    straight = run(jobs, tiny, tmp_path / "straight", given, loss)
    rates = {line["step"]: line["learning_rate"] for line in journal(tmp_path / "straight", "train")}
    plain_rate = 1e-2 * learning_rate_factor(given.schedule, 6, STEPS)
    assert list(rates) == list(range(1, STEPS + 1)) and rates[7] == pytest.approx(plain_rate / 2)
    what = [(entry["step"], entry["what"]) for entry in journal(tmp_path / "straight", "incidents")]
    assert what == [(9, "skipped"), (10, "skipped"), (11, "skipped"), (11, "went back"), (9, "skipped")]
    assert straight.summary["rollbacks"] == 1 and straight.seen[-1] > 0

    for stopped_at in (7, 10, 13):  # questions asked: before, amid and after the bad stretch
        shared = {"store": tmp_path / f"store{stopped_at}"}
        with pytest.raises(Preempted):
            run(jobs, tiny, tmp_path / f"a{stopped_at}", given, loss, stop_requested=loop.After(stopped_at), **shared)
        resumed = run(jobs, tiny, tmp_path / f"b{stopped_at}", given, loss, **shared)
        assert same(straight, resumed), stopped_at
        assert [line["loss"] for line in journal(tmp_path / f"b{stopped_at}", "train")] == [
            line["loss"] for line in journal(tmp_path / "straight", "train")
        ]


def test_going_back_is_bounded(jobs: ModuleType, tiny: ModuleType, loop: ModuleType, tmp_path: Path) -> None:
    given = loop.params(divergence={"patience": 1, "rollback_every": 4, "max_rollbacks": 1}, max_steps=30)
    calls = iter(range(10**6))

    def loss(outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return plain(outputs, batch) * (float("nan") if next(calls) > 5 else 1.0)

    with pytest.raises(StageError, match=r"(?s)became nan at step 6 of 30 \(2 in a row\).*1 times back"):
        run(jobs, tiny, tmp_path, given, loss)


def test_too_little_memory_halves_the_micro_batch_and_nothing_else(
    jobs: ModuleType, tiny: ModuleType, loop: ModuleType, tmp_path: Path
) -> None:
    sizes: list[int] = []

    def loss(outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        rows = batch["input_ids"].shape[0]
        sizes.append(rows)
        if rows > 2 and len(sizes) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return plain(outputs, batch)

    given = loop.params()
    fixed = {"per_device_train_batch_size": 2}
    small = run(jobs, tiny, tmp_path / "small", given, type="llama", execution=fixed)
    found = run(jobs, tiny, tmp_path / "found", given, loss, type="llama")
    assert sizes[:8] == [8, 8, 8, 8, 8, 8, 4, 2]
    for (name, a), (_, b) in zip(small.model.named_parameters(), found.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    assert [e["micro"] for e in journal(tmp_path / "found", "incidents")] == [4, 2]
    with pytest.raises(StageError, match="out of memory with 8 examples at once"):
        run(jobs, tiny, tmp_path / "fixed", given, loss, execution={"per_device_train_batch_size": 8})
    with pytest.raises(OutOfMemory) as caught:
        run(jobs, tiny, tmp_path / "zero", given, loss, execution=loop.alone_at(2))
    assert caught.value.micro == 4
    again = run(jobs, tiny, tmp_path / "zero", given, type="llama", execution=loop.alone_at(2), micro=4)
    assert again.steps == STEPS


def test_training_goes_on_while_the_store_fails_then_waits_then_says_why(
    jobs: ModuleType, tiny: ModuleType, loop: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, store = loop.params(max_steps=400), tmp_path / "store"
    made = jobs.make_job(
        tmp_path,
        given,
        name="base",
        execution={"checkpoint": {"every": 2, "patience": 6.0}},
        progress=lambda step, total, **values: _break(store) if step == 3 else loop.slowly(),
    )
    with pytest.raises(
        StageError, match=r"(?s)stages\.base: checkpoints cannot be stored; training stopped after step"
    ):
        train(made, tiny.model(), CausalLM(), tiny.lm_features(400), [], given)
    assert "was not stored, training goes on" in caplog.text and "training waits for the store" in caplog.text
    steps = [line["step"] for line in journal(tmp_path, "train")]
    assert steps[-1] > 6, "it went on for its patience"
    _mend(store)
    finished = run(jobs, tiny, tmp_path / "again", loop.params(), store=store, execution={"checkpoint": {"every": 2}})
    assert finished.steps == STEPS


def _break(store: Path) -> None:
    """A folder that takes nothing any more: a file is in the way."""
    shutil.rmtree(store / ".tmp", ignore_errors=True)
    store.mkdir(exist_ok=True)
    (store / ".tmp").write_text("not a folder")


def _mend(store: Path) -> None:
    (store / ".tmp").unlink()
    shutil.rmtree(store / "checkpoints", ignore_errors=True)  # of a longer training


HANGS = f"""
import sys, time
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]

def main(folder):
    import jobs, tiny
    from test_training_loop import params, run

    def stuck_in_a_collective(step, total, **values):
        (folder / f"step-{{step}}").touch()
        time.sleep(60 if step == 3 else 0)

    run(jobs, tiny, folder, execution={{"step_timeout": 2.0}}, progress=stuck_in_a_collective)
"""


def test_a_step_that_hangs_is_ended_and_its_stack_is_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    (tmp_path / "servers").mkdir()
    launcher = LocalLauncher(tmp_path / "servers")
    try:
        spec = JobSpec("hangs", tmp_path, entry="hangs:main", warm=True, env={"PYTHONPATH": str(tmp_path)})
        job = launcher.submit(spec)
        assert job.wait(60) == -signal.SIGKILL, job.logs()
        assert (tmp_path / "step-3").exists() and not (tmp_path / "step-4").exists()
        assert "no progress within 2 s" in job.logs() and "in stuck_in_a_collective" in job.logs()
    finally:
        launcher.close()
