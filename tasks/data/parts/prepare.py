"""One shard prepared: read, cleaned, filtered, masked, hashed. Needs nothing but the shard and the store, so it runs
anywhere; what it leaves depends on nothing else.

    rows.parquet          id, text, group, label of every row that is left, and the columns that pass through
    sketch.arrow          for each row: text [2] (hash), point (of its group), order (hash of its id), label and length,
                          bands of its signature where near-duplicates are looked for, overlap with evaluation sets
    signatures.arrow      its signature; read only where a band is met again
    counts.json           each step's account, labels, what was set aside, which columns its rows have
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from infra.errors import SourcesChanged
from infra.keys import file_digest
from infra.source_files import is_url, local, local_copy, settled
from infra.store import Store
from tasks.data.dataset.layout import row_batch, row_schema
from tasks.data.hashing import long_hash, short_hash
from tasks.data.parts.parts import ARTIFACT, artifact_file
from tasks.data.reading.column_names import ColumnNames
from tasks.data.reading.rows import Columns, Rejected, Row, read_rows
from tasks.data.reading.source_digests import unreadable
from tasks.data.reading.sources import WHOLE_FILE, Source
from tasks.data.reading.typed_columns import size_of
from tasks.data.selection.decontamination import Overlap
from tasks.data.selection.dedup import NearDuplicates, bands, signatures
from tasks.data.selection.sketch import SketchWriter
from tasks.data.selection.splitting import point_of
from tasks.data.steps.steps import Bad, Labels, RowSteps, row_steps, walk_through
from tasks.stage import identity_params

BATCH = 1000
BATCH_BYTES = 32 << 20
"""Of the columns that pass through; texts are shorter."""
NAMED = 1000
"""Rows set aside that a shard names; all are counted."""
ROWS, SKETCH, SIGNATURES, COUNTS = "rows.parquet", "sketch.arrow", "signatures.arrow", "counts.json"
VERSION = 3
"""Raised when the same shard would be prepared differently."""


class Preparation(BaseModel):
    """How a shard is prepared: what of a dataset's params concerns rows one by one, and its source's reading."""

    source: Source
    steps: RowSteps
    near: NearDuplicates | None = None
    label_from: str | None = None
    label_map: dict[str, str] | None = None
    label_keep: list[str] | None = None
    group_by: str = "file"
    seed: int = 0
    ngram: int | None = None

    def identity(self) -> dict[str, Any]:
        """What of it changes a shard's rows: not where the source lies, nor what only weighs or describes it."""
        source = identity_params(self.source)
        kept = {name: value for name, value in source.items() if name not in ("weight", "licence")}
        rest = self.model_dump(mode="json", exclude={"source"})
        # Other shards keep their keys; those of images were prepared by their headers alone.
        decoded = {"decoded": True} if "image" in (self.source.columns or {}).values() else {}
        return {"source": {**kept, "stage": self.source.stage is not None}, **rest, **decoded}


def prepare_shard(arguments: dict[str, Any], folder: Path, store: Store) -> dict[str, float]:
    """Write the shard's files to `folder`. Raises StageError on a damaged file, SourcesChanged on
    one that changed meanwhile.

    arguments: `preparation`; `files` (location, path, sha256 of each); `known_runs`: locations of the runs of words
    that must stay unseen (`tasks/data/parts/runs.py`).
    """
    how = Preparation.model_validate(arguments["preparation"])
    overlap = _overlap(arguments["known_runs"], how, store)
    work = _Work(how, folder)
    writer = _Writer(folder, how, overlap)
    for file in arguments["files"]:
        writer.add(work.rows(file, store))
    writer.close()
    counts = {
        "files": len(arguments["files"]),
        "steps": [account.to_json() for account, _ in work.steps],
        "rows": writer.rows,
        "labels": writer.labels,
        "labels_met": dict(work.labels.met) if work.labels else {},
        "columns": work.names.to_json(),
        "units": work.units,
        "rejected": [asdict(item) for item in work.rejected],
        "rejected_count": work.rejected_count,
        "warnings": work.warnings,
    }
    (folder / COUNTS).write_text(json.dumps(counts, sort_keys=True) + "\n", encoding="utf-8")
    return {"rows": float(writer.rows)}


