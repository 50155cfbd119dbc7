"""metadata.csv and metadata.jsonl beside images and audio: further columns of each file, as in Hugging Face's
`imagefolder` and `audiofolder`.

    photos/metadata.csv       file_name,caption
    photos/cat/1.png          cat/1.png,asleep

`file_name` is relative to the folder of the metadata file. Such a file is read where the source's `files` match it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from infra.errors import SourcesChanged, StageError
from infra.source_files import local_copy
from tasks.data.reading.found_files import FoundFile
from tasks.data.reading.suffixes import METADATA
from tasks.data.reading.typed_columns import MEDIA

NAME = "file_name"


def with_metadata(files: Sequence[FoundFile]) -> list[FoundFile]:
    """The files without those that hold metadata, each with its record where it has one.

    Raises StageError on metadata that cannot be read, or that is of files that are not there.
    """
    holds = [file for file in files if file.source.format in MEDIA and PurePosixPath(file.path).name in METADATA]
    if not holds:
        return list(files)
    records: dict[str, Mapping[str, Any]] = {}
    for file in holds:
        for record in _records(file):
            path = str(PurePosixPath(file.path).parent / str(record[NAME]))
            if path in records:
                raise StageError(f"{record[NAME]!r} is there twice", where=f"sources: {file.path}", hint="Remove one.")
            records[path] = {name: value for name, value in record.items() if name != NAME}
    left = [file for file in files if file not in holds]
    unknown = sorted(records.keys() - {file.path for file in left})
    if unknown:
        raise StageError(
            f"metadata of {len(unknown)} files that are not there: {', '.join(unknown[:3])}",
            where="sources",
            hint="`file_name` is relative to the folder of the metadata file; do `files` match them?",
        )
    return [replace(file, metadata=records.get(file.path)) for file in left]


def _records(file: FoundFile) -> list[dict[str, Any]]:
    try:
        with tempfile.TemporaryDirectory() as folder, local_copy(file.place.location, Path(folder)) as place:
            raw = place.read_bytes()
        if file.sha256 and hashlib.sha256(raw).hexdigest() != file.sha256:
            raise SourcesChanged("the file changed while it was read", where=f"sources: {file.path}")
        text = raw.decode("utf-8-sig")
        if file.path.endswith(".csv"):
            found: list[Any] = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise StageError(f"the metadata cannot be read: {error}", where=f"sources: {file.path}") from error
    if not all(isinstance(record, dict) and record.get(NAME) for record in found):
        raise StageError(
            f"a row of the metadata has no {NAME}", where=f"sources: {file.path}", hint="Name the file of each row."
        )
    return found
