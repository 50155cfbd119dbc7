"""Pruning on two ranks over gloo, at every ZeRO stage: what one rank prunes, and checkpoints that move between the two.

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

from infra.launch.launcher import JobSpec
from infra.launch.local import LocalLauncher

HERE = Path(__file__).parent
CASES = [("magnitude", True, 0), ("magnitude", True, 3), *(("movement", False, zero_stage) for zero_stage in range(4))]
STOPPED = (1, 3)
AT_ONCE = {"method": "magnitude", "heal": {"max_steps": 2, "global_batch_size": 8}}
ENTRY = f"""
import json, os, sys
from pathlib import Path

sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]

def prune_on_two_ranks(folder):
    import jobs, pytest, tiny
    from safetensors.torch import save_file
    from test_gradual_pruning import Preempted, stage, trained, write_inputs

    rank = int(os.environ["RANK"])

    def place(name, zero_stage):
        execution = {{"zero_stage": zero_stage, "per_device_train_batch_size": 4}}
        return {{"folder": folder / name / str(rank), "execution": execution, "rank": rank, "world_size": 2}}

    for method, whole_model, zero_stage in {CASES!r}:
        name = f"{{method}}-{{zero_stage}}"
        found = trained(jobs, tiny, method=method, whole_model=whole_model, **place(name, zero_stage))
        if rank == 0:
            save_file({{k: v.contiguous() for k, v in found.items()}}, folder / f"{{name}}.safetensors")
    for zero_stage in {STOPPED}:
        name, questions = f"stopped-{{zero_stage}}", iter(range(100))
        asked = {{"store": folder / name / "store", "stop_requested": lambda: next(questions) >= 5}}
        with pytest.raises(Preempted):
            trained(jobs, tiny, method="movement", **asked, **place(name, zero_stage))
    metrics, _ = stage(jobs, inputs=write_inputs(jobs, tiny, folder / "inputs"), given={AT_ONCE!r}, **place("stage", 2))
    (folder / f"metrics-{{rank}}.json").write_text(json.dumps(metrics))
    return 0
"""


@pytest.fixture(scope="module")
def cases(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("stages/compression/test_gradual_pruning.py")


@pytest.fixture(scope="module")
def two(jobs: ModuleType, tiny: ModuleType, cases: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished two-rank job."""
    folder = tmp_path_factory.mktemp("two")
    cases.write_inputs(jobs, tiny, folder / "inputs")
    (folder / "two_ranks.py").write_text(ENTRY)
    launcher = LocalLauncher(tmp_path_factory.mktemp("servers"))
    try:
        env = {"PYTHONPATH": str(folder)}
        spec = JobSpec("two", folder, entry="two_ranks:prune_on_two_ranks", ranks=2, warm=True, env=env)
        job = launcher.submit(spec)
        assert job.wait(240) == 0, job.logs()
    finally:
        launcher.close()
    return folder


def near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Sums over ranks round otherwise, which may change places at the edge of a removal, and how many not at all."""
    assert expected.keys() <= found.keys()
    assert sum(int((found[name] == 0).sum()) for name in expected) == sum(
        int((v == 0).sum()) for v in expected.values()
    )
    for name, value in expected.items():
        assert float(((found[name] - value).abs() > 2e-4).float().mean()) <= 1e-2, name


@pytest.mark.parametrize(("method", "whole_model", "zero_stage"), CASES)
def test_two_ranks_prune_what_one_rank_prunes(
    jobs: ModuleType,
    tiny: ModuleType,
    cases: ModuleType,
    two: Path,
    tmp_path: Path,
    method: str,
    whole_model: bool,
    zero_stage: int,
) -> None:
    expected = cases.trained(jobs, tiny, tmp_path, method, whole_model=whole_model)
    near(load_file(two / f"{method}-{zero_stage}.safetensors"), expected)


@pytest.mark.parametrize("zero_stage", STOPPED)
def test_one_rank_goes_on_where_two_were_stopped(
    jobs: ModuleType, tiny: ModuleType, cases: ModuleType, two: Path, tmp_path: Path, zero_stage: int
) -> None:
    """Scores that were spread over two ranks are whole again, and masks with them."""
    expected = cases.trained(jobs, tiny, tmp_path / "straight", "movement")
    near(cases.trained(jobs, tiny, tmp_path / "b", "movement", store=two / f"stopped-{zero_stage}/store"), expected)


def test_a_stage_counts_zeros_where_the_model_is_whole(two: Path) -> None:
    """At ZeRO 2 the second rank has no trained model to look at."""
    leading, other = (json.loads((two / f"metrics-{rank}.json").read_text()) for rank in range(2))
    assert leading["sparsity"] == pytest.approx(0.6, abs=1e-3) and "sparsity" not in other
