"""What a job process runs: job file in, artifact out.

Every rank fetches (and so verifies) the inputs and calls the stage's `run`; rank 0 commits what lies in the output
folder once all is done. How it went is left in `outcome-<rank>.json` beside the job file, progress in `events.jsonl`,
and in `phases.json` when each phase ended: started, fetched, ran, committed, in seconds since the job was submitted.
Exit codes: 0 done, 75 preempted, 3 (or the error's own) failed with an outcome, anything else a crash.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from infra.artifacts import ArtifactRef, Manifest
from infra.checkpoints import CheckpointStore
from infra.claims import Fence
from infra.errors import CorruptArtifact, ForgelineError, InputChanged, StageError, TransientError, error_from_json
from infra.execution import Execution
from infra.open_store import open_store
from infra.patience import Patience
from infra.sources_read import SourceFile
from infra.store import Store
from infra.tracking import JobTracker, Tracker
from tasks.stage import InputArtifact, Job, Stage, stages

METRICS_FILE, PHASES_FILE, EVENTS_FILE = "metrics.jsonl", "phases.json", "events.jsonl"
EVENT_INTERVAL = 0.25
# The server that forks jobs imports this module: what is imported here, no job has to import by itself.
stages()
PACKAGES = ("torch", "transformers", "deepspeed", "tokenizers", "pyarrow", "onnx", "onnxruntime", "safetensors")


AfterStep = Callable[[int], None]
"""Called on rank 0 with the number of steps done, after each."""


class Events:
    """Appends progress to events.jsonl, at most four lines a second; the live view reads the last one."""

    def __init__(self, path: Path, after_step: AfterStep | None = None) -> None:
        self.stream = path.open("a", encoding="utf-8")
        self.began = time.monotonic()
        self.last = 0.0
        self.after_step = after_step

    def progress(self, step: int, total: int, **values: float) -> None:
        now = time.monotonic()
        if now - self.last >= EVENT_INTERVAL or step >= total:
            self.last = now
            event = {"step": step, "total": total, "seconds": round(now - self.began, 3), **values}
            self.stream.write(json.dumps(event) + "\n")
            self.stream.flush()
        if self.after_step:
            self.after_step(step)


class Phases:
    """Writes `phases.json`. Only the moment it starts needs two machines' clocks to agree; readers bear it if not."""

    def __init__(self, path: Path | None, submitted: float) -> None:
        self.path, self.ended = path, dict[str, float]()
        self.offset = max(0.0, time.time() - submitted) - time.perf_counter()
        self.end("started")

    def end(self, phase: str) -> None:
        self.ended[phase] = round(self.offset + time.perf_counter(), 3)
        if self.path is not None:
            write_whole(self.path, self.ended)

    def timings(self, resumed_at: int) -> dict[str, float]:
        """For the manifest: seconds of this job alone, and the step at which a training run went on, if it did."""
        pairs = {"fetch": ("started", "fetched"), "run": ("fetched", "ran")}
        lengths = {name: round(self.ended[end] - self.ended[start], 3) for name, (start, end) in pairs.items()}
        return {**lengths, "resumed_at": float(resumed_at)} if resumed_at else lengths


def write_whole(path: Path, data: dict[str, Any]) -> None:
    """JSON that a reader sees whole or not at all."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(data), encoding="utf-8")
    partial.replace(path)


class Stop:
    """Remembers a first SIGTERM for stages that can save their state; others, or a second one, end at once."""

    def __init__(self, patient: bool) -> None:
        self.patient, self.requested = patient, False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: types.FrameType | None) -> None:
        if self.requested or not self.patient:
            os._exit(128 + signum)
        self.requested = True

    def __call__(self) -> bool:
        return self.requested


def main(folder: Path, after_step: AfterStep | None = None) -> int:
    """Run the job described by `folder/job.json` as the rank given by the environment; returns the exit code."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    spec = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    outcome: dict[str, Any]
    crash: ForgelineError
    try:
        manifest = _run(folder, spec, rank, world_size, after_step)
        outcome, code = {"status": "ok", "artifact": asdict(manifest.ref) if manifest else None}, 0
    except ForgelineError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        outcome, code = {"status": "failed", "error": error.to_json()}, error.exit_code
    except MemoryError:
        traceback.print_exc()
        hint = "Lower the batch size, or run it on a larger machine."
        crash = StageError("out of memory", where=f"stage {spec['name']}", hint=hint)
        outcome, code = {"status": "failed", "error": crash.to_json()}, crash.exit_code
    except Exception as failure:
        traceback.print_exc()
        what = f"{type(failure).__name__}: {failure}"
        # A node that lost its partner did nothing wrong; with the partner back, another attempt works.
        lost_partner = world_size > 1 and any(name in what for name in ("gloo", "NCCL", "DistNetworkError"))
        kind: type[ForgelineError] = TransientError if lost_partner else StageError
        crash = kind(what, where=f"stage {spec['name']}", hint=f"The traceback is in {folder / 'log.txt'}.")
        outcome, code = {"status": "failed", "error": crash.to_json()}, crash.exit_code
    write_whole(folder / f"outcome-{rank}.json", outcome)
    return code


