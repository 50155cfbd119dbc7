"""Distillation: the loss by hand, a student that is its teacher where nothing was cut, and the stage on both objectives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from infra.errors import StageError
from tasks.compression.distillation.student import chosen_layers, student_from
from tasks.losses.distillation import distillation
from tasks.models.card import ModelCard, read_card
from tasks.objective import objective
from tasks.stage import stages


@pytest.mark.parametrize(
    ("teacher", "student", "layers"),
    [(4, 2, [1, 3]), (12, 3, [3, 7, 11]), (3, 2, [0, 2]), (2, 2, [0, 1]), (6, 1, [5]), (5, 4, [0, 1, 2, 4])],
)
def test_layers_are_spread_evenly_and_end_with_the_last(teacher: int, student: int, layers: list[int]) -> None:
    found = chosen_layers(teacher, student)
    assert found[-1] == teacher - 1 and len(set(found)) == student
    assert found == layers


def test_a_student_deeper_than_its_teacher_is_refused() -> None:
    with pytest.raises(StageError, match="student of 3 layers cannot be cut from a teacher of 2"):
        chosen_layers(2, 3)


def test_the_soft_loss_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2) at T = 1; at T = 2 the logits halve and the loss is multiplied by four."""
    teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(distillation(student, teacher, 1.0), expected)
    root = torch.tensor([3.0, 1.0]).sqrt()
    p = root / root.sum()
    torch.testing.assert_close(distillation(student, teacher, 2.0), 4 * (p * (p / 0.5).log()).sum())


@pytest.mark.parametrize("type", ["llama", "gpt2", "bert"])
def test_a_student_of_all_layers_computes_what_its_teacher_does(tiny: ModuleType, type: str) -> None:
    auto: Any = AutoModelForCausalLM if type != "bert" else AutoModelForTokenClassification
    teacher = tiny.model(type, auto, layers=3)
    ids = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = student_from(teacher, 3).train(False)(input_ids=ids).logits
        expected = teacher(input_ids=ids).logits
        cut = student_from(teacher, 1).train(False)
    torch.testing.assert_close(same, expected, atol=0, rtol=0)
    assert cut.config.num_hidden_layers == 1
    # The last layer, the embeddings and the head are the teacher's own.
    kept, given = dict(cut.named_parameters()), dict(teacher.named_parameters())
    for name, value in kept.items():
        source = name.replace(".0.", ".2.") if name not in given or ".0." in name else name
        assert torch.equal(value, given[source]), name


