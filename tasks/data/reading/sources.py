"""Where a dataset's raw data lies and how it is read. Which files that is: `tasks/data/reading/found_files.py`.

A source names files by a glob, a folder of Python code whose functions are the examples, or the dataset another stage
made:

    sources:
      - {files: "${python:stdlib}/**/*.py", exclude: ["**/test/**"], format: text}
      - {files: "s3://bucket/raw/*.jsonl.zst", format: jsonl, text_column: body}
      - {files: "faq.csv", format: csv, template: "Q: {question}\\nA: {answer}", licence: CC-BY-4.0}
      - {python_functions: "${python:stdlib}"}
      - {files: "hf://datasets/org/name@0123...cdef/data/train-*.parquet", format: parquet}
      - {files: "goods.parquet", format: parquet, text_column: null, columns: {photo: binary, price: float32}}
      - {files: "photos/*/*.jpg", format: image}
      - {dataset: org/name, config: default, split: train, revision: 0123...cdef, text_column: body}
      - {saved: my_dataset/train}
      - {stage: mails}

Where the files lie is not identity; which files there are, by relative path and content, is. A dataset on the Hugging
Face hub is named with its commit, which stands for its content, so a plan asks nobody. `${python:stdlib}` is the
standard library of the running Python, the one real corpus every machine has (packages installed into it left out).
Files may be compressed (.gz, .zst, .bz2). What the suffix of a file says about its format may not contradict `format`.

Links to folders are followed; one that leads to a folder which holds it, or that leads nowhere and may have been a
folder, is named in a warning. A link that matches and leads nowhere is an error. Left out unless the pattern spells
them: names that start with a dot, and what other programs leave beside data (`_SUCCESS`, `~$x`, `Thumbs.db`; see
`tasks/data/reading/file_patterns.py`). A name with brackets that exists is that name and no pattern. All of this holds
for buckets too, where there are no links. An http address is one file.
"""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from infra.source_files import is_url
from tasks.data.reading.chat_template import check_chat_template
from tasks.data.reading.column_template import template_parts
from tasks.data.reading.file_patterns import compiled, split_root
from tasks.data.reading.suffixes import contradiction
from tasks.data.reading.typed_columns import MEDIA, ColumnType
from tasks.stage import AddedLater, Input, Located, StageParams

STDLIB = "${python:stdlib}"
Format = Literal["text", "lines", "jsonl", "csv", "parquet", "arrow", "python_functions", "image", "audio", "datasets"]
DATASETS = "datasets"
"""The format of `dataset` and `saved`: Arrow files of Hugging Face's `datasets`, whose schema has their features."""
OF_DATASETS = ("dataset", "saved")
WHOLE_FILE: frozenset[str] = frozenset({"text", "python_functions", "image", "audio"})
"""Formats in which a file, not a row, is the unit that is counted and set aside."""
KINDS = ("files", "python_functions", "stage", "dataset", "saved")
HUB = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})/(?P<pattern>.+)")


