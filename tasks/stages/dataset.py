"""dataset: files -> examples, cleaned, deduplicated, labelled and split, with every dropped row accounted for.

Every shard of the sources is prepared once, wherever and whenever it is first met (`tasks/data/parts/prepare.py`);
which rows are in is decided over all shards together from their sketches (`tasks/data/selection/selection.py`); and the
rows chosen of a shard are written once for each choice (`tasks/data/parts/pieces.py`). All of these are kept in the
store by their content: new data costs what is new.

Evidence in `records/`: `sources.json` (each file's path and sha256), `counts.json` (rows in and out of each step and
why), `quarantine.jsonl` (each file or row that could not be read: path, line, reason), `card.json` (the data card).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, ValidationError, model_validator

from infra.artifacts import Manifest
from infra.errors import StageError
from infra.execution import Execution
from infra.keys import digest
from infra.source_files import SourceLocation
from infra.sources_read import SourceFile
from tasks.data.dataset.hugging_face import features, readme
from tasks.data.dataset.layout import stored_files
from tasks.data.parts.parts import artifact_location
from tasks.data.parts.pieces import VERSION as PIECES_VERSION
from tasks.data.parts.pieces import packed
from tasks.data.parts.prepare import COUNTS, ROWS, SIGNATURES, SKETCH, Preparation
from tasks.data.parts.prepare import VERSION as PREPARED_VERSION
from tasks.data.parts.shards import Shard, shards_of
from tasks.data.plain_values import plain_text
from tasks.data.reading.column_names import check_columns
from tasks.data.reading.feature_types import inferred, read_features, with_columns
from tasks.data.reading.found_files import FoundFile, find_files, hub_files, links_not_followed
from tasks.data.reading.media import missing_reader
from tasks.data.reading.metadata_files import with_metadata
from tasks.data.reading.source_digests import hashed, hub_digests, listed, with_digests
from tasks.data.reading.sources import WHOLE_FILE, Source
from tasks.data.reading.typed_columns import MEDIA, mapped
from tasks.data.selection.decontamination import Decontaminate
from tasks.data.selection.dedup import Dedup
from tasks.data.selection.splitting import SPLITS, Split
from tasks.data.steps.cleaning import Clean
from tasks.data.steps.labels import Label, check_known
from tasks.data.steps.quality import Quality
from tasks.data.steps.steps import RowSteps
from tasks.stage import Fault, Job, PartKind, PartSpec, Stage

if TYPE_CHECKING:
    from infra.store import Store

PREPARED = PartKind("prepared", "tasks.data.parts.prepare:prepare_shard")
COLUMN_FIELDS = ("text_column", "messages_column", "id_column")
PIECES = PartKind("rows", "tasks.data.parts.pieces:take_rows", worth_a_process=64 << 20)


class Params(RowSteps):
    """Sources of the dataset and the steps applied to them."""

    sources: list[Source] = Field(min_length=1, description="Where the examples come from.")
    dedup: Dedup = Field(default_factory=lambda: Dedup(), description="Removal of duplicates.")
    decontaminate: Decontaminate | None = Field(
        None, description="Removal of training examples that evaluation sets share runs of words with. None: none."
    )
    label: Label | None = Field(None, description="Class of each example. None: unlabelled text.")
    split: Split = Field(default_factory=lambda: Split(), description="Train, validation and test.")
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="Largest share of unreadable files (or rows) before the stage fails."
    )

    @model_validator(mode="after")
    def _same_columns(self) -> Params:
        first, *rest = self.sources
        told_later = any(source.features for source in self.sources)  # by the features, before anything is read
        for i, source in enumerate(rest, 1):
            if not told_later and (source.columns != first.columns or source.has_text != first.has_text):
                raise ValueError(
                    f"sources[{i}] has other columns than sources[0]: `columns` and whether there is a text"
                )
        of_all = {"split.by": self.split.column, "label.from": self.label.column if self.label else None}
        for i, source in enumerate(self.sources):
            if source.format in MEDIA:
                continue  # their columns are those of the metadata
            named = {**of_all, f"sources[{i}].id_column": source.id_column}
            has = ("text",) if source.format == "lines" else ()
            for field, column in named.items() if source.format in (*WHOLE_FILE, "lines") else ():
                if column and column not in has:
                    raise ValueError(f"`{field}`: no column {column!r} in sources[{i}], of format {source.format}")
        if not first.has_text:
            of_text = {**dict(self), "clean": self.clean != Clean(), "quality": self.quality != Quality()}
            asked = [name for name in (*RowSteps.model_fields, "decontaminate") if of_text[name]]
            if asked or self.dedup.near is not None:
                raise ValueError(f"`{(*asked, 'dedup.near')[0]}` looks at texts, and the rows have none")
        return self


def files_of(params: Params) -> list[FoundFile]:
    """The files that matter: where packages are the labels, only those of the kept packages."""
    files, label = find_files(params.sources), params.label
    if label is None or label.source != "package" or label.keep is None or label.map is not None or not files:
        return files
    named = [(plain_text(file.package), file) for file in files]
    check_known(label.keep, {name for name, _ in named if name})
    return [file for name, file in named if name in label.keep]


def check(params: Params, execution: Execution) -> list[Fault]:
    """What reads images and audio is installed."""
    columns = params.sources[0].columns or {}
    missing = missing_reader(set(columns.values()))
    return [Fault(("sources", 0, "columns"), missing)] if missing else []


def sources(params: Params) -> list[SourceFile]:
    """Relative path and sha256 of every file the dataset reads: what enters the key."""
    return [*hashed(files_of(params)), *hub_digests(params.sources)]


def parts(job: Job[Params]) -> tuple[PartKind, list[PartSpec]]:
    """The preparation of each shard."""
    return PREPARED, _shards(job).preparations


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.data.dataset.card import data_card
    from tasks.data.dataset.frozen import check_frozen
    from tasks.data.parts.parts import fetch_parts, make_parts
    from tasks.data.selection.known import PreparedShard
    from tasks.data.selection.selection import Rules, select

    store = job.store
    files, params, notes, shards, specs = _shards(job)
    outside = [file for file in files if not file.source.on_hub and file.source.stage is None]
    job.has_read([*listed(outside), *hub_digests(job.params.sources)])
    resolved = replace(job, params=params)
    _write_json(job, "sources.json", [[file.path, file.sha256] for file in files])
    prepared = make_parts(PREPARED, specs, store, workers=job.cores, scratch=job.scratch, progress=job.bytes_done)
    known = []
    folders = fetch_parts(prepared.parts, [SKETCH, COUNTS], store)
    for shard, part, folder in zip(shards, prepared.parts, folders, strict=True):
        counts = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        weight = params.sources[shard.source].weight
        known.append(PreparedShard(folder / SKETCH, partial(_signatures, part, store), counts, weight))
    accounts = [shard.counts for shard in known]
    _check_columns(params, shards, accounts)
    rejected, units = _quarantine(job, accounts)

    overlap = params.decontaminate.max_share if params.decontaminate else None
    selection = select(known, Rules(params.split, params.dedup, params.label, overlap))
    with_rows = [i for i, take in enumerate(selection.rows) if any(map(len, take.values()))]
    chosen = _pieces(
        [prepared.parts[i] for i in with_rows],
        [selection.rows[i] for i in with_rows],
        labelled=params.label is not None,
        kinds=mapped(params.sources[0].columns),
    )
    pieces = make_parts(PIECES, chosen, store, workers=job.cores, scratch=job.scratch)
    for shard, piece in zip((shards[i] for i in with_rows), pieces.parts, strict=True):
        for entry in piece.payload:
            split, dot, suffix = entry.path.rpartition(".")
            job.shared.append(replace(entry, path=f"{split}/{_file_name(shard)}{dot}{suffix}"))

    splits = {split: selection.count(split) for split in SPLITS}
    kept = sorted(params.sources[0].columns or ())
    columns = ["id", "text", "group", *(["label"] if selection.labels is not None else []), *kept]
    description: dict[str, Any] = {"splits": splits, "labels": selection.labels, "columns": columns}
    if kinds := mapped(params.sources[0].columns):
        description["types"] = kinds
        found = features(columns, dict(params.sources[0].columns or {}), selection.labels)
        (job.output / "README.md").write_text(readme(found, [s for s, n in splits.items() if n]), encoding="utf-8")
    (job.output / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    check_frozen(resolved, params.split)
    warnings = [*links_not_followed(params.sources), *notes]
    warnings += [*(sentence for shard in accounts for sentence in shard["warnings"]), *selection.warnings]
    for warning in warnings:
        job.warn(warning)
    steps = [
        {"step": "read", "rows_in": units, "rows_out": units - rejected, "dropped": {"unreadable": rejected}},
        *_row_steps(accounts),
        *selection.steps,
    ]
    counts = {"steps": steps, "splits": splits, "labels": selection.table, "warnings": warnings}
    _write_json(job, "counts.json", counts)
    of_pieces = [piece.metrics for piece in pieces.parts]
    _write_json(job, "card.json", data_card(resolved, selection, _per_source(params, shards), of_pieces))
    sizes = {f"{split}_rows": float(count) for split, count in splits.items()}
    return {
        "files": float(len(files)),
        "rows": sum(sizes.values()),
        **sizes,
        "quarantined": float(rejected),
        "characters": float(steps[-1]["characters_out"]),
        "shards": float(len(shards)),
        "shards_reused": float(prepared.reused),
    }


def _signatures(part: Manifest, store: Store) -> Path:
    """The file of a shard's signatures, fetched only now."""
    return store.fetch(part, only=[SIGNATURES]) / SIGNATURES


