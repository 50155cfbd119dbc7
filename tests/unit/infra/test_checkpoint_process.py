"""The process that stores checkpoints, as the training sees it where that process hangs: bounded, and never waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.checkpoint_process import CheckpointProcess, Outcome
from infra.checkpoints import CheckpointStore
from infra.errors import TransientError
from infra.open_store import open_store


@pytest.fixture
def process(tmp_path: Path) -> Iterator[CheckpointProcess]:
    made = CheckpointProcess(CheckpointStore(open_store(str(tmp_path / "store")), "kind", "0" * 64))
    yield made
    made.close()


def request(folder: Path, step: int, state: dict[str, Any] | None = None) -> dict[str, Any]:
    file = folder / f"weights-{step}"
    file.write_bytes(bytes([step]) * 1000)
    given = {"files": {"weights": str(file)}, "growing": {}, "state": state or {}, "prune": {"keep": 9}}
    return {"step": step, "attempt": f"a{step}", **given}


def outcome(process: CheckpointProcess) -> Outcome:
    while (found := process.poll(timeout=1.0)) is None:
        continue
    return found


def test_a_process_that_was_stopped_costs_its_save_and_no_more(process: CheckpointProcess, tmp_path: Path) -> None:
    """Also where the request is larger than a pipe: the step that saves does not wait for it to be read."""
    process.save(request(tmp_path, 1))
    assert outcome(process).error is None
    (child,) = psutil.Process().children()
    child.suspend()
    process.patience = 1.0
    began = time.monotonic()
    process.save(request(tmp_path, 2, {"shapes": {f"layer.{i}.weight": [1024, 1024] for i in range(20_000)}}))
    assert process.poll() is None and time.monotonic() - began < 1.0
    error = outcome(process).error
    assert isinstance(error, TransientError) and error.what.endswith("did not get on for 1 s")
    assert not child.is_running() and not process.busy

    process.patience = 600.0
    process.save(request(tmp_path, 3, {"shapes": {f"layer.{i}.weight": [1024, 1024] for i in range(20_000)}}))
    assert outcome(process).error is None
    store = CheckpointStore(open_store(str(tmp_path / "store")), "kind", "0" * 64)
    assert store.steps() == [1, 3] and (store.load(3).path / "weights").read_bytes() == bytes([3]) * 1000
