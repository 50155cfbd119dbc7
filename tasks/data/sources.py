"""Where a dataset's raw data lies, and which files that is.

A source names files by a glob, a folder of Python code whose functions are the examples, or the dataset another stage
made:

    sources:
      - {files: "${python:stdlib}/**/*.py", exclude: ["**/test/**"], format: text}
      - {files: "s3://bucket/raw/*.jsonl.zst", format: jsonl, text_column: body}
      - {files: "faq.csv", format: csv, template: "Q: {question}\\nA: {answer}", licence: CC-BY-4.0}
      - {python_functions: "${python:stdlib}"}
      - {files: "hf://datasets/org/name@0123...cdef/data/train-*.parquet", format: parquet}
      - {files: "goods.parquet", format: parquet, text_column: null, columns: {photo: binary, price: float32}}
      - {stage: mails}

Where the files lie is not identity; which files there are, by relative path and content, is. A dataset on the Hugging
Face hub is named with its commit, which stands for its content, so a plan asks nobody. `${python:stdlib}` is the
standard library of the running Python, the one real corpus every machine has (packages installed into it left out).
Files may be compressed (.gz, .zst, .bz2).
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from infra import source_files
from infra.errors import StageError
from infra.source_files import SourceLocation, is_url
from tasks.data.column_template import template_parts
from tasks.data.file_patterns import compiled, matches_any, split_root, walk
from tasks.data.typed_columns import ColumnType
from tasks.stage import Input, Located, StageParams

STDLIB = "${python:stdlib}"
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__"})
Format = Literal["text", "lines", "jsonl", "csv", "parquet", "arrow", "python_functions"]
WHOLE_FILE: frozenset[str] = frozenset({"text", "python_functions"})
"""Formats in which a file, not a row, is the unit that is counted and set aside."""
KINDS = ("files", "python_functions", "stage")
HUB = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})/(?P<pattern>.+)")


class Source(StageParams):
    """One place examples come from: give one of `files`, `python_functions` and `stage`."""

    files: Annotated[str | None, Located()] = Field(
        None,
        description="Glob of files (`**` crosses folders), relative to the pipeline file, or a URL: s3://..., "
        "hf://datasets/ORG/NAME@COMMIT/...",
    )
    python_functions: Annotated[str | None, Located()] = Field(
        None, description="A folder; every function and method of its .py files is one example (id: path::qualname)."
    )
    stage: Annotated[str | None, Input("dataset")] = Field(
        None, description="Dataset stage whose examples are taken, all splits or the one named."
    )
    exclude: Annotated[list[str], Located(path=False)] = Field(
        default_factory=list, description="Globs, relative to the source's folder, of files to leave out."
    )
    format: Format = Field(
        "text",
        description="`text`: a file is an example. `lines`: a line is. `jsonl`, `csv`, `parquet`, `arrow`: a row is. "
        "Not used with functions and stages.",
    )
    text_column: str | None = Field(
        "text", description="Column that holds the text; formats with rows only. null: rows without a text."
    )
    template: str | None = Field(
        None, description="Text made of columns instead: `Q: {question}` puts the column `question` there."
    )
    messages_column: str | None = Field(
        None, description="Column with a list of {role, content}; the text is the chat, as `chat_template` has it."
    )
    chat_template: str | None = Field(
        None, description="Jinja template over `messages`, as tokenizers have it. None: ChatML."
    )
    id_column: str | None = Field(
        None, description="Column with a unique, lasting name of each row. None: named by file and content."
    )
    columns: dict[str, ColumnType] | None = Field(
        None,
        min_length=1,
        description="Columns that pass through to the dataset: name -> type. A row with a value of another type is set "
        "aside. All sources of a dataset have the same ones.",
    )
    fallback_encoding: str | None = Field(
        None, description="Encoding of texts that are not UTF-8, such as `windows-1252`. None: they are set aside."
    )
    delimiter: str = Field(",", min_length=1, max_length=1, description="Between the fields of a csv row.")
    quoting: Literal["minimal", "none"] = Field(
        "minimal",
        description='Of csv: `minimal`: a field may stand in "quotes", with delimiters, line breaks and "" for a quote '
        "in it. `none`: a quote is a character like others, and every line is a row.",
    )
    escape: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="Of csv: what makes the next character text, such as \\. None: none.",
    )
    weight: float = Field(
        1.0, gt=0, description="Times each training example counts: 0.5 keeps half of them, 2 repeats each once."
    )
    licence: str = Field("", description="Of the data, for the data card; an SPDX name where there is one.")
    name: str = Field(
        "", pattern=r"^[\w.-]*$", description="Prefix of this source's ids, where two sources share paths."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = [kind for kind in KINDS if data.get(kind) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of `files`, `python_functions` and `stage`")
        if str(data.get("files")).startswith("hf:") and not HUB.fullmatch(str(data["files"])):
            raise ValueError("write hf://datasets/ORG/NAME@COMMIT/PATTERN; a branch or tag could move")
        if data.get("python_functions") is not None:
            if data.get("format", "python_functions") != "python_functions":
                raise ValueError("`format` goes with `files`; python_functions reads .py files")
            return {**data, "format": "python_functions"}
        if data.get("format") == "python_functions":
            raise ValueError("to read functions write `python_functions: FOLDER` instead of `files`")
        if data.get("stage") is not None:
            return {**data, "format": "parquet"}
        return data

    @model_validator(mode="after")
    def _one_text(self) -> Source:
        if self.template is not None and self.messages_column is not None:
            raise ValueError("`template` and `messages_column` both make the text; give one")
        if self.template is not None:
            template_parts(self.template)
        if self.format in ("text", "lines", "python_functions"):
            if self.template or self.messages_column:
                raise ValueError(f"format {self.format} has no columns to make a text of")
            if self.columns or self.text_column is None:
                raise ValueError(f"format {self.format} has no columns but the text")
        return self

    @model_validator(mode="after")
    def _patterns(self) -> Source:
        if self.files is not None and not is_url(self.files):
            expand(self.files)
        for pattern in (split_root(self.files)[1] if self.files else "", *self.exclude):
            compiled(pattern)
        return self

    @model_validator(mode="after")
    def _known_columns(self) -> Source:
        taken = sorted({"id", "text", "group", "label"}.intersection(self.columns or ()))
        if taken:
            raise ValueError(f"`columns`: a dataset's rows have a {taken[0]!r} already")
        if not self.has_text and not self.columns:
            raise ValueError("rows without a text need `columns`")
        if self.fallback_encoding is not None:
            try:
                b"  ".decode(self.fallback_encoding)
            except LookupError as error:
                raise ValueError(f"`fallback_encoding`: {error}") from error
        return self

    @model_validator(mode="after")
    def _csv_marks(self) -> Source:
        if self.format != "csv" and (self.quoting != "minimal" or self.escape is not None):
            raise ValueError(f"`quoting` and `escape` go with format csv, and this is {self.format}")
        marks = [self.delimiter, *([self.escape] if self.escape else []), *(['"'] if self.quoting != "none" else [])]
        if len(set(marks)) < len(marks) or set(marks) & {"\r", "\n"}:
            raise ValueError("`delimiter`, `escape` and the quote are three different characters, and no line breaks")
        return self

    @property
    def has_text(self) -> bool:
        return bool(self.text_column or self.template or self.messages_column)

    @property
    def field(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def hub(self) -> re.Match[str] | None:
        """Name, revision and pattern of a dataset on the Hugging Face hub."""
        return HUB.fullmatch(self.files or "")


@dataclass(frozen=True)
class FoundFile:
    """A file of a source: where it is now, and its name in ids, groups and keys (independent of the machine).

    sha256: of its bytes, where that is known without reading it.
    """

    place: SourceLocation
    path: str
    source: Source
    sha256: str = ""

    @property
    def package(self) -> str:
        """First component of the path below the source's folder, a top-level module without its suffix."""
        return package_of(self.path, self.source)


