"""dataset: files -> examples, cleaned, deduplicated, labelled and split, with every dropped row accounted for.

Evidence in `records/`: `sources.json` (each file's path and sha256), `counts.json` (rows in and out of each step and
why), `quarantine.jsonl` (each file or row that could not be read: path, line, reason).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from pydantic import Field

from infra.errors import StageError
from tasks.data.cleaning import Clean, clean
from tasks.data.columns import write_dataset
from tasks.data.dedup import Dedup, drop_exact, drop_near
from tasks.data.labels import Label, cap, check_known, choose
from tasks.data.reading import Columns, Rejected, Row, read_rows
from tasks.data.sources import FoundFile, Source, find_files, hashed
from tasks.data.splitting import SPLITS, Split, priority, split_of
from tasks.stage import Job, SourceFile, Stage, StageParams


class Params(StageParams):
    """What the dataset is made of and how."""

    sources: list[Source] = Field(min_length=1, description="Where the examples come from.")
    clean: Clean = Field(default_factory=lambda: Clean(), description="Normalisation and length limits.")
    dedup: Dedup = Field(default_factory=lambda: Dedup(), description="Removal of duplicates.")
    label: Label | None = Field(None, description="Class of each example. None: unlabelled text.")
    split: Split = Field(default_factory=lambda: Split(), description="Train, validation and test.")
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="Largest share of unreadable files (or rows) before the stage fails."
    )


def files_of(params: Params) -> list[FoundFile]:
    """The files that matter: where packages are the labels, only those of the kept packages."""
    files = find_files(params.sources)
    label = params.label
    if label is None or label.source != "package" or label.keep is None:
        return files
    check_known(label.keep, {file.package for file in files})
    return [file for file in files if file.package in label.keep]


def sources(params: Params) -> list[SourceFile]:
    """Relative path and sha256 of every file the dataset reads: what enters the key."""
    return hashed(files_of(params))


def run(job: Job[Params]) -> dict[str, float]:
    params = job.params
    files = files_of(params)
    pairs = [[file.path, file.sha256] for file in hashed(files)]
    (job.records / "sources.json").write_text(json.dumps(pairs, indent=0) + "\n", encoding="utf-8")
    steps: list[dict[str, Any]] = []

    rows, rejected = _read(files, params)
    _quarantine(job, rows, rejected, files)
    steps.append({"step": "read", "in": len(files), "out": len(rows), "dropped": {"unreadable": len(rejected)}})
    if params.label is not None:
        before = len(rows)
        rows, dropped = choose(rows, params.label)
        steps.append({"step": "label", "in": before, "out": len(rows), "dropped": dropped})
    before = len(rows)
    rows, dropped = clean(rows, params.clean)
    steps.append({"step": "clean", "in": before, "out": len(rows), "dropped": dropped})

    where = {row.group: split_of(row.group, params.split) for row in rows}
    rows.sort(key=lambda row: (priority(where[row.group], params.split), row.id))
    for name, settings, drop in (
        ("exact duplicates", params.dedup.exact, drop_exact),
        ("near duplicates", params.dedup.near, lambda r: drop_near(r, params.dedup.near)),  # type: ignore[arg-type]
    ):
        if settings:
            before, rows = len(rows), drop(rows)
            steps.append({"step": name, "in": before, "out": len(rows), "dropped": {name: before - len(rows)}})

    splits = {s: sorted((r for r in rows if where[r.group] == s), key=lambda r: r.id) for s in SPLITS}
    if params.label is not None and params.label.max_per_class is not None:
        before, splits["train"] = len(splits["train"]), cap(splits["train"], params.label.max_per_class)
        after = len(splits["train"])
        steps.append({"step": "max_per_class", "in": before, "out": after, "dropped": {"over the cap": before - after}})
    labels, table, warnings = _labels(splits, params)
    write_dataset(job.output, splits, labels)
    counts = {"steps": steps, "splits": {s: len(r) for s, r in splits.items()}, "labels": table, "warnings": warnings}
    (job.records / "counts.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    sizes = {f"{split}_rows": float(len(members)) for split, members in splits.items()}
    return {
        "files": float(len(files)),
        "rows": sum(sizes.values()),
        **sizes,
        "quarantined": float(len(rejected)),
        "characters": float(sum(len(r.text) for members in splits.values() for r in members)),
    }


def _read(files: list[FoundFile], params: Params) -> tuple[list[Row], list[Rejected]]:
    group = params.split.by.partition(":")[2] or None
    label = params.label
    columns = Columns(
        label=label.column if label else None,
        group=group,
        label_from_package=label is not None and label.source == "package",
    )
    rows: list[Row] = []
    rejected: list[Rejected] = []
    for item in read_rows(files, columns):
        if isinstance(item, Rejected):
            rejected.append(item)
        else:
            rows.append(Row(item.id, item.text, item.id, item.label) if params.split.by == "row" else item)
    return rows, rejected


def _quarantine(job: Job[Params], rows: list[Row], rejected: list[Rejected], files: list[FoundFile]) -> None:
    lines = "".join(json.dumps(asdict(item)) + "\n" for item in rejected)
    (job.records / "quarantine.jsonl").write_text(lines, encoding="utf-8")
    # A file of functions is one unit whether it yields a hundred rows or none; elsewhere each row is a unit.
    by_file = all(file.source.format in ("text", "python_functions") for file in files)
    total = len(files) if by_file else len(rows) + len(rejected)
    share = len(rejected) / max(total, 1)
    unit = "files" if by_file else "rows"
    if share > job.params.max_bad_share:
        first = rejected[0]
        place = first.path if first.line is None else f"{first.path}:{first.line}"
        raise StageError(
            f"{len(rejected)} of {total} {unit} cannot be read ({share:.1%}, allowed {job.params.max_bad_share:.1%})",
            where="sources",
            hint=f"First: {place}: {first.reason}. Fix or `exclude` them, or raise `max_bad_share`.",
        )
    if not rows:
        raise StageError("the sources hold no example", where="sources", hint="Are `format` and the columns right?")


def _labels(
    splits: dict[str, list[Row]], params: Params
) -> tuple[list[str] | None, dict[str, dict[str, int]] | None, list[str]]:
    """(sorted labels, label -> split -> rows, warnings). Raises StageError where nothing is left to learn from."""
    if not splits["train"]:
        raise StageError(
            "no training example is left", hint="See `clean`, `dedup` and `split`: together they dropped every row."
        )
    shares = {"validation": params.split.validation, "test": params.split.test}
    warnings = [f"split {s} is empty" for s, share in shares.items() if share > 0 and not splits[s]]
    if params.label is None:
        return None, None, warnings
    counts = {s: Counter(row.label for row in members) for s, members in splits.items()}
    labels = sorted({str(row.label) for members in splits.values() for row in members})
    missing = [label for label in labels if not counts["train"][label]]
    if missing or len(labels) < 2:
        raise StageError(
            f"no training example has the label {missing[0]!r}" if missing else "only one class is left",
            where="label",
            hint="Its files all fell into another split or were dropped: use another `split.seed`, or `by: row`.",
        )
    for split, share in shares.items():
        absent = [label for label in labels if not counts[split][label]]
        if share > 0 and absent:
            warnings.append(f"split {split} has no example of: {', '.join(absent)}")
    return labels, {label: {s: counts[s][label] for s in SPLITS} for label in labels}, warnings


STAGE = Stage(kind="dataset", version=1, makes="dataset", params=Params, run=run, sources=sources)
