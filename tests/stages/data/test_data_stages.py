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
from pydantic import ValidationError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from infra.errors import StageError
from tasks.data.tokens import encoding
from tasks.data.tokens import ids as tokens
from tasks.data.tokens.packing import PackedRows, best_fit, one_to_a_row
from tasks.data.tokens.tokenizing import load_tokenizer, train_bpe
from tasks.stages import dataset, pack, tokenizer

STDLIB = Path(sysconfig.get_path("stdlib"))
KEEP = ["email", "json", "wsgiref", "xml"]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def made(
    jobs: ModuleType, folder: Path, stage: Any, params: dict[str, Any], store: Path | None = None, **inputs: Any
) -> Any:
    job = jobs.make_job(folder, stage.STAGE.params.model_validate(params), inputs, store=store)
    job.metrics = stage.STAGE.run(job)
    jobs.collect(job)
    return job


def splits_of(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {s: sorted_rows(folder / s) for s in ("train", "validation", "test")}


def sorted_rows(folder: Path) -> list[dict[str, str]]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


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
        assert step["rows_out"] == following["rows_in"]
        assert step["characters_out"] == following["characters_in"]
    assert all(s["rows_in"] - s["rows_out"] == sum(s["dropped"].values()) for s in counts["steps"])
    assert counts["steps"][-1]["rows_out"] == sum(description["splits"].values()) == functions.metrics["rows"]
    recorded = json.loads((functions.records / "sources.json").read_text())
    assert recorded == [[f.path, f.sha256] for f in dataset.sources(functions.params)]


def test_equal_sources_give_equal_bytes(functions: Any, jobs: ModuleType, tmp_path: Path) -> None:
    again = jobs.make_job(tmp_path, functions.params)
    dataset.run(again)
    jobs.collect(again)
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


def test_wordpiece_is_that_of_the_library_but_the_same_every_time(
    functions: Any, jobs: ModuleType, tmp_path: Path
) -> None:
    params = {"data": "functions", "vocab_size": 800, "algorithm": "wordpiece"}
    data = jobs.artifact(functions.output, "dataset")
    job = made(jobs, tmp_path / "a", tokenizer, params, data=data)
    loaded = PreTrainedTokenizerFast.from_pretrained(job.output)
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.unk_token_id, len(loaded)) == (0, 1, 2, 800)
    assert loaded.tokenize("return xyzzy") == loaded.convert_ids_to_tokens(loaded("return xyzzy")["input_ids"])
    assert loaded.decode(loaded("return the value of x")["input_ids"]) == "return the value of x"
    assert digests(made(jobs, tmp_path / "b", tokenizer, params, data=data).output) == digests(job.output)
    library = Tokenizer(models.WordPiece(unk_token="<|unk|>"))
    library.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [row["text"] for row in splits_of(functions.output)["train"]]
    special = ["<|endoftext|>", "<|pad|>", "<|unk|>"]
    library.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=800, special_tokens=special))
    assert len(library.get_vocab().keys() & loaded.get_vocab().keys()) > 0.98 * 800, "they differ in ties"


def test_unigram_is_that_of_sentencepiece_and_the_same_every_time(
    functions: Any, jobs: ModuleType, tmp_path: Path
) -> None:
    params = {"data": "functions", "vocab_size": 900, "algorithm": "unigram"}
    data = jobs.artifact(functions.output, "dataset")
    job = made(jobs, tmp_path / "a", tokenizer, params, data=data)
    loaded = PreTrainedTokenizerFast.from_pretrained(job.output)
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.unk_token_id, len(loaded)) == (0, 1, 2, 900)
    for text in ("def f(x):\n\treturn x  # ünï 漢字 \U0001f600", " two  blanks ", "x" * 300):
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.unk_token_id not in loaded("漢字")["input_ids"]
    assert digests(made(jobs, tmp_path / "b", tokenizer, params, data=data).output) == digests(job.output)
    texts = [row["text"] for row in splits_of(functions.output)["test"]]
    assert sum(len(loaded(text)["input_ids"]) for text in texts) < 0.5 * sum(map(len, texts))


