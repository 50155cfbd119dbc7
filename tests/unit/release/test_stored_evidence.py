"""What a report reads from a real store: figures, records and a ref's moves; never weights, never unverified bytes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from infra import refs
from infra.artifacts import Manifest
from infra.errors import CorruptArtifact, StoreError
from infra.open_store import open_store
from infra.store import Store
from tasks.release.report.page import render_report
from tasks.release.report.stored_evidence import evidence_loader


def commit(store: Store, folder: Path, type_: str, files: dict[str, Any], records: dict[str, Any]) -> Manifest:
    for part, content in (("payload", files), ("records", records)):
        for name, data in content.items():
            path = folder / type_ / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(data))
    home = folder / type_
    return store.commit(
        kind=type_, type=type_, key="0" * 64, attempt="a", payload_dir=home / "payload", identity={},
        records_dir=home / "records" if records else None,
    )  # fmt: skip


def test_the_report_of_a_store_shows_release_history_and_curves(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    model = commit(store, tmp_path, "model", {"config.json": {}, "model.safetensors": "w" * 100}, {"train.jsonl": 0})
    other = commit(store, tmp_path, "onnx", {"model.onnx": "w"}, {})
    release = commit(store, tmp_path, "release", {"release.json": {"ref": "p/production", "model": {}}}, {})
    refs.advance(store, "p/production", other.ref, note="by hand")
    refs.advance(store, "p/production", model.ref, note="this release")
    load = evidence_loader(store)
    found = load(asdict(model.ref))
    assert found.payload is None
    assert found.records is not None
    assert (found.records / "train.jsonl").is_file()
    moves = load(asdict(release.ref)).history
    assert [(move["kind"], move["note"]) for move in moves] == [("model", "this release"), ("onnx", "by hand")]
    stage = {"name": "ship", "kind": "release", "action": "run", "seconds": 1.0, "artifact": asdict(release.ref)}
    page = render_report({"run": "r", "status": "ok", "stages": [stage]}, load)
    assert "p/production" in page
    assert "by hand" in page
    assert "Not in this report" not in page


def test_bytes_that_were_changed_are_not_shown(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    verdict = commit(store, tmp_path, "verdict", {"verdict.json": {"passed": False}}, {})
    file = tmp_path / "store" / verdict.ref.prefix / "a/payload/verdict.json"
    file.chmod(0o644)
    file.write_text(json.dumps({"passed": True}))
    with pytest.raises(CorruptArtifact):
        evidence_loader(store)(asdict(verdict.ref))


def test_an_artifact_that_was_removed_is_said_to_be_gone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(StoreError, match="no longer in the store"):
        evidence_loader(store)({"kind": "pretrain", "key": "1" * 64, "digest": "", "type": "model"})
