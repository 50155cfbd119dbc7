"""Where a dataset's raw data lies, and which files that is.

A source names files by a glob, or a folder of Python code whose functions are the examples:

    sources:
      - {files: "${python:stdlib}/**/*.py", exclude: ["**/test/**"], format: text}
      - {files: "data/*.jsonl", format: jsonl, text_column: body}
      - {python_functions: "${python:stdlib}"}

Where the files lie is not identity; which files there are, by relative path and content, is. `${python:stdlib}` is the
standard library of the running Python, the one real corpus every machine has (packages installed into it left out).
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from infra.errors import StageError
from tasks.data.file_patterns import split_root, walk
from tasks.stage import Located, SourceFile, StageParams

STDLIB = "${python:stdlib}"
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__"})
Format = Literal["text", "jsonl", "csv", "parquet", "python_functions"]


class Source(StageParams):
    """One place examples come from: give either `files` or `python_functions`."""

    files: Annotated[str | None, Located()] = Field(
        None, description="Glob of files (`**` crosses folders), relative to the pipeline file."
    )
    python_functions: Annotated[str | None, Located()] = Field(
        None, description="A folder; every function and method of its .py files is one example (id: path::qualname)."
    )
    exclude: Annotated[list[str], Located(path=False)] = Field(
        default_factory=list, description="Globs, relative to the source's folder, of files to leave out."
    )
    format: Format = Field(
        "text",
        description="`text`: a file is an example. `jsonl`, `csv`, `parquet`: a row is. Not used with functions.",
    )
    text_column: str = Field("text", description="Column that holds the text; jsonl, csv and parquet only.")
    id_column: str | None = Field(
        None, description="Column with a unique, lasting name of each row. None: named by file and content."
    )
    name: str = Field(
        "", pattern=r"^[\w.-]*$", description="Prefix of this source's ids, where two sources share paths."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if (data.get("files") is None) == (data.get("python_functions") is None):
            raise ValueError("give exactly one of `files` and `python_functions`")
        if data.get("python_functions") is not None:
            if data.get("format", "python_functions") != "python_functions":
                raise ValueError("`format` goes with `files`; python_functions reads .py files")
            return {**data, "format": "python_functions"}
        if data.get("format") == "python_functions":
            raise ValueError("to read functions write `python_functions: FOLDER` instead of `files`")
        return data

    @property
    def field(self) -> str:
        return "files" if self.files is not None else "python_functions"


@dataclass(frozen=True)
class FoundFile:
    """A file of a source: where it is now, and its name in ids, groups and keys (independent of the machine)."""

    location: Path
    path: str
    source: Source

    @property
    def package(self) -> str:
        """First component of the path below the source's folder, a top-level module without its suffix."""
        inner = self.path.removeprefix(f"{self.source.name}/") if self.source.name else self.path
        return inner.partition("/")[0].removesuffix(".py")


def expand(pattern: str) -> str:
    """A path or glob with `${python:stdlib}` and `~` replaced."""
    return str(Path(pattern.replace(STDLIB, sysconfig.get_path("stdlib"))).expanduser())


def find_files(sources: Sequence[Source]) -> list[FoundFile]:
    """Every file the sources name, sorted by path. Raises StageError on an unreadable place or a fileless source."""
    found: dict[str, FoundFile] = {}
    for i, source in enumerate(sources):
        for file in _files_of(source, f"sources[{i}].{source.field}"):
            other = found.setdefault(file.path, file)
            if other.location != file.location:
                raise StageError(
                    f"two sources hold a file named {file.path} ({other.location} and {file.location})",
                    where=f"sources[{i}]",
                    hint="Give one of the sources a `name:`; it becomes the prefix of its files.",
                )
            if other.source != source:
                raise StageError(
                    f"{file.path} is read by two sources", where=f"sources[{i}]", hint="`exclude` it from one of them."
                )
    return [found[path] for path in sorted(found)]


def _files_of(source: Source, where: str) -> list[FoundFile]:
    given = source.files or source.python_functions or ""
    if "://" in given:
        raise StageError(
            f"{given!r} is not a local path", where=where, hint="Mount or copy the data; URLs are not read."
        )
    root, pattern = split_root(expand(given)) if source.files else (Path(expand(given)), "**/*.py")
    # The standard library's folder holds what pip installs as well; that is not the standard library.
    skip = NOT_STDLIB if given.startswith(STDLIB) else frozenset({"__pycache__"})
    try:
        paths = walk(root, pattern, source.exclude, skip)
    except OSError as error:
        raise StageError(
            f"cannot read {error.filename or root}: {error.strerror or error}",
            where=where,
            hint="Check the path (relative paths start at the pipeline file's folder) and its permissions.",
        ) from error
    if not paths:
        excluded = f" after exclude {source.exclude}" if source.exclude else ""
        raise StageError(
            f"no file matches {pattern} under {root}{excluded}", where=where, hint="`**/` matches any depth of folders."
        )
    prefix = f"{source.name}/" if source.name else ""
    return [FoundFile(root / path, prefix + path, source) for path in paths]


def hashed(files: Sequence[FoundFile]) -> list[SourceFile]:
    """(path, sha256) of each file. Raises StageError on one that cannot be read.

    Where the sources are read in different ways, the way is part of the path, so that two files which change places
    between a jsonl and a text source are not mistaken for the same data.
    """
    ways = {(f.source.format, f.source.text_column, f.source.id_column) for f in files}
    result = []
    for file in files:
        try:
            sha = hashlib.sha256(file.location.read_bytes()).hexdigest()
        except OSError as error:
            raise unreadable(file, error) from error
        way = (
            f" ({file.source.format} {file.source.text_column} {file.source.id_column or ''})" if len(ways) > 1 else ""
        )
        result.append(SourceFile(file.path + way, sha))
    return result


def unreadable(file: FoundFile, error: OSError) -> StageError:
    """The error for a listed file that cannot be opened: not the data's fault, so it is never quarantined."""
    return StageError(
        f"cannot read {file.location}: {error.strerror or error}",
        where=f"sources: {file.path}",
        hint="Fix its permissions, or `exclude` it.",
    )
