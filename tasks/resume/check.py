"""Does this training, on this machine, with these settings, survive a kill? Tried on a few steps before a long run.

A stage is run by the code that always runs it (`tasks/run/execute.py`, launcher, worker), in temporary stores:

    undisturbed   all steps
    killed        SIGKILL to every process of the job after some steps, then resumed to the end
    other ranks   as the killed one, resumed on another number of ranks

and what they left is compared (`tasks/resume/proof.py`). Inputs are read from the user's store, which is not written.

The kill comes after a checkpoint half-way and some steps more, always at the same step (`tasks/resume/watched_run.py`).
Kills at random moments are what the tests of Forgeline itself are about (`make soak`).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.artifacts import ArtifactRef, Manifest
from infra.checkpoints import CheckpointStore
from infra.errors import ForgelineError, StageError, TransientError
from infra.execution import Execution
from infra.launch.local import LocalLauncher
from infra.launch.slots import Slots
from infra.open_store import open_store
from infra.store import Store
from infra.tracking import TrackingSettings
from infra.wandb_replay import WandbReplay
from tasks.pipeline.node import StageNode
from tasks.plan.plan import resolve_in
from tasks.resume.proof import TOLERANCE, TOLERANCE_16_BIT, Comparison, Trained, compare
from tasks.resume.watched_run import WatchedRun
from tasks.run.context import RunContext
from tasks.run.execute import execute_stage
from tasks.stage import StageParams
from tasks.training.engine.batch import split_batch
from tasks.training.engine.deepspeed_config import examples_per_loss
from tasks.training.settings import TrainingParams

MIN_STEPS = 4
Say = Callable[[str], None]


@dataclass(frozen=True)
class Resumption:
    """A killed training that went on: on how many ranks, from where, how fast, and how far from an undisturbed one."""

    ranks: int
    resumed_from: int
    steps_repeated: int
    seconds_to_resume: float
    """From the launch of the job to the end of its first step."""
    comparison: Comparison
    faults: list[str]


@dataclass
class StageProof:
    """What was found about one stage. It holds if there are no faults."""

    stage: str
    kind: str
    steps: int
    ranks: int
    precision: str
    micro_batch: int | str = "auto"
    device: str = ""
    killed_at: int = 0
    resumptions: list[Resumption] = field(default_factory=list)
    not_tried: str = ""
    """Why another number of ranks was not tried."""
    error: str = ""
    """What ended the check, if something did."""

    @property
    def faults(self) -> list[str]:
        found = [f"{self.stage}: on {_ranks(r.ranks)}: {fault}" for r in self.resumptions for fault in r.faults]
        return [*found, self.error] if self.error else found

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "faults": self.faults, "holds": not self.faults}


def trainings(params: StageParams) -> Iterator[TrainingParams]:
    """Every training described in a stage's params."""
    if isinstance(params, TrainingParams):
        yield params
    for name in type(params).model_fields:
        if isinstance(value := getattr(params, name), StageParams):
            yield from trainings(value)


