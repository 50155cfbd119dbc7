"""`make bench-training` and `make bench-data`: measure rows and write docs/benchmarks-*.md and .json.

    python -m tests.bench training|data [--pairs 7] [--steps 16] [ROW ...]

A row is an entry of the list `ROWS` of a file in `tests/bench/rows/` or `data_rows/`; living there is its registration.
An arm of training is a file in `tests/bench/arms/` whose `run(workload, gate, folder)` trains the workload and calls the
gate after every step; one of data a file in `data_arms/` (see `tests/bench/turns.py`). Runs with fewer pairs or steps
than the defaults are trials: they print the table and leave docs/ alone. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import machine, report
from tests.bench.child import ArmFailed
from tests.bench.result import PAIRS, Settings
from tests.bench.suites import SUITES

ROOT = Path(__file__).parents[2]
STEPS = 16


def main(words: list[str]) -> int:
    if not words or words[0] not in SUITES:
        sys.stderr.write(f"which benchmark? {', '.join(SUITES)}\n")
        return 2
    suite, words = SUITES[words[0]], words[1:]
    known = suite.rows()
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench {suite.name}")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(known)}; none: all")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps a block")
    given = parser.parse_args(words)
    unknown = [name for name in given.rows if name not in known]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(known)}")
    chosen = given.rows or list(known)
    command = f"make bench-{suite.name}" + (f" ROWS={shlex.quote(' '.join(given.rows))}" if given.rows else "")
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
        entries.append(report.entry(known[name], found, machine.environment(suite.packages), command))
        verdict = known[name].verdict(found)
        sys.stdout.write(f"{name}: {found.value:.4f} ({found.low:.4f} to {found.high:.4f}), bar {known[name].bar}: ")
        sys.stdout.write(
            f"{verdict} {found.incomparable} [others {found.busy:.0%}, {time.monotonic() - began:.0f} s]\n"
        )
        sys.stdout.flush()
        if not trial:
            # After every row, so that an interrupted run keeps what it has.
            kept = report.store(docs / f"{suite.page}.json", entries, list(known))
            (docs / f"{suite.page}.md").write_text(report.page(suite.head, kept), encoding="utf-8")
    if trial:
        sys.stdout.write("\n" + report.page(suite.head, entries))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