class Source(StageParams):
    """One place examples come from: give one of `files`, `python_functions`, `stage`, `dataset` and `saved`."""

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
    dataset: Annotated[str | None, AddedLater()] = Field(
        None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="ORG/NAME of a dataset on the Hugging Face hub, read by `datasets`; with `revision` and `split`.",
    )
    config: Annotated[str | None, AddedLater()] = Field(None, description="Of `dataset`: its configuration.")
    split: Annotated[str | None, AddedLater()] = Field(None, description="Of `dataset`: the split to read.")
    revision: Annotated[str | None, AddedLater()] = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="Of `dataset`: the commit, 40 hexadecimal digits."
    )
    saved: Annotated[str | None, Located()] = Field(
        None, description="A folder that `Dataset.save_to_disk` wrote; of a DatasetDict the folder of one split."
    )
    features: Annotated[bool, AddedLater()] = Field(
        False,
        description="Of `dataset` and `saved`: the columns and their types are what the features say, and so are text, "
        "ids and label where nothing else does (`tasks/data/reading/feature_types.py`). True where `columns` is not "
        "written.",
    )
    exclude: Annotated[list[str], Located(path=False)] = Field(
        default_factory=list, description="Globs, relative to the source's folder, of files to leave out."
    )
    format: Format = Field(
        "text",
        description="`text`: a file is an example. `lines`: a line is. `jsonl`, `csv`, `parquet`, `arrow`: a row is. "
        "`image`, `audio`: a file is one, in the column of that name; further `columns` come from a metadata.csv or "
        "metadata.jsonl beside the files, by its column file_name. "
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
        "aside. All sources of a dataset have the same ones. Left out of `dataset` and `saved`: as their features say; "
        "null: none.",
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
            raise ValueError("give exactly one of `files`, `python_functions`, `stage`, `dataset` and `saved`")
        if str(data.get("files")).startswith("hf:") and not HUB.fullmatch(str(data["files"])):
            raise ValueError("write hf://datasets/ORG/NAME@COMMIT/PATTERN; a branch or tag could move")
        if data.get("python_functions") is not None:
            if data.get("format", "python_functions") != "python_functions":
                raise ValueError("`format` goes with `files`; python_functions reads .py files")
            return {**data, "format": "python_functions"}
        if data.get("format") == "python_functions":
            raise ValueError("to read functions write `python_functions: FOLDER` instead of `files`")
        if (media := data.get("format")) in MEDIA:
            if data.get("text_column") is not None:
                raise ValueError(f"format {media} has no text; leave `text_column` out")
            return {**data, "text_column": None, "columns": {**(data.get("columns") or {}), media: media}}
        if given[0] in OF_DATASETS:
            if data.get("format", DATASETS) != DATASETS:
                raise ValueError(f"`format` goes with `files`; `{given[0]}` is read by datasets")
            data = {"features": "columns" not in data, **data, "format": DATASETS}
        elif data.get("format") == DATASETS:
            raise ValueError("write `dataset: ORG/NAME` or `saved: FOLDER` instead of `files`")
        if given[0] == "dataset" and not (data.get("revision") and data.get("split")):
            raise ValueError("`dataset` needs `revision`, a commit (a branch or tag could move), and `split`")
        if given[0] != "dataset" and any(data.get(name) for name in ("config", "split", "revision")):
            raise ValueError("`config`, `split` and `revision` go with `dataset`")
        if data.get("stage") is not None:
            return {**data, "format": "parquet"}
        return data

    @model_validator(mode="after")
    def _one_text(self) -> Source:
        if self.template is not None and self.messages_column is not None:
            raise ValueError("`template` and `messages_column` both make the text; give one")
        if self.template is not None:
            template_parts(self.template)
        if self.chat_template is not None:
            if self.messages_column is None:
                raise ValueError("`chat_template` writes the messages of `messages_column`: name it too")
            check_chat_template(self.chat_template)
        if self.format in MEDIA and (self.template or self.messages_column or self.id_column):
            raise ValueError(f"format {self.format} has no texts and no ids but the names of its files")
        if self.format in ("text", "lines", "python_functions"):
            if self.template or self.messages_column:
                raise ValueError(f"format {self.format} has no columns to make a text of")
            if self.columns or self.text_column is None:
                raise ValueError(f"format {self.format} has no columns but the text")
        return self

    @model_validator(mode="after")
    def _files_fit(self) -> Source:
        given = self.files or self.python_functions or ""
        if "${" in given.replace(STDLIB, ""):
            raise ValueError(f"`{self.field}`: nothing is put in for ${{...}} but {STDLIB}; write the path")
        for pattern in (split_root(expand(self.files))[1] if self.files else "", *self.exclude):
            compiled(pattern)
        if self.files is not None and (wrong := self.contradiction(self.files)):
            raise ValueError(f"`files`: {wrong}")
        return self

    @model_validator(mode="after")
    def _known_columns(self) -> Source:
        taken = sorted({"id", "text", "group", "label"}.intersection(self.columns or ()))
        if taken:
            raise ValueError(f"`columns`: a dataset's rows have a {taken[0]!r} already")
        if self.features and (self.columns or self.format != DATASETS):
            raise ValueError("`features` goes with `dataset` and `saved`, where `columns` is left out")
        if not self.has_text and not self.columns and not self.features:
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

    def contradiction(self, name: str) -> str:
        """Why files of this name or pattern cannot be of the source's format; empty where nothing says so."""
        if self.format == DATASETS:
            return ""
        given = self.model_fields_set
        return contradiction(name, self.format, stated="format" in given, delimiter_stated="delimiter" in given)

    @property
    def has_text(self) -> bool:
        return bool(self.text_column or self.template or self.messages_column)

    @property
    def field(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def on_hub(self) -> bool:
        """Whether a commit on the Hugging Face hub stands for its content."""
        return self.hub is not None or self.dataset is not None

    @property
    def hub(self) -> re.Match[str] | None:
        """Name, revision and pattern of a dataset on the Hugging Face hub."""
        return HUB.fullmatch(self.files or "")


def package_of(path: str, source: Source) -> str:
    """First component of a file's path below its source's folder, a top-level module without its suffix."""
    inner = path.removeprefix(f"{source.name}/") if source.name else path
    return inner.partition("/")[0].removesuffix(".py")


def folder_of(path: str, source: Source) -> str:
    """The last folder of a file's path; empty where it lies in the source's own folder."""
    inner = path.removeprefix(f"{source.name}/") if source.name else path
    return PurePosixPath(inner).parent.name


def expand(pattern: str) -> str:
    """A path or glob with `${python:stdlib}` and `~` replaced. Raises ValueError where `~NAME` is nobody."""
    if is_url(pattern):
        return pattern
    try:
        return str(Path(pattern.replace(STDLIB, sysconfig.get_path("stdlib"))).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{pattern}: nobody of that name has a home folder here") from error