def shortened(params: StageParams, steps: int) -> StageParams:
    """The same params with every training in them cut to (or stretched to) so many steps.

    Evaluated on the way only where `keep: best` or `patience` needs it, then four times: what was the best before the
    kill has to come back too. More `patience` than that never ends it early.
    """
    changes: dict[str, Any] = {
        name: shortened(value, steps)
        for name in type(params).model_fields
        if isinstance(value := getattr(params, name), StageParams)
    }
    if isinstance(params, TrainingParams):
        selects = params.keep == "best" or params.patience is not None
        changes |= {"max_steps": steps, "epochs": None, "eval_every": max(1, steps // 4) if selects else 0}
        changes |= {"patience": steps} if params.patience is not None else {}
    return params.model_copy(update=changes)


def on_other_ranks(node: StageNode) -> tuple[Execution, Execution] | str:
    """The stage's settings, and the same with another number of processes, or why there are none.

    Both have micro-batches of one size, at most the user's: a micro-batch is what dropout draws its noise for, so that
    another size would be another training, and nothing could be said about the checkpoint.
    """
    given, batches = node.execution, [training.global_batch_size for training in trainings(node.params)]
    wanted = [2] if given.processes == 1 else sorted({given.processes // 2, 1}, reverse=True)
    together = examples_per_loss(node.params)
    other = next((count for count in wanted if all(batch % (count * together) == 0 for batch in batches)), None)
    if other is None:
        return f"global_batch_size {batches[0]} does not divide over {_ranks(wanted[0])}"
    splits = [
        split_batch(batch, given.processes, given.per_device_train_batch_size, examples_per_loss=together)
        for batch in batches
    ]
    micro = math.gcd(*(split.micro for split in splits), *(batch // other for batch in batches))
    settings = given.model_copy(update={"per_device_train_batch_size": micro})
    others = settings.model_copy(update={"processes": other})
    for execution in (settings, others):
        if faults := node.stage.check(node.params, execution) if node.stage.check else []:
            return faults[0].message
    return settings, others


def check_resume(
    node: StageNode,
    made: dict[str, ArtifactRef],
    source: Store,
    launcher: LocalLauncher,
    folder: Path,
    steps: int,
    say: Say,
) -> StageProof:
    """Run, kill and resume `steps` steps of a stage whose inputs lie in `source`. A failure is in what it returns.

    folder: an empty one, for stores, logs and job files.
    """
    every = steps // 2
    checkpoint = node.execution.checkpoint.model_copy(update={"every": every})
    execution = node.execution.model_copy(update={"checkpoint": checkpoint})
    node = replace(node, params=shortened(node.params, steps), execution=execution)
    proof = StageProof(node.name, node.stage.kind, steps, execution.processes, execution.precision)
    layouts, other = on_other_ranks(node), None
    if isinstance(layouts, str):
        proof.not_tried = layouts
    else:
        node, other = replace(node, execution=layouts[0]), layouts[1]
    proof.micro_batch = node.execution.per_device_train_batch_size
    try:
        _check(_Trial(node, made, source, launcher, say), folder, every, other, proof)
    except ForgelineError as error:
        proof.error = str(error)
    return proof


@dataclass(frozen=True)
class _Trial:
    """A stage to be tried, and what it is tried with."""

    node: StageNode
    made: dict[str, ArtifactRef]
    source: Store
    launcher: LocalLauncher
    say: Say

    def run(self, folder: Path, execution: Execution | None = None) -> tuple[WatchedRun, Trained]:
        """One run of the stage in the store of `folder`, to its end."""
        run, manifest = self._start(folder, execution or self.node.execution, 0)
        assert manifest is not None, "only a run that is to be killed leaves no artifact"
        return run, Trained.read(run.checkpoints.store, manifest)

    def run_and_kill(self, folder: Path, kill_after: int) -> WatchedRun:
        """One run, killed some steps after its checkpoint of step `kill_after`."""
        run, _ = self._start(folder, self.node.execution, kill_after)
        if not run.killed:
            raise StageError("it ended before it could be killed", where=f"stage {self.node.name}")
        return run

    def _start(self, folder: Path, execution: Execution, kill_after: int) -> tuple[WatchedRun, Manifest | None]:
        store = open_store(str(folder / "store"))
        node = replace(self.node, execution=execution)
        key = resolve_in(self.source, node, self.made).key
        run = WatchedRun(self.launcher, CheckpointStore(store, node.stage.kind, key), kill_after)
        context = RunContext(
            run="doctor",
            pipeline="doctor",
            store=store,
            launcher=run,
            slots=Slots(len(os.sched_getaffinity(0))),
            folder=folder,
            producer={},
            notify=run.notify,
            tracking=WandbReplay(TrackingSettings(mode="disabled"), project="doctor", group="doctor", folder=folder),
            inputs_store=self.source,
            relaunch=False,
        )
        try:
            return run, execute_stage(node, self.made, context).manifest
        except TransientError:
            if not run.killed:
                raise
        return run, None


def _check(trial: _Trial, folder: Path, every: int, other: Execution | None, proof: StageProof) -> None:
    name, settings = trial.node.name, trial.node.execution
    trial.say(f"{name}: {proof.steps} steps, undisturbed")
    run, undisturbed = trial.run(folder / "undisturbed")
    gpus = run.first_step["gpus"]
    proof.device = "cuda" if gpus else "cpu"
    tolerance = TOLERANCE if settings.precision == "fp32" else TOLERANCE_16_BIT
    exact = settings.precision == "fp32" and not gpus

    trial.say(f"{name}: the same, to be killed")
    killed = trial.run_and_kill(folder / "killed", kill_after=every)
    proof.killed_at, checkpoint = killed.standing["step"], killed.checkpoints.steps()[-1]
    trial.say(f"{name}: killed after step {proof.killed_at}, its last checkpoint is that of step {checkpoint}")
    if other and gpus and other.processes > gpus:
        proof.not_tried, other = f"{_ranks(other.processes)} need as many GPUs, this machine has {gpus}", None
    if other:
        # Nobody writes into an object of a store, so a second link to each is a copy.
        shutil.copytree(folder / "killed/store", folder / "other-ranks/store", copy_function=os.link)

    trial.say(f"{name}: resuming on {_ranks(settings.processes)}")
    run, resumed = trial.run(folder / "killed")
    comparison = compare(undisturbed, resumed, tolerance=0.0 if exact else tolerance)
    proof.resumptions.append(_resumption(run, checkpoint, proof.killed_at, comparison))
    if other:
        trial.say(f"{name}: resuming on {_ranks(other.processes)}")
        run, resumed = trial.run(folder / "other-ranks", other)
        comparison = compare(undisturbed, resumed, tolerance=tolerance)
        proof.resumptions.append(_resumption(run, checkpoint, proof.killed_at, comparison))


def _resumption(run: WatchedRun, checkpoint: int, killed_at: int, comparison: Comparison) -> Resumption:
    came_from = run.first_step["step"] - 1
    faults = list(comparison.faults)
    if came_from != checkpoint:
        faults.insert(0, f"it went on after step {came_from}, but the checkpoint was that of step {checkpoint}")
    seconds = round(run.first_step["time"] - run.launched, 3)
    return Resumption(run.spec.ranks, came_from, killed_at - came_from, seconds, comparison, faults)


def _ranks(count: int) -> str:
    return f"{count} rank{'s' if count > 1 else ''}"
