"""Parts of data stages made in batches, as another machine makes them: those that a run asks for, and no others."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.artifacts import ArtifactRef
from infra.errors import CorruptArtifact, OutOfMemory, StageError
from infra.open_store import open_store
from tasks.data.parts.batches import MOST, PART_COST, WORTH_HANDING_OUT, Batch, batches
from tasks.data.parts.parts import make_part
from tasks.pipeline.load import load_pipeline
from tasks.plan.parts import parts_of
from tasks.stage import PartKind, PartSpec
from tasks.stages import dataset, pack

PIPELINE = """
name: many
stages:
  held:
    dataset: {sources: [{files: "held/*.jsonl", format: jsonl}], split: {by: row, test: 0.5}}
  corpus:
    dataset:
      sources: [{files: "data/*.jsonl", format: jsonl}, {stage: held.train, name: more}]
      decontaminate: {against: [held.test], ngram: 5}
      split: {by: row, test: 0.2}
  tokenizer:
    tokenizer: {data: corpus, vocab_size: 300}
  tokens:
    pack: {data: corpus, tokenizer: tokenizer, context: 16}
"""
IDS = PartKind("ids", "tasks.data.tokens.ids:tokenize_file")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_what_is_made_in_batches_is_what_the_stages_ask_for(jobs: ModuleType, tmp_path: Path) -> None:
    for folder, count in (("held", 2), ("data", 3)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            lines = [f'{{"text": "{" ".join(f"{folder}{i * 31 + k * j}" for j in range(9))}"}}\n' for k in range(30)]
            (tmp_path / folder / f"{i}.jsonl").write_text("".join(lines))
    (tmp_path / "p.yaml").write_text(PIPELINE)
    pipeline = load_pipeline(tmp_path / "p.yaml")
    store, made = open_store(str(tmp_path / "store"), probe=True), dict[str, ArtifactRef]()
    asked = {}
    for name, node in pipeline.stages.items():
        if node.stage.parts is not None:
            kind, specs = parts_of(node, made, store, tmp_path)
            for batch in batches(kind, specs, store):
                there: Batch = pickle.loads(pickle.dumps(batch))
                there.make(tmp_path)
            assert batches(kind, specs, store) == []
            asked[name] = len(specs)
        inputs = {item.path.partition("[")[0]: list[Any]() for item in node.inputs}
        for item in node.inputs:
            found = store.manifest(made[item.stage].kind, made[item.stage].key)
            path = tmp_path if node.stage.lazy else store.fetch(found)
            inputs[item.path.partition("[")[0]].append(jobs.InputArtifact(item.stage, path, found, item.split))
        job = jobs.make_job(tmp_path / name, node.params, inputs, store=tmp_path / "store")
        metrics = node.stage.run(job)
        if name in asked:
            assert metrics["shards_reused" if name != "tokens" else "files_reused"] == asked[name]
        made[name] = store.commit(
            kind=node.stage.kind, type=node.stage.makes, key=name, attempt=name, payload_dir=job.output,
            shared=job.shared, identity={},
        ).ref  # fmt: skip
    assert asked["held"] == 2 and asked["corpus"] > 3 and asked["tokens"] > 0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3 * WORTH_HANDING_OUT) | st.integers(0, 1000), max_size=60))
def test_every_missing_part_is_in_one_batch_and_small_ones_share(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    specs = [PartSpec({"version": 1, "n": i}, {}, size) for i, size in enumerate(sizes)]
    found = batches(IDS, [*specs, *specs], store)
    assert sorted(s.identity["n"] for b in found for s in b.specs) == list(range(len(sizes)))
    for batch in found[:-1]:
        assert batch.size + PART_COST * len(batch.specs) >= WORTH_HANDING_OUT, "it is worth handing out"
    for batch in found:
        smallest = batch.specs[-1].size + PART_COST
        assert batch.size + PART_COST * len(batch.specs) - smallest < WORTH_HANDING_OUT, "no more than that"


def test_huge_data_make_a_bounded_number_of_batches(tmp_path: Path) -> None:
    specs = [PartSpec({"version": 1, "n": i}, {}, 100 * WORTH_HANDING_OUT) for i in range(2 * MOST)]
    assert MOST / 2 <= len(batches(IDS, specs, open_store(str(tmp_path)))) <= MOST


def test_a_part_that_is_there_is_in_no_batch_and_a_damaged_one_is(jobs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    given = {"sources": [{"files": f"{tmp_path}/data/*.jsonl", "format": "jsonl"}], "split": {"by": "row"}}
    job = jobs.make_job(tmp_path / "job", dataset.Params.model_validate(given))
    kind, (spec,) = dataset.parts(job)
    part = make_part(kind, spec, job.store, tmp_path)
    assert batches(kind, [spec], job.store) == []
    job.store.delete(part.payload[0].shared_path)
    (again,) = batches(kind, [spec], job.store)
    again.make(tmp_path)
    assert batches(kind, [spec], job.store) == []


def test_another_version_of_forgeline_makes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    (batch,) = batches(pack.TOKENS, [PartSpec({"version": pack.VERSION + 1}, {"file": "", "tokenizer": ""})], store)
    with pytest.raises(StageError, match=f"ids of version {pack.VERSION + 1} were asked for, but .* {pack.VERSION}"):
        batch.make(tmp_path)
    assert not store.list("artifacts")


@pytest.mark.parametrize(
    "error",
    [
        StageError("cut off", where="sources: a.txt", hint="Fetch it again."),
        CorruptArtifact("damaged", kind="rows", key="k", attempt="a"),
        OutOfMemory(4, where="here"),
    ],
)
def test_errors_come_back_from_other_processes_whole(error: StageError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
