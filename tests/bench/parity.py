"""`make parity`: the training loop against a plain torch loop, for each ZeRO stage and objective; writes docs/parity.md.

    python -m tests.bench.parity

Each case trains the same tiny Llama in fp32 for 50 steps on rows of unequal lengths, where a mean of means would show.
The cases of one number of ranks run in one job: starting ranks costs more than the cases do. A control that averages
per micro-batch, as a wrong loop would, must be told apart. The objectives are compared by their tests
(`tests/stages/parity.py`), which are run here for their figures. Exit code 1 where a case fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.launch.launcher import JobSpec
from infra.launch.local import LocalLauncher
from tests.bench import machine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ROOT = Path(__file__).parents[2]
STEPS, BATCH, ROWS, SEED = 50, 8, 200, 3
RATE, MAX_GRAD_NORM = 3e-3, 0.5
TOLERANCE = 1e-4
PATIENCE = 900.0
HEAD = f"""# Parity with a plain torch loop

Made by `make parity`; nothing here is typed by hand. A Llama of two layers and hidden size 64 is trained in fp32 on the
CPU for {STEPS} steps of {BATCH} rows of unequal lengths, with AdamW, a cosine schedule with warm-up and clipping, by
`tasks.training.loop.train.train` on real ranks over gloo and by a plain torch loop that takes each global batch whole. A case
passes if no step's loss differs by more than {TOLERANCE:g}. Differences are absolute; that of the weights is the largest
of any single weight after the last step. The control is the plain loop with the mean of four micro-batches' means: what
a loop that averages wrongly would do, so the tolerance has to tell it apart.
"""
OBJECTIVES = """
## Objectives

Each objective's loss curve, on one rank and with accumulation, beside that of a bare loop over whole batches that takes
the loss from Hugging Face's model itself (for class weights from torch, for sentence embeddings by hand, text by text).
Examples of a step differ in how many tokens, words, windows or weights they count.

| objective | options | model | batch | micro-batch | first loss | least loss | loss difference |
|-|-|-|-|-|-|-|-|"""


@dataclass(frozen=True)
class Case:
    zero_stage: int
    ranks: int
    accumulation: int

    @property
    def name(self) -> str:
        return f"zero{self.zero_stage}-ranks{self.ranks}-accumulation{self.accumulation}"

    @property
    def micro(self) -> int:
        return BATCH // self.ranks // self.accumulation


@dataclass(frozen=True)
class Difference:
    """Of a training from the plain loop: largest of the losses, the step where it is, largest of the weights."""

    loss: float
    step: int
    weight: float


CASES = [Case(zero, ranks, accumulation) for ranks in (1, 2) for zero in range(4) for accumulation in (1, 4)]


def model() -> PreTrainedModel:
    from tests.stages import tiny

    made: PreTrainedModel = tiny.model(hidden_size=64, intermediate_size=128)
    return made


def features() -> list[dict[str, Any]]:
    from tests.stages import tiny

    return tiny.lm_features(ROWS, longest=32)


def train_cases(folder: Path) -> int:
    """The job: this rank's part of every case of its number of ranks."""
    import torch
    from safetensors.torch import save_file

    from tasks.objectives.text.causal_lm import CausalLM
    from tasks.training.loop.train import train
    from tasks.training.settings import TrainingParams
    from tests.stages import jobs

    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    budget = {"max_steps": STEPS, "global_batch_size": BATCH, "learning_rate": RATE}
    params = TrainingParams.model_validate({**budget, "max_grad_norm": MAX_GRAD_NORM, "seed": SEED})
    for case in (case for case in CASES if case.ranks == ranks):
        execution = {"zero_stage": case.zero_stage, "per_device_train_batch_size": case.micro}
        place = folder / case.name / str(rank)
        job = jobs.make_job(place, params, execution=execution, rank=rank, world_size=ranks)
        result = train(job, model(), CausalLM(), features(), [], params)
        if rank == 0:
            weights = {name: value.detach().contiguous() for name, value in result.model.named_parameters()}
            save_file(weights, folder / f"{case.name}.safetensors")
    return 0


def run_jobs(folder: Path) -> None:
    """Train all cases, one job for each number of ranks."""
    (folder / "servers").mkdir()
    launcher = LocalLauncher(folder / "servers")
    try:
        for ranks in sorted({case.ranks for case in CASES}):
            place = folder / f"job-{ranks}"
            place.mkdir()
            env = {"PYTHONPATH": str(ROOT)}
            entry = "tests.bench.parity:train_cases"
            job = launcher.submit(JobSpec(f"parity-{ranks}", place, entry=entry, ranks=ranks, warm=True, env=env))
            if code := job.wait(PATIENCE):
                raise RuntimeError(f"the job of {ranks} ranks ended with {code}\n{job.logs()}")
    finally:
        launcher.close()


