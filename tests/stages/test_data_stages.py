"""dataset, tokenizer and pack on real files: what comes out, what is counted, equal bytes from equal inputs."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerFast

from infra.errors import StageError
from tasks.data.packing import pack_rows
from tasks.data.tokenizing import Encoder, load_tokenizer, train_bpe
from tasks.stages import dataset, pack, tokenizer

STDLIB = Path(sysconfig.get_path("stdlib"))
KEEP = ["email", "json", "wsgiref", "xml"]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def made(jobs: ModuleType, folder: Path, stage: Any, params: dict[str, Any], **inputs: Any) -> Any:
    job = jobs.make_job(folder, stage.STAGE.params.model_validate(params), inputs)
    job.metrics = stage.STAGE.run(job)
    return job


def splits_of(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {s: pq.read_table(folder / f"{s}.parquet").to_pylist() for s in ("train", "validation", "test")}


@pytest.fixture(scope="session")
def functions(jobs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    params = {
        "sources": [{"python_functions": "${python:stdlib}"}],
        "clean": {"min_chars": 64},
        "dedup": {"near": {"threshold": 0.85}},
        "label": {"from": "package", "keep": KEEP},
        "split": {"by": "file", "validation": 0.15, "test": 0.2, "seed": 3},
    }
    return made(jobs, tmp_path_factory.mktemp("functions"), dataset, params)


def test_no_text_or_file_is_in_two_splits(functions: Any) -> None:
    rows = splits_of(functions.output)
    for column in ("id", "text", "group"):
        seen = {split: {row[column] for row in members} for split, members in rows.items()}
        assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
        assert not seen["validation"] & seen["test"]
    everyone = [row for members in rows.values() for row in members]
    assert len({row["id"] for row in everyone}) == len({row["text"] for row in everyone}) == len(everyone)
    assert {row["label"] for row in everyone} == set(KEEP)
    assert all(row["id"].startswith(f"{row['group']}::") for row in everyone)
    assert all(row["group"].split("/")[0] == row["label"] for row in everyone)


def test_description_and_counts_add_up(functions: Any) -> None:
    description = json.loads((functions.output / "dataset.json").read_text())
    rows = splits_of(functions.output)
    assert description["splits"] == {split: len(members) for split, members in rows.items()}
    assert description["labels"] == KEEP
    assert description["columns"] == ["id", "text", "group", "label"]
    counts = json.loads((functions.records / "counts.json").read_text())
    for step, following in zip(counts["steps"][1:], counts["steps"][2:], strict=False):
        assert step["out"] == following["in"]
    assert all(s["in"] - s["out"] == sum(s["dropped"].values()) for s in counts["steps"][1:])
    assert counts["steps"][-1]["out"] == sum(description["splits"].values()) == functions.metrics["rows"]
    recorded = json.loads((functions.records / "sources.json").read_text())
    assert recorded == [[f.path, f.sha256] for f in dataset.sources(functions.params)]


def test_equal_sources_give_equal_bytes(functions: Any, jobs: ModuleType, tmp_path: Path) -> None:
    again = jobs.make_job(tmp_path, functions.params)
    dataset.run(again)
    assert digests(again.output) == digests(functions.output)


def write_texts(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def text_params(folder: Path, **more: Any) -> dict[str, Any]:
    return {"sources": [{"files": f"{folder}/*.txt"}], "split": {"validation": 0.2, "test": 0.3}, **more}


def test_adding_files_moves_no_example(jobs: ModuleType, tmp_path: Path) -> None:
    texts = {f"{i:02}.txt": f"text number {i}" for i in range(40)}
    before = made(jobs, tmp_path / "a", dataset, text_params(write_texts(tmp_path / "data", texts)))
    # Some new files repeat what is held out already: the held-out copy stays.
    write_texts(tmp_path / "data", {f"0{i:02}.txt": f"text number {i}" for i in range(40)} | {"x.txt": "new"})
    after = made(jobs, tmp_path / "b", dataset, text_params(tmp_path / "data"))
    old, new = splits_of(before.output), splits_of(after.output)
    # A validation example may turn into a test example where a duplicate lands there; into training, never.
    held_out = {r["text"] for r in [*new["validation"], *new["test"]]}
    assert {r["text"] for r in [*old["validation"], *old["test"]]} <= held_out
    assert {r["text"] for r in old["test"]} <= {r["text"] for r in new["test"]}
    assert old["test"]


def test_bad_files_are_quarantined_and_counted(jobs: ModuleType, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "data", {f"{i}.txt": f"text {i}" for i in range(30)})
    (data / "bad.txt").write_bytes(b"caf\xe9")
    job = made(jobs, tmp_path / "a", dataset, text_params(data, max_bad_share=0.05))
    assert job.metrics["quarantined"] == 1
    (line,) = (job.records / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line) == {"path": "bad.txt", "line": None, "reason": "not utf-8 text (byte 3)"}
    with pytest.raises(StageError, match=r"1 of 31 files cannot be read \(3.2%, allowed 1.0%\)") as caught:
        made(jobs, tmp_path / "b", dataset, text_params(data))
    assert "First: bad.txt: not utf-8 text (byte 3)" in str(caught.value)


def test_labels_that_cannot_be_learned(jobs: ModuleType, tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "y": "a"} for i in range(20)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"files": f"{tmp_path}/d.jsonl", "format": "jsonl"}
    params = {"sources": [source], "split": {"by": "row"}, "label": {"from": "column:y"}}
    with pytest.raises(StageError, match="at least two classes, there is only 'a'"):
        made(jobs, tmp_path / "a", dataset, params)
    with pytest.raises(StageError, match="no example has the label 'b'"):
        made(jobs, tmp_path / "b", dataset, {**params, "label": {"from": "column:y", "keep": ["a", "b"]}})


def test_unknown_package_is_said_before_anything_runs(tmp_path: Path) -> None:
    params = dataset.Params.model_validate(
        {"sources": [{"python_functions": "${python:stdlib}"}], "label": {"from": "package", "keep": ["jsn", "xml"]}}
    )
    with pytest.raises(StageError, match="Did you mean json"):
        dataset.sources(params)


def test_everything_dropped(jobs: ModuleType, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "data", {"a.txt": "short"})
    with pytest.raises(StageError, match="no training example is left"):
        made(jobs, tmp_path / "a", dataset, text_params(data, clean={"min_chars": 100}))


@pytest.fixture(scope="session")
def bpe(functions: Any, jobs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    params = {"data": "functions", "vocab_size": 600}
    data = jobs.artifact(functions.output, "dataset")
    return made(jobs, tmp_path_factory.mktemp("bpe"), tokenizer, params, data=data)


def test_tokenizer_loads_in_transformers_and_loses_nothing(bpe: Any) -> None:
    loaded = PreTrainedTokenizerFast.from_pretrained(bpe.output)
    assert len(loaded) == 600
    assert (loaded.eos_token, loaded.pad_token) == ("<|endoftext|>", "<|pad|>")
    assert (loaded.eos_token_id, loaded.bos_token_id, loaded.pad_token_id) == (0, 0, 1)
    for text in ("def f(x):\n\treturn x  # ünï 漢字 \U0001f600", " ", "\r\n\0"):
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_tokenizer_is_learned_from_the_training_split_alone(
    bpe: Any, functions: Any, jobs: ModuleType, tmp_path: Path
) -> None:
    params = {"data": "functions", "vocab_size": 600}
    again = made(jobs, tmp_path / "a", tokenizer, params, data=jobs.artifact(functions.output, "dataset"))
    assert digests(again.output) == digests(bpe.output)
    other = made(jobs, tmp_path / "b", tokenizer, params, data=jobs.artifact(functions.output, "dataset", split="test"))
    assert digests(other.output) != digests(bpe.output)


def test_vocabulary_larger_than_the_data(jobs: ModuleType, tmp_path: Path) -> None:
    data = made(jobs, tmp_path / "d", dataset, text_params(write_texts(tmp_path / "t", {"a.txt": "aaa bbb"}), split={}))
    with pytest.raises(StageError, match="the data yields only"):
        made(
            jobs,
            tmp_path / "v",
            tokenizer,
            {"data": "d", "vocab_size": 5000},
            data=jobs.artifact(data.output, "dataset"),
        )


def test_fast_encoding_equals_the_library_on_real_code() -> None:
    texts = [p.read_text(encoding="utf-8") for p in sorted((STDLIB / "json").glob("*.py"))]
    plain = train_bpe(iter([texts]), 500)
    encoder = Encoder(plain)
    for batch in (texts, [*texts, "", "ünï", "a <|endoftext|> b", "\x1c\x1d \x0b\x0c\x85"]):
        expected = [e.ids for e in plain.encode_batch_fast(batch, add_special_tokens=False)]
        assert [ids.tolist() for ids in encoder.encode(batch)] == expected


PLAIN = train_bpe(iter([["def f(x): return x + 1\n" * 5, "It's they'll we've 123 456"]]), 300)
ENCODER = Encoder(PLAIN)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab Z09_'.,\n\t\r\x0b\x0c\x1c\x1fsdmtrevl") | st.characters(codec="utf-8"), max_size=40))
def test_fast_encoding_equals_the_library_on_any_text(text: str) -> None:
    (ids,) = ENCODER.encode([text])
    assert ids.tolist() == PLAIN.encode(text, add_special_tokens=False).ids


@given(st.lists(st.lists(st.integers(1, 9), max_size=8), max_size=12), st.integers(2, 7))
def test_packing_keeps_order_and_drops_less_than_a_row(documents: list[list[int]], context: int) -> None:
    arrays = [np.array(d, np.int32) for d in documents]
    stream = [token for document in documents for token in [*document, 0]]
    blocks = list(pack_rows(arrays, context, end=0))
    packed = np.concatenate([np.zeros((0, context), int), *blocks]).ravel().tolist()
    assert packed == stream[: len(packed)]
    assert 0 <= len(stream) - len(packed) < context


def test_packed_tokens_decode_to_the_documents(bpe: Any, functions: Any, jobs: ModuleType, tmp_path: Path) -> None:
    inputs = {"data": jobs.artifact(functions.output, "dataset"), "tokenizer": jobs.artifact(bpe.output, "tokenizer")}
    job = made(jobs, tmp_path, pack, {"data": "d", "tokenizer": "t", "context": 64}, **inputs)
    description = json.loads((job.output / "tokens.json").read_text())
    assert (description["context"], description["vocab_size"]) == (64, 600)
    assert digests(job.output / "tokenizer") == digests(bpe.output)
    raw, _ = load_tokenizer(bpe.output)
    for split, members in splits_of(functions.output).items():
        ids = load_file(job.output / f"{split}.safetensors")["input_ids"]
        assert ids.dtype == np.uint16
        assert len(ids) == description["splits"][split]
        text = raw.decode(ids.ravel().tolist(), skip_special_tokens=False)
        joined = "".join(row["text"] + "<|endoftext|>" for row in members)
        assert joined.startswith(text[:-10]) and len(joined) - len(text) < 64 * 20
    again = made(jobs, tmp_path / "again", pack, {"data": "d", "tokenizer": "t", "context": 64}, **inputs)
    assert digests(again.output) == digests(job.output)


def test_less_text_than_one_row(bpe: Any, jobs: ModuleType, tmp_path: Path) -> None:
    data = made(jobs, tmp_path / "d", dataset, text_params(write_texts(tmp_path / "t", {"a.txt": "aaa"}), split={}))
    inputs = {"data": jobs.artifact(data.output, "dataset"), "tokenizer": jobs.artifact(bpe.output, "tokenizer")}
    with pytest.raises(StageError, match="less text than one row of 512 tokens"):
        made(jobs, tmp_path / "p", pack, {"data": "d", "tokenizer": "t", "context": 512}, **inputs)
