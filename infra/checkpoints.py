"""Checkpoints: the state of an unfinished stage, under the same protocol as artifacts.

    checkpoints/<kind>/<key>/step-000000120/<attempt>/files/...    what the engine saved
    checkpoints/<kind>/<key>/step-000000120/<attempt>/state.json   what the loop must know besides
    checkpoints/<kind>/<key>/step-000000120/manifest.json          create-only, written last: it is the commit

`latest` returns the newest one whose bytes verify; a damaged one is set aside under `quarantine/checkpoints/` and the
one before is used. Deleting removes the manifest first, so that what is half deleted does not count.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.artifacts import FileEntry, safe_relative_path
from infra.cache import fetch_files, forget
from infra.objects import json_bytes
from infra.store import Store
from infra.transfer import DamagedFiles, OnProgress, Progress, folder_files, upload

log = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `path` holds the engine's files, read only; `state` what was given to `commit`."""

    step: int
    path: Path
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one key. `claim_check` is called right before each commit and raises LeaseLost."""

    def __init__(self, store: Store, kind: str, key: str, claim_check: Callable[[], None] | None = None) -> None:
        self.store, self.kind, self.key = store, kind, key
        self._claim_check = claim_check
        self._fetched: list[Path] = []
        self._place = f"checkpoints/{kind}/{key}"

    def steps(self) -> list[int]:
        """Committed steps, oldest first. Reads no payload."""
        found = [int(n[5:]) for n in self.store.list(self._place) if n.startswith("step-") and n[5:].isdigit()]
        return [step for step in sorted(found) if self.store.exists(self._manifest(step))]

    def commit(self, step: int, folder: Path, state: dict[str, Any], *, on_progress: OnProgress | None = None) -> None:
        """Store the files of `folder` and `state` (plain JSON, no NaN) as the checkpoint after `step` optimizer steps.

        Does nothing if that step is committed already: a resumed run passes the same steps with the same state.
        Raises LeaseLost if the work was taken over, StoreError if the store fails.
        """
        if self.store.exists(self._manifest(step)):
            return
        attempt = uuid.uuid4().hex[:12]
        prefix = f"{self._step(step)}/{attempt}"
        progress = Progress(sum(file[2] for file in folder_files(folder)), on_progress)
        data = json_bytes(state)
        self.store.create(f"{prefix}/state.json", data)
        entries = [FileEntry("state.json", len(data), hashlib.sha256(data).hexdigest())]
        for entry in upload(self.store, f"{prefix}/files", folder, progress):
            entries.append(FileEntry(f"files/{entry.path}", entry.size, entry.sha256))
        manifest = {"format": FORMAT, "step": step, "attempt": attempt, "files": [asdict(entry) for entry in entries]}
        if self._claim_check is not None:
            self._claim_check()
        if not self.store.create(self._manifest(step), json_bytes(manifest)):
            self.store.delete_tree(prefix)

    def latest(self, *, on_progress: OnProgress | None = None) -> Checkpoint | None:
        """The newest checkpoint whose bytes verify, or None. A damaged one is set aside, with a warning in the log."""
        for step in reversed(self.steps()):
            try:
                return self._load(step, on_progress)
            except DamagedFiles as error:
                place = self._quarantine(step)
                log.warning("checkpoint at step %d is damaged (%s); set aside in %s", step, error.what, place)
            except FileNotFoundError:
                continue
        return None

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` checkpoints."""
        for step in self.steps()[:-keep]:
            self._delete(step)

    def clear(self) -> None:
        """Delete every checkpoint of the key, unfinished ones and local copies included: its artifact is committed."""
        for step in self.steps():
            self.store.delete(self._manifest(step))
        self.store.delete_tree(self._place)
        for folder in self._fetched:
            forget(folder)

    def _load(self, step: int, on_progress: OnProgress | None) -> Checkpoint:
        where = f"{self.store.url}/{self._step(step)}"
        try:
            manifest = json.loads(self.store.read_bytes(self._manifest(step)))
            if (manifest["format"], manifest["step"]) != (FORMAT, step):
                raise ValueError(f"format {manifest['format']!r}, step {manifest['step']!r}")
            entries = [
                FileEntry(safe_relative_path(e["path"]), int(e["size"]), str(e["sha256"])) for e in manifest["files"]
            ]
            prefix = f"{self._step(step)}/{safe_relative_path(manifest['attempt'])}"
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFiles([f"manifest.json: {error}"], where) from error
        folder = fetch_files(self.store, prefix, entries, on_progress)
        self._fetched.append(folder)
        state = json.loads((folder / "state.json").read_bytes())
        return Checkpoint(step, folder / "files", state)

    def _quarantine(self, step: int) -> str:
        data = self.store.read_bytes(self._manifest(step))
        number = 1
        while not self.store.create(
            path := f"quarantine/{self._step(step)}-{number}/manifest.json",
            data,
        ):
            number += 1
        self.store.delete(self._manifest(step))
        return path

    def _delete(self, step: int) -> None:
        self.store.delete(self._manifest(step))
        self.store.delete_tree(self._step(step))

    def _step(self, step: int) -> str:
        return f"{self._place}/step-{step:09d}"

    def _manifest(self, step: int) -> str:
        return f"{self._step(step)}/manifest.json"
