"""pseudo_label: the references of one split are what the teacher writes, everything else is as it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from infra.errors import StageError
from infra.execution import Execution
from tasks.generation.text.decoding import Decoding
from tasks.generation.text.writer import Writer
from tasks.models.card import ModelCard, read_card, write_card
from tasks.processors.tokenizer import load_tokenizer
from tasks.stages import distill, pseudo_label

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}
CHAT = {"name": "causal_lm", "messages": "messages", "chat_template": CHATML}


@pytest.fixture(scope="module")
def made(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`made("t5")` and `made("llama")`: a teacher of two layers and data for it, with two files of training rows."""

    def built(type: str) -> dict[str, Any]:
        folder, reads = tmp_path_factory.mktemp(type), type == "t5"
        model = tiny.model(
            type, AutoModelForSeq2SeqLM if reads else AutoModelForCausalLM, vocabulary=tiny.VOCABULARY,
            tie_word_embeddings=False,
        )  # fmt: skip
        tiny.write_model(folder / "teacher", model, load_tokenizer(tiny_inputs / "tokenizer"), 64)
        write_card(folder / "teacher", ModelCard({"name": "seq2seq"} if reads else CHAT, 64))
        rows = []
        for i in range(24):
            source = " ".join(list(NUMBERS)[(i + j) % 4] for j in range(1 + i % 3))
            target = " ".join(NUMBERS[word] for word in source.split())
            messages = [("user", source), ("assistant", target), ("user", "thanks")]
            chat = [{"role": role, "content": content} for role, content in messages]
            rows.append({"text": source, "target": target, "messages": chat})
        tiny.write_rows(folder / "d", {"train": rows[4:], "validation": rows[:4]})
        whole = pq.read_table(folder / "d/train/0.parquet")
        pq.write_table(whole.slice(0, 9), folder / "d/train/0.parquet")
        pq.write_table(whole.slice(9), folder / "d/train/1.parquet")
        return {
            "teacher": jobs.artifact(folder / "teacher", "model", stage="teacher"),
            "data": jobs.artifact(folder / "d", "dataset", stage="d"),
        }

    return built


def run(jobs: ModuleType, folder: Path, given: dict[str, Any], **params: Any) -> Any:
    settings = pseudo_label.Params.model_validate({"teacher": "t", "data": "d", "truncation": True, **params})
    job = jobs.make_job(folder, settings, given, execution={"threads": 1})
    job.metrics = pseudo_label.STAGE.run(job)
    return job


def columns(folder: Path, split: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = pq.read_table(folder / split).to_pydict()
    return found


@pytest.mark.parametrize("num_beams", [1, 3])
def test_targets_are_what_the_teacher_writes(jobs: ModuleType, made: Any, tmp_path: Path, num_beams: int) -> None:
    """One example at a time, asked by hand; the rows keep their order over files."""
    given = made("t5")
    decoding = {"max_new_tokens": 6, "num_beams": num_beams}
    job = run(jobs, tmp_path, given, decoding=decoding)
    asked = Writer(
        given["teacher"], given["data"], "train", read_card(given["teacher"].path).objective,
        Decoding(**decoding, batch_size=1), Execution(), limit=None, truncation=True, threads=1,
    )  # fmt: skip
    expected = {o.place: o.text for batch in range(20) for o in asked.produce(batch)[0]}
    before, after = columns(given["data"].path, "train"), columns(job.output, "train")
    assert after.pop("target") == [expected[place] for place in range(20)] != before.pop("target")
    assert after == before
    assert (job.output / "validation/0.parquet").read_bytes() == (
        given["data"].path / "validation/0.parquet"
    ).read_bytes()
    assert [path.name for path in sorted((job.output / "train").iterdir())] == ["0.parquet", "1.parquet"]
    samples = json.loads((job.records / "samples.json").read_text())
    assert samples[0]["teacher writes"] == expected[0] and samples[0]["reference"] == "eins zwei"


def test_what_was_written_is_a_dataset_to_distil_on(jobs: ModuleType, made: Any, tmp_path: Path) -> None:
    """And the same one whenever it is made."""
    given = made("t5")
    one, other = (run(jobs, tmp_path / name, given, decoding={"max_new_tokens": 6}) for name in "ab")
    file = "train/1.parquet"
    assert (one.output / file).read_bytes() == (other.output / file).read_bytes()
    params = {"teacher": "t", "data": "d", "layers": 1, "max_steps": 2, "global_batch_size": 4, "alpha": 0.5}
    inputs = {**given, "data": jobs.artifact(one.output, "dataset")}
    job = jobs.make_job(tmp_path / "student", distill.Params.model_validate(params), inputs)
    assert "validation_cross_entropy" in distill.STAGE.run(job)


def test_of_a_conversation_the_last_answer_is_written_again(jobs: ModuleType, made: Any, tmp_path: Path) -> None:
    given = made("llama")
    job = run(jobs, tmp_path, given, decoding={"max_new_tokens": 6})
    before, after = columns(given["data"].path, "train"), columns(job.output, "train")
    for old, new in zip(map(json.loads, before["messages"]), map(json.loads, after["messages"]), strict=True):
        assert new[:1] == old[:1] and len(new) == 2
        assert new[1]["role"] == "assistant" and new[1]["content"] != old[1]["content"]
    assert after["target"] == before["target"]
    assert job.metrics["examples"] == 20 and 0 < job.metrics["tokens"] <= 120


def test_a_teacher_whose_texts_have_no_place_is_refused(jobs: ModuleType, made: Any, tmp_path: Path) -> None:
    given = made("llama")
    write_card(given["teacher"].path, ModelCard({"name": "causal_lm"}, 64))
    with pytest.raises(StageError, match="no column of references"):
        run(jobs, tmp_path, given)
