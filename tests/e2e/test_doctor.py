"""`forgeline doctor resume` as a user has it, after a run of the whole chain; and with a checkpoint that is damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.doctor import Diagnosis
from infra.artifacts import ArtifactRef
from infra.launch.local import LocalLauncher
from infra.open_store import open_store
from infra.store import Store
from tasks.pipeline.load import load_pipeline
from tasks.pipeline.node import StageNode
from tasks.plan.plan import make_plan
from tasks.resume.check import check_resume

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
TRAINING = ["base", "teacher", "student", "lean"]


@dataclass
class Project:
    """A pipeline that ran to its end on a folder store."""

    file: Path
    store: Path
    home: Path
    chain: Any

    def doctor(self, *arguments: str, store: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FORGELINE_")}
        return subprocess.run(
            [sys.executable, "-P", "-m", "flows.cli", "doctor", "resume", str(self.file), *arguments, "--store", store or str(self.store)],
            env={**kept, "FORGELINE_HOME": str(self.home), "PYTHONPATH": str(self.chain.ROOT), **environment},
            cwd=self.file.parent, capture_output=True, text=True, timeout=300,
        )  # fmt: skip


@pytest.fixture(scope="module")
def project(load: Any, tmp_path_factory: pytest.TempPathFactory) -> Project:
    chain, folder = load("e2e/chain.py"), tmp_path_factory.mktemp("doctor")
    (folder / "project").mkdir()
    file = chain.write_project(folder / "project")
    chain.Forgeline(file, str(folder / "store"), folder / "run").end().must(0)
    return Project(file, folder / "store", folder / "home", chain)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path_factory.mktemp("servers"))
    yield launcher
    launcher.close()


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def objects(store: Store) -> list[str]:
    return [path for top in ("artifacts", "files", "checkpoints", "claims", "refs", "runs") for path in store.walk(top)]


def test_every_training_of_a_finished_chain_is_proven(project: Project) -> None:
    before = contents(project.store)
    result = project.doctor("--steps", "8")
    assert result.returncode == 0, result.stderr + result.stdout
    *rows, verdict = result.stdout.splitlines()
    assert verdict == f"proof: resume holds for {', '.join(TRAINING)}"
    table = [row.split() for row in rows if row.split()[0] in TRAINING]
    for name in TRAINING:
        assert [name, "1", "6", "4", "2", "yes", "0", "0"] in [row[:8] for row in table]
        assert [name, "1", "->", "2", "6", "4", "2"] in [row[:7] for row in table]
        assert f"{name}: killed after step 6, its last checkpoint is that of step 4" in result.stderr
    assert contents(project.store) == before, "the user's store is only read"
    assert list(project.home.iterdir()) == [] and not project.chain.living(project.home)


def test_one_stage_with_its_own_settings_on_a_remote_store(project: Project, seaweed: Any, tmp_path: Path) -> None:
    environment = {**seaweed.env, "FORGELINE_CACHE": str(tmp_path / "cache")}
    local = open_store(str(project.store))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        remote = open_store(seaweed.url("doctor"))
        for path in (*local.walk("artifacts"), *local.walk("files")):
            remote.put_file(project.store / path, path)
        before = objects(remote)
        settings = ["--set", "execution.base.processes=2", "--set", "execution.base.zero_stage=1"]
        for selection in ("eval_every=7", "keep=best", "patience=1"):
            settings += ["--set", f"stages.base.{selection}"]
        result = project.doctor("--stage", "base", "--json", *settings, store=remote.url, **environment)
        assert result.returncode == 0, result.stderr + result.stdout
        assert objects(remote) == before
    said = json.loads(result.stdout)
    assert said["holds"] and said["not_checked"] == {} and said["kept"] is None
    (proof,) = said["stages"]
    assert {k: proof[k] for k in ("stage", "kind", "steps", "ranks", "device", "precision", "killed_at", "faults")} == {
        "stage": "base",
        "kind": "pretrain",
        "steps": 20,
        "ranks": 2,
        "device": "cpu",
        "precision": "fp32",
        "killed_at": 15,
        "faults": [],
    }
    same, other = proof["resumptions"]
    assert (same["ranks"], same["resumed_from"], same["steps_repeated"]) == (2, 10, 5)
    assert same["comparison"]["bitwise_equal"] and same["comparison"]["tolerance"] == 0
    assert (other["ranks"], other["resumed_from"], other["comparison"]["tolerance"]) == (1, 10, 1e-3)
    assert other["comparison"]["loss_difference"] < 1e-5
    assert 0 < same["seconds_to_resume"] < 60


def planned(project: Project, *overrides: str) -> tuple[StageNode, dict[str, ArtifactRef], Store]:
    """The stage `base`, what was made before it, and where that lies."""
    store = open_store(str(project.store))
    plan = make_plan(load_pipeline(project.file, list(overrides)), store)
    made = {line.node.name: line.artifact for line in plan if line.artifact}
    return next(line.node for line in plan if line.node.name == "base"), made, store


def test_a_checkpoint_that_is_lost_is_found_out(project: Project, launcher: LocalLauncher, tmp_path: Path) -> None:
    """A resume from nothing ends in the right bytes, and is no resume."""
    damaged = []

    def say(text: str) -> None:
        if "resuming on 1 rank" in text:
            for path in (tmp_path / "base/killed/store/checkpoints").rglob("*.*"):
                if path.is_file() and path.name != "manifest.json":
                    path.chmod(0o644)
                    path.write_bytes(path.read_bytes()[:-1] + b"?")
                    damaged.append(path)

    proof = check_resume(*planned(project), launcher, tmp_path / "base", 8, say)
    assert damaged
    assert proof.faults[0] == "base: on 1 rank: it went on after step 0, but the checkpoint was that of step 4"
    assert proof.resumptions[0].comparison.bitwise_equal and proof.resumptions[0].steps_repeated == 6
    found = Diagnosis([proof], {}, tmp_path)
    assert not found.holds
    assert str(found).splitlines()[-1] == f"proof: resume does NOT hold for base; stores and logs: {tmp_path}"


def test_a_training_that_fails_is_no_proof(project: Project, launcher: LocalLauncher, tmp_path: Path) -> None:
    node = planned(project, "stages.base.learning_rate=1e9")
    proof = check_resume(*node, launcher, tmp_path / "base", 8, lambda text: None)
    assert len(proof.faults) == 1 and "the gradient norm became nan at step" in proof.faults[0]
    assert "proof: resume could not be proven for base" in str(Diagnosis([proof], {}, tmp_path))


def test_what_cannot_be_checked_says_what_to_do(project: Project, tmp_path: Path) -> None:
    empty = str(tmp_path / "empty")
    for arguments, said in (
        ((), "base: tokens not made yet: `forgeline run"),
        (("--stage", "corpus"), "the stages that train: base, lean, student, teacher"),
        (("--stage", "bas"), "did you mean base?"),
        (("--steps", "3"), "use 4 or more"),
    ):
        result = project.doctor(*arguments, store=empty)
        assert (result.returncode, result.stdout) == (2, "") and said in result.stderr
    assert not Path(empty).exists()


def test_what_is_not_made_yet_is_named_beside_the_proof(project: Project, tmp_path: Path) -> None:
    """Another learning rate of `base`: its inputs lie in the store, those of its dependants do not."""
    override = ["--set", "stages.base.learning_rate=5e-3", "--steps", "4", "--json"]
    result = project.doctor(*override)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert [proof["stage"] for proof in said["stages"]] == ["base"]
    assert sorted(said["not_checked"]) == ["lean", "student", "teacher"]
    assert said["not_checked"]["teacher"].startswith("base not made yet")
