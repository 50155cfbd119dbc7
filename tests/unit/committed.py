"""Artifacts committed by hand, as a worker would; tiny real runs without Prefect or torch; and stores that grow old."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.artifacts import Manifest
from infra.census import Keep
from infra.collector import collect
from infra.keys import digest
from infra.store import Store
from infra.store_file import FileStore
from infra.tracking import TrackingSettings

NOW = Keep(grace=0, runs=0, history=1)
DAY = 86400.0


def commit(
    store: Store,
    stage: str,
    inputs: Mapping[str, Manifest | Sequence[Manifest]] | None = None,
    *,
    kind: str = "dataset",
    params: Mapping[str, Any] | None = None,
    sources: Mapping[str, str] | None = None,
    content: str = "",
    shared: Mapping[str, str] | None = None,
    producer: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Manifest:
    """An artifact of `stage` of pipeline `p`. sources: path and sha256 of its source files; shared: name and text."""
    given = {name: [item] if isinstance(item, Manifest) else list(item) for name, item in (inputs or {}).items()}
    whole = identity or {
        "kind": kind,
        "of": stage,
        "version": 1,
        "params": dict(params or {}),
        "inputs": [[name, item.digest] for name, items in given.items() for item in items],
        "sources": dict(sources) if sources else None,
    }
    with tempfile.TemporaryDirectory() as folder:
        payload, records = Path(folder, "payload"), Path(folder, "records")
        for place in (payload, records):
            place.mkdir()
        if not shared or content:
            (payload / "file.txt").write_text(content or f"{stage} {digest(whole)}")
        if sources is not None:
            (records / "sources.json").write_text(json.dumps([[path, sha] for path, sha in sources.items()]))
        entries = []
        for name, text in (shared or {}).items():
            Path(folder, name).write_text(text)
            entries.append(store.share(Path(folder, name), name))
        return store.commit(
            kind=kind,
            type=kind,
            key=digest(whole),
            attempt=digest([stage, whole])[:12],
            payload_dir=payload,
            records_dir=records,
            shared=entries,
            identity=whole,
            inputs={
                name: [{**asdict(item.ref), "stage": item.producer.get("stage", ""), "split": None} for item in items]
                for name, items in given.items()
            },
            producer={"pipeline": "p", "stage": stage, "run": "r1", **(producer or {})} if producer != {} else {},
            timings={"fetch": 0.5, "run": 2.0},
        )


def run(file: Path, store: Store, folder: Path, name: str = "r1") -> dict[str, Manifest]:
    """Every stage of a pipeline file, one after the other, in job processes; returns what each has now.

    What a run of Prefect does besides is left out; damage is set aside and made again in at most three rounds.
    """
    from flows.run import REPAIR_ROUNDS
    from infra.errors import CorruptArtifact
    from infra.launch.local import LocalLauncher
    from infra.launch.slots import Slots
    from infra.wandb_replay import WandbReplay
    from tasks.pipeline.load import load_pipeline
    from tasks.run.execute import RunContext, execute_stage

    pipeline = load_pipeline(file, [], store.url)
    tracking = WandbReplay(TrackingSettings(mode="disabled"), project="p", group=name, folder=folder)
    launcher = LocalLauncher(folder, preload=())
    context = RunContext(
        name, pipeline.name, store, launcher, Slots(2), folder, {"commit": "c0ffee"}, lambda *a, **k: None, tracking
    )
    try:
        for last in (*[False] * REPAIR_ROUNDS, True):
            made: dict[str, Manifest] = {}
            try:
                for node in pipeline.stages.values():
                    made[node.name] = execute_stage(
                        node, {stage: manifest.ref for stage, manifest in made.items()}, context
                    ).manifest
                return made
            except CorruptArtifact as error:
                if last:
                    raise
                store.quarantine(error.kind, error.key, error.attempt or None)
        raise AssertionError("unreachable")
    finally:
        launcher.close()


def age(store: FileStore, days: float) -> None:
    """Make everything that many days older, but for the heartbeats of who is at work."""
    for path in store.root.rglob("*"):
        if path.is_file() and not path.is_relative_to(store.root / "claims"):
            at = path.stat().st_mtime - days * DAY
            os.utime(path, (at, at))


def stands(store: Store, manifest: Manifest) -> bool:
    """Whether the artifact is there with every byte."""
    found = store.manifest(manifest.kind, manifest.key)
    return found is not None and store.fetch(found).is_dir() and (store.fetch_records(found) or Path("/")).is_dir()


def until_clean(store: FileStore, keep: Keep = NOW) -> None:
    for _ in range(2):
        age(store, 0.01)
        collect(store, keep)
