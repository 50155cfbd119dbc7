"""Shards that come, go and change: a dataset is a function of the shards there are, whatever happened before."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.artifacts import Manifest
from infra.errors import CorruptArtifact, SourcesChanged, StageError
from infra.open_store import open_store
from infra.store import Store
from tasks.data.parts.parts import make_parts
from tasks.data.selection.splitting import SPLITS
from tasks.data.tokens.packing import PackedRows
from tasks.data.tokens.tokenizing import load_tokenizer, save_tokenizer, train_bpe
from tasks.stage import PartKind, PartSpec
from tasks.stages import compare, dataset, pack

WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path_factory.mktemp("cache")))


def prepared(jobs: ModuleType, folder: Path, params: dict[str, Any], **given: Any) -> Any:
    """The stage run in `folder`; the job, with its metrics."""
    job = jobs.make_job(folder, dataset.Params.model_validate(params), **given)
    job.version = dataset.STAGE.version
    job.metrics = dataset.run(job)
    return job


def committed(job: Any, name: str = "mails") -> Manifest:
    """The artifact of a job, in its store, with the identity a run would give it."""
    identity = {"version": job.version, "params": job.params.model_dump(mode="json", by_alias=True)}
    manifest: Manifest = job.store.commit(
        kind="dataset",
        type="dataset",
        key=name,
        attempt=name,
        payload_dir=job.output,
        shared=job.shared,
        identity=identity,
    )
    return manifest


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tokenizer."""
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(train_bpe(iter([WORDS]), 300), folder)
    return folder


def packed(jobs: ModuleType, job: Any, folder: Path, tokenizer: Path) -> Any:
    """The dataset of a job, packed in the job's store."""
    store = Path(job.store.url.removeprefix("file://"))
    data = jobs.InputArtifact("data", Path(os.devnull), committed(job, folder.name))
    inputs = {"data": data, "tokenizer": jobs.stored(store, tokenizer, "tokenizer")}
    made = jobs.make_job(folder, pack.Params(data="data", tokenizer="tokenizer", context=64), inputs, store=store)
    made.metrics = pack.run(made)
    return made


def documents(jobs: ModuleType, job: Any) -> list[str]:
    """The texts of the token ids that a `pack` job left, put together from the rows of its plans."""
    jobs.collect(job)
    tokenizer, end = load_tokenizer(job.output / "tokenizer")
    texts = []
    for split in SPLITS:
        if not (job.output / f"{split}.rows.safetensors").exists():
            continue
        for row in PackedRows(job.output, split):
            parts = np.split(row["input_ids"], np.cumsum(row["segments"])[:-1])
            assert all(part[-1] == end and end not in part[:-1] for part in parts)
            texts += [tokenizer.decode(part[:-1].tolist()) for part in parts]
    return sorted(texts)


def content(job: Any) -> dict[str, str]:
    files = [file for file in job.output.rglob("*") if file.is_file()]
    own = {str(f.relative_to(job.output)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    return own | {entry.path: entry.sha256 for entry in job.shared}


def rows(job: Any, split: str) -> list[dict[str, Any]]:
    files = sorted(entry.path for entry in job.shared if entry.path.startswith(f"{split}/"))
    return [row for path in files for row in pq.read_table(job.fetch_shared(path)).to_pylist()]


def write(folder: Path, name: str, texts: list[str], **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "g": f"{name}{i}", **more}) + "\n" for i, text in enumerate(texts)]
    (folder / name).write_text("".join(lines))
    return folder


def jsonl(folder: Path, **more: Any) -> dict[str, Any]:
    source = {"files": f"{folder}/*.jsonl", "format": "jsonl", **more.pop("source", {})}
    return {"sources": [source], "split": {"by": "row", "test": 0.2, "validation": 0.1}, **more}