def test_a_given_tokenizer_is_taken_as_it_is(bpe: Any, jobs: ModuleType, tmp_path: Path) -> None:
    job = made(jobs, tmp_path, tokenizer, {"given": str(bpe.output)})
    assert digests(job.output) == digests(bpe.output) and job.metrics == bpe.metrics
    before = tokenizer.sources(job.params)
    assert [file.path for file in before] == ["tokenizer.json", "tokenizer_config.json"]
    with pytest.raises(StageError, match=r"(?s)given: there is no tokenizer in .*as save_pretrained writes it"):
        tokenizer.sources(tokenizer.Params(given=str(tmp_path)))
    with pytest.raises(ValidationError, match="to learn a tokenizer, or `given` to take one"):
        tokenizer.Params(given="x", vocab_size=300)


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


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60), st.integers(2, 17))
def test_packing_loses_doubles_and_mixes_nothing(lengths: list[int], context: int) -> None:
    """Every token of every document stands in exactly one place; only documents longer than a row are cut."""
    for plan in (best_fit(np.array(lengths, np.int64), context), one_to_a_row(np.array(lengths, np.int64), context)):
        seen = [np.zeros(length, int) for length in lengths]
        filled = np.zeros(plan.rows, int)
        row_of = np.repeat(np.arange(plan.rows), np.diff(plan.first))
        for row, document, start, length in zip(row_of, plan.document, plan.start, plan.length, strict=True):
            seen[document][start : start + length] += 1
            filled[row] += length
        assert all((counts == 1).all() for counts in seen)
        assert (filled <= context).all() and (filled > 0).all()
        pieces = np.bincount(plan.document, minlength=len(lengths))
        assert pieces.tolist() == [-(-length // context) for length in lengths]


def test_packing_is_no_worse_than_first_fit_and_wastes_little() -> None:
    """Skewed lengths, as documents have them."""
    lengths = np.clip(np.random.default_rng(1).lognormal(4.5, 1.0, 20_000), 1, 5000).astype(np.int64)
    plan = best_fit(lengths, 512)
    assert lengths.sum() / (plan.rows * 512) > 0.99
    spaces: list[int] = []
    for length in sorted((length % 512 for length in lengths.tolist() if length % 512), reverse=True)[:2000]:
        row = next((i for i, space in enumerate(spaces) if space >= length), None)
        if row is None:
            spaces.append(512 - length)
        else:
            spaces[row] -= length
    some = np.array(sorted((n % 512 for n in lengths.tolist() if n % 512), reverse=True)[:2000], np.int64)
    assert best_fit(some, 512).rows <= len(spaces)


def stored(jobs: ModuleType, folder: Path, job: Any, type: str, split: str | None = None) -> Any:
    """What a job made, in the store that lies in `folder`."""
    return jobs.stored(folder / "store", job.output, type, split=split)


def test_packed_tokens_decode_to_the_documents(bpe: Any, functions: Any, jobs: ModuleType, tmp_path: Path) -> None:
    inputs = {
        "data": stored(jobs, tmp_path, functions, "dataset"),
        "tokenizer": stored(jobs, tmp_path, bpe, "tokenizer"),
    }
    params = {"data": "d", "tokenizer": "t", "context": 64}
    job = made(jobs, tmp_path, pack, params, **inputs)
    description = json.loads((job.output / "tokens.json").read_text())
    assert (description["context"], description["vocab_size"]) == (64, 600)
    assert digests(job.output / "tokenizer") == digests(bpe.output)
    raw, _ = load_tokenizer(bpe.output)
    for split, members in splits_of(functions.output).items():
        rows = PackedRows(job.output, split)
        assert len(rows) == description["splits"][split]
        found = [ids.tolist() for row in rows for ids in np.split(row["input_ids"], np.cumsum(row["segments"])[:-1])]
        whole = [[*raw.encode(row["text"], add_special_tokens=False).ids, 0] for row in members]
        assert sorted(found) == sorted(ids[i : i + 64] for ids in whole for i in range(0, len(ids), 64))
    assert job.metrics["useful_share"] > 0.97
    other = {
        "data": stored(jobs, tmp_path / "o", functions, "dataset"),
        "tokenizer": stored(jobs, tmp_path / "o", bpe, "tokenizer"),
    }
    again = made(jobs, tmp_path / "o", pack, params, **other)
    assert digests(again.output) == digests(job.output)
    once_more = jobs.make_job(tmp_path / "more", job.params, inputs, store=tmp_path / "store")
    assert pack.run(once_more)["files_reused"] == job.metrics["files"]


def test_nothing_to_pack(bpe: Any, functions: Any, jobs: ModuleType, tmp_path: Path) -> None:
    data = jobs.stored(tmp_path / "store", functions.output, "dataset", split="nowhere")
    inputs = {"data": data, "tokenizer": stored(jobs, tmp_path, bpe, "tokenizer")}
    with pytest.raises(StageError, match="there is nothing to pack"):
        made(jobs, tmp_path, pack, {"data": "d", "tokenizer": "t", "context": 512}, **inputs)


def test_where_the_fast_tokenizer_differs_the_library_does_the_whole_file(
    bpe: Any, functions: Any, jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"data": "d", "tokenizer": "t", "context": 64}

    def packed(folder: Path) -> Any:
        inputs = {
            "data": stored(jobs, folder, functions, "dataset"),
            "tokenizer": stored(jobs, folder, bpe, "tokenizer"),
        }
        tokens._encoder.cache_clear()
        return made(jobs, folder, pack, params, store=folder / "store", **inputs)

    plain = packed(tmp_path / "a")
    assert plain.metrics["by_library"] == 0 < plain.metrics["compared"]
    other = json.loads(train_bpe(iter([["quite", "other", "words"]]), 300).to_str())
    of = encoding._fast
    monkeypatch.setattr(encoding, "_fast", lambda state: of(other))
    wrong = packed(tmp_path / "b")
    assert wrong.metrics["by_library"] == functions.metrics["rows"]
    assert digests(wrong.output) == digests(plain.output)
