"""How long a snapshot holds the training up, against a memory copy and against saving synchronously."""

from __future__ import annotations

import functools
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from tests.bench.arm import Arm
from tests.bench.pairs import of_median
from tests.bench.result import Figure, Measurement, Row, Settings
from tests.bench.workload import Workload

MB = 1e6


@functools.cache
def play(rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round. Both rows come from one run."""
    with (
        tempfile.TemporaryDirectory(prefix="forgeline-bench-") as folder,
        Arm("checkpoint_stall", Workload(batch=4, blocks=rounds), Path(folder, "arm")) as arm,
    ):
        arm.finish()
        found: dict[str, list[float]] = json.loads((arm.folder / "found.json").read_text(encoding="utf-8"))
        return found


def measure(against: str, settings: Settings) -> Measurement:
    found = play(settings.pairs)
    ratios = [ours / other for ours, other in zip(found["snapshot_seconds"], found[against], strict=True)]
    named = {
        "snapshot": "snapshot_seconds",
        "first snapshot": "first_seconds",
        "memory copy": "copy_seconds",
        "synchronous": "save_seconds",
        "of that serialising": "serialise_seconds",
    }
    return of_median(
        ratios,
        figures=[
            *(Figure(arm, float(np.median(found[name])) * 1e3, "ms") for arm, name in named.items()),
            Figure("state", found["bytes"][0] / MB, "MB"),
        ],
        details={"ratios": ratios, **{name: found[name] for name in named.values()}},
    )


ROWS = [
    Row(
        "checkpoint-stall-memcpy",
        "seconds the loop stands still for a snapshot (the second and later ones) over a copy of the same tensors into "
        "memory that was touched before, in the same process, taken in turn, a training step before each",
        1.3,
        "",
        partial(measure, "copy_seconds"),
        at_least=False,
    ),
    Row(
        "checkpoint-stall-synchronous",
        "the same snapshots over saving the same state in line to the same folder store: safetensors file, then commit",
        0.10,
        "",
        partial(measure, "save_seconds"),
        at_least=False,
    ),
]
