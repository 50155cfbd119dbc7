"""Two ranks with units that are no count (class weights) and with examples that have one loss together (groups).

One job runs all cases: starting ranks costs more than the cases do.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from infra.launch.launcher import JobSpec
from infra.launch.local import LocalLauncher

HERE = Path(__file__).parent
ENTRY = f"""
import os, sys
from pathlib import Path

sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]

def train_on_two_ranks(folder):
    import jobs, tiny
    from test_two_ranks_of_objectives import CASES, run

    for case in CASES:
        run(jobs, tiny, folder / case / os.environ["RANK"], case, rank=int(os.environ["RANK"]), world_size=2)
    return 0
"""
CASES = {"weights-0": 0, "weights-2": 2, "groups-0": 0, "groups-3": 3}


def run(jobs: ModuleType, tiny: ModuleType, folder: Path, case: str, **place: int) -> None:
    """Six steps of 16 examples, four at once. BERT's pooler has no part in an embedding, and no gradient."""
    import transformers
    from test_objective_sentence_embedding import pairs
    from test_objective_text_classification import examples

    from tasks.objective import objective
    from tasks.training.loop.train import train
    from tasks.training.settings import TrainingParams

    given = TrainingParams.model_validate({"max_steps": 6, "global_batch_size": 16, "learning_rate": 5e-3, "seed": 3})
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    execution = {"per_device_train_batch_size": 4, "zero_stage": CASES[case] if place else 0}
    job = jobs.make_job(folder, given, execution=execution, **place)
    if case.startswith("weights"):
        chosen = objective({"name": "text_classification", "class_weights": "balanced"})
        features = examples("single_label", weights=True)
        model = tiny.model("bert", transformers.AutoModelForTokenClassification, num_labels=3, **quiet)
    else:
        chosen = objective({"name": "sentence_embedding", "positive": "title", "group": 4})
        features, model = pairs(), tiny.model("bert", transformers.AutoModel, **quiet)
    train(job, model, chosen, features, features[:10], given)


def losses(folder: Path) -> list[float]:
    """Of every step, and then of the validation split."""
    lines = [json.loads(line) for name in ("train", "validation") for line in (folder / f"records/{name}.jsonl").open()]
    return [float(line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    (folder / "two_ranks.py").write_text(ENTRY)
    launcher = LocalLauncher(tmp_path_factory.mktemp("servers"))
    try:
        env = {"PYTHONPATH": str(folder)}
        job = launcher.submit(JobSpec("two", folder, entry="two_ranks:train_on_two_ranks", ranks=2, warm=True, env=env))
        code = job.wait(240)
        assert code == 0, job.logs()
    finally:
        launcher.close()
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_one_rank_trains(
    jobs: ModuleType, tiny: ModuleType, two: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean of the ranks' means, or a rank's negatives from the other rank, would be another loss."""
    monkeypatch.syspath_prepend(str(HERE.parent))
    monkeypatch.syspath_prepend(str(HERE))
    run(jobs, tiny, tmp_path, case)
    expected = losses(tmp_path)
    assert losses(two / case / "0") == pytest.approx(expected, abs=1e-4)
    assert len(expected) == 7 and expected[5] < expected[0]
