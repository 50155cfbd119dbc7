"""What a stage warns of reaches the terminal: when it is made, and each time it is reused."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import cli
from infra import claims, refs
from infra.open_store import open_store
from infra.store import Store
from tasks.pipeline.load import load_pipeline
from tasks.plan.plan import resolve_in
from tasks.plan.resolved import latest_ref
from tasks.run import worker

PIPELINE = """
name: small
stages:
  rows: {dataset: {sources: [{files: rows.jsonl, format: jsonl}], split: {by: file, validation: 0.01, test: 0}}}
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a pipeline whose one file lies in one split, though two were asked for."""
    monkeypatch.setenv("FORGELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FORGELINE_STORE", str(tmp_path / "store"))
    (tmp_path / "p.yaml").write_text(f"{PIPELINE}store: {tmp_path}/store\n")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(3)))
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def made_by_a_job(folder: Path) -> Store:
    """Run the pipeline's stage as a job process does."""
    pipeline = load_pipeline(folder / "p.yaml")
    node, store = pipeline.stages["rows"], open_store(pipeline.store)
    resolved = resolve_in(store, node, {})
    claim = claims.try_acquire(store, "dataset", resolved.key)
    assert claim is not None
    job = {
        "name": "rows", "kind": "dataset", "key": resolved.key, "identity": resolved.identity, "attempt": "a",
        "params": node.params.model_dump(mode="json", by_alias=True), "inputs": {}, "submitted": 0.0, "producer": {},
        "execution": node.execution.model_dump(mode="json"), "store": store.url, "inputs_store": store.url,
        "claim": claim.to_json(),
    }  # fmt: skip
    (folder / "job").mkdir()
    (folder / "job" / "job.json").write_text(json.dumps(job))
    assert worker.main(folder / "job") == 0
    claim.release()
    manifest = store.manifest("dataset", resolved.key)
    assert manifest is not None
    refs.advance(store, latest_ref("small", "rows"), manifest.ref, note="")
    return store


def only_warning(store: Store) -> str:
    """What the artifact warns of: a split that was asked for is empty."""
    kept = refs.get(store, "small/rows/latest")
    manifest = kept and store.manifest("dataset", kept.key)
    assert manifest is not None
    [warning] = manifest.warnings
    assert "validation" in warning and "empty" in warning
    return warning


def test_a_warning_is_kept_with_the_artifact_and_told_whenever_it_is_used(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = only_warning(made_by_a_job(house))
    file = str(house / "p.yaml")

    def said(*words: str) -> tuple[str, str]:
        capsys.readouterr()
        assert cli.main(words) == 0
        return capsys.readouterr()

    assert said("plan", file)[0].splitlines()[1] == f"warning: rows: {warning}"
    assert json.loads(said("plan", file, "--json")[0])["stages"][0]["warnings"] == [warning]
    assert f"warning: {warning}\n" in said("show", "small/rows/latest")[0]
    for quiet in ([], ["--quiet"]):
        out, progress = said("run", file, "--json", "--no-report", *quiet)
        assert f"warning: rows: {warning}\n" in progress
        assert json.loads(out)["stages"][0]["warnings"] == [warning]
    assert f"    warning: {warning}\n" in said("status")[0]


def test_a_warning_changes_no_key_and_no_content(house: Path) -> None:
    store = made_by_a_job(house)
    warning, kept = only_warning(store), refs.get(store, "small/rows/latest")
    assert kept is not None
    manifest = store.manifest("dataset", kept.key)
    assert manifest is not None
    assert warning not in json.dumps(manifest.identity)
    assert not any(warning.encode() in (store.fetch(manifest) / entry.path).read_bytes() for entry in manifest.payload)


def test_an_artifact_made_before_there_were_warnings_has_none(house: Path) -> None:
    store = made_by_a_job(house)
    kept = refs.get(store, "small/rows/latest")
    assert kept is not None
    path = f"artifacts/dataset/{kept.key}/manifest.json"
    data = store.read_json(path)
    del data["warnings"], data["checksum"]
    store.write_json(path, {**data, "format": 1})
    manifest = store.manifest("dataset", kept.key)
    assert manifest is not None and manifest.warnings == []