@pytest.fixture(scope="module")
def chain(jobs: ModuleType, tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pretrain -> finetune on the tiny inputs; `base/output` and `teacher/output` are models."""
    folder = tmp_path_factory.mktemp("chain")
    model = {"type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    run(
        jobs,
        folder / "base",
        "pretrain",
        {
            "data": "tokens",
            "objective": "causal_lm",
            "model": {**model, "intermediate_size": 64, "initializer_range": 0.08, "max_position_embeddings": 64},
            "learning_rate": 1e-2,
            "max_steps": 40,
            "global_batch_size": 8,
        },
        data=jobs.artifact(tiny_inputs / "tokens", "tokens"),
    )
    run(
        jobs,
        folder / "teacher",
        "finetune",
        {
            "model": "base",
            "data": "functions",
            "objective": "text_classification",
            "epochs": 3,
            "learning_rate": 5e-3,
            "max_length": 32,
            "global_batch_size": 8,
        },
        model=jobs.artifact(folder / "base/output", "model"),
        data=jobs.artifact(tiny_inputs / "dataset", "dataset"),
    )
    return folder


def run(jobs: ModuleType, folder: Path, kind: str, given: dict[str, Any], **inputs: Any) -> dict[str, float]:
    stage = stages()[kind]
    metrics: dict[str, float] = stage.run(
        jobs.make_job(folder, stage.params.model_validate(given), inputs, name=folder.name)
    )
    return metrics


def payload(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "output").iterdir())}


def test_pretraining_learns_and_leaves_a_whole_model(chain: Path) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json", "forgeline.json"} <= set(payload(chain / "base"))
    card = read_card(chain / "base/output")
    assert card == ModelCard(objective("causal_lm").model_dump(), 32), "as long as the rows it was trained on"
    lines = [json.loads(line) for line in (chain / "base/records/train.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] - 1
    baselines = json.loads((chain / "base/records/baselines.json").read_text())
    assert baselines["metric"] == "cross_entropy" and set(baselines["values"]) == {"unigram", "bigram"}
    assert len(json.loads((chain / "base/records/samples.json").read_text())) == 4


def test_the_classifier_carries_its_labels(chain: Path) -> None:
    config = json.loads((chain / "teacher/output/config.json").read_text())
    assert config["id2label"] == {"0": "json", "1": "logging", "2": "wsgiref"}
    card = read_card(chain / "teacher/output")
    assert card == ModelCard(objective("text_classification").model_dump(), 32, ["json", "logging", "wsgiref"])


def test_no_payload_holds_a_path_of_this_machine(chain: Path, tmp_path: Path) -> None:
    for stage in ("base", "teacher"):
        for name, data in payload(chain / stage).items():
            assert str(chain).encode() not in data and b"/tmp/" not in data, f"{stage}/{name}"


DISTILL = {
    "teacher": "teacher",
    "data": "functions",
    "layers": 1,
    "epochs": 2,
    "learning_rate": 5e-3,
    "global_batch_size": 8,
}


def test_distilling_a_classifier(jobs: ModuleType, chain: Path, tiny_inputs: Path, tmp_path: Path) -> None:
    inputs = {
        "teacher": jobs.artifact(chain / "teacher/output", "model"),
        "data": jobs.artifact(tiny_inputs / "dataset", "dataset"),
    }
    metrics = run(jobs, tmp_path / "a", "distill", DISTILL, **inputs)
    config = json.loads((tmp_path / "a/output/config.json").read_text())
    assert config["num_hidden_layers"] == 1 and config["id2label"]["2"] == "wsgiref"
    assert metrics["validation_f1_macro"] > 0.3
    run(jobs, tmp_path / "b", "distill", DISTILL, **inputs)
    assert payload(tmp_path / "a") == payload(tmp_path / "b"), "the same params and inputs must give the same bytes"


def test_distilling_a_language_model(jobs: ModuleType, chain: Path, tiny_inputs: Path, tmp_path: Path) -> None:
    """The stage takes its objective from the teacher's files."""
    given = {**DISTILL, "teacher": "base", "epochs": None, "max_steps": 6}
    metrics = run(
        jobs,
        tmp_path,
        "distill",
        given,
        teacher=jobs.artifact(chain / "base/output", "model"),
        data=jobs.artifact(tiny_inputs / "tokens", "tokens"),
    )
    assert 0 < metrics["validation_cross_entropy"] < 8
    assert json.loads((tmp_path / "output/forgeline.json").read_text())["objective"]["name"] == "causal_lm"


def test_alpha_one_ignores_the_labels(jobs: ModuleType, chain: Path, tiny_inputs: Path, tmp_path: Path) -> None:
    """A student equal to its teacher has no soft loss at all: alpha 1 with all layers starts at zero."""
    shutil.copytree(chain / "teacher/output", tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher/config.json").read_text())
    (tmp_path / "teacher/config.json").write_text(json.dumps({**config, "classifier_dropout": 0.0}))
    given = {**DISTILL, "layers": 2, "alpha": 1.0, "epochs": None, "max_steps": 1}
    run(
        jobs,
        tmp_path,
        "distill",
        given,
        teacher=jobs.artifact(tmp_path / "teacher", "model"),
        data=jobs.artifact(tiny_inputs / "dataset", "dataset"),
    )
    assert json.loads((tmp_path / "records/train.jsonl").read_text())["loss"] == pytest.approx(0, abs=1e-5)


def test_prune_and_heal_a_classifier_and_a_language_model(
    jobs: ModuleType, chain: Path, tiny_inputs: Path, tmp_path: Path
) -> None:
    for source, data in (("teacher", "dataset"), ("base", "tokens")):
        heal = {"max_steps": 3, "learning_rate": 1e-3, "global_batch_size": 8} if source == "teacher" else None
        metrics = run(
            jobs,
            tmp_path / source,
            "prune",
            {"model": source, "data": data, "keep": 0.5, "samples": 32, "heal": heal},
            model=jobs.artifact(chain / source / "output", "model"),
            data=jobs.artifact(tiny_inputs / data, data),
        )
        assert json.loads((tmp_path / source / "output/config.json").read_text())["intermediate_size"] == 32
        assert metrics["parameters"] < metrics["parameters_before"]
        assert metrics["steps"] == (3 if heal else 0)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"type": "llama", "hidden_sise": 32}, "did you mean hidden_size?"),
        ({"type": "lama"}, "did you mean llama?"),
        ({"type": "llama", "hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_a_wrong_architecture_is_named_with_its_field(
    jobs: ModuleType, tiny_inputs: Path, tmp_path: Path, model: dict[str, Any], says: str
) -> None:
    from infra.errors import ConfigError

    given = {"data": "tokens", "objective": "causal_lm", "model": model, "max_steps": 1}
    with pytest.raises(ConfigError, match=r"stages\.base\.model") as caught:
        run(jobs, tmp_path / "base", "pretrain", given, data=jobs.artifact(tiny_inputs / "tokens", "tokens"))
    assert says in str(caught.value)


def test_an_objective_that_cannot_read_the_data_is_refused(
    jobs: ModuleType, chain: Path, tiny_inputs: Path, tmp_path: Path
) -> None:
    given = {"model": "base", "data": "tokens", "objective": "text_classification", "max_steps": 1}
    inputs = {
        "model": jobs.artifact(chain / "base/output", "model"),
        "data": jobs.artifact(tiny_inputs / "tokens", "tokens", stage="tokens"),
    }
    with pytest.raises(StageError, match="cannot learn from 'tokens'"):
        run(jobs, tmp_path, "finetune", given, **inputs)


def test_no_stage_names_an_objective() -> None:
    from tasks import stages as package
    from tasks.objective import objective_names

    for path in Path(package.__path__[0]).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [name for name in objective_names() if name in text], path.name
