"""A training begun on one machine and finished on another that shares nothing with it but S3.

Each machine has its own working directory, home, cache, Prefect server, and copy of the pipeline file and its sources.
Where the system allows it, the first also has process ids of its own, so that the second cannot see that it died: it
waits for the lease to run out, as it would for a machine whose power was cut.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import claims
from infra.checkpoints import CheckpointStore
from infra.open_store import open_store
from tasks.pipeline.load import load_pipeline
from tasks.plan.plan import make_plan

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(900)]
STEPS = 2000
OVERRIDES = [f"stages.base.max_steps={STEPS}"]
NOT_REPRODUCED = {"evaluate", "gate", "promote"}  # their payloads hold measured times, or follow from them
OWN_PROCESS_IDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


class Machine:
    """A folder of its own for everything a machine has."""

    def __init__(self, chain: Any, folder: Path, project: Path | None = None) -> None:
        self.chain, self.home = chain, folder / "home"
        (folder / "work").mkdir(parents=True)
        if project is None:
            self.file = chain.write_project(folder / "work")
        else:
            shutil.copytree(project.parent, folder / "work", dirs_exist_ok=True, copy_function=shutil.copyfile)
            self.file = folder / "work" / project.name
        self.cache = folder / "cache"
        self.runs: list[Any] = []

    def start(self, store: str, under: tuple[str, ...] = (), **environment: str) -> Any:
        environment["FORGELINE_CACHE"] = str(self.cache)
        self.runs.append(self.chain.Forgeline(self.file, store, self.home, *OVERRIDES, under=under, **environment))
        return self.runs[-1]


@pytest.fixture
def machine(load: Any, tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    chain, made = load("e2e/chain.py"), list[Machine]()

    def make(name: str, project: Path | None = None) -> Machine:
        made.append(Machine(chain, tmp_path / name, project))
        return made[-1]

    yield make
    for each in made:
        for run in each.runs:
            run.kill()


@pytest.fixture
def s3(seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """How to reach S3, for the test's own process too."""
    environment: dict[str, str] = seaweed.env
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def may_have_own_process_ids() -> bool:
    try:
        return subprocess.run([*OWN_PROCESS_IDS, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_a_training_killed_on_one_machine_is_finished_on_another(
    machine: Callable[..., Machine], seaweed: Any, s3: dict[str, str], tmp_path: Path
) -> None:
    first = machine("first")
    second = machine("second", first.file)
    undisturbed = machine("undisturbed", first.file)
    isolated = may_have_own_process_ids()
    expected = undisturbed.start(str(tmp_path / "store")).end(300).must(0).json

    store = open_store(seaweed.url("machines"))
    run = first.start(store.url, OWN_PROCESS_IDS if isolated else (), **s3)
    base = next(stage["artifact"]["key"] for stage in expected["stages"] if stage["name"] == "base")
    checkpoints = CheckpointStore(store, "pretrain", base)
    deadline = time.monotonic() + 300
    while not checkpoints.steps():
        assert time.monotonic() < deadline and run.process.poll() is None, run.stderr.read_text()
        time.sleep(0.02)
    killed = run.kill()
    assert store.manifest("pretrain", base) is None, "it was killed in the middle of the training"
    committed = checkpoints.steps()[-1]
    if isolated:
        held = claims.try_acquire(store, "pretrain", base) is None
        assert held, "whoever has other process ids cannot tell that the holder is dead"
    shutil.rmtree(first.home.parent)

    plan = {line.node.name: line for line in make_plan(load_pipeline(second.file, OVERRIDES, store.url), store)}
    assert (plan["base"].action, plan["base"].key, plan["base"].step) == ("resume", base, committed)
    result = second.start(store.url, **s3).end(300).must(0)
    assert result.actions["base"] == "resume"
    assert [result.actions[name] for name in ("corpus", "tokenizer", "tokens")] == ["reuse"] * 3
    manifest = store.manifest("pretrain", base)
    assert manifest is not None
    steps = (store.fetch_records(manifest) / "train.jsonl").read_text().splitlines()
    assert len(steps) == STEPS
    wanted = {s["name"]: s["artifact"] for s in expected["stages"] if s["kind"] not in NOT_REPRODUCED}
    made = {stage["name"]: stage["artifact"] for stage in result.json["stages"]}
    assert {name: made[name] for name in wanted} == wanted, "another machine, the same bytes"
    say(
        f"killed {killed} processes with step {committed} of {STEPS} committed"
        f"{', process ids of its own' if isolated else ''}; finished elsewhere in {result.seconds:.1f} s"
    )