class _Shards(NamedTuple):
    """files: as the key has them; params: with the columns that features say, and sentences on those; the shards that
    the files make; how each of these is prepared."""

    files: list[FoundFile]
    params: Params
    notes: list[str]
    shards: list[Shard]
    preparations: list[PartSpec]


def _shards(job: Job[Params]) -> _Shards:
    from tasks.data.parts.runs import known_runs

    files = [*with_digests([*files_of(job.params), *_hub(job.params)]), *_of_stages(job)]
    params, notes = _with_features(job, files)
    typed = dict(zip(map(id, job.params.sources), params.sources, strict=True))
    shards = shards_of(with_metadata([replace(f, source=typed[id(f.source)]) for f in files]), params.sources)
    return _Shards(files, params, notes, shards, _preparations(params, shards, known_runs(job, params.decontaminate)))


def _with_features(job: Job[Params], files: Sequence[FoundFile]) -> tuple[Params, list[str]]:
    """The params with what the features of their sources say, and what the user should know of them."""
    params = job.params
    found = {
        i: inferred(read_features(next(file for file in files if file.source is source), job.scratch))
        for i, source in enumerate(params.sources)
        if source.features
    }
    if not found:
        return params, []
    label, notes = params.label, list[str]()
    named = {one.label for one in found.values()} if len(found) == len(params.sources) else {None}
    if label is None and len(named) == 1 and (column := named.pop()) is not None:
        label = Label.model_validate({"from": f"column:{column}"})
    sources = list(params.sources)
    for i, one in found.items():
        sources[i], of_source = with_columns(sources[i], one, label.column if label else None, f"sources[{i}]")
        notes += of_source
    try:
        return Params.model_validate({**dict(params), "sources": sources, "label": label}), notes
    except ValidationError as error:
        reasons = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
        raise StageError(
            f"what the features say does not go with the other settings: {reasons}",
            where="sources",
            hint="Write `columns`, with a name and a type for each column that you want.",
        ) from error


