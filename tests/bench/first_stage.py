"""`make bench-start`: how long a run takes to its first stage line, and to its end.

python -m tests.bench.first_stage [--repeats 5]

Three light stages over a text file and a training of three steps, on a home that was never used; then the same with one
number of the training changed, so that three stages are reused: with a temporary Prefect server, with `forgeline up`, and
with `forgeline up` and its standby process, taking turns. Medians go to docs/benchmarks-start.md. On a machine that does
nothing else: about three minutes a repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from infra.standby.server import READY
from tests.bench import machine

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/benchmarks-start.md"
PIPELINE = """name: start
stages:
  texts: {{dataset: {{sources: [{{files: "texts.jsonl", format: jsonl}}], split: {{by: row, validation: 0.2}}}}}}
  words: {{tokenizer: {{data: texts, vocab_size: 300}}}}
  tokens: {{pack: {{data: texts, tokenizer: words, context: 32}}}}
  base:
    pretrain:
      data: tokens
      objective: causal_lm
      model: {{type: llama, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 128}}
      max_steps: 3
      global_batch_size: 8
      learning_rate: {rate}
"""
LINE = re.compile(r"\] (texts|words|tokens|base) \(\w+\): (running|reused)")
STEPS = re.compile(r"\] base \(pretrain\): running")
HEAD = """# How soon a run begins

Made by `make bench-start`: `forgeline run` as a command, from its start. Three light stages over 200 short texts and a
training of three steps. "One number changed" is the same file with another learning rate, so that three of four stages
are reused. Medians of {repeats} runs of each kind, taking turns, in seconds.

| | first stage line | training begins | whole command |
|-|-|-|-|
"""
KINDS = {
    "fresh home, temporary server": (),
    "one number changed, temporary server": (),
    "one number changed, `forgeline up --no-standby`": ("--no-standby",),
    "one number changed, `forgeline up`": (),
}


class Place:
    """A folder with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rate = folder, 1
        rows = "".join(f'{{"text": "text number {i} of some words"}}\n' for i in range(200))
        (folder / "texts.jsonl").write_text(rows, encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FORGELINE_"))}
        homes = {
            "FORGELINE_HOME": str(folder / "home"),
            "FORGELINE_CACHE": str(folder / "cache"),
            "FORGELINE_STORE": str(folder / "store"),
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
        }
        self.environment = kept | homes

    def forgeline(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def up(self, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.forgeline("up", "--port", str(port), *options)

    def standby_memory(self) -> float:
        """MB that only the standby holds, once it is ready."""
        ready = self.folder / "home/prefect" / READY
        while not ready.exists():
            time.sleep(0.1)
        return psutil.Process(int(json.loads(ready.read_text(encoding="utf-8"))["pid"])).memory_full_info().uss / 1e6

    def measure(self) -> tuple[float, float, float]:
        """Seconds to the first line of a stage, to the start of the training, and to the end, with a new number."""
        self.rate += 1
        (self.folder / "p.yaml").write_text(PIPELINE.format(rate=self.rate / 1e4), encoding="utf-8")
        began, first, steps = time.monotonic(), 0.0, 0.0
        with subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", "p.yaml", "--no-report"],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as run:
            assert run.stderr is not None
            said = []
            for line in run.stderr:
                said.append(line)
                now = time.monotonic() - began
                first = first or (now if LINE.search(line) else 0.0)
                steps = steps or (now if STEPS.search(line) else 0.0)
        if run.returncode or not steps:
            raise SystemExit(f"the run ended with {run.returncode}:\n{''.join(said)}")
        return first, steps, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    memory = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder))
            for kind, options in KINDS.items():
                if "up" in kind:
                    place.up(*options)
                try:
                    if "up" in kind and not options:
                        memory.append(place.standby_memory())
                    found[kind].append(place.measure())
                finally:
                    if "up" in kind:
                        place.forgeline("down")
    page = HEAD.format(repeats=repeats)
    for kind, times in found.items():
        columns = zip(*times, strict=True)
        cells = (f"{statistics.median(one):.1f} ({min(one):.1f} to {max(one):.1f})" for one in map(list, columns))
        page += f"| {kind} | {' | '.join(cells)} |\n"
    page += f"\nThe standby process holds {statistics.median(memory):.0f} MB for itself.\n"
    where = machine.environment(("torch", "deepspeed", "transformers", "prefect"))
    page += f"\n{', '.join(f'{name} {value}' for name, value in where.items())}.\n"
    PAGE.write_text(page, encoding="utf-8")
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
