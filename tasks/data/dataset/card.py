"""The data card: what is in a dataset, where it comes from and what was done to it, for the report."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.data.dataset.column_figures import column_card
from tasks.data.dataset.hugging_face import opened_with
from tasks.data.dataset.layout import iterate_columns
from tasks.data.dataset.shown_media import LARGEST_PICTURE, PICTURES, playable, thumbnail
from tasks.data.reading.media import audio_size, image_size
from tasks.data.reading.typed_columns import mapped
from tasks.data.selection.splitting import SPLITS

if TYPE_CHECKING:
    from tasks.data.selection.selection import Selection
    from tasks.stage import Job

EXAMPLES = 3
LONGEST_SHOWN = 600


def data_card(
    job: Job[Any], selection: Selection, files: Sequence[Counter[str]], pieces: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Sources with their licence and number of files, lengths, columns, and the first examples of each split.

    files: for each source, how many files and bytes it has. pieces: what was counted where the rows were written.
    """
    first = job.params.sources[0]
    columns = first.columns or {}
    with_rows = [split for split in SPLITS if any(entry.path.startswith(f"{split}/") for entry in job.shared)]
    return {
        "sources": [
            {"source": _named(source), "licence": source.licence or None, "weight": source.weight, **count}
            for source, count in zip(job.params.sources, files, strict=True)
        ],
        "characters": _lengths(selection.characters) if first.has_text else {},
        "columns": column_card(columns, pieces),
        "opened_with": opened_with(with_rows, arrow=bool(mapped(columns))),
        "examples": {split: _examples(job, split, sorted(columns)) for split in SPLITS},
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


def _examples(job: Job[Any], split: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    entry = next((entry for entry in job.shared if entry.path.startswith(f"{split}/")), None)
    if entry is None:
        return []
    label = ["label"] if job.params.label is not None else []
    batch = next(iterate_columns([job.fetch_shared(entry.path)], ["id", "text", *label, *columns], EXAMPLES))
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    return [_example(row, columns, job.params.sources[0].columns or {}) for row in rows]


def _example(row: Mapping[str, Any], columns: Sequence[str], kinds: Mapping[str, str]) -> dict[str, Any]:
    text, pictures, sounds = row["text"][:LONGEST_SHOWN], list[str](), list[str]()
    for column in columns:
        value = row[column]
        if isinstance(value, bytes) and kinds[column] == "image":
            pictures += filter(None, [thumbnail(value)])
            value = "{width:.0f} x {height:.0f} pixels, ".format(**image_size(value)) + f"{len(value):,} bytes"
        elif isinstance(value, bytes) and kinds[column] == "audio":
            sounds += filter(None, [playable(value)])
            value = "{seconds:.2f} seconds at {rate:,.0f} Hz, ".format(**audio_size(value)) + f"{len(value):,} bytes"
        elif isinstance(value, bytes):
            kind = next((kind for magic, kind in PICTURES.items() if value.startswith(magic)), None)
            if kind is not None and len(value) <= LARGEST_PICTURE:
                pictures.append(f"data:{kind};base64,{base64.b64encode(value).decode()}")
            value = f"{len(value):,} bytes"
        text += f"\n{column}: {str(value)[:LONGEST_SHOWN]}"
    shown = {"id": row["id"], "text": text.removeprefix("\n"), **({"label": row["label"]} if "label" in row else {})}
    return {**shown, **({"pictures": pictures} if pictures else {}), **({"sounds": sounds} if sounds else {})}