def _write_json(job: Job[Params], name: str, value: Any) -> None:
    (job.records / name).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _hub(params: Params) -> list[FoundFile]:
    """Files of the hub datasets, which a plan knows by their commit alone."""
    found = [
        hub_files(source, f"sources[{i}].{source.field}") for i, source in enumerate(params.sources) if source.on_hub
    ]
    return [file for files in found for file in files]


def _of_stages(job: Job[Params]) -> list[FoundFile]:
    """The stored files of the datasets of other stages: the split named, or all."""
    given = [source for source in job.params.sources if source.stage is not None]
    found = []
    for source, item in zip(given, job.inputs.get("sources", []), strict=True):
        for _, entry in stored_files(item.manifest, [item.split] if item.split else None):
            place = SourceLocation(artifact_location(item.manifest, entry.path), entry.size, "")
            path = "/".join(filter(None, (source.name, item.stage, entry.path)))
            found.append(FoundFile(place, path, source, entry.sha256))
    return found


def _preparations(params: Params, shards: Sequence[Shard], runs: Sequence[Manifest]) -> list[PartSpec]:
    """What each shard's preparation depends on, and where its files lie."""
    label, split, near = params.label, params.split, params.dedup.near
    steps = RowSteps(**{name: getattr(params, name) for name in RowSteps.model_fields})
    known = {
        "content": sorted(entry.sha256 for run in runs for entry in run.payload),
        "places": [artifact_location(run, entry.path) for run in runs for entry in run.payload],
    }
    ways = []
    for source in params.sources:
        how = Preparation(
            source=source,
            steps=steps,
            near=near,
            label_from=label.source if label else None,
            label_map=label.map if label else None,
            label_keep=label.keep if label else None,
            group_by=split.by,
            seed=split.seed,
            ngram=params.decontaminate.ngram if params.decontaminate else None,
        )
        ways.append(
            (
                {"version": PREPARED_VERSION, "how": how.identity(), "known_runs": known["content"]},
                {"preparation": how.model_dump(mode="json"), "known_runs": known["places"]},
            )
        )
    return [
        PartSpec(
            {**ways[shard.source][0], "files": shard.content()},
            {**ways[shard.source][1], "files": shard.places()},
            shard.size,
        )
        for shard in shards
    ]


