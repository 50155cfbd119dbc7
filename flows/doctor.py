"""`forgeline doctor resume`: does training survive a kill here? Which stages, where they are tried, what is shown.

The trying is in `tasks/resume/check.py`, the comparing in `tasks/resume/proof.py`. Everything happens in a temporary
folder under the home folder, which is removed unless something failed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.home import HOME, home
from flows.run import TORCH_PRELOAD
from infra.artifacts import ArtifactRef
from infra.config_check import did_you_mean
from infra.errors import UsageError
from infra.folders import writable
from infra.launch.local import LocalLauncher
from infra.local_garbage import own
from infra.open_store import open_store
from infra.store import Store
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.node import StageNode
from tasks.plan.chosen_inputs import bound
from tasks.plan.plan import make_plan, resolve_refs
from tasks.resume.check import MIN_STEPS, StageProof, check_resume, trainings

COLUMNS = (
    "stage", "ranks", "killed at", "resumed from", "repeated", "bitwise equal", "loss difference", "weight difference",
    "seconds to resume",
)  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """What was found about the stages that could be checked, and why others could not be."""

    proofs: list[StageProof]
    not_checked: dict[str, str]
    kept: Path | None
    """Where the stores and logs are, if something failed."""

    @property
    def holds(self) -> bool:
        return not any(proof.faults for proof in self.proofs)

    def to_json(self) -> dict[str, Any]:
        return {
            "holds": self.holds,
            "stages": [proof.to_json() for proof in self.proofs],
            "not_checked": self.not_checked,
            "kept": str(self.kept) if self.kept else None,
        }

    def __str__(self) -> str:
        rows = [row for proof in self.proofs for row in _rows(proof)]
        table = [COLUMNS, *rows] if rows else []
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))] if rows else []
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        for proof in self.proofs:
            lines += [f"{proof.stage}: {_judged(proof)}"] if proof.resumptions else []
            lines += [f"{proof.stage}: another number of ranks was not tried: {proof.not_tried}"] * bool(
                proof.not_tried
            )
        lines += [f"{stage}: not checked: {reason}" for stage, reason in self.not_checked.items()]
        lines += [fault for proof in self.proofs for fault in proof.faults]
        return "\n".join([*lines, f"proof: {self._verdict()}"])

    def _verdict(self) -> str:
        if self.holds:
            return f"resume holds for {', '.join(proof.stage for proof in self.proofs)}"
        broken = [proof.stage for proof in self.proofs if any(again.faults for again in proof.resumptions)]
        failed = [proof.stage for proof in self.proofs if proof.error and proof.stage not in broken]
        words = [f"resume does NOT hold for {', '.join(broken)}"] * bool(broken)
        words += [f"resume could not be proven for {', '.join(failed)}"] * bool(failed)
        return "; ".join([*words, f"stores and logs: {self.kept}"])


def diagnose_resume(pipeline: Pipeline, stage: str | None, steps: int, say: Callable[[str], None]) -> Diagnosis:
    """Check every stage that trains, or the one named. Raises UsageError if there is none that can be checked."""
    if steps < MIN_STEPS:
        raise UsageError(f"{steps} steps are too few to be killed in between; use {MIN_STEPS} or more", where="--steps")
    store = open_store(pipeline.store)
    nodes, made, not_checked = _checkable(bound(pipeline, store), store, stage)
    folder = Path(tempfile.mkdtemp(prefix="doctor-", dir=writable(home(), HOME).resolve()))
    own(folder)
    launcher = LocalLauncher(folder, preload=TORCH_PRELOAD)
    keep = False
    try:
        launcher.prestart(warm=True)
        proofs = [check_resume(node, made, store, launcher, folder / node.name, steps, say) for node in nodes]
        keep = any(proof.faults for proof in proofs)
        return Diagnosis(proofs, not_checked, folder if keep else None)
    finally:
        launcher.close()
        if not keep:
            shutil.rmtree(folder)


def _checkable(
    pipeline: Pipeline, store: Store, stage: str | None
) -> tuple[list[StageNode], dict[str, ArtifactRef], dict[str, str]]:
    """Stages that train and whose inputs lie in the store, those inputs, and why other training stages cannot be."""
    training = {
        name for name, node in pipeline.stages.items() if node.stage.distributed and any(trainings(node.params))
    }
    if stage is not None and stage not in training:
        known = f"stages that train: {', '.join(sorted(training)) or 'none'}"
        what = (
            "does not train" if stage in pipeline.stages else f"no such stage; {did_you_mean(stage, pipeline.stages)}"
        )
        raise UsageError(what, where=f"--stage {stage}", hint=f"Here are the {known}.")
    plan = make_plan(pipeline, store)
    made = resolve_refs(pipeline, store)
    made.update({line.node.name: line.artifact for line in plan if line.artifact})
    wanted = [line.node for line in plan if line.node.name in ({stage} if stage else training)]
    not_checked = {
        node.name: f"{', '.join(missing)} not made yet: `forgeline run {pipeline.path}` makes what it reads"
        for node in wanted
        if (missing := [name for name in node.needs if name not in made])
    }
    nodes = [node for node in wanted if node.name not in not_checked]
    if not nodes:
        reasons = "\n  ".join(f"{name}: {reason}" for name, reason in not_checked.items())
        raise UsageError(
            "no stage can be checked",
            where=str(pipeline.path),
            hint=reasons + "\n  Run that first, or choose another stage with --stage."
            if reasons
            else "None of its stages trains.",
        )
    return nodes, made, not_checked


def _rows(proof: StageProof) -> list[tuple[str, ...]]:
    return [
        (
            proof.stage,
            str(proof.ranks) if again.ranks == proof.ranks else f"{proof.ranks} -> {again.ranks}",
            str(proof.killed_at),
            str(again.resumed_from),
            str(again.steps_repeated),
            "yes" if again.comparison.bitwise_equal else "no",
            _share(again.comparison.loss_difference),
            _share(again.comparison.weight_difference),
            f"{again.seconds_to_resume:.2f}",
        )
        for again in proof.resumptions
    ]


def _share(difference: float | None) -> str:
    return "-" if difference is None else f"{difference:.2g}"


def _judged(proof: StageProof) -> str:
    """What had to hold, in words."""
    limits = []
    for again in proof.resumptions:
        limit = again.comparison.tolerance
        must = f"within {limit:g} of loss and weights" if limit else "the same bits"
        limits.append(f"{must} on {again.ranks} rank{'s' if again.ranks > 1 else ''}")
    micro = "" if proof.micro_batch == "auto" else f" in micro-batches of {proof.micro_batch}"
    return f"{proof.steps} steps{micro}, {proof.precision} on {proof.device}; had to be {', '.join(limits)}"