def package_of(path: str, source: Source) -> str:
    """First component of a file's path below its source's folder, a top-level module without its suffix."""
    inner = path.removeprefix(f"{source.name}/") if source.name else path
    return inner.partition("/")[0].removesuffix(".py")


def expand(pattern: str) -> str:
    """A path or glob with `${python:stdlib}` and `~` replaced. Raises ValueError where `~NAME` is nobody."""
    if is_url(pattern):
        return pattern
    try:
        return str(Path(pattern.replace(STDLIB, sysconfig.get_path("stdlib"))).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{pattern}: nobody of that name has a home folder here") from error


def find_files(sources: Sequence[Source]) -> list[FoundFile]:
    """Every file outside the store that the sources name, sorted by path; hub datasets are looked at by no plan.

    Raises StageError on an unreadable place or a fileless source.
    """
    found: dict[str, FoundFile] = {}
    for i, source in enumerate(sources):
        if source.hub is None and source.stage is None:
            _add(found, _files_of(source, f"sources[{i}].{source.field}"), i)
    return [found[path] for path in sorted(found)]


def _add(found: dict[str, FoundFile], files: list[FoundFile], number: int) -> None:
    for file in files:
        other = found.setdefault(file.path, file)
        if other.place.location != file.place.location:
            raise StageError(
                f"two sources hold a file named {file.path} ({other.place.location} and {file.place.location})",
                where=f"sources[{number}]",
                hint="Give one of the sources a `name:`; it becomes the prefix of its files.",
            )
        if other.source != file.source:
            raise StageError(
                f"{file.path} is read by two sources", where=f"sources[{number}]", hint="`exclude` it from one of them."
            )


def _files_of(source: Source, where: str) -> list[FoundFile]:
    given = expand(source.files or source.python_functions or "")
    if is_url(given):
        return _remote_files(source, given, where)
    root, pattern = split_root(given) if source.files else (Path(given), "**/*.py")
    # The standard library's folder holds what pip installs as well; that is not the standard library.
    skip = NOT_STDLIB if (source.files or source.python_functions or "").startswith(STDLIB) else {"__pycache__"}
    try:
        paths = walk(root, pattern, source.exclude, frozenset(skip))
        places = [source_files.local(root / path) for path in paths]
    except OSError as error:
        raise StageError(
            f"cannot read {error.filename or root}: {error.strerror or error}",
            where=where,
            hint="Check the path (relative paths start at the pipeline file's folder) and its permissions.",
        ) from error
    return _named(source, list(zip(paths, places, strict=True)), f"{pattern} under {root}", where)


def _remote_files(source: Source, url: str, where: str) -> list[FoundFile]:
    scheme, _, rest = url.partition("://")
    folder, pattern = split_root(rest)
    root = f"{scheme}://{folder.as_posix()}"
    wanted = compiled(pattern)
    files = source_files.listed(
        root, lambda path: bool(wanted.fullmatch(path)) and not matches_any(path, source.exclude)
    )
    return _named(source, files, f"{pattern} under {root}", where)


def _named(source: Source, files: list[tuple[str, SourceLocation]], what: str, where: str) -> list[FoundFile]:
    if not files:
        excluded = f" after exclude {source.exclude}" if source.exclude else ""
        raise StageError(f"no file matches {what}{excluded}", where=where, hint="`**/` matches any depth of folders.")
    prefix = f"{source.name}/" if source.name else ""
    return [FoundFile(place, prefix + path, source) for path, place in files]


def hub_files(source: Source, where: str) -> list[FoundFile]:
    """The files of a hub dataset, downloaded unless the local cache has them. Raises StageError where neither works."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert source.hub is not None
    name, revision, pattern = source.hub.group("name", "revision", "pattern")
    try:
        root = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[pattern]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StageError(
            f"cannot get {name} at {revision[:12]}: {str(error).strip().splitlines()[0]}",
            where=where,
            hint="Check the name, the commit, HF_TOKEN and the network; a dataset in the local cache needs none.",
        ) from error
    # The cache holds links to files that are named by their content.
    paths = walk(root, pattern, source.exclude)
    places = [source_files.local((root / path).resolve()) for path in paths]
    return _named(source, list(zip(paths, places, strict=True)), f"{pattern} in {name}", where)
