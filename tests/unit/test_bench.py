"""What the benchmark makes of the figures its arms give; the arms themselves run in `make bench-training` only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    """Output of `code` with the benchmark importable; `tests` is no package for pytest."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_losses_that_differ_forbid_a_comparison() -> None:
    code = (
        "from tests.bench.pairs import difference\n"
        "print(difference([3.0, 2.0], [3.0, 2.0001]))\n"
        "print(difference([3.0, 2.0], [3.0, 2.001]))\n"
        "print(difference([3.0, float('nan')], [3.0, float('nan')]))\n"
        "print(difference([3.0], [3.0, 2.0]))\n"
        "print(difference([], []))\n"
    )
    assert run(code).splitlines() == [
        "",
        "losses differ from step 2: 2.00000 against 2.00100",
        "losses differ from step 2: nan against nan",
        "1 steps against 2",
        "0 steps against 0",
    ]


def test_a_row_is_met_by_its_value_and_says_when_the_interval_holds_the_bar() -> None:
    code = (
        "from tests.bench.result import Measurement, Row\n"
        "def found(value, low, high, why=''):\n"
        "    return Measurement(value, low, high, 'min-max', [], why)\n"
        "more, less = Row('a', '', 0.98, '', None), Row('b', '', 64.0, 'MB', None, at_least=False)\n"
        "print(more.verdict(found(1.0, 0.99, 1.01)), more.verdict(found(0.99, 0.9, 1.1)), sep='; ')\n"
        "print(more.verdict(found(0.97, 0.9, 1.1)), more.verdict(found(0.97, 0.96, 0.975)), sep='; ')\n"
        "print(less.verdict(found(60, 50, 62)), less.verdict(found(70, 66, 72)), sep='; ')\n"
        "print(more.verdict(found(2.0, 1.9, 2.1, 'losses differ')))\n"
        "print(more.verdict(Measurement(2.0, 1.9, 2.1, 'min-max', [], busy=0.5)))\n"
    )
    assert run(code).splitlines() == [
        "yes; yes, within noise",
        "no, within noise; no",
        "yes; no",
        "not comparable",
        "machine busy",
    ]


def test_an_interval_of_the_median_is_the_same_again_and_holds_the_median() -> None:
    code = (
        "from tests.bench.pairs import median_interval\n"
        "values = [0.9, 0.95, 1.0, 1.02, 1.05, 1.1, 2.0]\n"
        "print(median_interval(values) == median_interval(values), *median_interval(values), *median_interval([1.0] * 7))\n"
    )
    same, low, high, *exact = run(code).split()
    assert same == "True"
    assert 0.9 <= float(low) < 1.02 < float(high) < 2.0
    assert exact == ["1.0", "1.0"]


def test_a_row_measured_again_replaces_itself_and_leaves_the_others(tmp_path: Path) -> None:
    code = (
        "import pathlib\n"
        "from tests.bench import report\n"
        "from tests.bench.result import Figure, Measurement, Row\n"
        "where = {'date': '2020-01-01', 'commit': 'abc', 'cpu': 'x', 'cores': '2', 'torch': '1'}\n"
        "def entry(name, value):\n"
        "    row = Row(name, 'what it is', 0.5, '', None)\n"
        "    return report.entry(row, Measurement(value, value, value, 'min-max', [Figure('arm', 1234.5, 't/s')]), where, 'make')\n"
        "path = pathlib.Path(PATH)\n"
        "report.store(path, [entry('second', 0.7), entry('first', 0.4)], ['first', 'second'])\n"
        "kept = report.store(path, [entry('first', 0.6)], ['first', 'second'])\n"
        "print(report.page('# Head', kept))\n"
    )
    page = run(f"PATH = {str(tmp_path / 'found.json')!r}\n{code}")
    rows = [line for line in page.splitlines() if line.startswith(("| first", "| second"))]
    assert rows == [
        "| first | >= 0.500 | 0.600 | 0.600 to 0.600 (min-max) | arm 1,234 t/s | yes | 2020-01-01 |",
        "| second | >= 0.500 | 0.700 | 0.700 to 0.700 (min-max) | arm 1,234 t/s | yes | 2020-01-01 |",
    ]


