"""One bit, anywhere in a manifest: damage, never another fact. What was written before checksums is read as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from infra.artifacts import Manifest
from infra.checkpoints import CheckpointStore
from infra.checksum import CHECKSUM, OtherVersion, checksum_of, sealed, unsealed
from infra.errors import CorruptArtifact
from infra.keys import digest
from infra.manifest_file import parse_manifest
from infra.open_store import open_store
from infra.store import Store
from infra.transfer import DamagedFiles


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def made(store: Store, tmp_path: Path) -> Manifest:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_text("model")
    identity = {"kind": "evaluate", "version": 1, "params": {"seed": 0}, "inputs": [], "sources": None}
    return store.commit(
        kind="evaluate", type="scores", key=digest(identity), attempt="a", payload_dir=tmp_path / "out",
        records_dir=tmp_path / "out", identity=identity, metrics={"accuracy": 1.0}, timings={"run": 2.5},
        producer={"pipeline": "p", "stage": "scores", "commit": "c0ffee"}, inputs={},
    )  # fmt: skip


def stored(store: Store, made: Manifest) -> bytes:
    return store.read_bytes(f"{made.ref.prefix}/manifest.json")


def flips(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        for bit in range(8):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def old(made: Manifest) -> dict[str, Any]:
    """The manifest as it was written before there were checksums."""
    data = {name: value for name, value in made.to_json().items() if name not in (CHECKSUM, "warnings")}
    return {**data, "format": 1}


def test_no_flipped_bit_of_a_manifest_becomes_a_fact(store: Store, made: Manifest) -> None:
    data, damaged = stored(store, made), 0
    for flipped in flips(data):
        try:
            assert parse_manifest(flipped, made.kind, made.key) == made
        except CorruptArtifact:
            damaged += 1
    assert damaged >= 8 * len(data) - 8, "but for 1e5 and 1E5"


def test_the_error_says_what_is_in_order(store: Store, made: Manifest) -> None:
    path = f"{made.ref.prefix}/manifest.json"
    store.write_bytes(path, stored(store, made).replace(b'"accuracy": 1.0', b'"accuracy": 0.0'))
    with pytest.raises(CorruptArtifact, match="its list of files and its identity agree with their digests"):
        store.manifest(made.kind, made.key)


def test_manifests_from_before_checksums_are_read_under_their_keys(store: Store, made: Manifest) -> None:
    path, data = f"{made.ref.prefix}/manifest.json", old(made)
    store.write_json(path, data)
    found = store.manifest(made.kind, made.key)
    assert found is not None and found.format == 1 and found.to_json() == data
    assert (found.metrics, found.ref, found.warnings) == (made.metrics, made.ref, [])
    store.write_json(path, {**data, "identity": {**data["identity"], "version": 2}})
    with pytest.raises(CorruptArtifact, match="identity is not the one its key was made of"):
        store.manifest(made.kind, made.key)


def test_a_new_manifest_does_not_pass_for_an_old_one(made: Manifest) -> None:
    data = made.to_json()
    for missing in (CHECKSUM, "format"):
        less = {name: value for name, value in data.items() if name != missing}
        for changed in (less, {**less, f"{missing}?": data[missing]}, {**less, "format": 1}):
            with pytest.raises(CorruptArtifact):
                parse_manifest(json.dumps(changed).encode(), made.kind, made.key)


def test_a_whole_manifest_of_a_newer_version_is_not_called_damaged(made: Manifest) -> None:
    newer = {name: value for name, value in made.to_json().items() if name != CHECKSUM} | {"format": 3, "more": 1}
    newer[CHECKSUM] = checksum_of(newer)
    with pytest.raises(OtherVersion, match="format 3 is not 2"):
        parse_manifest(json.dumps(newer).encode(), made.kind, made.key)


def test_no_flipped_bit_of_a_checkpoint_manifest_leads_elsewhere(store: Store, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("weights")
    points = CheckpointStore(store, "k", "1")
    points.commit(7, {"w": tmp_path / "w"}, {"step": 7}, attempt="a")
    path = "checkpoints/k/1/step-000000007/manifest.json"
    data = store.read_bytes(path)
    for flipped in list(flips(data))[::5]:
        store.write_bytes(path, flipped)
        assert points.faults(7)[0].startswith("manifest.json")
    whole = {name: value for name, value in json.loads(data).items() if name != CHECKSUM}
    store.write_json(path, {**whole, "format": 1})
    assert points.load(7).state == {"step": 7}, "as it was written before checksums"
    store.write_json(path, {**whole, "format": 1, "stepp": 7})
    with pytest.raises(DamagedFiles):
        points.load(7)


def test_what_is_sealed_is_what_is_read() -> None:
    assert unsealed(json.loads(json.dumps(sealed({"of": (1, 2.0), "é": {"2": None}})))) == {
        "of": [1, 2.0],
        "é": {"2": None},
    }
    assert sealed(sealed({"a": 1})) == sealed({"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        sealed({"a": float("nan")})
    for wrong in ([], None, "x", {"format": 2}, {CHECKSUM: "0"}):
        with pytest.raises(ValueError, match=r"checksum|object"):
            unsealed(wrong)


def test_show_says_no_wrong_figure(store: Store, made: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    from infra import refs

    refs.advance(store, "p/scores/latest", made.ref)
    assert cli.main(["show", "p/scores/latest", "--store", store.url]) == 0
    assert "accuracy: 1.0" in capsys.readouterr().out
    path = f"{made.ref.prefix}/manifest.json"
    store.write_bytes(path, stored(store, made).replace(b'"accuracy": 1.0', b'"accuracy": 0.0'))
    assert cli.main(["show", "p/scores/latest", "--store", store.url]) == 3
    shown = capsys.readouterr()
    assert "0.0" not in shown.out and "the manifest is damaged: its checksum differs" in shown.err
