"""Training state that any later attempt can load: on another machine, world size or ZeRO stage.

A checkpoint is two files and a small JSON, committed through the job's `CheckpointStore`:

    training.safetensors   weights/NAME, exp_avg/NAME, exp_avg_sq/NAME in fp32 and whole, buffers/NAME
    journal.json           the lines of the training's journals so far
    state                  {"format", "step", "total_steps", "tokens", "layout"}

Nothing else is needed to go on: the data order and dropout are functions of (seed, step), the learning rate of the
step. The loop pays for the copy into memory; hashing and upload run in one background thread, one checkpoint at a time.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file

from infra.errors import ForgelineError, LeaseLost, StageError

if TYPE_CHECKING:
    from infra.checkpoints import CheckpointStore

log = logging.getLogger(__name__)
FORMAT = 1
AUTO_SECONDS = 15.0


@dataclass
class Snapshot:
    """The state after `step` optimizer steps, in CPU memory and owned by nobody else."""

    step: int
    total_steps: int
    tokens: int
    tensors: dict[str, torch.Tensor]
    journals: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files into an empty `folder`; returns the small state that goes into the commit."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, str(folder / "training.safetensors"))
        (folder / "journal.json").write_text(json.dumps(self.journals), encoding="utf-8")
        return {
            "format": FORMAT,
            "step": self.step,
            "total_steps": self.total_steps,
            "tokens": self.tokens,
        }

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any]) -> Snapshot:
        """Read verified files back. Raises StageError if another version of Forgeline wrote them."""
        if state.get("format") != FORMAT:
            raise StageError(
                f"checkpoint format {state.get('format')!r} is not {FORMAT}",
                hint="It was written by another version of Forgeline; finish with that one, or clear the checkpoint.",
            )
        return cls(
            step=int(state["step"]),
            total_steps=int(state["total_steps"]),
            tokens=int(state["tokens"]),
            tensors=load_file(str(folder / "training.safetensors")),
            journals=json.loads((folder / "journal.json").read_text(encoding="utf-8")),
        )


class CheckpointWriter:
    """Rank 0's side of checkpointing: when one is due, and writing it beside the training."""

    def __init__(self, store: CheckpointStore, scratch: Path, every: int | Literal["auto"], keep: int) -> None:
        self.store, self.scratch, self.every, self.keep = store, scratch, every, keep
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._last_time = time.monotonic()
        self._last_step = -1

    def due(self, step: int, first_step: int) -> bool:
        """Whether the state before step `step` should be kept; False while an earlier one is still being written."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._raise_failure()
        if step <= max(first_step, self._last_step):
            return False
        if self.every == "auto":
            return time.monotonic() - self._last_time >= AUTO_SECONDS
        return step % self.every == 0

    def save(self, snapshot: Snapshot) -> None:
        """Write and commit in the background; a failure surfaces at the next `due` or `finish`."""
        self.finish()
        self._last_time, self._last_step = time.monotonic(), snapshot.step
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name=f"checkpoint-{snapshot.step}")
        self._thread.start()

    def finish(self) -> None:
        """Wait for the checkpoint under way. Raises what its writing raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_failure()

    def _write(self, snapshot: Snapshot) -> None:
        folder = self.scratch / f"checkpoint-{snapshot.step}"
        try:
            state = snapshot.write(folder)
            self.store.commit(snapshot.step, folder, state)
            self.store.prune(self.keep)
        except BaseException as failure:  # carried to the training thread, which decides
            self._failure = failure
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is None:
            return
        if isinstance(failure, ForgelineError) and failure.transient and not isinstance(failure, LeaseLost):
            # Training goes on without this checkpoint: it costs repeated work only if the job dies before the next.
            log.warning("checkpoint at step %d was not saved: %s", self._last_step, failure)
            return
        raise failure


def load_latest(store: CheckpointStore) -> Snapshot | None:
    """The newest committed state of this key, or None."""
    found = store.latest()
    return None if found is None else Snapshot.read(Path(found.path), found.state)
