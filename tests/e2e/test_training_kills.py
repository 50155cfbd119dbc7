"""One long training, killed with SIGKILL at random moments until it is through: the bytes an undisturbed one leaves.

FORGELINE_KILLS says how often (default 2; `make soak` 20), FORGELINE_KILL_SEED repeats a sequence.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import signal
import sys
from pathlib import Path

import psutil
import pytest

from infra.checkpoints import CheckpointStore
from infra.launch.launcher import JobSpec
from infra.launch.local import LocalJob, LocalLauncher
from infra.open_store import open_store

pytestmark = pytest.mark.e2e
EVERY = 20
KILLS = int(os.environ.get("FORGELINE_KILLS", "2"))
STEPS = 100 * (KILLS + 2)
STAGES = Path(__file__).parents[1] / "stages"
ENTRY = f"""
import sys, time
sys.path[:0] = [{str(STAGES)!r}, {str(STAGES / "training")!r}]

def main(folder):
    import jobs, tiny
    from safetensors.torch import save_file
    from test_training_loop import params, run, weights

    def pace(step, total, **values):
        with (folder / "steps.txt").open("a") as lines:
            lines.write(f"{{step}}\\n")
        time.sleep(0.02)

    result = run(
        jobs, tiny, folder, type="gpt2", given=params(max_steps={STEPS}), progress=pace, store=folder.parent / "store",
        execution={{"checkpoint": {{"every": {EVERY}, "permanent_every": {STEPS}}}}},
    )
    save_file({{k: v.detach().contiguous() for k, v in weights(result).items()}}, folder / "weights.safetensors")
"""


@pytest.fixture
def launcher(tmp_path: Path) -> LocalLauncher:
    (tmp_path / "servers").mkdir()
    (tmp_path / "one_training.py").write_text(ENTRY)
    made = LocalLauncher(tmp_path / "servers")
    yield made
    made.close()


def start(launcher: LocalLauncher, folder: Path) -> LocalJob:
    folder.mkdir(parents=True)
    env = {"PYTHONPATH": str(folder.parents[1])}
    return launcher.submit(JobSpec(folder.name, folder, entry="one_training:main", threads=1, warm=True, env=env))


def kill_all(job: LocalJob) -> None:
    """The supervisor and all below it at once, as when a machine goes."""
    assert job.pid is not None
    family = psutil.Process(job.pid).children(recursive=True)
    for process in (psutil.Process(job.pid), *family):
        process.send_signal(signal.SIGKILL)


def digests(place: Path) -> dict[str, str]:
    """Of the final weights and of the state after the last step: weights, moments and Adam's step, whoever saved it."""
    (weights,) = place.glob("*/weights.safetensors")
    saved = CheckpointStore(open_store(str(place / "store")), "kind", "0" * 64).load(STEPS)
    shard = saved.path / "rank-00000-of-00001.safetensors"
    counted = json.dumps({name: saved.state[name] for name in ("step", "updates", "work")})
    files = {"weights": weights.read_bytes(), "state": shard.read_bytes(), "counters": counted.encode()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_a_training_killed_again_and_again_ends_in_the_same_bytes(launcher: LocalLauncher, tmp_path: Path) -> None:
    straight = start(launcher, tmp_path / "straight/run")
    assert straight.wait(120) == 0, straight.logs()
    seed = int(os.environ.get("FORGELINE_KILL_SEED") or secrets.randbelow(1 << 32))
    drawn, done, repeated = random.Random(seed), 0, 0
    for number in range(KILLS):
        folder = tmp_path / f"killed/run{number}"
        job = start(launcher, folder)
        target = drawn.uniform(0.0, 2.0)  # after the first step, so that every kill meets a training run under way
        while not (folder / "steps.txt").exists() and job.wait(0.01) is None:
            continue
        assert job.wait(target) is None, "it must be under way"
        kill_all(job)
        assert job.wait(10) is not None
        steps = [int(line) for line in (folder / "steps.txt").read_text().splitlines()]
        repeated += max(0, done - steps[0] + 1)
        assert done - steps[0] + 1 <= 2 * EVERY + 60, "the interval, and what passed while one was being stored"
        done = max(done, steps[-1])
        sys.stderr.write(f"kill {number}: steps {steps[0]} to {steps[-1]}\n")
    last = start(launcher, tmp_path / "killed/last")
    assert last.wait(120) == 0, last.logs()
    assert digests(tmp_path / "killed") == digests(tmp_path / "straight")
    sys.stderr.write(f"FORGELINE_KILL_SEED={seed}: {KILLS} kills, {repeated} steps made twice, same digests\n")
