"""Weights made elsewhere: taken as they are, checked, and a start for a fine-tuning."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from infra.errors import SourcesChanged, StageError
from tasks.models.card import read_card
from tasks.stages import pretrained


def theirs(tiny: ModuleType, tiny_inputs: Path, made: Path, type: str, auto: Any) -> Path:
    """A folder as Hugging Face's `save_pretrained` leaves it."""
    tiny.model(type, auto, vocabulary=tiny.VOCABULARY).save_pretrained(made)
    for file in (tiny_inputs / "tokenizer").iterdir():
        (made / file.name).write_bytes(file.read_bytes())
    return made


@pytest.fixture
def folder(tiny: ModuleType, tiny_inputs: Path, tmp_path: Path) -> Path:
    return theirs(tiny, tiny_inputs, tmp_path / "theirs", "bert", AutoModelForMaskedLM)


def run(jobs: ModuleType, folder: Path, place: Path, **given: Any) -> Any:
    job = jobs.make_job(place, pretrained.Params(folder=str(folder), **given))
    job.metrics = pretrained.STAGE.run(job)
    return job


def pickled(folder: Path, more: dict[str, Any] | None = None) -> None:
    torch.save({**load_file(folder / "model.safetensors"), **(more or {})}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("type", "auto"),
    [
        *((type, AutoModelForMaskedLM) for type in ("bert", "roberta", "ernie")),
        *((type, AutoModelForCausalLM) for type in ("gpt2", "llama")),
        ("t5", AutoModelForSeq2SeqLM),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_the_bytes_are_theirs_and_a_training_starts_from_them(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path, type: str, auto: Any
) -> None:
    folder = theirs(tiny, tiny_inputs, tmp_path / "theirs", type, auto)
    job = run(jobs, folder, tmp_path / "job", **({"max_length": 64} if type == "t5" else {}))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (job.output / name).read_bytes() == (folder / name).read_bytes()
    positions = 63 if type == "roberta" else 64  # RoBERTa counts from behind its padding id
    assert read_card(job.output).max_length == job.metrics["max_length"] == positions, "as many as it has positions"
    given = {"model": "m", "data": "d", "objective": "text_classification", "max_steps": 1, "max_length": 32}
    inputs = {"model": jobs.artifact(job.output, "model"), "data": jobs.artifact(tiny_inputs / "dataset", "dataset")}
    jobs.run_stage(tmp_path / "tuned", "finetune", {**given, "learning_rate": 1e-9}, **inputs)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "tuned/output"))
    after = {name.removeprefix("transformer.") if type == "t5" else name: value for name, value in after.items()}
    # All there is but the new head.
    new = {name for name in after if name not in before}
    assert {name.partition(".")[0] for name in new} <= {"classifier", "score"}, new
    for name in after.keys() - new:
        torch.testing.assert_close(after[name], before[name], atol=1e-7, rtol=0)


def test_what_was_trained_for_nothing_is_said_so(jobs: ModuleType, folder: Path, tmp_path: Path) -> None:
    job = run(jobs, folder, tmp_path / "job", max_length=16)
    assert read_card(job.output).max_length == 16
    with pytest.raises(StageError, match="trained for no objective"):
        _ = read_card(job.output).objective


def test_pickles_are_read_on_request_only_and_then_only_tensors(jobs: ModuleType, folder: Path, tmp_path: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    pickled(folder)
    with pytest.raises(StageError, match=r"a pickle \(pytorch_model.bin\), which can run code"):
        run(jobs, folder, tmp_path / "a")
    job = run(jobs, folder, tmp_path / "b", allow_pickle=True)
    found = load_file(job.output / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert not list(job.output.glob("*.bin"))
    torch.save(Evil(), folder / "pytorch_model.bin")
    with pytest.raises(StageError, match="holds no plain tensors"):
        run(jobs, folder, tmp_path / "c", allow_pickle=True)
    assert "FORGELINE_EVIL" not in os.environ


class Evil:
    """A pickle that runs code."""

    def __reduce__(self) -> Any:
        return os.putenv, ("FORGELINE_EVIL", "1")


def test_what_does_not_fit_is_refused(jobs: ModuleType, tiny: ModuleType, folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    shutil.copytree(folder, small)
    tiny.model("bert", AutoModel, vocabulary=300).save_pretrained(small)
    with pytest.raises(StageError, match="the tokenizer has 320 tokens, the model 300"):
        run(jobs, small, tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(StageError, match=r"does not fit this model: bert\.embeddings\..* is 32, not 64"):
        run(jobs, folder, tmp_path / "b")
    (folder / "model.safetensors").unlink()
    with pytest.raises(StageError, match="there are no weights"):
        run(jobs, folder, tmp_path / "c")
    (folder / "config.json").unlink()
    with pytest.raises(StageError, match=r"cannot read .*config\.json"):
        pretrained.sources(pretrained.Params(folder=str(folder)))


def test_its_key_follows_the_files_that_matter(folder: Path) -> None:
    params = pretrained.Params(folder=str(folder))
    before = pretrained.sources(params)
    (folder / "README.md").write_text("not read")
    assert pretrained.sources(params) == before
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert pretrained.sources(params) != before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "exactly one of"),
        ({"folder": "a", "hub": "b"}, "exactly one of"),
        ({"hub": "org/name@main"}, "a branch or tag could move"),
    ],
)
def test_a_place_that_could_be_another_is_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        pretrained.Params(**given)


def test_a_model_that_is_not_in_the_cache_is_an_error_of_the_stage(
    jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    job = jobs.make_job(tmp_path, pretrained.Params(hub="org/name@" + "0" * 40))
    with pytest.raises(StageError, match="could not be downloaded"):
        pretrained.STAGE.run(job)


def test_what_changed_since_its_key_was_made_is_refused(jobs: ModuleType, folder: Path, tmp_path: Path) -> None:
    params = pretrained.Params(folder=str(folder))
    keyed = pretrained.sources(params)
    same = jobs.make_job(tmp_path / "a", params)
    same.keyed = keyed
    pretrained.run(same)
    assert same.read == keyed
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    (folder / "added_tokens.json").write_text("{}")
    job = jobs.make_job(tmp_path / "b", params)
    job.keyed = keyed
    with pytest.raises(SourcesChanged, match=r"added_tokens\.json is new, config\.json changed since"):
        pretrained.run(job)