class MeanOfMeans:
    """The control: an objective whose loss is the mean over four micro-batches of their own means."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.collate, self.read = objective.collate, objective.read

    def loss(self, outputs: dict[str, torch.Tensor], data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        total: Any = 0
        for start in range(0, BATCH, BATCH // 4):
            part = slice(start, start + BATCH // 4)
            loss, units = self.objective.loss(
                {"logits": outputs["logits"][part]}, {name: value[part] for name, value in data.items()}
            )
            total = total + loss / units / 4
        return total, 1


def plain(objective: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final weights of the plain loop."""
    import torch

    from tasks.training.engine.batch import BatchSplit
    from tasks.training.loop.sampler import Sampler
    from tasks.training.loop.schedule import learning_rate_factor
    from tasks.training.settings import OptimizerParams, ScheduleParams
    from tests.stages import tiny

    torch.set_num_threads(1)
    sampler, reference = Sampler(ROWS, SEED, BatchSplit(BATCH, 1, BATCH)), model()
    losses = tiny.plain_training(
        reference,
        objective,
        features(),
        [sampler.global_batch(step) for step in range(STEPS)],
        lambda step: RATE * learning_rate_factor(ScheduleParams(), step, STEPS),
        weight_decay=OptimizerParams().weight_decay,
        max_grad_norm=MAX_GRAD_NORM,
    )
    return losses, {name: value.detach() for name, value in reference.named_parameters()}


def compare(
    expected: tuple[list[float], dict[str, torch.Tensor]], losses: list[float], weights: dict[str, torch.Tensor]
) -> Difference:
    """Raises ValueError where they are not two trainings of the same length and model."""
    away = [abs(a - b) for a, b in zip(expected[0], losses, strict=True)]
    if missing := expected[1].keys() - weights.keys():
        raise ValueError(f"no weights named {sorted(missing)}")
    furthest = max(float((weights[name] - value).abs().max()) for name, value in expected[1].items())
    return Difference(max(away), away.index(max(away)) + 1, furthest)


def found(case: Case, folder: Path, expected: tuple[list[float], dict[str, torch.Tensor]]) -> Difference:
    """How far a trained case is from the plain loop."""
    from safetensors.torch import load_file

    place = folder / f"job-{case.ranks}"
    lines = (place / case.name / "0/records/train.jsonl").read_text(encoding="utf-8").splitlines()
    return compare(
        expected, [json.loads(line)["loss"] for line in lines], load_file(place / f"{case.name}.safetensors")
    )


def of_objectives(folder: Path) -> list[dict[str, Any]]:
    """What the objectives' parity tests found. Raises CalledProcessError where one fails."""
    report = folder / "objectives.xml"
    command = [sys.executable, "-m", "pytest", "-q", "tests/stages", "-k", "parity", f"--junitxml={report}"]
    subprocess.run(command, cwd=ROOT, check=True)
    found = [json.loads(one.attrib["value"]) for one in ET.parse(report).iter("property")]
    return sorted(found, key=lambda facts: (facts["objective"], str(facts["options"]), facts["model"]))


def objective_lines(found: list[dict[str, Any]]) -> list[str]:
    """The table's lines."""
    lines = OBJECTIVES.splitlines()
    for facts in found:
        options = ", ".join(f"{name}: {value}" for name, value in facts["options"].items())
        cells = [facts["objective"], options, *(facts[name] for name in ("model", "batch", "micro"))]
        losses = " | ".join(f"{facts[name]:.4f}" for name in ("first", "least"))
        lines.append(f"| {' | '.join(map(str, cells))} | {losses} | {facts['away']:.1e} |")
    return lines


def page(
    rows: list[tuple[Case, Difference]], control: Difference, losses: list[float], objectives: list[dict[str, Any]]
) -> str:
    """docs/parity.md."""
    lines = [HEAD, f"Losses of the plain loop: {losses[0]:.4f} at step 1, {losses[-1]:.4f} at step {STEPS}.", ""]
    lines += ["| ZeRO | ranks | accumulation | micro-batch | loss difference | at step | weight difference | result |"]
    lines += ["|-|-|-|-|-|-|-|-|"]
    for case, away in rows:
        verdict = "pass" if away.loss <= TOLERANCE else "**fail**"
        cells = [case.zero_stage, case.ranks, case.accumulation, case.micro]
        lines.append(
            f"| {' | '.join(map(str, cells))} | {away.loss:.1e} | {away.step} | {away.weight:.1e} | {verdict} |"
        )
    verdict = "told apart" if control.loss > TOLERANCE else "**not told apart**"
    lines.append(f"| control | 1 | 4 | 2 | {control.loss:.1e} | {control.step} | {control.weight:.1e} | {verdict} |")
    lines += objective_lines(objectives)
    place = machine.environment(("torch", "deepspeed", "transformers"))
    versions = ", ".join(f"{name} {place[name]}" for name in ("python", "torch", "deepspeed", "transformers"))
    lines += ["", f"Run with `make parity` on {place['date']}, commit {place['commit']}, {place['cpu']}, {versions}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    from tasks.objectives.text.causal_lm import CausalLM

    with tempfile.TemporaryDirectory(prefix="forgeline-parity-") as folder:
        run_jobs(Path(folder))
        expected = plain(CausalLM())
        rows = [(case, found(case, Path(folder), expected)) for case in CASES]
        objectives = of_objectives(Path(folder))
    control = compare(expected, *plain(MeanOfMeans(CausalLM())))
    text = page(rows, control, expected[0], objectives)
    (ROOT / "docs/parity.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0 if all(away.loss <= TOLERANCE for _, away in rows) and control.loss > TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
