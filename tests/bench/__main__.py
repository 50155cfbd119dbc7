"""`make bench-training`: measure rows and write docs/benchmarks-training.md and .json.

    python -m tests.bench [--pairs 7] [--steps 16] [ROW ...]

A row is a file in `tests/bench/rows/` with a list `ROWS` of `Row`; living there is its registration. An arm is a file in
`tests/bench/arms/` whose `run(workload, gate, folder)` trains the workload and calls the gate after every step. Runs with
fewer pairs or steps than the defaults are trials: they print the table and leave docs/ alone. Measure on a machine that
does nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import shlex
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import machine, report
from tests.bench.arm import ArmFailed
from tests.bench.result import PAIRS, Row, Settings

ROOT = Path(__file__).parents[2]
STEPS = 16


def rows() -> dict[str, Row]:
    """Every row, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).with_name("rows"))]))
    order = ["throughput", *(name for name in names if name != "throughput")]
    found = [row for name in order for row in importlib.import_module(f"tests.bench.rows.{name}").ROWS]
    return {row.name: row for row in found}


def main(words: list[str]) -> int:
    known = rows()
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Speed of training against bare loops.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(known)}; none: all")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps a block")
    given = parser.parse_args(words)
    unknown = [name for name in given.rows if name not in known]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(known)}")
    chosen = given.rows or list(known)
    command = "make bench-training" + (f" ROWS={shlex.quote(' '.join(given.rows))}" if given.rows else "")
    trial = given.pairs < PAIRS or given.steps < STEPS

    entries, failed = [], 0
    docs = ROOT / "docs"
    for name in chosen:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="forgeline-bench-") as folder:
            try:
                found = known[name].measure(Settings(Path(folder), given.pairs, given.steps))
            except ArmFailed as error:
                sys.stderr.write(f"{name}: {error}\n")
                failed += 1
                continue
        entries.append(report.entry(known[name], found, machine.environment(), command))
        verdict = known[name].verdict(found)
        sys.stdout.write(f"{name}: {found.value:.4f} ({found.low:.4f} to {found.high:.4f}), bar {known[name].bar}: ")
        sys.stdout.write(
            f"{verdict} {found.incomparable} [others {found.busy:.0%}, {time.monotonic() - began:.0f} s]\n"
        )
        sys.stdout.flush()
        if not trial:
            # After every row, so that an interrupted run keeps what it has.
            kept = report.store(docs / "benchmarks-training.json", entries, list(known))
            (docs / "benchmarks-training.md").write_text(report.page(kept), encoding="utf-8")
    if trial:
        sys.stdout.write("\n" + report.page(entries))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
