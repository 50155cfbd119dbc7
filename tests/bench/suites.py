"""The benchmarks there are: which rows, which page, and how the page begins."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path

from tests.bench.pairs import LOSS_TOLERANCE
from tests.bench.result import Row

TRAINING = f"""# Speed of training, measured

Made by `make bench-training`; nothing here is typed by hand. Arms are processes of their own on the same threads, with
the same weights, data, order, AdamW and clipping, in fp32. They take turns in blocks of steps, and a ratio is the median
over the pairs of blocks. Forgeline runs with its journal, metrics file, progress events and a checkpoint in every block,
whose writing is on its clock. Bare loops use torch's fused AdamW too. Losses of every step must agree within
{LOSS_TOLERANCE:g}, or the row is "not comparable". "Within noise": the interval holds the bar.
"""
DATA = """# Speed of data preparation, measured

Made by `make bench-data`; nothing here is typed by hand. Arms are processes of their own, on the same cores and files,
which have imported what they need before the clock starts. They take turns, and a ratio is the median over the pairs of
turns. What comes out must be the same, or the row is "not comparable". The texts are the Python sources of installed
packages: what is alike among them is left out, and copies are planted. "Within noise": the interval holds the bar.
"""
PACKAGES = ("datatrove", "datasets", "tokenizers", "gigatoken", "rensa", "pyarrow")


@dataclass(frozen=True)
class Suite:
    """`make bench-<name>` measures the rows in the files of `tests/bench/<folder>/` and writes `docs/<page>.md`."""

    name: str
    folder: str
    head: str
    packages: tuple[str, ...]
    first: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        return f"benchmarks-{self.name}"

    def rows(self) -> dict[str, Row]:
        """Every row, by name. A file with a list `ROWS` is all it takes to be one."""
        files = {module.name for module in pkgutil.iter_modules([str(Path(__file__).with_name(self.folder))])}
        order = [*self.first, *sorted(files - {*self.first})]
        found = [row for name in order for row in importlib.import_module(f"tests.bench.{self.folder}.{name}").ROWS]
        return {row.name: row for row in found}


SUITES = {
    "training": Suite(
        "training", "rows", TRAINING, ("torch", "deepspeed", "transformers", "accelerate"), first=("throughput",)
    ),
    "data": Suite("data", "data_rows", DATA, PACKAGES, first=("tokenizing", "preparation")),
}
