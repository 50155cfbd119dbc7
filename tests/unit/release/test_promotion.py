"""promote: only the judged bytes, only after a pass; a ref moves once for each release and never undoes a roll-back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from pydantic import ValidationError

from flows import cli
from infra import refs
from infra.artifacts import ArtifactRef, FileEntry, Manifest, payload_digest
from infra.errors import CorruptArtifact, GateRefused, InputChanged, StageError
from infra.open_store import open_store
from infra.store import Store
from tasks.models.card import ModelCard, write_card
from tasks.stages import promote

FILE = FileEntry("model", 1, hashlib.sha256(b"m").hexdigest())
MODEL = ArtifactRef("quantize", "b" * 64, payload_digest([FILE]), "onnx")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With the model in it."""
    made = open_store(str(tmp_path / "store"))
    (tmp_path / "made").mkdir()
    (tmp_path / "made/model").write_bytes(b"m")
    manifest = made.commit(
        kind=MODEL.kind, type="onnx", key=MODEL.key, attempt="a", payload_dir=tmp_path / "made", identity={}
    )
    assert manifest.ref == MODEL
    return made


@pytest.fixture
def run(load: Callable[[str], Any], tmp_path: Path) -> Callable[..., Any]:
    jobs = load("stages/jobs.py")

    def go(*, passed: bool = True, judged: str = MODEL.digest, weights: Any = None, **said: Any) -> Any:
        verdict = {
            "passed": passed,
            "candidate": {"name": "int8", "digest": judged},
            "requirements": [{"passed": passed, "sentence": "f1 0.4 is required to be 0.5: refused."}],
            **said,
        }
        (tmp_path / "verdict.json").write_text(json.dumps(verdict))
        write_card(tmp_path, ModelCard({"name": "text_classification"}, 32, ["a", "b"], "onnx", "dynamic_int8"))
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), str(tmp_path / "model.onnx"))
        given = jobs.artifact(tmp_path, "onnx", stage="int8")
        manifest = replace(given.manifest, kind=MODEL.kind, key=MODEL.key, digest=MODEL.digest)
        inputs = {
            "model": replace(given, manifest=manifest),
            "gate": jobs.artifact(tmp_path, "verdict", stage="gate"),
        }
        params = promote.Params(model="int8", gate="gate", ref="code/production", weights=weights and "student")
        if weights is not None:
            inputs["weights"] = weights
        job = jobs.make_job(tmp_path / "job", params, inputs)
        promote.run(job)
        return job

    return go


def committed(store: Store, job: Any, key: str = "c" * 64) -> Manifest:
    return store.commit(
        kind="promote", type="release", key=key, attempt="one", payload_dir=job.output, identity={"key": key}
    )


def test_release_moves_the_ref_with_history(run: Callable[..., Any], store: Store) -> None:
    assert promote.STAGE.publish
    promote.STAGE.publish(store, committed(store, run()))
    entry = refs.get(store, "code/production")
    assert entry and entry.artifact == MODEL
    assert entry.note.startswith("release ")


def test_nobody_moves_a_ref_to_bytes_that_do_not_verify(run: Callable[..., Any], store: Store) -> None:
    """A release, a forced promotion, a roll-back."""
    release, path = committed(store, run()), f"{MODEL.prefix}/a/payload/model"
    store.write_bytes(path, b"n")
    assert promote.STAGE.publish
    with pytest.raises(CorruptArtifact, match="so code/production stays where it is") as caught:
        promote.STAGE.publish(store, release)
    assert caught.value.attempt == "a" and refs.get(store, "code/production") is None
    name = f"{MODEL.kind}/{MODEL.key[:8]}"
    force = ["promote", "code/production", name, "--force", "--reason", "x", "--store", store.url]
    assert cli.main(force) == 3 and refs.get(store, "code/production") is None
    store.write_bytes(path, b"m")
    assert cli.main(force) == 0
    refs.advance(store, "code/production", release.ref)
    store.write_bytes(path, b"n")
    assert cli.main(["rollback", "code/production", "--store", store.url]) == 3
    entry = refs.get(store, "code/production")
    assert entry is not None and entry.artifact == release.ref
    store.delete(path)
    assert cli.main(["rollback", "code/production", "--to", "1", "--store", store.url]) == 3
    store.write_bytes(path, b"m")
    assert cli.main(["rollback", "code/production", "--store", store.url]) == 0


def test_a_release_of_a_model_that_was_made_again_moves_nothing(run: Callable[..., Any], store: Store) -> None:
    release = committed(store, run())
    store.write_bytes(f"{MODEL.prefix}/a/payload/model", b"n")
    assert store.quarantine(MODEL.kind, MODEL.key, "a") is not None
    with pytest.raises(InputChanged, match="no longer in the store"):
        promote.STAGE.publish(store, release)  # type: ignore[misc]
    folder = store.local_folder("again")
    assert folder is not None
    folder.mkdir()
    (folder / "model").write_bytes(b"n")
    store.commit(kind=MODEL.kind, type="onnx", key=MODEL.key, attempt="b", payload_dir=folder, identity={})
    with pytest.raises(InputChanged, match="holds other content"):
        promote.STAGE.publish(store, release)  # type: ignore[misc]
    assert refs.get(store, "code/production") is None


def test_a_reused_release_does_not_undo_a_roll_back(run: Callable[..., Any], store: Store) -> None:
    manifest = committed(store, run())
    assert promote.STAGE.publish
    promote.STAGE.publish(store, manifest)
    older = ArtifactRef("quantize", "d" * 64, "e" * 64, "onnx")
    refs.advance(store, "code/production", older, note="roll-back")
    promote.STAGE.publish(store, manifest)
    entry = refs.get(store, "code/production")
    assert entry and entry.artifact == older
    assert len(refs.history(store, "code/production")) == 2


def test_a_refused_verdict_is_not_promoted(run: Callable[..., Any]) -> None:
    with pytest.raises(GateRefused, match=r"f1 0\.4 is required") as caught:
        run(passed=False)
    assert caught.value.exit_code == 4


def test_a_release_says_who_had_to_be_beaten_whoever_the_gate_compared_with(run: Callable[..., Any]) -> None:
    judged = {"ref": "code/production", "there": True, "entry": 3, "kind": "quantize", "key": "c" * 64, "told": ""}
    champion = {**judged, "digest": "9" * 64, "challengers": [MODEL.digest]}
    job = run(champion=champion, against={"name": "teacher", "digest": "8" * 64})
    release = json.loads((job.output / "release.json").read_text())
    assert release["champion"] == {"digest": "9" * 64, "challengers": [MODEL.digest]}
    assert (
        "- The champion is entry 3 of code/production (quantize cccccccccccc)."
        in (job.output / "README.md").read_text()
    )
    other = run(champion={**champion, "ref": "code/elsewhere"})
    assert "champion" not in json.loads((other.output / "release.json").read_text())


def test_weights_have_to_be_those_it_was_made_from(run: Callable[..., Any], load: Any, tmp_path: Path) -> None:
    weights = load("stages/jobs.py").artifact(tmp_path, "model", stage="student")
    with pytest.raises(StageError, match="'int8' was not made from 'student'"):
        run(weights=weights)


def test_a_verdict_on_other_bytes_is_not_promoted(run: Callable[..., Any]) -> None:
    with pytest.raises(GateRefused, match="not on this model"):
        run(judged="f" * 64)


def test_a_ref_is_a_name_and_not_a_path() -> None:
    for name in ("../up", "/abs", "a//b", "", "a b"):
        with pytest.raises(ValidationError):
            promote.Params(model="m", gate="g", ref=name)