def _pieces(
    prepared: Sequence[Manifest], rows: Sequence[dict[str, Any]], *, labelled: bool, kinds: dict[str, str]
) -> list[PartSpec]:
    specs = []
    new = {"mapped": kinds} if kinds else {}  # pieces without such columns keep their keys
    for part, take in zip(prepared, rows, strict=True):
        entry = next(entry for entry in part.payload if entry.path == ROWS)
        chosen = packed(take)
        identity = {
            "version": PIECES_VERSION,
            "rows": entry.sha256,
            "take": digest(chosen),
            "labelled": labelled,
            **new,
        }
        arguments = {"rows": artifact_location(part, ROWS), "take": chosen, "labelled": labelled, **new}
        specs.append(PartSpec(identity, arguments, entry.size))
    return specs


def _file_name(shard: Shard) -> str:
    return f"{hashlib.sha256(shard.name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _check_columns(params: Params, shards: Sequence[Shard], counts: Sequence[dict[str, Any]]) -> None:
    """Raises StageError on a column that is asked for and that no row of a source has."""
    of_all = {"label.from": params.label.column if params.label else None, "split.by": params.split.column}
    for number, source in enumerate(params.sources):
        of_source = {f"sources[{number}].{name}": getattr(source, name) for name in COLUMN_FIELDS}
        fields = {column: name for name, column in {**of_source, **of_all}.items() if column}
        fields |= dict.fromkeys(source.columns or {}, f"sources[{number}].columns")
        of = [count["columns"] for shard, count in zip(shards, counts, strict=True) if shard.source == number]
        check_columns(source, number, of, fields)


def _quarantine(job: Job[Params], counts: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """(set aside, units looked at). Raises StageError where too much was set aside."""
    named = [item for shard in counts for item in shard["rejected"]]
    lines = "".join(json.dumps(item) + "\n" for item in named)
    (job.records / "quarantine.jsonl").write_text(lines, encoding="utf-8")
    rejected, units = (sum(int(shard[name]) for shard in counts) for name in ("rejected_count", "units"))
    allowed = job.params.max_bad_share
    share = rejected / max(units, 1)
    if share > allowed:
        first = named[0]
        place = first["path"] if first["line"] is None else f"{first['path']}:{first['line']}"
        unit = "files" if all(source.format in WHOLE_FILE for source in job.params.sources) else "rows"
        raise StageError(
            f"{rejected} of {units} {unit} cannot be read ({share:.1%}, allowed {allowed:.1%})",
            where="sources",
            hint=f"First: {place}: {first['reason']}. Fix or `exclude` them, or raise `max_bad_share`.",
        )
    if units == rejected:
        raise StageError("the sources hold no example", where="sources", hint="Are `format` and the columns right?")
    return rejected, units


def _per_source(params: Params, shards: Sequence[Shard]) -> list[Counter[str]]:
    """How many files and bytes each source has."""
    found = [Counter[str]() for _ in params.sources]
    for shard in shards:
        found[shard.source].update(files=len(shard.files), bytes=shard.size)
    return found


def _row_steps(counts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shards' accounts of each step, added up."""
    total: dict[str, dict[str, Any]] = {}
    for shard in counts:
        for account in shard["steps"]:
            mine = total.setdefault(account["step"], {"step": account["step"], "dropped": {}, "changed": {}})
            for name, value in account.items():
                if isinstance(value, dict):
                    for reason, count in value.items():
                        mine[name][reason] = mine[name].get(reason, 0) + count
                elif name != "step":
                    mine[name] = mine.get(name, 0) + value
    return list(total.values())


STAGE = Stage(
    kind="dataset",
    version=3,
    makes="dataset",
    params=Params,
    run=run,
    sources=sources,
    lazy=True,
    check=check,
    parts=parts,
    splits=lambda params: params.split.not_empty,
)
