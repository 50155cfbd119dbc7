"""Work that is done once for each shard and kept in the store by what went into it: nobody does it twice.

    kind = PartKind("prepared", "tasks.data.parts.prepare:prepare_shard")
    specs = [PartSpec({"shard": [...], "steps": {...}}, {"files": [...]}, size=123), ...]
    parts = make_parts(kind, specs, job)     # a manifest for each

A part is an artifact of its own, without a ref, whose files are shared by content. The function that makes one gets its
arguments, a folder to write to and the store: it can run in this process, in others beside it, or on other machines
(`tasks/data/parts/batches.py`). A killed job leaves the parts it had; the next one makes those that are missing.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import tempfile
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from infra.artifacts import Manifest
from infra.errors import InputChanged, TransientError
from infra.open_store import open_store
from infra.patience import Patience
from infra.store import Store
from tasks.stage import PartKind, PartSpec

ARTIFACT = "artifact:"
"""A location inside a part or artifact of the store: `artifact:KIND/KEY/PATH`."""
LOOKUPS = 8
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of processes beside each other: they are the parallelism, and each on all threads would be slower."""
KILLED = "a process that prepares data was killed"
KILLED_HINT = "Out of memory, or killed from outside; the parts that are done stay. Fewer workers need less."


@dataclass
class Made:
    """The parts in the order of their specs, and how many were found done."""

    parts: list[Manifest]
    reused: int


def make_parts(
    kind: PartKind,
    specs: Sequence[PartSpec],
    store: Store,
    *,
    workers: int,
    scratch: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Made:
    """The parts of all specs, made where they are missing. `progress`: (bytes worked on, bytes in all)."""
    found = existing(kind, specs, store)
    missing = [spec for spec, part in zip(specs, found, strict=True) if part is None]
    new = _make(kind, missing, store, workers, scratch, progress)
    made = {spec.key(kind): part for spec, part in zip(missing, new, strict=True)}
    parts = [part or made[spec.key(kind)] for spec, part in zip(specs, found, strict=True)]
    return Made(parts, len(specs) - len(missing))


def make_part(kind: PartKind, spec: PartSpec, store: Store, scratch: Path) -> Manifest:
    """Make one part and commit it; whoever was first wins, with the same bytes."""
    key, attempt = spec.key(kind), uuid.uuid4().hex[:12]
    module, _, name = kind.function.partition(":")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        payload = Path(folder, "payload")
        payload.mkdir()
        metrics = getattr(importlib.import_module(module), name)(spec.arguments, payload, store)
        shared = [store.share(file, file.name) for file in sorted(payload.iterdir())]
        return store.commit(
            kind=kind.kind,
            type=kind.kind,
            key=key,
            attempt=attempt,
            payload_dir=Path(folder, "nothing"),
            shared=shared,
            identity=spec.identity,
            metrics=metrics,
        )


def fetch_parts(parts: Sequence[Manifest], only: Sequence[str], store: Store) -> list[Path]:
    """A verified local folder with some files of each part: hashed, or fetched from afar, side by side."""
    with ThreadPoolExecutor(LOOKUPS, thread_name_prefix="parts") as pool:
        return list(pool.map(lambda part: store.fetch(part, only=only), parts))


def artifact_location(manifest: Manifest, path: str) -> str:
    """Location of a file of a stored artifact, for the arguments of a part."""
    return f"{ARTIFACT}{manifest.kind}/{manifest.key}/{path}"


def artifact_file(location: str, store: Store) -> Path:
    """The verified local file at such a location."""
    path = location.removeprefix(ARTIFACT).split("/", 2)[2]
    return store.fetch(_of_location(location, store), only=[path]) / path


def artifact_folder(location: str, store: Store) -> Path:
    """The verified local folder of the artifact at `artifact:KIND/KEY/`, with all its files."""
    return store.fetch(_of_location(location, store))


def _of_location(location: str, store: Store) -> Manifest:
    kind, key, _ = location.removeprefix(ARTIFACT).split("/", 2)
    return input_manifest(kind, key, store)


def input_manifest(kind: str, key: str, store: Store) -> Manifest:
    """The manifest of an artifact that has to be there. Raises InputChanged where it is gone."""
    manifest = store.manifest(kind, key)
    if manifest is None:
        what = "an input artifact is no longer in the store: it was set aside or collected meanwhile"
        raise InputChanged(what, where=f"artifacts/{kind}/{key}", hint="Run the pipeline again: it is made again.")
    return manifest


def existing(kind: PartKind, specs: Sequence[PartSpec], store: Store) -> list[Manifest | None]:
    """The committed parts. One whose files were removed as damaged is dropped, to be made again."""

    def look(spec: PartSpec) -> Manifest | None:
        manifest = store.manifest(kind.kind, spec.key(kind))
        if manifest is not None and not all(store.exists(e.shared_path) for e in manifest.payload if e.shared):
            if store.quarantine(kind.kind, manifest.key, manifest.attempt) is not None:
                return None
            return store.manifest(kind.kind, manifest.key)
        return manifest

    with ThreadPoolExecutor(LOOKUPS, thread_name_prefix="parts") as pool:
        return list(pool.map(look, specs))


def _make(
    kind: PartKind,
    specs: list[PartSpec],
    store: Store,
    workers: int,
    scratch: Path,
    progress: Callable[[int, int], None],
) -> list[Manifest]:
    total, done = sum(spec.size for spec in specs), 0
    processes = min(workers, len(specs), max(1, total // kind.worth_a_process))
    if processes <= 1:
        found = []
        for spec in specs:
            found.append(make_part(kind, spec, store, scratch))
            done += spec.size
            progress(done, total)
        return found
    # A fork would copy the locks of this process's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_single_threaded)
    try:
        # The largest first: a large one begun last would be waited for alone.
        futures: dict[Future[Manifest], int] = {}
        for i in sorted(range(len(specs)), key=lambda i: -specs[i].size):
            futures[pool.submit(_make_apart, kind, specs[i], store.url, scratch)] = i
        results: dict[int, Manifest] = {}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            done += specs[futures[future]].size
            progress(done, total)
        return [results[i] for i in range(len(specs))]
    except BrokenProcessPool as error:
        raise TransientError(KILLED, hint=KILLED_HINT) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _make_apart(kind: PartKind, spec: PartSpec, store_url: str, scratch: Path) -> Manifest:
    return make_part(kind, spec, opened(store_url), scratch)


@cache
def opened(store_url: str) -> Store:
    """The store, opened once for all parts that this process makes."""
    return open_store(store_url, patience=Patience())


def _single_threaded() -> None:
    os.environ.update(SINGLE_THREADED)