texts = st.lists(st.sampled_from(WORDS), min_size=4, max_size=9).map(" ".join)
shards = st.dictionaries(
    st.sampled_from(["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]), st.lists(texts, min_size=1, max_size=6), max_size=4
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(shards, min_size=2, max_size=4), st.booleans())
def test_any_history_ends_in_what_a_full_rebuild_gives(
    jobs: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
    words: Path,
    history: list[dict[str, list[str]]],
    frozen: bool,
) -> None:
    """Of the dataset, and of what is packed of it: every text is there once, whole, and in no other's company."""
    folder = tmp_path_factory.mktemp("history")
    more = {"dedup": {"near": {"threshold": 0.5, "shingle": 2, "num_perm": 16}}}
    for number, state in enumerate(history):
        data = folder / f"data-{number}"
        for name, found in state.items():
            write(data, name, found)
        write(data, "always.jsonl", ["the one that is always there", "and this one", "a third", "a fourth", "a fifth"])
        params = jsonl(data, **more)
        params["split"] = {**params["split"], "frozen": frozen}
        step = prepared(jobs, folder / f"step-{number}", params, store=folder / "store")
        fresh = prepared(jobs, folder / f"fresh-{number}", params)
        assert content(step) == content(fresh)
        assert fresh.metrics["shards_reused"] == 0
        packs = [packed(jobs, job, folder / f"pack-{number}-{i}", words) for i, job in enumerate((step, fresh))]
        assert content(packs[0]) == content(packs[1])
        assert packs[1].metrics["files_reused"] == 0
        assert documents(jobs, packs[0]) == sorted(row["text"] for split in SPLITS for row in rows(step, split))


def test_only_what_is_new_is_worked_on(jobs: ModuleType, tmp_path: Path) -> None:
    data, store = tmp_path / "data", tmp_path / "store"
    for i in range(9):
        write(data, f"{i}.jsonl", [f"text {i} {k}" for k in range(20)])
    first = prepared(jobs, tmp_path / "a", jsonl(data), store=store)
    write(data, "new.jsonl", ["text 3 3", "something new"])
    second = prepared(jobs, tmp_path / "b", jsonl(data), store=store)
    assert (first.metrics["shards_reused"], second.metrics["shards_reused"], second.metrics["shards"]) == (0, 9, 10)
    kept = {entry.path for entry in first.shared} & {entry.path for entry in second.shared}
    assert kept == {entry.path for entry in first.shared}
    assert "something new" in {row["text"] for split in ("train", "validation", "test") for row in rows(second, split)}


def test_workers_change_nothing(jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "PREPARED", replace(dataset.PREPARED, worth_a_process=1))
    data = tmp_path / "data"
    for i in range(5):
        write(data, f"{i}.jsonl", [f"text {i} {k}" for k in range(30)])
    alone = prepared(jobs, tmp_path / "a", jsonl(data), execution={"threads": 1})
    together = prepared(jobs, tmp_path / "b", jsonl(data), execution={"threads": 2})
    assert content(alone) == content(together)


def stop_at(arguments: dict[str, Any], folder: Path, store: Store) -> dict[str, float]:
    """A part that kills its process, if it is told to; the name of its file tells which it is."""
    if Path(arguments["kill"]).exists() and arguments["number"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "number").write_text(str(arguments["number"]))
    return {}


def _make(store: str, scratch: str, kill: str) -> None:
    specs = [PartSpec({"number": n}, {"number": n, "kill": kill}, 1) for n in range(6)]
    kind = PartKind("numbers", f"{stop_at.__module__}:stop_at")
    make_parts(kind, specs, open_store(store), workers=1, scratch=Path(scratch))


def test_a_killed_preparation_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    kill = tmp_path / "kill"
    kill.touch()
    arguments = (str(tmp_path / "store"), str(tmp_path / "scratch"), str(kill))
    process = multiprocessing.get_context("fork").Process(target=_make, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    kill.unlink()
    store = open_store(arguments[0])
    specs = [PartSpec({"number": n}, {"number": n, "kill": str(kill)}, 1) for n in range(6)]
    kind = PartKind("numbers", f"{stop_at.__module__}:stop_at")
    made = make_parts(kind, specs, store, workers=1, scratch=tmp_path / "scratch")
    assert made.reused == 3
    assert [(store.fetch(part) / "number").read_text() for part in made.parts] == list("012345")


def test_a_damaged_part_is_made_again(jobs: ModuleType, tmp_path: Path) -> None:
    data, store = write(tmp_path / "data", "a.jsonl", [f"text {k}" for k in range(30)]), tmp_path / "store"
    first = prepared(jobs, tmp_path / "a", jsonl(data), store=store)
    part = next((store / "artifacts/prepared").iterdir()).name
    manifest = first.store.manifest("prepared", part)
    sketch = next(entry for entry in manifest.payload if entry.path == "sketch.arrow")
    damaged = store / sketch.shared_path
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    with pytest.raises(CorruptArtifact, match=r"sketch\.arrow: sha256 differs") as caught:
        prepared(jobs, tmp_path / "b", jsonl(data), store=store)
    first.store.quarantine(caught.value.kind, caught.value.key, caught.value.attempt)
    assert not damaged.exists()
    assert content(prepared(jobs, tmp_path / "c", jsonl(data), store=store)) == content(first)


@pytest.fixture
def meddled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of 30 rows, which is another one while it is read, and afterwards what it was."""
    from tasks.data.parts import prepare

    data = write(tmp_path / "data", "a.jsonl", [f"text {k}" for k in range(30)])
    plain, whole = prepare.read_rows, (data / "a.jsonl").read_bytes()

    def read_meanwhile(*given: Any) -> Any:
        (data / "a.jsonl").write_text('{"text": "another one"}\n')
        try:
            yield from plain(*given)
        finally:
            (data / "a.jsonl").write_bytes(whole)

    monkeypatch.setattr(prepare, "read_rows", read_meanwhile)
    return data


def test_a_source_that_changes_while_it_is_read_is_noticed(
    jobs: ModuleType, meddled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.source_files.SETTLED_NS", 0)
    with pytest.raises(SourcesChanged, match=r"sources: a.jsonl: the file changed while it was read") as caught:
        prepared(jobs, tmp_path / "a", jsonl(meddled))
    assert caught.value.transient


def test_a_source_that_changed_a_moment_ago_is_read_from_a_copy(
    jobs: ModuleType, meddled: Path, tmp_path: Path
) -> None:
    found = prepared(jobs, tmp_path / "a", jsonl(meddled))
    assert sum(len(rows(found, split)) for split in ("train", "validation", "test")) == 30


def test_a_frozen_test_split_refuses_to_lose_an_example(jobs: ModuleType, tmp_path: Path) -> None:
    data, store = write(tmp_path / "data", "a.jsonl", [f"text number {k}" for k in range(60)]), tmp_path / "store"
    first = prepared(jobs, tmp_path / "a", jsonl(data), store=store)
    last = committed(first)
    write(data, "more.jsonl", [f"another text {k}" for k in range(20)])
    grown = prepared(jobs, tmp_path / "b", jsonl(data), store=store, previous=last)
    held_out = {row["text"] for row in rows(first, "test")}
    assert held_out < {row["text"] for row in rows(grown, "test")}
    longer = sum(len(text) > 13 for text in held_out)
    with pytest.raises(StageError, match=rf"split.frozen: {longer} examples of the frozen test split would"):
        prepared(jobs, tmp_path / "c", jsonl(data, clean={"max_chars": 13}), store=store, previous=last)
    (data / "a.jsonl").unlink()
    with pytest.raises(StageError, match="begin a new test split"):
        prepared(jobs, tmp_path / "d", jsonl(data), store=store, previous=last)
    params = jsonl(data)
    params["split"]["test_version"] = 2
    prepared(jobs, tmp_path / "e", params, store=store, previous=last)


def test_training_examples_that_tell_the_test_go(jobs: ModuleType, tmp_path: Path) -> None:
    store = tmp_path / "store"
    known = "it was the best of times and it was the worst of times in the age of wisdom and foolishness"
    exam = prepared(
        jobs, tmp_path / "exam", jsonl(write(tmp_path / "x", "x.jsonl", [known, "a", "b", "c"])), store=store
    )
    manifest = committed(exam, "exam")
    said = f"Somebody wrote: {known.upper()}! And went on."
    data = write(tmp_path / "data", "a.jsonl", [said, *(f"text number {k} about nothing" for k in range(40))])
    params = jsonl(data, decontaminate={"against": ["exam"], "ngram": 8})
    params["split"] = {"by": "row", "test": 0.0, "validation": 0.1}
    split = next(s for s in ("train", "validation", "test") if known in {row["text"] for row in rows(exam, s)})
    inputs = {"decontaminate.against": [jobs.InputArtifact("exam", Path(os.devnull), manifest, split)]}
    job = prepared(jobs, tmp_path / "a", params, inputs=inputs, store=store)
    counts = json.loads((job.records / "counts.json").read_text())
    dropped = next(step["dropped"] for step in counts["steps"] if step["step"] == "decontaminate")
    assert dropped == {"decontaminate": 1}
    assert said not in {row["text"] for row in rows(job, "train")} and len(rows(job, "train")) > 30


def test_a_dataset_of_another_stage_is_a_source(jobs: ModuleType, tmp_path: Path) -> None:
    store = tmp_path / "store"
    mails = prepared(
        jobs, tmp_path / "m", jsonl(write(tmp_path / "x", "x.jsonl", [f"mail {k}" for k in range(40)])), store=store
    )
    item = jobs.InputArtifact("mails", Path(os.devnull), committed(mails), "train")
    params = {"sources": [{"stage": "mails.train"}], "split": {"by": "row", "test": 0.2, "validation": 0.0}}
    job = prepared(jobs, tmp_path / "a", params, inputs={"sources": [item]}, store=store)
    found = {row["id"] for split in ("train", "test") for row in rows(job, split)}
    assert found == {row["id"] for row in rows(mails, "train")}


def test_weights_repeat_and_thin_out_training_examples_only(jobs: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "one", "a.jsonl", [f"one {k}" for k in range(200)])
    write(tmp_path / "two", "b.jsonl", [f"two {k}" for k in range(200)])
    params = jsonl(tmp_path / "one")
    params["sources"] = [
        {"files": f"{tmp_path}/one/*", "format": "jsonl", "weight": 2.5},
        {"files": f"{tmp_path}/two/*", "format": "jsonl", "weight": 0.25},
    ]
    job = prepared(jobs, tmp_path / "a", params)
    plain = prepared(jobs, tmp_path / "b", {**params, "sources": [{**s, "weight": 1.0} for s in params["sources"]]})
    assert rows(job, "test") == rows(plain, "test")
    train = rows(job, "train")
    assert len({row["id"] for row in train}) == len(train)
    counts = {kind: sum(row["text"].startswith(kind) for row in train) for kind in ("one", "two")}
    before = {kind: sum(row["text"].startswith(kind) for row in rows(plain, "train")) for kind in ("one", "two")}
    assert counts["one"] / before["one"] == pytest.approx(2.5, abs=0.15)
    assert counts["two"] / before["two"] == pytest.approx(0.25, abs=0.1)


def test_stratified_splits_have_each_label_in_its_share(jobs: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "data", "a.jsonl", [f"rare {k}" for k in range(10)], y="rare")
    write(tmp_path / "data", "b.jsonl", [f"common {k}" for k in range(100)], y="common")
    params = jsonl(tmp_path / "data", label={"from": "column:y"})
    params["split"]["stratify"] = True
    job = prepared(jobs, tmp_path / "a", params)
    table = json.loads((job.records / "counts.json").read_text())["labels"]
    assert table == {
        "common": {"train": 70, "validation": 10, "test": 20},
        "rare": {"train": 7, "validation": 1, "test": 2},
    }


def test_the_card_says_what_is_in_it(jobs: ModuleType, tmp_path: Path) -> None:
    data = write(tmp_path / "data", "a.jsonl", ["x" * 100] + [f"text number {k}" for k in range(30)])
    job = prepared(jobs, tmp_path / "a", jsonl(data, source={"licence": "CC0-1.0"}))
    card = json.loads((job.records / "card.json").read_text())
    (source,) = card["sources"]
    assert (source["licence"], source["files"]) == ("CC0-1.0", 1)
    counted = sum(count for split in card["characters"].values() for _, _, count in split)
    assert counted == job.metrics["rows"] == 31
    assert [64, 128, 1] in [
        [low - 1, high, count] for split in card["characters"].values() for low, high, count in split
    ]
    assert card["examples"]["train"][0].keys() == {"id", "text"}


def test_drift_is_told_with_a_verdict(jobs: ModuleType, tmp_path: Path) -> None:
    """Halves of one source do not differ; another language and other labels do."""
    random = np.random.default_rng(0)
    english = [" ".join(random.choice(PLAIN, 30)) for _ in range(300)]
    german = [" ".join(random.choice(ANDERE, 30)) for _ in range(150)]
    found = {}
    for name, texts_of, y in (("old", english[:150], "a"), ("same", english[150:], "a"), ("new", german, "b")):
        folder = write(tmp_path / name, f"{name}.jsonl", texts_of, y=y)
        write(folder, "other.jsonl", ["one more text in this set", "and yet another one"], y="c")
        made = prepared(jobs, tmp_path / f"job-{name}", jsonl(folder, label={"from": "column:y"}))
        jobs.collect(made)
        found[name] = jobs.artifact(made.output, "dataset", stage=name)

    def verdict(newer: str) -> dict[str, Any]:
        params = compare.Params(data=newer, against="old")
        job = jobs.make_job(tmp_path / f"against-{newer}", params, {"data": found[newer], "against": found["old"]})
        metrics = compare.run(job)
        said: dict[str, Any] = json.loads((job.output / "drift.json").read_text())
        assert metrics["drifted"] == said["drifted"]
        return said

    assert not verdict("same")["drifted"]
    said = verdict("new")
    assert said["drifted"] and said["looked_at"] == {"old": 152, "new": 152}
    drifted = {difference["name"] for difference in said["differences"] if difference["drifted"]}
    assert drifted >= {"label", "language", "vocabulary", "words"}


PLAIN = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "it",
    "is",
    "was",
    "for",
    "on",
    "with",
    "as",
    "his",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "by",
    "one",
    "had",
    "not",
    "but",
    "what",
]
ANDERE = [
    "der",
    "die",
    "und",
    "das",
    "nicht",
    "ist",
    "ein",
    "zu",
    "mit",
    "sich",
    "auf",
    "für",
    "als",
    "auch",
    "an",
    "werden",
    "aus",
    "hat",
    "dass",
    "sie",
    "nach",
    "bei",
    "um",
    "noch",
]
