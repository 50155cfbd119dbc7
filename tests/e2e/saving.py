"""A training as the checkpoint store sees one: it saves, polls, and can prove that what is stored is whole."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infra.checkpoint_process import CheckpointProcess, Outcome
from infra.checkpoints import CheckpointStore
from infra.store import Store


class Training:
    """Step n saves files whose bytes follow from n, so a torn one shows."""

    def __init__(self, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checkpoints = CheckpointStore(store, "kind", "0" * 64)
        self.process = CheckpointProcess(self.checkpoints)
        self.folder, self.monkeypatch, self.reads = folder, monkeypatch, 0
        self.longest_poll = 0.0

    def save(self, step: int, size: int = 100_000) -> None:
        folder = self.folder / f"shards-{step}"
        folder.mkdir()
        for number in range(3):
            (folder / f"shard-{number}").write_bytes(content(step, number, size))
        files = {path.name: str(path) for path in folder.iterdir()}
        prune = {"keep": 9}
        state = {"step": step, "size": size}
        self.process.save(
            {"step": step, "attempt": f"a{step}", "files": files, "growing": {}, "state": state, "prune": prune}
        )

    def poll(self) -> Outcome | None:
        began = time.perf_counter()
        outcome = self.process.poll()
        self.longest_poll = max(self.longest_poll, time.perf_counter() - began)
        return outcome

    def outcome(self, seconds: float = 100.0) -> Outcome:
        deadline = time.monotonic() + seconds
        while (found := self.poll()) is None:
            assert time.monotonic() < deadline, "the save never ended"
            time.sleep(0.01)
        return found

    def stored(self, step: int) -> None:
        self.save(step)
        assert self.outcome().error is None

    def whole(self) -> int:
        """The newest step; every committed checkpoint is read from the store and compared."""
        self.reads += 1
        self.monkeypatch.setenv("FORGELINE_CACHE", str(self.folder / f"cache-{self.reads}"))
        for step in self.checkpoints.steps():
            found = self.checkpoints.load(step)
            expected = {f"shard-{n}": content(step, n, found.state["size"]) for n in range(3)}
            assert {path.name: path.read_bytes() for path in found.path.iterdir()} == expected, f"{step} is torn"
        newest = self.checkpoints.latest()
        return newest.step if newest else 0


def content(step: int, number: int, size: int) -> bytes:
    return f"{step}.{number} ".encode().ljust(10) * (size // 10)
