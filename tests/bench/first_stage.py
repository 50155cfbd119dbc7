"""`make bench-start`: how long a run takes to its first stage line, and to its end; with a temporary Prefect server.

python -m tests.bench.first_stage [--repeats 5]

Three light stages over a text file, on a home and a Prefect home that were never used, then again on the same with one
stage changed, so that two are reused. Printed are medians; nothing is written. On a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIPELINE = """name: start
stages:
  texts: {{dataset: {{sources: [{{files: "texts.jsonl", format: jsonl}}], split: {{validation: 0.2}}}}}}
  words: {{tokenizer: {{data: texts, vocab_size: 300}}}}
  tokens: {{pack: {{data: texts, tokenizer: words, context: {context}}}}}
"""
LINE = re.compile(r"\] (texts|words|tokens) \(\w+\): (running|reused)")


def measure(folder: Path, context: int) -> tuple[float, float]:
    """Seconds to the first line of a stage that runs or is reused, and to the end of the run."""
    (folder / "p.yaml").write_text(PIPELINE.format(context=context), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FORGELINE_"))}
    homes = {
        "FORGELINE_HOME": str(folder / "home"),
        "FORGELINE_CACHE": str(folder / "cache"),
        "FORGELINE_STORE": str(folder / "store"),
        "PREFECT_HOME": str(folder / "prefect"),
        "PYTHONPATH": str(ROOT),
    }
    began, first = time.monotonic(), None
    with subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", str(folder / "p.yaml"), "--no-report"],
        env=kept | homes,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stderr is not None
        said = []
        for line in run.stderr:
            said.append(line)
            if first is None and LINE.search(line):
                first = time.monotonic() - began
    if run.returncode or first is None:
        raise SystemExit(f"the run ended with {run.returncode}:\n{''.join(said)}")
    return first, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    found: dict[str, list[tuple[float, float]]] = {"fresh home": [], "two of three reused": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            rows = "".join(f'{{"text": "text number {i} of some words"}}\n' for i in range(200))
            (folder / "texts.jsonl").write_text(rows, encoding="utf-8")
            for name, context in (("fresh home", 32), ("two of three reused", 64)):
                found[name].append(measure(folder, context))
    for name, times in found.items():
        first, whole = (statistics.median(values) for values in zip(*times, strict=True))
        spread = " ".join(f"{one:.1f}" for one, _ in times)
        sys.stdout.write(f"{name}: first stage line after {first:.1f} s ({spread}), the whole run {whole:.1f} s\n")


if __name__ == "__main__":
    main()
