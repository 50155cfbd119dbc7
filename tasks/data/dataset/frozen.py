"""The promise of a frozen test split: what was tested on once is tested on again, word for word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import StageError
from tasks.data.dataset.layout import describe, iterate_columns
from tasks.data.dataset.new_rows import passing
from tasks.data.hashing import long_hash
from tasks.data.selection.splitting import Split

if TYPE_CHECKING:
    from infra.artifacts import FileEntry
    from tasks.stage import Job

SHOWN = 3


def check_frozen(job: Job[Any], split: Split) -> None:
    """Raises StageError if an example of the last test split of this stage is gone, or reads differently.

    Only files that differ are read. An example that another one with the same text took the place of is still there.
    """
    last = job.previous
    if not split.frozen or last is None or not _binds(last.identity, job, split):
        return
    old, new = _test_files(last.payload), _test_files(job.shared)
    lost = sorted(path for path, sha in old.items() if new.get(path) != sha)
    added = sorted(path for path, sha in new.items() if old.get(path) != sha)
    if not lost:
        return
    before = job.store.fetch(last, only=lost)
    old_columns = sorted(passing(job.store, last))
    here = set()
    if set(old_columns) <= set(describe(job.output)["columns"]):
        here = {content for _, content in _examples((job.fetch_shared(path) for path in added), old_columns)}
    gone = [name for name, content in _examples((before / path for path in lost), old_columns) if content not in here]
    if gone:
        listed = ", ".join(gone[:SHOWN]) + (f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else "")
        raise StageError(
            f"{len(gone)} examples of the frozen test split would change or go: {listed}",
            where="split.frozen",
            hint="Scores on it could no longer be compared. Raise `split.test_version` to begin a new test split.",
        )


def _binds(identity: dict[str, Any], job: Job[Any], split: Split) -> bool:
    """Whether the last artifact was made by this version of the stage and for the same test split."""
    theirs = identity.get("params", {}).get("split", {})
    return bool(identity.get("version") == job.version and theirs.get("test_version") == split.test_version)


def _test_files(entries: Iterable[FileEntry]) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in entries if entry.path.startswith("test/")}


def _examples(files: Iterable[Path], columns: list[str]) -> Iterable[tuple[str, tuple[int, int]]]:
    """(id, hash of the text and of the values of the columns) of each row."""
    for batch in iterate_columns(files, ["id", "text", *columns]):
        for name, text, *values in zip(batch["id"], batch["text"], *(batch[c] for c in columns), strict=True):
            yield name, long_hash(text, values)
