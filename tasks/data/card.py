"""The data card: what is in a dataset, where it comes from and what was done to it, for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.data.columns import iterate_columns
from tasks.data.splitting import SPLITS

if TYPE_CHECKING:
    from tasks.data.selection import Selection
    from tasks.stage import Job

EXAMPLES = 3
LONGEST_SHOWN = 600


def data_card(job: Job[Any], selection: Selection, files: Sequence[Counter[str]]) -> dict[str, Any]:
    """Sources with their licence and number of files, lengths, and the first examples of each split.

    files: for each source, how many files and bytes it has.
    """
    return {
        "sources": [
            {"source": _named(source), "licence": source.licence or None, "weight": source.weight, **count}
            for source, count in zip(job.params.sources, files, strict=True)
        ],
        "characters": _lengths(selection.characters),
        "examples": {split: _examples(job, split) for split in SPLITS},
    }


def _named(source: Any) -> str:
    return str(getattr(source, source.field))


def _lengths(characters: dict[str, Any]) -> dict[str, Any]:
    """A histogram of each split's lengths in powers of two: {split: [[from, to, rows], ...]}."""
    found = {}
    for split, lengths in characters.items():
        bins = np.bincount(np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64))
        found[split] = [[int(2 ** (n - 1)) + 1 if n else 0, int(2**n), int(c)] for n, c in enumerate(bins) if c]
    return found


def _examples(job: Job[Any], split: str) -> list[dict[str, str]]:
    entry = next((entry for entry in job.shared if entry.path.startswith(f"{split}/")), None)
    if entry is None:
        return []
    batch = next(iterate_columns([job.fetch_shared(entry.path)], ["id", "text"], EXAMPLES))
    return [{"id": i, "text": text[:LONGEST_SHOWN]} for i, text in zip(batch["id"], batch["text"], strict=True)]
