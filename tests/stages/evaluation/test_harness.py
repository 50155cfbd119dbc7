"""harness: the lm-evaluation-harness on local task files says what it says when it is called by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from infra.errors import SourcesChanged, StageError
from tasks.models.card import ModelCard, write_card
from tasks.stages import gate, harness

CHOICE = """\
task: members
dataset_path: json
dataset_kwargs: {data_files: {test: data/members.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: f1, aggregation: f1, higher_is_better: true}
metadata: {version: 1}
"""
UNTIL = """\
task: say
dataset_path: json
dataset_kwargs: {data_files: {test: data/say.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks and their data, which they name relative to the folder."""
    found = tmp_path_factory.mktemp("harness") / "tasks"
    (found / "data").mkdir(parents=True)
    (found / "members.yaml").write_text(CHOICE.replace("  - {metric: f1, aggregation: f1, higher_is_better: true}\n", ""))  # fmt: skip
    (found / "say.yaml").write_text(UNTIL)
    members = [{"question": f"def f{i}(", "choices": ["self", "name", "x"], "answer": i % 3} for i in range(12)]
    (found / "data/members.jsonl").write_text("".join(json.dumps(row) + "\n" for row in members))
    say = [{"question": f"return {i}", "answer": "x"} for i in range(4)]
    (found / "data/say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in say))
    return found


@pytest.fixture(scope="module")
def models(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = []
    for name, layers in (("big", 2), ("small", 1)):
        path = tmp_path_factory.mktemp(name)
        tiny.model("llama", vocabulary=tiny.VOCABULARY, layers=layers).save_pretrained(path)
        for file in (tiny_inputs / "tokenizer").iterdir():
            shutil.copy(file, path)
        write_card(path, ModelCard({"name": "causal_lm"}, 64))
        made.append(jobs.artifact(path, "model", stage=name))
    return made


def run(jobs: ModuleType, place: Path, models: Any, folder: Path, **given: Any) -> Any:
    params = {"models": [m.stage for m in models], "tasks": str(folder), "resamples": 200, **given}
    job = jobs.make_job(
        place, harness.Params.model_validate(params), {"models": models}, execution={"threads": 1}
    )  # fmt: skip
    job.metrics = harness.run(job)
    job.scores = json.loads((place / "output/scores.json").read_text())
    return job


def test_numbers_are_the_harnesss_own_and_feed_a_gate(
    jobs: ModuleType, models: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run(jobs, tmp_path / "job", models, folder)
    by_hand = json.loads(_by_hand(tmp_path, models[0].path, folder, monkeypatch))
    metrics = job.scores["models"]["big"]["metrics"]
    assert set(metrics) == {"acc@members", "exact_match@say"}
    for name, (task, key) in {"acc@members": ("members", "acc"), "exact_match@say": ("say", "exact_match")}.items():
        assert metrics[name]["value"] == by_hand[task][f"{key},none"]
        assert metrics[name]["stderr"] == pytest.approx(by_hand[task][f"{key}_stderr,none"])
    assert metrics["acc@members"]["n"] == 12 and metrics["exact_match@say"]["n"] == 4
    assert 0 < metrics["acc@members"]["value"] < 1, "some are right, some wrong: the comparison can fail"
    assert metrics["acc@members"]["low"] < metrics["acc@members"]["value"] < metrics["acc@members"]["high"]
    single = load_file(job.output / "predictions.safetensors")["big/acc@members"]
    assert single.mean() == pytest.approx(metrics["acc@members"]["value"])
    drawn = load_file(job.output / "replicates.safetensors")["big/acc@members"]
    assert np.std(drawn) == pytest.approx(metrics["acc@members"]["stderr"], rel=0.25), "both estimate one error"
    require = [{"metric": "acc@members", "max_drop": 1.0, "confidence": 0.95}]
    asked = {"scores": "h", "candidate": "small", "against": "big", "require": require}
    scores = jobs.artifact(job.output, "scores")
    assert gate.run(jobs.make_job(tmp_path / "g", gate.Params.model_validate(asked), {"scores": scores}))["passed"] == 1
    answers = [json.loads(line) for line in (job.records / "outputs.jsonl").read_text().splitlines()]
    assert len(answers) == 2 * 16 and {row["model"] for row in answers} == {"big", "small"}
    assert (job.scores["primary_metric"], set(job.metrics)) == ("acc@members", {"acc@members big", "acc@members small"})


def _by_hand(place: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`simple_evaluate` as its documentation has it, in a process of its own."""
    import subprocess
    import sys

    script = (
        "import json, lm_eval\n"
        "from lm_eval.tasks import TaskManager\n"
        "manager = TaskManager(include_path='.', include_defaults=False)\n"
        f"found = lm_eval.simple_evaluate(model='hf', model_args='pretrained={model},max_length=64', device='cpu',\n"
        "    tasks=['members', 'say'], task_manager=manager, batch_size=1)\n"
        f"open({str(place / 'found.json')!r}, 'w').write(json.dumps(found['results']))\n"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(place / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # A training in this process has left it for DeepSpeed, and accelerate would look for the other ranks.
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (place / "found.json").read_text()


def test_a_figure_that_is_no_mean_has_the_harnesss_interval(
    jobs: ModuleType, models: Any, folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "tasks")
    (other / "members.yaml").write_text(CHOICE)
    words = ["self", "name"]  # in turns the one and the other first, so that the model does not always choose the same
    rows = [{"question": f"def f{i}(", "choices": words[:: (-1) ** i], "answer": i % 3 % 2} for i in range(12)]
    (other / "data/members.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = run(jobs, tmp_path / "job", models[:1], other, names=["members"], primary="f1@members", limit=10)
    found = job.scores["models"]["big"]["metrics"]["f1@members"]
    assert found["n"] == 10 and found["stderr"] > 0
    assert found["high"] - found["value"] == pytest.approx(1.96 * found["stderr"])
    assert "big/f1@members" not in load_file(job.output / "replicates.safetensors")
    assert job.scores["primary_metric"] == "f1@members"


def test_the_content_of_the_folder_enters_the_key_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    one, other = shutil.copytree(folder, tmp_path / "one"), shutil.copytree(folder, tmp_path / "other")
    (other / ".hidden").write_text("x")
    (other / "__pycache__").mkdir()
    (other / "__pycache__/a.pyc").write_text("x")
    listed = [harness.sources(harness.Params(models=["m"], tasks=str(place))) for place in (one, other)]
    assert listed[0] == listed[1]
    assert [file.path for file in listed[0]] == ["data/members.jsonl", "data/say.jsonl", "members.yaml", "say.yaml"]
    (other / "data/say.jsonl").write_text("{}\n")
    assert harness.sources(harness.Params(models=["m"], tasks=str(other))) != listed[0]
    with pytest.raises(StageError, match="has no files"):
        harness.sources(harness.Params(models=["m"], tasks=str(tmp_path / "none")))


def test_what_changed_since_its_key_was_made_is_refused(
    jobs: ModuleType, models: Any, folder: Path, tmp_path: Path
) -> None:
    tasks = shutil.copytree(folder, tmp_path / "tasks")
    params = harness.Params(models=["big"], tasks=str(tasks))
    job = jobs.make_job(tmp_path / "job", params, {"models": models[:1]})
    job.keyed = harness.sources(params)
    (tasks / "data/say.jsonl").write_text("{}\n")
    with pytest.raises(SourcesChanged, match=r"^sources: data/say\.jsonl changed since"):
        harness.run(job)


def test_what_cannot_be_asked_is_said(jobs: ModuleType, models: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no task 'membrs' in the folder; did you mean members"):
        run(jobs, tmp_path / "a", models, folder, names=["membrs"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.txt").write_text("no task")
    with pytest.raises(StageError, match="the folder has no task"):
        run(jobs, tmp_path / "b", models, tmp_path / "empty")
    lost = shutil.copytree(folder, tmp_path / "lost")
    (lost / "data/say.jsonl").unlink()
    with pytest.raises(StageError, match=r"say\.jsonl"):
        run(jobs, tmp_path / "c", models[:1], lost, names=["say"])
    with pytest.raises(StageError, match="listed twice"):
        run(jobs, tmp_path / "d", [models[0], models[0]], folder)
    reader = jobs.artifact(shutil.copytree(models[0].path, tmp_path / "r"), "model", stage="reader")
    write_card(reader.path, ModelCard({"name": "text_classification"}, 64, ["a", "b"]))
    with pytest.raises(StageError, match="text_classification writes no text"):
        run(jobs, tmp_path / "e", [reader], folder)
