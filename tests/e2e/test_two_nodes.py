"""One training over two nodes, each with a network of its own: the real worker on both, one store between them.

Every run is the `base` stage of `tiny.yaml` under the same key, so that its artifact can be compared with the one that
a single process made, and the one after a fault, bit for bit, with that of an undisturbed run on two nodes.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra import claims
from infra.artifacts import Manifest
from infra.checkpoints import CheckpointStore
from infra.launch.local import LocalLauncher
from infra.launch.network import free_port
from infra.open_store import open_store
from infra.store import Store
from tasks.pipeline.load import load_pipeline
from tasks.run.execute import execute_stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
STEPS = 400


@dataclass
class Prepared:
    """A store in which all that `base` needs is made, the job file of `base`, and what one process made of it."""

    store: Path
    job: dict[str, Any]
    alone: Manifest
    alone_store: Store


@pytest.fixture(scope="module")
def prepared(load: Any, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    file = load("e2e/chain.py").write_project(folder)
    store = open_store(str(folder / "store"))
    pipeline = load_pipeline(file, [f"stages.base.max_steps={STEPS}"], store.url)
    launcher = LocalLauncher(folder / "servers")
    context = load("e2e/quiet_run.py").quiet_context(pipeline, store, launcher, folder / "jobs")
    made: dict[str, Any] = {}
    try:
        for name in ("corpus", "tokenizer", "tokens"):
            made[name] = execute_stage(pipeline.stages[name], made, context).manifest.ref
        shutil.copytree(folder / "store", folder / "before")
        alone = execute_stage(pipeline.stages["base"], made, context).manifest
    finally:
        launcher.close()
    (job,) = (folder / "jobs/base").glob("*/job.json")
    return Prepared(folder / "before", json.loads(job.read_text()), alone, store)


@pytest.fixture(scope="module")
def cluster(load: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    module = load("e2e/two_nodes.py")
    try:
        made = module.TwoNodes(tmp_path_factory.mktemp("nodes"))
    except module.NotAllowed as reason:
        pytest.skip(f"network namespaces are not allowed here: {reason}")
    yield made
    made.close()


class Training:
    """`base` on both nodes over a store of its own, as often as it is started."""

    def __init__(self, cluster: Any, prepared: Prepared, folder: Path) -> None:
        self.cluster, self.prepared, self.folder = cluster, prepared, folder
        self.store = open_store(str(shutil.copytree(prepared.store, folder / "store")))
        self.kind, self.key = prepared.job["kind"], prepared.job["key"]
        self.checkpoints = CheckpointStore(self.store, self.kind, self.key)
        claim = claims.try_acquire(self.store, self.kind, self.key)
        assert claim is not None
        self.claim = claim
        self.part: list[Path] = []

    def start(self, zero_stage: int = 1, **execution: Any) -> None:
        attempt, port = uuid.uuid4().hex[:12], free_port()
        job = {**self.prepared.job, "store": self.store.url, "claim": self.claim.to_json(), "attempt": attempt}
        job["execution"] = {**job["execution"], "zero_stage": zero_stage, **execution}
        self.part = [self.folder / f"{attempt}-{node.rank}" for node in self.cluster.nodes]
        for node, folder in zip(self.cluster.nodes, self.part, strict=True):
            folder.mkdir()
            (folder / "job.json").write_text(json.dumps(job))
            node.ask(folder=str(folder), port=port)

    def until_committed(self) -> int:
        """Wait for a checkpoint; returns its step."""
        deadline = time.monotonic() + 120
        while not (steps := self.checkpoints.steps()):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.01)
        return steps[-1]

    def ends(self, seconds: float) -> list[int]:
        """Exit codes of both parts, in order of the nodes."""
        return [end["exit"] for end in self.cluster.ends(seconds)]

    def finished(self) -> Manifest:
        """What they made, once both ended well."""
        assert self.ends(240) == [0, 0], self.logs()
        return self.manifest

    @property
    def manifest(self) -> Manifest:
        """What they made."""
        manifest = self.store.manifest(self.kind, self.key)
        assert manifest is not None, self.logs()
        return manifest

    @property
    def losses(self) -> list[float]:
        return losses(self.store, self.manifest)

    def logs(self) -> str:
        return "\n".join(f"--- {part.name}\n{(part / 'log.txt').read_text()[-4000:]}" for part in self.part)


def losses(store: Store, manifest: Manifest) -> list[float]:
    lines = [json.loads(line) for line in (store.fetch_records(manifest) / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


@pytest.fixture
def training(cluster: Any, prepared: Prepared, tmp_path: Path) -> Iterator[Training]:
    made = Training(cluster, prepared, tmp_path)
    yield made
    made.claim.release()


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Any, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Training]:
    """A training on two nodes that nothing happened to, by ZeRO stage."""
    done: dict[int, Training] = {}

    def get(zero_stage: int) -> Training:
        if zero_stage not in done:
            training = Training(cluster, prepared, tmp_path_factory.mktemp(f"zero-{zero_stage}"))
            training.start(zero_stage)
            training.finished()
            training.claim.release()
            done[zero_stage] = training
        return done[zero_stage]

    return get


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_two_nodes_train_what_one_process_trains(
    undisturbed: Callable[[int], Training], prepared: Prepared, zero_stage: int
) -> None:
    run = undisturbed(zero_stage)
    manifest = run.manifest
    assert manifest.producer["ranks"] == 2
    alone, together = losses(prepared.alone_store, prepared.alone), run.losses
    assert alone[-1] < alone[0] - 0.5
    worst = max(abs(a - b) for a, b in zip(alone, together, strict=True))
    say(f"ZeRO {zero_stage}: losses of {STEPS} steps differ by at most {worst:.2e}")
    assert together == pytest.approx(alone, abs=2e-5)
    expected = load_file(prepared.alone_store.fetch(prepared.alone) / "model.safetensors")
    found = load_file(run.store.fetch(manifest) / "model.safetensors")
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("struck", [0, 1])
def test_a_killed_rank_ends_both_nodes_and_together_they_go_on(
    training: Training, undisturbed: Callable[[int], Training], struck: int
) -> None:
    """Node 0 holds the ranks' meeting point, so that its death is another case than that of node 1."""
    training.start()
    training.until_committed()
    training.cluster.nodes[struck].rank_process().kill()
    began = time.monotonic()
    codes = training.ends(20)
    say(f"node {struck} lost its rank: both ended after {time.monotonic() - began:.2f} s, exit codes {codes}")
    assert codes[struck] == -9 and codes[1 - struck] > 0
    committed = training.checkpoints.steps()
    assert committed and training.store.manifest(training.kind, training.key) is None
    training.start()
    assert training.finished().digest == undisturbed(1).manifest.digest
    assert training.losses == undisturbed(1).losses


def test_asked_to_stop_on_one_node_both_save_and_exit_75(
    training: Training, undisturbed: Callable[[int], Training]
) -> None:
    training.start()
    training.until_committed()
    training.cluster.nodes[1].ask(cancel=True)
    assert training.ends(60) == [75, 75], training.logs()
    training.start()
    assert training.finished().digest == undisturbed(1).manifest.digest


def test_a_dead_link_ends_both_nodes_and_together_they_go_on(
    training: Training, undisturbed: Callable[[int], Training]
) -> None:
    """No connection breaks when a link dies: only the watchdog over the steps can tell."""
    training.start(step_timeout=5.0)
    training.until_committed()
    training.cluster.link("down")
    began = time.monotonic()
    try:
        codes = training.ends(40)
    finally:
        training.cluster.link("up")
    say(f"the link died: both nodes ended after {time.monotonic() - began:.1f} s, exit codes {codes}")
    assert codes == [-9, -9]
    assert all("no progress within 5 s" in (part / "log.txt").read_text() for part in training.part)
    training.start()
    assert training.finished().digest == undisturbed(1).manifest.digest