class _Work:
    """Reads files and takes their rows through the steps."""

    def __init__(self, how: Preparation, scratch: Path) -> None:
        self.how, self.scratch = how, scratch
        self.labels = Labels(how.label_map, how.label_keep) if how.label_from is not None else None
        self.steps = row_steps(how.steps, self.labels, has_text=how.source.has_text)
        column = (how.label_from or "").partition(":")[2] or None
        group = how.group_by.partition(":")[2] or None
        self.columns = Columns(
            label=column,
            group=group,
            label_from_package=how.label_from == "package",
            label_from_folder=how.label_from == "folder",
        )
        self.names = ColumnNames()
        self.rejected: list[Rejected] = []
        self.rejected_count = self.units = 0
        self.warnings: list[str] = []

    def rows(self, file: dict[str, Any], store: Store) -> Iterator[Row]:
        path, source = file["path"], self.how.source
        if source.format in WHOLE_FILE:
            self.units += 1
        with _unchanged(file, self.scratch, store) as place:
            for row in read_rows(
                place, path, source, self.columns, self.warnings.append, self.names, file.get("metadata")
            ):
                if source.format not in WHOLE_FILE:
                    self.units += 1
                if isinstance(row, Rejected):
                    self._reject(row)
                    continue
                if self.how.group_by == "row":
                    row = replace(row, group=row.id)
                done = walk_through(row, self.steps)
                if isinstance(done, Bad):
                    self._reject(Rejected(path, None, f"{row.id}: {done.reason}"))
                elif done is not None:
                    yield done

    def _reject(self, item: Rejected) -> None:
        self.rejected_count += 1
        if len(self.rejected) < NAMED:
            self.rejected.append(item)


class _Writer:
    """Collects a shard's rows and what is known of each, a batch at a time."""

    def __init__(self, folder: Path, how: Preparation, overlap: Overlap | None) -> None:
        import pyarrow.parquet as pq

        self.how, self.overlap = how, overlap
        self.rows, self.labels, self._batch = 0, list[str](), list[Row]()
        self._codes: dict[str | None, int] = {}
        self._sketch, self._signatures = SketchWriter(folder / SKETCH), SketchWriter(folder / SIGNATURES)
        self._schema, self._size = row_schema(how.source.columns), 0
        self._table = pq.ParquetWriter(folder / ROWS, self._schema, compression="zstd", compression_level=1)

    def add(self, rows: Iterator[Row]) -> None:
        for row in rows:
            self._batch.append(row)
            self._size += size_of(row.values)
            if len(self._batch) == BATCH or self._size >= BATCH_BYTES:
                self._flush()

    def close(self) -> None:
        self._flush()
        self._table.close()
        self._sketch.close()
        self._signatures.close()

    def _flush(self) -> None:
        rows, texts = self._batch, [row.text for row in self._batch]
        if rows or not self.rows:
            self._sketch.write(self._known(rows, texts))
        if rows:
            self._table.write_batch(row_batch(rows, self._schema))
        self.rows += len(rows)
        self._batch, self._size = [], 0

    def _known(self, rows: list[Row], texts: list[str]) -> dict[str, np.ndarray[Any, Any]]:
        hashes = [long_hash(row.text, row.values) for row in rows]
        known: dict[str, np.ndarray[Any, Any]] = {
            "text": np.array(hashes, np.uint64).reshape(-1, 2),
            "point": np.array([point_of(row.group, self.how.seed) for row in rows], np.uint64),
            "order": np.array([short_hash(row.id) for row in rows], np.uint64),
            "label": np.array([self._code(row.label) for row in rows], np.int32),
            "characters": np.array([len(text) for text in texts], np.int32),
        }
        if self.how.near is not None:
            found = signatures(texts, self.how.near)
            self._signatures.write({"signature": found})
            known["bands"] = bands(found, self.how.near)
        if self.overlap is not None:
            known["overlap"] = self.overlap.shares(texts)
        return known

    def _code(self, label: str | None) -> int:
        if label not in self._codes:
            self._codes[label] = len(self._codes)
            self.labels.append(label or "")
        return self._codes[label]


def _overlap(locations: list[str], how: Preparation, store: Store) -> Overlap | None:
    if how.ngram is None:
        return None
    from safetensors.numpy import load_file

    found = [load_file(artifact_file(location, store))["runs"] for location in locations]
    return Overlap(np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64), how.ngram)


@contextlib.contextmanager
def _unchanged(file: dict[str, str], scratch: Path, store: Store) -> Iterator[Path]:
    """The file on a local disk, of which it is known that it is, all the time, what its digest says.

    A change shows in the stamp of a file, unless it comes right after another one, within its clock's resolution: what
    was changed a moment ago is read from a copy.
    """
    location, sha = file["location"], file["sha256"]
    if location.startswith(ARTIFACT):
        yield artifact_file(location, store)  # verified when fetched
        return
    try:
        before = None if is_url(location) else local(Path(location))
        with local_copy(location, scratch, always=before is not None and not settled(before)) as place:
            if file_digest(place) != sha:
                raise _changed(file)
            try:
                yield place
            finally:  # what a half-written file did to its reader is not the data's fault
                if before is not None and str(place) == location and local(place) != before:
                    raise _changed(file)
    except FileNotFoundError as error:
        raise _changed(file) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise unreadable(file["path"], error) from error


def _changed(file: dict[str, str]) -> SourcesChanged:
    return SourcesChanged("the file changed while it was read", where=f"sources: {file['path']}")
