"""Checkpoints: the state of an unfinished stage, under the same protocol as artifacts.

    checkpoints/<kind>/<key>/step-000000120/<attempt>/files/...       what the ranks saved
    checkpoints/<kind>/<key>/step-000000120/<attempt>/state.json      what the loop must know besides
    checkpoints/<kind>/<key>/step-000000120/<attempt>.parts/1.json    names and digests of rank 1's files
    checkpoints/<kind>/<key>/step-000000120/manifest.json             create-only, written last: it is the commit

Each rank stores its own files; rank 0 waits for the others' part files and commits. `latest` returns the newest
checkpoint whose bytes verify; a damaged one is set aside under `quarantine/checkpoints/` and the one before is used.
Deleting removes the manifest first, so that what is half deleted does not count.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from infra.artifacts import FileEntry
from infra.cache import fetch_files, forget
from infra.checksum import sealed, unsealed
from infra.claims import Fence
from infra.errors import StoreError, StoreUnreachable
from infra.json_values import parse_json
from infra.objects import json_bytes
from infra.open_store import open_store
from infra.quarantine import move_aside
from infra.relative_path import safe_relative_path
from infra.store import Store
from infra.stored_bytes import faults
from infra.transfer import DamagedFiles, OnProgress, Progress, upload_files

log = logging.getLogger(__name__)
OLD_FIELDS = ("format", "step", "attempt", "files")
STATE = "state.json"
POLL_SECONDS = 0.2
PARTS_SECONDS = 120.0
"""How long rank 0 waits for the other ranks' files after its own are stored."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `path` holds the ranks' files, read only; `state` what was given to `commit`."""

    step: int
    path: Path
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one key. The fence, if there is one, is checked right before each commit."""

    def __init__(self, store: Store, kind: str, key: str, fence: Fence | None = None) -> None:
        self.store, self.kind, self.key, self.fence = store, kind, key, fence
        self._fetched: list[Path] = []
        self._place = f"checkpoints/{kind}/{key}"

    def to_json(self) -> dict[str, Any]:
        """What another process needs to open the same checkpoints with the same right to commit."""
        fence = self.fence.to_json() if self.fence else None
        return {"store": self.store.url, "kind": self.kind, "key": self.key, "fence": fence}

    @staticmethod
    def from_json(data: dict[str, Any]) -> CheckpointStore:
        """Opened again: no connection is shared with the process that wrote the JSON."""
        store = open_store(data["store"])
        fence = Fence.from_json(store, data["fence"]) if data["fence"] else None
        return CheckpointStore(store, data["kind"], data["key"], fence)

    def steps(self) -> list[int]:
        """Committed steps, oldest first. Reads no payload."""
        return [step for step in self._places() if self.store.exists(self._manifest(step))]

    def _places(self) -> list[int]:
        found = [int(n[5:]) for n in self.store.list(self._place) if n.startswith("step-") and n[5:].isdigit()]
        return sorted(found)

    def commit(
        self,
        step: int,
        files: Mapping[str, Path],
        state: dict[str, Any],
        *,
        attempt: str = "",
        rank: int = 0,
        ranks: int = 1,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Store this rank's `files`; rank 0 then commits them with the others' and `state` (plain JSON, no NaN).

        It becomes the checkpoint after `step` optimizer steps. Where that step is committed already, nothing is done: a
        resumed run passes the same steps with the same state. The ranks agree on `attempt`, a name nobody else uses.
        Raises LeaseLost if the work was taken over, StoreError if the store fails or a rank's part does not come.
        """
        if self.store.exists(self._manifest(step)):
            return
        prefix = f"{self._step(step)}/{attempt or uuid.uuid4().hex[:12]}"
        sized = [(name, path, path.stat().st_size) for name, path in sorted(files.items())]
        progress = Progress(sum(size for _, _, size in sized), on_progress)
        entries = [
            FileEntry(f"files/{entry.path}", entry.size, entry.sha256)
            for entry in upload_files(self.store, f"{prefix}/files", sized, progress)
        ]
        if rank:
            self.store.write_json(f"{prefix}.parts/{rank}.json", [entry.to_json() for entry in entries])
            return
        data = json_bytes(state)
        self.store.write_bytes(f"{prefix}/{STATE}", data)
        entries.append(FileEntry(STATE, len(data), hashlib.sha256(data).hexdigest()))
        for other in range(1, ranks):
            entries += self._part(prefix, other)
        attempt = prefix.rpartition("/")[2]
        manifest = sealed({"step": step, "attempt": attempt, "files": [entry.to_json() for entry in entries]})
        if self.fence is not None:
            self.fence.check()
        # Perhaps this attempt stands: a manifest given up in an outage can still land, and then its files are used. So
        # they go only if another attempt stands for certain.
        made = self.store.create(self._manifest(step), json_bytes(manifest))
        if not made and self._attempt(step) not in (None, attempt):
            self.store.delete_tree(prefix)
        if ranks > 1:
            self.store.delete_tree(f"{prefix}.parts")

    def _attempt(self, step: int) -> str | None:
        """The attempt that stands for a step; None where that is unknown."""
        try:
            return self._read(step)[0].rpartition("/")[2]
        except (FileNotFoundError, DamagedFiles):
            return None

    def _part(self, prefix: str, rank: int) -> list[FileEntry]:
        deadline = time.monotonic() + PARTS_SECONDS
        while (found := self.store.find_json(f"{prefix}.parts/{rank}.json")) is None:
            if time.monotonic() > deadline:
                raise StoreUnreachable(
                    f"rank {rank} did not store its part within {PARTS_SECONDS:.0f} s",
                    where=f"{self.store.url}/{prefix}",
                    hint="The log says why its upload failed; training goes on without this checkpoint.",
                )
            time.sleep(POLL_SECONDS)
        return _entries(found)

    def latest(self, *, on_progress: OnProgress | None = None) -> Checkpoint | None:
        """The newest checkpoint whose bytes verify, or None. A damaged one is set aside, with a warning in the log."""
        for step in reversed(self.steps()):
            try:
                return self.load(step, on_progress=on_progress)
            except FileNotFoundError:
                continue
            except DamagedFiles as error:
                place = move_aside(
                    self.store, self._manifest(step), partial(self._set_aside, step), partial(self._sound, step)
                )
                if place is not None:
                    log.warning("checkpoint at step %d is damaged (%s); set aside in %s", step, error.what, place)
                    continue
            with suppress(FileNotFoundError):  # another process set it aside
                return self.load(step, on_progress=on_progress)
        return None

    def load(self, step: int, *, on_progress: OnProgress | None = None) -> Checkpoint:
        """The checkpoint after `step` steps, verified. Raises FileNotFoundError, DamagedFiles, StoreError."""
        return self.store.again(lambda: self._load(step, on_progress), DamagedFiles, self.store.glances)

    def _load(self, step: int, on_progress: OnProgress | None) -> Checkpoint:
        prefix, entries = self._read(step)
        folder = fetch_files(self.store, prefix, entries, on_progress)
        self._fetched.append(folder)
        state = json.loads((folder / STATE).read_bytes())
        return Checkpoint(step, folder / "files", state)

    def _read(self, step: int) -> tuple[str, list[FileEntry]]:
        """Where the files of a step lie, and what they are. Raises FileNotFoundError, DamagedFiles, StoreError."""
        data = self.store.read_bytes(self._manifest(step))
        where = f"{self.store.url}/{self._step(step)}"
        try:
            manifest = unsealed(parse_json(data), OLD_FIELDS)
        except (ValueError, RecursionError) as error:
            raise DamagedFiles([f"manifest.json: {error}"], where) from error
        try:
            if manifest["step"] != step:
                raise ValueError(f"step {manifest['step']!r}")
            entries = _entries(manifest["files"])
            if STATE not in {entry.path for entry in entries}:
                raise ValueError(f"it names no {STATE}")
            return f"{self._step(step)}/{safe_relative_path(manifest['attempt'])}", entries
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, StoreError) as error:
            raise DamagedFiles([f"manifest.json: {error}"], where) from error

    def unreadable(self) -> dict[int, str]:
        """Committed steps whose manifest is damaged, and what is wrong with it. Reads no payload."""
        found = {}
        for step in self.steps():
            try:
                self._read(step)
            except DamagedFiles as error:
                found[step] = error.what
            except FileNotFoundError:
                continue
        return found

    def faults(self, step: int) -> list[str]:
        """What is wrong with a checkpoint in the store, a line for each file. Raises FileNotFoundError, StoreError."""
        try:
            prefix, entries = self._read(step)
        except DamagedFiles as error:
            return error.problems
        return list(faults(self.store, prefix, entries).values())

    def prune(self, keep: int, *, permanent_every: int = 0, anchor_every: int = 0) -> None:
        """Delete all but the newest `keep`, those at multiples of `permanent_every`, and the two newest anchors.

        What a failed save left before the newest goes too, or a disk that was full would stay so.
        """
        steps = self.steps()
        anchors = [step for step in steps if anchor_every and step % anchor_every == 0]
        kept = {*steps[-keep:], *anchors[-2:], *_multiples(steps, permanent_every)}
        unfinished = [step for step in self._places() if step not in steps and step < max(steps, default=0)]
        for step in steps:
            if step not in kept:
                self._delete(step)
        for step in unfinished:
            if not self.store.exists(self._manifest(step)):  # asked twice: one wrong answer must not cost a checkpoint
                self.store.delete_tree(self._step(step))

    def delete_after(self, step: int) -> None:
        """Delete every checkpoint later than `step`, newest first: training goes on from there along another way."""
        for later in reversed(self.steps()):
            if later > step:
                self._delete(later)

    def clear(self, *, permanent_every: int = 0) -> None:
        """Delete all but permanent checkpoints, unfinished ones and local copies included: the artifact is there."""
        steps = self.steps()
        kept = _multiples(steps, permanent_every)
        for step in steps:
            if step not in kept:
                self.store.delete(self._manifest(step))
        if kept:
            for name in self.store.list(self._place):
                if name not in {f"step-{step:09d}" for step in kept}:
                    self.store.delete_tree(f"{self._place}/{name}")
        else:
            self.store.delete_tree(self._place)
        for folder in self._fetched:
            forget(folder)

    def _sound(self, step: int) -> bool:
        return not self.faults(step)

    def _set_aside(self, step: int) -> str:
        return f"quarantine/{self._step(step)}"

    def _delete(self, step: int) -> None:
        self.store.delete(self._manifest(step))
        self.store.delete_tree(self._step(step))

    def _step(self, step: int) -> str:
        return f"{self._place}/step-{step:09d}"

    def _manifest(self, step: int) -> str:
        return f"{self._step(step)}/manifest.json"


def _multiples(steps: list[int], every: int) -> set[int]:
    return {step for step in steps if every and step % every == 0}


def _entries(listed: list[dict[str, Any]]) -> list[FileEntry]:
    return [FileEntry.from_json(entry) for entry in listed]