def test_every_row_file_is_found_and_an_unknown_row_is_refused() -> None:
    names, of_data = run(
        "from tests.bench.suites import SUITES\nfor s in SUITES.values(): print(*s.rows())"
    ).splitlines()
    assert set(of_data.split()) >= {"tokenize-map", "preparation", "packing-share", "growth", "no-op", "memory"}
    names = names.split()
    files = {path.stem for path in (ROOT / "tests/bench/rows").glob("*.py")}
    assert {"throughput-torch", "throughput-deepspeed-3", "throughput-trainer-0", "mfu", "seek", "memory"} <= set(names)
    assert all(any(name.startswith(stem.replace("_", "-")) for name in names) for stem in files)
    command = [sys.executable, "-m", "tests.bench", "training", "nonsense"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "no row 'nonsense'; there are throughput-torch" in refused.stderr


def test_goodput_charges_every_second_of_a_killed_training_to_one_cause() -> None:
    """Two lives of one-second steps: killed half a second into step 5, back two seconds later at step 3."""
    code = (
        "from tests.bench.goodput import Life, Mark\n"
        "from tests.bench.rows.goodput import BUCKETS, difference, optimum, spent, total, wall\n"
        "def mark(step, at, when='quiet', loss=1.0):\n"
        "    return Mark(step, loss, at, when, 1, 7)\n"
        "first = Life(0.0, 7.75, 8.0, [mark(1, 4.0), mark(2, 5.0), mark(3, 6.25, 'mixed'), mark(4, 7.25)])\n"
        "later = [mark(step, at) for step, at in ((3, 11.0), (4, 12.0), (5, 13.0), (6, 14.0), (7, 15.5))]\n"
        "lives = [first, Life(8.0, None, 16.0, later)]\n"
        "of = total(spent(lives))\n"
        "print({name: of[name] for name in BUCKETS}, of['steps'], of['killed'])\n"
        "print(wall(of) + of['first_start'], wall(of), optimum(of))\n"
        "torn = Life(8.0, None, 16.0, [mark(3, 11.0, loss=1.1), *later[1:]])\n"
        "print(difference(*lives) or 'same', difference(first, torn), difference(lives[1]), sep='; ')\n"
        "print(difference(first, torn, steps=2) or 'same so far')\n"
    )
    charged, sums, losses, begin = run(code).splitlines()
    assert charged == (
        "{'first_start': 3.0, 'useful': 7.0, 'saving': 0.25, 'redone': 2.5, 'detect': 0.25, 'restart': 2.0, "
        "'other': 0.5} 7.0 1.0"
    )
    # d = 0.25 s over two snapshots, D + R = 2.25 s, M = 12.5 s: t = sqrt(2 d M), G* = 1 - d/t - (t/2 + D + R)/M.
    d, between = 0.125, 12.5
    best = (2 * d * between) ** 0.5
    assert sums == f"15.5 12.5 {(1 - d / best - (best / 2 + 2.25) / between, best)}"
    assert losses == "same; losses of step 3: [1.0, 1.1]; losses of step 1: []"
    assert begin == "same so far"


def test_steps_beside_an_upload_are_held_against_the_quiet_ones_around_it() -> None:
    """The first checkpoint, which allocates, and steps that an upload met in part are left out."""
    code = (
        "from tests.bench.arms.upload_slowdown import cycles\n"
        "marks = ['quiet', 'storing', 'mixed', 'quiet', 'storing', 'storing', 'mixed', 'quiet', 'quiet', 'storing']\n"
        "print(cycles([float(n) for n in range(10)], marks))\n"
    )
    assert run(code).splitlines() == ["[([4.0, 5.0], [3.0, 7.0, 8.0])]"]


def test_a_table_of_objectives_hides_neither_a_failure_nor_a_model_that_is_no_better_than_counting() -> None:
    code = """
from tests.bench.objectives import below, best, page, row
def models(**spans):
    return {name: {"value": (a + b) / 2, "low": a, "high": b, "size_mb": 4.0} for name, (a, b) in spans.items()}
spans = dict(teacher=(0.6, 0.8), student=(0.5, 0.7), onnx=(0.51, 0.7), int8=(0.1, 0.3))
entry = dict(
    cell="spam/bert", metric="f1_macro", greater_is_better=True, n=1197, baselines={"majority": 0.4, "length": 0.5},
    models=models(**spans), seconds=dict(base=70.0, teacher=8.0, student=4.0), difference=None,
    verdicts={"gate": {"passed": False, "said": ["int8 is 0.5 worse."]}}, environment={"date": "2026-01-01"},
)
lower = entry | dict(greater_is_better=False, baselines={"unigram": 0.8, "bigram": 0.6})
failed = dict(cell="search/gpt2", failed="stages.base: no", environment={"date": "2026-01-01"})
print(best(entry), below(entry))
print(best(lower), below(lower))
print(row(entry))
print(row(failed))
text = page([entry, failed])
print("- `spam/bert`: student, int8." in text, "- `spam/bert`: int8 is 0.5 worse." in text, "weights made" in text)
print("- `spam/llama`: not run yet." in text, "- `spam/bert`: not run yet." in text)
"""
    best, lower, row, failed, said, absent = run(code).splitlines()
    assert best == "('length', 0.5) ['student', 'int8']"
    assert lower == "('bigram', 0.6) ['teacher', 'student', 'onnx']"
    assert (
        "| spam | bert | real | f1_macro | 1,197 | length 0.500 | **0.700 [0.600, 0.800]** | 0.600 [0.500, 0.700] |"
        in row
    )
    assert row.endswith("| 0.200 [0.100, 0.300] | 4.0 → 4.0 | refused | 70 + 8 + 4 |")
    assert "| search | gpt2 | failed: stages.base: no |" in failed and failed.count("|") == row.count("|")
    assert (said, absent) == ("True True False", "True False")