def read_outcome(folder: Path, ranks: int) -> Manifest | ArtifactRef | ForgelineError | None:
    """What the job left: the artifact's reference, the error that came first, or None if no rank left a word."""
    found = []
    for rank in range(ranks):
        path = folder / f"outcome-{rank}.json"
        if path.exists():
            found.append((path.stat().st_mtime_ns, rank, json.loads(path.read_text(encoding="utf-8"))))
    failed = sorted(item for item in found if item[2]["status"] == "failed")
    if failed:
        return error_from_json(failed[0][2]["error"])
    first = next((item[2] for item in found if item[1] == 0), None)
    return ArtifactRef(**first["artifact"]) if first and first["artifact"] else None


def _run(
    folder: Path, spec: dict[str, Any], rank: int, world_size: int, after_step: AfterStep | None
) -> Manifest | None:
    stage: Stage[Any] = stages()[spec["kind"]]
    phases = Phases(folder / PHASES_FILE if rank == 0 else None, spec["submitted"])
    stop = Stop(patient=stage.distributed)
    store = open_store(spec["store"], patience=Patience())
    fence = Fence.from_json(store, spec["claim"])
    events = Events(folder / EVENTS_FILE if rank == 0 else Path(os.devnull), after_step)
    source = store if spec["inputs_store"] == spec["store"] else open_store(spec["inputs_store"], patience=Patience())
    inputs, entries = _fetch(source, spec["inputs"], lazy=stage.lazy)
    phases.end("fetched")
    work = folder / f"work-{rank}"
    shutil.rmtree(work, ignore_errors=True)
    for name in ("payload", "records", "scratch"):
        (work / name).mkdir(parents=True)
    tracker: Tracker = JobTracker(folder / METRICS_FILE if rank == 0 else None)
    checkpoints = CheckpointStore(store, spec["kind"], spec["key"], fence)
    resumed_at = max(checkpoints.steps(), default=0) if stage.distributed and rank == 0 else 0
    job: Job[Any] = Job(
        name=spec["name"],
        params=stage.params.model_validate(spec["params"]),
        inputs=inputs,
        output=work / "payload",
        records=work / "records",
        scratch=work / "scratch",
        execution=Execution.model_validate(spec["execution"]),
        progress=events.progress,
        tracker=tracker,
        checkpoints=checkpoints,
        stop_requested=stop,
        rank=rank,
        world_size=world_size,
        micro=spec.get("micro", 0),
        version=stage.version,
        previous=_previous(source, spec.get("previous")),
        keyed=[SourceFile(*file) for file in spec["sources"]] if spec.get("sources") is not None else None,
    )
    try:
        metrics = {name: float(value) for name, value in stage.run(job).items()}
        tracker.summary(metrics)
    finally:
        tracker.close()
    if rank != 0:
        return None
    phases.end("ran")
    assert job.read is not None or not job.keyed, f"a {stage.kind} does not say which files it read"
    manifest = store.commit(
        kind=spec["kind"],
        type=stage.makes,
        key=spec["key"],
        attempt=spec["attempt"],
        payload_dir=job.output,
        records_dir=job.records,
        shared=job.shared,
        identity=spec["identity"],
        inputs=entries,
        producer={**spec["producer"], "versions": _versions(), "execution": spec["execution"], "ranks": world_size},
        metrics=metrics,
        timings=phases.timings(resumed_at),
        warnings=job.warnings,
        fence=fence.check,
        on_progress=lambda done, total: events.progress(done, total, uploading=1.0),
    )
    phases.end("committed")
    if stage.distributed:
        checkpoints.clear(permanent_every=job.execution.checkpoint.permanent_every or 0)
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def _previous(store: Store, named: list[str] | None) -> Manifest | None:
    try:
        return store.manifest(*named) if named else None
    except CorruptArtifact as error:
        sys.stderr.write(f"what this stage made last cannot be read, so nothing is compared with it: {error}\n")
        return None


def _fetch(
    store: Store, named: dict[str, list[dict[str, Any]]], *, lazy: bool
) -> tuple[dict[str, list[InputArtifact]], dict[str, list[dict[str, Any]]]]:
    fetched: dict[str, list[InputArtifact]] = {}
    for name, items in named.items():
        for item in items:
            manifest = store.manifest(item["kind"], item["key"])
            if manifest is None or manifest.digest != item["digest"]:
                raise _changed(item, manifest)
            path = Path(os.devnull) if lazy else store.fetch(manifest)
            artifact = InputArtifact(item["stage"], path, manifest, item["split"])
            fetched.setdefault(name, []).append(artifact)
    return fetched, named


def _changed(item: dict[str, Any], manifest: Manifest | None) -> InputChanged:
    """An input is not what the stage's key was made from. What stands there may be in order, and stays."""
    where = f"artifacts/{item['kind']}/{item['key']}"
    if manifest is None:
        what = f"the input {item['stage']!r} is no longer in the store: it was set aside or collected meanwhile"
        return InputChanged(what, where=where, hint="Run the pipeline again: it is made again.")
    asked, found = item["digest"][:12], manifest.digest[:12]
    return InputChanged(
        f"the input {item['stage']!r} holds other content ({found}) than was asked for ({asked})",
        where=where,
        hint="It was made again meanwhile, and stays as it is. Run the pipeline again: it goes on from what is there.",
    )


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("forgeline", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
