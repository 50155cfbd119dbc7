"""Several tasks on two ranks over gloo, at every ZeRO stage: the training of one rank.

One example at once, so that in every micro-batch the ranks hold different tasks: heads that a rank has no example for
have to be reduced all the same, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra.launch.launcher import JobSpec
from infra.launch.local import LocalLauncher

HERE = Path(__file__).parent
ZERO_STAGES = (0, 1, 2, 3)
GIVEN = {"weighting": "uncertainty", "eval_every": 3}
ENTRY = f"""
import os, sys
from pathlib import Path

sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]

def train_on_two_ranks(folder):
    import jobs
    from test_multitask import params, trained

    rank = int(os.environ["RANK"])
    for zero_stage in {ZERO_STAGES}:
        execution = {{"zero_stage": zero_stage, "per_device_train_batch_size": 1}}
        place = folder / f"zero-{{zero_stage}}-{{rank}}"
        trained(jobs, folder / "inputs", place, params(**{GIVEN!r}), execution=execution, rank=rank, world_size=2)
    return 0
"""


@pytest.fixture(scope="module")
def cases(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("stages/training/test_multitask.py")


@pytest.fixture(scope="module")
def two(cases: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished two-rank job, and `inputs`."""
    place: Path = tmp_path_factory.mktemp("two")
    cases.write_inputs(tiny, place / "inputs")
    (place / "two_ranks.py").write_text(ENTRY)
    launcher = LocalLauncher(tmp_path_factory.mktemp("servers"))
    try:
        env = {"PYTHONPATH": str(place)}
        job = launcher.submit(JobSpec("two", place, entry="two_ranks:train_on_two_ranks", ranks=2, warm=True, env=env))
        assert job.wait(240) == 0, job.logs()
    finally:
        launcher.close()
    return place


@pytest.fixture(scope="module")
def one(cases: ModuleType, jobs: ModuleType, two: Path) -> Any:
    """The job of one rank."""
    return cases.trained(jobs, two / "inputs", two / "one", cases.params(**GIVEN))


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_two_ranks_train_what_one_rank_trains(two: Path, one: Any, cases: ModuleType, zero_stage: int) -> None:
    found = load_file(two / f"zero-{zero_stage}-0/output/model.safetensors")
    expected = load_file(one.output / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for file in ("train", "validation"):
        theirs = cases.lines(two / f"zero-{zero_stage}-0/records", file)
        ours = cases.lines(one.records, file)
        for line, own in zip(theirs, ours, strict=True):
            for value in ("loss", "topic/loss", "tags/loss"):
                assert line[value] == pytest.approx(own[value], abs=2e-5)
