"""Two ranks over gloo at every ZeRO stage: the same training as on one rank, and checkpoints that move between the two.

One job runs all cases: starting ranks costs more than the cases do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from infra.checkpoints import CheckpointStore
from infra.errors import Preempted
from infra.launch.launcher import JobSpec
from infra.launch.local import LocalLauncher
from infra.open_store import open_store
from tasks.training.checkpoints.consolidate import consolidate

HERE = Path(__file__).parent
ZERO_STAGES = (0, 1, 2, 3)
RANKS = 2
NORMED = (0, 2)
ENTRY = f"""
import os, sys
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]

def train_on_two_ranks(folder):
    import pytest, torch
    from safetensors.torch import save_file
    import jobs, pictures, tiny
    from test_batch_norm import trained as trained_on_pictures
    from test_training_loop import After, run, weights
    from infra.errors import Preempted

    rank = int(os.environ["RANK"])
    place = {{"rank": rank, "world_size": {RANKS}}}

    def trained(name, zero_stage, **given):
        execution = {{"zero_stage": zero_stage, "per_device_train_batch_size": 2}}
        return run(jobs, tiny, folder / name / str(rank), execution=execution, **place, **given)

    def keep(name, result):
        if rank == 0:
            save_file({{k: v.detach().contiguous() for k, v in weights(result).items()}}, folder / f"{{name}}.safetensors")

    for zero_stage in {ZERO_STAGES}:
        keep(f"straight-{{zero_stage}}", trained(f"straight-{{zero_stage}}", zero_stage))
        with pytest.raises(Preempted):
            trained(f"stopped-{{zero_stage}}", zero_stage, stop_requested=After(6), store=folder / f"stopped-{{zero_stage}}/store")
        if zero_stage in {NORMED}:
            normed = folder / f"normed-{{zero_stage}}" / str(rank)
            execution = {{"zero_stage": zero_stage, "per_device_train_batch_size": 8}}
            result = trained_on_pictures(jobs, pictures, normed, norm_group=8, execution=execution, job=place)
            if rank == 0:
                save_file(result.model.state_dict(), folder / f"normed-{{zero_stage}}.safetensors")
        keep(f"arrived-{{zero_stage}}", trained(f"arrived-{{zero_stage}}", zero_stage, store=folder / "from-one"))
    return 0
"""


@pytest.fixture(scope="module")
def loop(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("stages/training/test_training_loop.py")


@pytest.fixture(scope="module")
def straight(
    jobs: ModuleType, tiny: ModuleType, loop: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """Weights of the training on one rank."""
    return dict(loop.weights(loop.run(jobs, tiny, tmp_path_factory.mktemp("straight"))))


@pytest.fixture(scope="module")
def two(jobs: ModuleType, tiny: ModuleType, loop: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished two-rank job. `from-one` is a store with a checkpoint that one rank wrote."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(Preempted):
        loop.run(jobs, tiny, folder / "one", stop_requested=loop.After(6), store=folder / "from-one")
    (folder / "two_ranks.py").write_text(ENTRY)
    launcher = LocalLauncher(tmp_path_factory.mktemp("servers"))
    try:
        env = {"PYTHONPATH": str(folder)}
        spec = JobSpec("two", folder, entry="two_ranks:train_on_two_ranks", ranks=RANKS, warm=True, env=env)
        job = launcher.submit(spec)
        code = job.wait(240)
        assert code == 0, job.logs()
    finally:
        launcher.close()
    return folder


def near(folder: Path, name: str, expected: dict[str, torch.Tensor]) -> None:
    found = load_file(folder / f"{name}.safetensors")
    assert set(expected) <= set(found)
    for parameter, value in expected.items():
        torch.testing.assert_close(found[parameter], value, atol=2e-4, rtol=0, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_two_ranks_train_what_one_rank_trains(two: Path, straight: dict[str, torch.Tensor], zero_stage: int) -> None:
    """Rows differ in length, so ranks hold unequal token counts: a mean of the ranks' means would differ."""
    near(two, f"straight-{zero_stage}", straight)
    lines = (two / f"straight-{zero_stage}/0/records/train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))


@pytest.mark.parametrize("zero_stage", NORMED)
def test_batch_norm_on_two_ranks_is_that_of_one(
    jobs: ModuleType,
    pictures: ModuleType,
    load: Callable[[str], ModuleType],
    two: Path,
    tmp_path: Path,
    zero_stage: int,
) -> None:
    """Weights and running statistics."""
    one = load("stages/training/test_batch_norm.py").trained(jobs, pictures, tmp_path, norm_group=8)
    near(two, f"normed-{zero_stage}", one.model.state_dict())


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_one_rank_goes_on_where_two_were_stopped(
    jobs: ModuleType,
    tiny: ModuleType,
    loop: ModuleType,
    two: Path,
    straight: dict[str, torch.Tensor],
    tmp_path: Path,
    zero_stage: int,
) -> None:
    resumed = loop.run(jobs, tiny, tmp_path, store=two / f"stopped-{zero_stage}/store")
    for name, value in straight.items():
        torch.testing.assert_close(loop.weights(resumed)[name], value, atol=2e-4, rtol=0)


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_weights_come_out_of_what_any_number_of_ranks_saved(
    tiny: ModuleType, two: Path, straight: dict[str, torch.Tensor], tmp_path: Path, zero_stage: int
) -> None:
    """Loaded by transformers, at the step where two ranks were stopped; tied weights and shapes included."""
    saved = CheckpointStore(open_store(str(two / f"stopped-{zero_stage}/store")), "kind", "0" * 64).latest()
    assert saved is not None and saved.state["ranks"] == RANKS
    consolidate(saved, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    whole = load_file(tmp_path / "model/model.safetensors")
    assert {name: value.shape for name, value in whole.items()} == {n: v.shape for n, v in straight.items()}
    assert not any(torch.equal(value, straight[name]) for name, value in whole.items()), "six steps earlier"
    assert model.config.hidden_size == 32


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_two_ranks_go_on_where_one_was_stopped(two: Path, straight: dict[str, torch.Tensor], zero_stage: int) -> None:
    near(two, f"arrived-{zero_stage}", straight)
