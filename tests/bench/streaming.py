"""`make bench-streaming`: the memory in which a `saved` dataset that is larger than it goes through a `dataset` stage.

For images and for lists, 60 and 600 MB are written as `save_to_disk` writes them; a process of its own runs the stage on
one core and then reads every value of the training split once. Two peaks: `own` is memory that the process alone holds
and the system cannot take back, sampled every 10 ms; `resident` is the kernel's own peak of all that was in memory, of
which pages of mapped files are a part that it takes back when somebody needs room. The table in docs/data.md is made of
them. Ends with an error where ten times the rows take more than half as much again of their own memory.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.bench.machine import environment

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BEGIN, END = "<!-- made by `make bench-streaming` -->", "<!-- end -->"
SIZES = (60, 600)
KINDS = {"images": "image", "lists": "list<float32>"}
ITEMS = 8192
"""Numbers of a list; an image is of about as many bytes."""
ROOM = 1.5
"""Times the own memory of the small dataset that the large one may take."""


def save(folder: Path, kind: str, megabytes: int) -> int:
    """Write a dataset as `save_to_disk` does, in files of 20 MB at most, a row at a time. Returns its rows."""
    import datasets

    feature: Any = datasets.Image() if kind == "images" else datasets.List(datasets.Value("float32"))
    schema = datasets.Features({"value": feature}).arrow_schema
    random, each = np.random.default_rng(0), 600
    rows = megabytes * 1_000_000 // (4 * ITEMS)
    folder.mkdir()
    for begin in range(0, rows, each):
        with pa.ipc.new_stream(str(folder / f"data-{begin // each:05}-of-{-(-rows // each):05}.arrow"), schema) as file:
            for _ in range(begin, min(begin + each, rows)):
                file.write_table(pa.Table.from_pylist([{"value": _value(kind, random)}], schema=schema))
    return rows


def _value(kind: str, random: np.random.Generator) -> Any:
    if kind == "lists":
        return random.random(ITEMS, np.float32)
    out = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (128, ITEMS // 128 * 4 // 3, 3), np.uint8)).save(
        out, "PNG", compress_level=0
    )
    return {"bytes": out.getvalue(), "path": None}


def run(folder: Path, saved: Path) -> dict[str, float]:
    """In this process: the stage, then every value once. Returns seconds and both peaks in MB (10^6 bytes)."""
    from infra.process_memory import peak_mb
    from tasks.data.dataset.rows import open_split
    from tasks.stage import InputArtifact
    from tasks.stages import dataset
    from tests.stages import jobs

    params = dataset.Params.model_validate(
        {"sources": [{"saved": str(saved)}], "split": {"by": "row", "validation": 0.0, "test": 0.0}}
    )
    job = jobs.make_job(folder / "job", params, store=folder / "store", execution={"threads": 1})
    job.version = dataset.STAGE.version
    own, ended, begin = [_own_mb()], threading.Event(), time.perf_counter()

    def watch() -> None:
        while not ended.wait(0.01):
            own.append(_own_mb())

    watching = threading.Thread(target=watch)
    watching.start()
    dataset.run(job)
    jobs.collect(job)
    rows = open_split(InputArtifact("d", job.output, None), "train", ["value"])  # type: ignore[arg-type]
    for place in range(len(rows)):
        assert rows.value("value", place)
    ended.set()
    watching.join()
    return {"seconds": time.perf_counter() - begin, "own": max(own), "resident": peak_mb(), "rows": len(rows)}


def _own_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024 / 1e6


def measured(kind: str, megabytes: int) -> dict[str, float]:
    """`run` in a process of its own, on a dataset made for it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = save(Path(folder) / "saved", kind, megabytes)
        arguments = [sys.executable, "-m", "tests.bench.streaming", folder]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        assert found["rows"] == rows, "every row came through"
        return found


def main() -> int:
    lines = ["| column | dataset, MB | rows | seconds | own, MB | resident, MB |", "|-|-|-|-|-|-|"]
    grew = []
    for kind, type in KINDS.items():
        found = {size: measured(kind, size) for size in SIZES}
        lines += [
            f"| `{type}` | {size} | {of['rows']:,.0f} | {of['seconds']:.0f} | {of['own']:.0f} | {of['resident']:.0f} |"
            for size, of in found.items()
        ]
        if found[SIZES[1]]["own"] > ROOM * found[SIZES[0]]["own"]:
            grew.append(kind)
    about = ", ".join(f"{name} {value}" for name, value in environment(("datasets", "pyarrow")).items())
    table = "\n".join([BEGIN, "", *lines, "", f"Measured: {about}.", "", END])
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + table + rest.split(END)[1], encoding="utf-8")
    sys.stdout.write(table + "\n")
    if grew:
        sys.stderr.write(f"memory grows with the data: {', '.join(grew)}\n")
    return len(grew)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.stdout.write(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[1]) / "saved")) + "\n")
    else:
        raise SystemExit(main())
